"""Checks of lesson 05: a grid from a range, integers with a scale for each channel, and the bytes of a layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from yolo_slim_lessons.teaching.exercises.feedback import Feedback, check, judge_number, name_mistake

__all__ = ["check_layer_bytes", "check_quantize_channels", "check_scale_and_zero_point"]

LOW, HIGH, BITS = -0.5, 3.5, 4  # of the first exercise
OUTPUTS, INPUTS, KERNEL, WEIGHT_BITS, SCALE_BYTES, BIAS_BYTES = 128, 64, 9, 4, 2, 4  # of the third
Quantize = Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]


@check
def check_scale_and_zero_point(answer: Sequence[float]) -> Feedback:
    """Scale and zero point of the integers 0 to 15 that cover -0.5 to 3.5."""
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        return Feedback(False, "expected two numbers: (scale, zero_point)")
    scale, zero_point = map(float, answer)
    steps = 2**BITS - 1
    right = (HIGH - LOW) / steps
    if zero_point == 0 and _near(scale, HIGH / (2 ** (BITS - 1) - 1)):
        return Feedback(False, "that is the symmetric grid, half of which no number needs here: use both ends")
    wrong_scales = {
        (HIGH - LOW) / 2**BITS: f"{2**BITS} integers have only {steps} steps between them",
        (HIGH - LOW) / (steps - 1): f"from 0 to {steps} there are {steps} steps",
        HIGH / steps: "the steps must reach from the low end to the high end, not from zero",
        1 / right: "upside down: the scale is the length of a step",
        HIGH - LOW: "that is the whole range; divide it by the number of steps",
    }
    if _near(zero_point, right):
        return Feedback(False, "the other way round: first the scale, then the zero point")
    if not _near(scale, right):
        mistake = name_mistake(scale, wrong_scales)
        return Feedback(False, f"scale: {mistake or 'the length of the range by its steps'}")
    exact = -LOW / right
    wrong_zero_points = {
        exact: "it must be an integer, so that zero lies on a mark exactly: round it",
        math.floor(exact): "round to the nearest integer; cutting the decimals off moves zero by most of a step",
        -round(exact): "its sign: the low end is stored as 0, so zero is stored as something above it",
        LOW: "that is the low end itself; the zero point is the integer that stands for zero",
        0: "then 0 would stand for zero, and nothing for the negative numbers",
        round(exact) - 2 ** (BITS - 1): "that is for signed integers, -8 to 7; here they go from 0 to 15",
    }
    if zero_point == round(exact):
        return Feedback(True, f"{steps} steps of {right:.4f}, and {round(exact)} of them lie below zero")
    mistake = name_mistake(zero_point, wrong_zero_points)
    return Feedback(False, f"zero point: {mistake or 'how many steps is zero above the low end?'}")


@check
def check_quantize_channels(answer: Quantize) -> Feedback:
    """A function of a weight and bits that returns symmetric integers and a scale for each output channel."""
    weight = torch.tensor([[0.7, -0.26, 0.16], [-1.4, 0.45, 0.85], [0.0, 0.0, 0.0], [0.02, 0.035, -0.01]])
    given = weight.clone()
    result = answer(weight, 4)
    if not isinstance(result, tuple | list) or len(result) != 2:
        return Feedback(False, "expected two tensors: return integers, scales")
    if not torch.equal(weight, given):
        return Feedback(False, "it changed the weight it was given")
    integers, scales = result
    for name, tensor in (("integers", integers), ("scales", scales)):
        if not isinstance(tensor, torch.Tensor):
            return Feedback(False, f"{name} is a {type(tensor).__name__}, expected a tensor")
    reason = _why_wrong_scales(given, scales) or _why_wrong_integers(given, integers, scales)
    if reason:
        return Feedback(False, reason)
    kernels = torch.tensor([1.0, -3.0, 2.0, 7.0, 0.0, -5.0, 4.0, 2.0]).view(2, 1, 2, 2)
    try:
        integers, scales = answer(kernels, 3)
    except Exception as error:
        return Feedback(False, f"right for a matrix, but a convolution's weight, 2×1×2×2, ends in {error!r}")
    expected = (kernels / kernels.abs().amax((1, 2, 3), keepdim=True) * 3).round()
    if integers.shape != kernels.shape or not torch.equal(integers.float(), expected):
        return Feedback(
            False, "right for a matrix; a channel of a convolution's weight is weight[i], with three dimensions"
        )
    return Feedback(True, "each channel uses its own range to the full, and a channel of zeros stays one")


@check
def check_layer_bytes(answer: float) -> Feedback:
    """Bytes of a 3×3 convolution, 64 → 128 channels: 4-bit weights, a scale of 2 bytes and a bias of 4 a channel."""
    weights = OUTPUTS * INPUTS * KERNEL * WEIGHT_BITS // 8
    scales, biases = OUTPUTS * SCALE_BYTES, OUTPUTS * BIAS_BYTES
    right = weights + scales + biases
    mistakes = {
        8 * right: "these are bits; a byte has 8",
        weights: "these are the weights alone; each output channel also has a scale and a bias",
        weights + scales: "the biases are missing: 4 bytes for each output channel",
        weights + biases: "the scales are missing: 2 bytes for each output channel",
        weights + SCALE_BYTES + biases: "that is one scale for the layer; here each output channel has its own",
        weights + INPUTS * (SCALE_BYTES + BIAS_BYTES): "scales and biases go with the 128 output channels",
        2 * weights + scales + biases: "that is a byte for each weight; with 4 bits, two of them share a byte",
        weights // KERNEL + scales + biases: "a kernel of 3×3 has 9 weights for each pair of channels",
        weights // WEIGHT_BITS * 32 + scales + biases: "that is the weights in float32; here they have 4 bits",
    }
    praise = f"{weights:,} for the weights, and {scales + biases:,} for what belongs to the channels"
    hint = "count the weights, times 4 bits, by 8; then add what each output channel has besides"
    return judge_number(answer, right, mistakes, praise, hint, rel_tol=0)


def _near(value: float, expected: float) -> bool:
    return math.isclose(value, expected, rel_tol=0.005, abs_tol=1e-9)


def _why_wrong_scales(weight: torch.Tensor, scales: torch.Tensor) -> str:
    """What is wrong with the scales at 4 bits, whose largest integer is 7, or nothing."""
    largest, scales = weight.abs().amax(1), scales.detach().float()
    if scales.numel() == 1:
        return "there is one scale for the whole weight: each output channel needs its own"
    if scales.numel() == weight.shape[1]:
        return "there is a scale for each input: outputs are the first dimension, so take the largest over all others"
    if scales.numel() != len(weight):
        return f"expected {len(weight)} scales, one for each output channel, not {tuple(scales.shape)}"
    scales = scales.flatten()
    if not scales.isfinite().all() or scales[2] == 0:
        return "channel 2 is all zeros, and what is divided by a scale of 0 becomes NaN: take any other, say 1"
    others = torch.tensor([0, 1, 3])
    found, right = scales[others], largest[others] / 7
    if torch.allclose(found, right, rtol=0.01):  # the package rounds scales up a little
        return ""
    mistakes = (
        (largest / 8, "by 8 = 2^(bits-1): one level off; with 4 bits the largest integer is 7"),
        (largest / 15, "by 15: that is for unsigned integers; signed ones of 4 bits end at 7"),
        (largest / 16, "by 16: signed integers of 4 bits end at 7"),
        (2 * largest / 15, "by 15 steps from end to end: then 0 lies between two marks"),
        (weight.amax(1) / 7, "from the largest weight; a large negative one needs room, too: take abs()"),
        ((weight.amax(1) - weight.amin(1)) / 15, "of the affine grid; the symmetric one has 0 in its middle"),
        (7 / largest.clamp(min=1e-9), "upside down: the scale is what a step of 1 stands for"),
    )
    for scale, reason in mistakes:
        if torch.allclose(found, scale[others], rtol=1e-3):
            return f"scales: {reason}"
    return f"scales are {found.tolist()} for the channels 0, 1 and 3; expected {right.tolist()}"


def _why_wrong_integers(weight: torch.Tensor, integers: torch.Tensor, scales: torch.Tensor) -> str:
    """What is wrong with the integers at 4 bits, or nothing."""
    if integers.shape != weight.shape:
        return f"integers have the shape {tuple(integers.shape)}, expected that of the weight, {tuple(weight.shape)}"
    scales, integers = scales.detach().float().view(-1, 1), integers.detach().float()
    scaled = weight / scales
    if torch.equal(integers, scaled.round()):
        return ""
    if not integers.isfinite().all():
        return "there is NaN among the integers: channel 2 was divided by 0"
    if torch.allclose(integers, scaled, atol=1e-4):
        return "they are not rounded yet: x / scale, to the nearest integer"
    if torch.allclose(integers, scaled.round() * scales, atol=1e-4):
        return "these are the rounded weights themselves; return the integers, before the scale is multiplied in again"
    for wrong, reason in (
        (scaled.trunc(), "they are cut off towards zero: .int() alone does that; round() first"),
        (scaled.floor(), "they are rounded down: round to the nearest instead"),
        (scaled.round().clamp(0), "negative ones have become 0: signed integers of 4 bits go from -8 to 7"),
        (scaled.round() + 8, "they are shifted by 8: the zero point of a symmetric grid is 0"),
    ):
        if torch.equal(integers, wrong):
            return f"integers: {reason}"
    return f"of {weight.tolist()} it made {integers.tolist()}"
