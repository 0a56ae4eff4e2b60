"""Bits for each layer: few where they do not hurt, more where they do, within a budget of bytes.

What a layer's rounding costs is measured by rounding that layer alone; ``choose_bits`` then spends the bytes where
they save most. Used in lesson 05. Leaves out: that rounded layers hurt each other (costs are simply added), bits of
activations, and budgets of time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from numbers import Real

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from yolo_slim_lessons.data import Split
from yolo_slim_lessons.distillation import soft_target_loss
from yolo_slim_lessons.graph import trace
from yolo_slim_lessons.measurement.one_pass import AT_ONCE, Change, estimate_divergences, through
from yolo_slim_lessons.models import as_network, logits, weight_layers
from yolo_slim_lessons.quantization import fold_batchnorm, quantize_integer
from yolo_slim_lessons.quantization.observation import image_batches


@dataclass(frozen=True)
class BitSensitivity:
    """What it costs to round one layer alone, from ``bit_sensitivity`` or as ``search.sensitivity`` counts it.

    Attributes:
        layers: names, L of them.
        bits: what was tried on each, B of them, 2 to 16.
        loss: array L×B, in any unit that can be added up; from ``bit_sensitivity``, the divergence of answers, nats.
        bytes: array L×B, from ``integer_bytes``.
    """

    layers: tuple[str, ...]
    bits: tuple[int, ...]
    loss: np.ndarray
    bytes: np.ndarray


@torch.no_grad()
def bit_sensitivity(
    model: nn.Module,
    images: Split | torch.Tensor,
    bits: Iterable[int] = (2, 3, 4, 5, 6, 8),
    *,
    exact: bool = True,
    progress: bool = True,
    **quantize_options,
) -> BitSensitivity:
    """Round one layer at a time and see how far the answers move: KL(float ‖ rounded), the mean over ``images``.

    No label is needed, and small losses show that would not change a single right answer.

    Args:
        model: a float classifier; it is left alone.
        images: some hundred, labels are not looked at. A ``Split``, or a tensor N×3×H×W.
        bits: what to try on each layer.
        exact: run the network once for each layer and number of bits; ``False`` estimates all in one pass, for
            classifiers (``measurement.one_pass``), many times faster at 224 px.
        progress: show a progress bar.
        **quantize_options: whatever else ``quantize_integer`` takes, such as ``granularity``.

    Raises:
        ValueError: no bits, bits that are no integers from 2 to 16, no image, or NaN in one.
    """
    model = as_network(model)
    bits = tuple(bits)
    if not bits:
        raise ValueError("bits is empty: expected at least one number of bits, 2 to 16")
    rounded = [dict(weight_layers(quantize_integer(model, number, warn=False, **quantize_options))) for number in bits]
    folded = fold_batchnorm(model)
    layers = [name for name, _ in weight_layers(folded)]
    weights = [[quantized[name].weight for quantized in rounded] for name in layers]
    loss = (_exact_losses if exact else _estimated_losses)(folded, images, layers, weights, progress)
    return BitSensitivity(tuple(layers), bits, loss, integer_bytes(model, layers, bits))


def _exact_losses(model: nn.Module, images, layers: list[str], weights: list[list], progress: bool) -> np.ndarray:
    """The divergence of answers, nats, array L×B, with one layer's weight replaced at a time."""
    batches = list(image_batches(images, model=model))
    answers = [logits(model, batch).clone() for batch in batches]
    loss = np.empty((len(layers), len(weights[0])))
    with tqdm(total=loss.size, desc="bit sensitivity", disable=not progress, leave=False) as bar:
        for row, name in enumerate(layers):
            layer = model.get_submodule(name)
            exact = layer.weight
            for column, weight in enumerate(weights[row]):
                layer.weight = nn.Parameter(weight, requires_grad=False)
                divergences = [
                    soft_target_loss(logits(model, batch), answer, temperature=1.0).item() * len(batch)
                    for batch, answer in zip(batches, answers, strict=True)
                ]
                loss[row, column] = sum(divergences) / sum(map(len, batches))
                bar.update()
            layer.weight = exact
    return loss


def _estimated_losses(model: nn.Module, images, layers: list[str], weights: list[list], progress: bool) -> np.ndarray:
    """The same in one pass."""

    def error_of(layer: nn.Module, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return through(layer, x, weight - layer.weight)

    changes = [
        Change({name: partial(error_of, model.get_submodule(name), weight)})
        for name, of_layer in zip(layers, weights, strict=True)
        for weight in of_layer
    ]
    size = images.height_width if isinstance(images, Split) else tuple(images.shape[-2:])
    batches = image_batches(images, AT_ONCE, model)
    return estimate_divergences(model, trace(model, size), batches, changes, progress).reshape(len(layers), -1)


def integer_bytes(model: nn.Module, layers: Iterable[str], bits: Iterable[int]) -> np.ndarray:
    """Bytes, array L×B, of the weights of each layer at each number of bits; scales and biases come on top."""
    sizes = {name: layer.weight.numel() for name, layer in weight_layers(model)}
    return np.array([[math.ceil(sizes[name] * number / 8) for number in bits] for name in layers])


def choose_bits(sensitivity: BitSensitivity, budget_bytes: int) -> dict[str, int]:
    """The bits of each layer whose losses have the least sum, among all choices that fit into the budget.

    Exact, by dynamic programming over bytes (the multiple-choice knapsack problem): layer by layer, the least loss
    within every smaller budget. Where losses are equal, fewer bits are chosen.

    Args:
        sensitivity: from ``bit_sensitivity``.
        budget_bytes: for the integers of all layers together. Scales and biases, which need the same at any number of
            bits, are not counted; entropy coding may need less.

    Returns:
        Layer name → bits, for ``quantize_integer(model, bits=…)``.

    Raises:
        ValueError: the budget is below the smallest possible, which is named, or the losses are not finite.
        TypeError: ``budget_bytes`` is no number.

    Example:
        >>> scan = BitSensitivity(("a", "b"), (2, 4), np.array([[0.5, 0.1], [0.2, 0.1]]), np.array([[2, 4], [2, 4]]))
        >>> choose_bits(scan, budget_bytes=6)
        {'a': 4, 'b': 2}
    """
    loss, size = np.asarray(sensitivity.loss, float), np.asarray(sensitivity.bytes)
    shape = (len(sensitivity.layers), len(sensitivity.bits))
    if loss.shape != shape or size.shape != shape or 0 in shape or not np.isfinite(loss).all():
        raise ValueError(f"sensitivity: expected finite losses and bytes of {shape[0]} layers × {shape[1]} bits")
    if isinstance(budget_bytes, bool) or not isinstance(budget_bytes, Real):
        raise TypeError(f"budget_bytes={budget_bytes!r}: expected a number of bytes")
    smallest, largest = int(size.min(1).sum()), int(size.max(1).sum())
    if not budget_bytes >= smallest:  # true for NaN, too
        raise ValueError(
            f"budget_bytes={budget_bytes!r}: the fewest bits need {smallest:,} bytes, expected at least that"
        )
    unit = int(np.gcd.reduce(size, None))
    size, capacity = size // unit, int(min(budget_bytes, largest)) // unit
    least = np.zeros(capacity + 1)  # of the layers so far, within each budget
    choices = np.zeros((shape[0], capacity + 1), np.uint8)
    for row in range(shape[0]):
        total = np.full(capacity + 1, np.inf)
        for column in np.argsort(size[row], kind="stable"):
            taken = int(size[row, column])
            if taken > capacity:
                continue
            tried = least[: capacity + 1 - taken] + loss[row, column]
            better = tried < total[taken:]
            total[taken:][better] = tried[better]
            choices[row, taken:][better] = column
        least = total
    chosen = {}
    for row in reversed(range(shape[0])):
        column = choices[row, capacity]
        chosen[sensitivity.layers[row]] = sensitivity.bits[column]
        capacity -= int(size[row, column])
    return {name: chosen[name] for name in sensitivity.layers}
