"""``measure``: the scorecard of a model or of an ONNX file, or of two with their differences.

Leaves out: how it is measured (``measurement``).
"""

import json
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.agreement import join_split
from yolo_slim_lessons.command_line.reading import read_images, read_model
from yolo_slim_lessons.data import Split
from yolo_slim_lessons.deployment import onnx_session, run_onnx
from yolo_slim_lessons.measurement import (
    Latency,
    Scorecard,
    Scores,
    compare,
    measure,
    paired_difference,
    predict,
    score,
    time_model,
)
from yolo_slim_lessons.models import image_size_of


@dataclass(frozen=True)
class OnnxFile:
    """A file of ``export_onnx`` that is measured in ONNX Runtime.

    Attributes:
        session: that runs it.
        names: from label to class name.
        args: the image size, where models have theirs.
    """

    session: onnxruntime.InferenceSession
    names: dict[int, str]
    args: dict[str, int]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return run_onnx(self.session, images)


@dataclass(frozen=True)
class OnnxScorecard:
    """What is measured of an ONNX file."""

    scores: Scores
    latency_ms: Latency

    def __repr__(self) -> str:
        return f"{self.scores!r}\nlatency: {self.latency_ms}"


def run(settings: Namespace) -> bool:
    """Print what ``settings`` ask for; returns true, as there is nothing to be missed."""
    models = [_read(source, settings) for source in settings.models]
    sizes = sorted({image_size_of(model) for model in models})
    if len(sizes) > 1 and settings.image_size is None:
        raise ValueError(f"the models are for images of {sizes} px: say by --image-size which to compare them on")
    split = getattr(read_images(settings.images, models[0], settings), settings.split)
    right = []
    for source, model in zip(settings.models, models, strict=True):
        scorecard, answers = measured(model, split)
        print(f"\n{source}, {len(split):,} images of {settings.split}\n{scorecard!r}", flush=True)
        right.append(answers)
    if len(models) == 2:
        print(f"\nfirst {settings.models[0]}, second {settings.models[1]}, on the same images and in turns")
        print(paired_difference(*right))
        print(compare(*models, image_size=split.height_width[-1]))
    return True


def measured(model: ClassificationModel | OnnxFile, split: Split) -> tuple[Scorecard | OnnxScorecard, np.ndarray]:
    """The scorecard of a model, and for each image of ``split`` whether its answer is right."""
    split = join_split(model, split)
    is_file = isinstance(model, OnnxFile)
    answers = (run_onnx(model.session, split) if is_file else predict(model, split)).argmax(1).numpy()
    labels = split.labels.numpy()
    scores = score(labels, answers, tuple(model.names.values()))
    if is_file:
        return OnnxScorecard(scores, time_model(model, image_size=image_size_of(model))), labels == answers
    return replace(measure(model), scores=scores), labels == answers


def _read(source: str, settings: Namespace) -> ClassificationModel | OnnxFile:
    if Path(source).suffix != ".onnx":
        return read_model(source, settings)
    session = onnx_session(source)
    about = session.get_modelmeta().custom_metadata_map
    if not {"class_names", "image_size"} <= about.keys() or session.get_inputs()[0].name != "images":
        raise ValueError(f"{source} does not say its classes and image size, or reads pictures: write it by export")
    names = dict(enumerate(json.loads(about["class_names"])))
    size = int(about["image_size"])
    print(f"{source}: {Path(source).stat().st_size:,} bytes, {len(names)} classes, {size} px, in ONNX Runtime")
    return OnnxFile(session, names, {"imgsz": size})
