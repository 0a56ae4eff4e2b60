"""The quantized model in integer arithmetic: what a processor without floats does. Used in lesson 05.

Operands are the integers of 8 bits (or as many as were asked for), products are summed in 32 bits, the sum is scaled
to 16 bits by one integer multiplication and a shift, the activation function is a look-up table, and the result has 8
bits again (Jacob et al., 2018). Scales have few significant bits, so the multiplier is exact, and the result equals the
simulation's in float64. In float32 the simulation rounds sums to 24 bits, which now and then moves a number across the
middle between two levels. What attention computes from queries, keys and values, two products of matrices and a
softmax, is taken in float64, from integers and to integers.

Leaves out: speed. The sums are taken in float64, which holds every integer up to 2^53, since torch on a CPU has no
integer convolution; only that they fit in 32 bits is checked.
"""

from __future__ import annotations

from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import nn

from yolo_slim_lessons.graph import Execution, Node
from yolo_slim_lessons.models import device_of, weight_layers
from yolo_slim_lessons.quantization.grids import IntegerGrid
from yolo_slim_lessons.quantization.layers import QuantizedActivation, QuantizedLayer
from yolo_slim_lessons.quantization.simulation import QuantizedModel, check_integers


def run_integer(model: QuantizedModel, images: torch.Tensor) -> torch.Tensor:
    """Class scores (logits) by integer arithmetic, float32 N×classes.

    Args:
        model: from ``quantize_integer`` with ``activation_bits``.
        images: N×C×H×W, uint8 or float 0…1.

    Raises:
        ValueError: the model's activations or some of its weights are not quantized.
        OverflowError: a sum does not fit in 32 bits, as can happen above 8 bits (the layer is named).
    """
    return _Integers(model).start(images).float()


@torch.inference_mode()
def integer_outputs(model: QuantizedModel, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """What every layer makes of ``images``, by integer arithmetic; arguments and errors as for ``run_integer``.

    Returns:
        Layer name, as in ``weight_layers`` → integers behind its activation function, in the type of its grid; for
        the last, linear layer its 32-bit sums.
    """
    walk, last = _Integers(model), list(weight_layers(model))[-1][0]
    walk.start(images)
    return walk.outputs | {last: walk.sums[last]}


class _Integers(Execution):
    """The computation on integers. From step to step, float64 numbers hold exactly what the integers stand for."""

    def __init__(self, model: QuantizedModel):
        check_integers(model)
        super().__init__(model)
        self.model = model
        self.sums: dict[str, torch.Tensor] = {}  # of each layer; int64
        self.outputs: dict[str, torch.Tensor] = {}  # of each layer, behind its activation function

    @torch.inference_mode()
    def start(self, images: torch.Tensor) -> torch.Tensor:
        images = images.to(device_of(self.model))
        self.graph = self.model.graph(tuple(images.shape[-2:]))
        grid = next(layer for _, layer in weight_layers(self.model)).input_grid
        integers = images if images.dtype == torch.uint8 else grid.quantize(images)
        return self.run(self.graph, grid.dequantize(integers).double())

    def conv(self, node: Node, x: torch.Tensor) -> torch.Tensor:
        layer = self.modules[node.name]
        sums = accumulate(node.name, layer, layer.input_grid.quantize(x))
        self.sums[node.name] = sums
        return sums * _per_channel(layer.accumulator_scale, sums)

    linear = conv

    def activation(self, node: Node, x: torch.Tensor) -> torch.Tensor:
        activation, layer = self.modules[node.name], self.graph.nodes[node.inputs[0]].name
        self.outputs[layer] = activate(self.sums.pop(layer), self.modules[layer], activation)
        return activation.output_grid.dequantize(self.outputs[layer]).double()

    def sum(self, node: Node, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        if node.name not in self.modules:
            return super().sum(node, first, second)
        grid = self.modules[node.name].output_grid
        return grid.dequantize(add(grid.quantize(first), grid.quantize(second), grid)).double()

    def pool(self, node: Node, x: torch.Tensor) -> torch.Tensor:
        grid, new_grid = self.grid_before(node), self.grid_behind(node)
        return new_grid.dequantize(average(grid.quantize(x), grid, new_grid)).double().view(*x.shape[:2], 1, 1)

    def dropout(self, node: Node, x: torch.Tensor) -> torch.Tensor:
        return x

    def grid_before(self, node: Node) -> IntegerGrid:
        """Of what ``node`` reads: that of the activation function or the sum which made it."""
        while not hasattr(self.modules.get(node.name), "output_grid"):
            node = self.graph.nodes[node.inputs[0]]
        return self.modules[node.name].output_grid

    def grid_behind(self, node: Node) -> IntegerGrid:
        """Of what ``node`` puts out: that of the layer which reads it."""
        position, readers = self.graph.nodes.index(node), self.graph.readers()
        while self.graph.nodes[position].kind not in ("conv", "linear"):
            position = readers[position][0]
        return self.modules[self.graph.nodes[position].name].input_grid


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
    fixed = divide(sums * _per_channel(multiplier, sums), 2 ** _per_channel(shift, sums))
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


def _per_channel(numbers: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """One number for all, or one for each channel, in the shape in which they meet ``outputs``."""
    return numbers.view(-1, *(1,) * (outputs.dim() - 2))
