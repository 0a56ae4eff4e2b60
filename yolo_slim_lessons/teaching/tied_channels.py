"""Drawings of channels that hang together: who makes and reads them, and what one channel takes with it.

Both are drawn from what ``channel_groups`` writes down, and know no layer by name. Used in lesson 04. Leaves out: the
order of blocks and the sizes of maps, which ``diagrams.py`` draws.
"""

from __future__ import annotations

import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.models import weight_layers
from yolo_slim_lessons.pruning.channels import ChannelGroup, channel_groups
from yolo_slim_lessons.teaching import plots
from yolo_slim_lessons.teaching.diagrams import GREY, shapes_of

COLORS = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PURPLE, plots.RED, plots.SKY)
COLUMN, LINE = 1.45, 0.34  # inches: from layer to layer, and a line of text
LABEL = 3.3  # inches left of the first layer, for the words


def draw_tied_channels(model: ClassificationModel, *blocks: str) -> Figure:
    """Which layers make, and which read, the channels that pass through some blocks: a row for each group.

    A filled box makes channels (rows of a weight, and BatchNorm's numbers for them), an empty box reads them (columns
    of a weight). The numbers say which, as in ``ChannelGroup``.

    Args:
        model: an unfused classifier, pruned or not.
        blocks: names as in ``model.named_modules()``, such as ``"model.4"``.

    Raises:
        ValueError: no group passes through ``blocks``.

    Example:
        >>> figure = draw_tied_channels(slim.load_model("nano"), "model.1", "model.2", "model.3")
    """
    rows = [group for group in channel_groups(model) if any(_inside(layer, blocks) for layer in _layers_of(group))]
    if not rows:
        raise ValueError(f"blocks={blocks!r}: no channels pass through, expected names such as 'model.4'")
    touched = {layer for group in rows for layer in _layers_of(group)}
    columns = {
        layer: COLUMN * place for place, layer in enumerate(name for name in shapes_of(model) if name in touched)
    }
    heights = [LINE * max(2.4, 1.3 + 0.6 * len(_words(group)), 1 + 0.8 * _most_parts(group)) for group in rows]
    right, bottom = max(columns.values()) + COLUMN / 2, -sum(heights)
    legend = "filled: makes the channels · empty: reads them · a row goes as one · an arrow on the left: equally many"
    legend = textwrap.wrap(legend, round(15 * (LABEL + right)))  # letters an inch
    below = 0.3 + 0.16 * len(legend)
    figure, axes = plots.new_figure(size=(LABEL + 0.1 + right, 0.55 - bottom + below))
    figure.set_layout_engine("none")  # one unit is one inch, so that words and boxes keep their distance
    axes.set(position=(0, 0, 1, 1), xlim=(-LABEL - 0.1, right), ylim=(bottom - below, 0.55))
    axes.axis("off")
    for layer, x in columns.items():
        band = Rectangle((x - 0.45 * COLUMN, bottom), 0.9 * COLUMN, -bottom, facecolor=GREY, alpha=0.1)
        axes.add_patch(band)
        axes.text(x, 0.08, _short(layer), ha="center", va="bottom", fontsize=8.5)
    centers, top = {}, 0.0
    for number, (group, height) in enumerate(zip(rows, heights, strict=True)):
        centers[group.name] = top - height / 2
        _draw_group(axes, group, columns, centers[group.name], COLORS[number % len(COLORS)])
        top -= height
    for group in rows:
        if group.same_size_as in centers and centers[group.name] > centers[group.same_size_as]:
            ends = (centers[group.name], centers[group.same_size_as])
            axes.annotate("", *((-LABEL - 0.02, y) for y in ends), arrowprops={"arrowstyle": "<->", "color": GREY})
    axes.text(-LABEL, bottom - 0.15, "\n".join(legend), fontsize=8.5, color=GREY, va="top")
    return figure


def draw_channel(model: ClassificationModel, group: ChannelGroup, number: int) -> Figure:
    """The weights that go with one channel: a matrix (outputs × inputs) for every layer that makes or reads it.

    Dark squares are kernels of large norm. Red rows make the channel, and red columns read it; a row takes along
    BatchNorm's numbers, the strip to the right of the matrix.

    Args:
        model: the model that ``group`` is of.
        group: one of ``channel_groups(model)``.
        number: of the channel, 0 ≤ number < group.size.

    Raises:
        ValueError: ``number`` is none of the group's channels.
    """
    if not 0 <= number < group.size:
        raise ValueError(f"number={number!r}: expected 0 to {group.size - 1}, the channels of {group.name}")
    layers = {name: layer for name, layer in weight_layers(model) if name in _layers_of(group)}
    ordered = [name for name in shapes_of(model) if name in layers]
    unit = max(layer.weight.shape[0] for layer in layers.values()) / 64  # a 64th of the height, for gaps and strips
    width = sum(layers[name].weight.shape[1] + 14 * unit for name in ordered)
    scale = min(9.5 / width, 3 / (86 * unit))  # inches a channel
    figure, axes = plots.new_figure(size=(scale * (width + 2 * unit), scale * 86 * unit))
    axes.set(xlim=(-2 * unit, width), ylim=(70 * unit, -16 * unit), aspect="equal")  # row 0 is on top
    axes.axis("off")
    left = 0.0
    for name in ordered:
        _draw_matrix(axes, left, layers[name], unit)
        outputs, inputs = layers[name].weight.shape[:2]
        title = f"{_short(name)}\n{outputs:,} × {inputs:,}"
        axes.text(left + inputs / 2, -3 * unit, title, ha="center", va="bottom", fontsize=8.5)
        line = {"facecolor": plots.RED, "edgecolor": plots.RED, "linewidth": 1}
        for part in group.producers:
            if part.layer == name:
                axes.add_patch(Rectangle((left, part.start + number), inputs + 5 * unit, 1, **line))
        for part in group.consumers:
            if part.layer == name:
                axes.add_patch(Rectangle((left + part.start + number, 0), 1, outputs, **line))
        left += inputs + 14 * unit
    return figure


def _draw_matrix(axes: Axes, left: float, layer: nn.Module, unit: float) -> None:
    outputs, inputs = layer.weight.shape[:2]
    norms = layer.weight.detach().reshape(outputs, inputs, -1).norm(dim=2)
    axes.imshow(
        norms.numpy(),
        cmap="Greys",
        vmax=2 * norms.quantile(0.95).item(),
        extent=(left, left + inputs, outputs, 0),
        interpolation="nearest",
    )
    axes.add_patch(Rectangle((left, 0), inputs, outputs, fill=False, edgecolor=GREY, linewidth=0.8))
    if isinstance(layer, nn.Conv2d):
        strip = Rectangle((left + inputs + 2 * unit, 0), 3 * unit, outputs, facecolor=plots.YELLOW, edgecolor=GREY)
        axes.add_patch(strip)


def _draw_group(axes: Axes, group: ChannelGroup, columns: dict[str, float], y: float, color: str) -> None:
    boxes = _boxes(group)
    ends = [columns[layer] for layer, *_ in boxes]
    axes.plot([min(ends), max(ends)], [y, y], color=color, linewidth=2)
    for layer, makes, texts in boxes:
        width, height = 0.72 * COLUMN, LINE * (0.5 + 0.8 * len(texts))
        face, ink = (color, "white") if makes else ("white", "black")
        corner = (columns[layer] - width / 2, y - height / 2)
        axes.add_patch(Rectangle(corner, width, height, facecolor=face, edgecolor=color, linewidth=2, zorder=3))
        axes.text(columns[layer], y, "\n".join(texts), color=ink, ha="center", va="center", fontsize=8.5, zorder=4)
    words = _words(group)
    title = f"{group.size:,} channels" + ("" if group.prunable else ", all kept")
    base = y + LINE * 0.3 * len(words)
    axes.text(-LABEL + 0.1, base, title, color=color, fontsize=9.5, weight="bold", va="bottom")
    axes.text(-LABEL + 0.1, base - 0.02, "\n".join(words), fontsize=8.5, va="top")


def _boxes(group: ChannelGroup) -> list[tuple[str, bool, list[str]]]:
    """(layer, whether it makes the channels, which ones: a text for each part) for every box of a row."""
    boxes: dict[tuple[str, bool], list[str]] = {}
    for makes, parts in ((True, group.producers), (False, group.consumers)):
        for part in parts:
            boxes.setdefault((part.layer, makes), []).append(f"{part.start} : {part.stop}")
    return [(layer, makes, texts) for (layer, makes), texts in boxes.items()]


def _most_parts(group: ChannelGroup) -> int:
    return max(len(texts) for *_, texts in _boxes(group))


def _words(group: ChannelGroup) -> list[str]:
    return [line for reason in group.why.split("; ") for line in textwrap.wrap(reason, 36)]


def _layers_of(group: ChannelGroup) -> set[str]:
    return {part.layer for part in (*group.producers, *group.consumers)}


def _inside(layer: str, blocks: tuple[str, ...]) -> bool:
    return any(layer == block or layer.startswith(f"{block}.") for block in blocks)


def _short(layer: str) -> str:
    """``model.4.m.0.cv2.conv`` as the ``model.4`` and ``m.0.cv2`` that its drawing has room for."""
    words = layer.removesuffix(".conv").split(".")
    return f"{'.'.join(words[:2])}\n{'.'.join(words[2:])}".strip()
