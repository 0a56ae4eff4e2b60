"""What a graph consists of, and how it is walked through. Leaves out: how it is found (``tracing``)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn


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
    settings: Mapping[str, object] = field(default_factory=dict)

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
        positions = range(1, len(self.nodes))
        for name, members in itertools.groupby(positions, lambda position: _numbered(self.nodes[position].name)):
            first, *rest = members
            yield name, range(first, first + len(rest) + 1)


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


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put ``new`` in the place called ``name``, in place."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)


def _numbered(name: str) -> str:
    """The name up to its first number."""
    words = name.split(".")
    first = next((place for place, word in enumerate(words) if word.isdigit()), len(words) - 1)
    return ".".join(words[: first + 1])
