"""Make the network itself simpler: a cheaper activation function, fewer blocks.

Both change what is computed, so both cost accuracy until the network is trained again (``fit``, ``distill``). Used in
lesson 09, for the profile says that they pay. Leaves out: widths (``channels``), and other kinds of layers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from ultralytics.nn.modules import Conv
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.arguments import check_choice
from yolo_slim_lessons.graph import Graph, trace
from yolo_slim_lessons.models import as_classifier, copy_model
from yolo_slim_lessons.pruning.channels.surgery import select_channels

ACTIVATIONS = {"silu": nn.SiLU, "relu": nn.ReLU, "hardswish": nn.Hardswish}


def replace_activations(model: ClassificationModel, activation: str = "relu") -> ClassificationModel:
    """A copy with another function behind its convolutions; where there is none, none is added.

    SiLU, x · sigmoid(x), needs an exponential for every number. ReLU is a comparison, which a runtime does within the
    convolution before it, and with integers it is no work at all: it is the end of the grid.

    Args:
        model: a float classifier; it is left alone.
        activation: ``"relu"``, ``"silu"`` or ``"hardswish"`` (Howard et al., 2019).

    Raises:
        TypeError: ``model`` is no classifier.
        ValueError: another name, or activations that are quantized already.

    Example:
        >>> import yolo_slim_lessons as slim
        >>> slim.replace_activations(slim.load_model("nano")).model[0].act
        ReLU()
    """
    model = as_classifier(model)
    check_choice("activation", activation, sorted(ACTIVATIONS))
    model = copy_model(model)
    for name, block in model.named_modules():
        if isinstance(block, Conv) and not isinstance(block.act, nn.Identity):
            if type(block.act) not in ACTIVATIONS.values():
                raise ValueError(f"{name} has a {type(block.act).__name__} behind it: expected a float classifier")
            block.act = ACTIVATIONS[activation]()
    return model


def stacked_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Blocks that hold a list of smaller ones: each reads the one before, and what all of them make is concatenated."""
    return {
        name: block
        for name, block in model.named_modules()
        if isinstance(getattr(block, "m", None), nn.ModuleList) and hasattr(block, "c")
    }


@torch.no_grad()
def remove_bottlenecks(model: ClassificationModel, keep: Mapping[str, int]) -> ClassificationModel:
    """A copy whose stacked blocks have fewer bottlenecks: the first ones stay, the last ones go.

    In YOLOv8, YOLO11 and YOLO26 each bottleneck of a block reads the one before, and the block's last convolution reads
    what all of them make. The inputs that the removed ones fed are cut out of it.

    Args:
        model: a float classifier, pruned or not; it is left alone.
        keep: name of a block, such as ``"model.4"``, → how many bottlenecks it keeps, 0 or more.

    Raises:
        TypeError: ``model`` is no classifier, or has a part that is not understood.
        ValueError: a name that is no such block, more bottlenecks than it has, or a quantized model.

    Example:
        >>> import yolo_slim_lessons as slim
        >>> shallow = slim.remove_bottlenecks(slim.load_model("nano"), {"model.2": 0, "model.4": 1})
        >>> [len(shallow.model[number].m) for number in (2, 4, 6, 8)]
        [0, 1, 2, 1]
    """
    model = as_classifier(model)
    model = copy_model(model)
    blocks = stacked_blocks(model)
    for name, count in keep.items():
        if name not in blocks:
            raise ValueError(f"keep names {name!r}, which has no bottlenecks: expected some of {sorted(blocks)}")
        most = len(blocks[name].m)
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= most:
            raise ValueError(f"keep[{name!r}]={count!r}: expected 0 to {most}, as many as there are")
    if any(hasattr(layer, "weight_grid") for layer in model.modules()):
        raise ValueError("model is quantized: remove bottlenecks from the float model, and quantize the result")
    graph = trace(model) if keep else None
    for name, count in keep.items():
        _shorten(model, graph, name, count)
    return model


def _shorten(model: nn.Module, graph: Graph, name: str, count: int) -> None:
    """Keep the first ``count`` bottlenecks of the block called ``name``, in place."""
    block = model.get_submodule(name)
    removed = len(block.m) - count
    position, joined = next((p, n) for p, n in enumerate(graph.nodes) if n.kind == "concat" and n.place == name)
    widths = [graph.nodes[part].shape[0] for part in joined.inputs]
    reader = graph.nodes[graph.readers()[position][0]].name
    made = torch.ones(model.get_submodule(reader).weight.shape[0], dtype=torch.bool)
    read = torch.arange(sum(widths)) < sum(widths[: len(widths) - removed])
    select_channels(model, graph, reader, made, read)
    block.m = block.m[:count]
