"""Drawings of floats: the bits of one, the values of a format on the number line, and a tensor laid over a format.

Used in lesson 06. Leaves out: the rounding itself (``float_quantization``).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from yolo_slim_lessons.quantization.floats import FloatFormat, float_format, round_to_format
from yolo_slim_lessons.teaching import plots

SIGN, EXPONENT, MANTISSA = plots.RED, plots.ORANGE, plots.BLUE
NORMAL, SUBNORMAL, UNDERFLOW, OVERFLOW = plots.GREEN, plots.SKY, "#999999", plots.RED
MOST_MARKS = 512  # values of a format that are drawn one by one


def float_fields(value: float, format: str | FloatFormat) -> tuple[int, int, int]:
    """(sign, exponent field, mantissa field): the three integers that stand in the bits of ``value``.

    Raises:
        ValueError: ``value`` is no finite value of the format.

    Example:
        >>> float_fields(-2.5, "fp8_e4m3")  # (1 + 2 / 8) · 2^(8 - 7)
        (1, 8, 2)
    """
    format = float_format(format)
    size = abs(float(value))
    if not (size <= format.max and round_to_format(torch.tensor(size), format).item() == size):
        raise ValueError(f"value={value!r}: expected a finite value of {format.name}; round it first")
    exponent = max(math.frexp(size)[1] - 1, 1 - format.bias) if size else 1 - format.bias
    steps = size / 2.0 ** (exponent - format.mantissa_bits)
    whole = 2**format.mantissa_bits  # the 1 in front of the mantissa, which subnormals lack
    field = exponent + format.bias if steps >= whole else 0
    return int(math.copysign(1, value) < 0), field, int(steps) - (whole if field else 0)


def draw_bits(value: float, format: str | FloatFormat = "e8m23", with_formula: bool = True) -> Figure:
    """The bits of ``value`` as a row of boxes, its three fields apart by colour; the formula with numbers below.

    Without ``with_formula``, neither the value nor the formula is shown, for a reader who is to find them.

    Raises:
        ValueError: ``value`` is no finite value of the format.
    """
    format = float_format(format)
    fields = float_fields(value, format)
    widths = (1, format.exponent_bits, format.mantissa_bits)
    figure, axes = plots.new_figure(size=(max(0.28 * format.bits, 4.5), 1.5))
    left = 0
    for name, field, width, color in zip(
        ("sign", "exponent", "mantissa"), fields, widths, (SIGN, EXPONENT, MANTISSA), strict=True
    ):
        for place, bit in enumerate(f"{field:0{width}b}" if width else ""):
            box = Rectangle((left + place, 0), 1, 1, facecolor=color, alpha=0.9 if bit == "1" else 0.25, edgecolor="w")
            axes.add_patch(box)
            ink = "white" if bit == "1" else "black"
            axes.text(left + place + 0.5, 0.5, bit, ha="center", va="center", color=ink, family="monospace")
        if width:
            label = f"{name}\n{field:,}"
            axes.text(left + width / 2, 1.1, label, ha="center", va="bottom", color=color, fontsize=9, weight="bold")
        left += width
    if with_formula:
        axes.text(0, -0.25, f"{value!r} = {formula(value, format)}", va="top", fontsize=10)
    axes.set(xlim=(-0.6, max(left, 16) + 0.1), ylim=(-0.9, 2.4))
    axes.axis("off")
    return figure


def formula(value: float, format: str | FloatFormat) -> str:
    """How the fields of ``value`` make it, as text: ``-(1 + 2 / 2³) · 2^(8 - 7)``."""
    format = float_format(format)
    sign, exponent, mantissa = float_fields(value, format)
    first, field = (1, exponent) if exponent else (0, 1)  # subnormals: no 1 in front, and the exponent of field 1
    whole = f"{first} + {mantissa:,} / {2**format.mantissa_bits:,}" if format.mantissa_bits else f"{first}"
    return f"{'−' if sign else '+'} ({whole}) × 2^({field} − {format.bias})"


def draw_number_lines(formats: list[str], high: float = 8.0, low_power: int = -8, high_power: int = 8) -> Figure:
    """Every value above zero of some formats: left on an even scale up to ``high``, right on one of powers of two.

    Subnormal values, evenly spaced down to zero, have another colour. A format's smallest and largest value are
    written beside it.

    Args:
        formats: of at most 16 bits, one row each.
        high: right end of the even scale.
        low_power: left end of the other one, as a power of two.
        high_power: right end.
    """
    figure, (even, powers) = plots.new_figure(1, 2, size=(10, 0.45 * len(formats) + 1.0))
    for row, format in enumerate(map(float_format, formats)):
        values = format.values()[1:].numpy()
        for axes in (even, powers):
            for group, color in (
                (values < format.min_normal, SUBNORMAL),
                (values >= format.min_normal, NORMAL),
            ):
                axes.vlines(values[group], row - 0.3, row + 0.3, color=color, linewidth=1.3)
    names = [f"{format.name}, up to {format.max:g}" for format in map(float_format, formats)]
    even.set_yticks(range(len(formats)), names)
    powers.set_yticks(range(len(formats)), [])
    even.set(xlim=(-0.05 * high, 1.02 * high), xlabel="value, on an even scale")
    powers.set_xscale("log", base=2)
    powers.set(xlim=(2.0**low_power, 2.0**high_power), xlabel="value, each step twice the one before")
    for axes in (even, powers):
        axes.set_ylim(len(formats) - 0.5, -0.6)
        axes.grid(False)
    return figure


def draw_fit(axes: Axes, values: torch.Tensor, format: str | FloatFormat) -> None:
    """How often which size occurs in ``values``, coloured by what the format does to it, above the format's own values.

    Args:
        axes: to draw on; the horizontal axis becomes one of powers of two, 2^-24 to 2^12 or as far as values reach.
        values: of any shape; zeros are left out.
        format: its values are drawn as marks if they are at most 512.
    """
    format = float_format(format)
    size = values.detach().flatten().float().abs()
    size = size[size > 0]
    rounded = round_to_format(size, format)
    overflow = round_to_format(size, FloatFormat("unbounded", 8, format.mantissa_bits)) > format.max
    groups = {
        "overflow": overflow,
        "normal": (rounded >= format.min_normal) & ~overflow,
        "subnormal": (rounded < format.min_normal) & (rounded > 0),
        "becomes 0": rounded == 0,
    }
    powers = size.log2().clamp(-24, 128).numpy()
    edges = np.arange(-24, max(12, math.ceil(powers.max()) + 1), 0.5)
    colors = (OVERFLOW, NORMAL, SUBNORMAL, UNDERFLOW)
    heights = [np.histogram(powers[group.numpy()], edges)[0] * 100 / len(powers) for group in groups.values()]
    bottom = np.zeros(len(edges) - 1)
    for (name, group), height, color in zip(groups.items(), heights, colors, strict=True):
        share = group.float().mean().item()
        if share:
            axes.stairs(bottom + height, edges, baseline=bottom, fill=True, color=color, label=f"{name}: {share:.2%}")
        bottom = bottom + height
    top = bottom.max()
    if 2 ** (format.bits - 1) <= MOST_MARKS:
        marks = format.values()[1:].log2().numpy()
        axes.vlines(marks, -0.14 * top, -0.02 * top, color="black", linewidth=0.7)
    axes.hlines(-0.08 * top, math.log2(format.min_subnormal), math.log2(format.max), color="black", linewidth=0.7)
    axes.set(xlim=(edges[0], edges[-1]), ylim=(-0.18 * top, 1.1 * top), ylabel="share of the values (%)")
    axes.set(xlabel=f"size of a value; black: the values of {format.name}")
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= 1.1 * top])
    ticks = range(-24, int(edges[-1]) + 1, 6 if edges[-1] < 40 else 24)
    axes.set_xticks(ticks, [f"$2^{{{power}}}$" for power in ticks])
    axes.legend(fontsize=8, loc="upper left")
