"""The constants of the C file: weights, multipliers and tables, and the proof that no sum overflows. Used in lesson 13.

Leaves out: weights with a zero point, and more than 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from yolo_slim_lessons.quantization import IntegerGrid, QuantizedActivation, QuantizedLayer
from yolo_slim_lessons.quantization.execution import fixed_point_multiplier, look_up_table

LANES = 16  # output channels of a block, as in layers.c
LARGEST_SHIFT = 7  # of a table: places in an entry, and the place behind it, are bytes


@dataclass(frozen=True)
class Weights:
    """Of a convolution or linear layer, as ``layers.c`` reads them.

    Attributes:
        integers: int8, in blocks of 16 channels; two in a byte where ``packed``.
        bias: int32 of each output channel, without what the zero point of the input adds to the sum.
        packed: whether the weights have 4 bits or less.
    """

    integers: np.ndarray
    bias: np.ndarray
    packed: bool


def weights_of(name: str, layer: QuantizedLayer) -> Weights:
    """The weights of ``layer``, in the order in which they meet the bytes of a window.

    Raises:
        ValueError: weights or activations that are no bytes, or a sum that could leave 32 bits (the layer is named).
    """
    _check_bytes(name, layer)
    integers = layer.integers.cpu().numpy()
    if integers.ndim == 2:
        integers = integers[:, :, None, None]
    windows = integers.transpose(0, 2, 3, 1)  # the channels of a pixel lie side by side
    rows = windows.reshape(*windows.shape[:2], -1)  # output channels × rows × bytes of a row
    rows = np.pad(rows, ((0, 0), (0, 0), (0, -rows.shape[2] % 4)))
    matrix = rows.reshape(len(rows), -1)
    bias = np.zeros(len(rows), np.int64)
    if layer.bias_integers is not None:
        bias += layer.bias_integers.cpu().numpy()
    bias -= layer.input_grid.zero_point.item() * matrix.sum(1, dtype=np.int64)
    largest = np.abs(bias) + layer.input_grid.highest * np.abs(matrix.astype(np.int64)).sum(1)
    if largest.max() >= 2**31:
        raise ValueError(f"{name}: a sum could reach {largest.max():.3g}, beyond 32 bits; use fewer bits")
    packed = layer.weight_grid.bits <= 4
    groups = np.split(matrix, getattr(layer, "groups", 1))
    blocks = [group[start : start + LANES] for group in groups for start in range(0, len(group), LANES)]
    stream = np.concatenate([_interleaved(block) for block in blocks])
    return Weights(_two_in_a_byte(stream) if packed else stream, bias.astype(np.int32), packed)


def _check_bytes(name: str, layer: QuantizedLayer) -> None:
    if layer.weight_grid.bits > 8 or layer.input_grid.bits > 8:
        bits = layer.weight_grid.bits, layer.input_grid.bits
        raise ValueError(f"{name} multiplies weights of {bits[0]} bits with {bits[1]}: C takes up to 8 of each")
    if not layer.weight_grid.symmetric:
        raise ValueError(f"{name} has weights with a zero point: quantize with symmetric=True")
    if layer.input_grid.signed:
        raise ValueError(f"{name} reads signed integers: C takes a grid that starts at 0")


def _interleaved(block: np.ndarray) -> np.ndarray:
    """Channels × weights: four weights of each channel, then the next four."""
    return np.ascontiguousarray(block.reshape(len(block), -1, 4).transpose(1, 0, 2)).ravel()


def _two_in_a_byte(stream: np.ndarray) -> np.ndarray:
    nibbles = stream.astype(np.int8).view(np.uint8) & 15
    return (nibbles[::2] | nibbles[1::2] << 4).view(np.int8)


def multipliers_of(name: str, layer: QuantizedLayer, activation: QuantizedActivation) -> tuple[np.ndarray, np.ndarray]:
    """For each output channel, multiplier and shift from its sums to the 16 bits before the activation function.

    Raises:
        ValueError: a factor that no multiplier of 32 bits and shift of 1 to 62 stand for (the layer is named).
    """
    factor = (layer.accumulator_scale / activation.input_grid.scale).expand(len(layer.integers))
    multiplier, shift = (tensor.cpu().numpy() for tensor in fixed_point_multiplier(factor))
    if shift.min() < 1:
        raise ValueError(f"{name}: its sums would be multiplied by {factor.max().item():.3g}; quantize it again")
    return multiplier.astype(np.uint32), shift.astype(np.uint8)


@dataclass(frozen=True)
class Function:
    """An activation function from 16 bits to a byte, as ``layers.c`` computes it: constant beyond ``first`` and ``last``.

    Between them it is (x · slope + offset) >> shift, or, where there are ``values``, a table.
    """

    first: int
    last: int
    shift: int
    slope: int = 0
    offset: int = 0
    values: np.ndarray | None = None
    cuts: np.ndarray | None = None


def function_of(name: str, activation: QuantizedActivation) -> Function:
    """The smallest exact form of the table of 65,536 entries that the integer execution looks up.

    Raises:
        ValueError: the table does not hold bytes (the activation is named).
    """
    grid = activation.output_grid
    if grid.bits > 8 or grid.signed:
        raise ValueError(f"{name} puts out {grid.bits} bits: C takes up to 8, from 0 on; use activation_bits=8")
    table = look_up_table(activation).cpu().numpy().astype(np.int64)
    lowest = activation.input_grid.lowest
    changes = np.flatnonzero(np.diff(table))  # the last place before each change
    if len(changes) == 0:
        return Function(0, 0, 0, offset=int(table[0]))
    first, last = changes[0], changes[-1] + 1
    between = table[first : last + 1]
    line = _line_through(between, first + lowest)
    if line is not None:
        return Function(int(first + lowest), int(last + lowest), *line)
    shift, values, cuts = _entries(between)
    return Function(int(first + lowest), int(last + lowest), shift, values=values, cuts=cuts)


def _line_through(values: np.ndarray, first: int) -> tuple[int, int, int] | None:
    """Shift, slope and offset of a line that gives exactly ``values`` at ``first`` and on; ``None`` if none does."""
    x = first + np.arange(len(values), dtype=np.int64)
    for shift in range(15, 24):
        slope = np.polyfit(x, values.astype(float), 1)[0] * 2**shift
        for candidate in range(int(slope) - 2, int(slope) + 4):
            # x * candidate + offset must lie in [value, value + 1) * 2^shift for every x.
            lowest = (values * 2**shift - x * candidate).max()
            highest = ((values + 1) * 2**shift - 1 - x * candidate).min()
            largest = abs(x).max() * candidate + abs(lowest)
            if lowest <= highest and largest < 2**31:
                return shift, candidate, int(lowest)
    return None


def _entries(values: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """The longest entries in which ``values`` change at most once each: their shift, first values and cuts."""
    for shift in range(LARGEST_SHIFT, -1, -1):
        length = 2**shift
        filled = np.append(values, np.repeat(values[-1], -len(values) % length)).reshape(-1, length)
        following = np.append(filled[1:, 0], filled[-1, -1])
        changed = filled != filled[:, :1]
        cuts = np.where(changed.any(1), changed.argmax(1), length)
        rest = np.arange(length) >= cuts[:, None]
        if (np.where(rest, following[:, None], filled[:, :1]) == filled).all():
            return shift, np.append(filled[:, 0], filled[-1, -1]).astype(np.uint8), cuts.astype(np.uint8)
    raise AssertionError("entries of one number each hold anything")


def logit_factors(name: str, layer: QuantizedLayer) -> tuple[np.ndarray, int]:
    """Integers f, int32, and b, with logits = sums · f / 2^b, exactly.

    Raises:
        ValueError: the scales of the classes differ too much for that.
    """
    mantissa, exponent = (part.cpu() for part in torch.frexp(layer.accumulator_scale.expand(len(layer.integers))))
    whole = (mantissa * 2**16).long()  # the product of two scales of 8 significant bits
    bits = 16 - int(exponent.min())
    factors = whole << (exponent - exponent.min()).long()
    while not (factors % 2).any() and bits > 0:
        factors, bits = factors // 2, bits - 1
    if (whole != mantissa * 2**16).any() or factors.max() >= 2**31:
        raise ValueError(f"{name}: the scales of its classes differ by too much for integers; quantize it again")
    return factors.numpy().astype(np.int32), bits
