"""Nodes and constants of an ONNX graph, and the weights and tensors between layers that they stand for.

Used by ``onnx_graph``, in lesson 09. Leaves out: what the layers compute.
"""

from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from yolo_slim_lessons.quantization import IntegerGrid, QuantizedLayer


@dataclass(frozen=True)
class Bytes:
    """A uint8 tensor of the graph: its name, and the names of the scale and the zero point of its grid."""

    name: str
    scale: str
    zero_point: str


Value = str | Bytes  # a tensor of floats is known by its name


def name_of(x: Value) -> str:
    return x if isinstance(x, str) else x.name


def moved(x: Value, name: str) -> Value:
    """The same kind of value as ``x``, called ``name``: bytes stay on their grid."""
    return name if isinstance(x, str) else Bytes(name, x.scale, x.zero_point)


class Tensors:
    """Nodes and constants so far, in the order in which they were asked for.

    Args:
        float_type: numpy's, of constants that are floats.
    """

    def __init__(self, float_type: type):
        self.float_type = float_type
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def node(self, operator: str, name: str, inputs: list[str], output: str | None = None, **attributes) -> str:
        """Add a node; its result, the name of which is returned, is called ``name/operator`` unless told otherwise."""
        output = output or f"{name}/{operator}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: np.ndarray | np.generic) -> str:
        self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def floats(self, name: str, tensor: torch.Tensor) -> str:
        return self.constant(name, tensor.detach().cpu().numpy().astype(self.float_type))

    def quantize(self, name: str, x: str, grid: IntegerGrid) -> Bytes:
        """Float tensor ``x`` as bytes on ``grid``."""
        scale = self.constant(f"{name}.scale", np.float32(grid.scale.item()))
        zero_point = self.constant(f"{name}.zero_point", np.uint8(grid.zero_point.item()))
        integers = self.node("QuantizeLinear", name, [x, scale, zero_point])
        if grid.highest < 255:  # of fewer bits, though a byte could hold more
            integers = self.node("Clip", name, [integers, "", self.constant(f"{name}.highest", np.uint8(grid.highest))])
        return Bytes(integers, scale, zero_point)

    def real(self, reader: str, x: Value) -> str:
        """The floats that ``x`` stands for, as an input of ``reader``: each has a node of its own, to fuse with."""
        return x if isinstance(x, str) else self.node("DequantizeLinear", reader, [x.name, x.scale, x.zero_point])

    def integer_weights(self, name: str, layer: QuantizedLayer) -> list[str]:
        """Weight and bias for a convolution of integers: each made floats with a scale for each output channel."""
        parts = [("weight", layer.integers, layer.weight_grid.scale)]
        if layer.bias_integers is not None:
            parts.append(("bias", layer.bias_integers, layer.accumulator_scale))
        names = []
        for part, tensor, scale in parts:
            part, numbers, channels = f"{name}.{part}", tensor.cpu().numpy(), len(tensor)
            scales = scale.float().expand(channels).cpu().numpy()
            inputs = [self.constant(part, numbers), self.constant(f"{part}_scale", scales)]
            if isinstance(layer, nn.Linear):  # ONNX Runtime fuses a Gemm only where zero points stand there
                inputs.append(self.constant(f"{part}_zero_point", np.zeros(channels, numbers.dtype)))
            names.append(self.node("DequantizeLinear", part, inputs, axis=0))
        return names

    def float_weights(self, name: str, layer: nn.Module, stored_as_integers: bool) -> list[str]:
        """Weight and bias as floats; the weight of a ``QuantizedLayer`` made of its integers, if so told."""
        weight = f"{name}.weight"
        if stored_as_integers:
            grid = layer.weight_grid
            scale, zero_point = f"{weight}_scale", f"{weight}_zero_point"
            self.constants[weight] = integer_tensor(weight, layer.integers, grid)
            self.floats(scale, grid.scale)
            self.constants[zero_point] = integer_tensor(zero_point, grid.zero_point, grid)
            axis = {"axis": 0} if grid.scale.dim() else {}
            weight = self.node("DequantizeLinear", weight, [weight, scale, zero_point], **axis)
        else:
            self.floats(weight, layer.weight)
        return [weight] if layer.bias is None else [weight, self.floats(f"{name}.bias", layer.bias)]


def integer_tensor(name: str, integers: torch.Tensor, grid: IntegerGrid) -> onnx.TensorProto:
    """``integers`` in the smallest of ONNX's types that holds the bits of ``grid``: 4, 8 or 16 bits each."""
    shape, numbers = list(integers.shape), integers.cpu().numpy()
    if grid.bits > 4:
        kind, type_ = (TensorProto.INT8, np.int8) if grid.bits <= 8 else (TensorProto.INT16, np.int16)
        return helper.make_tensor(name, kind, shape, numbers.astype(type_).tobytes(), raw=True)
    nibbles = numbers.astype(np.int8).ravel().view(np.uint8) & 0xF
    nibbles = np.append(nibbles, np.zeros(len(nibbles) % 2, np.uint8))
    return helper.make_tensor(name, TensorProto.INT4, shape, (nibbles[::2] | nibbles[1::2] << 4).tobytes(), raw=True)
