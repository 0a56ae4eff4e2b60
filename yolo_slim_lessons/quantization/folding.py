"""Fold BatchNorm into the convolutions in front of it, as every runtime does. Used in lesson 05.

Leaves out: networks other than classifiers of Ultralytics, which stay as they are.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.graph import replace_module, trace
from yolo_slim_lessons.models import copy_model


class FoldedNorm(nn.Identity):
    """Stands where a BatchNorm stood that a convolution does now."""

    traced_as = "nothing"


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose convolutions do BatchNorm's work, too; other networks than Ultralytics' as they are.

    Example:
        >>> import yolo_slim_lessons as slim
        >>> fold_batchnorm(slim.load_model("nano")).model[0].conv.bias.shape
        torch.Size([16])
    """
    folded = copy_model(model).eval().to(memory_format=torch.contiguous_format)  # which older fuse() insists on
    if not isinstance(folded, ClassificationModel):
        return folded.fuse(verbose=False) if hasattr(folded, "fuse") else folded
    folded = folded.fuse(verbose=False)
    if any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules()):  # of layers that a YAML file names alone
        graph = trace(folded)
        for node in graph.nodes:
            norm, _ = graph.behind(node.name) if node.kind == "conv" else (None, None)
            if norm is not None:
                convolution = fuse_conv_bn_eval(folded.get_submodule(node.name), folded.get_submodule(norm))
                replace_module(folded, node.name, convolution.requires_grad_(False))
                replace_module(folded, norm, FoldedNorm())
    return folded
