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
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn
from ultralytics.nn.modules.block import Bottleneck

from yolo_slim_lessons.models import copy_model, weight_layers
from yolo_slim_lessons.quantization import (
    IntegerGrid,
    QuantizedActivation,
    QuantizedLayer,
    activation_tensors,
)
from yolo_slim_lessons.quantization.layers import LARGEST_BIAS, QuantizedBottleneck, same_shape

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

    Attributes:
        bit_price: what a bit of the entropy-coded numbers adds to the loss; 0 for activations, which are not stored.
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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The numbers on the grid that are nearest to ``x``."""
        grid, shape = self.grid, (-1, *[1] * (x.dim() - 1)) if self.log2_scale.dim() else ()
        low, high = ((end - self.zero_point).view(shape) for end in (grid.lowest, grid.highest))
        scale = self.scale.view(shape)
        if self.bit_price:
            x = PricedBits.apply(x, scale, self.bit_price)
        return Snap.apply(x, scale, low, high)

    def saturate(self, x: torch.Tensor) -> torch.Tensor:
        """Clamp ``x`` to the ends of the grid; the scale learns from what is cut off."""
        grid, scale = self.grid, self.scale
        return x.clamp((grid.lowest - self.zero_point) * scale, (grid.highest - self.zero_point) * scale)

    def integers(self, weight: torch.Tensor, grid: IntegerGrid) -> torch.Tensor:
        """Those on ``grid`` that are nearest to ``weight``."""
        return grid.quantize(weight)


class TrainableLayer(nn.Module):
    """A layer with a weight of floats, which is rounded anew in every forward pass.

    Attributes:
        rounding: a module that makes of ``weight`` the numbers to compute with; a ``LearnedGrid``, for one.
        input_grid: ``LearnedGrid``, or ``None`` where the input lies on no grid or on that of the image.
        snaps_input: whether the layer itself puts its input on that grid; otherwise the layer in front did.
    """

    def begin(self, layer: QuantizedLayer, weight: torch.Tensor, make_rounding: MakeRounding) -> TrainableLayer:
        """Start from ``layer`` and the float ``weight`` that it was made of."""
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
        self.rounding, self.input_grid, self.snaps_input = make_rounding(layer.weight_grid, weight), None, False
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.input_grid(x) if self.snaps_input else x
        weight = self.rounding(self.weight)
        return F.linear(x, weight, self.bias) if x.dim() == 2 else self._conv_forward(x, weight, self.bias)

    def finish(self, layer: QuantizedLayer) -> None:
        """Hand over to ``layer`` what was learned."""
        grid, input_grid = self.rounding.grid, self.input_grid.grid if self.input_grid else layer.input_grid
        if input_grid is not None and self.bias is not None:  # or else a bias might no longer fit in 32 bits
            smallest = self.bias.detach().abs() / (input_grid.scale * LARGEST_BIAS)
            smallest = smallest if grid.scale.dim() else smallest.max()
            coarse_enough = torch.where(grid.scale < smallest, (1.01 * smallest).bfloat16().float(), grid.scale)
            grid = replace(grid, scale=coarse_enough)
        layer.set_grids(grid, input_grid, layer.snaps_input)
        layer.set_integers(self.rounding.integers(self.weight.detach(), grid), self.bias)


class TrainableConv2d(TrainableLayer, nn.Conv2d):
    """A convolution; attributes as in ``TrainableLayer``."""


class TrainableLinear(TrainableLayer, nn.Linear):
    """A linear layer; attributes as in ``TrainableLayer``."""


class TrainableActivation(nn.Module):
    """An activation function, and the grid that its result is put on."""

    def __init__(self, function: nn.Module, output_grid: LearnedGrid):
        super().__init__()
        self.function, self.output_grid = function, output_grid

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output_grid(self.function(x))

    def finish(self, activation: QuantizedActivation) -> None:
        """Hand over the grid, and widen the 16 bits in front if it has grown and reaches further than they do."""
        grid, before = self.output_grid.grid, activation.input_grid
        growth = torch.minimum(grid.range[1] / before.range[1], grid.range[1] / activation.output_grid.range[1])
        doublings = growth.log2().ceil().clamp(min=0)
        activation.output_grid, activation.input_grid = grid, replace(before, scale=before.scale * 2**doublings)


class TrainableBottleneck(Bottleneck):
    """A bottleneck with shortcut; the sum is clamped to the grid of both summands."""

    def __init__(self, block: QuantizedBottleneck, output_grid: LearnedGrid):
        nn.Module.__init__(self)
        self.cv1, self.cv2, self.add, self.output_grid = block.cv1, block.cv2, block.add, output_grid

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output_grid.saturate(x + self.cv2(self.cv1(x)))

    def finish(self, block: QuantizedBottleneck) -> None:
        """Hand over the grid."""
        block.output_grid = self.output_grid.grid


def trainable(quantized: nn.Module, original: nn.Module, make_rounding: MakeRounding) -> nn.Module:
    """A copy of ``quantized`` that computes nearly the same, and that gradients pass.

    What is added or concatenated shares one ``LearnedGrid``, as it shares an ``IntegerGrid``.

    Args:
        quantized: from ``quantize_integer``; layers in float stay as they are.
        original: its float original, from ``float_original``.
        make_rounding: called with the grid and the float weight of each layer, for ``TrainableLayer.rounding``.
    """
    copy = copy_model(quantized).eval()
    weights = {name: layer.weight for name, layer in weight_layers(original)}
    for name, layer in list(weight_layers(copy)):
        if isinstance(layer, QuantizedLayer):
            new = same_shape(layer, TrainableConv2d, TrainableLinear)
            _replace(copy, name, new.begin(layer, weights[name], make_rounding))
    if not any(isinstance(module, QuantizedActivation) for module in copy.modules()):
        return copy
    for tensor in activation_tensors(copy)[1:]:  # the image in front keeps its 8 bits
        readers = [name for name in tensor.readers if isinstance(copy.get_submodule(name), TrainableLayer)]
        if tensor.writers:
            grid = LearnedGrid(copy.get_submodule(tensor.writers[0]).output_grid)
        elif readers:
            grid = LearnedGrid(quantized.get_submodule(readers[0]).input_grid)
        for name in readers:
            layer = copy.get_submodule(name)
            layer.input_grid, layer.snaps_input = grid, quantized.get_submodule(name).snaps_input
        for name in tensor.writers:
            _replace(copy, name, TrainableActivation(copy.get_submodule(name).function, grid))
        for name in tensor.sums:
            _replace(copy, name, TrainableBottleneck(copy.get_submodule(name), grid))
    return copy


@torch.no_grad()
def finished(trained: nn.Module, quantized: nn.Module) -> nn.Module:
    """A copy of ``quantized`` with the grids and integers of ``trained``, which ``trainable`` made of it."""
    result = copy_model(quantized).eval()
    for name, module in trained.named_modules():
        if isinstance(module, TrainableLayer | TrainableActivation | TrainableBottleneck):
            module.finish(result.get_submodule(name))
    return result


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)


def _inner(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Sum of the products; a tensor whose channels are innermost in memory is not copied."""
    return torch.dot(*(x.movedim(1, -1).flatten() if x.dim() > 1 else x for x in (first, second)))
