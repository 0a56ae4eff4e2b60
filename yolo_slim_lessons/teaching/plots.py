"""Figures: one style for all lessons, and the drawings that more than one cell needs.

Colours are those of Okabe & Ito (2008), told apart by colour-blind readers; every figure carries a text for readers
who see none. Leaves out: drawings of the network (``diagrams.py``).
"""

from __future__ import annotations

import io

import matplotlib.pyplot as plt
from IPython.display import Image
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
)
STYLE = {
    "figure.figsize": (7.5, 3.5),
    "figure.dpi": 96,
    "figure.facecolor": "white",  # readable in JupyterLab's dark theme too
    "font.size": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, GREEN, RED, PURPLE, SKY]),
    "grid.alpha": 0.3,
    "image.cmap": "gray",
}


def png(figure: Figure, trimmed: bool = True) -> bytes:
    """``figure`` as a PNG file; the figure is closed. To trim it, so that no label is cut off, takes twice as long."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight" if trimmed else None)
    plt.close(figure)
    return buffer.getvalue()


def show_figure(figure: Figure, alt: str) -> Image:
    """``figure`` for a notebook, with ``alt``, the sentence that tells what it shows."""
    return Image(png(figure), format="png", alt=alt)


def new_figure(rows: int = 1, columns: int = 1, size: tuple[float, float] = (7.5, 3.5)):
    """``plt.subplots`` in the style of the course: (figure, axes); ``size`` in inches."""
    with plt.rc_context(STYLE):
        return plt.subplots(rows, columns, figsize=size, layout="constrained")
