"""Layers that hold integers, and compute with the real numbers these stand for. Used in lesson 05.

The simulation ("fake quantization") is an ordinary forward pass: weights, inputs and activations are floats, but only
such as lie on a grid. Where a tensor is rounded:

- the image, at the first convolution: 8-bit pixels, so nothing is lost;
- behind every activation function, once. Each convolution thus reads numbers that are on its input grid already;
- before every activation function, to 16-bit fixed point with a power of two as its step. That changes next to
  nothing, and makes the activation function a look-up table of 65,536 entries for a processor without floats;
- the average of a channel, which the last linear layer reads.

What is added or concatenated shares one grid (all of a C2f block's parts). A sum is then a sum of integers and a
concatenation moves bytes: neither rounds again, a sum is only clamped to the grid's ends.

Leaves out: arithmetic on the integers themselves (``execution.py``).
"""

from __future__ import annotations

import torch
from torch import nn
from ultralytics.nn.modules.block import Bottleneck

from yolo_slim_lessons.quantization.grids import IntegerGrid

# Biases stay this far inside int32, so that bias and products together fit.
LARGEST_BIAS = 2**30


class GridBuffers:
    """A module's attribute that is an ``IntegerGrid`` or ``None``, its two tensors kept as the module's buffers.

    Buffers follow their module through copies, ``state_dict`` and ``double()``.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __set__(self, module: nn.Module, grid: IntegerGrid | None) -> None:
        module.register_buffer(f"{self.name}_scale", None if grid is None else grid.scale)
        module.register_buffer(f"{self.name}_zero_point", None if grid is None else grid.zero_point)
        module.__dict__[f"{self.name}_format"] = None if grid is None else (grid.bits, grid.signed)

    def __get__(self, module: nn.Module | None, owner: type) -> IntegerGrid | None:
        if module is None:
            return self
        if module.__dict__[f"{self.name}_format"] is None:
            return None
        bits, signed = module.__dict__[f"{self.name}_format"]
        buffers = module._buffers
        return IntegerGrid(bits, buffers[f"{self.name}_scale"], buffers[f"{self.name}_zero_point"], signed)


class QuantizedLayer(nn.Module):
    """What ``QuantizedConv2d`` and ``QuantizedLinear`` have in common.

    Attributes:
        integers: the weight's integers, in the smallest type that holds them.
        weight: the real numbers these stand for, float32; a parameter like any other layer's.
        weight_grid: one scale, or one for each output channel.
        bias: float32 or ``None``; with an input grid, the numbers that ``bias_integers`` stand for.
        bias_integers: int32, on the grid of the accumulator; ``None`` without an input grid or without a bias.
        input_grid: the grid that the input lies on; ``None`` where only weights are quantized.
        snaps_input: whether the layer itself puts its input on that grid; otherwise the layer in front did.
    """

    weight_grid = GridBuffers()
    input_grid = GridBuffers()

    def set_grids(self, weight_grid: IntegerGrid, input_grid: IntegerGrid | None, snaps_input: bool = False) -> None:
        """Choose the grids; ``set_integers`` must follow."""
        self.weight_grid, self.input_grid, self.snaps_input = weight_grid, input_grid, snaps_input

    @torch.no_grad()
    def set_integers(self, integers: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Take over a weight's integers and a bias of real numbers, which is rounded to the accumulator's grid."""
        self.register_buffer("integers", integers.to(self.weight_grid.dtype))
        self.weight = nn.Parameter(self.weight_grid.dequantize(integers), requires_grad=False)
        bias_integers = None
        if bias is not None:
            self.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
            if self.input_grid is not None:
                scaled = (bias / self.accumulator_scale).round()
                bias_integers = scaled.clamp(-LARGEST_BIAS, LARGEST_BIAS).to(torch.int32)
        self.register_buffer("bias_integers", bias_integers)
        self._refresh_bias()

    @property
    def accumulator_scale(self) -> torch.Tensor:
        """What 1 stands for in the sum of integer products, float64: () or one per output channel."""
        return self.input_grid.scale.double() * self.weight_grid.scale.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.input_grid.snap(x) if self.snaps_input else x)

    def _apply(self, function, recurse=True):
        super()._apply(function, recurse)
        self._refresh_bias()  # a bias is exact in float64 only, so model.double() must not widen the float32 one
        return self

    def _refresh_bias(self) -> None:
        if self.bias_integers is not None:
            self.bias.data = (self.bias_integers * self.accumulator_scale).to(self.bias.dtype)


class QuantizedConv2d(QuantizedLayer, nn.Conv2d):
    """A convolution whose weights lie on a grid; attributes as in ``QuantizedLayer``."""


class QuantizedLinear(QuantizedLayer, nn.Linear):
    """A linear layer whose weights lie on a grid; attributes as in ``QuantizedLayer``."""


def same_shape(layer: nn.Conv2d | nn.Linear, convolution: type, linear: type) -> nn.Module:
    """A new layer of one of the two classes, with the shape of ``layer`` and other weights."""
    if isinstance(layer, nn.Linear):
        return linear(layer.in_features, layer.out_features, layer.bias is not None)
    return convolution(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        layer.bias is not None,
        layer.padding_mode,
    )


class QuantizedActivation(nn.Module):
    """An activation function between two grids.

    Attributes:
        function: such as ``nn.SiLU()``.
        input_grid: 16 bits, signed, its scale a power of two.
        output_grid: that of the layers which read the result.
    """

    input_grid = GridBuffers()
    output_grid = GridBuffers()

    def __init__(
        self, function: nn.Module, input_grid: IntegerGrid | None = None, output_grid: IntegerGrid | None = None
    ):
        super().__init__()
        self.function, self.input_grid, self.output_grid = function, input_grid, output_grid

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` is overwritten: it is the fresh output of a convolution, which nobody else reads."""
        if self.input_grid is None:
            return self.function(x)
        return self.output_grid.snap(self.function(self.input_grid.snap(x, inplace=True)), inplace=True)


class QuantizedBottleneck(Bottleneck):
    """Ultralytics' bottleneck with shortcut; the sum is clamped to the grid on which both summands lie."""

    output_grid = GridBuffers()

    def __init__(self, block: Bottleneck, output_grid: IntegerGrid):
        nn.Module.__init__(self)
        self.cv1, self.cv2, self.add, self.output_grid = block.cv1, block.cv2, block.add, output_grid

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output_grid.saturate(x + self.cv2(self.cv1(x)))
