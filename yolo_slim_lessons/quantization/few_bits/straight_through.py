"""Rounding that gradients pass: what a quantized model is while its scales or its roundings are learned.

The derivative of rounding is zero almost everywhere, and training would stand still. The straight-through estimator
(Bengio et al., 2013) acts as if numbers inside the range had not been rounded. A scale gets the gradient of Esser et
al. (2020), but its logarithm is what is learned (Jain et al., 2020): Adam's steps do not depend on the size of a
gradient, and in the logarithm a step is so many percent of any scale.

Leaves out: the 16-bit rounding before an activation function and the 32-bit rounding of biases, too fine to matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from yolo_slim_lessons.models import copy_model, weight_layers
from yolo_slim_lessons.quantization import IntegerGrid, QuantizedActivation, QuantizedLayer, QuantizedModel
from yolo_slim_lessons.quantization.layers import LARGEST_BIAS
from yolo_slim_lessons.quantization.points import place_grid, placed_grid

MakeRounding = Callable[[IntegerGrid, torch.Tensor], nn.Module]


class Snap(torch.autograd.Function):
    """``clamp(round(x / scale), low, high) * scale``, with gradients for ``x`` and ``scale``.

    Inside the range the gradient of x is 1, and that of the scale round(x / scale) - x / scale; outside, that of x is
    0, and that of the scale is low or high. ``scale`` is a scalar, or broadcasts along the first dimension of ``x``.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor, scale: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        snapped = x.div(scale).round_().clamp_(low, high).mul_(scale)
        ctx.save_for_backward(x, snapped, scale, low * scale, high * scale)
        return snapped

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        x, snapped, scale, low, high = ctx.saved_tensors
        if scale.numel() == 1:  # one pass over memory; training spends much of its time here
            passed = torch.ops.aten.hardtanh_backward(gradient, x, low.item(), high.item())
            products = _inner(gradient, snapped) - _inner(passed, x)
        else:
            passed = gradient * ((x > low) & (x < high))
            products = (gradient * snapped - passed * x).flatten(1).sum(1)
        return passed, products.view(scale.shape) / scale, None, None


class PricedBits(torch.autograd.Function):
    """Passes a weight on; to its gradient comes that of ``price`` · Σ log2(1 + |weight| / scale).

    The sum grows as the bits do that an entropy coder needs: few for zeros, one more with each doubling. Being part of
    the gradient, not of the loss, it works in any training loop.
    """

    @staticmethod
    def forward(ctx, weight: torch.Tensor, scale: torch.Tensor, price: float) -> torch.Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.price = price
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        weight, scale = ctx.saved_tensors
        size = weight.abs()
        slope = ctx.price / math.log(2) / (scale + size)
        return gradient + slope * weight.sign(), (-slope * size / scale).sum_to_size(scale.shape), None


class LearnedGrid(nn.Module):
    """An ``IntegerGrid`` whose scale is a parameter; its zero point stays.

    ``bit_price`` is what a bit of the entropy-coded numbers adds to the loss; 0 for activations, which are not stored.
    """

    def __init__(self, grid: IntegerGrid, bit_price: float = 0.0):
        super().__init__()
        self.bit_price = bit_price
        self.bits, self.signed = grid.bits, grid.signed
        self.log2_scale = nn.Parameter(grid.scale.log2())
        self.register_buffer("zero_point", grid.zero_point.clone())

    @property
    def scale(self) -> torch.Tensor:
        """Rounded to a bfloat16, like that of an ``IntegerGrid``; gradients pass."""
        scale = self.log2_scale.exp2()
        return scale + (scale.bfloat16().float() - scale).detach()

    @property
    def grid(self) -> IntegerGrid:
        """What has been learned so far."""
        return IntegerGrid(self.bits, self.scale.detach(), self.zero_point.clone(), self.signed)

    def snap(self, x: torch.Tensor, inplace: bool = False) -> torch.Tensor:
        """The numbers on the grid that are nearest to ``x``, never in place: gradients need both."""
        if x.is_meta:
            return x
        grid, shape = self.grid, (-1, *[1] * (x.dim() - 1)) if self.log2_scale.dim() else ()
        low, high = ((end - self.zero_point).view(shape) for end in (grid.lowest, grid.highest))
        scale = self.scale.view(shape)
        if self.bit_price:
            x = PricedBits.apply(x, scale, self.bit_price)
        return Snap.apply(x, scale, low, high)

    def saturate(self, x: torch.Tensor) -> torch.Tensor:
        """Clamp ``x`` to the ends of the grid; the scale learns from what is cut off."""
        if x.is_meta:
            return x
        grid, scale = self.grid, self.scale
        return x.clamp((grid.lowest - self.zero_point) * scale, (grid.highest - self.zero_point) * scale)


class RoundedWeight(nn.Module):
    """A weight of floats that is rounded anew in every forward pass; both it and the scale of its grid are learned."""

    def __init__(self, grid: IntegerGrid, weight: torch.Tensor, bit_price: float = 0.0):
        super().__init__()
        self.weight, self.learned = nn.Parameter(weight.detach().clone()), LearnedGrid(grid, bit_price)

    def forward(self) -> torch.Tensor:
        """The numbers to compute with."""
        return self.learned.snap(self.weight)

    @property
    def grid(self) -> IntegerGrid:
        return self.learned.grid

    def integers(self, grid: IntegerGrid) -> torch.Tensor:
        return grid.quantize(self.weight)


def trainable(quantized: nn.Module, original: nn.Module, make_rounding: MakeRounding) -> nn.Module:
    """A copy of ``quantized`` that computes nearly the same, and that gradients pass.

    What is added or concatenated shares one ``LearnedGrid``, as it shares an ``IntegerGrid``. The image keeps its own,
    and layers in float stay as they are. ``make_rounding`` is called with the grid and the weight of each layer of
    ``original``, and returns a module that makes the weight to compute with, such as ``RoundedWeight``.
    """
    learner = copy_model(quantized).eval()
    weights = {name: layer.weight for name, layer in weight_layers(original)}
    for name, layer in weight_layers(learner):
        if isinstance(layer, QuantizedLayer):
            bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
            layer.rounding = make_rounding(layer.weight_grid, weights[name])
            layer._parameters["bias"], layer.bias_integers = bias, None
    for tensor in _learned_tensors(learner):
        place_grid(learner, tensor, LearnedGrid(placed_grid(learner, tensor)))
    for module in learner.modules():
        if isinstance(module, QuantizedActivation):
            module.input_grid = None  # too fine to matter
    return learner


@torch.no_grad()
def finished(trained: nn.Module, quantized: nn.Module) -> nn.Module:
    """A copy of ``quantized`` with the grids and integers of ``trained``, which ``trainable`` made of it."""
    result = copy_model(quantized).eval()
    if hasattr(trained, "args"):
        result.args = trained.args  # which say the image size that it was trained for
    for tensor in _learned_tensors(result):
        grid = placed_grid(trained, tensor).grid
        for name in tensor.writers:
            _widen_fixed_point(result.get_submodule(name), grid)
        place_grid(result, tensor, grid)
    trained_layers = dict(weight_layers(trained))
    for name, layer in weight_layers(result):
        if isinstance(layer, QuantizedLayer):
            learned = trained_layers[name]
            layer.weight_grid = _coarse_enough(learned.rounding.grid, layer.input_grid, learned.bias)
            layer.set_integers(learned.rounding.integers(layer.weight_grid), learned.bias)
    return result


def _learned_tensors(model: nn.Module) -> list:
    """The tensors of activations whose grids are learned: all but the image, which keeps its 8 bits."""
    tensors = model.tensors[1:] if isinstance(model, QuantizedModel) else []
    return [tensor for tensor in tensors if placed_grid(model, tensor) is not None]


def _widen_fixed_point(activation: QuantizedActivation, grid: IntegerGrid) -> None:
    """Double the step of the 16 bits in front until they reach as far, relative to ``grid``, as they did before."""
    before = activation.input_grid
    growth = torch.minimum(grid.range[1] / before.range[1], grid.range[1] / activation.output_grid.range[1])
    activation.input_grid = before.with_scale(before.scale * 2 ** growth.log2().ceil().clamp(min=0))


def _coarse_enough(grid: IntegerGrid, input_grid: IntegerGrid | None, bias: torch.Tensor | None) -> IntegerGrid:
    """``grid``, with larger scales where a bias would otherwise no longer fit in 32 bits."""
    if input_grid is None or bias is None:
        return grid
    smallest = bias.abs() / (input_grid.scale * LARGEST_BIAS)
    smallest = smallest if grid.scale.dim() else smallest.max()
    return grid.with_scale(torch.where(grid.scale < smallest, (1.01 * smallest).bfloat16().float(), grid.scale))


def _inner(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Sum of the products; a tensor whose channels are innermost in memory is not copied."""
    return torch.dot(*(x.movedim(1, -1).flatten() if x.dim() > 1 else x for x in (first, second)))
