"""Rounding shifts the mean of what a layer puts out; its bias can take that back (Nagel et al., 2019).

The error of a weight is fixed once it is rounded. Times inputs that are positive on average, as those behind an
activation function are, it does not average out: every channel is off by a constant. So it is with rounded
activations where much of an image is one colour, such as a black background: all its pixels are off by the same. It
can also do harm. On the shipped model it helped with 8 bits for weights and activations, and with one scale for a
whole layer; it hurt at 3 and 4 bits. So measure on ``val``.

Used in lesson 05. Leaves out: cross-layer equalization of the same paper, which rescales neighbouring layers and needs
an activation function that lets factors through; ReLU does, SiLU does not.
"""

from __future__ import annotations

import torch
from torch import nn

from yolo_slim_lessons.data import Split
from yolo_slim_lessons.models import copy_model, weight_layers
from yolo_slim_lessons.quantization import QuantizedLayer
from yolo_slim_lessons.quantization.few_bits.pairs import all_images, float_original


@torch.no_grad()
def correct_biases(quantized: nn.Module, model: nn.Module, calibration: Split | torch.Tensor) -> nn.Module:
    """Shift biases so that on ``calibration`` every channel of every layer has its float mean again, in a copy.

    Layers are corrected from first to last, and each sees the inputs that the corrected ones before it make: so the
    mean error of activations, too, is taken back. All images pass at once, and a bias that was missing is added.

    Args:
        quantized: from ``quantize_integer``; it is left alone.
        model: the float model it came from.
        calibration: some hundred training images; labels are not looked at. A ``Split``, or a tensor N×3×H×W.

    Returns:
        A new model; its integers are those of ``quantized``.

    Raises:
        ValueError: the models do not belong together, or there is no image, or NaN in one.
        TypeError: an argument is of another kind.

    Example:
        >>> import yolo_slim_lessons as slim
        >>> rounded = slim.quantize_integer(model, bits=4, granularity="tensor")
        >>> corrected = slim.correct_biases(rounded, model, data.train.take(64))
    """
    original = float_original(quantized, model)
    images = all_images(calibration)
    means: dict[str, torch.Tensor] = {}
    for name, layer in weight_layers(original):
        layer.register_forward_hook(lambda _, __, out, name=name: means.__setitem__(name, channel_means(out)))
    original(images)

    corrected = copy_model(quantized).eval()

    def correct(name: str, layer: QuantizedLayer, out: torch.Tensor) -> torch.Tensor:
        shift = means[name] - channel_means(out)
        bias = shift if layer.bias is None else layer.bias + shift
        before = torch.zeros_like(shift) if layer.bias is None else layer.bias.clone()
        layer.set_integers(layer.integers, bias)
        return out + (layer.bias - before).view(-1, *[1] * (out.dim() - 2))

    hooks = [
        layer.register_forward_hook(lambda layer, _, out, name=name: correct(name, layer, out))
        for name, layer in weight_layers(corrected)
        if isinstance(layer, QuantizedLayer)
    ]
    corrected(images)
    for hook in hooks:
        hook.remove()
    return corrected


def channel_means(out: torch.Tensor) -> torch.Tensor:
    """Mean of each channel, C, of N×C or N×C×H×W."""
    return out.mean([0, *range(2, out.dim())])
