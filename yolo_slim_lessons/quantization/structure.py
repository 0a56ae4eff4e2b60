"""Which layers of a YOLOv8 classifier read which activations, so that each tensor gets one grid. Used in lesson 05.

Leaves out: other families than yolov8-cls, whose weights alone can be quantized.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from ultralytics.nn.modules import C2f, Classify, Conv
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.quantization.layers import QuantizedActivation, QuantizedBottleneck


@dataclass(frozen=True)
class ActivationTensor:
    """One tensor of activations, or several that are added and concatenated and so share a grid.

    Attributes:
        observed: name of a module whose input is the whole tensor.
        writers: names of the activation functions that make it; none make the image and the average of a channel.
        readers: names of the convolutions and linear layers that read it.
        sums: names of the bottlenecks that add to it.
    """

    observed: str
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    sums: tuple[str, ...] = ()


def activation_tensors(model: nn.Module) -> list[ActivationTensor]:
    """Every tensor of a forward pass that lies on a grid, the image first.

    Raises:
        TypeError: ``model`` is no yolov8-cls classifier (the block that is not understood is named).
    """
    if not isinstance(model, ClassificationModel):
        raise TypeError(f"model is a {type(model).__name__}: activations of yolov8-cls classifiers only are quantized")
    tensors, writers = [], ()
    for index, block in enumerate(model.model):
        name = f"model.{index}"
        if type(block) is Conv:
            tensors.append(_read_by(f"{name}.conv", writers))
            writers = (f"{name}.act",)
        elif type(block) is C2f:
            tensors.append(_read_by(f"{name}.cv1.conv", writers))
            parts = [f"{name}.m.{j}" for j in range(len(block.m))]
            tensors.append(
                ActivationTensor(
                    observed=f"{name}.cv2.conv",
                    writers=(f"{name}.cv1.act", *(f"{part}.cv2.act" for part in parts)),
                    readers=(f"{name}.cv2.conv", *(f"{part}.cv1.conv" for part in parts)),
                    sums=tuple(part for part, bottleneck in zip(parts, block.m, strict=True) if bottleneck.add),
                )
            )
            tensors += [_read_by(f"{part}.cv2.conv", (f"{part}.cv1.act",)) for part in parts]
            writers = (f"{name}.cv2.act",)
        elif type(block) is Classify:
            tensors.append(_read_by(f"{name}.conv.conv", writers))
            tensors.append(ActivationTensor(f"{name}.pool", (f"{name}.conv.act",), ()))
            tensors.append(_read_by(f"{name}.linear", ()))
        else:
            raise TypeError(
                f"{name} is a {type(block).__name__}: activations are quantized in yolov8-cls models only, which "
                "consist of Conv, C2f and Classify; leave activation_bits=None to quantize the weights"
            )
    return tensors


def separate_activations(model: ClassificationModel) -> list[str]:
    """Give each ``Conv`` an activation of its own, in place, where Ultralytics shares one; returns their names."""
    names = []
    for name, block in model.named_modules():
        if isinstance(block, Conv):
            block.act = QuantizedActivation(block.act)
            names.append(f"{name}.act")
    return names


def saturate_sums(model: ClassificationModel, names: tuple[str, ...], grid) -> None:
    """Replace, in place, the named bottlenecks by ones that clamp their sum to ``grid``."""
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, QuantizedBottleneck(model.get_submodule(name), grid))


def _read_by(layer: str, writers: tuple[str, ...]) -> ActivationTensor:
    return ActivationTensor(layer, writers, (layer,))
