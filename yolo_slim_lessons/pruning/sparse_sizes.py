"""What zeros save on disk: a checkpoint whose weights are stored in four ways. Used in lesson 03.

Leaves out: writing such files; ``packing`` writes smaller ones.
"""

from __future__ import annotations

import gzip
import math
from dataclasses import dataclass

import torch
from torch import nn

from yolo_slim_lessons.measurement.size import checkpoint_contents
from yolo_slim_lessons.models import weight_layers


@dataclass(frozen=True)
class SparseSizes:
    """Bytes of one checkpoint, its weights stored in four ways.

    Attributes:
        dense: the file as ``save_model`` writes it, zeros and all.
        gzip: that file compressed by gzip.
        index_value: each weight that is not zero with its place in the layer.
        bitmask_value: a bit for every weight that says whether it is zero, then the values of the others.
    """

    dense: int
    gzip: int
    index_value: int
    bitmask_value: int


def sparse_sizes(model: nn.Module, precision: str = "fp16") -> SparseSizes:
    """How large a checkpoint of ``model`` is, and how large it were if its zeros were not stored.

    The first two numbers are measured on the file. For the others, the weights of convolutions and linear layers are
    taken out of it and counted anew; an index has the fewest bits that can number the weights of its layer.

    Args:
        model: a classifier of this package.
        precision: of the file and of the values, ``"fp16"`` or ``"fp32"``.

    Example:
        >>> import yolo_slim_lessons as slim
        >>> sizes = sparse_sizes(slim.prune_weights(slim.load_model("nano"), 0.9))
        >>> sizes.bitmask_value < sizes.index_value < sizes.dense
        True
    """
    file = checkpoint_contents(model, precision)
    dtype, value_bits = (torch.float16, 16) if precision == "fp16" else (torch.float32, 32)
    rest, index_value, bitmask_value = len(file), 0, 0
    for _, layer in weight_layers(model):
        size, nonzero = layer.weight.numel(), int(layer.weight.to(dtype).count_nonzero())
        rest -= size * value_bits // 8
        index_value += math.ceil(nonzero * (value_bits + index_bits(size)) / 8)
        bitmask_value += math.ceil((size + nonzero * value_bits) / 8)
    return SparseSizes(len(file), len(gzip.compress(file, compresslevel=6)), rest + index_value, rest + bitmask_value)


def index_bits(size: int) -> int:
    """The fewest bits that number ``size`` places, 0 to size - 1."""
    return max(1, (size - 1).bit_length())


def break_even_rate(value_bits: int, index_bits: int | None = None) -> float:
    """The share of zeros above which a sparse format is smaller than the dense one.

    Of ``n`` weights, a share ``1 - rate`` is stored. With an index each, that costs ``n (1 - rate) (value + index)``
    bits, against ``n value`` dense: it pays above index / (value + index). With a bitmask it costs
    ``n + n (1 - rate) value`` bits: it pays above 1 / value.

    Args:
        value_bits: bits of a weight, such as 32, 16 or 8.
        index_bits: bits of an index; ``None`` for a bitmask.

    Raises:
        ValueError: a number of bits is below 1.

    Example:
        >>> break_even_rate(32, index_bits=32), break_even_rate(32)
        (0.5, 0.03125)
    """
    if value_bits < 1 or (index_bits is not None and index_bits < 1):
        raise ValueError(f"value_bits={value_bits!r}, index_bits={index_bits!r}: expected 1 or more")
    return 1 / value_bits if index_bits is None else index_bits / (value_bits + index_bits)
