"""Layers that hold integers, and compute with the real numbers these stand for. Used in lesson 05.

The simulation ("fake quantization") is an ordinary forward pass with floats that lie on grids. A layer's integers and
grids are all it knows; its weight is computed from them whenever it is read. Where a tensor is rounded:

- the image, at the first convolution: 8-bit pixels, so nothing is lost;
- behind every activation function, once. Each convolution thus reads numbers that are on its input grid already;
- before every activation function, to 16-bit fixed point with a power of two as its step. That changes next to
  nothing, and makes the activation function a look-up table of 65,536 entries for a processor without floats;
- what is computed from rounded numbers by other means (the average of a channel, attention), where it is read.

What is added or concatenated shares one grid, so that neither rounds again; a sum is only clamped to the grid's ends.

Leaves out: arithmetic on the integers themselves (``execution.py``).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from yolo_slim_lessons.quantization.grids import IntegerGrid

# Biases stay this far inside int32, so that bias and products together fit.
LARGEST_BIAS = 2**30


class QuantizedLayer(nn.Module):
    """What ``QuantizedConv2d`` and ``QuantizedLinear`` have in common.

    Args:
        layer: whose shape and settings the new one takes over, without its numbers.
        weight_grid: one scale, or one for each output channel.
        input_grid: the grid that the input lies on; ``None`` where only weights are quantized.
        snaps_input: whether the layer itself puts its input on that grid; otherwise the layer in front did.

    Attributes:
        integers: the weight's integers, in the smallest type that holds them.
        bias_integers: int32, on the grid of the accumulator; ``None`` without an input grid or without a bias.
        rounding: while the layer is trained, the module that makes its weight; ``None`` otherwise.
    """

    def __init__(
        self,
        layer: nn.Module,
        weight_grid: IntegerGrid,
        input_grid: IntegerGrid | None = None,
        snaps_input: bool = False,
    ):
        nn.Module.__init__(self)
        _take_settings(self, layer)
        self._parameters["bias"] = None
        self.weight_grid, self.input_grid, self.snaps_input = weight_grid, input_grid, snaps_input
        self.rounding: Callable[[], torch.Tensor] | None = None

    @torch.no_grad()
    def set_integers(self, integers: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Take over a weight's integers and a bias of real numbers, which is rounded to the accumulator's grid."""
        self.register_buffer("integers", integers.to(self.weight_grid.dtype))
        bias_integers, parameter = None, None
        if bias is not None and self.input_grid is not None:
            scaled = (bias / self.accumulator_scale).round()
            bias_integers = scaled.clamp(-LARGEST_BIAS, LARGEST_BIAS).to(torch.int32)
        elif bias is not None:
            parameter = nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.register_buffer("bias_integers", bias_integers)
        self._parameters["bias"] = parameter

    @torch.no_grad()
    def zero_weights(self, mask: torch.Tensor) -> None:
        """Set the weights where ``mask``, of the shape of the weight, is true to the integer that stands for zero."""
        zero_point = self.weight_grid.zero_point.view(-1, *(1,) * (mask.dim() - 1))
        self.integers = torch.where(mask, zero_point.to(self.integers.dtype), self.integers)

    @property
    def weight(self) -> torch.Tensor:
        """The real numbers that the integers stand for, of the type of the grid's scale."""
        return self.weight_grid.dequantize(self.integers) if self.rounding is None else self.rounding()

    @property
    def bias(self) -> torch.Tensor | None:
        """Real numbers; with an input grid, those that ``bias_integers`` stand for."""
        if self._parameters["bias"] is not None or self.bias_integers is None:
            return self._parameters["bias"]
        return (self.bias_integers * self.accumulator_scale).to(self.weight_grid.scale.dtype)

    @property
    def accumulator_scale(self) -> torch.Tensor:
        """What 1 stands for in the sum of integer products, float64: () or one per output channel."""
        return self.input_grid.scale.double() * self.weight_grid.scale.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.input_grid.snap(x) if self.snaps_input else x)


class QuantizedConv2d(QuantizedLayer, nn.Conv2d):
    """A convolution whose weights lie on a grid; arguments and attributes as of ``QuantizedLayer``."""


class QuantizedLinear(QuantizedLayer, nn.Linear):
    """A linear layer whose weights lie on a grid; arguments and attributes as of ``QuantizedLayer``."""


def quantized_layer(layer: nn.Conv2d | nn.Linear, *arguments) -> QuantizedLayer:
    """A layer of the shape of ``layer``, without integers yet; ``arguments`` as of ``QuantizedLayer``."""
    return (QuantizedLinear if isinstance(layer, nn.Linear) else QuantizedConv2d)(layer, *arguments)


def plain_layer(layer: QuantizedLayer) -> nn.Conv2d | nn.Linear:
    """An ordinary layer with the weight that the integers of ``layer`` stand for, and its bias."""
    kind = nn.Linear if isinstance(layer, nn.Linear) else nn.Conv2d
    plain = kind.__new__(kind)  # its own __init__ would draw random weights
    nn.Module.__init__(plain)
    _take_settings(plain, layer)
    for name in ("weight", "bias"):
        value = getattr(layer, name)
        plain.register_parameter(name, None if value is None else nn.Parameter(value.detach(), requires_grad=False))
    return plain


class QuantizedActivation(nn.Module):
    """An activation function, ``nn.Identity()`` where a convolution has none, between two grids.

    ``input_grid`` has 16 bits, signed, its scale a power of two, and is ``None`` while the layer is trained;
    ``output_grid`` is that of the layers which read the result.
    """

    traced_as = "activation"

    def __init__(self, function: nn.Module, input_grid: IntegerGrid | None, output_grid: IntegerGrid):
        super().__init__()
        self.function, self.input_grid, self.output_grid = function, input_grid, output_grid

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` is overwritten: it is the fresh output of a convolution, which nobody else reads."""
        if self.input_grid is not None:
            x = self.input_grid.snap(x, inplace=True)
        return self.output_grid.snap(self.function(x), inplace=True)


class QuantizedSum(nn.Module):
    """A sum that is clamped to the grid of both summands, on which those still have to be put that are ``computed``."""

    def __init__(self, output_grid: IntegerGrid, computed: tuple[bool, bool] = (False, False)):
        super().__init__()
        self.output_grid, self.computed = output_grid, computed

    def forward(self, *summands: torch.Tensor) -> torch.Tensor:
        pairs = zip(summands, self.computed, strict=True)
        first, second = (self.output_grid.snap(x) if computed else x for x, computed in pairs)
        return self.output_grid.saturate(first + second)


def _take_settings(new: nn.Module, layer: nn.Module) -> None:
    """Stride, padding and the like: all that a layer has beyond what every module has."""
    own = {"rounding", "snaps_input", *vars(nn.Module())}
    vars(new).update({name: value for name, value in vars(layer).items() if name not in own})
