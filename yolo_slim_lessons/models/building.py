"""Make a classifier: from an architecture, from one with other classes, or as a copy.

Used from lesson 01 on. Leaves out: training (``training``), and files (``storing``).
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator

import torch
from torch import nn
from ultralytics.nn.modules import Classify, Conv
from ultralytics.nn.tasks import ClassificationModel
from ultralytics.utils import LOGGER

from yolo_slim_lessons.models.checks import as_classifier
from yolo_slim_lessons.models.description import device_of, image_size_of


def new_model(architecture: str, class_names: tuple[str, ...], image_size: int = 64, seed: int = 0):
    """An untrained classifier.

    Args:
        architecture: what Ultralytics builds from, such as ``"yolov8n-cls.yaml"``.
        class_names: one name per label, in the order of the labels.
        image_size: pixels a side, stored so that ``YOLO(path).predict`` resizes to it.
        seed: of the random initial weights.

    Returns:
        A ``ClassificationModel`` in eval mode.

    Raises:
        ValueError: ``architecture`` describes no classifier, or there is no class name.
        FileNotFoundError: Ultralytics knows no such architecture.

    Example:
        >>> new_model("yolov8n-cls.yaml", ("ant", "bee")).names
        {0: 'ant', 1: 'bee'}
    """
    if len(class_names) == 0:
        raise ValueError(f"class_names={class_names!r}: expected one name per label, at least one")
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(seed)
        model = ClassificationModel(architecture, nc=len(class_names), verbose=False)
    if not isinstance(model.model[-1], Classify):
        raise ValueError(f"architecture={architecture!r}: expected a classifier, such as 'yolov8n-cls.yaml'")
    # Ultralytics gives all models of a process one and the same activation, and changes it when it builds a detector.
    for block in model.modules():
        if isinstance(block, Conv) and isinstance(block.act, nn.SiLU):
            block.act = nn.SiLU()
    model.names = dict(enumerate(class_names))
    model.task = "classify"
    model.args = {"task": "classify", "imgsz": image_size}
    return model.eval()


def adapt(
    model: ClassificationModel, class_names: tuple[str, ...], image_size: int | None = None, seed: int = 0
) -> ClassificationModel:
    """A copy of ``model`` for other classes: all layers as they were, but the last one new and random.

    A network that was trained on other images starts with what it knows about edges and shapes. A model that knows just
    these classes, in this order, keeps its last layer.

    Args:
        model: what to start from; it is left alone.
        class_names: one name per label, in the order of the labels.
        image_size: pixels a side from now on; convolutions take any. ``None`` leaves it as it was.
        seed: of the new layer's weights.

    Raises:
        ValueError: fewer than two classes.
        TypeError: ``model`` is no classifier.

    Example:
        >>> import yolo_slim_lessons as slim
        >>> adapt(slim.load_model("nano"), ("defective", "sound")).model[-1].linear.out_features
        2
    """
    model = as_classifier(model)
    if len(class_names) < 2:
        raise ValueError(f"class_names={class_names!r}: expected two or more")
    adapted = copy_model(model)
    if tuple(model.names.values()) != tuple(class_names):
        head = adapted.model[-1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head.linear = nn.Linear(head.linear.in_features, len(class_names)).to(device_of(model))
        adapted.names = dict(enumerate(class_names))
        adapted.yaml = {**adapted.yaml, "nc": len(class_names)}
    adapted.args = {"task": "classify", "imgsz": image_size or image_size_of(model)}
    return adapted.eval()


def copy_model(model: ClassificationModel) -> ClassificationModel:
    """A copy that shares nothing with its original."""
    return copy.deepcopy(model)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No word from Ultralytics within, even where it was imported first or told to be verbose."""
    level = LOGGER.level
    LOGGER.setLevel(logging.ERROR)
    try:
        yield
    finally:
        LOGGER.setLevel(level)
