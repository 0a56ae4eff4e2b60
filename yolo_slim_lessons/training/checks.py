"""What ``fit`` refuses: numbers out of range, and a model and images that it cannot join.

Leaves out: which frozen layers there are (``options``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real

import torch
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.arguments import check_choice, check_positive_integer
from yolo_slim_lessons.data import ImageData
from yolo_slim_lessons.models import input_format, weight_layers
from yolo_slim_lessons.training.augmentation import AUGMENTATIONS

SMALLEST_IMAGES = 32  # pixels a side: of these, the last layers see a single position


def check_numbers(settings: Mapping[str, object]) -> None:
    """Raise ``ValueError`` unless those of ``fit`` are in range."""
    check_positive_integer("epochs", settings["epochs"])
    check_positive_integer("batch_size", settings["batch_size"])
    check_choice("augment", settings["augment"], tuple(AUGMENTATIONS))
    rate, average = settings["learning_rate"], settings["average"]
    if rate <= 0:
        raise ValueError(f"learning_rate={rate!r}: expected a number above 0")
    for name in ("weight_decay", "mixup", "cutmix"):
        if settings[name] < 0:
            raise ValueError(f"{name}={settings[name]!r}: expected 0 or more")
    if not 0 <= average < 1:
        raise ValueError(f"average={average!r}: expected 0 or more, less than 1, such as 0.9995")


def check_class_weights(weights: object, class_count: int) -> None:
    """Raise ``ValueError`` unless ``weights`` is ``"balanced"``, ``None`` or a number above 0 for each class."""
    if weights is None or weights == "balanced":
        return
    is_list = isinstance(weights, list) and len(weights) == class_count
    if not is_list or not all(isinstance(each, Real) and 0 < each < math.inf for each in weights):
        raise ValueError(
            f"class_weights={weights!r}: expected 'balanced', or {class_count} numbers above 0, one for each class"
        )


def check_image_sizes(sizes: object, image_size: int, epochs: int) -> None:
    """Raise ``ValueError`` unless ``sizes`` is ``None``, or at most one an epoch, none above ``image_size``."""
    if sizes is None:
        return
    allowed = range(SMALLEST_IMAGES, image_size + 1)
    is_list = isinstance(sizes, list) and 0 < len(sizes) <= epochs
    if not is_list or not all(isinstance(each, Integral) and each in allowed for each in sizes):
        raise ValueError(
            f"image_sizes={sizes!r}: expected 1 to {epochs} sizes (epochs={epochs}) of {SMALLEST_IMAGES} to "
            f"{image_size} px, the size of data"
        )


def check_model_and_data(model: ClassificationModel, data: ImageData, all_labelled: bool) -> None:
    """Raise ``ValueError`` unless ``model`` can learn from the labels of ``data``; -1 only if not all need one."""
    dtype = input_format(model)["dtype"]
    if dtype != torch.float32:
        raise ValueError(
            f"model has weights of {dtype}, and fit trains in float32: pass model.float(); "
            "with bfloat16=True it still multiplies in 16 bits"
        )
    for name, layer in weight_layers(model):
        if getattr(layer, "rounding", True) is None:
            raise ValueError(
                f"model is quantized ({name}), and integers cannot learn in small steps: give its float model to "
                "train_quantized, or train dequantize(model) and quantize it again"
            )
    labels = data.train.labels
    if all_labelled and len(labels) and not 0 <= labels.min() <= labels.max() < len(model.names):
        raise ValueError(
            f"data.train has labels from {labels.min()} to {labels.max()}: expected 0 to {len(model.names) - 1}; "
            "distill also learns from images without a label (-1)"
        )
