"""The network as a graph of few kinds of nodes, found by tracing its real forward pass. Used by all of the package.

``trace`` sends an image without content through the network and writes down what is computed from what. Whatever needs
the structure, such as channel pruning, integer execution or the writer of ONNX files, is a ``Walk`` over the result: a
class with one method for each kind of node. No other module knows how a block of Ultralytics looks inside.

The kinds: ``image``; the layers ``conv``, ``norm``, ``activation``, ``pool``, ``dropout``, ``linear``; what is done
between them, ``sum``, ``concat``, ``split``, ``reshape``, ``transpose``; and what attention adds, ``scale``,
``matmul``, ``softmax``. Leaves out: everything else, which is refused by its name and its place; and tensors whose
first dimension is not the image.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.models import blank_images, logits

LAYERS = {
    nn.Conv2d: "conv",
    nn.BatchNorm2d: "norm",
    nn.Linear: "linear",
    nn.AdaptiveAvgPool2d: "pool",
    nn.Dropout: "dropout",
}
# Names of functions, as methods of tensors or of torch, by the kind of node that they make.
FUNCTIONS = {
    "add": "sum",
    "__add__": "sum",
    "__radd__": "sum",
    "__iadd__": "sum",
    "add_": "sum",
    "cat": "concat",
    "concat": "concat",
    "chunk": "split",
    "split": "split",
    "split_with_sizes": "split",
    "view": "reshape",
    "reshape": "reshape",
    "flatten": "reshape",
    "transpose": "transpose",
    "permute": "transpose",
    "mul": "scale",
    "__mul__": "scale",
    "__rmul__": "scale",
    "matmul": "matmul",
    "__matmul__": "matmul",
    "softmax": "softmax",
}
SAME_NUMBERS = {"contiguous", "clone", "detach", "to", "float", "half", "double", "type"}


@dataclass(frozen=True)
class Node:
    """One step of the computation.

    Attributes:
        name: of the layer, as in ``model.named_modules()``; of anything else, the block in which it happens and the
            kind, such as ``"model.2.m.0.sum"``, from the second one on with a number behind it.
        kind: one of those in the description of this module.
        inputs: positions of the nodes that are read, in ``Graph.nodes``.
        shape: of the result for one image: channels, height, width, or whatever a reshape made of these.
        settings: what else the step needs. A split has ``axis``, ``start``, ``stop`` and ``sizes`` (of all its pieces;
            each piece is a node); a concat ``axis``; a reshape ``counted``, whether the code says the sizes; a
            transpose ``order`` (of all dimensions, the image's too); a scale ``factor``; a softmax ``axis``. Axes
            count the image's dimension.
    """

    name: str
    kind: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    settings: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def place(self) -> str:
        """The block in which the step happens; of a layer, the block that it belongs to."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True, eq=False)
class Graph:
    """All steps from the image to the scores of the classes, in the order in which they are computed.

    Attributes:
        nodes: the first is the image.
        output: position of the node whose result are the logits.
    """

    nodes: tuple[Node, ...]
    output: int

    def __deepcopy__(self, memo: dict) -> Graph:
        return self  # nothing in it ever changes

    def __getitem__(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def readers(self) -> list[list[int]]:
        """For each node the positions of those that read it."""
        readers: list[list[int]] = [[] for _ in self.nodes]
        for position, node in enumerate(self.nodes):
            for read in node.inputs:
                readers[read].append(position)
        return readers

    def behind(self, layer: str) -> tuple[str | None, str | None]:
        """Names of the norm and of the activation right behind a convolution; ``None`` for what is not there."""
        readers = self.readers()
        position = next(number for number, node in enumerate(self.nodes) if node.name == layer)
        found: dict[str, str] = {}
        while len(readers[position]) == 1:
            position = readers[position][0]
            kind = self.nodes[position].kind
            if kind not in ("norm", "activation") or kind in found:
                break
            found[kind] = self.nodes[position].name
        return found.get("norm"), found.get("activation")

    def maker(self, position: int) -> Node:
        """The convolution or linear layer whose output a node passes on, through norms, activations and the like."""
        node = self.nodes[position]
        while node.kind not in ("conv", "linear", "image"):
            node = self.nodes[node.inputs[0]]
        return node

    def blocks(self) -> Iterator[tuple[str, range]]:
        """The parts of the network by their first number, as (name, positions of their nodes), without the image.

        ``"model.2"`` for what belongs to ``model.2.m.0.cv1.conv``; ``"2"`` in a mere ``nn.Sequential``.
        """
        start = 1
        for stop in range(2, len(self.nodes) + 1):
            here = _numbered(self.nodes[stop - 1].name)
            if stop == len(self.nodes) or _numbered(self.nodes[stop].name) != here:
                yield here, range(start, stop)
                start = stop


class Walk:
    """A pass over a graph: for each node, the method with the name of its kind makes a value of those of its inputs.

    Subclasses write ``def conv(self, node, x): …`` and so on. ``image`` gets no value but what ``run`` was given.
    """

    def run(self, graph: Graph, image: object) -> object:
        """The value of the logits, from that of the image. A value is let go when nobody reads it any more."""
        values: dict[int, object] = {0: image}
        last_read = {read: position for position, node in enumerate(graph.nodes) for read in node.inputs}
        for position, node in enumerate(graph.nodes):
            if position:
                values[position] = self.visit(node, *(values[read] for read in node.inputs))
            for read in {position, *node.inputs}:
                if last_read.get(read, position) <= position and read != graph.output:
                    values.pop(read, None)
            if position == graph.output:
                return values[position]
        raise AssertionError("a graph ends at its output")

    def visit(self, node: Node, *values: object) -> object:
        """The value of ``node``."""
        method = getattr(self, node.kind, None)
        if method is None:
            raise TypeError(f"{node.name}: {type(self).__name__} does not understand a {node.kind}")
        return method(node, *values)


class Execution(Walk):
    """The computation itself: each layer is called, each step between layers done with tensors of any number of images.

    Args:
        model: what the graph was traced from, or a copy of it with other layers under the same names.
    """

    def __init__(self, model: nn.Module):
        self.modules = dict(model.named_modules(remove_duplicate=False))

    def layer(self, node: Node, x: torch.Tensor) -> torch.Tensor:
        return self.modules[node.name](x)

    conv = norm = activation = pool = dropout = linear = layer

    def sum(self, node: Node, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return first + second

    def concat(self, node: Node, *parts: torch.Tensor) -> torch.Tensor:
        return torch.cat(parts, node.settings["axis"])

    def split(self, node: Node, x: torch.Tensor) -> torch.Tensor:
        start, stop = node.settings["start"], node.settings["stop"]
        return x.narrow(node.settings["axis"], start, stop - start)

    def reshape(self, node: Node, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(len(x), *node.shape)

    def transpose(self, node: Node, x: torch.Tensor) -> torch.Tensor:
        return x.permute(node.settings["order"])

    def scale(self, node: Node, x: torch.Tensor) -> torch.Tensor:
        return x * node.settings["factor"]

    def matmul(self, node: Node, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return first @ second

    def softmax(self, node: Node, x: torch.Tensor) -> torch.Tensor:
        return x.softmax(node.settings["axis"])


def trace(model: nn.Module, image_size: int | tuple[int, int] | None = None) -> Graph:
    """The graph of ``model``, found by sending an image through that has a shape and no content.

    Args:
        model: a classifier of Ultralytics, pruned or not, or any network made of the kinds of nodes above; it is left
            alone. Its layers may be replaced by others with the same shapes of input and output.
        image_size: pixels a side, or height and width; ``None`` takes what the model was trained for.

    Raises:
        TypeError: something in the network is not understood; it is named with its place.
        ValueError: ``image_size`` is needed.

    Example:
        >>> import yolo_slim_lessons as slim
        >>> graph = trace(slim.load_model("nano"))
        >>> print(len(graph.nodes), [node.name for node in graph.nodes if node.kind == "sum"][0])
        105 model.2.m.0.sum
    """
    shadow = _without_content(model)
    recorder = _Recorder(shadow)
    height, width = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    image = blank_images(shadow, height)
    if height != width:
        image = image.new_zeros(1, image.shape[1], height, width)
    recorder.note(image, "image", "image", ())
    # The real forward pass of a classifier, even where one of this package does the same by its graph.
    forward = shadow._predict_once if isinstance(shadow, ClassificationModel) else shadow
    with torch.no_grad(), recorder:
        scores = logits(forward, image)
    return Graph(tuple(recorder.nodes), recorder.position(scores, "the output"))


def _without_content(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose tensors have shapes and no memory, and without hooks."""
    empty = {id(tensor): nn.Parameter(tensor.to("meta"), requires_grad=False) for tensor in model.parameters()}
    empty |= {id(tensor): tensor.to("meta") for tensor in model.buffers()}
    shadow = copy.deepcopy(model, empty).eval()
    for module in shadow.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        if isinstance(module, nn.BatchNorm2d):
            module.forward = torch.empty_like  # its result has the shape of what it reads; much quicker so
    return shadow


class _Recorder(TorchFunctionMode):
    """Writes down which layer and which function made each tensor, while the forward pass runs."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.nodes: list[Node] = []
        self.positions: dict[int, int] = {}  # by the id of a tensor
        self.kept: list[torch.Tensor] = []  # so that no id is given away twice
        self.used_names: dict[str, int] = {}
        self.stack: list[tuple[str, nn.Module]] = [("", model)]
        self.names: dict[nn.Module, list[str]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            self.names.setdefault(module, []).append(name)
        for module in self.names.keys() - {model}:
            module.register_forward_pre_hook(self._enter)
            module.register_forward_hook(self._leave)

    def note(self, result: torch.Tensor, kind: str, name: str, inputs: tuple[int, ...], **settings) -> None:
        self.positions[id(result)] = len(self.nodes)
        self.kept.append(result)
        self.nodes.append(Node(name, kind, inputs, tuple(result.shape[1:]), MappingProxyType(settings)))

    def position(self, tensor: object, place: str) -> int:
        if id(tensor) not in self.positions:
            raise TypeError(
                f"{place} reads something that was not computed from the image: such networks are not known"
            )
        return self.positions[id(tensor)]

    def _enter(self, module: nn.Module, inputs: tuple) -> None:
        # By the block that calls it, for Ultralytics lets many blocks share one activation function.
        inside = self.stack[-1][0]
        names = [name for name in self.names[module] if not inside or name.startswith(f"{inside}.")]
        self.stack.append((min(names or self.names[module], key=len), module))

    def _leave(self, module: nn.Module, inputs: tuple, result: object) -> None:
        name, _ = self.stack.pop()
        if _is_layer(module) and not _is_layer(self.stack[-1][1]):
            kind = _kind(module)
            if kind is None:
                raise TypeError(f"{name} is a {type(module).__name__}, which is not understood")
            if kind != "nothing":
                self.note(result, kind, name, (self.position(inputs[0], name),))

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        path, module = self.stack[-1]
        made = [result] if isinstance(result, torch.Tensor) else result if isinstance(result, tuple | list) else []
        if _is_layer(module) or not any(isinstance(tensor, torch.Tensor) for tensor in made):
            return result
        name = function.__name__
        read = [each for each in (*arguments, *(keywords or {}).values()) for each in _flat(each)]
        inputs = tuple(self.positions[id(each)] for each in read if id(each) in self.positions)
        if name in SAME_NUMBERS and len(inputs) == 1:
            self.positions[id(result)] = inputs[0]
            self.kept.append(result)
        elif inputs:
            self._function(path, name, made, inputs, read, arguments, keywords or {})
        return result

    def _function(self, path, name, made, inputs, read, arguments, keywords) -> None:
        kind = FUNCTIONS.get(name)
        place = f"{path}.{kind}" if path else kind
        if kind in ("sum", "matmul") and len(inputs) == 2:
            self.note(made[0], kind, self._unique(place), inputs)
        elif kind == "concat":
            axis = keywords.get("dim", arguments[1] if len(arguments) > 1 else 0)
            self.note(made[0], kind, self._unique(place), inputs, axis=axis % made[0].dim())
        elif kind == "split":
            self._split(place, made, inputs, arguments, keywords)
        elif kind == "reshape" and len(made[0]) == 1:
            self.note(made[0], kind, self._unique(place), inputs, counted=name != "flatten")
        elif kind == "transpose":
            order = _order(name, arguments, keywords)
            self.note(made[0], kind, self._unique(place), inputs, order=order)
        elif kind == "scale" and len(inputs) == 1:
            factor = next(each for each in read if not isinstance(each, torch.Tensor))
            self.note(made[0], kind, self._unique(place), inputs, factor=float(factor))
        elif kind == "softmax":
            axis = keywords.get("dim", arguments[1] if len(arguments) > 1 else None)
            self.note(made[0], kind, self._unique(place), inputs, axis=axis % made[0].dim())
        else:
            where = f"{path} ({type(self.stack[-1][1]).__name__})" if path else "the network itself"
            raise TypeError(
                f"{where} computes {name}(), which is not understood: known are convolution, BatchNorm, activation, "
                "sum, concatenation, split, average pooling, linear layers and attention"
            )

    def _split(self, place, made, inputs, arguments, keywords) -> None:
        axis = keywords.get("dim", arguments[2] if len(arguments) > 2 else 0) % made[0].dim()
        sizes = tuple(piece.shape[axis] for piece in made)
        for number, piece in enumerate(made):
            start = sum(sizes[:number])
            settings = {"axis": axis, "start": start, "stop": start + sizes[number], "sizes": sizes}
            self.note(piece, "split", self._unique(place), inputs, **settings)

    def _unique(self, name: str) -> str:
        count = self.used_names[name] = self.used_names.get(name, -1) + 1
        return f"{name}_{count}" if count else name


def _is_layer(module: nn.Module) -> bool:
    """Whether a module is one step: one that is known, or one of PyTorch's that is made of no others."""
    of_torch = type(module).__module__.startswith("torch.nn.") and not module._modules
    return _kind(module) is not None or (of_torch and not isinstance(module, nn.Sequential | nn.ModuleList))


def _kind(module: nn.Module) -> str | None:
    """The kind of node that a layer makes; ``None`` for others."""
    if hasattr(module, "traced_as"):
        return module.traced_as
    if type(module).__module__ == "torch.nn.modules.activation" and not module._modules or type(module) is nn.Identity:
        return "activation"
    return next((kind for layer, kind in LAYERS.items() if isinstance(module, layer)), None)


def _flat(value: object) -> list:
    return list(value) if isinstance(value, tuple | list) else [value]


def _order(name: str, arguments: tuple, keywords: Mapping) -> tuple[int, ...]:
    dimensions = arguments[0].dim()
    order = list(range(dimensions))
    if name == "permute":
        given = keywords.get("dims", arguments[1:])
        return tuple(axis % dimensions for each in given for axis in _flat(each))
    first, second = (axis % dimensions for axis in (*arguments[1:], *keywords.values()))
    order[first], order[second] = order[second], order[first]
    return tuple(order)


def _numbered(name: str) -> str:
    """The name up to its first number."""
    words = name.split(".")
    first = next((place for place, word in enumerate(words) if word.isdigit()), len(words) - 1)
    return ".".join(words[: first + 1])


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put ``new`` in the place called ``name``, in place."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)


def positions(shape: tuple[int, ...]) -> int:
    """Height times width of a result; 1 for a vector."""
    return math.prod(shape[1:])
