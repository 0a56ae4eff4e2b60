"""Zero single weights: by magnitude or at random, per layer or over the whole model, free or in an N:M pattern.

The network keeps its shape and computes as much as before; ``sparse_sizes`` says what the zeros save on disk. Used in
lesson 03. Leaves out: removing whole channels (``pruning.channels``), criteria that look at data or at curvature, and
kernels that skip zeros.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from yolo_slim_lessons.arguments import check_layer_names, check_positive_integer, check_rate, value_of_each_layer
from yolo_slim_lessons.data import ImageData
from yolo_slim_lessons.models import as_classifier, as_network, copy_model, weight_layers
from yolo_slim_lessons.training import fit

PRUNE_TYPES = ("magnitude", "random")
SCOPES = ("layer", "global")


@torch.no_grad()
def prune_weights(
    model: nn.Module,
    prune_rate: float | Mapping[str, float],
    prune_type: str = "magnitude",
    scope: str = "layer",
    *,
    pattern: str | None = None,
    layers: Iterable[str] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Set the least important weights of convolutions and linear layers to zero, in a copy.

    Exactly ``round(prune_rate * weights)`` of them are zero afterwards, ties included. Weights that are zero already
    count first, so a second, higher rate keeps the zeros of the first one; a lower rate changes nothing.

    Args:
        model: any network with ``Conv2d`` or ``Linear`` layers; it is left alone. Biases and BatchNorm are not pruned.
        prune_rate: share of weights that are zero afterwards, 0 ≤ rate < 1; or a mapping from layer names to rates,
            which leaves other layers as they are.
        prune_type: ``"magnitude"`` zeros the weights closest to zero (Han et al., 2015); ``"random"`` any.
        scope: ``"layer"`` takes the same share from each layer; ``"global"`` takes the lowest of all layers together.
        pattern: ``"2:4"`` keeps 2 of every 4 neighbours along the input dimension (Mishra et al., 2021), ``"N:M"``
            keeps N of M. ``prune_rate`` must then be 1 - N/M. Layers whose inputs do not divide by M stay dense.
        layers: names of the layers to prune, as in ``weight_layers``; ``None`` prunes all.
        seed: of ``"random"``.

    Returns:
        A new model of the same class, with the same shapes and number of parameters. Its attribute ``pruned_layers``
        lists the names of all layers that were pruned, whose zeros ``fit``, ``distill`` and ``SlimTrainer`` keep.

    Raises:
        ValueError: a rate outside 0…1, a name that is no layer, an unknown choice, or choices that exclude each other.
        TypeError: ``model`` is no ``nn.Module``, or a rate is no number.

    Example:
        >>> layer = nn.Sequential(nn.Linear(4, 1, bias=False))
        >>> layer[0].weight.data = torch.tensor([[0.3, -0.1, 0.2, -0.4]])
        >>> prune_weights(layer, prune_rate=0.5)[0].weight.tolist()
        [[0.30000001192092896, 0.0, 0.0, -0.4000000059604645]]
    """
    model = as_network(model)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r}: expected a network, such as slim.load_model('nano')")
    if prune_type not in PRUNE_TYPES:
        raise ValueError(f"prune_type={prune_type!r}: expected one of {PRUNE_TYPES}")
    if scope not in SCOPES:
        raise ValueError(f"scope={scope!r}: expected one of {SCOPES}")
    if scope == "global" and (pattern is not None or isinstance(prune_rate, Mapping)):
        raise ValueError(
            "scope='global' shares one rate among all layers: leave pattern and a mapping to scope='layer'"
        )
    pruned = copy_model(model)
    rates = _rate_of_each_layer(pruned, prune_rate, layers)
    generator = torch.Generator().manual_seed(seed)
    weights = {name: layer.weight for name, layer in weight_layers(pruned) if name in rates}
    scores = {name: _importance(weight, prune_type, generator) for name, weight in weights.items()}
    if pattern is not None:
        chosen_by_name = layers is not None or isinstance(prune_rate, Mapping)
        for name, weight in weights.items():
            _zero_pattern(name, weight, scores[name], rates[name], pattern, chosen_by_name)
    elif scope == "global":
        _zero_lowest(list(weights.values()), list(scores.values()), next(iter(rates.values())))
    else:
        for name, weight in weights.items():
            _zero_lowest([weight], [scores[name]], rates[name])
    for name, layer in weight_layers(pruned):
        if name in rates and hasattr(layer, "weight_grid"):  # quantized: its weight was computed from its integers
            layer.zero_weights(weights[name] == 0)
    zeroed = {name for name, weight in weights.items() if rates[name] > 0 and (weight == 0).any()}
    pruned.pruned_layers = sorted(zeroed.union(getattr(model, "pruned_layers", ())))
    return pruned


def gradual_rates(prune_rate: float, steps: int, initial_rate: float = 0.0) -> list[float]:
    """Rates that rise to ``prune_rate``, fast at first and slowly at the end (Zhu & Gupta, 2017).

    After step t of T the rate is s_T + (s_0 - s_T) (1 - t/T)³: at first there is much to spare, later every weight
    hurts.

    Args:
        prune_rate: the rate of the last step, 0 ≤ rate < 1.
        steps: how many rates to return, T.
        initial_rate: the rate before the first step, s_0.

    Raises:
        ValueError: ``steps`` is no positive integer, or a rate is outside 0…1.

    Example:
        >>> [round(rate, 3) for rate in gradual_rates(0.8, steps=4)]
        [0.463, 0.7, 0.788, 0.8]
    """
    check_rate("prune_rate", prune_rate)
    check_rate("initial_rate", initial_rate)
    check_positive_integer("steps", steps)
    return [prune_rate + (initial_rate - prune_rate) * (1 - step / steps) ** 3 for step in range(1, steps + 1)]


def prune_gradually(
    model: nn.Module,
    data: ImageData,
    prune_rate: float,
    steps: int,
    *,
    epochs: int = 1,
    prune_type: str = "magnitude",
    scope: str = "layer",
    layers: Iterable[str] | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    on_step: Callable[[float, nn.Module, nn.Module], None] | None = None,
    **fit_options,
) -> nn.Module:
    """Prune a little, fine-tune, prune a little more, until ``prune_rate`` is reached.

    ``fit`` keeps zeros at zero, so each step only adds to them. The steps follow ``gradual_rates``.

    Args:
        model: what to start from; it is left alone.
        data: what ``fit`` learns from.
        prune_rate: share of weights that are zero in the end, a number 0 ≤ rate < 1.
        steps: how often to prune.
        epochs: of fine-tuning after each step.
        prune_type: as for ``prune_weights``.
        scope: likewise.
        layers: likewise.
        seed: of random pruning and of the fine-tuning.
        checkpoint: as for ``fit``, with a file of its own for each step: ``"c.pt"`` becomes ``c-1.pt``, ``c-2.pt``, …
            The same call goes on in the step where it was stopped.
        on_step: called after each step with its rate, the model just pruned, and the same fine-tuned.
        fit_options: passed on to ``fit``, such as ``learning_rate``.

    Returns:
        A new model in eval mode.

    Example:
        >>> pruned = prune_gradually(model, data, 0.8, steps=2, batch_size=32, progress=False)
        >>> bool((pruned.model[7].conv.weight == 0).float().mean() > 0.79)
        True
    """
    model = as_classifier(model)
    layers = None if layers is None else list(layers)
    for step, rate in enumerate(gradual_rates(prune_rate, steps)):
        pruned = prune_weights(model, rate, prune_type, scope, layers=layers, seed=seed)
        file = checkpoint and Path(checkpoint).with_stem(f"{Path(checkpoint).stem}-{step + 1}")
        model = fit(pruned, data, epochs, seed=seed + step, checkpoint=file, **fit_options)
        if on_step:
            on_step(rate, pruned, model)
    return model


def _rate_of_each_layer(model, prune_rate, layers) -> dict[str, float]:
    names = [name for name, _ in weight_layers(model)]
    if isinstance(prune_rate, Mapping) and layers is not None:
        raise ValueError("layers: the mapping prune_rate names the layers already, expected layers=None")
    if not isinstance(prune_rate, Mapping):
        chosen = names if layers is None else [layers] if isinstance(layers, str) else list(layers)
        check_layer_names("layers", chosen, names)
        names = chosen
    return value_of_each_layer("prune_rate", prune_rate, names, check_rate)


def _importance(weight: torch.Tensor, prune_type: str, generator: torch.Generator) -> torch.Tensor:
    if prune_type == "magnitude":
        return weight.abs()
    scores = torch.rand(weight.shape, generator=generator).to(weight.device)
    return scores.masked_fill_(weight == 0, -1)  # zeros first


def _zero_lowest(weights: list[torch.Tensor], scores: list[torch.Tensor], rate: float) -> None:
    """Zero the share ``rate`` with the lowest scores; the tensors count as one."""
    flat = torch.cat([score.flatten() for score in scores])
    # topk returns exactly as many as asked for; a threshold would take too many or too few where scores tie.
    lowest = flat.topk(round(rate * flat.numel()), largest=False, sorted=False).indices
    drop = torch.zeros_like(flat, dtype=torch.bool).index_fill_(0, lowest, True)
    for weight, mask in zip(weights, drop.split([weight.numel() for weight in weights]), strict=True):
        weight.masked_fill_(mask.view(weight.shape), 0)


def _zero_pattern(name, weight, scores, rate, pattern, chosen_by_name) -> None:
    match = re.fullmatch(r"(\d+):(\d+)", pattern) if isinstance(pattern, str) else None
    kept, group = map(int, match.groups()) if match else (0, 0)
    if not 0 < kept < group:
        raise ValueError(f"pattern={pattern!r}: expected 'N:M' with 0 < N < M, such as '2:4'")
    if not math.isclose(rate, 1 - kept / group, abs_tol=1e-3):
        raise ValueError(f"prune_rate={rate!r}: pattern={pattern!r} zeros {1 - kept / group:.4g} of the weights")
    if weight.shape[1] % group:
        if chosen_by_name:
            raise ValueError(f"pattern={pattern!r}: {name} has {weight.shape[1]} inputs, no multiple of {group}")
        return
    inputs_last = scores.movedim(1, -1)
    groups = inputs_last.reshape(-1, group)
    lowest = groups.topk(group - kept, largest=False, sorted=False).indices
    drop = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, lowest, True)
    weight.movedim(1, -1).masked_fill_(drop.view(inputs_last.shape), 0)
