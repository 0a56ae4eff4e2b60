"""What each layer's channels are worth, and with that a sequence of models from whole to narrowest.

Used in lesson 08, by ``plan_recipe``. Leaves out: that losses of several layers are more than their sum, and what
training wins back.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.data import Split
from yolo_slim_lessons.graph import Graph, trace
from yolo_slim_lessons.measurement.one_pass import AT_ONCE, Change, estimate_divergences, through
from yolo_slim_lessons.models import as_classifier, copy_model, input_format, logits, weight_layers
from yolo_slim_lessons.pruning.channels import highest
from yolo_slim_lessons.pruning.channels.budget import full_counts, layer_prices, rated_counts, smallest_counts
from yolo_slim_lessons.pruning.channels.criteria import importance
from yolo_slim_lessons.pruning.channels.groups import ChannelGroup, channel_groups, check_prunable
from yolo_slim_lessons.pruning.channels.surgery import remove_channels

ROUND_TO = 8  # channels at a time, as prune_channels does
BATCH = 256  # images at a time, at most
TRIED_RATES = (0.25, 0.5, 0.75, 0.875)
ALL = 1 - 1e-9  # the rate that leaves the fewest channels there can be


@dataclass(frozen=True)
class ChannelScan:
    """What it costs to narrow one family alone: a layer, or several that are tied."""

    groups: list[ChannelGroup]  # ``channel_groups`` of the model
    families: list[np.ndarray]  # positions of groups that keep equally many channels
    counts: list[np.ndarray]  # of each family: how many channels were kept, from all to few
    losses: list[np.ndarray]  # and the divergence of the answers, nats, for each of these; never falling

    def loss(self, counts: np.ndarray) -> float:
        """The sum of what all families lose with ``counts``, one for each group."""
        return sum(self.family_loss(row, counts[members[0]]) for row, members in enumerate(self.families))

    def family_loss(self, row: int, count: float) -> float:
        """Of family ``row`` with ``count`` channels, interpolated between those that were measured."""
        return float(np.interp(-count, -self.counts[row], self.losses[row]))

    def rates(self, counts: np.ndarray) -> dict[str, float]:
        """``counts``, one for each group, as ``prune_channels`` takes them: name of a layer → rate."""
        rates = {}
        for first, *_ in self.families:
            group = self.groups[first]
            if counts[first] < group.size:
                rates[group.producers[0].layer] = round(float(1 - counts[first] / group.size), 6)
        return rates


@torch.no_grad()
def scan_channels(
    model: ClassificationModel, split: Split, *, exact: bool = False, progress: bool = True
) -> ChannelScan:
    """Narrow one family of layers at a time and see how far the answers on ``split`` move.

    BatchNorm normalizes by the images at hand: what outdated statistics would cost, ``reestimate_batchnorm`` mends.

    Args:
        model: a float classifier, unfused; it is left alone.
        split: some hundred images; labels are not looked at.
        exact: build and run each narrower network, in place of estimating all in one pass (``one_pass``).
        progress: show a progress bar.
    """
    model = as_classifier(model)
    check_prunable(model)
    graph = trace(model, split.height_width)
    groups = channel_groups(model, graph)
    scores, full = importance(model, groups, graph=graph), full_counts(groups)
    families: dict[tuple[int, ...], list[np.ndarray]] = {}  # members → what is tried
    for group in groups:
        if group.prunable:
            layer = group.producers[0].layer
            tried = [rated_counts(groups, {layer: rate}, ROUND_TO) for rate in (*TRIED_RATES, ALL)]
            if members := tuple(np.flatnonzero(tried[-1] < full).tolist()):
                narrower = {counts[members[0]]: counts for counts in tried if counts[members[0]] < full[members[0]]}
                families.setdefault(members, list(narrower.values()))
    tried = [highest(groups, scores, counts) for family in families.values() for counts in family]
    moved = iter((_exact_losses if exact else _estimated_losses)(model, split, graph, groups, tried, progress))
    kept, lost = [], []
    for members, family in families.items():
        kept.append(np.array([full[members[0]], *(counts[members[0]] for counts in family)]))
        lost.append(np.maximum.accumulate([0.0, *itertools.islice(moved, len(family))]))
    return ChannelScan(groups, [np.array(members) for members in families], kept, lost)


def _exact_losses(model, split: Split, graph: Graph, groups: list[ChannelGroup], tried, progress: bool) -> list[float]:
    """The divergence of answers, nats, of each network that keeps the channels of ``tried``."""
    expected = _log_answers(model, split)
    losses = []
    for keep in tqdm(tried, "scan channels", disable=not progress, leave=False):
        found = _log_answers(remove_channels(model, groups, keep, graph), split)
        losses.append(F.kl_div(found, expected, reduction="batchmean", log_target=True).item())
    return losses


def _estimated_losses(model, split: Split, graph: Graph, groups: list[ChannelGroup], tried, progress: bool):
    """The same without building the networks."""
    model = copy_model(model).eval().to(memory_format=torch.channels_last)
    layers = dict(weight_layers(model))
    changes = [_removal(layers, groups, keep) for keep in tried]
    return estimate_divergences(model, graph, _batches(model, split, AT_ONCE), changes, progress)


def _removal(layers: Mapping[str, nn.Module], groups: list[ChannelGroup], keep: Mapping[str, torch.Tensor]) -> Change:
    """What the readers of channels lose when these are removed."""
    made, read = defaultdict(list), defaultdict(list)
    for group in groups:
        if group.name in keep:
            gone = torch.nonzero(~keep[group.name])[:, 0].tolist()
            for parts, places in ((group.producers, made), (group.consumers, read)):
                for part in parts:
                    places[part.layer] += [part.start + place for place in gone]

    def error_of(layer: nn.Module, gone: list[int], x: torch.Tensor) -> torch.Tensor:
        return -through(layer, x[:, gone], layer.weight[:, gone])

    # A depthwise convolution's outputs go with its inputs: their readers tell what is lost.
    readers = {name: layers[name] for name, gone in read.items() if gone and getattr(layers[name], "groups", 1) == 1}
    return Change({name: partial(error_of, layer, read[name]) for name, layer in readers.items()}, made)


def narrower_models(
    model: ClassificationModel, scan: ChannelScan, unit: str, start: np.ndarray | None = None
) -> list[np.ndarray]:
    """Models from ``start`` to the narrowest: each step takes the block of channels that costs least for its savings.

    Args:
        model: what was scanned.
        scan: ``scan_channels(model, …)``.
        unit: what is saved, ``"MACs"`` or ``"parameters"``.
        start: channels that each group keeps in the first model; ``None`` for all.

    Returns:
        For each model the channels that each group keeps.
    """
    price = layer_prices(model, scan.groups, unit)
    smallest = smallest_counts(scan.groups, ROUND_TO)
    counts = full_counts(scan.groups) if start is None else start
    models = [counts]
    while True:
        candidates, losses = [], []
        for row, members in enumerate(scan.families):
            before = counts[members[0]]
            after = (np.ceil(before / ROUND_TO) - 1) * ROUND_TO
            if after >= smallest[members[0]]:
                narrower = counts.copy()
                narrower[members] = after
                candidates.append(narrower)
                losses.append(scan.family_loss(row, after) - scan.family_loss(row, before))
        if not candidates:
            return models
        savings = price(counts) - price(np.array(candidates))
        counts = candidates[int(np.argmin(np.array(losses) / savings))]
        models.append(counts)


def _log_answers(model: ClassificationModel, split: Split) -> torch.Tensor:
    """Logarithms of the probabilities, N×classes, with BatchNorm by the statistics of each batch."""
    model = copy_model(model).eval().to(memory_format=torch.channels_last)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train()
    return torch.cat([logits(model, images).log_softmax(1) for images in _batches(model, split, BATCH)])


def _batches(model: ClassificationModel, split: Split, most: int) -> Iterator[torch.Tensor]:
    """Batches of much the same size: one image alone has no statistics."""
    size = math.ceil(len(split) / math.ceil(len(split) / most))
    return (images for images, _ in split.batches(size, merge_single=True, **input_format(model)))
