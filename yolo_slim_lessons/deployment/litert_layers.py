"""The layers of a LiteRT graph: convolutions, activation functions and linear layers, of floats or of integers.

Used by ``litert_graph``, which says what is computed how, and why. Leaves out: what happens between the layers.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.deployment.exporting import grid_in_front_of
from yolo_slim_lessons.deployment.litert_tensors import Tensor, Tensors
from yolo_slim_lessons.graph import Graph, Node, Walk
from yolo_slim_lessons.quantization import IntegerGrid, QuantizedActivation, QuantizedLayer, QuantizedModel

NO_FUNCTION, RELU = 0, 1  # in the schema's count
SAME, VALID = 0, 1
# How a weight's dimensions are ordered: outputs, height, width, inputs; or 1, height, width, outputs.
ORDERS = {"conv": (0, 2, 3, 1), "depthwise": (1, 2, 3, 0), "linear": (0, 1)}
OUTPUTS_AXIS = {"conv": 0, "depthwise": 3, "linear": 0}
INT4_VERSION, CHANNELS_VERSION = 6, 5  # of DEQUANTIZE: of 4 bits, and with a scale for each channel
# What LOGISTIC puts out; its kernels take no other grid.
SIGMOID_GRID = IntegerGrid(8, torch.tensor(1 / 256), torch.tensor(0, dtype=torch.int32), signed=False)


class Layers(Walk, Tensors):
    """The value of each node is a ``Tensor``. Arguments as of ``litert_graph``."""

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
        """What ``layer`` reads, and LiteRT's word for its padding; most strides of 2 need an operator for it."""
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

    def integer_weights(self, name: str, layer: QuantizedLayer, form: str) -> list[int]:
        """Weight and bias of a layer that multiplies integers.

        LiteRT's kernels count on weights from -127 to 127, so that two products fit in 16 bits; -128 becomes -127.
        """
        integers = arranged(layer.integers.clamp(min=-127), form)
        scales = layer.weight_grid.scale.float().expand(len(layer.integers)).numpy()
        weight = self.constant(f"{name}.weight", integers, scale=scales, axis=OUTPUTS_AXIS[form])
        if layer.bias_integers is None:
            return [weight]
        scales = layer.accumulator_scale.float().expand(len(layer.integers)).numpy()
        return [weight, self.constant(f"{name}.bias", layer.bias_integers.numpy(), scale=scales)]

    def float_weights(self, name: str, layer: nn.Module, form: str, stored_as_integers: bool) -> list[int]:
        """Weight and bias as floats; the weight of a ``QuantizedLayer`` made of its integers, if so told."""
        version = None
        if stored_as_integers:
            grid, numbers = layer.weight_grid, arranged(layer.integers, form)
            kind, version = ("int4", INT4_VERSION) if grid.bits <= 4 else ("int8", CHANNELS_VERSION)
            places = {"scale": grid.scale.numpy(), "zero_point": grid.zero_point.numpy(), "axis": OUTPUTS_AXIS[form]}
            weight = self.constant(f"{name}.integers", numbers, kind, **places)
        else:
            weight = self.constant(f"{name}.weight", arranged(layer.weight, form).astype(self.float_type))
        if self.types[weight] != "float32":
            floats = self.tensor(f"{name}.weight", self.tensors[weight].shape, "float32")
            self.operator("DEQUANTIZE", [weight], floats, version)
            weight = floats
        if layer.bias is None:
            return [weight]
        return [weight, self.constant(f"{name}.bias", layer.bias.detach().numpy().astype(np.float32))]

    def weights(self, name: str, layer: nn.Module, form: str, with_integers: bool) -> list[int]:
        """Weight and bias; ``form`` is one of ``ORDERS``."""
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

    def reshaped(self, source: int, target: int, shape: tuple[int, ...]) -> None:
        shape = (-1, *shape[1:])
        self.operator("RESHAPE", [source, self.numbers(shape)], target, newShape=np.array(shape, np.int32))


def largest_sum(layer: QuantizedLayer) -> float:
    """The largest magnitude that the sums of ``layer`` can have, whatever it reads; a real number."""
    grid, weight = layer.input_grid, layer.integers.double()
    ends = [weight * (end - grid.zero_point.item()) for end in (grid.lowest, grid.highest)]
    bias = 0 if layer.bias_integers is None else layer.bias_integers.double()
    sums = [extreme(*ends).sum(1) + bias for extreme in (torch.minimum, torch.maximum)]
    return (torch.maximum(*(each.abs() for each in sums)) * layer.accumulator_scale).max().item()


def arranged(weight: torch.Tensor, form: str) -> np.ndarray:
    """The numbers of ``weight`` in the order of ``form``; a linear layer's may also be those of a 1×1 convolution."""
    numbers = weight.detach().numpy()
    if form == "conv" and numbers.ndim == 2:
        numbers = numbers[:, :, None, None]
    return np.ascontiguousarray(numbers.transpose(ORDERS[form]))
