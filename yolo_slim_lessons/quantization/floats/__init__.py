"""Round weights and activations to floats of few bits: fp16, bf16, fp8, or any split into exponent and mantissa.

A float is a sign, an exponent and a mantissa. ``formats`` describes them and rounds tensors; here, ``quantize_float``
rounds the weights of a model. Results are ordinary FP32 tensors that hold only values of the format, so that every
processor computes with them; ``save_packed`` writes the few bits that they need. Used in lesson 06. Leaves out:
arithmetic in these formats (PyTorch rounds sums and products, too), training, and scales that are no powers of two.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import nn

from yolo_slim_lessons.arguments import check_choice
from yolo_slim_lessons.models import as_network, copy_model, weight_layers
from yolo_slim_lessons.quantization import QuantizedLayer, fold_batchnorm
from yolo_slim_lessons.quantization.floats.formats import (
    FloatFormat,
    FormatFit,
    float_format,
    format_fit,
    round_to_format,
)

__all__ = [
    "FloatFormat",
    "FormatFit",
    "float_format",
    "format_fit",
    "quantize_float",
    "round_inputs",
    "round_to_format",
]

SCALES = ("none", "tensor", "channel")


@torch.no_grad()
def quantize_float(
    model: nn.Module,
    format: str | FloatFormat,
    *,
    scale: str = "none",
    activations: str | FloatFormat | None = None,
    saturate: bool = True,
) -> nn.Module:
    """Round the weights of convolutions and linear layers to a float format, in a copy.

    BatchNorm is folded into the convolutions first, as it is where a model is deployed. Biases stay at FP32, like the
    sums they are added to.

    Args:
        model: any network with ``Conv2d`` or ``Linear`` layers; it is left alone.
        format: of the weights: ``"fp16"``, ``"bf16"``, ``"fp8_e4m3"``, ``"fp8_e5m2"`` or ``"eXmY"``.
        scale: ``"none"`` rounds weights as they are; ``"tensor"`` multiplies those of each layer by the largest power
            of two that keeps them below the format's maximum, rounds, and divides again; ``"channel"`` does so for
            each output channel. A power of two shifts exponents and changes no mantissa, so a scale saves what would
            be subnormal or too large, and nothing else.
        activations: a format for what convolutions and linear layers read; ``None`` leaves it at FP32.
        saturate: as for ``round_to_format``, for weights and activations.

    Returns:
        A new model in eval mode. ``model.float_quantization`` says how it was made. With ``activations``, layers
        round by a hook of this package, which ``save_packed`` keeps and ``save_model`` refuses.

    Raises:
        ValueError: unknown format or scale, NaN or infinite weights, or a model that is quantized already.
        TypeError: ``model`` is no ``nn.Module``.

    Example:
        >>> import yolo_slim_lessons as slim
        >>> model = quantize_float(slim.load_model("nano"), "fp8_e4m3", scale="channel")
    """
    model = as_network(model)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r}: expected a network, such as slim.load_model('nano')")
    check_choice("scale", scale, SCALES)
    format = float_format(format)
    activations = None if activations is None else float_format(activations)
    _check_unquantized(model)
    model = fold_batchnorm(copy_model(model).float())
    layers = list(weight_layers(model))
    if not layers:
        raise ValueError("model has no Conv2d or Linear layer: there is nothing to quantize")
    for _, layer in layers:
        # -0 and 0 weigh the same: all become 0.
        layer.weight.copy_(_rounded(layer.weight, format, scale, saturate) + 0.0)
    if activations is not None:
        round_inputs(model, activations, saturate)
    model.float_quantization = {
        "format": format.name,
        "scale": scale,
        "activations": activations.name if activations else None,
        "saturate": saturate,
    }
    return model


def round_inputs(model: nn.Module, format: FloatFormat, saturate: bool = True) -> None:
    """Make the convolutions and linear layers of ``model`` round what they read, from now on."""
    for _, layer in weight_layers(model):
        # No closure, so that copies and processes can take it along.
        layer.register_forward_pre_hook(functools.partial(_round_input, format, saturate))


def _round_input(format: FloatFormat, saturate: bool, _: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
    return round_to_format(inputs[0], format, saturate=saturate)


def _check_unquantized(model: nn.Module) -> None:
    before = getattr(model, "float_quantization", None)
    if any(isinstance(layer, QuantizedLayer) for layer in model.modules()):
        made = "integers"
    elif before and (before["activations"] or _is_rounded(model, before)):  # false if it was trained since
        made = before["format"]
    else:
        return
    raise ValueError(
        f"model is quantized already, to {made}, and rounding twice adds two errors: start from what it was made of"
    )


def _is_rounded(model: nn.Module, settings: dict) -> bool:
    rule = (float_format(settings["format"]), settings["scale"], settings["saturate"])
    return all(torch.equal(layer.weight, _rounded(layer.weight, *rule)) for _, layer in weight_layers(model))


def _rounded(weight: torch.Tensor, format: FloatFormat, scale: str, saturate: bool) -> torch.Tensor:
    if scale == "none":
        return round_to_format(weight, format, saturate=saturate)
    largest = (
        weight.abs().amax(tuple(range(1, weight.dim())), keepdim=True) if scale == "channel" else weight.abs().max()
    )
    # x = mantissa · 2^exponent with 0.5 <= mantissa < 1, for the maximum as for the weights
    mantissa, exponent = torch.frexp(torch.where(largest == 0, 1.0, largest))
    mantissa_of_max, exponent_of_max = math.frexp(format.max)
    shift = (exponent_of_max - exponent - (mantissa > mantissa_of_max).int()).clamp(-126, 127)
    factor = torch.ldexp(torch.ones_like(largest), shift)
    return round_to_format(weight * factor, format, saturate=saturate) / factor
