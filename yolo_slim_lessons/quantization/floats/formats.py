"""Floats of few bits: what their values are, and how to round a tensor to them. Used in lesson 06.

Leaves out: what to round (``quantize_float``), and arithmetic in these formats.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

NAMED_FORMATS = {"fp16": "e5m10", "bf16": "e8m7", "fp8_e4m3": "e4m3", "fp8_e5m2": "e5m2"}


@dataclass(frozen=True)
class FloatFormat:
    """How the bits of a float are divided, after its sign bit.

    The value of a code with exponent field E and mantissa field M is (1 + M / 2^m) · 2^(E - bias), and for E = 0 it is
    (M / 2^m) · 2^(1 - bias): the subnormals, evenly spaced down to zero. What the highest codes mean follows the
    standards: with five or more exponent bits the highest exponent is infinity and NaN (IEEE 754); with four, only
    the very highest code is NaN (fp8 e4m3 of Micikevicius et al., 2022); with fewer, every code is a number (the 6- and
    4-bit formats of the OCP Microscaling specification, 2023).

    Attributes:
        name: such as ``"e4m3"``.
        exponent_bits: 1 to 8.
        mantissa_bits: 0 to 23.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int

    @property
    def bits(self) -> int:
        """Of a value, sign included."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def overflow(self) -> float | None:
        """What takes the place of values that are too large: infinity, NaN, or ``None`` if the format has neither."""
        return float("inf") if self.exponent_bits >= 5 else float("nan") if self.exponent_bits == 4 else None

    @property
    def max(self) -> float:
        """The largest finite value."""
        codes = 2 ** (self.exponent_bits + self.mantissa_bits)  # of values that are not negative
        codes -= 2**self.mantissa_bits if self.exponent_bits >= 5 else int(self.exponent_bits == 4)
        exponent, mantissa = divmod(codes - 1, 2**self.mantissa_bits)
        return (1 + mantissa / 2**self.mantissa_bits) * 2.0 ** (exponent - self.bias)

    @property
    def min_normal(self) -> float:
        """The smallest value above zero with all its mantissa bits; those below are subnormal."""
        return 2.0 ** (1 - self.bias)

    @property
    def min_subnormal(self) -> float:
        """The smallest value above zero."""
        return self.min_normal / 2**self.mantissa_bits

    def values(self) -> torch.Tensor:
        """Every finite value from zero up, float32: the marks on the number line.

        Raises:
            ValueError: more than 16 bits, too many values to draw.
        """
        if self.bits > 16:
            raise ValueError(f"{self.name} has {self.bits} bits: expected at most 16, its values are too many")
        steps = torch.arange(2**self.mantissa_bits) / 2**self.mantissa_bits
        rows = [steps * self.min_normal]
        rows += [(1 + steps) * 2.0 ** (field - self.bias) for field in range(1, 2**self.exponent_bits)]
        values = torch.cat(rows)
        return values[values <= self.max]


def float_format(format: str | FloatFormat) -> FloatFormat:
    """The format of that name.

    Args:
        format: ``"fp16"``, ``"bf16"``, ``"fp8_e4m3"``, ``"fp8_e5m2"``, or ``"eXmY"`` with X = 1…8 exponent bits and
            Y = 0…23 mantissa bits.

    Raises:
        ValueError: no such name, or numbers outside these ranges.

    Example:
        >>> float_format("fp8_e4m3").max, float_format("fp16").min_normal
        (448.0, 6.103515625e-05)
    """
    if isinstance(format, FloatFormat):
        return format
    match = re.fullmatch(r"e(\d+)m(\d+)", NAMED_FORMATS.get(format, format)) if isinstance(format, str) else None
    exponent_bits, mantissa_bits = map(int, match.groups()) if match else (0, 0)
    if not (1 <= exponent_bits <= 8 and 0 <= mantissa_bits <= 23):
        raise ValueError(
            f"format={format!r}: expected one of {tuple(NAMED_FORMATS)}, or 'eXmY' with 1 <= X <= 8, 0 <= Y <= 23"
        )
    return FloatFormat(match.group(), exponent_bits, mantissa_bits)


def round_to_format(tensor: torch.Tensor, format: str | FloatFormat, *, saturate: bool = True) -> torch.Tensor:
    """Round to the nearest value of a format; halfway between two, to the one whose last bit is zero.

    Args:
        tensor: float32, or float16 or bfloat16; any shape.
        format: as for ``float_format``.
        saturate: values too large become the largest finite one; if false, infinity, or NaN in a format that has no
            infinity. NaN stays NaN.

    Returns:
        A new float32 tensor of the same shape.

    Raises:
        ValueError: unknown format, or ``saturate=False`` for one with neither infinity nor NaN.
        TypeError: not a tensor of one of these types.

    Example:
        >>> round_to_format(torch.tensor([0.3, 17.0, 1000.0]), "fp8_e4m3").tolist()
        [0.3125, 16.0, 448.0]
    """
    format = float_format(format)
    if not isinstance(tensor, torch.Tensor) or tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        found = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise TypeError(f"tensor is {found}: expected a float32, float16 or bfloat16 tensor")
    if not saturate and format.overflow is None:
        raise ValueError(f"saturate=False: {format.name} has neither infinity nor NaN, expected saturate=True")
    tensor = tensor.float()
    # The power of two at or below |x|: x without its sign and mantissa bits.
    power = (tensor.view(torch.int32) & 0x7F800000).view(torch.float32)
    power = power.clamp(format.min_normal, 2.0**127)  # below, steps grow no finer; infinity would make NaN of 1 / power
    # Each factor is a power of two, and in this order nothing overflows: only round() rounds, to even.
    rounded = tensor.div(power).mul_(2**format.mantissa_bits).round_().div_(2**format.mantissa_bits).mul_(power)
    if saturate:
        return rounded.clamp_(-format.max, format.max)
    too_large = rounded.abs() > format.max
    return torch.where(too_large, format.overflow * rounded.sign(), rounded)


@dataclass(frozen=True)
class FormatFit:
    """What a format does to the values of one tensor: shares 0…1 of those that are not zero, which add up to 1.

    Attributes:
        overflow: too large for the format.
        normal: rounded with all mantissa bits.
        subnormal: below the smallest normal value, rounded more coarsely than that.
        underflow: so small that they become zero.
    """

    overflow: float
    normal: float
    subnormal: float
    underflow: float


def format_fit(tensor: torch.Tensor, format: str | FloatFormat) -> FormatFit:
    """Count what overflows, underflows and is subnormal when ``tensor`` is rounded to ``format``.

    Raises:
        ValueError: unknown format, NaN, or no value but zero.
    """
    format = float_format(format)
    size = tensor[tensor != 0].float().abs()
    if not len(size) or size.isnan().any():
        raise ValueError("tensor holds NaN, or nothing but zeros: expected at least one number to round")
    # As a format of more exponent bits would round: what is above the maximum then overflows.
    unbounded = FloatFormat("unbounded", 8, format.mantissa_bits)
    overflow = round_to_format(size, unbounded, saturate=False) > format.max
    rounded = round_to_format(size, format)
    underflow = rounded == 0
    subnormal = (rounded < format.min_normal) & ~underflow
    counts = [int(group.sum()) for group in (overflow, subnormal, underflow)]
    shares = [count / len(size) for count in counts]
    return FormatFit(shares[0], (len(size) - sum(counts)) / len(size), shares[1], shares[2])
