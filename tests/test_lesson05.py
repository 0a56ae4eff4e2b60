"""The checks of lesson 05 know right from wrong, and its drawings show the grid."""

import numpy as np
import pytest
import torch
from feedback_checks import assert_wrong
from matplotlib.colors import to_hex

import yolo_slim_lessons as slim
from yolo_slim_lessons.quantization import IntegerGrid
from yolo_slim_lessons.teaching import exercises, plots
from yolo_slim_lessons.teaching.number_grids import draw_by_layer, draw_rounded, draw_ruler

# Exercise 1


def test_scale_and_zero_point_are_those_of_the_package():
    grid = IntegerGrid.from_range(torch.tensor(-0.5), torch.tensor(3.5), bits=4, signed=False)
    assert exercises.check_scale_and_zero_point((grid.scale.item(), grid.zero_point.item())).right
    assert exercises.check_scale_and_zero_point([4 / 15, 2]).right


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((0.25, 2), "16 integers have only 15 steps"),
        ((4 / 14, 2), "there are 15 steps"),
        ((3.5 / 15, 2), "from the low end"),
        ((15 / 4, 2), "upside down"),
        ((4.0, 2), "whole range"),
        ((0.5, 0), "symmetric grid"),
        ((0.1, 2), "length of the range"),
        ((2, 4 / 15), "other way round"),
        ((4 / 15, 1.875), "must be an integer"),
        ((4 / 15, 1), "nearest integer"),
        ((4 / 15, -2), "sign"),
        ((4 / 15, -0.5), "low end itself"),
        ((4 / 15, 0), "nothing for the negative"),
        ((4 / 15, -6), "signed integers"),
        ((4 / 15, 7), "how many steps"),
        (4 / 15, "two numbers"),
        (("a", "b"), "could not be checked"),
        (..., "not tried"),
    ],
)
def test_wrong_scale_or_zero_point(answer, words):
    assert_wrong(exercises.check_scale_and_zero_point(answer), words)


# Exercise 2


def quantize(
    weight, bits, size=lambda rows: rows.abs().amax(1), levels=lambda b: 2 ** (b - 1) - 1, integer=torch.round
):
    rows = weight.flatten(1)
    scales = size(rows) / levels(bits)
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    return integer(rows / scales[:, None]).view(weight.shape), scales


def test_per_channel_quantization_is_that_of_the_package():
    def by_package(weight, bits):
        grid = IntegerGrid.from_range(*torch.aminmax(weight.flatten(1), dim=1), bits=bits, symmetric=True)
        return grid.quantize(weight), grid.scale

    assert exercises.check_quantize_channels(by_package).right
    assert exercises.check_quantize_channels(quantize).right
    assert exercises.check_quantize_channels(
        lambda w, b: tuple(x.int() if x.dim() > 1 else x for x in quantize(w, b))
    ).right


def in_place(weight, bits):
    result = quantize(weight, bits)
    weight.zero_()
    return result


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda w, b: quantize(w, b, size=lambda rows: rows.abs().max().expand(1)), "one scale for the whole"),
        (lambda w, b: (w, w.abs().amax(0) / 7), "a scale for each input"),
        (lambda w, b: (w, torch.ones(9)), "expected 4 scales"),
        (lambda w, b: (w, w.abs().amax(1) / 7), "channel 2 is all zeros"),
        (lambda w, b: quantize(w, b, levels=lambda b: 2 ** (b - 1)), "one level off"),
        (lambda w, b: quantize(w, b, levels=lambda b: 2**b - 1), "unsigned"),
        (lambda w, b: quantize(w, b, levels=lambda b: 2**b), "by 16"),
        (lambda w, b: quantize(w, b, levels=lambda b: (2**b - 1) / 2), "between two marks"),
        (lambda w, b: quantize(w, b, size=lambda rows: rows.amax(1)), "take abs()"),
        (lambda w, b: quantize(w, b, lambda rows: rows.amax(1) - rows.amin(1), lambda b: 2**b - 1), "affine"),
        (lambda w, b: (quantize(w, b)[0], 1 / quantize(w, b)[1]), "upside down"),
        (lambda w, b: (quantize(w, b)[0], quantize(w, b)[1] * 3), "expected ["),
        (lambda w, b: quantize(w, b, integer=lambda x: x), "not rounded yet"),
        (lambda w, b: quantize(w, b, integer=torch.trunc), "cut off towards zero"),
        (lambda w, b: quantize(w, b, integer=torch.floor), "rounded down"),
        (lambda w, b: quantize(w, b, integer=lambda x: x.round().clamp(0)), "negative ones have become 0"),
        (lambda w, b: quantize(w, b, integer=lambda x: x.round() + 8), "zero point of a symmetric grid"),
        (lambda w, b: quantize(w, b, integer=lambda x: 2 * x.round()), "it made"),
        (
            lambda w, b: (quantize(w, b)[0] * quantize(w, b)[1][:, None], quantize(w, b)[1]),
            "rounded weights themselves",
        ),
        (lambda w, b: (quantize(w, b)[0] / w.abs().amax(1, keepdim=True) * 0, quantize(w, b)[1]), "NaN"),
        (lambda w, b: (quantize(w, b)[0][:2], quantize(w, b)[1]), "have the shape (2, 3)"),
        (lambda w, b: quantize(w, b)[0], "two tensors"),
        (lambda w, b: ([1], quantize(w, b)[1]), "integers is a list"),
        (in_place, "changed the weight"),
        (lambda w, b: quantize(w * torch.ones(4, 3), b), "ends in"),
        (lambda w, b: quantize(w.flatten(1), b), "weight[i]"),
        (0.5, "expected a function"),
        (..., "not tried"),
    ],
)
def test_wrong_quantization(answer, words):
    assert_wrong(exercises.check_quantize_channels(answer), words)


# Exercise 3


def test_layer_bytes_are_those_of_a_real_layer():
    layer = slim.quantize_integer(torch.nn.Sequential(torch.nn.Conv2d(64, 128, 3)), bits=4)[0]
    integers = layer.integers.numel() * 4 // 8
    scales, biases = layer.weight_grid.scale.bfloat16(), layer.bias.float()
    assert torch.equal(scales.float(), layer.weight_grid.scale)  # two bytes hold a scale
    assert exercises.check_layer_bytes(integers + scales.nbytes + biases.nbytes).right


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (301056, "a byte has 8"),
        (36864, "weights alone"),
        (37120, "biases are missing"),
        (37376, "scales are missing"),
        (37378, "one scale for the layer"),
        (37248, "128 output channels"),
        (74496, "two of them share"),
        (4864, "9 weights"),
        (295680, "float32"),
        (5, "count the weights"),
        ("37632", "not a number"),
        ([], "not a number"),
        (None, "not tried"),
    ],
)
def test_wrong_bytes(answer, words):
    assert_wrong(exercises.check_layer_bytes(answer), words)


@pytest.mark.parametrize(
    "check", [exercises.check_scale_and_zero_point, exercises.check_quantize_channels, exercises.check_layer_bytes]
)
def test_nonsense_gets_feedback_and_no_traceback(check):
    assert not check(object()).right
    assert not check(float("nan")).right


# Drawings


def test_a_ruler_has_a_mark_for_each_integer_and_ties_each_number_to_its_own():
    _, axes = plots.new_figure()
    grid = IntegerGrid.from_range(torch.tensor(-1.0), torch.tensor(6.0), bits=3, signed=False)
    draw_ruler(axes, torch.tensor([2.2, -0.6, 9.0]), grid)
    assert [text.get_text() for text in axes.texts] == [str(integer) for integer in range(8)]
    assert [text.get_text() for text in axes.texts if to_hex(text.get_color()) == plots.ORANGE.lower()] == ["1"]
    ties = [line.get_xdata() for line in axes.lines if to_hex(line.get_color()) == plots.SKY.lower()]
    np.testing.assert_allclose(ties, [[2.2, 2.0], [-0.6, -1.0], [9.0, 6.0]], rtol=1e-6)


def test_a_ruler_of_many_scales_or_marks_is_refused():
    _, axes = plots.new_figure()
    for low, bits in ((torch.tensor([-1.0, -2.0]), 3), (torch.tensor(-1.0), 6)):
        with pytest.raises(ValueError, match="expected 1 scale and at most 5 bits"):
            draw_ruler(axes, torch.zeros(3), IntegerGrid.from_range(low, -low, bits=bits))


def test_rounded_weights_are_counted_at_their_marks():
    _, axes = plots.new_figure()
    exact = torch.linspace(-1, 1, 400)
    draw_rounded(axes, exact, IntegerGrid.from_range(exact.min(), exact.max(), bits=2, symmetric=True).snap(exact))
    (spikes,) = (lines.get_segments() for lines in axes.collections)
    assert [round(float(spike[0, 0])) for spike in spikes] == [-1, 0, 1]
    assert [float(spike[1, 1]) for spike in spikes] == [100, 200, 100]


def test_values_by_layer_stand_from_first_to_last():
    _, axes = plots.new_figure()
    draw_by_layer(
        axes, {"a": {"model.0.conv": 1.0, "model.9.linear": 3.0}, "b": {"model.0.conv": 2.0, "model.9.linear": 4.0}}
    )
    assert [list(line.get_xdata()) for line in axes.lines] == [[1.0, 3.0], [2.0, 4.0]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["model.0", "model.9.linear"]
    top, bottom = axes.get_ylim()[::-1]
    assert top < bottom
