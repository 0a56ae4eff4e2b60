"""The graph of a model in LiteRT's operators: with floats, with the integers of a quantized model, or some of each.

It is written node by node, as ``onnx_graph`` does it, and images are N×H×W×C. Between the layers of a quantized model
lie tensors of int8 (the model's integers less 128), weights are int8 with a scale for each output channel, and biases
int32. Scales, zero points and integers are the model's. Used in lesson 12.

What differs from the model's own arithmetic:

- The first convolution computes with floats, from the same weights. A background is one number in thousands of
  places, and rounding it on the way to SiLU is one error in all of them: 7 dB were left of nano's logits, not 22.
- An integer convolution puts out 8 bits, where the model has 16 in front of its activation function. A second grid
  holds what SiLU reads, and SiLU is x times ``LOGISTIC``, both on integers. Two other ways kept just as many of nano's
  answers: SiLU in floats in between took a sixth longer, and a table (``GATHER``, which XNNPACK leaves to slower
  kernels) two and a half times as long. ReLU costs nothing: below zero the grid ends.
- The average over all positions is taken in floats: of integers LiteRT's kernels round it in different directions.
- The last layer multiplies in 16 by 8 bits and puts out 16, as 8 would make many scores equal. It is a convolution of
  1×1, which with a scale for each class is the older operator.
- What attention computes from queries, keys and values stays in float.

Where only weights are quantized, the file holds their integers (of 2 and 3 bits as 4) and each is made a float when
the file is opened. tflite-micro cannot do that.

Leaves out: activations of more than 8 bits; HARD_SWISH on integers, which is computed in floats here.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.deployment.exporting import check_kernels
from yolo_slim_lessons.deployment.litert_layers import Layers
from yolo_slim_lessons.deployment.litert_tensors import Tensor
from yolo_slim_lessons.graph import Node
from yolo_slim_lessons.models import blank_images, copy_model
from yolo_slim_lessons.quantization import QuantizedLayer, QuantizedModel
from yolo_slim_lessons.quantization.folding import fold_batchnorm
from yolo_slim_lessons.quantization.simulation import graph_of

CHANNELS_LAST = {0: 0, 1: 3, 2: 1, 3: 2}  # where a dimension of N×C×H×W lies in N×H×W×C


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
    _check_weights(model)
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


def _check_weights(model: ClassificationModel) -> None:
    """Raise ``ValueError`` if LiteRT cannot make floats of some integers of ``model``."""
    for name, layer in model.named_modules():
        if isinstance(layer, QuantizedLayer) and layer.weight_grid.bits > 8 and not isinstance(model, QuantizedModel):
            raise ValueError(
                f"{name} has weights of {layer.weight_grid.bits} bits: LiteRT makes floats of up to 8; quantize with "
                "bits=8, or export slim.dequantize(model)"
            )


class _Writer(Layers):
    """Adds what happens between the layers."""

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
        if node.settings["axis"] != len(node.shape):
            raise TypeError(f"{node.name} is taken over dimension {node.settings['axis']}: LiteRT has it over the last")
        return self.like("SOFTMAX", node.name, [x], beta=1.0)
