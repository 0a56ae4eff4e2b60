"""The graph of a model in ONNX's operators: with floats, with the integers of a quantized model, or some of each.

It is written node by node. Between the layers of a quantized model lie tensors of 8 bits: each layer reads them through
``DequantizeLinear`` and writes them through ``QuantizeLinear`` ("QDQ"), and a runtime fuses what stands between into
one operation on integers. Scales, zero points and integers are the model's. Used in lesson 09.

What makes the integers fast in ONNX Runtime:

- The first convolution computes with floats, from the same weights. Its 27 products for each number leave integers
  nothing to win, and the image needs no rounding: an 8-bit pixel lies on its grid already.
- What is split, concatenated or added has one grid in our models, so bytes are moved as they are.
- ReLU disappears: below zero the grid ends. Another activation function is computed on floats in between. Integer
  convolutions put out 8 bits and no more, so a second grid holds what such a function reads, where the model has 16
  bits; that costs some of the accuracy.

Sums are rounded once, to 8 bits, where the model rounds them to 16 bits first: now and then a number ends up one level
off, and very few answers change. What attention computes from queries, keys and values stays in float.

Where only weights are quantized, the file holds their integers and each is made a float when the file is opened.
Weights of 2 and 3 bits take four, the fewest that ONNX has a type for that runtimes know.

Leaves out: activations of more than 8 bits, which ONNX Runtime has no integer convolution for.
"""

import itertools

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import nn
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.deployment.exporting import check_kernels, grid_in_front_of
from yolo_slim_lessons.deployment.onnx_tensors import Tensors, Value, moved, name_of
from yolo_slim_lessons.graph import Graph, Node, Walk
from yolo_slim_lessons.models import blank_images, copy_model
from yolo_slim_lessons.quantization import QuantizedActivation, QuantizedLayer, QuantizedModel
from yolo_slim_lessons.quantization.folding import fold_batchnorm
from yolo_slim_lessons.quantization.simulation import graph_of

OPSET, IR_VERSION = 18, 8
INT4_OPSET, INT4_IR_VERSION = 21, 10  # the first that know integers of 4 bits


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
    check_kernels(model, "ONNX Runtime")
    if not any(isinstance(layer, QuantizedLayer) for layer in model.modules()):
        model = fold_batchnorm(copy_model(model).float())
    images = blank_images(model, image_size)
    writer = _Writer(model, graph_of(model, images), precision)
    writer.run(writer.graph, writer.image())
    return writer.finished(tuple(images.shape[1:]))


class _Writer(Walk, Tensors):
    """Writes nodes; the value of each is the name of its floats, or ``Bytes``."""

    def __init__(self, model: ClassificationModel, graph: Graph, precision: str):
        self.half = precision == "fp16"
        Tensors.__init__(self, np.float16 if self.half else np.float32)
        self.graph = graph
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.integers = isinstance(model, QuantizedModel)  # between the layers, that is
        self.integer_sums: set[str] = set()  # results of convolutions that multiplied integers
        self.pieces: dict[str, list[str]] = {}  # of what is split: names of the pieces
        self.classes = len(model.names)
        quantized = any(isinstance(module, QuantizedLayer) for module in self.modules.values())
        self.stores_integers = quantized and not self.integers

    def image(self) -> str:
        return self.node("Cast", "images", ["images"], to=TensorProto.FLOAT16) if self.half else "images"

    def computes_integers(self, layer: nn.Module | None) -> bool:
        return self.integers and isinstance(layer, QuantizedLayer)

    def inputs(self, node: Node, x: Value, with_integers: bool) -> list[str]:
        """What a convolution or linear layer reads: ``x``, weight and bias."""
        layer = self.modules[node.name]
        if not with_integers:
            stored = self.stores_integers and isinstance(layer, QuantizedLayer)
            return [self.real(node.name, x), *self.float_weights(node.name, layer, stored)]
        if isinstance(x, str):  # computed by other means, and rounded where it is read
            x = self.quantize(f"{node.name}.input", x, layer.input_grid)
        return [self.real(node.name, x), *self.integer_weights(node.name, layer)]

    def conv(self, node: Node, x: Value) -> str:
        layer = self.modules[node.name]
        with_integers = self.computes_integers(layer) and x != "images"
        y = self.node(
            "Conv",
            node.name,
            self.inputs(node, x, with_integers),
            kernel_shape=list(layer.kernel_size),
            strides=list(layer.stride),
            pads=[*layer.padding, *layer.padding],
            dilations=list(layer.dilation),
            group=layer.groups,
        )
        if with_integers:
            self.integer_sums.add(y)
        return y

    def linear(self, node: Node, x: Value) -> str:
        inputs = self.inputs(node, x, self.computes_integers(self.modules[node.name]))
        is_last = node is self.graph.nodes[self.graph.output]
        y = self.node("Gemm", node.name, inputs, "logits" if is_last and not self.half else None, transB=1)
        return self.node("Cast", node.name, [y], "logits", to=TensorProto.FLOAT) if is_last and self.half else y

    def activation(self, node: Node, x: str) -> Value:
        act = self.modules[node.name]
        if not isinstance(act, QuantizedActivation):
            return self.function(node.name, x, act)
        if x in self.integer_sums and not isinstance(act.function, nn.ReLU | nn.Identity):
            x = self.real(node.name, self.quantize(x.removesuffix("/Conv"), x, grid_in_front_of(act)))
        return self.quantize(node.name, self.function(node.name, x, act.function), act.output_grid)

    def function(self, name: str, x: str, function: nn.Module) -> str:
        if isinstance(function, nn.Identity):
            return x
        if isinstance(function, nn.ReLU):
            return self.node("Relu", name, [x])
        if isinstance(function, nn.Hardswish):
            return self.node("HardSwish", name, [x])
        return self.node("Mul", name, [x, self.node("Sigmoid", name, [x])])  # SiLU

    def sum(self, node: Node, first: Value, second: Value) -> Value:
        total = self.node("Add", node.name, self.both(node, first, second))
        clamped = self.modules.get(node.name)
        return total if clamped is None else self.quantize(node.name, total, clamped.output_grid)

    def both(self, node: Node, first: Value, second: Value) -> list[str]:
        return [self.real(f"{node.name}.{which}", x) for which, x in enumerate((first, second))]

    def concat(self, node: Node, *parts: Value) -> Value:
        names = [name_of(part) for part in parts]
        for whole, pieces in self.pieces.items():
            if names == pieces:  # a block without anything between its split and its concatenation
                self.nodes = [written for written in self.nodes if list(written.output) != pieces]
                return moved(parts[0], whole)
        return moved(parts[0], self.node("Concat", node.name, names, axis=node.settings["axis"]))

    def split(self, node: Node, x: Value) -> Value:
        whole, sizes = name_of(x), node.settings["sizes"]
        if whole not in self.pieces:
            self.pieces[whole] = [f"{node.name}/Split.{number}" for number in range(len(sizes))]
            how, inputs = {"num_outputs": len(sizes)}, [whole]
            if len(set(sizes)) > 1:
                how, inputs = {}, [whole, self.constant(f"{node.name}.sizes", np.array(sizes))]
            name, axis = f"{node.name}/Split", node.settings["axis"]
            self.nodes.append(helper.make_node("Split", inputs, self.pieces[whole], name=name, axis=axis, **how))
        place = list(itertools.accumulate(sizes, initial=0)).index(node.settings["start"])
        return moved(x, self.pieces[whole][place])

    def reshape(self, node: Node, x: Value) -> Value:
        if len(node.shape) == 1:
            return moved(x, self.node("Flatten", node.name, [name_of(x)]))
        shape = self.constant(f"{node.name}.shape", np.array([0, *node.shape]))
        return moved(x, self.node("Reshape", node.name, [name_of(x), shape]))

    def transpose(self, node: Node, x: Value) -> Value:
        return moved(x, self.node("Transpose", node.name, [name_of(x)], perm=list(node.settings["order"])))

    def dropout(self, node: Node, x: Value) -> Value:
        return x

    def pool(self, node: Node, x: Value) -> Value:
        inputs = [self.real(node.name, x)]
        act = self.modules.get(self.graph.nodes[node.inputs[0]].name)
        if isinstance(act, QuantizedActivation) and not isinstance(act.function, nn.ReLU):
            # Behind floats, ONNX Runtime would turn bytes round before it averages them, which takes longer than the
            # average of floats.
            inputs.append(self.constant(f"{node.name}.axes", np.array([2, 3])))
            mean = self.node("ReduceMean", node.name, inputs, keepdims=1)
        else:
            mean = self.node("GlobalAveragePool", node.name, inputs)
        reader = self.reader(node)
        if self.computes_integers(reader):  # rounded at once, so that all of it is one operation
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

    def scale(self, node: Node, x: Value) -> str:
        factor = self.constant(f"{node.name}.factor", self.float_type(node.settings["factor"]))
        return self.node("Mul", node.name, [self.real(node.name, x), factor])

    def matmul(self, node: Node, first: Value, second: Value) -> str:
        return self.node("MatMul", node.name, self.both(node, first, second))

    def softmax(self, node: Node, x: str) -> str:
        return self.node("Softmax", node.name, [x], axis=node.settings["axis"])

    def finished(self, image_shape: tuple[int, int, int]) -> onnx.ModelProto:
        images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *image_shape])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", self.classes])
        graph = helper.make_graph(self.nodes, "classifier", [images], [logits], list(self.constants.values()))
        opset, version = (INT4_OPSET, INT4_IR_VERSION) if self.stores_integers else (OPSET, IR_VERSION)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=version)
