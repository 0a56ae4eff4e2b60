"""What a quantized model does, as a list of operations on pictures of bytes. Used in lesson 13.

A walk over the graph. Where the graph splits and concatenates, nothing is left to do: a part of a wider picture is
written and read in its place, wherever that is possible. Leaves out: where the pictures lie in memory (``memory``), and
attention, part of which the integer execution computes with floats.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from yolo_slim_lessons.graph import Graph, Node, Walk
from yolo_slim_lessons.quantization import IntegerGrid, QuantizedActivation, QuantizedLayer, QuantizedModel


@dataclass(eq=False)
class Picture:
    """Height × width pixels of so many channels, a byte each; it may be a part of a wider one, its ``whole``."""

    name: str
    height: int
    width: int
    channels: int
    whole: Picture | None = None
    start: int = 0  # its first channel there

    @property
    def root(self) -> Picture:
        return self if self.whole is None else self.whole.root

    @property
    def place(self) -> int:
        """Its first channel in ``root``."""
        return 0 if self.whole is None else self.start + self.whole.place


@dataclass(frozen=True, eq=False)
class Part:
    """Some neighbouring channels of a picture, and the grid on which their bytes lie."""

    picture: Picture
    start: int
    channels: int
    grid: IntegerGrid

    @property
    def is_all(self) -> bool:
        return self.channels == self.picture.channels


@dataclass(frozen=True, eq=False)
class Operation:
    """One call in the C file.

    Attributes:
        name: of the node.
        reads: one part, or two summands.
        writes: what it makes; ``None`` for the logits.
        layer: with the weights, of a convolution or linear layer.
        activation: behind a convolution.
    """

    name: str
    reads: tuple[Part, ...]
    writes: Part | None
    layer: QuantizedLayer | None = None
    activation: QuantizedActivation | None = None


class Convolve(Operation):
    """Multiply, add, rescale, and apply the activation function."""


class Add(Operation):
    """Add two pictures that lie on one grid."""


class Average(Operation):
    """The mean over all pixels, moved to the grid of the layer which reads it."""


class Copy(Operation):
    """Move channels that are part of two wider pictures to the second one."""


class Classify(Operation):
    """The last layer: its sums are the logits."""


@dataclass(frozen=True)
class _Sums:
    """What a convolution computed, before the activation function."""

    node: Node
    x: Part


@dataclass(frozen=True)
class _Mean:
    """An average that is put on a grid where it is read."""

    node: Node
    x: Part


def operations_of(model: QuantizedModel, graph: Graph) -> list[Operation]:
    """All that ``model`` does, in order; the picture read first is the image.

    Raises:
        TypeError: a part of the model is not understood (named, with its place).
    """
    walk = _Operations(model)
    walk.run(graph, walk.image(graph))
    return walk.operations


@dataclass
class _Operations(Walk):
    model: QuantizedModel
    operations: list[Operation] = field(default_factory=list)

    def image(self, graph: Graph) -> Part:
        channels, height, width = graph.nodes[0].shape
        grid = next(module.input_grid for module in self.model.modules() if isinstance(module, QuantizedLayer))
        return Part(Picture("image", height, width, channels), 0, channels, grid)

    def visit(self, node: Node, *values: object) -> object:
        if node.kind in ("scale", "matmul", "softmax", "transpose") or node.kind == "reshape" and len(node.shape) > 1:
            raise TypeError(
                f"{node.name}: a {node.kind} of activations is a part of attention, which the integer execution "
                "computes with floats in between; C without floats has none: expected a network without attention, "
                "such as yolov8-cls. export_onnx takes this one"
            )
        pending = {"activation": _Sums, "reshape": Part | _Mean, "dropout": Part | _Mean}
        pending |= dict.fromkeys(("conv", "linear"), Part | _Mean)
        for value in values:
            if not isinstance(value, pending.get(node.kind, Part)):
                raise TypeError(f"{node.name} reads what lies on no grid of bytes, which is not understood")
        return super().visit(node, *values)

    def conv(self, node: Node, x: Part | _Mean) -> _Sums:
        return _Sums(node, self.on_grid(node, x))

    def activation(self, node: Node, x: _Sums) -> Part:
        activation = self.model.get_submodule(node.name)
        made = new_part(node, activation.output_grid)
        layer = self.model.get_submodule(x.node.name)
        self.operations.append(Convolve(x.node.name, (x.x,), made, layer, activation))
        return made

    def sum(self, node: Node, first: Part, second: Part) -> Part:
        grid = self.model.get_submodule(node.name).output_grid
        made = new_part(node, grid)
        for x in (first, second):
            check_same_grid(node, x.grid, grid)
        self.operations.append(Add(node.name, (first, second), made))
        return made

    def concat(self, node: Node, *parts: Part) -> Part:
        if node.settings["axis"] != 1:
            raise TypeError(f"{node.name} joins axis {node.settings['axis']}: only channels, axis 1, are understood")
        for part in parts:
            check_same_grid(node, part.grid, parts[0].grid)
        joined = _neighbours_joined(parts)
        if len(joined) == 1:
            return joined[0]
        made = new_part(node, parts[0].grid)
        start = 0
        for part in joined:
            if part.is_all and part.picture.whole is None and part.picture.name != "image":
                part.picture.whole, part.picture.start = made.picture, start
            else:
                target = Part(made.picture, start, part.channels, made.grid)
                self.operations.append(Copy(f"{node.name}.copy_{start}", (part,), target))
            start += part.channels
        return made

    def split(self, node: Node, x: Part) -> Part:
        if node.settings["axis"] != 1:
            raise TypeError(f"{node.name} splits axis {node.settings['axis']}: only channels, axis 1, are understood")
        start, stop = node.settings["start"], node.settings["stop"]
        return Part(x.picture, x.start + start, stop - start, x.grid)

    def pool(self, node: Node, x: Part) -> _Mean:
        return _Mean(node, x)

    def reshape(self, node: Node, x: Part | _Mean) -> Part | _Mean:
        if isinstance(x, Part) and x.picture.height * x.picture.width > 1:
            raise TypeError(f"{node.name} makes a row of several pixels, which is not understood: average them first")
        return x

    def dropout(self, node: Node, x: Part | _Mean) -> Part | _Mean:
        return x

    def linear(self, node: Node, x: Part | _Mean) -> None:
        self.operations.append(Classify(node.name, (self.on_grid(node, x),), None, self.model.get_submodule(node.name)))

    def on_grid(self, node: Node, x: Part | _Mean) -> Part:
        """``x`` on the grid of the layer which reads it."""
        grid = self.model.get_submodule(node.name).input_grid
        if isinstance(x, _Mean):
            made = new_part(x.node, grid)
            self.operations.append(Average(x.node.name, (x.x,), made))
            return made
        check_same_grid(node, x.grid, grid)
        return x


def new_part(node: Node, grid: IntegerGrid) -> Part:
    """All of a new picture, the result of ``node``."""
    channels, height, width = node.shape
    return Part(Picture(node.name, height, width, channels), 0, channels, grid)


def check_same_grid(node: Node, grid: IntegerGrid, expected: IntegerGrid) -> None:
    """Raise ``TypeError`` unless bytes of both grids mean the same."""
    same = grid.bits == expected.bits and grid.scale.equal(expected.scale)
    if not (same and grid.zero_point.equal(expected.zero_point)):
        raise TypeError(f"{node.name} reads bytes of another grid, which is not understood")


def _neighbours_joined(parts: tuple[Part, ...]) -> list[Part]:
    """``parts``, with those joined that lie side by side in one picture, as a split leaves them."""
    joined = [parts[0]]
    for part in parts[1:]:
        last = joined[-1]
        if part.picture is last.picture and part.start == last.start + last.channels:
            joined[-1] = Part(last.picture, last.start, last.channels + part.channels, last.grid)
        else:
            joined.append(part)
    return joined
