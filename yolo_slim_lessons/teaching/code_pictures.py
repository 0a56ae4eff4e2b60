"""Drawings of codes: how a code divides the line from 0 to 1, and how arithmetic coding walks along it.

Used in lesson 08. Leaves out: the coder that writes files (``packing.entropy_coder``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Polygon, Rectangle

from yolo_slim_lessons.teaching import plots

COLORS = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.RED, plots.PURPLE, plots.SKY, plots.YELLOW, "#777777")
HEIGHT = 0.5  # of a row; the rest is for the lines between rows
LEGIBLE = 0.022  # of the line: narrower pieces carry no text


def draw_divisions(axes: Axes, divisions: Mapping[str, Mapping[int, float]]) -> None:
    """The line from 0 to 1, divided once for each row; the same symbol has the same color in all of them.

    Args:
        axes: to draw on.
        divisions: name of a row → (symbol → length of its piece), all rows with the same symbols. Lengths may add up
            to less than 1; what is left over stays empty.

    Raises:
        ValueError: lengths of a row add up to more than 1.
    """
    rows = {name: _pieces(pieces) for name, pieces in divisions.items()}
    for row, pieces in enumerate(rows.values()):
        _draw_row(axes, -row, pieces)
    for row, (above, below) in enumerate(zip(list(rows.values()), list(rows.values())[1:], strict=False)):
        for symbol, (left, width) in above.items():
            ends = (left, below[symbol][0]), (left + width, sum(below[symbol]))
            for upper, lower in ends:
                axes.plot([upper, lower], [-row, -row - 1 + HEIGHT], color="black", linewidth=0.5)
    _finish(axes, list(rows))


def draw_walk(axes: Axes, shares: Mapping[int, float], message: Sequence[int]) -> None:
    """Arithmetic coding, symbol by symbol: each row is the piece that was chosen in the row above, drawn full width.

    Args:
        axes: to draw on.
        shares: symbol → its share; they add up to 1.
        message: symbols, a few, for each is a row.

    Raises:
        ValueError: shares add up to more than 1, or ``message`` has a symbol without a share.
    """
    pieces = _pieces(shares)
    if unknown := [symbol for symbol in message if symbol not in pieces]:
        raise ValueError(f"message has {unknown[0]!r}: expected symbols among {sorted(pieces)}")
    low, width = 0.0, 1.0
    for row, symbol in enumerate(message):
        left, share = pieces[symbol]
        _draw_row(axes, -row, pieces, chosen=symbol)
        zoom = [(left, -row), (left + share, -row), (1, -row - 1 + HEIGHT), (0, -row - 1 + HEIGHT)]
        axes.add_patch(Polygon(zoom, facecolor=plots.SKY, alpha=0.25))
        low, width = low + width * left, width * share
    last = -len(message)
    axes.add_patch(Rectangle((0, last), 1, HEIGHT, facecolor=plots.SKY, alpha=0.25))
    axes.text(0.5, last + HEIGHT / 2, f"from {low:.6f} to {low + width:.6f}", ha="center", va="center")
    names = [f"weight {number}: {symbol}" for number, symbol in enumerate(message, start=1)]
    _finish(axes, [*names, "what is left"])


def _pieces(lengths: Mapping[int, float]) -> dict[int, tuple[float, float]]:
    """Symbol → (left end, length), symbols in their order."""
    symbols = sorted(lengths)
    widths = [float(lengths[symbol]) for symbol in symbols]
    if sum(widths) > 1 + 1e-9:
        raise ValueError(f"lengths of the pieces add up to {sum(widths):.4f}: expected at most 1")
    lefts = np.cumsum([0.0, *widths[:-1]]).tolist()
    return dict(zip(symbols, zip(lefts, widths, strict=True), strict=True))


def _draw_row(axes: Axes, bottom: float, pieces: Mapping[int, tuple[float, float]], chosen: int | None = None) -> None:
    for number, (symbol, (left, width)) in enumerate(pieces.items()):
        faded = chosen is not None and symbol != chosen
        color = COLORS[number % len(COLORS)]
        box = Rectangle((left, bottom), width, HEIGHT, facecolor=color, alpha=0.25 if faded else 0.9, edgecolor="white")
        axes.add_patch(box)
        if width > LEGIBLE:
            ink = "black" if faded or color in (plots.ORANGE, plots.SKY, plots.YELLOW, plots.PURPLE) else "white"
            axes.text(left + width / 2, bottom + HEIGHT / 2, symbol, ha="center", va="center", color=ink, fontsize=9)


def _finish(axes: Axes, names: Iterable[str]) -> None:
    names = list(names)
    axes.set_yticks([HEIGHT / 2 - row for row in range(len(names))], names)
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(-0.01, 1.01), ylim=(-len(names) + 1 - 0.1, HEIGHT + 0.1))
    axes.spines["left"].set_visible(False)
    axes.grid(False)
