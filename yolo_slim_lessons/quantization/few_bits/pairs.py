"""A quantized model and the float one it came from: the two that every repair compares.

Leaves out: quantizing (``quantize_integer``).
"""

from __future__ import annotations

from torch import nn

from yolo_slim_lessons.models import weight_layers
from yolo_slim_lessons.quantization import QuantizedLayer, fold_batchnorm


def float_original(quantized: nn.Module, model: nn.Module) -> nn.Module:
    """A copy of ``model`` with BatchNorm folded; an error says if it is not what ``quantized`` was made of."""
    layers = dict(weight_layers(quantized))
    if not any(isinstance(layer, QuantizedLayer) for layer in layers.values()):
        raise ValueError("quantized has no quantized layer: expected what quantize_integer returns")
    original = fold_batchnorm(model).requires_grad_(False)
    found = dict(weight_layers(original))
    for name, layer in found.items():
        if isinstance(layer, QuantizedLayer):
            raise ValueError(f"model is quantized already ({name}): expected the float model that quantized came from")
    for name in layers.keys() | found.keys():
        shapes = [tuple(each[name].weight.shape) if name in each else "nothing" for each in (layers, found)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"model has {shapes[1]} at {name}, where quantized has {shapes[0]}: "
                "expected the float model that quantized came from"
            )
    return original
