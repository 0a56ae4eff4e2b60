"""Find the graph of a network by running its forward pass on an image that has a shape and no content.

Hooks tell which layer is called; ``TorchFunctionMode`` tells which function of PyTorch is called between them. Leaves
out: what is computed by other means than functions of PyTorch.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.graph.nodes import Graph, Node
from yolo_slim_lessons.models import blank_images, image_size_of, logits

LAYERS = {
    nn.Conv2d: "conv",
    nn.BatchNorm2d: "norm",
    nn.Linear: "linear",
    nn.AdaptiveAvgPool2d: "pool",
    nn.Dropout: "dropout",
}
# Kinds of nodes, and the functions that make them, by their names as methods of tensors or of torch.
FUNCTIONS = {
    "sum": "add __add__ __radd__ __iadd__ add_",
    "concat": "cat concat",
    "split": "chunk split split_with_sizes",
    "reshape": "view reshape flatten",
    "transpose": "transpose permute",
    "scale": "mul __mul__ __rmul__",
    "matmul": "matmul __matmul__",
    "softmax": "softmax",
}
KIND_OF_FUNCTION = {name: kind for kind, names in FUNCTIONS.items() for name in names.split()}
SAME_NUMBERS = {"contiguous", "clone", "detach", "to", "float", "half", "double", "type"}


def trace(model: nn.Module, image_size: int | tuple[int, int] | None = None) -> Graph:
    """The graph of ``model``, found by sending an image through that has a shape and no content.

    Args:
        model: a classifier of Ultralytics, pruned or not, or any network made of the kinds of nodes above; it is left
            alone. Its layers may be replaced by others with the same shapes of input and output.
        image_size: pixels a side, or height and width; ``None`` takes what the model was trained for, and 64 if it
            does not say so.

    Raises:
        TypeError: something in the network is not understood; it is named with its place.

    Example:
        >>> import yolo_slim_lessons as slim
        >>> graph = trace(slim.load_model("nano"))
        >>> print(len(graph.nodes), [node.name for node in graph.nodes if node.kind == "sum"][0])
        102 model.2.m.0.sum
    """
    shadow = _without_content(model)
    recorder = _Recorder(shadow)
    size = image_size_of(model, default=64) if image_size is None else image_size
    height, width = size if isinstance(size, tuple) else (size, size)
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
        self.nodes.append(Node(name, kind, inputs, tuple(result.shape[1:]), settings))

    def position(self, tensor: object, place: str) -> int:
        if id(tensor) not in self.positions:
            raise TypeError(f"{place} reads what was not computed from the image, which is not understood")
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
            if any(node.name == name for node in self.nodes):
                raise TypeError(f"{name} is called more than once in a forward pass, which is not understood")
            if kind == "pool" and tuple(result.shape[2:]) != (1, 1):
                raise TypeError(f"{name} averages to {tuple(result.shape[2:])} positions: only one is understood")
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
        """Note what a function made of ``inputs``; ``read`` is all that it was given."""
        kind = KIND_OF_FUNCTION.get(name)
        settings: list[dict] = []  # of each result; none where the function is not understood
        if kind in ("sum", "matmul") and len(inputs) == 2:
            settings = [{}]
        elif kind == "concat":
            settings = [{"axis": _axis(1, 0, made, arguments, keywords)}]
        elif kind == "softmax":
            settings = [{"axis": _axis(1, None, made, arguments, keywords)}]
        elif kind == "split":
            axis = _axis(2, 0, made, arguments, keywords)
            sizes = tuple(piece.shape[axis] for piece in made)
            ends = list(itertools.accumulate(sizes, initial=0))
            settings = [{"axis": axis, "start": a, "stop": b, "sizes": sizes} for a, b in itertools.pairwise(ends)]
        elif kind == "reshape" and len(made[0]) == 1:
            settings = [{"counted": name != "flatten"}]
        elif kind == "transpose":
            settings = [{"order": _order(name, arguments, keywords)}]
        elif kind == "scale" and len(inputs) == 1:
            settings = [{"factor": float(next(each for each in read if not isinstance(each, torch.Tensor)))}]
        if not settings:
            where = f"{path} ({type(self.stack[-1][1]).__name__})" if path else "the network itself"
            raise TypeError(
                f"{where} computes {name}(), which is not understood: known are convolution, BatchNorm, activation, "
                "sum, concatenation, split, average pooling, linear layers and attention"
            )
        for result, setting in zip(made, settings, strict=True):
            self.note(result, kind, self._unique(f"{path}.{kind}" if path else kind), inputs, **setting)

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


def _axis(place: int, default: int | None, made: list[torch.Tensor], arguments: tuple, keywords: Mapping) -> int:
    """The argument ``dim``, which may be the one at ``place``, counted from the front."""
    return keywords.get("dim", arguments[place] if len(arguments) > place else default) % made[0].dim()


def _order(name: str, arguments: tuple, keywords: Mapping) -> tuple[int, ...]:
    dimensions = arguments[0].dim()
    order = list(range(dimensions))
    if name == "permute":
        given = keywords.get("dims", arguments[1:])
        return tuple(axis % dimensions for each in given for axis in _flat(each))
    first, second = (axis % dimensions for axis in (*arguments[1:], *keywords.values()))
    order[first], order[second] = order[second], order[first]
    return tuple(order)
