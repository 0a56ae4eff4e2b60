"""Load, save and copy YOLO classifiers, and what a checkpoint says of its model.

The models are Ultralytics' own ``ClassificationModel``, unmodified: whatever this package makes of them, a file saved
here opens with plain ``YOLO(path)``. ``building`` makes models, ``storing`` loads and saves them, ``checkpoints`` reads
files, ``permitted`` lists what these may ask for, ``file_kinds`` tells what other files are, ``checks`` says what a
model must be, ``description`` what it says of itself. Leaves out: training (``training``) and other tasks than
classification.
"""

from yolo_slim_lessons.models.building import adapt, copy_model, new_model
from yolo_slim_lessons.models.checks import (
    as_classifier,
    as_network,
    check_classifier,
    check_finite,
    class_names_of,
    not_finite,
)
from yolo_slim_lessons.models.description import (
    blank_images,
    device_of,
    image_size_of,
    input_format,
    layers_of_this_package,
    logits,
    values_of,
    weight_layers,
)
from yolo_slim_lessons.models.storing import load_model, save_model

__all__ = [
    "adapt",
    "as_classifier",
    "as_network",
    "blank_images",
    "check_classifier",
    "check_finite",
    "class_names_of",
    "copy_model",
    "device_of",
    "image_size_of",
    "input_format",
    "layers_of_this_package",
    "load_model",
    "logits",
    "new_model",
    "not_finite",
    "save_model",
    "values_of",
    "weight_layers",
]
