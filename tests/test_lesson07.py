"""The checks of lesson 07 know right from wrong, and name the slip that was made."""

import math

import pytest
import torch
from feedback_checks import assert_wrong
from torch.nn import functional as F

from yolo_slim_lessons.distillation import known_label_loss, soft_target_loss
from yolo_slim_lessons.teaching import exercises

# Exercise 1


def test_the_softened_ratio_is_that_of_a_softmax():
    probabilities = (torch.tensor([math.log(81), 0.0]) / 4).softmax(0)
    assert exercises.check_softened_ratio((probabilities[0] / probabilities[1]).item()).right


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (81 / 4, "not probabilities"),
        (81 / 16, "T² belongs to the loss"),
        (81**4, "surer"),
        (9, "temperature 2"),
        (math.log(81), "go back with exp"),
        (math.log(81) / 4, "the ratio is its exp"),
        (1 / 3, "turn it round"),
        (81, "done nothing"),
        (1, "infinite"),
        (5, "difference of the logits"),
        ("3", "not a number"),
        (..., "not tried"),
    ],
)
def test_softened_ratio_mistakes_are_named(answer, words):
    assert_wrong(exercises.check_softened_ratio(answer), words)


# Exercise 2


def kl(student, teacher, **options):
    return F.kl_div(student, teacher, **{"reduction": "batchmean"} | options)


def log_p(scores, temperature=1.0):
    return F.log_softmax(scores / temperature, 1)


def p(scores, temperature=1.0):
    return F.softmax(scores / temperature, 1)


def by_hand(scores, answers, temperature):
    target = p(answers, temperature)
    return temperature**2 * (target * (target.log() - log_p(scores, temperature))).sum(1).mean()


@pytest.mark.parametrize(
    "answer",
    [
        soft_target_loss,
        by_hand,
        lambda s, t, tau: tau**2 * kl(log_p(s, tau), p(t, tau)),
        lambda s, t, tau: tau * tau * kl(log_p(s, tau), log_p(t, tau), log_target=True),
    ],
)
def test_the_soft_target_loss_may_be_written_in_several_ways(answer):
    assert exercises.check_soft_target_loss(answer).right


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda s, t, tau: kl(log_p(s, tau), p(t, tau)), "T² is missing"),
        (lambda s, t, tau: tau * kl(log_p(s, tau), p(t, tau)), "T², not T"),
        (lambda s, t, tau: kl(log_p(s, tau), p(t, tau)) / tau**2, "do not divide"),
        (lambda s, t, tau: tau**2 * kl(p(s, tau), p(t, tau)), "log_softmax for the student, not softmax"),
        (lambda s, t, tau: kl(p(s, tau), p(t, tau)), "not softmax; and T² is missing"),
        (lambda s, t, tau: tau**2 * kl(log_p(t, tau), p(s, tau)), "swapped"),
        (
            lambda s, t, tau: kl(log_p(t, tau), p(s, tau)),
            "swapped: the student comes first, the teacher is the target; and",
        ),
        (lambda s, t, tau: tau**2 * kl(log_p(s, tau), log_p(t, tau)), "log_target=True"),
        (
            lambda s, t, tau: tau**2 * kl(log_p(s, tau), p(t, tau), reduction="none").mean(),
            "also divides by the classes",
        ),
        (
            lambda s, t, tau: kl(log_p(s, tau), p(t, tau), reduction="none").mean(),
            "divides by the classes: expected 'batchmean'; ",
        ),
        (lambda s, t, tau: tau**2 * kl(log_p(s, tau), p(t, tau), reduction="sum"), "adds up the images"),
        (lambda s, t, tau: kl(log_p(s), p(t)), "not used at all"),
        (lambda s, t, tau: tau**2 * kl(log_p(s), p(t)), "only T² is there"),
        (lambda s, t, tau: tau**2 * kl(log_p(s), p(t, tau)), "the student is not softened"),
        (lambda s, t, tau: tau**2 * kl(log_p(s, tau), p(t)), "the teacher is not softened"),
        (lambda s, t, tau: tau**2 * kl(log_p(s, 1 / tau), p(t, 1 / tau)), "that sharpens"),
        (lambda s, t, tau: tau**2 * kl(s / tau, p(t, tau)), "went in without log_softmax"),
        (lambda s, t, tau: -(tau**2) * (p(t, tau) * log_p(s, tau)).sum(1).mean(), "the same gradient, but not 0"),
        (lambda s, t, tau: tau**2 * kl(log_p(s.T, tau).T, p(t.T, tau).T), "runs over the images"),
        (lambda s, t, tau: 16 * kl(log_p(s, 4), p(t, 4)), "wrong at 2"),
        (lambda s, t, tau: tau**2 * kl(log_p(s, tau), p(t, tau), log_target=True), "wants log-probabilities"),
        (lambda s, t, tau: -soft_target_loss(s, t, tau), "the sign is turned round"),
        (lambda s, t, tau: soft_target_loss(s, t.div_(tau) * tau, tau), "changed the teacher's logits"),
        (lambda s, t, tau: soft_target_loss(s.detach(), t.requires_grad_(), tau), "no gradient reaches"),
        (lambda s, t, tau: None, "returns nothing"),
        (lambda s, t, tau: soft_target_loss(s, t, tau) + 1, "worked out by hand"),
        (lambda s, t, tau: soft_target_loss(s, t, tau).item(), "cut off the gradient"),
        (lambda s, t, tau: soft_target_loss(s.detach(), t, tau), "no gradient reaches"),
        (lambda s, t, tau: tau**2 * kl(log_p(s, tau), p(t, tau), reduction="none"), "expected one number"),
        (lambda s, t: s, "could not be checked"),
        (..., "not tried"),
    ],
)
def test_soft_target_mistakes_are_named(answer, words):
    assert_wrong(exercises.check_soft_target_loss(answer), words)


# Exercise 3


def partly_labelled(scores, labels, answers, temperature, alpha):
    known = labels >= 0
    hard = F.cross_entropy(scores[known], labels[known]) if known.any() else 0.0
    return alpha * soft_target_loss(scores, answers, temperature) + (1 - alpha) * hard


def test_the_loss_of_partly_labelled_batches_is_right():
    assert exercises.check_partly_labelled_loss(partly_labelled).right
    assert exercises.check_partly_labelled_loss(
        with_hard(lambda s, y: F.cross_entropy(s, y, ignore_index=-1).nan_to_num())
    ).right


def with_hard(hard):
    """The loss with another cross-entropy."""
    return lambda s, y, t, tau, alpha: alpha * soft_target_loss(s, t, tau) + (1 - alpha) * hard(s, y)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda s, y, t, tau, alpha: partly_labelled(s, y, t, tau, 1 - alpha), "alpha is the teacher's share"),
        (lambda s, y, t, tau, alpha: soft_target_loss(s, t, tau) + known_label_loss(s, y), "weigh them"),
        (with_hard(lambda s, y: F.cross_entropy(s, y % 10)), "taken for the last class"),
        (with_hard(F.cross_entropy), "label -1 is no class"),
        (
            with_hard(lambda s, y: F.cross_entropy(s, y, ignore_index=-1, reduction="sum") / len(s)),
            "also divides by the others",
        ),
        (with_hard(lambda s, y: F.cross_entropy(s, y, ignore_index=-1)), "the mean of nothing"),
        (
            lambda s, y, t, tau, alpha: partly_labelled(s[y >= 0], y[y >= 0], t[y >= 0], tau, alpha),
            "answers for all images",
        ),
        (lambda s, y, t, tau, alpha: alpha * soft_target_loss(s, t, tau), "where are the labels"),
        (lambda s, y, t, tau, alpha: (1 - alpha) * known_label_loss(s, y), "where is the teacher"),
        (lambda s, y, t, tau, alpha: known_label_loss(s, y), "where is the teacher"),
        (with_hard(lambda s, y: F.cross_entropy(s, y, ignore_index=-1, reduction="sum")), "this one is their sum"),
        (with_hard(lambda s, y: F.cross_entropy(s, y.clamp(min=0))), "taken for class 0"),
        (with_hard(lambda s, y: F.cross_entropy(s[y > 0], y[y > 0])), "0 is a class, too"),
        (
            lambda s, y, t, tau, alpha: (
                alpha * soft_target_loss(s, t, tau) + (1 - alpha) * known_label_loss(s / tau, y)
            ),
            "takes the logits as they are",
        ),
        (
            lambda s, y, t, tau, alpha: (
                alpha * soft_target_loss(s[y < 0], t[y < 0], tau) + (1 - alpha) * known_label_loss(s, y)
            ),
            "those with a label as well",
        ),
        (lambda s, y, t, tau, alpha: partly_labelled(s, y, t, 4.0, alpha), "use the arguments"),
        (lambda s, y, t, tau, alpha: partly_labelled(s, y, t, tau, 0.8), "use the arguments"),
        (
            lambda s, y, t, tau, alpha: partly_labelled(s, y, t, tau, alpha) if (y >= 0).any() else None,
            "it returns nothing",
        ),
        (
            lambda s, y, t, tau, alpha: (
                partly_labelled(s, y, t, tau, alpha) if (y >= 0).any() else alpha * soft_target_loss(s, t, tau).item()
            ),
            "for a batch without any label: it returned a float",
        ),
        (lambda s, t, y, tau, alpha: partly_labelled(s, y, t, tau, alpha), "could not be checked"),
        (lambda s, y, t, tau, alpha: partly_labelled(s, y, t, tau, alpha / tau**2), "worked out by hand"),
        (
            lambda s, y, t, tau, alpha: alpha * kl(log_p(s, tau), p(t, tau)) + (1 - alpha) * known_label_loss(s, y),
            "lacks T²",
        ),
        (
            lambda s, y, t, tau, alpha: partly_labelled(s, y, t, tau, alpha) if (y >= 0).any() else s.sum() * 0,
            "right so far",
        ),
        (lambda s, y, t, tau, alpha: partly_labelled(s, y, t, tau, alpha).item(), "cut off the gradient"),
        (lambda s, t: s, "could not be checked"),
        (..., "not tried"),
    ],
)
def test_partly_labelled_mistakes_are_named(answer, words):
    assert_wrong(exercises.check_partly_labelled_loss(answer), words)


@pytest.mark.parametrize(
    "check",
    [exercises.check_softened_ratio, exercises.check_soft_target_loss, exercises.check_partly_labelled_loss],
)
def test_nonsense_gets_feedback_and_no_traceback(check):
    assert not check(object()).right
    assert not check(float("nan")).right
