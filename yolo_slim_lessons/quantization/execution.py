"""The quantized model in integer arithmetic: what a processor without floats does. Used in lesson 05.

Operands are the integers of 8 bits (or as many as were asked for), products are summed in 32 bits, the sum is scaled
to 16 bits by one integer multiplication and a shift, the activation function is a look-up table, and the result has 8
bits again (Jacob et al., 2018). Because scales have few significant bits, the multiplier is exact, and the result
equals the simulation's wherever that sums without rounding, in float64. In float32 the simulation rounds sums to 24
bits, which now and then moves a number across the middle between two levels.

What attention computes from queries, keys and values is no integer arithmetic: two products of matrices and a softmax
are taken in float64, from integers and to integers.

Leaves out: speed. The sums are taken in float64, which holds every integer up to 2^53, since torch on a CPU has no
integer convolution; only that they fit in 32 bits is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import nn

from yolo_slim_lessons.data import as_floats
from yolo_slim_lessons.graph import Execution, Node
from yolo_slim_lessons.models import copy_model, device_of, weight_layers
from yolo_slim_lessons.quantization.grids import IntegerGrid
from yolo_slim_lessons.quantization.layers import QuantizedActivation, QuantizedLayer
from yolo_slim_lessons.quantization.simulation import QuantizedModel


def run_integer(model: QuantizedModel, images: torch.Tensor) -> torch.Tensor:
    """Class scores (logits) by integer arithmetic, float32 N×classes.

    Args:
        model: from ``quantize_integer`` with ``activation_bits``.
        images: N×C×H×W, uint8 or float 0…1.

    Raises:
        ValueError: the model's activations or some of its weights are not quantized.
        OverflowError: a sum does not fit in 32 bits, as can happen above 8 bits (the layer is named).
    """
    walk = _Integers(model)
    return walk.start(images).real().float()


@torch.inference_mode()
def integer_outputs(model: QuantizedModel, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """What every layer makes of ``images``, by integer arithmetic; arguments and errors as for ``run_integer``.

    Returns:
        Layer name, as in ``weight_layers`` → integers behind its activation function, in the type of its grid; for
        the last, linear layer its 32-bit sums.
    """
    walk = _Integers(model)
    sums = walk.start(images).sums
    return walk.outputs | {sums_of: sums for sums_of in [list(weight_layers(model))[-1][0]]}


@torch.inference_mode()
def simulated_outputs(
    model: QuantizedModel,
    images: torch.Tensor,
    dtype: torch.dtype = torch.float32,
    follow: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """The same integers as from ``integer_outputs``, read off the simulation.

    Args:
        model: as for ``run_integer``.
        images: likewise.
        dtype: of the floats, ``torch.float32`` or ``torch.float64``.
        follow: the result of ``integer_outputs``. Each layer then reads these instead of what the simulation made one
            layer earlier, so that the outcome shows each layer's own differences and not those of all before it.

    Returns:
        Layer name → integers; of the last layer its sums, float64, for in float32 they are not always whole.
    """
    _check_quantized(model)
    images = (as_floats(images) if images.dtype == torch.uint8 else images).to(device_of(model))
    layer_of = _layer_of_each_activation(model, images)
    model = copy_model(model).to(dtype)
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str, module: QuantizedActivation, result: torch.Tensor) -> torch.Tensor | None:
        outputs[name] = module.output_grid.quantize(result).to(module.output_grid.dtype)
        return None if follow is None else module.output_grid.dequantize(follow[name])

    for name, layer in layer_of.items():
        model.get_submodule(name).register_forward_hook(
            lambda module, _, result, layer=layer: keep(layer, module, result)
        )
    last, head = list(weight_layers(model))[-1]
    head.register_forward_hook(
        lambda layer, _, result: outputs.__setitem__(last, result.double() / layer.accumulator_scale)
    )
    model(images.to(dtype))
    return outputs


@dataclass(frozen=True)
class OnGrid:
    """Integers, and the grid that says what they stand for."""

    integers: torch.Tensor
    grid: IntegerGrid

    def real(self) -> torch.Tensor:
        return self.grid.dequantize(self.integers).double()

    def moved(self, move) -> OnGrid:
        """The same numbers in another shape or order."""
        return OnGrid(move(self.integers), self.grid)

    def to_grid(self, grid: IntegerGrid) -> torch.Tensor:
        return self.integers


@dataclass(frozen=True)
class Sums:
    """32-bit sums of a layer, int64, one scale or one for each channel."""

    sums: torch.Tensor
    layer: QuantizedLayer

    def real(self) -> torch.Tensor:
        return self.sums * self.layer.accumulator_scale.view(-1, *(1,) * (self.sums.dim() - 2))

    def to_grid(self, grid: IntegerGrid) -> torch.Tensor:
        return grid.quantize(self.real()).to(grid.dtype)


@dataclass(frozen=True)
class Average:
    """The mean over height and width of integers, as long as nobody has said on which grid it is to be."""

    mean_of: OnGrid

    def moved(self, move) -> Average:
        return self

    def to_grid(self, grid: IntegerGrid) -> torch.Tensor:
        return average(self.mean_of.integers, self.mean_of.grid, grid)


@dataclass(frozen=True)
class Real:
    """What was computed in float64."""

    numbers: torch.Tensor

    def real(self) -> torch.Tensor:
        return self.numbers

    def moved(self, move) -> Real:
        return Real(move(self.numbers))

    def to_grid(self, grid: IntegerGrid) -> torch.Tensor:
        return grid.quantize(self.numbers).to(grid.dtype)


class _Integers(Execution):
    """The computation on integers. Values are of the four kinds above."""

    def __init__(self, model: QuantizedModel):
        _check_quantized(model)
        super().__init__(model)
        self.model = model
        self.outputs: dict[str, torch.Tensor] = {}

    @torch.inference_mode()
    def start(self, images: torch.Tensor) -> Sums:
        first = next(layer for _, layer in weight_layers(self.model))
        images = images.to(device_of(self.model))
        integers = images if images.dtype == torch.uint8 else first.input_grid.quantize(images)
        graph = self.model.graph(tuple(images.shape[-2:]))
        return self.run(graph, OnGrid(integers, first.input_grid))

    def conv(self, node: Node, x) -> Sums:
        layer = self.modules[node.name]
        return Sums(accumulate(node.name, layer, x.to_grid(layer.input_grid)), layer)

    linear = conv

    def activation(self, node: Node, x: Sums) -> OnGrid:
        activation = self.modules[node.name]
        integers = activate(x.sums, x.layer, activation)
        self.outputs[next(name for name, layer in self.modules.items() if layer is x.layer)] = integers
        return OnGrid(integers, activation.output_grid)

    def sum(self, node: Node, first, second) -> OnGrid | Real:
        if node.name not in self.modules:
            return Real(first.real() + second.real())
        grid = self.modules[node.name].output_grid
        return OnGrid(add(first.to_grid(grid), second.to_grid(grid), grid), grid)

    def concat(self, node: Node, *parts: OnGrid) -> OnGrid:
        return OnGrid(super().concat(node, *(part.integers for part in parts)), parts[0].grid)

    def split(self, node: Node, x):
        return x.moved(lambda tensor: super(_Integers, self).split(node, tensor))

    def reshape(self, node: Node, x):
        return x.moved(lambda tensor: super(_Integers, self).reshape(node, tensor))

    def transpose(self, node: Node, x):
        return x.moved(lambda tensor: super(_Integers, self).transpose(node, tensor))

    def dropout(self, node: Node, x):
        return x

    def pool(self, node: Node, x: OnGrid) -> Average:
        return Average(x)

    def scale(self, node: Node, x) -> Real:
        return Real(super().scale(node, x.real()))

    def matmul(self, node: Node, first, second) -> Real:
        return Real(super().matmul(node, first.real(), second.real()))

    def softmax(self, node: Node, x) -> Real:
        return Real(super().softmax(node, x.real()))


def accumulate(name: str, layer: QuantizedLayer, integers: torch.Tensor) -> torch.Tensor:
    """Multiply, sum and add the bias: int64 that is checked to fit in 32 bits.

    Zero points are taken off both factors, so that what stands for zero, padding included, adds nothing.
    """
    x = layer.input_grid.center(integers).double()
    weight = layer.weight_grid.center(layer.integers).double()
    bias = None if layer.bias_integers is None else layer.bias_integers.double()
    if isinstance(layer, nn.Conv2d):
        sums = F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    else:
        sums = F.linear(x, weight, bias)
    if sums.abs().max() >= 2**31:
        raise OverflowError(f"{name}: a sum of {sums.abs().max():.3g} does not fit in 32 bits; use fewer bits")
    return sums.long()


def activate(sums: torch.Tensor, layer: QuantizedLayer, activation: QuantizedActivation) -> torch.Tensor:
    """32-bit sums to 16 bits by multiplying and shifting, then through the table of the activation function."""
    grid = activation.input_grid
    multiplier, shift = fixed_point_multiplier(layer.accumulator_scale / grid.scale)
    per_channel = (-1, *(1,) * (sums.dim() - 2))
    fixed = divide(sums * multiplier.view(per_channel), 2 ** shift.view(per_channel))
    return look_up_table(activation)[fixed.clamp(grid.lowest, grid.highest) - grid.lowest]


def look_up_table(activation: QuantizedActivation) -> torch.Tensor:
    """The output integer for each of the 65,536 input integers, from the lowest on."""
    grid = activation.input_grid
    inputs = grid.dequantize(torch.arange(grid.lowest, grid.highest + 1, device=grid.scale.device)).double()
    return activation.output_grid.quantize(activation.function(inputs)).to(activation.output_grid.dtype)


def fixed_point_multiplier(factor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers m and s, int64, with m / 2^s = ``factor``, exactly.

    m has 16 bits, or 32 in the first layer, whose input scale is 1/255.
    """
    mantissa, exponent = torch.frexp(factor.double())
    bits = 16 if (mantissa * 2**16 == (mantissa * 2**16).round()).all() else 32
    multiplier, shift = (mantissa * 2**bits).long(), bits - exponent.long()
    # Shifted so far, nothing is left of a 32-bit sum, and 64 bits could not hold the divisor.
    return torch.where(shift > 62, 0, multiplier), shift.clamp(max=62)


def divide(integers: torch.Tensor, divisor: torch.Tensor | int) -> torch.Tensor:
    """Integer division, rounded to nearest, ties to even; by a power of two it is a shift."""
    floor = torch.div(integers, divisor, rounding_mode="floor")
    twice_the_rest = 2 * (integers - floor * divisor)
    return floor + ((twice_the_rest > divisor) | ((twice_the_rest == divisor) & (floor % 2 == 1)))


def add(first: torch.Tensor, second: torch.Tensor, grid: IntegerGrid) -> torch.Tensor:
    """The sum of two tensors on the same grid: add, take off the second zero point, clamp."""
    sums = first.to(torch.int32) + second - grid.zero_point
    return sums.clamp(grid.lowest, grid.highest).to(grid.dtype)


def average(integers: torch.Tensor, grid: IntegerGrid, new_grid: IntegerGrid) -> torch.Tensor:
    """The mean over height and width, N×C, moved to ``new_grid``: a sum, a multiplication and a division."""
    sums = grid.center(integers).flatten(2).sum(2)
    ratio = Fraction(grid.scale.item()) / Fraction(new_grid.scale.item()) / integers[0, 0].numel()
    moved = divide(sums * ratio.numerator, ratio.denominator) + new_grid.zero_point
    return moved.clamp(new_grid.lowest, new_grid.highest).to(new_grid.dtype)


def _layer_of_each_activation(model: QuantizedModel, images: torch.Tensor) -> dict[str, str]:
    """Name of each activation function → name of the layer in front of it."""
    graph = model.graph(tuple(images.shape[-2:]))
    return {node.name: graph.nodes[node.inputs[0]].name for node in graph.nodes if node.kind == "activation"}


def _check_quantized(model: nn.Module) -> None:
    if not (
        isinstance(model, QuantizedModel)
        and all(isinstance(layer, QuantizedLayer) for _, layer in weight_layers(model))
    ):
        raise ValueError(
            "model computes with floats: expected one from quantize_integer with activation_bits, all layers quantized"
        )
