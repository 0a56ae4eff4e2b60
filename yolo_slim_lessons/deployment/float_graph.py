"""An ONNX graph that computes with floats: traced from any classifier, in FP32 or FP16. Used in lesson 09.

Where only weights are quantized, the file holds their integers and each is made a float when the file is opened. Four
bits are the fewest that ONNX has a type for that runtimes know; weights of 2 and 3 bits take four.

Leaves out: models with quantized activations (``integer_graph.py``).
"""

from __future__ import annotations

import io
import warnings

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, version_converter
from torch import nn
from ultralytics.nn.modules import C2f
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.models import copy_model, logits, weight_layers
from yolo_slim_lessons.quantization import QuantizedLayer
from yolo_slim_lessons.quantization.grids import IntegerGrid

OPSET = 18
INT4_OPSET, INT4_IR_VERSION = 21, 10  # the first that know integers of 4 bits


class _Scores(nn.Module):
    """Logits alone, whatever else the model answers with; in FP32 outside, whatever it computes with inside."""

    def __init__(self, model: ClassificationModel):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        weight = next(self.model.parameters())
        return logits(self.model, images.to(weight.dtype)).float()


def float_graph(model: ClassificationModel, image_size: int, precision: str = "fp32") -> onnx.ModelProto:
    """The graph: ``images``, float32 N×3×H×W in 0…1, to ``logits``, float32 N×classes.

    Args:
        model: any classifier; BatchNorm is folded into its convolutions. Quantized weights stay integers in the graph.
        image_size: pixels a side.
        precision: ``"fp32"`` or ``"fp16"``, of weights and of what lies between the layers.
    """
    model = copy_model(model).eval()
    for block in model.modules():
        if isinstance(block, C2f):
            block.forward = block.forward_split  # as in Ultralytics' own export: chunk() would be traced to Slice nodes
    scores = _Scores(model.half() if precision == "fp16" else model)
    traced = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter by tracing is deprecated, but needs no further package
        torch.onnx.export(
            scores, (torch.zeros(1, 3, image_size, image_size),), traced, dynamo=False, opset_version=OPSET,
            input_names=["images"], output_names=["logits"],
            dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
        )  # fmt: skip
    graph = onnx.load_from_string(traced.getvalue())
    integers = {
        f"model.{name}.weight": layer for name, layer in weight_layers(model) if isinstance(layer, QuantizedLayer)
    }
    return _with_integer_weights(graph, integers) if integers else graph


def _with_integer_weights(model: onnx.ModelProto, layers: dict[str, QuantizedLayer]) -> onnx.ModelProto:
    """``model`` with the named weights as integers, each with a node that makes it floats again."""
    model = version_converter.convert_version(model, INT4_OPSET)
    model.ir_version = INT4_IR_VERSION
    graph = model.graph
    rest = [tensor for tensor in graph.initializer if tensor.name not in layers]
    nodes = []
    for name, layer in layers.items():
        grid = layer.weight_grid
        inputs = [f"{name}_integers", f"{name}_scale", f"{name}_zero_point"]
        rest += [
            integer_tensor(inputs[0], layer.integers, grid),
            onnx.numpy_helper.from_array(grid.scale.float().numpy(), inputs[1]),
            integer_tensor(inputs[2], grid.zero_point, grid),
        ]
        axis = {"axis": 0} if grid.scale.dim() else {}
        nodes.append(helper.make_node("DequantizeLinear", inputs, [name], name=f"{name}/DequantizeLinear", **axis))
    nodes += graph.node
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(rest)
    graph.node.extend(nodes)
    return model


def integer_tensor(name: str, integers: torch.Tensor, grid: IntegerGrid) -> onnx.TensorProto:
    """``integers`` in the smallest of ONNX's types that holds the bits of ``grid``: 4, 8 or 16 bits each."""
    shape = list(integers.shape)
    if grid.bits > 4:
        kind, type_ = (TensorProto.INT8, np.int8) if grid.bits <= 8 else (TensorProto.INT16, np.int16)
        return helper.make_tensor(name, kind, shape, integers.numpy().astype(type_).tobytes(), raw=True)
    nibbles = integers.numpy().astype(np.int8).ravel().view(np.uint8) & 0xF
    nibbles = np.append(nibbles, np.zeros(len(nibbles) % 2, np.uint8))
    return helper.make_tensor(name, TensorProto.INT4, shape, (nibbles[::2] | nibbles[1::2] << 4).tobytes(), raw=True)
