"""Cut channels out of the layers: the one place where weights change. Used in lesson 04.

Leaves out: which channels go (``budget.py``), and what is lost with them (``reestimate_batchnorm`` and ``fit``).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from ultralytics.nn.modules import C2f
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.models import copy_model, weight_layers
from yolo_slim_lessons.pruning.channels.groups import ChannelGroup


def remove_channels(
    model: ClassificationModel, groups: list[ChannelGroup], keep: Mapping[str, torch.Tensor]
) -> ClassificationModel:
    """A copy of ``model`` without the channels that ``keep`` leaves out.

    Args:
        model: unfused.
        groups: ``channel_groups(model)``.
        keep: name of a group → bool tensor with a number for each of its channels; other groups keep all.
    """
    model = copy_model(model)
    made = {name: torch.ones(layer.weight.shape[0], dtype=torch.bool) for name, layer in weight_layers(model)}
    read = {name: torch.ones(layer.weight.shape[1], dtype=torch.bool) for name, layer in weight_layers(model)}
    for group in groups:
        if group.name in keep:
            for part in group.producers:
                made[part.layer][part.start : part.stop] = keep[group.name]
            for part in group.consumers:
                read[part.layer][part.start : part.stop] = keep[group.name]
    for name, layer in weight_layers(model):
        _select(layer, "weight", (made[name], read[name]))
        if isinstance(layer, nn.Linear):
            layer.in_features = layer.weight.shape[1]
        elif not (made[name].all() and read[name].all()):
            layer.out_channels, layer.in_channels = layer.weight.shape[:2]
            norm = model.get_submodule(name.removesuffix("conv") + "bn")
            for tensor in ("weight", "bias", "running_mean", "running_var"):
                _select(norm, tensor, (made[name],))
            norm.num_features = layer.out_channels
    for block in model.modules():
        if isinstance(block, C2f):
            block.c = block.cv1.conv.out_channels // 2  # forward_split, used in some exports, cuts at this width
    return model


def _select(layer: nn.Module, name: str, keep: tuple[torch.Tensor, ...]) -> None:
    tensor = getattr(layer, name)
    for dimension, kept in enumerate(keep):
        tensor = tensor.index_select(dimension, kept.nonzero().squeeze(1))
    if isinstance(getattr(layer, name), nn.Parameter):
        tensor = nn.Parameter(tensor.detach(), requires_grad=getattr(layer, name).requires_grad)
    setattr(layer, name, tensor)
