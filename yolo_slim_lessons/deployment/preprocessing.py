"""From a picture to the network's input, and from logits to probabilities, inside the graph. Used in lesson 09.

The same steps as in ``slim.load_images``: the shorter edge is resized with PIL's bilinear filter, the centre is cut
out, and bytes become floats in 0…1. Leaves out: reading a file, and turning a photograph that a phone held sideways.
"""

import onnx
from onnx import compose, parser

# In ONNX's own notation. The longer edge is rounded down, as torchvision does. Without exclude_outside, the picture's
# edge would count for what is outside. Half of what is too much is rounded to even, as torchvision does:
# (excess + (excess / 2) mod 2) / 2.
BEFORE = """
before (uint8[batch, height, width, 3] pictures) => (float[batch, 3, {size}, {size}] images)
<int64[1] edge = {{{size}}}, int64[1] two = {{2}}, int64[2] axes = {{1, 2}}, float largest = {{255}}>
{{
    picture_size = Shape <start = 1, end = 3> (pictures)
    shorter = ReduceMin <keepdims = 1> (picture_size)
    scaled = Mul (picture_size, edge)
    new_size = Div (scaled, shorter)
    resized = Resize <axes = [1, 2], mode = "linear", antialias = 1, exclude_outside = 1> (pictures, , , new_size)
    excess = Sub (new_size, edge)
    half = Div (excess, two)
    odd = Mod (half, two)
    even = Add (excess, odd)
    start = Div (even, two)
    stop = Add (start, edge)
    centre = Slice (resized, start, stop, axes)
    planes = Transpose <perm = [0, 3, 1, 2]> (centre)
    floats = Cast <to = 1> (planes)
    images = Div (floats, largest)
}}
"""
AFTER = """
after (float[batch, {classes}] logits) => (float[batch, {classes}] probabilities)
{{
    probabilities = Softmax <axis = 1> (logits)
}}
"""


def with_preprocessing(model: onnx.ModelProto, image_size: int) -> onnx.ModelProto:
    """The graph from ``pictures``, uint8 N×H×W×3 of any one size, RGB, to ``probabilities``, N×classes, in a copy.

    Args:
        model: a graph from ``images``, float N×3×S×S, to ``logits``.
        image_size: S.
    """
    before = _parsed(BEFORE.format(size=image_size), model)
    return with_softmax(compose.merge_models(before, model, [("images", "images")]))


def with_softmax(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph that answers with ``probabilities``, N×classes, instead of ``logits``, in a copy."""
    classes = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    whole = compose.merge_models(model, _parsed(AFTER.format(classes=classes), model), [("logits", "logits")])
    # Ultralytics takes a named number of images for a sign that height and width may vary, too, and resizes to 640.
    for end in (*whole.graph.input, *whole.graph.value_info, *whole.graph.output):
        end.type.tensor_type.shape.dim[0].ClearField("dim_param")
    return whole


def _parsed(text: str, model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph of ``text``, of the same versions as ``model``."""
    return parser.parse_model(
        f'<ir_version: {model.ir_version}, opset_import: ["": {model.opset_import[0].version}]>' + text
    )
