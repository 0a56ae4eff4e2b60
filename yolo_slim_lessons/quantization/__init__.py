"""Quantize to integers: weights of 2 to 16 bits, and activations likewise.

``grid`` rounds numbers, ``layers`` compute with them, ``structure`` says which tensors share a grid, ``execution``
repeats the same forward pass in integer arithmetic, and ``fidelity`` tells how much was lost, in dB. Used in lesson
05. Leaves out: the ranges (``calibration.py``), and kernels that are fast because of integers (``deployment.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import nn

from yolo_slim_lessons.data import Split
from yolo_slim_lessons.models import copy_model, weight_layers
from yolo_slim_lessons.quantization.calibration import RANGES, choose_grid, observe_inputs
from yolo_slim_lessons.quantization.execution import integer_outputs, run_integer, simulated_outputs
from yolo_slim_lessons.quantization.fidelity import fold_batchnorm, layer_errors, signal_to_noise
from yolo_slim_lessons.quantization.grids import IntegerGrid, check_bits
from yolo_slim_lessons.quantization.layers import (
    LARGEST_BIAS,
    QuantizedActivation,
    QuantizedConv2d,
    QuantizedLayer,
    QuantizedLinear,
    same_shape,
)
from yolo_slim_lessons.quantization.structure import (
    ActivationTensor,
    activation_tensors,
    saturate_sums,
    separate_activations,
)

__all__ = [
    "ActivationTensor",
    "IntegerGrid",
    "QuantizedActivation",
    "QuantizedConv2d",
    "QuantizedLayer",
    "QuantizedLinear",
    "activation_tensors",
    "dequantize",
    "fold_batchnorm",
    "integer_outputs",
    "layer_errors",
    "quantize_integer",
    "run_integer",
    "signal_to_noise",
    "simulated_outputs",
]

GRANULARITIES = ("channel", "tensor")
WEIGHT_RANGES = ("mse", "minmax")


@torch.no_grad()
def quantize_integer(
    model: nn.Module,
    bits: int | Mapping[str, int] = 8,
    activation_bits: int | None = None,
    calibration: Split | torch.Tensor | None = None,
    *,
    symmetric: bool = True,
    granularity: str = "channel",
    ranges: str = "mse",
    weight_ranges: str = "mse",
    percentile: float = 99.99,
) -> nn.Module:
    """Round the weights of convolutions and linear layers, and on request the activations, to integers, in a copy.

    BatchNorm is folded into the convolutions first, as it would be on any device. The copy computes with floats that
    lie on the integers' grids (see ``layers``); ``run_integer`` computes with the integers themselves.

    Args:
        model: any network for weights alone; a yolov8-cls classifier, pruned or not, for activations. It is left
            alone.
        bits: of the weights, 2 to 16; or a mapping from layer names to bits, which leaves other layers in float.
        activation_bits: of what convolutions and linear layers read, 2 to 16; ``None`` leaves activations in float.
            Images keep the 8 bits that they have; biases get 32.
        calibration: training images to find the activations' ranges with, some hundreds; labels are not looked at.
            A ``Split``, or a tensor N×3×H×W, uint8 or float 0…1.
        symmetric: put the weights' zero point at 0, which saves a device a correction for every product. Activations
            are affine: SiLU gives few and small negative numbers.
        granularity: ``"channel"`` gives each output channel its own weight scale, ``"tensor"`` each layer.
        ranges: how ``choose_grid`` finds the ranges of activations.
        weight_ranges: ``"mse"`` or ``"minmax"``, for the weights.
        percentile: for ``ranges="percentile"``.

    Returns:
        A new model of the same class, in eval mode, its layers replaced by ``QuantizedConv2d`` and
        ``QuantizedLinear``.

    Raises:
        ValueError: bits that are no integers from 2 to 16, a name that is no layer, an unknown choice, a model that is
            quantized already, weights or images that are NaN or infinite, ``activation_bits`` without images.
        TypeError: ``model`` is no network, or activations of another family than yolov8-cls are asked for.

    Example:
        >>> layer = nn.Sequential(nn.Linear(3, 1, bias=False))
        >>> layer[0].weight.data = torch.tensor([[0.3, -0.7, 0.1]])
        >>> quantize_integer(layer, bits=4, weight_ranges="minmax")[0].integers.tolist()
        [[3, -7, 1]]
    """
    _check_arguments(model, activation_bits, calibration, granularity, ranges, weight_ranges)
    bits_of_layer = _bits_of_each_layer(model, bits)
    quantized = fold_batchnorm(model)
    input_grids: dict[str, IntegerGrid] = {}
    computed_inputs: tuple[str, ...] = ()
    if activation_bits is not None:
        tensors = activation_tensors(quantized)
        input_grids = _quantize_activations(quantized, tensors, activation_bits, calibration, ranges, percentile)
        computed_inputs = tuple(name for tensor in tensors if not tensor.writers for name in tensor.readers)
    for name, layer in list(weight_layers(quantized)):
        if name not in bits_of_layer:
            continue
        input_grid = input_grids.get(name)
        weight_grid = _weight_grid(layer, bits_of_layer[name], symmetric, granularity, weight_ranges, input_grid)
        new = same_shape(layer, QuantizedConv2d, QuantizedLinear)
        new.set_grids(weight_grid, input_grid, snaps_input=name in computed_inputs)
        new.set_integers(weight_grid.quantize(layer.weight), layer.bias)
        parent, _, child = name.rpartition(".")
        setattr(quantized.get_submodule(parent), child, new)
    return quantized.eval()


@torch.no_grad()
def dequantize(model: nn.Module) -> nn.Module:
    """A copy with ordinary layers, whose weights are the numbers that the integers stand for.

    It answers as ``model`` does, takes 32 bits a weight again, and ``save_model`` writes it for plain ``YOLO(path)``.

    Args:
        model: from ``quantize_integer``, or a float model, of which a mere copy is made; it is left alone.

    Raises:
        ValueError: activations are quantized too; ordinary layers cannot do that.
    """
    copy = copy_model(model)
    for name, layer in list(copy.named_modules()):
        if isinstance(layer, QuantizedActivation):
            raise ValueError(
                f"model has quantized activations ({name}), which ordinary layers cannot compute: "
                "expected activation_bits=None; export_onnx and save_packed keep them"
            )
        if isinstance(layer, QuantizedLayer):
            plain = same_shape(layer, nn.Conv2d, nn.Linear)
            plain.weight, plain.bias = layer.weight, layer.bias
            parent, _, child = name.rpartition(".")
            setattr(copy.get_submodule(parent), child, plain)
    return copy.eval()


def _quantize_activations(
    model, tensors: list[ActivationTensor], bits, calibration, ranges, percentile
) -> dict[str, IntegerGrid]:
    """Put every activation of ``model`` on a grid, in place; returns the input grid of each layer."""
    activations = separate_activations(model)
    make_grid = functools.partial(IntegerGrid.from_range, bits=bits, signed=False)
    # Before an activation function, extremes are enough: its 16 bits are plenty.
    extremes = observe_inputs(model, activations, calibration, histograms=False)
    histograms = observe_inputs(model, [tensor.observed for tensor in tensors[1:]], calibration)
    for name, ends in extremes.items():
        model.get_submodule(name).input_grid = _fixed_point(max(map(abs, ends)))
    image, rest = tensors[0], tensors[1:]
    input_grids = dict.fromkeys(image.readers, IntegerGrid(8, torch.tensor(1 / 255), torch.tensor(0).int(), False))
    for tensor in rest:
        grid = choose_grid(histograms[tensor.observed], make_grid, ranges, percentile)
        input_grids |= dict.fromkeys(tensor.readers, grid)
        for name in tensor.writers:
            model.get_submodule(name).output_grid = grid
        saturate_sums(model, tensor.sums, grid)
    return input_grids


def _weight_grid(layer, bits, symmetric, granularity, weight_ranges, input_grid) -> IntegerGrid:
    smallest = torch.tensor(0.0)
    if input_grid is not None and layer.bias is not None:  # or else a bias would not fit in 32 bits
        smallest = layer.bias.abs() / (input_grid.scale * LARGEST_BIAS)
    if granularity == "tensor":
        smallest = smallest.max()
    make_grid = functools.partial(IntegerGrid.from_range, bits=bits, symmetric=symmetric, smallest_scale=smallest)
    return choose_grid(layer.weight.flatten(1 if granularity == "channel" else 0), make_grid, weight_ranges)


def _fixed_point(largest: float) -> IntegerGrid:
    """16 bits, signed, with the smallest power of two as its step that reaches ``largest``."""
    scale = 2.0 ** torch.tensor(max(largest, 1e-3) / (2**15 - 1)).log2().ceil()
    return IntegerGrid(16, scale, torch.tensor(0, dtype=torch.int32))


def _check_arguments(model, activation_bits, calibration, granularity, ranges, weight_ranges) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r}: expected a network, such as slim.load_model('nano')")
    for name, value, allowed in (
        ("granularity", granularity, GRANULARITIES),
        ("ranges", ranges, RANGES),
        ("weight_ranges", weight_ranges, WEIGHT_RANGES),
    ):
        if value not in allowed:
            raise ValueError(f"{name}={value!r}: expected one of {allowed}")
    if activation_bits is not None:
        check_bits("activation_bits", activation_bits)
        if calibration is None:
            raise ValueError(
                f"activation_bits={activation_bits!r} needs calibration=: some hundred training images, "
                "such as data.train.take(512), to find the activations' ranges with"
            )
    rounded = getattr(model, "float_quantization", None)
    if rounded:
        raise ValueError(
            f"model is quantized already, to {rounded['format']}: quantize the float model it came from "
            "(if you trained it since: del model.float_quantization)"
        )
    for name, layer in weight_layers(model):
        if isinstance(layer, QuantizedLayer):
            raise ValueError(f"model is quantized already ({name}): quantize the float model it came from")
        if not layer.weight.isfinite().all() or not (layer.bias is None or layer.bias.isfinite().all()):
            raise ValueError(f"{name} has weights that are NaN or infinite: repair or retrain the model")


def _bits_of_each_layer(model, bits) -> dict[str, int]:
    names = [name for name, _ in weight_layers(model)]
    if not isinstance(bits, Mapping):
        check_bits("bits", bits)
        return dict.fromkeys(names, bits)
    if not bits:
        raise ValueError(f"bits names no layer: expected some of {names}")
    for name, number in bits.items():
        if name not in names:
            raise ValueError(f"bits names {name!r}, which is no layer with weights: expected some of {names}")
        check_bits(f"bits[{name!r}]", number)
    return dict(bits)
