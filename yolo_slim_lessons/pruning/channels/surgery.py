"""Cut channels out of the layers: the one place where weights change. Used in lesson 04.

Leaves out: which channels go (``budget.py``), and what is lost with them (``reestimate_batchnorm`` and ``fit``).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.graph import Graph, trace
from yolo_slim_lessons.models import copy_model, weight_layers
from yolo_slim_lessons.pruning.channels.groups import ChannelGroup


def remove_channels(
    model: ClassificationModel, groups: list[ChannelGroup], keep: Mapping[str, torch.Tensor], graph: Graph | None = None
) -> ClassificationModel:
    """A copy of ``model`` without the channels that ``keep`` leaves out.

    Args:
        model: unfused.
        groups: ``channel_groups(model)``.
        keep: name of a group → bool tensor with a number for each of its channels; other groups keep all.
        graph: ``trace(model)``, if it is at hand.
    """
    model, graph = copy_model(model), graph or trace(model)
    made = {name: torch.ones(layer.weight.shape[0], dtype=torch.bool) for name, layer in weight_layers(model)}
    read = {name: torch.ones(layer.weight.shape[1], dtype=torch.bool) for name, layer in weight_layers(model)}
    for group in groups:
        if group.name in keep:
            for part in group.producers:
                made[part.layer][part.start : part.stop] = keep[group.name]
            for part in group.consumers:
                read[part.layer][part.start : part.stop] = keep[group.name]
    for name in made:
        select_channels(model, graph, name, made[name], read[name])
    note_widths(model, graph)
    return model


def note_widths(model: nn.Module, graph: Graph) -> None:
    """Tell blocks that note the width at which they cut how wide they are now, in place; others cut in the middle."""
    for position, node in enumerate(graph.nodes):
        if node.kind == "split" and isinstance(getattr(model.get_submodule(node.place), "c", None), int):
            source = model.get_submodule(graph.maker(position).name)
            model.get_submodule(node.place).c = source.out_channels // len(node.settings["sizes"])


def select_channels(model: nn.Module, graph: Graph, name: str, made: torch.Tensor, read: torch.Tensor) -> None:
    """Keep, in place, some outputs and inputs of a convolution or linear layer, and the same outputs of its BatchNorm.

    ``made`` and ``read`` are bool, one for each output and one for each input.
    """
    layer = model.get_submodule(name)
    if made.all() and read.all():
        return
    _select(layer, "weight", (made, read))
    if layer.bias is not None:
        _select(layer, "bias", (made,))
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
        return
    layer.out_channels, layer.in_channels = layer.weight.shape[:2]
    norm_name, _ = graph.behind(name)
    if norm_name is not None:
        norm = model.get_submodule(norm_name)
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            _select(norm, tensor, (made,))
        norm.num_features = layer.out_channels


def _select(layer: nn.Module, name: str, keep: tuple[torch.Tensor, ...]) -> None:
    tensor = getattr(layer, name)
    for dimension, kept in enumerate(keep):
        tensor = tensor.index_select(dimension, kept.nonzero().squeeze(1).to(tensor.device))
    if isinstance(getattr(layer, name), nn.Parameter):
        tensor = nn.Parameter(tensor.detach(), requires_grad=getattr(layer, name).requires_grad)
    setattr(layer, name, tensor)
