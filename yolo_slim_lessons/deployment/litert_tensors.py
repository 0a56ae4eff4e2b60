"""Tensors and operators of a LiteRT file, and the activations of a model that they stand for.

Used by ``litert_layers`` and ``litert_graph``, in lesson 12. Leaves out: weights, and what is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from yolo_slim_lessons.deployment.litert_file import file_bytes, nibbles, schema, with_properties
from yolo_slim_lessons.quantization import IntegerGrid

# The first version of an operator that computes with such a tensor, where it is not 1: an older runtime says then what
# it lacks, and does not compute something else.
VERSIONS = {
    ("CONV_2D", "int8"): 3,
    ("CONV_2D", "int16"): 4,
    ("DEPTHWISE_CONV_2D", "int8"): 3,
    ("DEQUANTIZE", "int8"): 2,
    ("DEQUANTIZE", "int16"): 3,
    ("DEQUANTIZE", "float16"): 3,
    ("QUANTIZE", "int8"): 2,
    **{(name, "int8"): 2 for name in ("ADD", "MUL", "LOGISTIC", "CONCATENATION", "STRIDED_SLICE", "PAD")},
    **{(name, "int8"): 2 for name in ("MINIMUM", "TRANSPOSE")},
}


@dataclass(frozen=True)
class Tensor:
    """Activations in the file.

    Attributes:
        index: of the tensor.
        shape: as stored, for one image; its first dimension counts the images.
        grid: of the integers, which are int8 in the file; ``None`` for floats.
        channels_last: whether it is N×H×W×C, as LiteRT computes with, where PyTorch has N×C×H×W.
    """

    index: int
    shape: tuple[int, ...]
    grid: IntegerGrid | None = None
    channels_last: bool = False


class Tensors:
    """All tensors and operators so far, in the order in which they were asked for.

    Args:
        float_type: numpy's, of weights that are floats.
    """

    def __init__(self, float_type: type):
        self.float_type = float_type
        self.tensors: list = []
        self.types: list[str] = []  # of each tensor
        self.operators: list = []
        self.codes: dict[tuple[str, int], int] = {}  # operator and version → its place in the file's list of them
        self.buffers: list[bytes] = [b""]  # the first one is that of all tensors without numbers of their own
        self.plain: dict[tuple, int] = {}  # constants without a grid → their tensors
        self.floats_of: dict[int, Tensor] = {}  # integers → the floats that they stand for

    def tensor(
        self, name: str, shape: Sequence[int], kind: str, buffer: int = 0, scale=None, zero_point=0, axis: int = 0
    ) -> int:
        """Add a tensor and return its index; ``kind`` names a type, as NumPy does, and ``scale`` may be one or many."""
        grid = None
        if scale is not None:
            scales = np.atleast_1d(np.asarray(scale, np.float32))
            zero_points = np.broadcast_to(np.asarray(zero_point, np.int64), scales.shape)
            grid = schema().QuantizationParametersT(
                scale=scales, zeroPoint=np.ascontiguousarray(zero_points), quantizedDimension=axis
            )
        type_ = getattr(schema().TensorType, kind.upper())
        shape = np.array(shape, np.int32)
        self.tensors.append(
            schema().TensorT(shape=shape, type=type_, buffer=buffer, name=name, quantization=grid, hasRank=True)
        )
        self.types.append(kind)
        return len(self.tensors) - 1

    def constant(self, name: str, value: np.ndarray, kind: str | None = None, **grid) -> int:
        """A tensor whose numbers stand in the file; equal ones without a grid are stored once."""
        key = (value.dtype.str, value.shape, value.tobytes())
        if grid or key not in self.plain:
            self.buffers.append(nibbles(value) if kind == "int4" else value.tobytes())
            index = self.tensor(name, value.shape, kind or value.dtype.name, len(self.buffers) - 1, **grid)
            if grid:
                return index
            self.plain[key] = index
        return self.plain[key]

    def numbers(self, values: Sequence) -> int:
        """An argument of an operator, such as a shape."""
        return self.constant("", np.array(values, np.int32))

    def operator(
        self, name: str, inputs: Sequence[int], output: int, version: int | None = None, options: str = "", **settings
    ) -> None:
        """Add an operator. ``options`` names the table of the schema that holds ``settings``; by default its own."""
        version = version or VERSIONS.get((name, self.types[inputs[0]]), 1)
        code = self.codes.setdefault((name, version), len(self.codes))
        new = schema().OperatorT(code, np.array(inputs, np.int32), np.array([output], np.int32))
        options = options or f"{name.title().replace('_', '')}Options"
        if hasattr(schema().BuiltinOptions, options):
            new.builtinOptionsType = getattr(schema().BuiltinOptions, options)
            new.builtinOptions = getattr(schema(), f"{options}T")(**settings)
        self.operators.append(new)

    def new(
        self,
        operator: str,
        name: str,
        inputs: Sequence[Tensor],
        shape: Sequence[int],
        grid: IntegerGrid | None = None,
        channels_last: bool = False,
        constants: Sequence[int] = (),
        **settings,
    ) -> Tensor:
        """The activations that ``operator`` makes of ``inputs`` and ``constants``: int8 on ``grid``, or floats."""
        made = self.activations(name, shape, grid, channels_last)
        self.operator(operator, [*(x.index for x in inputs), *constants], made.index, **settings)
        return made

    def like(self, operator: str, name: str, inputs: Sequence[Tensor], grid: IntegerGrid | None = None, **settings):
        """The same as ``new``, of the shape of the first of ``inputs``."""
        return self.new(operator, name, inputs, inputs[0].shape, grid, inputs[0].channels_last, **settings)

    def activations(
        self, name: str, shape: Sequence[int], grid: IntegerGrid | None = None, channels_last: bool = False
    ) -> Tensor:
        if grid is None:
            return Tensor(self.tensor(name, shape, "float32"), tuple(shape), grid, channels_last)
        index = self.tensor(name, shape, "int8", scale=grid.scale.item(), zero_point=stored(grid, grid.zero_point))
        return Tensor(index, tuple(shape), grid, channels_last)

    def finished(
        self, inputs: Mapping[str, int], outputs: Mapping[str, int], properties: Mapping[str, object]
    ) -> bytes:
        """The file."""
        model = file_bytes(self.tensors, self.operators, self.codes, self.buffers, inputs, outputs)
        return with_properties(model, properties)

    def name_of(self, x: Tensor) -> str:
        return self.tensors[x.index].name

    def real(self, x: Tensor) -> Tensor:
        """The floats that ``x`` stands for; whoever else asks gets the same ones."""
        if x.grid is None:
            return x
        if x.index not in self.floats_of:
            self.floats_of[x.index] = self.like("DEQUANTIZE", f"{self.name_of(x)}.float", [x])
        return self.floats_of[x.index]

    def on_grid(self, name: str, x: Tensor, grid: IntegerGrid) -> Tensor:
        """``x`` as integers of ``grid``: itself, if it has them already."""
        return x if x.grid is not None else self.limited(self.like("QUANTIZE", name, [x], grid))

    def limited(self, x: Tensor) -> Tensor:
        """``x``, cut off where its grid ends: one of fewer than 8 bits ends before int8 does."""
        highest = stored(x.grid, x.grid.highest)
        if highest == 127:
            return x
        grid = {"scale": x.grid.scale.item(), "zero_point": stored(x.grid, x.grid.zero_point)}
        limit = self.constant("", np.full((1,) * len(x.shape), highest, np.int8), **grid)
        name = f"{self.name_of(x)}.limited"
        return self.like("MINIMUM", name, [x], x.grid, constants=[limit], options="MaximumMinimumOptions")

    def ordered(self, x: Tensor, channels_last: bool) -> Tensor:
        """``x`` as N×H×W×C, or as PyTorch has it."""
        if x.channels_last == channels_last:
            return x
        order, name = ((0, 2, 3, 1), "nhwc") if channels_last else ((0, 3, 1, 2), "nchw")
        return self.transposed(f"{self.name_of(x)}.{name}", x, order, channels_last)

    def transposed(self, name: str, x: Tensor, order: Sequence[int], channels_last: bool = False) -> Tensor:
        shape = [x.shape[axis] for axis in order]
        return self.new("TRANSPOSE", name, [x], shape, x.grid, channels_last, [self.numbers(order)])


def stored(grid: IntegerGrid, integer: int | torch.Tensor) -> int:
    """An integer of ``grid`` as int8 has it: grids that start at 0 are shifted by 128."""
    return int(integer) - (0 if grid.signed else 128)
