"""The constants of the C file: weights and biases, and the proof that no sum overflows. Used in lesson 13.

Leaves out: weights with a zero point, and more than 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from yolo_slim_lessons.quantization import QuantizedLayer

LANES = 16  # output channels of a block, as in layers.c


@dataclass(frozen=True)
class Weights:
    """Of a convolution or linear layer, as ``layers.c`` reads them.

    Attributes:
        integers: int8, in blocks of 16 channels; two in a byte where ``packed``.
        bias: int32 of each output channel, without what the zero point of the input adds to the sum.
        packed: whether the weights have 4 bits or less.
        largest: int64, the largest magnitude that the sum of each channel can have.
    """

    integers: np.ndarray
    bias: np.ndarray
    packed: bool
    largest: np.ndarray


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
    return Weights(_two_in_a_byte(stream) if packed else stream, bias.astype(np.int32), packed, largest)


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
