"""How much a channel matters: four criteria, each a number for every channel of every group.

``importance`` looks the criterion up by its name in ``CRITERIA``. Within a group a higher number means that the
channel is kept longer; ``budget.py`` compares groups. Used in lesson 04. Leaves out: criteria that need training of
their own, such as the L1 penalty on the BatchNorm factors with which Liu et al. (2017) prepare a network.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.agreement import check_image_size, join_split
from yolo_slim_lessons.arguments import check_choice
from yolo_slim_lessons.data import Split
from yolo_slim_lessons.graph import Graph, trace
from yolo_slim_lessons.models import copy_model, input_format, logits
from yolo_slim_lessons.pruning.channels.groups import ChannelGroup, Part

Importance = dict[str, torch.Tensor]  # name of the group → float tensor, one number a channel, none negative


def importance(
    model: ClassificationModel,
    groups: list[ChannelGroup],
    prune_type: str = "magnitude",
    calibration: Split | None = None,
    seed: int = 0,
    graph: Graph | None = None,
) -> Importance:
    """Score every channel of the groups that may be pruned; arguments and errors as of ``prune_channels``.

    ``graph`` is ``trace(model)``, if it is at hand.
    """
    check_choice("prune_type", prune_type, sorted(CRITERIA))
    score = CRITERIA[prune_type](_Layers(model, graph or trace(model)), calibration, seed)
    return {group.name: score(group) for group in groups if group.prunable}


class _Layers:
    """The layers of a model by their names, and what stands behind each."""

    def __init__(self, model: ClassificationModel, graph: Graph):
        self.model = model
        self.behind = {node.name: graph.behind(node.name) for node in graph.nodes if node.kind in ("conv", "linear")}

    def norm(self, layer: str) -> nn.BatchNorm2d:
        """The BatchNorm behind ``layer``; one that changes nothing where there is none."""
        name, _ = self.behind[layer]
        if name is None:
            return nn.BatchNorm2d(self.model.get_submodule(layer).weight.shape[0]).eval()
        return self.model.get_submodule(name)

    def activation(self, layer: str) -> nn.Module:
        _, name = self.behind[layer]
        return nn.Identity() if name is None else self.model.get_submodule(name)


def _magnitude(layers: _Layers, calibration: Split | None, seed: int) -> Callable:
    """How much the channel moves the layers that read it, told by the weights alone.

    BatchNorm lets a channel out with mean β and spread |γ|, whatever the weights that make it: those cancel. What
    counts is the spread behind the activation, times the norm of the weights that read the channel, with the
    readers' own BatchNorm folded in.
    """
    nodes, shares = np.polynomial.hermite_e.hermegauss(32)  # integrates over a normal distribution
    nodes, shares = torch.tensor(nodes, dtype=torch.float32), torch.tensor(shares / shares.sum(), dtype=torch.float32)

    def spread(part: Part) -> torch.Tensor:
        norm = layers.norm(part.layer)
        at, share = nodes.to(norm.weight), shares.to(norm.weight)
        channel = layers.activation(part.layer)(norm.weight[:, None] * at + norm.bias[:, None])
        mean = channel @ share
        return ((channel - mean[:, None]).square() @ share).sqrt()[part.start : part.stop]

    def reading(part: Part) -> torch.Tensor:
        weight = layers.model.get_submodule(part.layer).weight
        if weight.dim() == 4:
            norm = layers.norm(part.layer)
            weight = weight * (norm.weight / (norm.running_var + norm.eps).sqrt()).to(weight)[:, None, None, None]
        return weight.transpose(0, 1).flatten(1).norm(dim=1)[part.start : part.stop]

    def score(group: ChannelGroup) -> torch.Tensor:
        made = torch.stack([spread(part) for part in group.producers]).norm(dim=0)
        return made * torch.stack([reading(part) for part in group.consumers]).norm(dim=0)

    return score


def _random(layers: _Layers, calibration: Split | None, seed: int) -> Callable:
    """Chance; what every other criterion has to beat."""
    generator = torch.Generator().manual_seed(seed)
    return lambda group: torch.rand(group.size, generator=generator)


def _bn_scale(layers: _Layers, calibration: Split | None, seed: int) -> Callable:
    """The factor γ by which BatchNorm multiplies the channel (Liu et al., 2017)."""

    def factors(part: Part) -> torch.Tensor:
        return layers.norm(part.layer).weight.abs()[part.start : part.stop]

    return lambda group: torch.stack([factors(part) for part in group.producers]).mean(0)


def _taylor(layers: _Layers, calibration: Split | None, seed: int) -> Callable:
    """The change of the loss if the channel went, to first order (Molchanov et al., 2019); root of its mean square.

    A gate behind BatchNorm that multiplies channel y = γ x̂ + β has the derivative γ ∂L/∂γ + β ∂L/∂β, which is also
    what closing it changes. Tied channels share one gate, so their derivatives add up.
    """
    if calibration is None:
        raise ValueError("calibration=None: prune_type='taylor' needs labelled images, such as data.train.take(500)")
    calibration = join_split(layers.model, calibration, "calibration")
    check_image_size(layers.model, calibration.height_width, "calibration")
    model = copy_model(layers.model).eval().requires_grad_(False)
    norms = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    factors = [factor.requires_grad_() for norm in norms.values() for factor in (norm.weight, norm.bias)]
    batches = []  # one dict for each batch: name of the BatchNorm → derivative of each channel's gate
    for images, labels in calibration.batches(32, **input_format(model)):
        with torch.enable_grad():
            loss = F.cross_entropy(logits(model, images), labels)
            gradients = torch.autograd.grad(loss, factors)
        gates = {}
        for name, by_scale, by_shift in zip(norms, gradients[::2], gradients[1::2], strict=True):
            gates[name] = (norms[name].weight * by_scale + norms[name].bias * by_shift).detach()
        batches.append(gates)

    def score(group: ChannelGroup) -> torch.Tensor:
        summed = []
        for gates in batches:
            parts = [gates[layers.behind[part.layer][0]][part.start : part.stop] for part in group.producers]
            summed.append(sum(parts))
        return torch.stack(summed).square().mean(0).sqrt()

    return score


CRITERIA = {"magnitude": _magnitude, "random": _random, "bn_scale": _bn_scale, "taylor": _taylor}
