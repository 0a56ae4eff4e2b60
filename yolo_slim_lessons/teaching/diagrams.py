"""Drawings of the network: the whole as a row of blocks, and two blocks opened up.

Every number in a drawing is taken from the graph of the model itself. Pruned and widened models therefore draw as what
they have become. Used in lesson 01 and wherever a lesson shows what became of the layers. Leaves out: other networks
than YOLOv8-cls, and scale: heights grow with the square root of a map's side and widths with the logarithm of its
channels, or the ends would not fit on one page.
"""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from torch import nn

from yolo_slim_lessons.graph import trace
from yolo_slim_lessons.pruning.blocks import stacked_blocks
from yolo_slim_lessons.teaching import plots

COLORS = {"Conv": plots.BLUE, "C2f": plots.ORANGE, "Classify": plots.GREEN}
GREY = "#777777"
PLUS = {"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": plots.RED}
INCHES_PER_UNIT = 0.3
CONV_WIDTH = 2.8
Shape = tuple[int, ...]


def draw_network(model: nn.Module, image_size: int | None = None) -> Figure:
    """The whole network as a row of boxes: each block's kind and number, and the maps it hands on.

    Args:
        model: a YOLOv8 classifier.
        image_size: pixels a side of the image that goes in; defaults to what the model was trained for.

    Example:
        >>> figure = draw_network(slim.load_model("nano"))
    """
    shapes = shapes_of(model, image_size)
    steps = [("", "image", shapes["model.0"][0])]
    for index, block in enumerate(model.model):
        steps.append((str(index), type(block).__name__, shapes[f"model.{index}"][1]))
    pitch, top = 3.4, 1.25 * _height(steps[0][2])
    figure, axes = _canvas((-1.9, pitch * len(steps) - 1.5), (-4.2, top + 0.3))
    for position, (index, kind, shape) in enumerate(steps):
        center, color = position * pitch, COLORS.get(kind, GREY)
        side = _height(shape)
        _solid(axes, center, 0.25 * math.log2(shape[0]), side, color)
        axes.text(center, 1.25 * side + 0.4, index, ha="center", fontsize=9, color=GREY)
        axes.text(center, -0.5, _product(shape), ha="center", va="top", fontsize=8.5)
        axes.text(center, -1.8, kind, ha="center", va="top", color=color, fontsize=10, weight="bold")
        if position:
            _arrow(axes, (center - pitch + 1.3, 0.3), (center - 1.3, 0.3))
    caption = "number and kind of each block, and the channels × height × width that it hands on"
    axes.text(-1.7, -4.1, caption, color=GREY, fontsize=9)
    return figure


def draw_c2f(model: nn.Module, name: str, image_size: int | None = None) -> Figure:
    """A C2f block opened up: 1×1 convolution, split, bottlenecks with their shortcuts, concatenation, 1×1 convolution.

    Args:
        model: a YOLOv8 classifier.
        name: which of its C2f blocks, as in ``model.named_modules()``, such as ``"model.4"``.
        image_size: as for ``draw_network``.

    Raises:
        ValueError: ``name`` is no C2f block of ``model``.
    """
    blocks = stacked_blocks(model)
    if name not in blocks:
        raise ValueError(f"name={name!r}: expected one of {list(blocks)}, the C2f blocks of this model")
    block, shapes = blocks[name], shapes_of(model, image_size)
    passed, joined = shapes[f"{name}.m.0"][0], shapes[f"{name}.cv2"][0]
    made = [shapes[f"{name}.m.{number}"][1] for number in range(len(block.m))]
    kept = (joined[0] - passed[0] - sum(shape[0] for shape in made), *passed[1:])  # the half that no bottleneck changes
    lanes = [kept, passed, *made]
    step, pitch, split = 2.3, 9.3, 8.3  # between lanes; between bottlenecks; where the split stands
    concat, bottom = split + 4.9 + pitch * len(made), -step * (len(lanes) - 1)
    figure, axes = _canvas((-3.6, concat + 10.4), (bottom - 2.2, 1.7))

    _arrow(axes, (-3.4, 0), (0, 0), _product(shapes[name][0]))
    _labelled_box(axes, 0, 0, CONV_WIDTH, _convolution(block.cv1), plots.BLUE)
    _arrow(axes, (CONV_WIDTH, 0), (split - 0.3, 0), _product(shapes[f"{name}.cv1"][1]))
    _bar(axes, split, -step, "split")
    for lane, shape in enumerate(lanes):
        start = split + 0.3 if lane < 2 else split + 1.6 + pitch * (lane - 2)
        _arrow(axes, (start, -step * lane), (concat - 0.3, -step * lane))
        axes.text(concat - 0.9, -step * lane + 0.15, _product(shape), ha="right", fontsize=8.5)
    for number, bottleneck in enumerate(block.m):
        left, y = split + 1.6 + pitch * number, -step * (number + 2)
        axes.plot([left, left], [y + step, y], color=GREY, linewidth=1)
        _labelled_box(axes, left + 0.9, y, CONV_WIDTH, _convolution(bottleneck.cv1), plots.ORANGE)
        _labelled_box(axes, left + 4.5, y, CONV_WIDTH, _convolution(bottleneck.cv2), plots.ORANGE)
        if bottleneck.add:
            axes.plot([left, left, left + 8.3], [y, y - 1.3, y - 1.3], color=plots.RED, linewidth=1.5)
            _arrow(axes, (left + 8.3, y - 1.3), (left + 8.3, y - 0.4), color=plots.RED)
            axes.text(left + 8.3, y, "+", ha="center", va="center", weight="bold", bbox=PLUS)
            axes.text(left + 4.2, y - 1.4, "shortcut", ha="center", va="top", color=plots.RED, fontsize=9)
    _bar(axes, concat, bottom, "concat")
    _arrow(axes, (concat + 0.3, 0), (concat + 4, 0), _product(joined))
    _labelled_box(axes, concat + 4, 0, CONV_WIDTH, _convolution(block.cv2), plots.BLUE)
    _arrow(axes, (concat + 6.8, 0), (concat + 10.2, 0), _product(shapes[name][1]))
    return figure


def draw_classify(model: nn.Module, image_size: int | None = None) -> Figure:
    """The Classify head opened up: convolution, mean over all positions, linear layer, softmax."""
    index = len(model.model) - 1
    head, name, shapes = model.model[index], f"model.{index}", shapes_of(model, image_size)
    steps = [
        (_convolution(head.conv), plots.BLUE, shapes[f"{name}.conv"][0]),
        ("pool:\nmean of each map", GREY, shapes[f"{name}.pool"][0]),
        ("linear", plots.GREEN, shapes[f"{name}.linear"][0]),
        ("softmax", GREY, shapes[f"{name}.linear"][1]),
    ]
    width, pitch = 5.2, 8.9
    figure, axes = _canvas((-3.7, pitch * len(steps) + 0.1), (-1.0, 1.7))
    for number, (title, color, shape) in enumerate(steps):
        left = pitch * number
        _arrow(axes, (left - pitch + width, 0) if number else (-3.5, 0), (left, 0), _product(shape))
        _labelled_box(axes, left, 0, width, title, color)
    _arrow(axes, (left + width, 0), (left + pitch, 0), _product(shape))
    return figure


def shapes_of(model: nn.Module, image_size: int | None = None) -> dict[str, tuple[Shape, Shape]]:
    """What goes into every block and layer and what comes out, for one image: name → (shape in, shape out).

    Shapes are (channels, height, width), or (features,) where no picture is left. Names come in the order in which the
    blocks and layers are reached.
    """
    graph = trace(model, image_size)
    shapes: dict[str, tuple[Shape, Shape]] = {}
    for node in graph.nodes[1:]:
        words = node.name.split(".")
        for length in range(1, len(words) + 1):
            name = ".".join(words[:length])
            first, _ = shapes.get(name, (graph.nodes[node.inputs[0]].shape, None))
            shapes[name] = first, node.shape
    return shapes


def _product(shape: Shape) -> str:
    return " × ".join(f"{number:,}" for number in shape)


def _height(shape: Shape) -> float:
    """On paper; class scores, which have no height and no width, are drawn as one position."""
    return 0.75 * math.sqrt(shape[1]) if len(shape) == 3 else 0.75


def _convolution(module: nn.Module) -> str:
    height, width = module.conv.kernel_size
    return f"Conv {height}×{width}"


def _canvas(x_limits: tuple[float, float], y_limits: tuple[float, float]):
    """An empty drawing in which a unit is as long on every page, across and up."""
    size = tuple(INCHES_PER_UNIT * (high - low) for low, high in (x_limits, y_limits))
    figure, axes = plots.new_figure(size=size)
    axes.set(xlim=x_limits, ylim=y_limits)
    axes.axis("off")
    return figure, axes


def _solid(axes: Axes, center: float, width: float, side: float, color: str) -> None:
    """A solid seen from the front, a little from the right and from above."""
    left, right, slant = center - width / 2, center + width / 2, 0.25 * side
    x, y = 0.3 * slant, slant
    faces = (
        ([(left, 0), (right, 0), (right, side), (left, side)], 0.9),
        ([(left, side), (right, side), (right + x, side + y), (left + x, side + y)], 0.5),
        ([(right, 0), (right + x, y), (right + x, side + y), (right, side)], 0.7),
    )
    for corners, alpha in faces:
        axes.add_patch(Polygon(corners, facecolor=color, alpha=alpha, edgecolor="white", linewidth=0.5))


def _labelled_box(axes: Axes, left: float, y: float, width: float, text: str, color: str) -> None:
    corner, above = (left, y - 0.75), 3  # the arrow that passes behind is hidden by a white box
    axes.add_patch(Rectangle(corner, width, 1.5, facecolor="white", zorder=above))
    axes.add_patch(Rectangle(corner, width, 1.5, facecolor=color, alpha=0.25, edgecolor=color, zorder=above))
    axes.text(left + width / 2, y, text, ha="center", va="center", fontsize=9, zorder=above)


def _bar(axes: Axes, x: float, bottom: float, text: str) -> None:
    axes.add_patch(Rectangle((x - 0.3, bottom - 0.6), 0.6, 1.2 - bottom, color=GREY))
    axes.text(x, 0.8, text, ha="center", color=GREY, fontsize=9)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "", color: str = GREY) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "shrinkA": 0, "shrinkB": 0})
    if text:
        axes.text((start[0] + end[0]) / 2, start[1] + 0.15, text, ha="center", fontsize=8.5)
