"""How many channels each group keeps: from a rate, a rate for each layer, or a target of MACs or parameters.

Channel counts are multiples of ``round_to`` (or all channels), because processors work on 8, 16 or 32 numbers at a
time. Used in lesson 04. Leaves out: rates found by measuring accuracy; that is ``search.sensitivity``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from torch import nn
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.arguments import check_layer_names
from yolo_slim_lessons.measurement import layer_costs
from yolo_slim_lessons.models import weight_layers
from yolo_slim_lessons.pruning.channels.criteria import Importance
from yolo_slim_lessons.pruning.channels.groups import ChannelGroup

# Channels kept, a float array in the order of the groups; or many such rows.
Counts = np.ndarray
Price = Callable[[Counts], np.ndarray]


def rated_counts(groups: list[ChannelGroup], prune_rate: float | Mapping[str, float], round_to: int) -> Counts:
    """Channels kept if each layer, or each that a mapping names, loses its rate; errors as of ``prune_channels``."""
    if isinstance(prune_rate, Mapping):
        return _rounded(groups, _rates_of_groups(groups, prune_rate), round_to)
    return _rounded(groups, np.array([prune_rate if group.prunable else 0.0 for group in groups]), round_to)


def searched_counts(
    model: ClassificationModel,
    groups: list[ChannelGroup],
    scores: Importance,
    target: str,
    value: float,
    scope: str,
    round_to: int,
    image_size: int | None,
) -> Counts:
    """Channels kept so that the model meets a target, an argument of ``prune_channels`` and its value."""
    if target == "prune_rate":
        share, price = 1 - value, _channel_price(groups)
    else:
        unit = "MACs" if target == "target_macs" else "parameters"
        share, price = value, layer_prices(model, groups, unit, image_size)
    whole, least = price(full_counts(groups)), price(smallest_counts(groups, round_to))
    if least > share * whole:
        raise ValueError(
            f"{target} asks for {share:.4g} of the model, but the smallest possible is {least / whole:.4f}, with "
            f"{round_to} channels in each layer: ask for more, or lower round_to={round_to}"
        )
    if scope == "layer":
        return _even_counts(groups, price, share * whole, round_to)
    return _ranked_counts(groups, price, share * whole, round_to, scores)


def layer_prices(
    model: ClassificationModel, groups: list[ChannelGroup], unit: str, image_size: int | None = None
) -> Price:
    """What a model costs as a function of the channels that its groups keep, without building it.

    A layer has as many weights, and MACs, as its inputs times its outputs; what BatchNorm and biases cost goes with
    the outputs alone. ``unit`` is ``"MACs"``, of images of ``image_size`` pixels a side, or ``"parameters"``.
    """
    layers = dict(weight_layers(model))
    rows = {name: row for row, name in enumerate(layers)}
    # How many times a layer reads, and makes, each channel of a group; and the channels that belong to no group.
    reads, makes = np.zeros((2, len(layers), len(groups)))
    for column, group in enumerate(groups):
        for part in group.consumers:
            reads[rows[part.layer], column] += 1
        for part in group.producers:
            makes[rows[part.layer], column] += 1
    full = full_counts(groups)
    outputs_of_none, inputs_of_none = (
        np.array([layer.weight.shape[side] for layer in layers.values()]) - counted @ full
        for side, counted in ((0, makes), (1, reads))
    )
    each_pair = np.array([layer.weight[0, 0].numel() for layer in layers.values()], dtype=float)
    each_output = np.array([2 if isinstance(layer, nn.Conv2d) else 1 for layer in layers.values()])
    if unit == "MACs":
        macs = np.array([cost.macs for cost in layer_costs(model, image_size)])
        each_pair *= macs / np.array([layer.weight.numel() for layer in layers.values()])
        each_output = 0

    def price(counts: Counts) -> np.ndarray:
        inputs, outputs = counts @ reads.T + inputs_of_none, counts @ makes.T + outputs_of_none
        return ((each_pair * inputs + each_output) * outputs).sum(-1)

    return price


def _channel_price(groups: list[ChannelGroup]) -> Price:
    """The number of channels in the groups that may be pruned."""
    prunable = np.array([group.prunable for group in groups], dtype=float)
    return lambda counts: counts @ prunable


def full_counts(groups: list[ChannelGroup]) -> Counts:
    return np.array([group.size for group in groups], dtype=float)


def smallest_counts(groups: list[ChannelGroup], round_to: int) -> Counts:
    """One multiple of ``round_to`` in each group that may be pruned."""
    return np.array([min(group.size, round_to) if group.prunable else group.size for group in groups], dtype=float)


def _even_counts(groups: list[ChannelGroup], price: Price, limit: float, round_to: int) -> Counts:
    """The largest model within ``limit`` in which every layer loses the same share, as far as rounding allows."""
    prunable = np.array([group.prunable for group in groups])
    lowest, highest = 0.0, 1.0
    for _ in range(30):
        rate = (lowest + highest) / 2
        counts = _rounded(groups, rate * prunable, round_to)
        lowest, highest = (lowest, rate) if price(counts) <= limit else (rate, highest)
    counts, full = _rounded(groups, highest * prunable, round_to), full_counts(groups)
    # Rounding moves many layers at once. What is left of the budget goes to the layers that rounding hurt most.
    for members in sorted(_same_size(groups), key=lambda members: (counts[members] / full[members]).min()):
        larger = counts.copy()
        larger[members] = np.minimum(counts[members] + round_to, full[members])
        counts = larger if price(larger) <= limit else counts
    return counts


def _ranked_counts(groups: list[ChannelGroup], price: Price, limit: float, round_to: int, scores: Importance) -> Counts:
    """The model within ``limit`` that gives up least importance for what it saves.

    Channels go in blocks of ``round_to``. Layers stand one behind the other, so what gets through is a product: of
    each group the share of its importance that is left. Each step removes the block with the smallest loss of that
    product's logarithm per unit of price, so a group that has lost half its importance values the rest twice as much.
    """
    highest_first = {name: np.sort(numbers.double().numpy())[::-1] for name, numbers in scores.items()}
    kept_importance = {name: np.concatenate([[0.0], np.cumsum(numbers)]) for name, numbers in highest_first.items()}
    families = _same_size(groups)
    counts = full_counts(groups)
    while price(counts) > limit:
        candidates = np.tile(counts, (len(families), 1))
        losses = np.full(len(families), np.inf)
        for row, members in enumerate(families):
            before = int(counts[members[0]])
            after = (-(-before // round_to) - 1) * round_to
            if after > 0:
                candidates[row, members] = after
                losses[row] = sum(_log_loss(kept_importance[groups[member].name], before, after) for member in members)
        savings = price(counts) - price(candidates)
        possible = np.isfinite(losses)
        best = np.flatnonzero(possible)[np.argmin(losses[possible] / savings[possible])]
        counts = candidates[best]
    return counts


def _log_loss(kept_importance: np.ndarray, before: int, after: int) -> float:
    if kept_importance[before] == 0:  # nothing left to lose
        return 0.0
    return float(np.log(kept_importance[before] / kept_importance[after]))


def _rounded(groups: list[ChannelGroup], rates: np.ndarray, round_to: int) -> Counts:
    full = full_counts(groups)
    nearest = np.floor(full * (1 - rates) / round_to + 0.5) * round_to
    counts = np.clip(nearest, smallest_counts(groups, round_to), full)
    return np.where(rates == 0, full, counts)  # a layer of 20 channels that loses nothing keeps 20, not 16


def _same_size(groups: list[ChannelGroup]) -> list[list[int]]:
    """Positions of the groups that may be pruned; those that must stay equally large share a list."""
    position = {group.name: number for number, group in enumerate(groups)}
    return [
        [number, position[group.same_size_as]] if group.same_size_as else [number]
        for number, group in enumerate(groups)
        if group.prunable and (group.same_size_as is None or number < position[group.same_size_as])
    ]


def _rates_of_groups(groups: list[ChannelGroup], prune_rate: Mapping[str, float]) -> np.ndarray:
    made_by = {part.layer: group for group in groups for part in group.producers}
    for layer in prune_rate:
        if layer in made_by and not made_by[layer].prunable:
            raise ValueError(f"prune_rate names {layer!r}, which keeps all its channels: {made_by[layer].why}")
    check_layer_names("prune_rate", prune_rate, [layer for layer, group in made_by.items() if group.prunable])
    rates = np.zeros(len(groups))
    for members in _same_size(groups):
        named = {
            part.layer: prune_rate[part.layer]
            for member in members
            for part in groups[member].producers
            if part.layer in prune_rate
        }
        if len(set(named.values())) > 1:
            reasons = "; ".join(groups[member].why for member in members)
            raise ValueError(
                f"prune_rate gives tied layers different rates, {named} ({reasons}): name one of them, or give all "
                "the same rate"
            )
        rates[members] = next(iter(named.values()), 0.0)
    return rates
