"""The checks of lesson 02 know the right answer and name the mistake behind typical wrong ones."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch import nn

import yolo_slim_lessons as slim
from yolo_slim_lessons.teaching import exercises

DEFECTIVE = np.repeat([0, 0, 1, 1], [940, 10, 20, 30])
CALLED_DEFECTIVE = np.repeat([0, 1, 0, 1], [940, 10, 20, 30])


@pytest.mark.parametrize("answer", [f1_score(DEFECTIVE, CALLED_DEFECTIVE), 2 / 3, 0.667, torch.tensor(2 / 3)])
def test_f1_of_the_defective_class_is_right(answer):
    assert exercises.check_f1(answer).right


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (0.97, "accuracy"),
        (0.75, "that is the precision"),
        (0.60, "that is the recall"),
        (0.675, "harmonic"),
        (f1_score(DEFECTIVE, CALLED_DEFECTIVE, pos_label=0), "sound class"),
        (f1_score(DEFECTIVE, CALLED_DEFECTIVE, average="macro"), "macro"),
        (66.67, "fraction"),
        (0.5, "start with precision"),
        ("2/3", "not a number"),
        (True, "not a number"),
    ],
)
def test_f1_mistakes_are_named(answer, reason):
    feedback = exercises.check_f1(answer)
    assert not feedback.right
    assert reason in feedback.message


def test_images_needed_is_what_wilsons_interval_needs():
    half_width = {n: np.subtract(*slim.wilson_interval(round(0.94 * n), n)[::-1]) / 2 for n in range(8000, 9500, 50)}
    first = next(n for n, half in half_width.items() if half <= 0.005)
    assert exercises.check_images_needed(first).right
    assert exercises.check_images_needed(8667).right
    assert not exercises.check_images_needed(9500).right


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (34_666, "to either side; you took half a point for the whole"),
        (2_167, "you took a whole point to either side"),
        (2_256, "z is missing"),
        (6_105, "90 %"),
        (153_664, "p (1 − p) is missing"),
        (38_416, "worst case"),
        (17_333, "two models"),
        (22.1, "squared"),
        (93.1, "square root of the answer"),
        (0.867, "0.005 as a fraction"),
        (500, "solve"),
    ],
)
def test_images_needed_mistakes_are_named(answer, reason):
    feedback = exercises.check_images_needed(answer)
    assert not feedback.right
    assert reason in feedback.message


def test_convolution_macs_are_weights_times_positions():
    layer = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
    positions = layer(torch.zeros(1, 16, 40, 40))[0, 0].numel()
    assert exercises.check_convolution_macs(layer.weight.numel() * positions).right


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (4_608, "number of weights"),
        (7_372_800, "half as high"),
        (92_160, "a height and a width: side"),
        (1_663_488, "padding"),
        (115_200, "input channels"),
        (57_600, "output channels"),
        (614_400, "3 × 3"),
        (204_800, "size of the filter is missing"),
        (3_686_400, "FLOPs"),
        (1_856_000, "bias"),
        (1_000_000, "MACs = weights"),
    ],
)
def test_convolution_mistakes_are_named(answer, reason):
    feedback = exercises.check_convolution_macs(answer)
    assert not feedback.right
    assert reason in feedback.message
