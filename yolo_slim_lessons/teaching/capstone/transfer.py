"""Transfer: a network that was trained on other images starts with what it knows about edges and shapes.

Leaves out: freezing of layers. With few images and a low learning rate it helps; these networks are small enough to be
trained whole.
"""

from __future__ import annotations

import torch
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.models import check_classifier, copy_model


def adapt(
    model: ClassificationModel, class_names: tuple[str, ...], image_size: int = 128, seed: int = 0
) -> ClassificationModel:
    """A copy of ``model`` for other classes: all layers as they were, but the last one new and random.

    A model that knows just these classes, in this order, keeps its last layer.

    Args:
        model: any YOLOv8 classifier; it is left alone.
        class_names: one name per label, in the order of the labels.
        image_size: pixels a side from now on. Convolutions take any, so a network may go from small images to larger
            ones.
        seed: of the new layer's weights.

    Raises:
        ValueError: fewer than two classes.
        TypeError: ``model`` is no classifier.

    Example:
        >>> import yolo_slim_lessons as slim
        >>> adapt(slim.load_model("nano"), ("defective", "sound")).model[-1].linear.out_features
        2
    """
    check_classifier(model)
    if len(class_names) < 2:
        raise ValueError(f"class_names={class_names!r}: expected two or more")
    adapted = copy_model(model)
    if tuple(model.names.values()) != tuple(class_names):
        head = adapted.model[-1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head.linear = torch.nn.Linear(head.linear.in_features, len(class_names))
        adapted.names = dict(enumerate(class_names))
        adapted.yaml = {**adapted.yaml, "nc": len(class_names)}
    adapted.args = {"task": "classify", "imgsz": image_size}
    return adapted.eval()
