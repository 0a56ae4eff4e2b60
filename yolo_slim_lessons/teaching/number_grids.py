"""Drawings of numbers that snap to a grid: a ruler with its marks, weights before and after, a value for each layer.

Used in lesson 05. Leaves out: which grid; that is the caller's choice.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.axes import Axes

from yolo_slim_lessons.quantization import IntegerGrid
from yolo_slim_lessons.teaching import plots


def draw_ruler(axes: Axes, numbers: torch.Tensor, grid: IntegerGrid) -> None:
    """Real numbers as dots on the upper line, each tied to its mark on the lower one, the ruler.

    Beneath a mark stands the integer that it is stored as; the mark of zero is orange.

    Args:
        axes: to draw on.
        numbers: a few, of any shape.
        grid: with one scale, and few enough bits to read its integers: 5 at most.

    Raises:
        ValueError: a grid with a scale for each channel, or with too many marks.
    """
    if grid.scale.dim() or grid.bits > 5:
        raise ValueError(f"grid: {grid.scale.numel()} scales and {grid.bits} bits; expected 1 scale and at most 5 bits")
    numbers = numbers.detach().flatten()
    integers = torch.arange(grid.lowest, grid.highest + 1)
    for mark, integer in zip(grid.dequantize(integers).tolist(), integers.tolist(), strict=True):
        color = plots.ORANGE if integer == grid.zero_point else "black"
        axes.plot([mark, mark], [-0.12, 0.12], color=color, linewidth=2.5)
        axes.text(mark, -0.2, integer, ha="center", va="top", color=color)
    axes.axhline(0, color="black", linewidth=1)
    for number, snapped in zip(numbers.tolist(), grid.snap(numbers).tolist(), strict=True):
        axes.plot([number, snapped], [1, 0.12], color=plots.SKY, linewidth=1)
    axes.plot(numbers, np.ones(len(numbers)), "o", color=plots.BLUE, markersize=5)
    axes.set(ylim=(-0.75, 1.25), yticks=[0, 1], yticklabels=["stored as", "number"])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(False)


def draw_rounded(axes: Axes, exact: torch.Tensor, rounded: torch.Tensor, bins: int = 201) -> None:
    """Two histograms in one: numbers as they were, as an area, and where they are after rounding, as spikes.

    Args:
        axes: to draw on; its y axis becomes logarithmic, since marks hold many numbers each.
        exact: of any shape.
        rounded: of the same shape.
        bins: over the range of ``exact``.
    """
    exact, rounded = (numbers.detach().flatten().numpy() for numbers in (exact, rounded))
    edges = np.linspace(exact.min(), exact.max(), bins + 1)
    counts = np.histogram(np.clip(rounded, edges[0], edges[-1]), edges)[0]
    axes.stairs(np.histogram(exact, edges)[0], edges, baseline=0.5, fill=True, color=plots.SKY, label="as trained")
    filled = counts > 0
    centers = (edges[:-1] + edges[1:]) / 2
    axes.vlines(centers[filled], 0.5, counts[filled], color=plots.RED, linewidth=1.2, label="rounded")
    axes.set(yscale="log", ylim=(0.5, None), ylabel="weights in the bin")
    axes.minorticks_off()  # which take most of the time of drawing


def draw_by_layer(axes: Axes, values: Mapping[str, Mapping[str, float]]) -> None:
    """A line of dots for each series, layers from top to bottom in the order of the forward pass.

    Args:
        axes: to draw on; the caller names its x axis.
        values: label of a series → (layer → value); all series with the same layers.
    """
    layers = list(next(iter(values.values())))
    for (label, series), marker in zip(values.items(), "osD^v", strict=False):
        axes.plot([series[layer] for layer in layers], range(len(layers)), marker, markersize=5, label=label)
    axes.set_yticks(range(len(layers)), [layer.removesuffix(".conv") for layer in layers], fontsize=8)
    axes.set(ylim=(len(layers) - 0.4, -0.6))
    axes.legend(fontsize=9)
