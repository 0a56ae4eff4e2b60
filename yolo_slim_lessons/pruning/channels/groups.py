"""Which channels hang together, and why: as data that one can print and draw.

A channel is made by one or several layers and read by others, and goes as a whole or not at all. A walk over the graph
gives every channel that a layer makes a number of its own. Where tensors are added, numbers are tied; where they are
cut and concatenated, numbers move along. In the end, neighbours with the same makers and readers are one group. Used in
lesson 04. Leaves out: which channels go (``budget``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.graph import Graph, Node, Walk, trace
from yolo_slim_lessons.models import as_classifier

MADE_BY = {
    "image": "the colours of the image",
    "conv": "one convolution makes them",
    "linear": "one score for each class",
}
SHORTCUT = "a shortcut adds to them"
ATTENTION = "attention deals them out to its heads"


@dataclass(frozen=True)
class Part:
    """Channels ``start`` to ``stop`` − 1 of what a layer puts out, or takes in."""

    layer: str
    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.layer}[{self.start}:{self.stop}]"


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that go together: removing number i removes it from every part named here.

    Attributes:
        name: of the first layer that makes them; for one half of a split, with that half's first and last channel.
        size: number of channels.
        producers: outputs of convolutions, each with its BatchNorm.
        consumers: inputs of the layers that read the channels.
        why: what ties the parts, in words.
        same_size_as: another group that must keep as many channels as this one, though not the same ones.
        prunable: whether channels may go at all; if not, ``why`` tells the reason.
    """

    name: str
    size: int
    producers: tuple[Part, ...]
    consumers: tuple[Part, ...]
    why: str
    same_size_as: str | None = None
    prunable: bool = True

    def __str__(self) -> str:
        made, read = (" + ".join(map(str, parts)) or "–" for parts in (self.producers, self.consumers))
        return (
            f"{self.name}: {self.size} channels{'' if self.prunable else ', all kept'}\n  {made} → {read}\n  {self.why}"
        )


def channel_groups(model: ClassificationModel, graph: Graph | None = None) -> list[ChannelGroup]:
    """The tied channels of a classifier, in the order in which its forward pass makes them.

    Args:
        model: unfused, pruned before or not; of the families yolov8-cls, yolo11-cls or yolo26-cls, or of your own YAML
            file with the same parts.
        graph: ``trace(model)``, if it is at hand.

    Raises:
        TypeError: not a classifier, or one with a part that is not understood; it is named with its place.
        ValueError: the model is fused or quantized, so its BatchNorm layers are gone.

    Example:
        >>> import yolo_slim_lessons as slim
        >>> print(slim.channel_groups(slim.load_model("nano"))[1])
        model.0.conv: 16 channels
          model.0.conv[0:16] → model.1.conv[0:16]
          one convolution makes them
    """
    model = as_classifier(model)
    check_prunable(model)
    graph, numbering = graph or trace(model), _Numbering(model)
    numbering.run(graph, numbering.new(graph.nodes[0]))
    return list(numbering.groups())


def check_prunable(model: ClassificationModel) -> None:
    """Raise ``ValueError`` unless ``model`` has floats and BatchNorm."""
    if any(hasattr(layer, "weight_grid") for layer in model.modules()):
        raise ValueError("model is quantized: prune the float model that it came from, and quantize the result")
    if model.is_fused():
        raise ValueError(
            "model is fused: its BatchNorm layers are folded into the convolutions. Prune first, fuse later; "
            "load the checkpoint again if there is no unfused model left"
        )


@dataclass(slots=True)
class _Channel:
    """One channel while the network is walked through."""

    made_by: list[tuple[str, int]]  # layers, and the place among their outputs
    read_by: list[tuple[str, int]]  # layers, and the place among their inputs
    reasons: list[str]  # what ties it, or keeps it
    prunable: bool = True
    half: tuple[str, int] | None = None  # the convolution that is split, and whether this is its second half
    tied_to: _Channel | None = None  # an earlier channel that it goes together with

    def first(self) -> _Channel:
        """The one that stands for all that it is tied to."""
        return self if self.tied_to is None else self.tied_to.first()

    def note(self, reason: str) -> None:
        if reason not in self.reasons:
            self.reasons.append(reason)

    def follows(self, other: _Channel) -> bool:
        """Whether this is the next channel of the same group."""
        alike = (self.reasons, self.prunable, self.half) == (other.reasons, other.prunable, other.half)
        return alike and self.made_by == _next(other.made_by) and self.read_by == _next(other.read_by)


def _next(places: list[tuple[str, int]]) -> list[tuple[str, int]]:
    return [(layer, place + 1) for layer, place in places]


class _Numbering(Walk):
    """The value of a node is the list of its channels; ``None`` behind attention has dealt them out."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.made: list[_Channel] = []
        self.entries: list[tuple[Node, list[_Channel]]] = []  # each layer that reads, and what it reads

    def new(self, node: Node) -> list[_Channel]:
        """The channels that ``node`` makes."""
        places = [[]] * node.shape[0] if node.kind == "image" else [[(node.name, n)] for n in range(node.shape[0])]
        channels = [_Channel(list(place), [], [MADE_BY[node.kind]], node.kind == "conv") for place in places]
        self.made += channels
        return channels

    def keep(self, channels: list[_Channel] | None, reason: str) -> None:
        for channel in channels or ():
            channel.first().prunable = False
            channel.first().note(reason)

    def conv(self, node: Node, read: list[_Channel] | None) -> list[_Channel]:
        made = self.new(node)
        for place, channel in enumerate(read or ()):
            channel.first().read_by.append((node.name, place))
        self.entries.append((node, read or []))
        if getattr(self.model.get_submodule(node.name), "groups", 1) > 1:
            self.keep(read, "a convolution in groups reads them")
            self.keep(made, "a convolution in groups makes them")
        return made

    linear = conv

    def norm(self, node: Node, read: list[_Channel] | None) -> list[_Channel] | None:
        return read

    activation = pool = dropout = norm

    def sum(self, node: Node, first: list[_Channel] | None, second: list[_Channel] | None) -> list[_Channel] | None:
        if first is None or second is None:
            self.keep(first or second, ATTENTION)
            return first or second
        for one, other in zip(first, second, strict=True):
            one, other = one.first(), other.first()
            if one is not other:
                one.made_by += other.made_by
                one.read_by += other.read_by
                one.prunable &= other.prunable
                other.tied_to = one
            one.note(SHORTCUT)
        return first

    def concat(self, node: Node, *parts: list[_Channel] | None) -> list[_Channel] | None:
        if None in parts:
            for part in parts:
                self.keep(part, ATTENTION)
            return None
        return [channel for part in parts for channel in part]

    def split(self, node: Node, read: list[_Channel] | None) -> list[_Channel] | None:
        if read is None:
            return None
        sizes, start = node.settings["sizes"], node.settings["start"]
        piece = read[start : node.settings["stop"]]
        if len(sizes) != 2 or sizes[0] != sizes[1] or any(channel.first().half for channel in piece):
            self.keep(piece, "a split cuts them at a fixed place")
            return piece
        for channel in piece:
            channel = channel.first()
            channel.half = (read[0].first().made_by[0][0], int(start > 0))
            which = "second" if start else "first"
            channel.reasons.remove(MADE_BY["conv"])
            channel.note(f"the {which} half of a split, both halves equally wide")
        return piece

    def reshape(self, node: Node, read: list[_Channel] | None) -> list[_Channel] | None:
        if not node.settings["counted"]:
            return read
        self.keep(read, ATTENTION)
        # The block reshapes by sizes that it reads off its input: all that comes in from outside must stay.
        for reader, channels in self.entries:
            if reader.name.startswith(f"{node.place}."):
                outside = [c for c in channels if not c.first().made_by[0][0].startswith(f"{node.place}.")]
                self.keep(outside, ATTENTION)
        return None

    def transpose(self, node: Node, *read: list[_Channel] | None) -> None:
        for channels in read:
            self.keep(channels, ATTENTION)

    scale = matmul = softmax = transpose

    def groups(self) -> Iterator[ChannelGroup]:
        """Runs of channels that stand side by side."""
        runs: list[list[_Channel]] = []
        for channel in self.made:
            if channel.tied_to is None and runs and channel.follows(runs[-1][-1]):
                runs[-1].append(channel)
            elif channel.tied_to is None:
                runs.append([channel])
        halves = {run[0].half: run for run in runs if run[0].half}
        for run in runs:
            twin = halves.get((run[0].half[0], 1 - run[0].half[1])) if run[0].half else None
            yield ChannelGroup(
                self._name(run),
                len(run),
                tuple(Part(layer, place, place + len(run)) for layer, place in run[0].made_by),
                tuple(Part(layer, place, place + len(run)) for layer, place in run[0].read_by),
                "; ".join(run[0].reasons),
                self._name(twin) if twin else None,
                run[0].prunable and (twin is None or twin[0].prunable),
            )

    def _name(self, run: list[_Channel]) -> str:
        if not run[0].made_by:
            return "image"
        layer, start = run[0].made_by[0]
        whole = len(run) == self.model.get_submodule(layer).weight.shape[0]
        return layer if whole else str(Part(layer, start, start + len(run)))
