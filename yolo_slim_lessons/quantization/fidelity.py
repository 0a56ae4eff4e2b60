"""How much of a signal is left after rounding, in decibels. Used in lessons 05 and 06.

Leaves out: accuracy (``measurement.evaluate``), which bears a lot of noise and then suddenly does not.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import nn
from torch.nn import functional as F

from yolo_slim_lessons.data import Split
from yolo_slim_lessons.models import copy_model, image_size_of, input_format, logits, weight_layers
from yolo_slim_lessons.quantization.folding import fold_batchnorm
from yolo_slim_lessons.quantization.observation import image_batches

LITTLE = 6.0  # dB that logits keep: the photographs' networks then lost 4 points of top-1 and more
LOOKED_AT = 16  # images


class FidelityWarning(UserWarning):
    """Rounding has changed the answers of a network much; the text says how much, and what repairs it."""


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


@torch.no_grad()
def warn_if_little_is_left(model: nn.Module, quantized: nn.Module, calibration: Split | torch.Tensor | None) -> None:
    """Give a ``FidelityWarning`` if the logits of ``quantized`` keep less than ``LITTLE`` dB of those of ``model``.

    Without ``calibration``, random pictures of soft spots stand for images. They tell ruin from rounding, not more.
    """
    if calibration is None:
        images, what = _soft_spots(image_size_of(model, default=64), **input_format(model)), "random pictures"
    else:
        images, what = next(image_batches(calibration, LOOKED_AT, model)), f"{LOOKED_AT} images of calibration"
    left = signal_to_noise(logits(model, images), logits(quantized, images))
    if left < LITTLE:
        warnings.warn(
            f"the logits keep {left:.1f} dB of the float model's on {what}; below {LITTLE:.0f} dB many answers change. "
            "Bring them back without labels by learn_rounding(quantized, model, calibration), train them by "
            "train_quantized(model, data, bits), or take more bits",
            FidelityWarning,
            stacklevel=5,  # past no_grad, which wraps both functions
        )


def _soft_spots(size: int, channels: int = 3, **what) -> torch.Tensor:
    """``LOOKED_AT`` pictures made of random spots, from large to small: float N×C×H×W, always the same."""
    random = torch.Generator().manual_seed(0)
    images = torch.full((LOOKED_AT, channels, size, size), 0.5)
    for places, height in ((2, 1.0), (4, 0.8), (8, 0.6), (16, 0.4), (32, 0.3), (64, 0.2)):
        spots = torch.rand(LOOKED_AT, channels, places, places, generator=random) - 0.5
        images += height * F.interpolate(spots, (size, size), mode="bilinear")
    return images.clamp(0, 1).to(**what)


def _outputs(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    outputs = {}
    model = copy_model(model).eval()
    for name, layer in weight_layers(model):  # cloned, for activations work in place
        layer.register_forward_hook(lambda _, __, out, name=name: outputs.__setitem__(name, out.clone()))
    model(images)
    return outputs
