"""Sensitivity of layers: the accuracy of a model as a function of which layer is changed, and how much.

Used in lesson 03 for weights and in lesson 04 for channels. Leaves out: interactions. Losses of several layers together
are not the sum of what is measured here.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from torch import nn
from tqdm.auto import tqdm

from yolo_slim_lessons.data import Split
from yolo_slim_lessons.measurement import evaluate
from yolo_slim_lessons.models import as_network


@dataclass(frozen=True)
class Sensitivity:
    """Accuracy after changing one layer at a time.

    Attributes:
        layers: names, L of them.
        rates: what was tried on each, R of them.
        top1: share of right answers, 0…1, array L×R.
        baseline: top-1 of the unchanged model on the same images.
        images: how many there were.
    """

    layers: tuple[str, ...]
    rates: tuple[float, ...]
    top1: np.ndarray
    baseline: float
    images: int


def sensitivity(
    model: nn.Module,
    split: Split,
    change: Callable[[nn.Module, dict[str, float]], nn.Module],
    layers: Iterable[str],
    rates: Iterable[float],
    progress: bool = True,
) -> Sensitivity:
    """Change one layer at a time, by each rate, and count the right answers each time (Li et al., 2017).

    All models answer the same images, so their differences are more certain than each accuracy alone.

    Args:
        model: what to start from; it is left alone.
        split: the images; take few, for L×R models look at all of them.
        change: called as ``change(model, {layer: rate})``, returns a new model: ``prune_weights``, for one.
        layers: what to change, in the names that ``change`` understands.
        rates: what to try on each layer.
        progress: show a progress bar.

    Raises:
        ValueError: no layer or no rate, or whatever ``change`` objects to.

    Example:
        >>> import yolo_slim_lessons as slim
        >>> few, layers = data.val.take(64), ["model.0.conv"]
        >>> scan = sensitivity(model, few, slim.prune_weights, layers, [0.5, 0.9], progress=False)
        >>> scan.top1.shape
        (1, 2)
    """
    model = as_network(model)
    layers, rates = tuple(layers), tuple(rates)
    if not layers or not rates:
        raise ValueError(f"layers={layers!r}, rates={rates!r}: expected at least one of each")
    changes = [{layer: rate} for layer, rate in itertools.product(layers, rates)]
    bar = tqdm(changes, "sensitivity", disable=not progress, leave=False)
    top1 = [evaluate(change(model, settings), split, progress=False).top1 for settings in bar]
    baseline = evaluate(model, split, progress=False).top1
    return Sensitivity(layers, rates, np.reshape(top1, (len(layers), len(rates))), baseline, len(split))
