"""How much of a signal is left after rounding, in decibels. Used in lessons 05 and 06.

Leaves out: accuracy (``measurement.evaluate``), which bears a lot of noise and then suddenly does not.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from yolo_slim_lessons.models import copy_model, weight_layers
from yolo_slim_lessons.quantization.folding import fold_batchnorm


def signal_to_noise(reference: torch.Tensor, approximation: torch.Tensor) -> float:
    """10 log10 of the squared signal by the squared error, in dB: 6 dB more is half the error.

    Infinite if both are equal.

    Raises:
        ValueError: the shapes differ.
    """
    if reference.shape != approximation.shape:
        raise ValueError(f"approximation is {tuple(approximation.shape)}, but reference {tuple(reference.shape)}")
    signal = reference.double().square().sum().item()
    noise = (reference.double() - approximation.double()).square().sum().item()
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


@torch.no_grad()
def layer_errors(
    reference: nn.Module, approximation: nn.Module, images: torch.Tensor | None = None
) -> dict[str, float]:
    """Signal to noise of every convolution and linear layer, in dB.

    Args:
        reference: the float model, BatchNorm folded or not.
        approximation: what quantization made of it.
        images: float images N×3×H×W. With them, the outputs of the layers are compared, errors of all earlier layers
            included; without, the weights.
    """
    reference = fold_batchnorm(reference)
    if images is None:
        exact, rounded = ({name: layer.weight for name, layer in weight_layers(m)} for m in (reference, approximation))
    else:
        exact, rounded = (_outputs(m, images) for m in (reference, approximation))
    return {name: signal_to_noise(exact[name], rounded[name]) for name in exact}


def _outputs(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    outputs = {}
    model = copy_model(model).eval()
    for name, layer in weight_layers(model):  # cloned, for activations work in place
        layer.register_forward_hook(lambda _, __, out, name=name: outputs.__setitem__(name, out.clone()))
    model(images)
    return outputs
