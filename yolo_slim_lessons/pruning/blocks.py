"""Make the network itself simpler: a cheaper activation function, fewer blocks.

Both change what is computed, so both cost accuracy until the network is trained again (``fit``, ``distill``). Used in
lesson 09, for the profile says that they pay. Leaves out: widths (``channel_pruning``), and other kinds of layers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from ultralytics.nn.modules import C2f, Conv
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.models import check_classifier, copy_model

ACTIVATIONS = {"silu": nn.SiLU, "relu": nn.ReLU, "hardswish": nn.Hardswish}


def replace_activations(model: ClassificationModel, activation: str = "relu") -> ClassificationModel:
    """A copy with another function behind its convolutions.

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
    check_classifier(model)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r}: expected one of {sorted(ACTIVATIONS)}")
    model = copy_model(model)
    for name, block in model.named_modules():
        if isinstance(block, Conv) and not isinstance(block.act, nn.Identity):
            if type(block.act) not in ACTIVATIONS.values():
                raise ValueError(f"{name} has a {type(block.act).__name__} behind it: expected a float classifier")
            block.act = ACTIVATIONS[activation]()
    return model


@torch.no_grad()
def remove_bottlenecks(model: ClassificationModel, keep: Mapping[str, int]) -> ClassificationModel:
    """A copy whose C2f blocks have fewer bottlenecks: the first ones stay, the last ones go.

    Each bottleneck feeds the next, and the block's last convolution reads the outputs of all. What it read of those
    that went, it reads no more.

    Args:
        model: a float classifier; it is left alone.
        keep: name of a C2f block, such as ``"model.4"``, → how many bottlenecks it keeps, 0 or more.

    Raises:
        TypeError: ``model`` is no classifier.
        ValueError: a name that is no C2f block, or more bottlenecks than it has.

    Example:
        >>> import yolo_slim_lessons as slim
        >>> shallow = slim.remove_bottlenecks(slim.load_model("nano"), {"model.2": 0, "model.4": 1})
        >>> [len(shallow.model[number].m) for number in (2, 4, 6, 8)]
        [0, 1, 2, 1]
    """
    check_classifier(model)
    model = copy_model(model)
    blocks = {name: block for name, block in model.named_modules() if isinstance(block, C2f)}
    for name, count in keep.items():
        if name not in blocks:
            raise ValueError(f"keep names {name!r}, which is no C2f block: expected some of {sorted(blocks)}")
        block = blocks[name]
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= len(block.m):
            raise ValueError(f"keep[{name!r}]={count!r}: expected 0 to {len(block.m)}, as many as there are")
        block.m = block.m[:count]
        reader = block.cv2.conv
        reader.in_channels = (2 + count) * block.c
        reader.weight = nn.Parameter(reader.weight[:, : reader.in_channels].clone(), requires_grad=False)
    return model
