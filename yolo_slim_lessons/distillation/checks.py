"""What ``distill`` refuses: numbers out of range; student, teacher, images and answers that do not fit together."""

from __future__ import annotations

import math
from dataclasses import replace
from numbers import Real

import torch
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.agreement import class_places
from yolo_slim_lessons.data import ImageData, Split
from yolo_slim_lessons.data.splits import formatted
from yolo_slim_lessons.data.stored import same
from yolo_slim_lessons.distillation.cache import TeacherCache
from yolo_slim_lessons.distillation.losses import FEATURE_LOSSES
from yolo_slim_lessons.files import fingerprint
from yolo_slim_lessons.models import check_classifier, input_format, logits


def check_numbers(**numbers: float) -> None:
    """Raise an error that names the argument, unless temperature > 0, alpha is in 0…1 and the others are ≥ 0."""
    allowed = {
        "temperature": (lambda value: value > 0, "a number above 0, such as 4.0"),
        "alpha": (lambda value: 0 <= value <= 1, "0 (labels only) to 1 (teacher only)"),
    }
    for name, value in numbers.items():
        is_allowed, expected = allowed.get(name, (lambda value: value >= 0, "0 or more"))
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name}={value!r}: expected {expected}")
        if not math.isfinite(value) or not is_allowed(value):
            raise ValueError(f"{name}={value!r}: expected {expected}")


def check_teacher(student: ClassificationModel, teacher: ClassificationModel) -> None:
    """Raise ``ValueError`` if ``teacher`` cannot teach ``student``; ``TypeError`` if one of them is no classifier."""
    check_classifier(student, "student")
    check_classifier(teacher, "teacher")
    check_class_names(tuple(teacher.names.values()), tuple(student.names.values()), "student")
    channels = [input_format(model)["channels"] for model in (student, teacher)]
    if channels[0] != channels[1]:
        raise ValueError(f"student reads {channels[0]} channels, teacher reads {channels[1]}: they see the same images")
    if teacher is student or fingerprint(teacher) == fingerprint(student):
        raise ValueError("teacher is the student, or has the very same weights: there is nothing to learn from it")


def check_class_names(teacher_names: tuple[str, ...], names: tuple[str, ...], whose: str) -> None:
    """Raise ``ValueError`` unless both have as many classes, and those that are named alike stand in the same order."""
    if len(teacher_names) != len(names):
        raise ValueError(f"teacher has {len(teacher_names)} classes, {whose} has {len(names)}: they must agree")
    try:
        places = class_places(names, teacher_names)
    except ValueError:  # other names, perhaps of the same classes
        return
    if places != list(range(len(names))):
        raise ValueError(
            f"teacher and {whose} know the same classes in another order, {list(teacher_names)} and {list(names)}: "
            "what the teacher says would be taken for another class"
        )


def checked_data(data: ImageData, class_count: int, alpha: float, method: str, fit_options: dict) -> ImageData:
    """``data``, whose labels suit the other arguments of ``distill``."""
    labels = data.train.labels
    if len(labels) and not -1 <= labels.min() <= labels.max() < class_count:
        raise ValueError(
            f"data.train has labels from {labels.min()} to {labels.max()}: "
            f"expected 0 to {class_count - 1}, or -1 where there is none"
        )
    if alpha < 1 and len(labels) and labels.max() < 0:
        raise ValueError(f"alpha={alpha!r}, but no image of data.train has a label: expected alpha=1")
    blends, none = _blends(fit_options)
    if not blends:
        return data
    if method == "decoupled":
        raise ValueError(f"{blends}, method='decoupled': a blend of two images has no one right class")
    if (labels < 0).any():
        if alpha < 1:
            raise ValueError(f"{blends} blends labels, but some images have none: expected {none} or alpha=1")
        # Any labels do: they are blended, and nobody looks at the result.
        return replace(data, train=data.train.relabelled(torch.zeros_like(labels), data.train.class_names))
    return data


def _blends(fit_options: dict) -> tuple[str, str]:
    """Those of ``mixup`` and ``cutmix`` that are asked for: ("mixup=0.5", "mixup=0"), the latter to do without."""
    asked = [name for name in ("mixup", "cutmix") if fit_options.get(name, 0)]
    return ", ".join(f"{name}={fit_options[name]!r}" for name in asked), " and ".join(f"{name}=0" for name in asked)


def check_cache(cache: TeacherCache, teacher, train: Split, method: str, fit_options: dict) -> None:
    """Raise ``ValueError`` unless ``cache`` holds what ``teacher`` says to ``train`` and suits the other arguments."""
    if method in FEATURE_LOSSES:
        raise ValueError(f"cache, method={method!r}: a cache holds answers, not features; expected cache=None")
    blends, none = _blends(fit_options)
    if blends:
        raise ValueError(
            f"cache, {blends}: the teacher has never seen the blended images; expected cache=None or {none}"
        )
    augment = cache.augment if cache.seeds is not None else False
    if fit_options.get("augment", augment) != augment:
        raise ValueError(f"augment={fit_options['augment']!r}: the cache was made with augment={augment!r}")
    if not same(cache.images, train.images):
        raise ValueError(
            f"cache was made of {len(cache.images)} images that are not the {len(train)} of data.train, "
            "or not in this order: make it anew with cache_teacher(teacher, data.train)"
        )
    some = torch.arange(min(len(train), 32))
    with torch.no_grad():
        images = formatted(cache.version(some, torch.zeros_like(some)), **input_format(teacher))
        fresh = logits(teacher, images).to(cache.scores)
    if fresh.shape != cache.scores[0, some].shape or not fresh.allclose(cache.scores[0, some], rtol=1e-2, atol=1e-2):
        raise ValueError("cache was made by another teacher: make it anew with cache_teacher(teacher, data.train)")
