"""Which tensors of a network lie on which grid: the points of quantization. Used in lesson 05.

A walk over the graph. What is added, concatenated, cut or reshaped keeps the grid of what it is made of, so all of it
is one tensor here, with one grid. The average of a channel and what attention computes from queries, keys and values
are computed in real numbers, and are put on a grid where they are read.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from yolo_slim_lessons.graph import Graph, replace_module
from yolo_slim_lessons.quantization.grids import IntegerGrid
from yolo_slim_lessons.quantization.layers import QuantizedLayer, QuantizedSum

MOVES = ("split", "reshape", "transpose", "dropout")  # kinds of nodes that change no number


@dataclass(eq=False)
class ActivationTensor:
    """One tensor of activations, or several that are added and concatenated and so share a grid: names of nodes."""

    observed: list[str] = field(default_factory=list)  # whose results together are all of it
    writers: list[str] = field(default_factory=list)  # activation functions; none make the image or what attention does
    readers: list[str] = field(default_factory=list)  # convolutions and linear layers
    sums: dict[str, tuple[bool, bool]] = field(default_factory=dict)  # with whether summands are computed otherwise


def activation_tensors(graph: Graph) -> list[ActivationTensor]:
    """Every tensor of a forward pass that lies on a grid, the image first.

    Args:
        graph: of a network whose BatchNorm is folded.

    Raises:
        TypeError: an activation function that is not right behind a convolution, or a part that is computed otherwise
            and then concatenated (it is named).
    """
    owners: list[ActivationTensor | None] = []  # the tensor that each node's result belongs to, if it is on a grid
    for node in graph.nodes:
        read = [owners[position] for position in node.inputs]
        made = None
        if node.kind == "image":
            made = ActivationTensor(["image"])
        elif node.kind in ("conv", "linear"):
            if read[0] is None:  # computed otherwise; a tensor of its own, which nobody but this layer reads
                read[0] = ActivationTensor([graph.nodes[node.inputs[0]].name])
                owners[node.inputs[0]] = read[0]
            read[0].readers.append(node.name)
        elif node.kind == "activation":
            if graph.nodes[node.inputs[0]].kind != "conv":
                raise TypeError(f"{node.name} is not right behind a convolution: integers for it are not understood")
            made = ActivationTensor(writers=[node.name])
        elif node.kind in MOVES:
            made = read[0]
        elif node.kind == "concat" or (node.kind == "sum" and any(read)):
            if node.kind == "sum":
                next(filter(None, read)).sums[node.name] = tuple(tensor is None for tensor in read)
            elif None in read:
                raise TypeError(f"{node.name} joins what is on no grid: integers for it are not understood")
            made = _joined(owners, [tensor for tensor in read if tensor is not None])
        owners.append(made)
    _observe(graph, owners)
    return list(dict.fromkeys(tensor for tensor in owners if tensor and (tensor.writers or tensor.readers)))


def _joined(owners: list[ActivationTensor | None], tensors: list[ActivationTensor]) -> ActivationTensor:
    """The first of ``tensors``, which takes over all that the others have."""
    first = tensors[0]
    for other in {id(tensor): tensor for tensor in tensors[1:] if tensor is not first}.values():
        first.writers += other.writers
        first.readers += other.readers
        first.sums |= other.sums
        owners[:] = [first if owner is other else owner for owner in owners]
    return first


def _observe(graph: Graph, owners: list[ActivationTensor | None]) -> None:
    """Note for each tensor the results that are read, but for those that are part of another one that is read."""
    holders: list[set[int]] = [set() for _ in graph.nodes]  # whose result holds all that this node's result holds
    is_read = [False] * len(graph.nodes)
    for position, node in enumerate(graph.nodes):
        if node.kind in MOVES:
            holders[position].add(node.inputs[0])
        for source in node.inputs:
            if node.kind == "concat":
                holders[source].add(position)
            is_read[source] |= node.kind not in (*MOVES, "concat", "sum")

    def held_by_another(position: int, seen: frozenset[int]) -> bool:
        rest = holders[position] - seen
        return any(is_read[holder] or held_by_another(holder, seen | rest) for holder in rest)

    for position, (node, owner) in enumerate(zip(graph.nodes, owners, strict=True)):
        noted = owner is None or node.name in owner.observed
        if not noted and is_read[position] and not held_by_another(position, frozenset({position})):
            owner.observed.append(node.name)


def place_grid(model: nn.Module, tensor: ActivationTensor, grid: IntegerGrid) -> None:
    """Give ``grid`` to all that make and read ``tensor``, in place; layers in float have no place for it."""
    for name in tensor.writers:
        model.get_submodule(name).output_grid = grid
    for name in tensor.readers:
        layer = model.get_submodule(name)
        if isinstance(layer, QuantizedLayer):
            layer.input_grid = grid
    for name, computed in tensor.sums.items():
        replace_module(model, name, QuantizedSum(grid, computed))


def placed_grid(model: nn.Module, tensor: ActivationTensor) -> IntegerGrid | None:
    """The grid that ``tensor`` has in ``model``; ``None`` if only layers in float read it."""
    for name in tensor.writers:
        return model.get_submodule(name).output_grid
    layers = [model.get_submodule(name) for name in tensor.readers]
    return next((layer.input_grid for layer in layers if isinstance(layer, QuantizedLayer)), None)
