"""The quantized model in integer arithmetic: what a processor without floats does. Used in lesson 05.

Operands are the integers of 8 bits (or as many as were asked for), products are summed in 32 bits, the sum is scaled
to 16 bits by one integer multiplication and a shift, the activation function is a look-up table, and the result has 8
bits again (Jacob et al., 2018). Because scales have few significant bits, the multiplier is exact, and the result
equals the simulation's wherever that sums without rounding, in float64. In float32 the simulation rounds sums to 24
bits, which now and then moves a number across the middle between two levels.

Leaves out: speed. The sums are taken in float64, which holds every integer up to 2^53, since torch on a CPU has no
integer convolution; only that they fit in 32 bits is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import nn
from ultralytics.nn.modules import C2f, Conv
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.data import as_floats
from yolo_slim_lessons.models import copy_model, weight_layers
from yolo_slim_lessons.quantization.grids import IntegerGrid
from yolo_slim_lessons.quantization.layers import QuantizedActivation, QuantizedLayer, QuantizedLinear


def run_integer(model: ClassificationModel, images: torch.Tensor) -> torch.Tensor:
    """Class scores (logits) by integer arithmetic, float32 N×classes.

    Args:
        model: from ``quantize_integer`` with ``activation_bits``.
        images: N×3×H×W, uint8 or float 0…1.

    Raises:
        ValueError: the model's activations or some of its weights are not quantized.
        OverflowError: a sum does not fit in 32 bits, as can happen above 8 bits (the layer is named).
    """
    head = model.model[-1].linear
    sums = list(integer_outputs(model, images).values())[-1]
    return (sums * head.accumulator_scale).float()


@torch.inference_mode()
def integer_outputs(model: ClassificationModel, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """What every layer makes of ``images``, by integer arithmetic; arguments and errors as for ``run_integer``.

    Returns:
        Layer name, as in ``weight_layers`` → integers behind its activation function, in the type of its grid; for
        the last, linear layer its 32-bit sums.
    """
    _check_quantized(model)
    outputs: dict[str, torch.Tensor] = {}
    grid = model.model[0].conv.input_grid
    integers = images if images.dtype == torch.uint8 else grid.quantize(images)

    def convolve(name: str, block: Conv, x: torch.Tensor) -> torch.Tensor:
        sums = accumulate(f"{name}.conv", block.conv, x)
        outputs[f"{name}.conv"] = activate(sums, block.conv, block.act)
        return outputs[f"{name}.conv"]

    for index, block in enumerate(model.model):
        name = f"model.{index}"
        if isinstance(block, Conv):
            integers = convolve(name, block, integers)
        elif isinstance(block, C2f):
            parts = list(convolve(f"{name}.cv1", block.cv1, integers).chunk(2, 1))
            for j, bottleneck in enumerate(block.m):
                branch = convolve(f"{name}.m.{j}.cv1", bottleneck.cv1, parts[-1])
                branch = convolve(f"{name}.m.{j}.cv2", bottleneck.cv2, branch)
                parts.append(add(parts[-1], branch, bottleneck.output_grid) if bottleneck.add else branch)
            integers = convolve(f"{name}.cv2", block.cv2, torch.cat(parts, 1))
        else:
            integers = convolve(f"{name}.conv", block.conv, integers)
            integers = average(integers, block.conv.act.output_grid, block.linear.input_grid)
            outputs[f"{name}.linear"] = accumulate(f"{name}.linear", block.linear, integers)
    return outputs


@torch.inference_mode()
def simulated_outputs(
    model: ClassificationModel,
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
    model = copy_model(model).to(dtype)
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str, module: QuantizedActivation, result: torch.Tensor) -> torch.Tensor | None:
        outputs[name] = module.output_grid.quantize(result).to(module.output_grid.dtype)
        return None if follow is None else module.output_grid.dequantize(follow[name])

    for name, module in model.named_modules():
        if isinstance(module, QuantizedActivation):
            layer = name.removesuffix("act") + "conv"
            module.register_forward_hook(lambda module, _, result, layer=layer: keep(layer, module, result))
        elif isinstance(module, QuantizedLinear):
            module.register_forward_hook(
                lambda layer, _, result, name=name: outputs.__setitem__(name, result.double() / layer.accumulator_scale)
            )
    images = as_floats(images) if images.dtype == torch.uint8 else images
    model(images.to(dtype))
    return outputs


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
    inputs = grid.dequantize(torch.arange(grid.lowest, grid.highest + 1)).double()
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


def _check_quantized(model: nn.Module) -> None:
    layers_ready = all(isinstance(layer, QuantizedLayer) for _, layer in weight_layers(model))
    blocks_ready = all(isinstance(block.act, QuantizedActivation) for block in model.modules() if type(block) is Conv)
    if not (isinstance(model, ClassificationModel) and layers_ready and blocks_ready):
        raise ValueError(
            "model computes with floats: expected one from quantize_integer with activation_bits, all layers quantized"
        )
