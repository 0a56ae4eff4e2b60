"""Biases are few, but at 32 bits each they weigh in a file whose weights have three.

Used in lesson 08. Leaves out: biases of layers with quantized inputs, which are integers already.
"""

from __future__ import annotations

import torch
from torch import nn
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.models import as_classifier, copy_model, weight_layers
from yolo_slim_lessons.quantization.floats import FloatFormat, round_to_format


@torch.no_grad()
def round_biases(model: ClassificationModel, format: str | FloatFormat = "bf16") -> ClassificationModel:
    """A copy whose biases are rounded to a short float, still computing in float32.

    Args:
        model: whose BatchNorm is folded, as ``quantize_integer`` does; it is left alone.
        format: as for ``quantize_float``.

    Raises:
        TypeError: ``model`` is no classifier.
        ValueError: an unknown format, or a model with BatchNorm.

    Example:
        >>> import yolo_slim_lessons as slim
        >>> quantized = slim.quantize_integer(slim.load_model("nano"), bits=3)
        >>> slim.packed_sizes(round_biases(quantized)).file < slim.packed_sizes(quantized).file
        True
    """
    model = as_classifier(model)
    if any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()):
        raise ValueError("model has BatchNorm, whose shifts are its biases: fold it first, as quantize_integer does")
    model = copy_model(model)
    for _, layer in weight_layers(model):
        if layer.bias is not None and getattr(layer, "bias_integers", None) is None:
            layer.bias = nn.Parameter(round_to_format(layer.bias, format), requires_grad=False)
    return model
