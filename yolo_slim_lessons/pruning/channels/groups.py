"""Which channels hang together, and why: as data that one can print and draw.

A channel is made by one or several layers and read by others, and goes as a whole or not at all. ``channel_groups``
walks through the network in the order of its forward pass and writes down who makes and who reads each channel; the
rest of channel pruning only looks at what it wrote. Used in lesson 04. Leaves out: layers that the classification
models of YOLOv8, YOLO11 and YOLO26 do not have.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from ultralytics.nn.modules import C2PSA, C3, Bottleneck, C2f, C3k2, Classify, Conv
from ultralytics.nn.modules.block import Attention, C3k, PSABlock
from ultralytics.nn.tasks import ClassificationModel


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


def channel_groups(model: ClassificationModel) -> list[ChannelGroup]:
    """The tied channels of a classifier, in the order in which its forward pass makes them.

    Args:
        model: of the families yolov8-cls, yolo11-cls or yolo26-cls, pruned before or not.

    Raises:
        TypeError: not a classifier, or one with a layer whose channels are not understood; the layer is named.
        ValueError: the model is fused, so its BatchNorm layers are gone.

    Example:
        >>> import yolo_slim_lessons as slim
        >>> print(slim.channel_groups(slim.load_model("nano"))[1])
        model.0.conv: 16 channels
          model.0.conv[0:16] → model.1.conv[0:16]
          one convolution makes them
    """
    if not isinstance(model, ClassificationModel):
        raise TypeError(
            f"model is a {type(model).__name__}, not an image classifier: "
            "load a -cls checkpoint with load_model(), such as load_model('nano')"
        )
    if model.is_fused():
        raise ValueError(
            "model is fused: its BatchNorm layers are folded into the convolutions. Prune first, fuse later; "
            "load the checkpoint again if there is no unfused model left"
        )
    walk = _Walk(dict(model.named_modules()))
    first = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    stream = walk.start("image", first.in_channels, "the colours of the image", prunable=False)
    for position, block in enumerate(model.model):
        if block.f != -1:
            raise TypeError(f"model.{position} ({type(block).__name__}) does not read from the layer in front of it")
        stream = walk.through(f"model.{position}", stream)
    return [stream.group() for stream in walk.streams]


@dataclass(eq=False)
class _Stream:
    """A group while it is being collected."""

    name: str
    size: int
    producers: list[Part]
    consumers: list[Part]
    reasons: list[str]
    twin: _Stream | None = None
    prunable: bool = True

    def group(self) -> ChannelGroup:
        return ChannelGroup(
            self.name,
            self.size,
            tuple(self.producers),
            tuple(self.consumers),
            "; ".join(self.reasons),
            self.twin.name if self.twin else None,
            self.prunable and (self.twin is None or self.twin.prunable),
        )


class _Walk:
    """One method for each kind of block; each retells the block's forward with streams in place of tensors."""

    def __init__(self, modules: dict[str, nn.Module]):
        self.modules = modules
        self.streams: list[_Stream] = []
        self.methods = {
            Conv: self.conv,
            Bottleneck: self.bottleneck,
            C2f: self.c2f,
            C3k2: self.c2f,
            C3: self.c3,
            C3k: self.c3,
            C2PSA: self.c2psa,
            PSABlock: self.psa_block,
            Attention: self.attention,
            nn.Sequential: self.sequence,
            Classify: self.classify,
        }

    def through(self, name: str, stream: _Stream) -> _Stream:
        block = self.modules[name]
        # The exact type: a subclass may well do something else in its forward.
        if type(block) not in self.methods:
            understood = ", ".join(kind.__name__ for kind in self.methods)
            raise TypeError(
                f"{name} is a {type(block).__name__}, whose channels are not understood (only {understood}): "
                "prune a model of the families yolov8-cls, yolo11-cls or yolo26-cls"
            )
        return self.methods[type(block)](name, stream)

    def start(self, name: str, size: int, why: str, prunable: bool = True) -> _Stream:
        stream = _Stream(name, size, [], [], [why], prunable=prunable)
        self.streams.append(stream)
        return stream

    def read(self, layer: str, *streams: _Stream) -> None:
        """``layer`` takes in ``streams``, one behind the other."""
        offset = 0
        for stream in streams:
            stream.consumers.append(Part(layer, offset, offset + stream.size))
            offset += stream.size

    def tie(self, stream: _Stream, added: _Stream, why: str) -> _Stream:
        """``added`` is added to ``stream`` number by number; nothing but this sum reads it."""
        stream.producers += added.producers
        stream.consumers += added.consumers
        stream.reasons += [why] if why not in stream.reasons else []
        stream.prunable &= added.prunable
        self.streams.remove(added)
        return stream

    def keep(self, stream: _Stream, why: str) -> None:
        stream.prunable = False
        stream.reasons += [why] if why not in stream.reasons else []

    def conv(self, name: str, *streams: _Stream) -> _Stream:
        layer = self.modules[name].conv
        if layer.groups != 1:
            raise TypeError(f"{name} convolves in {layer.groups} groups, which channel pruning does not understand")
        self.read(f"{name}.conv", *streams)
        made = self.start(f"{name}.conv", layer.out_channels, "one convolution makes them")
        made.producers.append(Part(f"{name}.conv", 0, layer.out_channels))
        return made

    def split_conv(self, name: str, stream: _Stream) -> tuple[_Stream, _Stream]:
        """A convolution whose output is cut into two halves."""
        whole = self.conv(name, stream)
        self.streams.remove(whole)
        half = whole.size // 2
        halves = []
        for start in (0, half):
            part = Part(f"{name}.conv", start, start + half)
            which = "second" if start else "first"
            halves.append(self.start(str(part), half, f"the {which} half of a split, both halves equally wide"))
            halves[-1].producers.append(part)
        left, right = halves
        left.twin, right.twin = right, left
        return left, right

    def bottleneck(self, name: str, stream: _Stream) -> _Stream:
        inner = self.through(f"{name}.cv1", stream)
        made = self.through(f"{name}.cv2", inner)
        return self.tie(stream, made, "a shortcut adds to them") if self.modules[name].add else made

    def c2f(self, name: str, stream: _Stream) -> _Stream:
        pieces = list(self.split_conv(f"{name}.cv1", stream))
        for number in range(len(self.modules[name].m)):
            pieces.append(self.through(f"{name}.m.{number}", pieces[-1]))
        return self.conv(f"{name}.cv2", *pieces)

    def c3(self, name: str, stream: _Stream) -> _Stream:
        left = self.through(f"{name}.m", self.conv(f"{name}.cv1", stream))
        right = self.conv(f"{name}.cv2", stream)
        return self.conv(f"{name}.cv3", left, right)

    def c2psa(self, name: str, stream: _Stream) -> _Stream:
        left, right = self.split_conv(f"{name}.cv1", stream)
        return self.conv(f"{name}.cv2", left, self.through(f"{name}.m", right))

    def psa_block(self, name: str, stream: _Stream) -> _Stream:
        shortcut = self.modules[name].add
        for part in ("attn", "ffn"):
            made = self.through(f"{name}.{part}", stream)
            stream = self.tie(stream, made, "a shortcut adds to them") if shortcut else made
        return stream

    def attention(self, name: str, stream: _Stream) -> _Stream:
        # Heads cut these channels into queries, keys and values of fixed widths, so all of them stay.
        self.keep(stream, "attention deals them out to its heads")
        self.read(f"{name}.qkv.conv", stream)
        made = self.start(f"{name}.proj.conv", stream.size, "attention deals them out to its heads", prunable=False)
        made.producers.append(Part(f"{name}.proj.conv", 0, stream.size))
        return made

    def sequence(self, name: str, stream: _Stream) -> _Stream:
        for number in range(len(self.modules[name])):
            stream = self.through(f"{name}.{number}", stream)
        return stream

    def classify(self, name: str, stream: _Stream) -> _Stream:
        pooled = self.conv(f"{name}.conv", stream)  # pooling and dropout leave every channel in its place
        self.read(f"{name}.linear", pooled)
        classes = self.modules[f"{name}.linear"].out_features
        made = self.start(f"{name}.linear", classes, "one score for each class", prunable=False)
        made.producers.append(Part(f"{name}.linear", 0, classes))
        return made
