"""From sums to bytes in the C file: multipliers, and the activation functions in their smallest exact form.

Used in lesson 13. The integer execution multiplies in 64 bits and looks up a table of 65,536 entries. What gives the
same bytes with less is found out here, from all numbers that can occur. Leaves out: the arithmetic (``plain.c``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from yolo_slim_lessons.quantization import QuantizedActivation, QuantizedLayer
from yolo_slim_lessons.quantization.execution import fixed_point_multiplier, look_up_table

LARGEST_SHIFT = 7  # of a table: a place in an entry, and the one behind it, are bytes


@dataclass(frozen=True)
class Function:
    """An activation function from 16 bits to a byte: constant beyond ``first`` and ``last``.

    Between them it is (x · slope + offset) >> shift. If ``step`` is not 0, so many numbers lie from one byte to the
    next, and of two bytes that are equally near it is the even one. Or it is a ``table``: entry (x - first) >> shift
    holds a value, and the place in the entry from which on the next entry's value counts.
    """

    first: int
    last: int
    shift: int
    slope: int = 0
    offset: int = 0
    step: int = 0
    table: np.ndarray | None = None  # uint8, entries × 2


def function_of(name: str, activation: QuantizedActivation) -> Function:
    """The function that ``activation``, called ``name``, is.

    Raises:
        ValueError: it does not put out bytes.
    """
    grid = activation.output_grid
    if grid.bits > 8 or grid.signed:
        raise ValueError(
            f"{name} puts out {grid.bits} bits: C takes up to 8, from 0 on; quantize with activation_bits=8"
        )
    values = whole_table(activation)
    changes = np.flatnonzero(np.diff(values))  # the last place before each change
    if len(changes) == 0:
        return Function(0, 0, 0, offset=int(values[0]))
    start, stop = changes[0], changes[-1] + 2
    first, last = (int(place + activation.input_grid.lowest) for place in (start, stop - 1))
    step = _whole_step(activation)
    line = _line_through(_ties_upwards(values[start:stop], first, step), first)
    if line is not None:
        return Function(first, last, *line, step=step)
    shift, table = _entries(values[start:stop])
    return Function(first, last, shift, table=table)


def whole_table(activation: QuantizedActivation) -> np.ndarray:
    """What the integer execution looks up, int64."""
    return look_up_table(activation).cpu().numpy().astype(np.int64)


def _whole_step(activation: QuantizedActivation) -> int:
    """How many numbers of the input lie from one byte to the next, if it is an even number of them, else 0.

    If so, some lie just halfway between two bytes.
    """
    step = (activation.output_grid.scale / activation.input_grid.scale).item()
    return int(step) if step % 2 == 0 and not activation.output_grid.zero_point.any() else 0


def _ties_upwards(values: np.ndarray, first: int, step: int) -> np.ndarray:
    """``values``, but where a number is halfway between two bytes, the upper one, where ``step`` is not 0."""
    if step == 0:
        return values
    x = first + np.arange(len(values))
    tie = 2 * ((values + 1) * step - x) == step
    return values + (tie & (values % 2 == 0))


def _line_through(values: np.ndarray, first: int) -> tuple[int, int, int] | None:
    """Shift, slope and offset of a line that gives exactly ``values`` from ``first`` on; ``None`` if none does."""
    x = first + np.arange(len(values), dtype=np.int64)
    exact_slope = np.polyfit(x, values, 1)[0]
    for shift in range(15, 24):
        for slope in range(int(exact_slope * 2**shift) - 2, int(exact_slope * 2**shift) + 4):
            # x * slope + offset must lie in [value, value + 1) * 2^shift for every x.
            lowest = int((values * 2**shift - x * slope).max())
            highest = int(((values + 1) * 2**shift - 1 - x * slope).min())
            if lowest <= highest and int(np.abs(x * slope).max()) + abs(lowest) < 2**31:
                return shift, slope, lowest
    return None


def _entries(values: np.ndarray) -> tuple[int, np.ndarray]:
    """The longest entries in which ``values`` change at most once each: their shift, and value and cut of each."""
    for shift in range(LARGEST_SHIFT, -1, -1):
        length = 2**shift
        rows = np.append(values, np.repeat(values[-1], -len(values) % length)).reshape(-1, length)
        following = np.append(rows[1:, 0], rows[-1, -1])
        changed = rows != rows[:, :1]
        cuts = np.where(changed.any(1), changed.argmax(1), length)
        from_cut_on = np.arange(length) >= cuts[:, None]
        if (np.where(from_cut_on, following[:, None], rows[:, :1]) == rows).all():
            table = np.stack([np.append(rows[:, 0], rows[-1, -1]), np.append(cuts, length)], axis=1)
            return shift, table.astype(np.uint8)
    raise AssertionError("entries of one number each hold anything")


@dataclass(frozen=True)
class Multipliers:
    """How the sums of a layer become the 16 bits that its activation function reads, by channel.

    Attributes:
        multiplier: uint32.
        shift: uint8; sum · multiplier / 2^shift, rounded to nearest, ties to even.
        narrow: whether multiplications of 16 bits and sums of 32 do, once sums are shifted to the left by ``lift``.
        lift: makes all shifts at least 17, so that what is rounded off lies in 32 bits.
        ties: whether a tie that is rounded up instead of to even would change a byte.
    """

    multiplier: np.ndarray
    shift: np.ndarray
    narrow: bool
    lift: int
    ties: bool


def multipliers_of(
    name: str, layer: QuantizedLayer, activation: QuantizedActivation, largest: np.ndarray
) -> Multipliers:
    """Those of ``layer``, called ``name``, whose sums are at most ``largest`` in each channel.

    Raises:
        ValueError: a factor that no multiplier of 32 bits and shift of 1 to 62 stand for.
    """
    factor = (layer.accumulator_scale / activation.input_grid.scale).expand(len(layer.integers))
    multiplier, shift = (tensor.cpu().numpy() for tensor in fixed_point_multiplier(factor))
    if shift.min() < 1 or (largest * multiplier).max() >= 2.0**62:
        raise ValueError(f"{name}: its sums would be multiplied by {factor.max().item():.3g}; quantize it again")
    lift = max(0, 17 - int(shift.min()))
    product = largest.astype(float) * 2.0**lift * multiplier / 2**16 + 2.0 ** (shift + lift - 17)
    narrow = multiplier.min() >= 2**15 and multiplier.max() < 2**16 and shift.max() + lift - 16 < 31
    narrow = bool(narrow and product.max() < 2**31 and largest.max() * 2**lift < 2**31)
    ties = narrow and _ties_matter(multiplier, shift, largest, activation)
    return Multipliers(multiplier.astype(np.uint32), shift.astype(np.uint8), narrow, lift if narrow else 0, ties)


def _ties_matter(multiplier, shift, largest, activation: QuantizedActivation) -> bool:
    """Whether a sum that lies halfway between two numbers of 16 bits, the lower one even, stands between two bytes."""
    grid, values = activation.input_grid, whole_table(activation)
    for m, s, bound in zip(multiplier.tolist(), shift.tolist(), largest.tolist(), strict=True):
        zeros = (m & -m).bit_length() - 1  # at the end of m
        step = 2 ** max(0, s - 1 - zeros)  # sum * m is half of 2^s for odd multiples of this
        lower = (np.arange(-(bound // step) | 1, bound // step + 1, 2) * step * m) >> s
        lower = lower[(lower % 2 == 0) & (lower >= grid.lowest) & (lower < grid.highest)] - grid.lowest
        if (values[lower] != values[lower + 1]).any():
            return True
    return False
