"""Checks of lesson 07: what a temperature does to a ratio, the soft-target loss, and batches with missing labels.

The losses are compared with the package's own; each usual slip is computed as well, so that it can be named.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from yolo_slim_lessons.distillation.losses import known_label_loss, soft_target_loss
from yolo_slim_lessons.teaching.exercises.feedback import Feedback, check, judge_number

__all__ = ["check_partly_labelled_loss", "check_soft_target_loss", "check_softened_ratio"]

Loss = Callable[..., torch.Tensor]


@check
def check_softened_ratio(answer: float) -> Feedback:
    """At temperature 1 a class is 81 times as likely as another: how many times at temperature 4?"""
    mistakes = {
        81 / 4: "the temperature divides logits, not probabilities: take the logarithm of 81 first",
        81 / 16: "T² belongs to the loss; the softmax knows T alone, and it divides logits, not probabilities",
        81**4: "that is temperature 1/4, which makes the teacher surer; 4 makes it more doubtful",
        81**0.5: "that is temperature 2; each doubling of the temperature takes a square root",
        math.log(81): "that is the difference of the logits at temperature 1; divide it by 4, and go back with exp",
        math.log(81) / 4: "that is the difference of the logits at temperature 4; the ratio is its exp",
        1 / 3: "that is how the other class compares with this one: turn it round",
        81: "then the temperature would have done nothing: logits become closer when they are divided by 4",
        1: "they become equal only when the temperature is infinite",
    }
    praise = "the logits are log 81 apart; a quarter of that is log 3"
    hint = "a ratio of probabilities is exp of the difference of the logits, which T divides"
    return judge_number(answer, 3, mistakes, praise, hint, rel_tol=0.01)


@check
def check_soft_target_loss(answer: Loss) -> Feedback:
    """A function of the student's logits, the teacher's and a temperature: T² · KL(teacher ‖ student)."""
    generator = torch.Generator().manual_seed(0)
    scores, teacher_scores = (3 * torch.randn(6, 10, generator=generator) for _ in range(2))
    temperature = 4.0
    learnable = scores.clone().requires_grad_()
    target = teacher_scores.clone()
    loss = answer(learnable, target, temperature)
    if not torch.equal(target, teacher_scores):
        return Feedback(False, "it changed the teacher's logits that it was given: make new tensors")
    reason = _not_a_loss(
        loss, learnable, "if the target holds log-probabilities, say log_target=True, else use softmax there"
    )
    if reason:
        return Feedback(False, reason)
    value = loss.item()
    if math.isclose(value, soft_target_loss(scores, teacher_scores, temperature).item(), rel_tol=1e-4):
        other = answer(scores.clone(), teacher_scores.clone(), 2.0).item()
        if not math.isclose(other, soft_target_loss(scores, teacher_scores, 2.0).item(), rel_tol=1e-4):
            return Feedback(False, "right at temperature 4, wrong at 2: use the argument, not a fixed number")
        return Feedback(True, "both softened, the teacher's doubts as the target, and T² to keep gradients in size")
    for mistake, why in _soft_target_mistakes(scores, teacher_scores, temperature):
        if math.isclose(value, mistake.item(), rel_tol=1e-4):
            return Feedback(False, why)
    return Feedback(False, f"for one batch it gives {value:.4g}, and the sum worked out by hand is another")


@check
def check_partly_labelled_loss(answer: Loss) -> Feedback:
    """A function of scores, labels (-1: none), the teacher's scores, temperature and alpha: the loss of one batch."""
    generator = torch.Generator().manual_seed(1)
    scores, answers = (3 * torch.randn(6, 10, generator=generator) for _ in range(2))
    labels, temperature, alpha = torch.tensor([3, -1, 7, -1, -1, 0]), 4.0, 0.8
    soft = soft_target_loss(scores, answers, temperature)
    hard = known_label_loss(scores, labels)
    known = labels >= 0
    soft_known = soft_target_loss(scores[known], answers[known], temperature)
    soft_unknown = soft_target_loss(scores[~known], answers[~known], temperature)
    last_class = F.cross_entropy(scores, labels.remainder(10))
    learnable = scores.clone().requires_grad_()
    try:
        loss = answer(learnable, labels.clone(), answers.clone(), temperature, alpha)
    except IndexError as error:
        if "Target" not in str(error):
            raise
        return Feedback(False, f"label -1 is no class ({error}): leave these images out of the cross-entropy")
    reason = _not_a_loss(loss, learnable, "what stands for -1 must not get into the sum")
    if reason:
        return Feedback(False, reason)
    mistakes = (
        (alpha * hard + (1 - alpha) * soft, "alpha is the teacher's share, 1 - alpha that of the labels"),
        (soft + hard, "the two parts are added as they are: weigh them with alpha and 1 - alpha"),
        (alpha * soft + (1 - alpha) * last_class, "label -1 was taken for the last class: leave these images out"),
        (
            alpha * soft + (1 - alpha) * hard * known.float().mean(),
            "the cross-entropy must be the mean over the images with a label; this one also divides by the others",
        ),
        (
            alpha * soft_known + (1 - alpha) * hard,
            "the teacher has answers for all images; only the cross-entropy leaves some out",
        ),
        (alpha * soft, "where are the labels? Their part is missing"),
        (hard, "where is the teacher? Its part is missing"),
        ((1 - alpha) * hard, "where is the teacher? Its part is missing"),
        (
            alpha * soft + (1 - alpha) * hard * known.sum(),
            "the cross-entropy must be the mean over the images with a label; this one is their sum",
        ),
        (
            alpha * soft + (1 - alpha) * F.cross_entropy(scores, labels.clamp(min=0)),
            "label -1 was taken for class 0: leave these images out",
        ),
        (
            alpha * soft + (1 - alpha) * F.cross_entropy(scores[labels > 0], labels[labels > 0]),
            "0 is a class, too: only -1 means that there is no label",
        ),
        (
            alpha * soft + (1 - alpha) * known_label_loss(scores / temperature, labels),
            "the temperature belongs to the teacher's part; the cross-entropy takes the logits as they are",
        ),
        (
            alpha * soft_unknown + (1 - alpha) * hard,
            "the teacher speaks about all images, those with a label as well",
        ),
        (alpha * soft / temperature**2 + (1 - alpha) * hard, "the teacher's part lacks T²"),
    )
    value = loss.item()
    if not math.isclose(value, (alpha * soft + (1 - alpha) * hard).item(), rel_tol=1e-4):
        for mistake, why in mistakes:
            if math.isclose(value, mistake.item(), rel_tol=1e-4):
                return Feedback(False, why)
        return Feedback(False, f"for one batch it gives {value:.4g}, and the sum worked out by hand is another")
    cooler = 0.3 * soft_target_loss(scores, answers, 2.0) + 0.7 * hard
    other = answer(scores.clone(), labels.clone(), answers.clone(), 2.0, 0.3)
    if not math.isclose(torch.as_tensor(other).item(), cooler.item(), rel_tol=1e-4):
        return Feedback(
            False, "right for one temperature and alpha, wrong for others: use the arguments, not fixed numbers"
        )
    none, learnable = torch.full_like(labels, -1), scores.clone().requires_grad_()
    alone = answer(learnable, none, answers.clone(), temperature, alpha)
    if alone is None:
        return Feedback(False, "for a batch in which no image has a label it returns nothing")
    if not torch.as_tensor(alone).isfinite():
        return Feedback(False, "a batch in which no image has a label gives nan: the mean of nothing; return 0 for it")
    if not math.isclose(torch.as_tensor(alone).item(), (alpha * soft).item(), rel_tol=1e-4):
        return Feedback(
            False, "right so far, but if no image of the batch has a label, alpha · the teacher's part is left"
        )
    if reason := _not_a_loss(alone, learnable, ""):
        return Feedback(False, f"for a batch without any label: {reason}")
    return Feedback(True, "everybody listens to the teacher, and those who have a label to it as well")


def _not_a_loss(loss, learnable: torch.Tensor, cause_of_nan: str) -> str:
    """Why ``loss`` cannot train the student's logits, or nothing."""
    if loss is None:
        return "the function returns nothing: end it with return …"
    if not isinstance(loss, torch.Tensor):
        return (
            f"it returned a {type(loss).__name__}, expected a tensor: .item(), float() and numpy() cut off the gradient"
        )
    if loss.numel() != 1:
        return f"it returned shape {tuple(loss.shape)}, expected one number: sum over classes, mean over images"
    if loss.isnan():
        return f"it returned nan: {cause_of_nan}"
    if (
        not loss.requires_grad
        or torch.autograd.grad(loss.sum(), learnable, retain_graph=True, allow_unused=True)[0] is None
    ):
        return "no gradient reaches the student: its logits must not go through detach() or no_grad()"
    return ""


def _soft_target_mistakes(scores, teacher_scores, temperature):
    """(the number that a usual slip gives, its name)."""
    logs, teacher_logs = (F.log_softmax(each / temperature, 1) for each in (scores, teacher_scores))
    teacher, factor, images = teacher_logs.exp(), temperature**2, len(scores)

    def kl(student, target):
        return F.kl_div(student, target, reduction="batchmean")

    right = kl(logs, teacher)
    warm, warm_teacher = F.log_softmax(scores, 1), F.softmax(teacher_scores, 1)
    slips = (
        (right, "T² is missing: at high temperatures hardly a gradient would be left"),
        (
            temperature * right,
            "the factor is T², not T: dividing by T weakens the gradient, softer answers do it again",
        ),
        (right / factor, "multiply by T², do not divide: it makes up for gradients that became too small"),
        (
            factor * kl(logs.exp(), teacher),
            "the first argument of kl_div must be log-probabilities: log_softmax for the student, not softmax",
        ),
        (
            factor * kl(teacher_logs, logs.exp()),
            "the arguments of kl_div are swapped: the student comes first, the teacher is the target",
        ),
        (factor * right / scores.shape[1], "reduction='mean' also divides by the classes: expected 'batchmean'"),
        (factor * right * images, "reduction='sum' adds up the images: expected their mean, 'batchmean'"),
        (kl(warm, warm_teacher), "the temperature is not used at all: divide both logits by it"),
        (factor * kl(warm, warm_teacher), "the logits are not divided by the temperature, only T² is there"),
        (factor * kl(warm, teacher), "the student is not softened: divide its logits by T as well"),
        (factor * kl(logs, warm_teacher), "the teacher is not softened: divide its logits by T as well"),
        (
            factor * kl(F.log_softmax(scores * temperature, 1), F.softmax(teacher_scores * temperature, 1)),
            "the logits are multiplied by T: that sharpens; divide them",
        ),
        (
            factor * F.kl_div(logs, teacher, reduction="batchmean", log_target=True),
            "log_target=True wants log-probabilities as the target: log_softmax there, or leave it out",
        ),
        (-factor * right, "the sign is turned round: KL is never negative; log p of the teacher minus log q"),
        (factor * kl(scores / temperature, teacher), "the student's logits went in without log_softmax"),
        (
            -factor * (teacher * logs).sum(1).mean(),
            "this is the cross-entropy with soft targets: the same gradient, but not 0 when both agree. For KL, "
            "subtract the teacher's own entropy, or use F.kl_div",
        ),
        (
            factor * kl(F.log_softmax(scores / temperature, 0), F.softmax(teacher_scores / temperature, 0)),
            "the softmax runs over the images: its dimension must be 1, the classes",
        ),
    )
    # Each slip together with a forgotten T², which is the most frequent of all.
    yield from slips
    for mistake, why in slips[3:]:
        yield mistake / factor, f"{why}; and T² is missing"
