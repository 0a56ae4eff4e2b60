"""Checks of lesson 04: the rate for half the MACs, layers that are tied, and cutting channels out by hand.

Which layers are tied is asked of ``channel_groups``; the other two answers follow from what the exercise gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch.nn import functional as F

from yolo_slim_lessons.data import FASHION_MNIST_CLASSES
from yolo_slim_lessons.models import new_model
from yolo_slim_lessons.pruning.channels import channel_groups
from yolo_slim_lessons.teaching.exercises.feedback import PERCENTAGE, Feedback, as_number, check, judge_number

__all__ = ["check_half_the_macs", "check_narrower_layers", "check_remove_channels"]

NAMED = "model.6.m.0.cv2.conv"  # the layer that the second exercise prunes
Cut = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@check
def check_half_the_macs(answer: float) -> Feedback:
    """The rate at which a convolution between two pruned layers keeps half of its MACs, rounding left aside."""
    rate = as_number(answer)
    right = 1 - 0.5**0.5
    mistakes = {
        0.5: "then half of the inputs and half of the outputs are left, and a quarter of the MACs",
        1 - right: "that is the share of the channels that is left; the rate is the share that goes",
        0.25: "then 0.75 × 0.75 of the MACs are left, a little more than half",
        0.75: "then 0.25 × 0.25 of the MACs are left",
        1 - 0.5**0.25: "too many roots: MACs follow inputs times outputs, the kernel and the positions stay",
    }
    praise = "(1 − rate)² = 0.5: less than a third of the channels is half of the work"
    hint = "MACs go with inputs × outputs, and both shrink to 1 − rate of what they were"
    hint = PERCENTAGE if 1 < rate <= 100 else hint
    return judge_number(rate, right, mistakes, praise, hint, rel_tol=0, abs_tol=0.002)


@check
def check_narrower_layers(answer: Iterable[str]) -> Feedback:
    """Which layers of nano make fewer channels if ``model.6.m.0.cv2.conv`` is told to?"""
    given = list(answer) if isinstance(answer, Iterable) and not isinstance(answer, str) else [None]
    if not all(isinstance(name, str) for name in given):
        return Feedback(False, "expected several names, such as {'model.6.cv1.conv', 'model.6.cv2.conv'}")
    names = {name if name.endswith((".conv", ".linear")) else f"{name}.conv" for name in given}
    groups = channel_groups(new_model("yolov8n-cls.yaml", FASHION_MNIST_CLASSES))
    makers = {part.layer for group in groups for part in group.producers}
    tied = next(group for group in groups if NAMED in {part.layer for part in group.producers})
    right = {part.layer for part in tied.producers}
    readers = {part.layer for part in tied.consumers}
    unknown, first = sorted(names - makers), "model.6.cv1.conv"
    if unknown:
        return Feedback(False, f"{unknown[0]!r} is no layer of nano: write names as slim.channel_groups does")
    if names == right:
        return Feedback(True, "two shortcuts tie three layers, and the split's first half shrinks with its second")
    if NAMED not in names:
        return Feedback(False, f"{NAMED} itself was told to make fewer: it belongs to them")
    if names & readers:
        return Feedback(False, f"{min(names & readers)} reads fewer channels, but makes as many as before")
    if names == {NAMED}:
        return Feedback(False, "what this layer makes is added to what went past it: whoever made that shrinks as well")
    if first not in names:
        return Feedback(False, "follow the shortcut back: the first thing that is added to comes out of the split")
    if right - names:
        return Feedback(False, "there are two bottlenecks, one behind the other, and each has a shortcut")
    return Feedback(False, f"{min(names - right)} has nothing to do with these channels")


@check
def check_remove_channels(answer: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], Cut]) -> Feedback:
    """A function of two convolutions' weights, BatchNorm's γ between them and a mask that cuts out channels."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(shape, generator=generator) for shape in ((6, 3, 3, 3), (4, 6, 1, 1)))
    gamma = torch.rand(6, generator=generator) + 0.5
    keep = torch.tensor([True, False, True, True, False, True])
    given = (first, gamma, second)
    expected = {"first": first[keep], "gamma": gamma[keep], "second": second[:, keep]}
    result = answer(*(tensor.clone() for tensor in given), keep.clone())
    if not isinstance(result, tuple | list) or len(result) != 3:
        return Feedback(False, "expected three tensors: return first, gamma, second, each without the channels")
    for name, before, after in zip(expected, given, result, strict=True):
        reason = _why_wrong(name, before, after, expected[name], keep)
        if reason:
            return Feedback(False, reason)
    images = torch.randn(1, 3, 8, 8, generator=generator)
    left = F.conv2d(F.conv2d(images, result[0]) * result[1][:, None, None], result[2])
    return Feedback(True, f"rows of the maker, columns of the reader; it still makes {left.shape[1]} channels")


def _why_wrong(name: str, before: torch.Tensor, after, expected: torch.Tensor, keep: torch.Tensor) -> str:
    """What is wrong with one of the three tensors, or nothing."""
    if not isinstance(after, torch.Tensor):
        return f"{name} is a {type(after).__name__}, expected a tensor"
    if after.shape == expected.shape and torch.equal(after, expected):
        return ""
    if after.shape == before.shape:
        if torch.equal(after, before):
            return f"{name} still has all its channels"
        return f"{name} has the shape it had: channels set to zero are still there, and are still computed"
    gone = before[:, ~keep] if name == "second" else before[~keep]
    if after.shape == gone.shape and torch.equal(after, gone):
        return f"in {name} the wrong channels are left: keep is True where a channel stays"
    if name == "second" and after.shape[1] == before.shape[1]:
        return (
            "second reads the channels: they are its second dimension (weights are outputs × inputs × height × width)"
        )
    if name == "first" and after.shape[0] == before.shape[0]:
        return "first makes the channels: they are its first dimension (weights are outputs × inputs × height × width)"
    return f"{name} has the shape {tuple(after.shape)}, expected {tuple(expected.shape)} kept channels in order"
