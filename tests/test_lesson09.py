"""The checks of lesson 09 know right from wrong, and its drawings show what they are given."""

import numpy as np
import pytest
import torch
from feedback_checks import assert_wrong
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from yolo_slim_lessons.data import as_floats
from yolo_slim_lessons.teaching import exercises, plots
from yolo_slim_lessons.teaching.runtime_pictures import (
    draw_operators,
    draw_time_by_kind,
    draw_two_speeds,
    kind_of,
)

# Exercise 1


def test_macs_per_second():
    assert exercises.check_macs_per_second(4e6 * 64 / 0.008 / 1e9).right
    assert exercises.check_macs_per_second(32).right


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (32e9, "divide by 10⁹"),
        (32_000, "those are millions"),
        (0.5, "the batch has 64"),
        (0.032, "8 ms are 0.008"),
        (32e6, "per millisecond"),
        (0.0005, "64 images are missing"),
        (4e6 / 64 / 0.008 / 1e9, "multiply by 64"),
        (64, "a MAC is one of each"),
        (1 / 32, "upside down"),
        (4e6 * 64 * 0.008 / 1e9, "do not multiply"),
        (0.256, "divide by the seconds"),
        (8000, "images a second"),
        (7, "MACs of the whole batch"),
        ("32", "not a number"),
        (..., "not tried"),
    ],
)
def test_mistakes_in_macs_per_second_are_named(answer, words):
    assert_wrong(exercises.check_macs_per_second(answer), words)


# Exercise 2


def test_network_speedup_is_amdahls():
    old = {"convolutions": 60, "rest": 40}
    new = {"convolutions": 20, "rest": 40, "rounding": 10}
    assert exercises.check_network_speedup(sum(old.values()) / sum(new.values())).right
    assert exercises.check_network_speedup(1.43).right
    assert exercises.check_network_speedup(1.4).right


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (0.7, "share of the old time that is left: turn"),
        (70, "in per cent"),
        (143, "give the factor itself"),
        (0.43, "so add 1"),
        (43, "how many per cent *faster*"),
        (0.3, "that is saved"),
        (3, "only the convolutions"),
        (1 / 0.6, "rounding is missing"),
        (1 / 0.3, "all the rest is missing"),
        (5, "not the factor by the share"),
        (1.8, "not 1.8 times"),
        (2.2, "mean of factors"),
        (2.1, "mean of factors"),
        (1 / (0.4 / 3 + 0.6 + 0.1), "turned round"),
        (2, "new work that adds time, and a third"),
        (1 / (0.6 * 1.1 / 3 + 0.4), "*whole* old time"),
        (1 / (0.2 + 0.44), "*whole* old time"),
        (1.1, "add up what each part"),
        (True, "not a number"),
        ([1.43], "not a number"),
        (None, "not tried"),
    ],
)
def test_mistakes_in_the_speedup_are_named(answer, words):
    assert_wrong(exercises.check_network_speedup(answer), words)


# Exercise 3


def by_the_package(picture):
    return as_floats(torch.from_numpy(picture).permute(2, 0, 1)[None]).numpy()


def to_batch(picture):
    return (picture.astype(np.float32) / 255).transpose(2, 0, 1)[None]


def in_place(picture):
    result = to_batch(picture)
    picture[:] = 0
    return result


def for_imagenet(picture):
    mean, deviation = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    return ((picture.astype(np.float32) / 255 - mean) / deviation).transpose(2, 0, 1)[None]


@pytest.mark.parametrize("answer", [by_the_package, to_batch, lambda p: np.float32([np.moveaxis(p, -1, 0) / 255.0])])
def test_a_batch_may_be_made_in_several_ways(answer):
    assert exercises.check_to_batch(answer).right


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda p: to_batch(p)[0], "batch is missing"),
        (lambda p: p / np.float32(255), "channels come first, and"),
        (lambda p: p[None] / np.float32(255), "channels still come last"),
        (lambda p: p.transpose(2, 1, 0)[None] / np.float32(255), "on its side"),
        (lambda p: p.T / np.float32(255), "exchanged, and the batch"),
        (lambda p: to_batch(p)[None], "its shape is (1, 1, 3, 6, 5)"),
        (lambda p: p.reshape(1, 3, 6, 5) / np.float32(255), "does not move a pixel"),
        (lambda p: p.transpose(2, 0, 1)[None].astype(np.float32), "still go up to 255"),
        (lambda p: p.transpose(2, 0, 1)[None], "still go up to 255"),
        (lambda p: p.reshape(1, 3, 6, 5).astype(np.float32), "mixes colours, and"),
        (lambda p: to_batch(p) * np.float32(255 / 256), "divided by 256"),
        (lambda p: to_batch(p)[:, ::-1], "RGB already"),
        (lambda p: to_batch(p)[:, ::-1] * 255, "red and blue are exchanged, and"),
        (lambda p: 2 * to_batch(p) - 1, "from -1 to 1"),
        (for_imagenet, "ImageNet"),
        (lambda p: to_batch(p[::-1]), "upside down"),
        (lambda p: to_batch(p[:, ::-1]), "left and right"),
        (lambda p: p.transpose(2, 0, 1)[None] // 255, "cut the decimals"),
        (lambda p: (p / 255).astype(np.uint8).transpose(2, 0, 1)[None], "a conversion to integers"),
        (lambda p: 100 * to_batch(p), "no per cent"),
        (lambda p: to_batch(p).astype(np.float16), "float16: the graph reads float32"),
        (lambda p: to_batch(p) * 255 / p.max(), "a dark picture must stay dark"),
        (lambda p: to_batch(p).round(), "rounded to 0 and 1"),
        (lambda p: to_batch(p) + 1, "the second pixel"),
        (lambda p: p.transpose(2, 0, 1)[None] / 255, "float64"),
        (lambda p: torch.from_numpy(to_batch(p)), "returned a Tensor"),
        (in_place, "changed the picture"),
        (lambda p: to_batch(p, 1), "could not be checked"),
        (0.5, "expected a function"),
        (..., "not tried"),
    ],
)
def test_mistakes_on_the_way_to_the_batch_are_named(answer, words):
    assert_wrong(exercises.check_to_batch(answer), words)


@pytest.mark.parametrize(
    "check", [exercises.check_macs_per_second, exercises.check_network_speedup, exercises.check_to_batch]
)
def test_nonsense_gets_feedback_and_no_traceback(check):
    assert not check(object()).right
    assert not check(float("nan")).right


# Drawings


def boxes(axes):
    """Colors of the boxes from top to bottom, left to right, as (row, color)."""
    colored = [patch for patch in axes.patches if isinstance(patch, Rectangle) and patch.get_zorder() == 3]
    return [(round(patch.get_y() + patch.get_height() / 2), to_hex(patch.get_facecolor())) for patch in colored]


def test_kinds_are_those_of_the_operators_that_onnx_runtime_makes():
    kinds = {name: kind_of(name) for name in ("Conv", "QLinearConv", "QuickGelu", "DequantizeLinear", "ReorderOutput")}
    assert list(kinds.values()) == ["convolution", "convolution", "activation", "rounding", "moving and others"]


def test_operators_are_boxes_in_the_color_of_their_kind():
    _, axes = plots.new_figure()
    draw_operators(axes, {"a": ["Conv", "Sigmoid", "Mul"], "b": ["QLinearConv", "QuantizeLinear"]})
    blue, orange, red = (color.lower() for color in (plots.BLUE, plots.ORANGE, plots.RED))
    assert boxes(axes) == [(0, blue), (0, orange), (0, orange), (1, blue), (1, red)]
    texts = [text.get_text().replace("\n", "") for text in axes.texts]
    assert texts == ["a", "Conv", "Sigmoid", "Mul", "b", "QLinearConv", "QuantizeLinear"]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["convolution", "activation", "rounding"]


def test_time_by_kind_adds_up_to_the_whole():
    _, axes = plots.new_figure()
    draw_time_by_kind(axes, {"a": {"Conv": 2.0, "Gemm": 1.0, "Sigmoid": 0.5}, "b": {"Conv": 4.0, "Split": 0.25}})
    ends = {}
    for bar in axes.patches:
        row = round(bar.get_y() + bar.get_height() / 2)
        ends[row] = max(ends.get(row, 0), bar.get_x() + bar.get_width())
    assert ends == {0: 3.5, 1: 4.25}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_throughput_is_images_by_seconds():
    figure = draw_two_speeds([1, 4], {"slow": [2.0, 4.0], "quick": [1.0, 2.0]}, batch_size=4)
    left, right = figure.axes
    curves = [list(line.get_ydata()) for line in right.lines if len(line.get_xdata()) == 2]
    assert curves == [[500.0, 1000.0], [1000.0, 2000.0]]
    marked = [line.get_xydata().tolist() for line in left.lines if len(line.get_xdata()) == 1]
    assert marked == [[[4.0, 4.0]], [[4.0, 2.0]]]
