"""Lesson 03: each exercise tells a right answer from the usual wrong ones, and says why."""

import pytest
import torch

from yolo_slim_lessons.teaching import exercises


def lowest(weight, rate):
    return weight.abs().flatten().topk(round(rate * weight.numel()), largest=False).indices


def zero_smallest(weight, rate):
    pruned = weight.clone().flatten()
    pruned[lowest(weight, rate)] = 0
    return pruned.view_as(weight)


def by_threshold(weight, rate):
    return torch.where(weight.abs() > weight.abs().quantile(rate), weight, 0)


def in_place(weight, rate):
    weight.view(-1)[lowest(weight, rate)] = 0
    return weight


def without_abs(weight, rate):
    pruned = weight.clone().flatten()
    pruned[weight.flatten().topk(round(rate * weight.numel()), largest=False).indices] = 0
    return pruned.view_as(weight)


def largest(weight, rate):
    pruned = weight.clone().flatten()
    pruned[weight.abs().flatten().topk(round(rate * weight.numel())).indices] = 0
    return pruned.view_as(weight)


def fails_at_zero(weight, rate):
    return zero_smallest(weight, rate) if rate else weight * 0


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (by_threshold, "ties"),
        (in_place, "changed the tensor"),
        (without_abs, "most negative"),
        (largest, "largest"),
        (fails_at_zero, "at rate 0"),
        (lambda weight, rate: zero_smallest(weight, rate).flatten(), "shape"),
        (lambda weight, rate: zero_smallest(weight, 1 - rate / 2), "it made"),
        (lambda weight, rate: 0.5, "must return a tensor"),
        (0.5, "expected a function"),
        (..., "not tried"),
    ],
)
def test_wrong_pruning(answer, words):
    feedback = exercises.check_zero_smallest(answer)
    assert not feedback.right
    assert words in feedback.message


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (0.5, "as long as a value"),
        (1 / 3, "share of zeros"),
        (0.125, "bitmask"),
        (2.0, "both together"),
        (66.7, "percentage"),
        (0.9, "solve"),
        ("two thirds", "not a number"),
        (None, "not tried"),
    ],
)
def test_wrong_break_even(answer, words):
    feedback = exercises.check_break_even(answer)
    assert not feedback.right
    assert words in feedback.message


def choose(scan, max_loss, pick=max, also_none=False):
    chosen = {}
    for layer, row in zip(scan.layers, scan.top1, strict=True):
        borne = [rate for rate, top1 in zip(scan.rates, row, strict=True) if scan.baseline - top1 <= max_loss]
        if borne or also_none:
            chosen[layer] = pick(borne or [0.0])
    return chosen


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda scan, loss: choose(scan, loss, pick=min), "lowest"),
        (lambda scan, loss: choose(scan, loss, also_none=True), "'c'"),
        (lambda scan, loss: choose(scan, 2 * loss), "3 points"),
        (lambda scan, loss: choose(scan, loss / 1.5), "it made"),
        (lambda scan, loss: {0: 0.6, 1: 0.6}, "names of layers"),
        (lambda scan, loss: [0.6, 0.6], "must return a dict"),
        (..., "not tried"),
    ],
)
def test_wrong_rates(answer, words):
    feedback = exercises.check_choose_rates(answer)
    assert not feedback.right
    assert words in feedback.message


def test_right_answers():
    assert exercises.check_zero_smallest(zero_smallest).right
    assert exercises.check_break_even(16 / 24).right
    assert exercises.check_choose_rates(choose).right
