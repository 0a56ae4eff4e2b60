"""The graph of a model in ONNX's operators: with floats, with the integers of a quantized model, or some of each.

It is written node by node. Between the layers of a quantized model lie tensors of 8 bits: each layer reads them through
``DequantizeLinear`` and writes them through ``QuantizeLinear`` ("QDQ"), and a runtime fuses what stands between into
one operation on integers. Scales, zero points and integers are the model's. Used in lesson 09.

What makes the integers fast in ONNX Runtime:

- The first convolution computes with floats, from the same weights. Its 27 products for each number leave integers
  nothing to win, and the image needs no rounding: an 8-bit pixel lies on its grid already.
- What is split, concatenated or added has one grid in our models, so bytes are moved as they are.
- ReLU disappears: below zero the grid ends. Another activation function is computed on floats in between, for there is
  no operation that looks numbers up in a table. Integer convolutions put out 8 bits and no more, so a second grid
  holds what such a function reads, where the model has 16 bits; that costs some of the accuracy.

Sums are rounded once, to 8 bits, where the model rounds them to 16 bits first: now and then a number ends up one level
off, and very few answers change. What attention computes from queries, keys and values stays in float.

Where only weights are quantized, the file holds their integers and each is made a float when the file is opened. Four
bits are the fewest that ONNX has a type for that runtimes know; weights of 2 and 3 bits take four.

Leaves out: activations of more than 8 bits, which ONNX Runtime has no integer convolution for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.graph import Graph, Node, Walk
from yolo_slim_lessons.models import blank_images, copy_model, weight_layers
from yolo_slim_lessons.quantization import IntegerGrid, QuantizedActivation, QuantizedLayer, QuantizedModel
from yolo_slim_lessons.quantization.folding import fold_batchnorm
from yolo_slim_lessons.quantization.simulation import graph_of

OPSET, IR_VERSION = 18, 8
INT4_OPSET, INT4_IR_VERSION = 21, 10  # the first that know integers of 4 bits


@dataclass(frozen=True)
class Bytes:
    """A uint8 tensor of the graph: its name, and the names of the scale and the zero point of its grid."""

    name: str
    scale: str
    zero_point: str


@dataclass(frozen=True)
class Sums:
    """What a convolution puts out: the name of the floats, and whether integers were multiplied."""

    name: str
    of_integers: bool


def onnx_graph(model: ClassificationModel, image_size: int, precision: str = "fp32") -> onnx.ModelProto:
    """The graph: ``images``, float32 N×C×H×W in 0…1, to ``logits``, float32 N×classes.

    Args:
        model: any classifier; BatchNorm is folded into its convolutions. Quantized weights stay integers in the graph.
            A layer of a quantized model that was left in float computes so.
        image_size: pixels a side.
        precision: ``"fp32"`` or ``"fp16"``, of float weights and of what lies between the layers.

    Raises:
        TypeError: a part of the model is not understood (named, with its place).
        ValueError: activations of more than 8 bits, weights with a zero point under quantized activations, or an
            activation function that has no operator here.
    """
    _check(model)
    if not any(isinstance(layer, QuantizedLayer) for layer in model.modules()):
        model = fold_batchnorm(copy_model(model).float())
    images = blank_images(model, image_size)
    writer = _Writer(model, graph_of(model, images), precision)
    writer.run(writer.graph, writer.image())
    return writer.finished(image_size, images.shape[1])


class _Writer(Walk):
    """Nodes and constants so far. The value of a node is the name of its floats, or ``Bytes``, or ``Sums``."""

    def __init__(self, model: ClassificationModel, graph: Graph, precision: str):
        self.graph = graph
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.integers = isinstance(model, QuantizedModel)  # between the layers, that is
        self.half = precision == "fp16"
        self.float_type = np.float16 if self.half else np.float32
        self.classes = len(model.names)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.pieces: dict[str, list[str]] = {}  # of what is split: names of the pieces
        quantized = any(isinstance(module, QuantizedLayer) for module in self.modules.values())
        self.opset = INT4_OPSET if quantized and not self.integers else OPSET

    def node(self, operator: str, inputs: list[str], name: str, **attributes) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: np.ndarray | np.generic) -> str:
        self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def floats(self, name: str, tensor: torch.Tensor) -> str:
        return self.constant(name, tensor.detach().cpu().numpy().astype(self.float_type))

    def quantize(self, name: str, x: str, grid: IntegerGrid) -> Bytes:
        """Float tensor ``x`` as bytes on ``grid``."""
        scale = self.constant(f"{name}.scale", np.float32(grid.scale.item()))
        zero_point = self.constant(f"{name}.zero_point", np.uint8(grid.zero_point.item()))
        integers = self.node("QuantizeLinear", [x, scale, zero_point], f"{name}/QuantizeLinear")
        if grid.highest < 255:  # of fewer bits, though a byte could hold more
            highest = self.constant(f"{name}.highest", np.uint8(grid.highest))
            integers = self.node("Clip", [integers, "", highest], f"{name}/Clip")
        return Bytes(integers, scale, zero_point)

    def real(self, reader: str, x: str | Bytes | Sums) -> str:
        """The floats that ``x`` stands for, as an input of ``reader``: each has a node of its own, to fuse with."""
        if isinstance(x, Bytes):
            return self.node("DequantizeLinear", [x.name, x.scale, x.zero_point], f"{reader}/DequantizeLinear")
        return x.name if isinstance(x, Sums) else x

    def moved(self, x: str | Bytes, name: str) -> str | Bytes:
        """The same kind of value as ``x``, called ``name``: bytes stay on their grid."""
        return Bytes(name, x.scale, x.zero_point) if isinstance(x, Bytes) else name

    def image(self) -> str:
        return self.node("Cast", ["images"], "images/Cast", to=TensorProto.FLOAT16) if self.half else "images"

    def weights(self, name: str, layer: nn.Module, with_integers: bool) -> list[str]:
        """Names of weight and bias of ``layer``: integers with a scale for each output channel, or floats."""
        if with_integers:
            channels = len(layer.integers)
            parts = {"weight": (layer.integers, layer.weight_grid.scale)}
            if layer.bias_integers is not None:
                parts["bias"] = (layer.bias_integers, layer.accumulator_scale)
            names = []
            for part, (numbers, scale) in parts.items():
                inputs = [
                    self.constant(f"{name}.{part}", numbers.cpu().numpy()),
                    self.constant(f"{name}.{part}_scale", scale.float().expand(channels).cpu().numpy()),
                ]
                if isinstance(layer, nn.Linear):  # ONNX Runtime fuses a Gemm only where zero points stand there
                    zero_point = np.zeros(channels, numbers.cpu().numpy().dtype)
                    inputs.append(self.constant(f"{name}.{part}_zero_point", zero_point))
                names.append(self.node("DequantizeLinear", inputs, f"{name}.{part}/DequantizeLinear", axis=0))
            return names
        if isinstance(layer, QuantizedLayer) and not self.integers:
            names = [self.stored_weight(name, layer)]
        else:
            names = [self.floats(f"{name}.weight", layer.weight)]
        return names + ([] if layer.bias is None else [self.floats(f"{name}.bias", layer.bias)])

    def stored_weight(self, name: str, layer: QuantizedLayer) -> str:
        """The integers of a layer, and a node that makes them floats."""
        grid = layer.weight_grid
        inputs = [f"{name}.weight", f"{name}.weight_scale", f"{name}.weight_zero_point"]
        self.constants[inputs[0]] = integer_tensor(inputs[0], layer.integers, grid)
        self.floats(inputs[1], grid.scale)
        self.constants[inputs[2]] = integer_tensor(inputs[2], grid.zero_point, grid)
        axis = {"axis": 0} if grid.scale.dim() else {}
        return self.node("DequantizeLinear", inputs, f"{name}.weight/DequantizeLinear", **axis)

    def conv(self, node: Node, x: str | Bytes) -> Sums:
        layer = self.modules[node.name]
        if self.integers and isinstance(x, str) and x != "images" and isinstance(layer, QuantizedLayer):
            x = self.quantize(f"{node.name}.input", x, layer.input_grid)
        with_integers = isinstance(x, Bytes) and isinstance(layer, QuantizedLayer)
        y = self.node(
            "Conv",
            [self.real(node.name, x), *self.weights(node.name, layer, with_integers)],
            f"{node.name}/Conv",
            kernel_shape=list(layer.kernel_size),
            strides=list(layer.stride),
            pads=[*layer.padding, *layer.padding],
            dilations=list(layer.dilation),
            group=layer.groups,
        )
        return Sums(y, with_integers)

    def activation(self, node: Node, x: Sums | str) -> str | Bytes:
        act = self.modules[node.name]
        function = act.function if isinstance(act, QuantizedActivation) else act
        y = self.real(node.name, x)
        if isinstance(act, QuantizedActivation):
            if x.of_integers and not isinstance(function, nn.ReLU | nn.Identity):
                front = self.quantize(x.name.removesuffix("/Conv"), y, grid_in_front_of(act))
                y = self.real(node.name, front)
            return self.quantize(node.name, self.function(node.name, y, function), act.output_grid)
        return self.function(node.name, y, function)

    def function(self, name: str, x: str, function: nn.Module) -> str:
        if isinstance(function, nn.Identity):
            return x
        if isinstance(function, nn.ReLU):
            return self.node("Relu", [x], f"{name}/Relu")
        if isinstance(function, nn.Hardswish):
            return self.node("HardSwish", [x], f"{name}/HardSwish")
        return self.node("Mul", [x, self.node("Sigmoid", [x], f"{name}/Sigmoid")], f"{name}/Mul")  # SiLU

    def sum(self, node: Node, first: str | Bytes, second: str | Bytes) -> str | Bytes:
        summands = [self.real(f"{node.name}.{which}", x) for which, x in enumerate((first, second))]
        total = self.node("Add", summands, f"{node.name}/Add")
        clamped = self.modules.get(node.name)
        return total if clamped is None else self.quantize(node.name, total, clamped.output_grid)

    def concat(self, node: Node, *parts: str | Bytes) -> str | Bytes:
        names = [part.name if isinstance(part, Bytes) else part for part in parts]
        for whole, pieces in self.pieces.items():
            if names == pieces:  # a block without anything between its split and its concatenation
                self.nodes = [written for written in self.nodes if list(written.output) != pieces]
                return self.moved(parts[0], whole)
        return self.moved(parts[0], self.node("Concat", names, f"{node.name}/Concat", axis=node.settings["axis"]))

    def split(self, node: Node, x: str | Bytes) -> str | Bytes:
        whole, sizes = x.name if isinstance(x, Bytes) else x, node.settings["sizes"]
        if whole not in self.pieces:
            self.pieces[whole] = [f"{node.name}/Split.{number}" for number in range(len(sizes))]
            how, inputs = {"num_outputs": len(sizes)}, [whole]
            if len(set(sizes)) > 1:
                how, inputs = {}, [whole, self.constant(f"{node.name}.sizes", np.array(sizes))]
            name, axis = f"{node.name}/Split", node.settings["axis"]
            self.nodes.append(helper.make_node("Split", inputs, self.pieces[whole], name=name, axis=axis, **how))
        place = [sum(sizes[:number]) for number in range(len(sizes))].index(node.settings["start"])
        return self.moved(x, self.pieces[whole][place])

    def reshape(self, node: Node, x: str | Bytes) -> str | Bytes:
        name = x.name if isinstance(x, Bytes) else x
        if len(node.shape) == 1:
            return self.moved(x, self.node("Flatten", [name], f"{node.name}/Flatten"))
        shape = self.constant(f"{node.name}.shape", np.array([0, *node.shape]))
        return self.moved(x, self.node("Reshape", [name, shape], f"{node.name}/Reshape"))

    def transpose(self, node: Node, x: str | Bytes) -> str | Bytes:
        name = x.name if isinstance(x, Bytes) else x
        order = list(node.settings["order"])
        return self.moved(x, self.node("Transpose", [name], f"{node.name}/Transpose", perm=order))

    def dropout(self, node: Node, x: str | Bytes) -> str | Bytes:
        return x

    def pool(self, node: Node, x: str | Bytes) -> str | Bytes:
        mean, reader = self.average(node, x), self.reader(node)
        if self.integers and isinstance(reader, QuantizedLayer):  # at once, so that all of it is one operation
            return self.quantize(node.name, mean, reader.input_grid)
        return mean

    def reader(self, node: Node) -> nn.Module | None:
        """The layer that reads the result of ``node``, unchanged but for its shape."""
        readers, position = self.graph.readers(), self.graph.nodes.index(node)
        while len(readers[position]) == 1:
            position = readers[position][0]
            if self.graph.nodes[position].kind not in ("reshape", "dropout"):
                return self.modules.get(self.graph.nodes[position].name)
        return None

    def average(self, node: Node, x: str | Bytes) -> str:
        real = self.real(node.name, x)
        act = self.modules.get(self.graph.nodes[node.inputs[0]].name)
        if isinstance(act, QuantizedActivation) and not isinstance(act.function, nn.ReLU):
            # Behind floats, ONNX Runtime would turn bytes round before it averages them, which takes longer than the
            # average of floats.
            axes = self.constant(f"{node.name}.axes", np.array([2, 3]))
            return self.node("ReduceMean", [real, axes], f"{node.name}/ReduceMean", keepdims=1)
        return self.node("GlobalAveragePool", [real], f"{node.name}/GlobalAveragePool")

    def linear(self, node: Node, x: str | Bytes) -> str:
        layer = self.modules[node.name]
        with_integers = self.integers and isinstance(layer, QuantizedLayer)
        if with_integers and not isinstance(x, Bytes):
            x = self.quantize(f"{node.name}.input", x, layer.input_grid)
        name = f"{node.name}/Gemm" if self.half else "logits"
        weights = self.weights(node.name, layer, with_integers)
        self.node("Gemm", [self.real(node.name, x), *weights], name, transB=1)
        return self.node("Cast", [name], "logits", to=TensorProto.FLOAT) if self.half else name

    def scale(self, node: Node, x: str | Bytes) -> str:
        factor = self.constant(f"{node.name}.factor", self.float_type(node.settings["factor"]))
        return self.node("Mul", [self.real(node.name, x), factor], f"{node.name}/Mul")

    def matmul(self, node: Node, first: str | Bytes, second: str | Bytes) -> str:
        factors = [self.real(f"{node.name}.{which}", x) for which, x in enumerate((first, second))]
        return self.node("MatMul", factors, f"{node.name}/MatMul")

    def softmax(self, node: Node, x: str) -> str:
        return self.node("Softmax", [x], f"{node.name}/Softmax", axis=node.settings["axis"])

    def finished(self, image_size: int, channels: int) -> onnx.ModelProto:
        images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", channels, image_size, image_size])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", self.classes])
        graph = helper.make_graph(self.nodes, "classifier", [images], [logits], list(self.constants.values()))
        version = INT4_IR_VERSION if self.opset == INT4_OPSET else IR_VERSION
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=version)


def integer_tensor(name: str, integers: torch.Tensor, grid: IntegerGrid) -> onnx.TensorProto:
    """``integers`` in the smallest of ONNX's types that holds the bits of ``grid``: 4, 8 or 16 bits each."""
    shape, numbers = list(integers.shape), integers.cpu().numpy()
    if grid.bits > 4:
        kind, type_ = (TensorProto.INT8, np.int8) if grid.bits <= 8 else (TensorProto.INT16, np.int16)
        return helper.make_tensor(name, kind, shape, numbers.astype(type_).tobytes(), raw=True)
    nibbles = numbers.astype(np.int8).ravel().view(np.uint8) & 0xF
    nibbles = np.append(nibbles, np.zeros(len(nibbles) % 2, np.uint8))
    return helper.make_tensor(name, TensorProto.INT4, shape, (nibbles[::2] | nibbles[1::2] << 4).tobytes(), raw=True)


def grid_in_front_of(act: QuantizedActivation) -> IntegerGrid:
    """8 bits for what ``act`` reads: from where its result is within one step of zero, to the end of its own grid.

    SiLU and Hardswish fade to 0 for negative numbers, and to x for positive ones, so that what lies further out makes
    no difference to the result.
    """
    low, high = act.input_grid.range
    step = act.output_grid.scale
    below = torch.linspace(low.item(), 0, 4097, device=step.device)
    matters = act.function(below.clone()).abs() > step  # a copy: Ultralytics lets activation functions overwrite
    low = below[matters][0] if matters.any() else -step
    return IntegerGrid.from_range(low, torch.minimum(high, act.output_grid.range[1]), bits=8, signed=False)


def _check(model: ClassificationModel) -> None:
    if not isinstance(model, QuantizedModel):
        return
    for name, module in model.named_modules():
        if isinstance(module, QuantizedActivation):
            if module.output_grid.bits > 8:
                raise ValueError(
                    f"{name} puts out {module.output_grid.bits} bits: ONNX Runtime convolves integers of up to 8 bits; "
                    "quantize with activation_bits=8"
                )
            if not isinstance(module.function, nn.ReLU | nn.SiLU | nn.Hardswish | nn.Identity):
                raise ValueError(f"{name} is a {type(module.function).__name__}: expected ReLU, SiLU or Hardswish")
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
