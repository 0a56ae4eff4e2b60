"""From a picture to the network's input, and from logits to probabilities, inside the graph. Used in lesson 09.

The same steps as in ``slim.load_images``: the shorter edge is resized with PIL's bilinear filter, the centre is cut
out, and bytes become floats in 0…1. Leaves out: reading a file, and turning a photograph that a phone held sideways.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def with_preprocessing(model: onnx.ModelProto, image_size: int) -> onnx.ModelProto:
    """The graph from ``pictures``, uint8 N×H×W×3 of any one size, RGB, to ``probabilities``, N×classes, in a copy.

    Args:
        model: a graph from ``images``, float N×3×S×S, to ``logits``.
        image_size: S.
    """
    edges = _Steps()
    edge = edges.constant("edge", np.array([image_size]))
    two = edges.constant("two", np.array([2]))
    axes = edges.constant("axes", np.array([1, 2]))
    size = edges("Shape", "pictures", start=1, end=3)
    shorter = edges("ReduceMin", size, keepdims=1)
    new_size = edges("Div", edges("Mul", size, edge), shorter)  # the longer edge is rounded down, as torchvision does
    resized = edges(
        "Resize", "pictures", "", "", new_size, axes=[1, 2], mode="linear", antialias=1, exclude_outside=1
    )  # outside of the picture there is nothing: without exclude_outside its edge would count for it
    # Half of what is too much, rounded to even as torchvision does: (excess + (excess / 2) mod 2) / 2.
    excess = edges("Sub", new_size, edge)
    odd = edges("Mod", edges("Div", excess, two), two)
    start = edges("Div", edges("Add", excess, odd), two)
    centre = edges("Slice", resized, start, edges("Add", start, edge), axes)
    floats = edges("Cast", edges("Transpose", centre, perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
    edges("Div", floats, edges.constant("largest", np.float32(255)), output="images")

    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    graph = whole.graph
    nodes = [*edges.nodes, *graph.node, helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1)]
    classes = graph.output[0].type.tensor_type.shape.dim[1].dim_value
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.initializer.extend(edges.constants)
    graph.input.append(helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["batch", "height", "width", 3]))
    graph.output.append(helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", classes]))
    return whole


class _Steps:
    """Nodes so far; a call adds one and returns the name of its result."""

    def __init__(self):
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def __call__(self, operator: str, *inputs: str, output: str | None = None, **attributes) -> str:
        output = output or f"preprocessing/{len(self.nodes)}_{operator}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: np.ndarray | np.generic) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), f"preprocessing.{name}"))
        return self.constants[-1].name
