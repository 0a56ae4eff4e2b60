"""An ONNX graph that computes with the integers of a quantized model. Used in lesson 09.

It is written block by block from the modules, in the standard's own words: tensors of 8 bits lie between the layers,
each layer reads them through ``DequantizeLinear`` and writes them through ``QuantizeLinear`` ("QDQ"), and a runtime
fuses what stands between into one operation on integers. Scales, zero points and integers are the model's.

What makes the graph fast in ONNX Runtime:

- The first convolution computes with floats, from the same weights. Its 27 products for each number leave integers
  nothing to win, and the image needs no rounding: an 8-bit pixel lies on its grid already.
- What is split, concatenated or added has one grid in our models, so bytes are moved as they are.
- ReLU disappears: below zero the grid ends. Another activation function is computed on floats in between, for there is
  no operation that looks numbers up in a table. Integer convolutions put out 8 bits and no more, so a second grid
  holds what such a function reads, where the model has 16 bits; that costs some of the accuracy.

Sums are rounded once, to 8 bits, where the model rounds them to 16 bits first: now and then a number ends up one level
off, and very few answers change. Leaves out: activations of more than 8 bits, which ONNX Runtime has no integer
convolution for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from ultralytics.nn.modules import C2f, Classify, Conv
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.models import weight_layers
from yolo_slim_lessons.quantization import IntegerGrid, QuantizedActivation, QuantizedLayer

OPSET, IR_VERSION = 18, 8


@dataclass(frozen=True)
class _Bytes:
    """A uint8 tensor of the graph: its name, and the names of the scale and the zero point of its grid."""

    name: str
    scale: str
    zero_point: str


def integer_graph(model: ClassificationModel, image_size: int) -> onnx.ModelProto:
    """The graph: ``images``, float N×3×H×W in 0…1, to ``logits``, N×classes.

    Args:
        model: from ``quantize_integer`` with ``activation_bits``. A layer that was left in float computes so.
        image_size: pixels a side.

    Raises:
        ValueError: more than 8 bits, weights whose zero point is not 0, or an activation function that has no operator
            here.
    """
    _check(model)
    graph = _Graph()
    x: str | _Bytes = "images"
    for index, block in enumerate(model.model):
        name = f"model.{index}"
        if isinstance(block, Conv):
            x = graph.convolve(name, block, x)
        elif isinstance(block, C2f):
            x = graph.c2f(name, block, x)
        else:
            graph.classify(name, block, x)
    return graph.finished(image_size, len(model.names))


class _Graph:
    """Nodes and constants so far; a method adds some and returns the name of what they compute."""

    def __init__(self):
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def node(self, operator: str, inputs: list[str], name: str, **attributes) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: np.ndarray | np.generic) -> str:
        self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def quantize(self, name: str, x: str, grid: IntegerGrid) -> _Bytes:
        """Float tensor ``x`` as bytes on ``grid``."""
        scale = self.constant(f"{name}.scale", np.float32(grid.scale.item()))
        zero_point = self.constant(f"{name}.zero_point", np.uint8(grid.zero_point.item()))
        integers = self.node("QuantizeLinear", [x, scale, zero_point], f"{name}/QuantizeLinear")
        if grid.highest < 255:  # of fewer bits, though a byte could hold more
            highest = self.constant(f"{name}.highest", np.uint8(grid.highest))
            integers = self.node("Clip", [integers, "", highest], f"{name}/Clip")
        return _Bytes(integers, scale, zero_point)

    def dequantize(self, reader: str, x: _Bytes) -> str:
        """The real numbers behind ``x``, as the input called ``reader``: each has a node of its own, to fuse with."""
        return self.node("DequantizeLinear", [x.name, x.scale, x.zero_point], f"{reader}/DequantizeLinear")

    def weights(self, name: str, layer: nn.Module, integers: bool) -> list[str]:
        """Weight and bias of ``layer``: integers with a scale for each output channel, or floats."""
        if not integers:
            parts = {"weight": layer.weight, "bias": layer.bias}
            return [
                self.constant(f"{name}.{part}", tensor.detach().numpy())
                for part, tensor in parts.items()
                if tensor is not None
            ]
        channels = len(layer.integers)
        parts = {"weight": (layer.integers, layer.weight_grid.scale)}
        if layer.bias_integers is not None:
            parts["bias"] = (layer.bias_integers, layer.accumulator_scale)
        names = []
        for part, (numbers, scale) in parts.items():
            inputs = [
                self.constant(f"{name}.{part}", numbers.numpy()),
                self.constant(f"{name}.{part}_scale", scale.float().expand(channels).numpy()),
                self.constant(f"{name}.{part}_zero_point", np.zeros(channels, numbers.numpy().dtype)),
            ]
            names.append(self.node("DequantizeLinear", inputs, f"{name}.{part}/DequantizeLinear", axis=0))
        return names

    def convolve(self, name: str, block: Conv, x: str | _Bytes) -> _Bytes:
        """Convolution, activation function, rounding. ``x`` is an image of floats, or bytes."""
        layer, act = block.conv, block.act
        with_integers = isinstance(x, _Bytes) and isinstance(layer, QuantizedLayer)
        real = self.dequantize(f"{name}.conv", x) if isinstance(x, _Bytes) else x
        y = self.node(
            "Conv",
            [real, *self.weights(f"{name}.conv", layer, with_integers)],
            f"{name}.conv/Conv",
            kernel_shape=list(layer.kernel_size),
            strides=list(layer.stride),
            pads=[*layer.padding, *layer.padding],
            dilations=list(layer.dilation),
            group=layer.groups,
        )
        if with_integers and not isinstance(act.function, nn.ReLU):
            y = self.dequantize(f"{name}.act", self.quantize(f"{name}.conv", y, grid_in_front_of(act)))
        return self.quantize(f"{name}.act", self.activate(f"{name}.act", y, act.function), act.output_grid)

    def activate(self, name: str, x: str, function: nn.Module) -> str:
        if isinstance(function, nn.ReLU):
            return self.node("Relu", [x], f"{name}/Relu")
        if isinstance(function, nn.Hardswish):
            return self.node("HardSwish", [x], f"{name}/HardSwish")
        return self.node("Mul", [x, self.node("Sigmoid", [x], f"{name}/Sigmoid")], f"{name}/Mul")  # SiLU

    def c2f(self, name: str, block: C2f, x: _Bytes) -> _Bytes:
        y = self.convolve(f"{name}.cv1", block.cv1, x)
        if len(block.m):
            halves = [f"{name}/Split.{half}" for half in (0, 1)]
            self.nodes.append(helper.make_node("Split", [y.name], halves, name=f"{name}/Split", axis=1, num_outputs=2))
            parts = [_Bytes(half, y.scale, y.zero_point) for half in halves]
            for j, bottleneck in enumerate(block.m):
                parts.append(self.bottleneck(f"{name}.m.{j}", bottleneck, parts[-1]))
            joined = self.node("Concat", [part.name for part in parts], f"{name}/Concat", axis=1)
            y = _Bytes(joined, y.scale, y.zero_point)
        return self.convolve(f"{name}.cv2", block.cv2, y)

    def bottleneck(self, name: str, block: nn.Module, x: _Bytes) -> _Bytes:
        branch = self.convolve(f"{name}.cv2", block.cv2, self.convolve(f"{name}.cv1", block.cv1, x))
        if not block.add:
            return branch
        summands = [self.dequantize(f"{name}.x", x), self.dequantize(f"{name}.branch", branch)]
        return self.quantize(name, self.node("Add", summands, f"{name}/Add"), block.output_grid)

    def classify(self, name: str, block: Classify, x: _Bytes) -> None:
        features = self.convolve(f"{name}.conv", block.conv, x)
        pool, layer = f"{name}.pool", block.linear
        real = self.dequantize(pool, features)
        if isinstance(block.conv.act.function, nn.ReLU):
            # Behind a convolution of integers, ONNX Runtime averages bytes in the order in which they lie there …
            mean = self.node("GlobalAveragePool", [real], f"{pool}/GlobalAveragePool")
        else:  # … behind floats it would turn them round first, which takes longer than the average of floats
            axes = self.constant(f"{pool}.axes", np.array([2, 3]))
            mean = self.node("ReduceMean", [real, axes], f"{pool}/ReduceMean", keepdims=1)
        with_integers = isinstance(layer, QuantizedLayer)
        if with_integers:
            rounded = self.quantize(pool, mean, layer.input_grid)
            flat = self.node("Flatten", [rounded.name], f"{pool}/Flatten")
            flat = self.dequantize(f"{name}.linear", _Bytes(flat, rounded.scale, rounded.zero_point))
        else:
            flat = self.node("Flatten", [mean], f"{pool}/Flatten")
        self.node("Gemm", [flat, *self.weights(f"{name}.linear", layer, with_integers)], "logits", transB=1)

    def finished(self, image_size: int, classes: int) -> onnx.ModelProto:
        images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, image_size, image_size])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])
        graph = helper.make_graph(self.nodes, "yolov8-cls", [images], [logits], list(self.constants.values()))
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)


def grid_in_front_of(act: QuantizedActivation) -> IntegerGrid:
    """8 bits for what ``act`` reads: from where its result is within one step of zero, to the end of its own grid.

    SiLU and Hardswish fade to 0 for negative numbers, and to x for positive ones, so that what lies further out makes
    no difference to the result.
    """
    low, high = act.input_grid.range
    step = act.output_grid.scale
    below = torch.linspace(low.item(), 0, 4097)
    matters = act.function(below.clone()).abs() > step  # a copy: Ultralytics lets activation functions overwrite
    low = below[matters][0] if matters.any() else -step
    return IntegerGrid.from_range(low, torch.minimum(high, act.output_grid.range[1]), bits=8, signed=False)


def _check(model: ClassificationModel) -> None:
    for name, block in model.named_modules():
        if isinstance(block, QuantizedActivation):
            if block.output_grid.bits > 8:
                raise ValueError(
                    f"{name} puts out {block.output_grid.bits} bits: ONNX Runtime convolves integers of up to 8 bits; "
                    "quantize with activation_bits=8"
                )
            if not isinstance(block.function, nn.ReLU | nn.SiLU | nn.Hardswish):
                raise ValueError(f"{name} is a {type(block.function).__name__}: expected ReLU, SiLU or Hardswish")
    for name, layer in weight_layers(model):
        if not isinstance(layer, QuantizedLayer):
            continue
        if layer.weight_grid.bits > 8:
            raise ValueError(
                f"{name} has weights of {layer.weight_grid.bits} bits: ONNX Runtime convolves integers of up to 8 "
                "bits; quantize with bits=8"
            )
        if not layer.weight_grid.symmetric:
            raise ValueError(
                f"{name} has weights with a zero point: ONNX Runtime convolves integers without; "
                "quantize with symmetric=True"
            )
