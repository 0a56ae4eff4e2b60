"""The checks of lesson 06 know right from wrong, and its drawings show the bits, values and sizes that they claim."""

import math

import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle

import yolo_slim_lessons as slim
from yolo_slim_lessons.quantization import signal_to_noise
from yolo_slim_lessons.quantization.floats import float_format, format_fit
from yolo_slim_lessons.teaching import exercises, plots
from yolo_slim_lessons.teaching.float_pictures import draw_bits, draw_fit, draw_number_lines, float_fields, formula

# Exercises


def test_right_numbers_are_those_of_torch():
    bits = torch.tensor([0b1_1000_010, 0b0_1111_110], dtype=torch.uint8).view(torch.float8_e4m3fn).float().tolist()
    assert exercises.check_decoded_bits(bits[0]).right
    assert exercises.check_largest_fp8(bits[1]).right
    assert exercises.check_largest_fp8(torch.finfo(torch.float8_e4m3fn).max).right
    assert exercises.check_decoded_bits(-2.5 * (1 + 1e-12)).right
    assert exercises.check_largest_fp8(1.75 * 256 * (1 - 1e-12)).right


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (1.25 * 2, "negative"),
        (-1.25 * 2**8, "take the bias, 7, off"),
        (-0.25 * 2, "a 1 in front"),
        (-1.25, "not 8"),
        (-1.25 * 4, "not 6"),
        (-(1 + 2 / 16) * 2, "not sixteenths"),
        (-(1 + 2 / 4) * 2, "not 2/4"),
        (-1.2 * 2, "not 0.2"),
        (-1.01 * 2, "not 0.010"),
        (0b11000010 - 256, "two's complement"),
        (-0b1000010, "sign bit"),
        (0b11000010, "unsigned"),
        (3, "exponent field 1000 = 8"),
        ("-2.5", "not a number"),
    ],
)
def test_decoding_mistakes_are_named(answer, reason):
    feedback = exercises.check_decoded_bits(answer)
    assert not feedback.right
    assert reason in feedback.message


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((1 + 7 / 8) * 2**8, "means NaN"),
        ((1 + 7 / 8) * 2**7, "highest exponent"),
        (2**8, "what mantissa"),
        ((1 + 6 / 8) * 2**7, "bias is 7"),
        ((1 + 6 / 8) * 2**15, "bias, 7, is missing"),
        (torch.finfo(torch.float8_e5m2).max, "of e5m2"),
        (1.75, "now the exponent"),
        (127, "int8"),
        (-448, "smallest"),
        (500, "0 to 6"),
        (True, "not a number"),
    ],
)
def test_largest_number_mistakes_are_named(answer, reason):
    feedback = exercises.check_largest_fp8(answer)
    assert not feedback.right
    assert reason in feedback.message


def chosen_by(choose, key, size=0):
    """A ``best_format``, right or wrong: ``choose`` is max or min, and its formats are ``size`` bits too large."""

    def answer(values, bits):
        names = [f"e{e}m{bits + size - 1 - e}" for e in range(1, bits + size)]
        return choose(names, key=lambda name: key(values, slim.round_to_format(values, name)))

    return answer


def squared_error(values, rounded):
    return (values - rounded).square().sum().item()


def mean_error(values, rounded):
    return (values - rounded).abs().mean().item()


def largest_error(values, rounded):
    return (values - rounded).abs().max().item()


def test_the_best_format_by_squares_or_by_decibels_is_right():
    assert exercises.check_best_format(chosen_by(min, squared_error)).right
    assert exercises.check_best_format(chosen_by(max, signal_to_noise)).right


def changes_its_input(values, bits):
    values.mul_(0.5)
    return "e3m2"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (chosen_by(min, squared_error, size=1), "has 7 bits: the sign takes one, too"),
        (chosen_by(min, squared_error, size=-1), "has 5 bits"),
        (chosen_by(max, squared_error), "worst of all"),
        (chosen_by(min, largest_error), "smallest largest error"),
        (chosen_by(min, mean_error), "smallest mean error"),
        (lambda values, bits: f"e2m{bits - 3}", "e2m3 gives"),
        (lambda values, bits: f"e1m{bits - 2}", "very different sizes"),
        (lambda values, bits: 3, "returned int"),
        (lambda values, bits: "float6", "could not be checked"),
        (changes_its_input, "changed the values"),
        ("e3m2", "expected a function"),
    ],
)
def test_best_format_mistakes_are_named(answer, reason):
    feedback = exercises.check_best_format(answer)
    assert not feedback.right
    assert reason in feedback.message


# Drawings


@pytest.mark.parametrize(
    ("format", "dtype", "integers"),
    [
        ("fp8_e4m3", torch.float8_e4m3fn, torch.uint8),
        ("fp8_e5m2", torch.float8_e5m2, torch.uint8),
        ("bf16", torch.bfloat16, torch.int16),
        ("fp16", torch.float16, torch.int16),
    ],
)
def test_fields_put_together_are_the_bits_of_torch(format, dtype, integers):
    described = float_format(format)
    values = described.values()[:: 1 if described.bits == 8 else 97]
    for value in (*values.tolist(), *(-values).tolist()):  # -0.0 included
        sign, exponent, mantissa = float_fields(value, format)
        code = (sign << described.bits - 1) | (exponent << described.mantissa_bits) | mantissa
        bits = torch.tensor(value).to(dtype).view(integers).item() % 2**described.bits
        assert code == bits, value


@pytest.mark.parametrize("value", [0.1, 449.0, 1e9, 2.0**-12, math.inf, math.nan])
def test_a_number_that_is_no_value_of_the_format_is_refused(value):
    with pytest.raises(ValueError, match="expected a finite value of e4m3"):
        float_fields(value, "fp8_e4m3")


def test_formulas_by_hand():
    assert formula(-2.5, "e4m3") == "− (1 + 2 / 8) × 2^(8 − 7)"
    assert formula(2.0**-9, "e4m3") == "+ (0 + 1 / 8) × 2^(1 − 7)"
    assert formula(8.0, "e3m0") == "+ (1) × 2^(6 − 3)"


def test_bits_are_drawn_from_left_to_right():
    axes = draw_bits(-0.15625).axes[0]
    boxes = sorted((text for text in axes.texts if text.get_text() in "01"), key=lambda text: text.get_position()[0])
    assert "".join(text.get_text() for text in boxes) == f"{np.float32(-0.15625).view(np.uint32):032b}"
    assert len([patch for patch in axes.patches if isinstance(patch, Rectangle)]) == 32


def marks(axes):
    """The places of all marks, from left to right."""
    return sorted(segment[0][0] for lines in axes.collections for segment in lines.get_segments())


def test_number_lines_hold_every_value():
    figure = draw_number_lines(["e2m1", "e3m0"])
    expected = [0.5, 1, 1.5, 2, 3, 4, 6, 0.25, 0.5, 1, 2, 4, 8, 16]
    assert [marks(axes) for axes in figure.axes] == [sorted(expected)] * 2
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["e2m1, up to 6", "e3m0, up to 16"]


def test_fit_is_drawn_with_the_shares_that_format_fit_counts():
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 3
    _, axes = plots.new_figure()
    draw_fit(axes, values, "e2m1")
    fit = format_fit(values, "e2m1")
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend[1:] == [
        f"normal: {fit.normal:.2%}",
        f"subnormal: {fit.subnormal:.2%}",
        f"becomes 0: {fit.underflow:.2%}",
    ]
    assert legend[0] == f"overflow: {fit.overflow:.2%}"
    steps = [patch.get_data() for patch in axes.patches]
    heights = [(step.values - step.baseline).sum() for step in steps]
    assert heights == pytest.approx([100 * share for share in (fit.overflow, fit.normal, fit.subnormal, fit.underflow)])
    assert [round(2.0**mark, 3) for mark in marks(axes)[:2]] == [0.5, 0.5]  # the smallest value, and the line begins


def test_fit_of_a_fine_format_draws_its_range_alone():
    _, axes = plots.new_figure()
    draw_fit(axes, torch.tensor([1.0, -2.0, 0.0]), "e8m10")
    assert len(marks(axes)) == 1
