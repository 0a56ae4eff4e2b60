"""The grid that numbers snap to: ``bits``, a scale and a zero point. Used in lesson 05.

A real number x becomes the integer q = clamp(round(x / scale) + zero_point), and q stands for (q - zero_point) * scale.
Leaves out: how to choose the range that the grid covers (``calibration.py``).
"""

from __future__ import annotations

import numbers

import torch
from torch import nn


class IntegerGrid(nn.Module):
    """Evenly spaced numbers, as many as ``bits`` bits can count, zero always among them (Jacob et al., 2018).

    Rounding is to nearest, ties to even; what lies outside goes to the nearest end. A grid is a module without
    parameters, so that it follows the layer that owns it through copies, files and devices.

    Attributes:
        bits: 2 to 16.
        scale: distance of neighbours, float32: a scalar for the whole tensor, or C of them, one for each index of its
            first dimension, the output channels of a weight.
        zero_point: the integer that stands for 0, int32 of the same shape.
        signed: whether the integers start at -2^(bits-1) rather than at 0.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor

    def __init__(self, bits: int, scale: torch.Tensor, zero_point: torch.Tensor, signed: bool = True):
        super().__init__()
        self.bits, self.signed = bits, signed
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, signed={self.signed}, scales={tuple(self.scale.shape)}"

    def with_scale(self, scale: torch.Tensor) -> IntegerGrid:
        """The same grid with other distances of neighbours."""
        return IntegerGrid(self.bits, scale, self.zero_point, self.signed)

    @classmethod
    def from_range(
        cls,
        low: torch.Tensor,
        high: torch.Tensor,
        bits: int,
        *,
        symmetric: bool = False,
        signed: bool = True,
        smallest_scale: torch.Tensor | float = 0.0,
    ) -> IntegerGrid:
        """The finest grid that covers ``low`` to ``high`` and zero.

        A scale is rounded up to 8 significant bits, a bfloat16, which costs less than a hundredth of the resolution.
        Thereby a scale times an integer of up to 16 bits is exact in float32, and a scale times a scale times a
        32-bit sum is exact in float64: no rounding happens but the one that quantization means.

        Args:
            low: lower end of the range, () or C of them.
            high: upper end, likewise.
            bits: 2 to 16.
            symmetric: put the zero point at 0 and cover the larger of |low| and |high| on both sides.
            signed: as in the class; symmetric grids are signed.
            smallest_scale: no scale is finer than this.

        Raises:
            ValueError: ``bits`` is no integer from 2 to 16, or an end is NaN or infinite.
        """
        check_bits("bits", bits)
        low, high = low.float().clamp(max=0), high.float().clamp(min=0)
        if not (low.isfinite().all() and high.isfinite().all()):
            raise ValueError("low, high: expected finite numbers, found NaN or infinity")
        signed = signed or symmetric
        lowest, highest = integer_range(bits, signed)
        scale = torch.maximum(high, -low) / highest if symmetric else (high - low) / (highest - lowest)
        scale = _round_up_to_bfloat16(torch.maximum(scale, torch.as_tensor(smallest_scale, dtype=torch.float32)))
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # all zeros: any scale will do
        zero_point = torch.zeros_like(scale) if symmetric else (lowest - low / scale).round().clamp(lowest, highest)
        return cls(bits, scale, zero_point.to(torch.int32), signed)

    @property
    def lowest(self) -> int:
        return integer_range(self.bits, self.signed)[0]

    @property
    def highest(self) -> int:
        return integer_range(self.bits, self.signed)[1]

    @property
    def symmetric(self) -> bool:
        """Signed, and 0 stands for 0."""
        return self.signed and not self.zero_point.any()

    @property
    def dtype(self) -> torch.dtype:
        """The smallest type of torch that holds the integers."""
        if self.bits <= 8:
            return torch.int8 if self.signed else torch.uint8
        return torch.int16 if self.signed or self.bits < 16 else torch.int32

    @property
    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The real numbers at both ends, each of the shape of ``scale``."""
        return ((self.lowest - self.zero_point) * self.scale, (self.highest - self.zero_point) * self.scale)

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Real numbers to integers, int32 of the same shape."""
        scale, zero_point = self._broadcast(x)
        return ((x / scale).round() + zero_point).clamp(self.lowest, self.highest).to(torch.int32)

    def dequantize(self, integers: torch.Tensor) -> torch.Tensor:
        """Integers to the real numbers that they stand for, of the type of ``scale``: float32."""
        scale, _ = self._broadcast(integers)
        return self.center(integers) * scale

    def center(self, integers: torch.Tensor) -> torch.Tensor:
        """Take the zero point off, so that 0 stands for 0: int32."""
        _, zero_point = self._broadcast(integers)
        return integers.to(torch.int32) - zero_point

    def snap(self, x: torch.Tensor, inplace: bool = False) -> torch.Tensor:
        """Real numbers to the nearest ones on the grid: ``dequantize(quantize(x))`` without leaving floats.

        ``inplace`` writes the result into ``x``, which spares memory traffic, most of the time this takes.
        """
        if x.is_meta:  # only its shape counts
            return x
        scale, zero_point = self._broadcast(x)
        x = x.div_(scale) if inplace else x / scale
        if not zero_point.any():
            zero_point = 0
        elif zero_point.dim() == 0:
            zero_point = int(zero_point)  # torch clamps to plain numbers several times as fast as to tensors
        return x.round_().clamp_(self.lowest - zero_point, self.highest - zero_point).mul_(scale)

    def saturate(self, x: torch.Tensor) -> torch.Tensor:
        """Clamp ``x``, in place, to the ends of the grid: all that a sum of numbers on the grid needs. Scalar scale."""
        if x.is_meta:
            return x
        low, high = self.range
        return x.clamp_(low.item(), high.item())

    def _broadcast(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shape = self.scale.shape + (1,) * (x.dim() - 1) if self.scale.dim() else ()
        return self.scale.view(shape), self.zero_point.view(shape)


def integer_range(bits: int, signed: bool) -> tuple[int, int]:
    """The smallest and the largest integer of ``bits`` bits."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def check_bits(name: str, bits: int) -> None:
    """Raise ``ValueError`` unless ``bits``, the value of argument ``name``, is an integer from 2 to 16."""
    if isinstance(bits, bool) or not isinstance(bits, numbers.Integral) or not 2 <= bits <= 16:
        raise ValueError(f"{name}={bits!r}: expected an integer from 2 to 16")


def _round_up_to_bfloat16(scale: torch.Tensor) -> torch.Tensor:
    """The smallest float32 that is no smaller, and whose last 16 bits are zero: those that bfloat16 lacks."""
    return ((scale.contiguous().view(torch.int32) + 0xFFFF) & ~0xFFFF).view(torch.float32)
