"""``quantize_integer`` and the way back: round the weights of a network, and on request all of its activations.

Used in lesson 05. Leaves out: the ranges (``calibration``), and repairs of what few bits break (``few_bits``).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import nn
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.arguments import check_choice, value_of_each_layer
from yolo_slim_lessons.data import Split
from yolo_slim_lessons.graph import Graph, replace_module, trace
from yolo_slim_lessons.models import as_network, check_classifier, copy_model, device_of, weight_layers
from yolo_slim_lessons.quantization.calibration import RANGES, choose_grid
from yolo_slim_lessons.quantization.fidelity import warn_if_little_is_left
from yolo_slim_lessons.quantization.folding import fold_batchnorm
from yolo_slim_lessons.quantization.grids import IntegerGrid, check_bits
from yolo_slim_lessons.quantization.layers import (
    LARGEST_BIAS,
    QuantizedActivation,
    QuantizedLayer,
    plain_layer,
    quantized_layer,
)
from yolo_slim_lessons.quantization.observation import image_batches, observe_nodes
from yolo_slim_lessons.quantization.points import ActivationTensor, activation_tensors, place_grid
from yolo_slim_lessons.quantization.simulation import QuantizedModel

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
    warn: bool = True,
) -> nn.Module:
    """Round the weights of convolutions and linear layers, and on request the activations, to integers, in a copy.

    BatchNorm is folded into the convolutions first, as it would be on any device. The copy computes with floats that
    lie on the integers' grids (see ``layers``); ``run_integer`` computes with the integers themselves.

    Args:
        model: any network for weights alone; for activations a classifier, pruned or not, of the families yolov8-cls,
            yolo11-cls or yolo26-cls, or of your own YAML file with the same parts. It is left alone.
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
        warn: compare a classifier's logits with those of the float model, and give a ``FidelityWarning`` if rounding
            has left little of them. Networks that were trained from pretrained weights on photographs may lose nearly
            all with 4 bits, where others lose nothing.

    Returns:
        A new model in eval mode, its layers replaced by ``QuantizedConv2d`` and ``QuantizedLinear``: of the same class
        for weights alone, else a ``QuantizedModel``. What attention computes from queries, keys and values (two
        products of matrices and a softmax) stays in float, between integers; so do layers that ``bits`` leaves out.

    Raises:
        ValueError: bits that are no integers from 2 to 16, a name that is no layer, an unknown choice, a model that is
            quantized already, weights or images that are NaN or infinite, ``activation_bits`` without images.
        TypeError: ``model`` is no network, or for activations no classifier, or it has a part that is not understood
            (named, with its place).

    Example:
        >>> layer = nn.Sequential(nn.Linear(3, 1, bias=False))
        >>> layer[0].weight.data = torch.tensor([[0.3, -0.7, 0.1]])
        >>> quantize_integer(layer, bits=4, weight_ranges="minmax")[0].integers.tolist()
        [[3, -7, 1]]
    """
    model = as_network(model)
    _check_arguments(model, activation_bits, calibration, granularity, ranges, weight_ranges)
    bits_of_layer = value_of_each_layer("bits", bits, [name for name, _ in weight_layers(model)], check_bits)
    quantized = fold_batchnorm(model)
    grids: list[tuple[ActivationTensor, IntegerGrid]] = []
    if activation_bits is not None:
        image_size = tuple(next(image_batches(calibration, model=model)).shape[-2:])
        graph = trace(quantized, image_size)
        grids = _activation_grids(quantized, graph, activation_bits, calibration, ranges, percentile)
    input_grids = {name: grid for tensor, grid in grids for name in tensor.readers}
    computed = {name for tensor, _ in grids if not tensor.writers for name in tensor.readers}
    for name, layer in list(weight_layers(quantized)):
        if name in bits_of_layer:
            grid = input_grids.get(name)
            weight_grid = _weight_grid(layer, bits_of_layer[name], symmetric, granularity, weight_ranges, grid)
            new = quantized_layer(layer, weight_grid, grid, name in computed)
            new.set_integers(weight_grid.quantize(layer.weight), layer.bias)
            replace_module(quantized, name, new)
    for tensor, grid in grids:
        place_grid(quantized, tensor, grid)
    quantized = (QuantizedModel.of(quantized, image_size) if grids else quantized).eval()
    if warn and isinstance(model, ClassificationModel):
        warn_if_little_is_left(model, quantized, calibration)
    return quantized


@torch.no_grad()
def dequantize(model: nn.Module) -> nn.Module:
    """A copy with ordinary layers, whose weights are the numbers that the integers stand for.

    It answers as ``model`` does, takes 32 bits a weight again, and ``save_model`` writes it for plain ``YOLO(path)``.

    Args:
        model: from ``quantize_integer``, or a float model, of which a mere copy is made; it is left alone.

    Raises:
        ValueError: activations are quantized too; ordinary layers cannot do that.
    """
    model = as_network(model)
    copy = copy_model(model)
    for name, layer in list(copy.named_modules()):
        if isinstance(layer, QuantizedActivation):
            raise ValueError(
                f"model has quantized activations ({name}), which ordinary layers cannot compute: "
                "expected activation_bits=None; export_onnx and save_packed keep them"
            )
        if isinstance(layer, QuantizedLayer):
            replace_module(copy, name, plain_layer(layer))
    return copy.eval()


def _activation_grids(
    model: nn.Module, graph: Graph, bits: int, calibration, ranges: str, percentile: float
) -> list[tuple[ActivationTensor, IntegerGrid]]:
    """Choose a grid for each tensor of activations; each activation function of ``model`` gets its place, in place."""
    image, *rest = activation_tensors(graph)
    make_grid = functools.partial(IntegerGrid.from_range, bits=bits, signed=False)
    before = {name: graph.nodes[graph[name].inputs[0]].name for tensor in rest for name in tensor.writers}
    groups = {str(number): tensor.observed for number, tensor in enumerate(rest)}
    # Before an activation function, extremes are enough: its 16 bits are plenty.
    histograms, extremes = observe_nodes(model, graph, groups, calibration, before.values())
    device = device_of(model)
    pixels = IntegerGrid(8, torch.tensor(1 / 255, device=device), torch.tensor(0, device=device).int(), False)
    grids = [(image, pixels)]
    for number, tensor in enumerate(rest):
        grid = choose_grid(histograms[str(number)], make_grid, ranges, percentile)
        for name in tensor.writers:
            in_front = _fixed_point(max(map(abs, extremes[before[name]]))).to(device)
            replace_module(model, name, QuantizedActivation(model.get_submodule(name), in_front, grid))
        grids.append((tensor, grid))
    return grids


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
    check_choice("granularity", granularity, GRANULARITIES)
    check_choice("ranges", ranges, RANGES)
    check_choice("weight_ranges", weight_ranges, WEIGHT_RANGES)
    if activation_bits is not None:
        check_bits("activation_bits", activation_bits)
        check_classifier(model)
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
