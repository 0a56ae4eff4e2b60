"""Drawings of bytes: a model as the area of weights × bits, and what each stage has made of a file.

Used in lesson 08. Leaves out: where the bytes come from (``packing.packed_sizes``).
"""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from yolo_slim_lessons.teaching import plots

COLORS = (plots.SKY, plots.ORANGE, plots.GREEN, plots.BLUE)


def draw_areas(axes: Axes, models: Mapping[str, tuple[int, float]]) -> None:
    """Models as rectangles with one corner in common: weights wide, bits of each high, so that the area is the file.

    Names, numbers and kilobytes are the labels of a legend, which the caller places.

    Args:
        axes: to draw on.
        models: name → (number of weights, bits of each), the largest first.
    """
    for number, (name, (weights, bits)) in enumerate(models.items()):
        label = f"{name}: {weights:,} × {bits:.3g} bits = {weights * bits / 8e3:,.0f} kB"
        color = COLORS[number % len(COLORS)]
        axes.add_patch(Rectangle((0, 0), weights / 1e6, bits, facecolor=color, edgecolor="black", label=label))
    widest = max(weights for weights, _ in models.values()) / 1e6
    axes.set(xlim=(0, 1.02 * widest), ylim=(0, 1.05 * max(bits for _, bits in models.values())))
    axes.set(xlabel="million weights", ylabel="bits a weight")
    axes.grid(False)


def draw_waterfall(axes: Axes, sizes: Mapping[str, float]) -> None:
    """Bytes after each stage on a logarithmic axis, so that equal steps are equal factors: down green, up red.

    Args:
        axes: to draw on.
        sizes: name of a stage → bytes after it, in their order; the first is where it starts.

    Raises:
        ValueError: a size that is not above 0.
    """
    if not all(size > 0 for size in sizes.values()):
        raise ValueError(f"sizes={dict(sizes)!r}: expected bytes above 0")
    floor = min(sizes.values()) / 2
    before = None
    for place, size in enumerate(sizes.values()):
        if before is None:
            axes.bar(place, size - floor, bottom=floor, color=plots.BLUE)
            text = ""
        else:
            color = plots.GREEN if size <= before else plots.RED
            axes.bar(place, abs(before - size), bottom=min(before, size), color=color)
            axes.plot([place - 1.4, place + 0.4], [before, before], color="black", linewidth=0.7)
            text = f"÷ {before / size:.3g}\n" if size <= before else f"× {size / before:.3g}\n"
        axes.text(place, max(size, before or 0) * 1.08, f"{text}{size:,.0f}", ha="center", va="bottom", fontsize=9)
        before = size
    axes.set_yscale("log")
    axes.set_xticks(range(len(sizes)), sizes)
    axes.set(ylabel="bytes", xlim=(-0.5, len(sizes) - 0.5), ylim=(floor, max(sizes.values()) * 3))
    axes.minorticks_off()
