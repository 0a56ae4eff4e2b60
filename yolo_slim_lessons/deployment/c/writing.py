"""The text of the C file: the constants of each layer, and the calls one after the other. Used in lesson 13.

Leaves out: what the constants are (``weights``, ``rescaling``), where the tensors lie (``memory``), and C's notation
(``text``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from yolo_slim_lessons.deployment.c.memory import MemoryPlan, plan_arena
from yolo_slim_lessons.deployment.c.operations import Add, Average, Convolve, Copy, Operation, Part
from yolo_slim_lessons.deployment.c.rescaling import function_of, multipliers_of
from yolo_slim_lessons.deployment.c.text import (
    HEADER,
    SOURCE,
    array_text,
    fill,
    identifier,
    layers_text,
    struct_text,
)
from yolo_slim_lessons.deployment.c.weights import logit_factors, weights_of

SLACK = 16  # bytes behind a buffer, for four bytes are read at once where fewer may be left
PIXELS_OF_A_BAND = 32  # at least; the more, the less rows of input are copied twice


@dataclass
class CText:
    """Source and header of one model.

    Args:
        name: what files, functions and macros begin with.
        operations: from ``operations_of``.
        class_names: in the order of the logits.
    """

    name: str
    operations: Sequence[Operation]
    class_names: Sequence[str]
    plan: MemoryPlan = field(init=False)
    constants: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    border_bytes: int = 0
    logit_bits: int = 0

    def __post_init__(self):
        self.plan, self.addresses = plan_arena(self.operations)
        writers = {Convolve: self.convolve, Add: self.add, Average: self.average, Copy: self.copy}
        for operation in self.operations:
            writers.get(type(operation), self.classify)(operation, identifier(operation.name))

    def header(self) -> str:
        image, upper = self.operations[0].reads[0].picture, self.name.upper()
        return fill(
            HEADER,
            name=self.name,
            upper=upper,
            height=image.height,
            width=image.width,
            channels=image.channels,
            classes=len(self.class_names),
            logit_bits=self.logit_bits,
            ram=self.plan.bytes + self.border_bytes + 2 * SLACK,
        )

    def source(self) -> str:
        return fill(
            SOURCE,
            name=self.name,
            upper=self.name.upper(),
            names=",\n    ".join(json.dumps(each, ensure_ascii=True) for each in self.class_names),
            arena=self.plan.bytes + SLACK,
            border=self.border_bytes + SLACK,
            layers=layers_text(),
            constants="\n".join(self.constants),
            calls="\n".join(f"    {call}" for call in self.calls),
        )

    def address(self, part: Part) -> str:
        if part.picture.root not in self.addresses:
            return "image"
        return f"arena + {self.addresses[part.picture.root] + part.picture.place + part.start}"

    def convolve(self, operation: Operation, name: str) -> None:
        layer, (x,), y = operation.layer, operation.reads, operation.writes
        check_window(operation.name, layer)
        size, stride, padding = layer.kernel_size[0], layer.stride[0], layer.padding[0]
        height, width = y.picture.height, y.picture.width
        channels = layer.in_channels // layer.groups
        # Four bytes are read at once: beyond the last pixel of the arena there is room, beyond the image there is none.
        readable = x.picture.name != "image" or channels % 4 == 0
        in_place = (size, stride, padding) == (1, 1, 0) and readable
        band = 0 if in_place else min(height, -(-PIXELS_OF_A_BAND // width))
        rows = (band - 1) * stride + size if band else 0
        self.border_bytes = max(self.border_bytes, rows * (x.picture.width + 2 * padding) * channels)
        self.function(name, operation)
        weights = self.weights(name, operation)
        rescaling = multipliers_of(operation.name, layer, operation.activation, weights.largest)
        self.array(f"{name}_multiplier", rescaling.multiplier)
        self.array(f"{name}_shift", rescaling.shift)
        self.struct(
            "Convolution",
            name,
            in_height=x.picture.height,
            in_width=x.picture.width,
            in_channels=channels,
            in_step=x.picture.root.channels,
            out_height=height,
            out_width=width,
            out_channels=layer.out_channels // layer.groups,
            out_step=y.picture.root.channels,
            groups=layer.groups,
            size=size,
            stride=stride,
            padding=padding,
            band=band,
            zero_point=zero_point(x),
            packed=int(weights.packed),
            weights=f"{name}_weights",
            bias=f"{name}_bias",
            multiplier=f"{name}_multiplier",
            shift=f"{name}_shift",
            narrow=int(rescaling.narrow),
            lift=rescaling.lift,
            ties=int(rescaling.ties),
            function=f"&{name}_function",
        )
        self.calls.append(f"convolve(&{name}, {self.address(x)}, {self.address(y)});")

    def function(self, name: str, operation: Operation) -> None:
        function = function_of(operation.name, operation.activation)
        numbers = {key: getattr(function, key) for key in ("first", "last", "shift", "slope", "offset", "step")}
        if function.table is not None:
            self.array(f"{name}_table", function.table, "Entry")
            numbers |= {"table": f"{name}_table"}
        self.struct("Function", f"{name}_function", **numbers)

    def weights(self, name: str, operation: Operation):
        weights = weights_of(operation.name, operation.layer)
        self.array(f"{name}_weights", weights.integers)
        self.array(f"{name}_bias", weights.bias)
        return weights

    def add(self, operation: Operation, name: str) -> None:
        (first, second), y = operation.reads, operation.writes
        self.struct(
            "Sum",
            name,
            pixels=y.picture.height * y.picture.width,
            channels=y.channels,
            first_step=first.picture.root.channels,
            second_step=second.picture.root.channels,
            out_step=y.picture.root.channels,
            zero_point=zero_point(y),
            highest=y.grid.highest,
        )
        self.calls.append(f"add(&{name}, {self.address(first)}, {self.address(second)}, {self.address(y)});")

    def average(self, operation: Operation, name: str) -> None:
        (x,), y = operation.reads, operation.writes
        pixels = x.picture.height * x.picture.width
        ratio = Fraction(x.grid.scale.item()) / Fraction(y.grid.scale.item()) / pixels
        if x.grid.highest * pixels * ratio.numerator >= 2**62 or ratio.denominator >= 2**62:
            raise ValueError(f"{operation.name}: its scales differ by too much for integers; quantize it again")
        self.struct(
            "Average",
            name,
            pixels=pixels,
            channels=y.channels,
            in_step=x.picture.root.channels,
            zero_point=zero_point(x),
            new_zero_point=zero_point(y),
            highest=y.grid.highest,
            numerator=ratio.numerator,
            denominator=ratio.denominator,
        )
        self.calls.append(f"average(&{name}, {self.address(x)}, {self.address(y)});")

    def copy(self, operation: Operation, name: str) -> None:
        (x,), y = operation.reads, operation.writes
        pixels = x.picture.height * x.picture.width
        steps = f"{x.picture.root.channels}, {y.picture.root.channels}"
        self.calls.append(f"copy({pixels}, {y.channels}, {steps}, {self.address(x)}, {self.address(y)});")

    def classify(self, operation: Operation, name: str) -> None:
        (x,), layer = operation.reads, operation.layer
        weights = self.weights(name, operation)
        factors, self.logit_bits = logit_factors(operation.name, layer)
        self.array(f"{name}_factor", factors)
        self.struct(
            "Convolution",
            name,
            in_channels=layer.in_features,
            out_channels=layer.out_features,
            packed=int(weights.packed),
            weights=f"{name}_weights",
            bias=f"{name}_bias",
        )
        self.calls.append(f"return classify(&{name}, {name}_factor, {self.address(x)}, logits);")

    def array(self, name: str, numbers: np.ndarray, kind: str | None = None) -> None:
        self.constants.append(array_text(name, numbers, kind))

    def struct(self, kind: str, name: str, **fields: object) -> None:
        self.constants.append(struct_text(kind, name, **fields))


def zero_point(part: Part) -> int:
    return part.grid.zero_point.item()


def check_window(name: str, layer) -> None:
    """Raise ``ValueError`` unless windows are squares without gaps, with the same border all round."""
    pairs = {"kernel_size": layer.kernel_size, "stride": layer.stride, "padding": layer.padding}
    for argument, pair in pairs.items():
        if isinstance(pair, str) or pair[0] != pair[1]:
            raise ValueError(f"{name} has {argument}={pair!r}: C takes one number for height and width")
    if tuple(layer.dilation) != (1, 1) or layer.padding_mode != "zeros":
        raise ValueError(
            f"{name} has dilation={layer.dilation}, padding_mode={layer.padding_mode!r}: C takes 1, 'zeros'"
        )
