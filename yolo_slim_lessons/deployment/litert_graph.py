"""The graph of a model in LiteRT's operators: with floats, with the integers of a quantized model, or some of each.

It is written node by node, as ``onnx_graph`` does it, and images are N×H×W×C. Between the layers of a quantized model
lie tensors of int8 (the model's integers less 128), weights are int8 with a scale for each output channel, and biases
int32. Scales, zero points and integers are the model's. Used in lesson 12.

What differs from the model's own arithmetic:

- The first convolution computes with floats, from the same weights. A background is one number in thousands of
  places, and rounding it on the way to SiLU is one error in all of them: 7 dB were left of nano instead of 22.
- An integer convolution puts out 8 bits, where the model has 16 in front of its activation function. A second grid
  holds what SiLU reads, and SiLU is x times ``LOGISTIC``, both on integers. Of nano's answers as many stay as with a
  SiLU of floats in between, in two thirds of the time. ReLU costs nothing: below zero the grid ends.
- The average over all positions is taken in floats: of integers LiteRT's kernels round it in different directions.
- The last layer multiplies in 16 by 8 bits and puts out 16, as 8 would make many scores equal. As a convolution of 1×1
  it is an operator that runtimes have had since 2020, with a scale for each class.
- What attention computes from queries, keys and values stays in float.

Where only weights are quantized, the file holds their integers (of 2 and 3 bits as 4) and each is made a float when
the file is opened. tflite-micro cannot do that.

Leaves out: activations of more than 8 bits; HARD_SWISH on integers, which is computed in floats here.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.deployment.exporting import check_kernels, grid_in_front_of
from yolo_slim_lessons.deployment.litert_tensors import Tensor, Tensors
from yolo_slim_lessons.graph import Graph, Node, Walk
from yolo_slim_lessons.models import blank_images, copy_model
from yolo_slim_lessons.quantization import IntegerGrid, QuantizedActivation, QuantizedLayer, QuantizedModel
from yolo_slim_lessons.quantization.folding import fold_batchnorm
from yolo_slim_lessons.quantization.simulation import graph_of

NO_FUNCTION, RELU = 0, 1  # in the schema's count
SAME, VALID = 0, 1
CHANNELS_LAST = {0: 0, 1: 3, 2: 1, 3: 2}  # where a dimension of N×C×H×W lies in N×H×W×C
# What LOGISTIC puts out; its kernels take no other grid.
SIGMOID_GRID = IntegerGrid(8, torch.tensor(1 / 256), torch.tensor(0, dtype=torch.int32), signed=False)


def litert_graph(
    model: ClassificationModel,
    image_size: int,
    precision: str = "fp32",
    probabilities: bool = False,
    properties: Mapping[str, object] | None = None,
) -> bytes:
    """The file: ``images``, float32 N×H×W×C in 0…1, to ``logits`` or ``probabilities``, float32 N×classes.

    Args:
        model: any classifier; BatchNorm is folded into its convolutions. A layer of a quantized model that was left in
            float computes so.
        image_size: pixels a side.
        precision: ``"fp32"`` or ``"fp16"``, of float weights in the file.
        probabilities: end with a softmax.
        properties: what the file says of itself.

    Raises:
        ImportError: ``ai-edge-litert`` is not installed.
        TypeError: a part of the model is not understood (named, with its place).
        ValueError: activations or weights of more than 8 bits, weights with a zero point under quantized activations,
            or an activation function that has no operator here.
    """
    check_kernels(model, "LiteRT")
    model = copy_model(model).cpu()
    if not any(isinstance(layer, QuantizedLayer) for layer in model.modules()):
        model = fold_batchnorm(model.float())
    images = blank_images(model, image_size)
    writer = _Writer(model, graph_of(model, images), precision)
    channels, height, width = images.shape[1:]
    pixels = writer.activations("images", (1, height, width, channels), channels_last=True)
    scores = writer.real(writer.run(writer.graph, pixels))
    if probabilities:
        scores = writer.like("SOFTMAX", "probabilities", [scores], beta=1.0)
    name = "probabilities" if probabilities else "logits"
    writer.tensors[scores.index].name = name
    return writer.finished({"images": pixels.index}, {name: scores.index}, properties or {})


class _Writer(Walk, Tensors):
    """Writes operators; the value of each node is a ``Tensor``."""

    def __init__(self, model: ClassificationModel, graph: Graph, precision: str):
        Tensors.__init__(self, np.float16 if precision == "fp16" else np.float32)
        self.graph = graph
        self.readers = graph.readers()
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.integers = isinstance(model, QuantizedModel)  # between the layers, that is
        self.fused: set[str] = set()  # activation functions that the convolution in front computes

    def conv(self, node: Node, x: Tensor) -> Tensor:
        layer, behind = self.modules[node.name], self.activation_behind(node)
        act = self.modules[behind.name] if behind else None
        grid, function = None, act
        if isinstance(act, QuantizedActivation):
            function = act.function
            if isinstance(layer, QuantizedLayer) and node.inputs != (0,):
                grid = act.output_grid if isinstance(function, nn.ReLU | nn.Identity) else grid_in_front_of(act)
        if isinstance(function, nn.ReLU):
            self.fused.add(behind.name)
        x = self.ordered(x, channels_last=True)
        x = self.real(x) if grid is None else self.on_grid(f"{node.name}.input", x, layer.input_grid)
        x, padding = self.padded(node, x, layer)
        settings = {
            "padding": padding,
            "strideH": layer.stride[0],
            "strideW": layer.stride[1],
            "dilationHFactor": layer.dilation[0],
            "dilationWFactor": layer.dilation[1],
            "fusedActivationFunction": RELU if isinstance(function, nn.ReLU) else NO_FUNCTION,
        }
        operator, form, options = "CONV_2D", "conv", "Conv2DOptions"
        if layer.groups == layer.in_channels > 1:
            operator, form, options = "DEPTHWISE_CONV_2D", "depthwise", "DepthwiseConv2DOptions"
            settings["depthMultiplier"] = layer.out_channels // layer.groups
        channels, height, width = node.shape
        shape, weights = (1, height, width, channels), self.weights(node.name, layer, form, grid is not None)
        made = self.new(operator, node.name, [x], shape, grid, True, weights, options=options, **settings)
        return made if grid is None else self.limited(made)

    def activation_behind(self, node: Node) -> Node | None:
        """The activation function that reads ``node``, if nothing else does."""
        readers = [self.graph.nodes[position] for position in self.readers[self.graph.nodes.index(node)]]
        return readers[0] if [reader.kind for reader in readers] == ["activation"] else None

    def padded(self, node: Node, x: Tensor, layer: nn.Conv2d) -> tuple[Tensor, int]:
        """What ``layer`` reads, and LiteRT's word for its padding, which for most strides of 2 has to be written out."""
        around = [(padding, padding) for padding in layer.padding]
        if not any(layer.padding):
            return x, VALID
        same = []  # what SAME adds in front and behind: half each, and the odd one behind
        for size, kernel, stride, dilation in zip(
            x.shape[1:3], layer.kernel_size, layer.stride, layer.dilation, strict=True
        ):
            total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
            same.append((total // 2, total - total // 2))
        if around == same:
            return x, SAME
        pads = [(0, 0), *around, (0, 0)]
        shape = [size + sum(pad) for size, pad in zip(x.shape, pads, strict=True)]
        return self.new("PAD", f"{node.name}.padded", [x], shape, x.grid, True, [self.numbers(pads)]), VALID

    def weights(self, name: str, layer: nn.Module, form: str, with_integers: bool) -> list[int]:
        if with_integers:
            return self.integer_weights(name, layer, form)
        return self.float_weights(name, layer, form, isinstance(layer, QuantizedLayer) and not self.integers)

    def linear(self, node: Node, x: Tensor) -> Tensor:
        layer, shape = self.modules[node.name], (1, *node.shape)
        if self.integers and isinstance(layer, QuantizedLayer):
            return self.integer_linear(node.name, layer, self.on_grid(f"{node.name}.input", x, layer.input_grid))
        weights = self.weights(node.name, layer, "linear", False)
        return self.new("FULLY_CONNECTED", node.name, [self.real(x)], shape, constants=weights)

    def integer_linear(self, name: str, layer: QuantizedLayer, x: Tensor) -> Tensor:
        """Integers less their zero point as int16, whose products are summed and put out as int16, then as floats."""
        inputs, outputs = (1, 1, 1, layer.in_features), (1, 1, 1, layer.out_features)
        wide = self.tensor(f"{name}.int16", x.shape, "int16", scale=layer.input_grid.scale.item())
        self.operator("QUANTIZE", [x.index], wide)
        pixel = self.tensor(f"{name}.pixel", inputs, "int16", scale=layer.input_grid.scale.item())
        self.reshaped(wide, pixel, inputs)
        weight, *bias = self.integer_weights(name, layer, "conv")
        if bias:  # next to 16 bits a bias has 64
            scales = self.tensors[bias[0]].quantization.scale
            bias = [self.constant(f"{name}.bias", layer.bias_integers.numpy().astype(np.int64), scale=scales)]
        scale = largest_sum(layer) / 32767
        sums = self.tensor(f"{name}.sums", outputs, "int16", scale=scale)
        settings = {"padding": VALID, "strideH": 1, "strideW": 1, "options": "Conv2DOptions"}
        self.operator("CONV_2D", [pixel, weight, *bias], sums, **settings)
        flat = self.tensor(f"{name}.flat", (1, layer.out_features), "int16", scale=scale)
        self.reshaped(sums, flat, (1, layer.out_features))
        made = self.activations(name, (1, layer.out_features))
        self.operator("DEQUANTIZE", [flat], made.index)
        return made

    def activation(self, node: Node, x: Tensor) -> Tensor:
        act = self.modules[node.name]
        if not isinstance(act, QuantizedActivation):
            return self.function(node.name, x, act)
        if x.grid is not None and isinstance(act.function, nn.ReLU | nn.Identity):
            return x
        if x.grid is not None and isinstance(act.function, nn.SiLU):
            gate = self.like("LOGISTIC", f"{node.name}.sigmoid", [x], SIGMOID_GRID)
            return self.limited(self.like("MUL", node.name, [x, gate], act.output_grid))
        return self.on_grid(node.name, self.function(node.name, self.real(x), act.function), act.output_grid)

    def function(self, name: str, x: Tensor, function: nn.Module) -> Tensor:
        """The activation function of floats."""
        if name in self.fused or isinstance(function, nn.Identity):
            return x
        if isinstance(function, nn.ReLU):
            return self.like("RELU", f"{name}.function", [x])
        if isinstance(function, nn.Hardswish):
            return self.like("HARD_SWISH", f"{name}.function", [x])
        return self.like("MUL", f"{name}.function", [x, self.like("LOGISTIC", f"{name}.sigmoid", [x])])  # SiLU

    def sum(self, node: Node, first: Tensor, second: Tensor) -> Tensor:
        last, clamped = first.channels_last or second.channels_last, self.modules.get(node.name)
        both = [self.ordered(x, last) for x in (first, second)]
        if clamped is None:
            return self.like("ADD", node.name, [self.real(x) for x in both])
        both = [self.on_grid(f"{node.name}.{which}", x, clamped.output_grid) for which, x in enumerate(both)]
        return self.limited(self.like("ADD", node.name, both, clamped.output_grid))

    def concat(self, node: Node, *parts: Tensor) -> Tensor:
        last = any(part.channels_last for part in parts)
        parts = [self.ordered(part, last) for part in parts]
        axis = CHANNELS_LAST[node.settings["axis"]] if last else node.settings["axis"]
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        return self.new("CONCATENATION", node.name, parts, shape, parts[0].grid, last, axis=axis)

    def split(self, node: Node, x: Tensor) -> Tensor:
        axis = CHANNELS_LAST[node.settings["axis"]] if x.channels_last else node.settings["axis"]
        start, stop, shape = [0] * len(x.shape), list(x.shape), list(x.shape)
        start[axis], stop[axis] = node.settings["start"], node.settings["stop"]
        shape[axis] = stop[axis] - start[axis]
        others = sum(2**each for each in range(len(shape)) if each != axis)  # whole, however many images there are
        ends = [self.numbers(each) for each in (start, stop, [1] * len(shape))]
        return self.new(
            "STRIDED_SLICE", node.name, [x], shape, x.grid, x.channels_last, ends, beginMask=others, endMask=others
        )

    def reshape(self, node: Node, x: Tensor) -> Tensor:
        if x.channels_last and x.shape[1:3] != (1, 1):  # else both orders are the same
            x = self.ordered(x, channels_last=False)
        made = self.activations(node.name, (1, *node.shape), x.grid)
        self.reshaped(x.index, made.index, made.shape)
        return made

    def reshaped(self, source: int, target: int, shape: tuple[int, ...]) -> None:
        shape = (-1, *shape[1:])
        self.operator("RESHAPE", [source, self.numbers(shape)], target, newShape=np.array(shape, np.int32))

    def transpose(self, node: Node, x: Tensor) -> Tensor:
        return self.transposed(node.name, self.ordered(x, channels_last=False), node.settings["order"])

    def dropout(self, node: Node, x: Tensor) -> Tensor:
        return x

    def pool(self, node: Node, x: Tensor) -> Tensor:
        x = self.real(self.ordered(x, channels_last=True))
        settings = {"constants": [self.numbers([1, 2])], "options": "ReducerOptions", "keepDims": True}
        return self.new("MEAN", node.name, [x], (1, 1, 1, x.shape[3]), channels_last=True, **settings)

    def scale(self, node: Node, x: Tensor) -> Tensor:
        factor = self.constant("", np.float32([node.settings["factor"]]))
        return self.like("MUL", node.name, [self.real(x)], constants=[factor])

    def matmul(self, node: Node, first: Tensor, second: Tensor) -> Tensor:
        both = [self.ordered(self.real(x), channels_last=False) for x in (first, second)]
        return self.new("BATCH_MATMUL", node.name, both, (1, *node.shape), options="BatchMatMulOptions")

    def softmax(self, node: Node, x: Tensor) -> Tensor:
        return self.like("SOFTMAX", node.name, [x], beta=1.0)


def largest_sum(layer: QuantizedLayer) -> float:
    """The largest magnitude that the sums of ``layer`` can have, whatever it reads; a real number."""
    grid, weight = layer.input_grid, layer.integers.double()
    ends = [weight * (end - grid.zero_point.item()) for end in (grid.lowest, grid.highest)]
    bias = 0 if layer.bias_integers is None else layer.bias_integers.double()
    sums = [extreme(*ends).sum(1) + bias for extreme in (torch.minimum, torch.maximum)]
    return (torch.maximum(*(each.abs() for each in sums)) * layer.accumulator_scale).max().item()
