"""Drawings of a runtime at work: operators in their order, the time of each kind of them, latency and throughput.

Used in lesson 09. Leaves out: which operator reads the result of which; for that, open the file in Netron.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from yolo_slim_lessons.teaching import plots

OTHERS = "moving and others"
COLORS = {
    "convolution": plots.BLUE,
    "normalization": plots.GREEN,
    "activation": plots.ORANGE,
    "rounding": plots.RED,
    OTHERS: "#999999",
}
KINDS = {
    "convolution": {"Conv2d", "Conv", "FusedConv", "QLinearConv", "ConvInteger", "Gemm", "FusedGemm", "QGemm"},
    "normalization": {"BatchNorm2d", "BatchNormalization"},
    "activation": {"SiLU", "ReLU", "Sigmoid", "Mul", "QuickGelu", "Relu", "HardSwish", "QLinearSigmoid", "QLinearMul"},
    "rounding": {"QuantizeLinear", "DequantizeLinear"},
}
WIDTH, HEIGHT = 0.88, 0.62  # of a box; the rest of the unit is the gap


def kind_of(operator: str) -> str:
    """One of ``COLORS``: what an operator of ONNX, or a module of PyTorch, is there for in a YOLOv8 classifier.

    A matrix product counts as a convolution. Splitting, joining, adding and changing the order in memory are "others".
    """
    return next((kind for kind, operators in KINDS.items() if operator in operators), OTHERS)


def draw_operators(axes: Axes, rows: Mapping[str, Sequence[str]]) -> None:
    """Each row a list of operators in the order in which they run, as boxes with the color of their kind.

    Args:
        axes: to draw on.
        rows: what the row shows → names of operators.
    """
    longest = max(map(len, rows.values()))
    for y, (title, operators) in enumerate(rows.items()):
        axes.text(-0.2, y, title, ha="right", va="center", fontsize=10)
        axes.plot([0, len(operators)], [y, y], color="black", linewidth=1, zorder=1)
        for x, operator in enumerate(operators):
            color = COLORS[kind_of(operator)]
            corner = (x + (1 - WIDTH) / 2, y - HEIGHT / 2)
            axes.add_patch(Rectangle(corner, WIDTH, HEIGHT, facecolor="white", zorder=2))
            axes.add_patch(Rectangle(corner, WIDTH, HEIGHT, facecolor=color, edgecolor=color, alpha=0.35, zorder=3))
            axes.text(x + 0.5, y, _in_lines(operator), ha="center", va="center", fontsize=7.5, zorder=4)
    axes.set(xlim=(0, longest), ylim=(len(rows) - 0.5, -0.5))
    axes.axis("off")
    shown = {kind_of(operator) for operators in rows.values() for operator in operators}
    handles = [Patch(color=color, alpha=0.5, label=kind) for kind, color in COLORS.items() if kind in shown]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=len(handles), frameon=False)


def draw_time_by_kind(axes: Axes, profiles: Mapping[str, Mapping[str, float]]) -> None:
    """A bar for each profile, put together from the kinds of operators, in milliseconds.

    Args:
        axes: to draw on.
        profiles: name of a file → (operator → milliseconds).
    """
    left = np.zeros(len(profiles))
    for kind, color in COLORS.items():
        spent = [sum(ms for name, ms in times.items() if kind_of(name) == kind) for times in profiles.values()]
        if any(spent):
            axes.barh(range(len(profiles)), spent, left=left, color=color, label=kind)
            left += spent
    axes.set_yticks(range(len(profiles)), profiles)
    axes.invert_yaxis()
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=9)


def draw_two_speeds(batch_sizes: Sequence[int], times: Mapping[str, Sequence[float]], batch_size: int) -> Figure:
    """Latency on the left, throughput on the right, both against the batch size, with one batch size marked.

    Args:
        batch_sizes: images in a batch.
        times: name of a runtime → milliseconds for a batch of each size.
        batch_size: which of ``batch_sizes`` is marked.
    """
    figure, (left, right) = plots.new_figure(1, 2, size=(9.5, 3.2))
    for (name, milliseconds), color in zip(times.items(), (plots.ORANGE, plots.BLUE, plots.GREEN), strict=False):
        throughput = 1000 * np.array(batch_sizes) / milliseconds
        for axes, values in ((left, milliseconds), (right, throughput)):
            axes.loglog(batch_sizes, values, "o-", color=color, markersize=4, label=name)
            axes.plot(batch_size, values[batch_sizes.index(batch_size)], "o", color=color, markersize=10)
    left.set(ylabel="ms until the answer (median)", title="latency")
    right.set(ylabel="images a second", title="throughput", yscale="linear", ylim=(0, None))
    for axes in (left, right):
        axes.set_xticks(batch_sizes, batch_sizes)
        axes.minorticks_off()
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.set_xlabel("batch size, images")
        axes.legend()
    return figure


def _in_lines(name: str) -> str:
    """A name in camel case with a line for each word; short words share one."""
    lines: list[str] = []
    for word in re.findall(r"[A-Z]+[a-z0-9]*", name):
        if lines and len(lines[-1] + word) <= 7:
            lines[-1] += word
        else:
            lines.append(word)
    return "\n".join(lines) or name
