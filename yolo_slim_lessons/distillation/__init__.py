"""Learn from a teacher: a small network is trained on what a larger one answers, with or without labels.

``losses`` holds the formulas, ``features`` matches layers, ``cache`` asks the teacher once instead of in every epoch,
``unlabelled`` adds images without labels. Used in lesson 07. Leaves out: teachers that learn along, several teachers,
and training on several devices (``ultralytics_trainer.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from numbers import Real

import torch
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.arguments import check_choice
from yolo_slim_lessons.data import ImageData, Split
from yolo_slim_lessons.data.splits import formatted
from yolo_slim_lessons.data.stored import same
from yolo_slim_lessons.distillation.cache import CachedSplit, TeacherCache, cache_teacher
from yolo_slim_lessons.distillation.features import add_adapters, match_layers, record, without_extras
from yolo_slim_lessons.distillation.losses import (
    attention_loss,
    decoupled_loss,
    hint_loss,
    known_label_loss,
    soft_target_loss,
)
from yolo_slim_lessons.distillation.unlabelled import hide_labels, with_unlabelled
from yolo_slim_lessons.files import fingerprint
from yolo_slim_lessons.models import check_classifier, copy_model, device_of, input_format, logits
from yolo_slim_lessons.training import fit

__all__ = [
    "TeacherCache",
    "attention_loss",
    "cache_teacher",
    "check_teacher",
    "decoupled_loss",
    "distill",
    "hide_labels",
    "hint_loss",
    "known_label_loss",
    "soft_target_loss",
    "with_unlabelled",
]

FEATURE_LOSSES = {"hints": hint_loss, "attention": attention_loss}
METHODS = ("soft", "decoupled", *FEATURE_LOSSES)


def distill(
    student: ClassificationModel,
    teacher: ClassificationModel,
    data: ImageData,
    temperature: float = 4.0,
    alpha: float = 0.9,
    epochs: int = 10,
    *,
    method: str = "soft",
    beta: float = 8.0,
    layers: Iterable[str] | Mapping[str, str] | None = None,
    feature_weight: float = 1.0,
    cache: TeacherCache | None = None,
    on_epoch: Callable[[int, float, float, ClassificationModel], None] | None = None,
    **fit_options,
) -> ClassificationModel:
    """Train a copy of ``student`` on labels and on what ``teacher`` answers to the same images, and return it.

    loss = (1 - alpha) · cross-entropy with the labels + alpha · distance from the teacher's answers, and for the
    methods that look inside + feature_weight · distance from its features.

    Args:
        student: what to start from; it is left alone. Pruned ones may have any widths, and zeros stay zero.
        teacher: runs in eval mode, as a copy on the student's device; it is left alone.
        data: as for ``fit``. Training images with the label -1 have none: they count for the teacher's part only, and
            the cross-entropy is the mean over the others of a batch (see ``with_unlabelled``).
        temperature: divides logits before the softmax; above 1 it brings out the teacher's doubts.
        alpha: share of the teacher's answers, 0…1. With 1 labels are not used.
        epochs: how often each training image is seen.
        method: ``"soft"``: soft targets (Hinton et al., 2015). ``"decoupled"``: right class and others apart (Zhao et
            al., 2022); an image without a label counts as what the teacher takes it for. ``"hints"``: soft targets, and
            feature maps through a 1×1 convolution (Romero et al., 2015; here in one stage). ``"attention"``: soft
            targets, and attention maps (Zagoruyko & Komodakis, 2017).
        beta: weight of the other classes in ``"decoupled"``.
        layers: for ``"hints"`` and ``"attention"``: names that both have, or a mapping from the student's to the
            teacher's; ``None`` matches the last block of each stage.
        feature_weight: of what these layers differ by.
        cache: the teacher's answers, by ``cache_teacher``; ``None`` asks it anew for every batch. With a cache the
            versions stored there take the place of ``augment``.
        on_epoch: as for ``fit``.
        **fit_options: whatever else ``fit`` takes, such as ``learning_rate``, ``seed`` and ``checkpoint``.

    Raises:
        ValueError: a number is out of range; student, teacher and data differ in their classes; student and teacher
            differ in their channels; the teacher is the student; layers that do not match; a cache of another teacher
            or of other images; options that exclude each other; or whatever ``fit`` objects to.
        TypeError: ``temperature`` or another number is none.

    Example:
        >>> import yolo_slim_lessons as slim
        >>> small, teacher = slim.prune_channels(slim.load_model("nano"), 0.5), slim.load_model("teacher")
        >>> data = slim.load_images("fashion-mnist").take(train=200, val=100)
        >>> learned = slim.distill(small, teacher, data, temperature=4.0, alpha=0.9, epochs=1, progress=False)
    """
    check_numbers(temperature=temperature, alpha=alpha, beta=beta, feature_weight=feature_weight)
    check_choice("method", method, METHODS)
    if layers is not None and method not in FEATURE_LOSSES:
        raise ValueError(f"layers={layers!r}, method={method!r}: only {tuple(FEATURE_LOSSES)} look at layers")
    check_teacher(student, teacher)
    data = _check_labels(data, len(student.names), alpha, method, fit_options)
    teacher = copy_model(teacher).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    teacher = teacher.to(device_of(student), torch.float32)  # as the student, whose images it sees
    settings = {"method": method, "temperature": float(temperature), "alpha": float(alpha)}
    settings["teacher"] = fingerprint(teacher)
    pairs, learner = {}, student
    if method == "decoupled":
        settings["beta"] = float(beta)
    elif method in FEATURE_LOSSES:
        pairs = match_layers(student, teacher, layers, data.image_size)
        settings |= {"layers": pairs, "feature_weight": float(feature_weight)}
        learner = copy_model(student)
        if method == "hints":
            add_adapters(learner, teacher, pairs, data.image_size, fit_options.get("seed", 0))
    if cache is not None:
        _check_cache(cache, teacher, data.train, method, fit_options)
        settings["cache"] = fingerprint(cache.scores)
        data = replace(data, train=CachedSplit(data.train.labels, cache))
        fit_options["augment"] = False  # the cached versions are augmented already
    loss = _DistillationLoss(teacher, learner, pairs, cache is not None, settings)
    report = None
    if on_epoch:

        def report(epoch, mean_loss, top1, model):
            on_epoch(epoch, mean_loss, top1, without_extras(model, student) if pairs else model)

    trained = fit(learner, data, epochs, loss=loss, on_epoch=report, **fit_options)
    return without_extras(trained, student) if pairs else trained


class _DistillationLoss:
    """What ``fit`` calls on every batch. ``settings`` tells its checkpoints which training they belong to."""

    def __init__(self, teacher, student, pairs: dict[str, str], cached: bool, settings: dict):
        self.teacher, self.pairs, self.cached, self.settings = teacher, pairs, cached, settings
        self.features, self.teacher_features = {}, {}
        record(student, pairs.keys(), self.features)
        record(teacher, pairs.values(), self.teacher_features)

    def __call__(self, scores: torch.Tensor, labels: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        if self.cached:
            labels, answers = labels.labels, labels.answers
        else:
            with torch.no_grad():
                answers = logits(self.teacher, images)
        temperature, alpha = self.settings["temperature"], self.settings["alpha"]
        if self.settings["method"] == "decoupled":
            targets = torch.where(labels < 0, answers.argmax(1), labels)
            total = alpha * decoupled_loss(scores, answers, targets, temperature, self.settings["beta"])
        else:
            total = alpha * soft_target_loss(scores, answers, temperature)
        if alpha < 1:
            total = total + (1 - alpha) * known_label_loss(scores, labels)
        for name, teacher_name in self.pairs.items():
            distance = FEATURE_LOSSES[self.settings["method"]](
                self.features[name].float(), self.teacher_features[teacher_name]
            )
            total = total + self.settings["feature_weight"] * distance / len(self.pairs)
        return total


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
    """Raise an error if ``teacher`` cannot teach ``student``: other classes, another order of them, or the same model.

    Raises:
        TypeError: one of the two is no classifier.
        ValueError: as said above.
    """
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
    if set(teacher_names) == set(names) and tuple(teacher_names) != tuple(names):
        raise ValueError(
            f"teacher and {whose} know the same classes in another order, {list(teacher_names)} and {list(names)}: "
            "what the teacher says would be taken for another class"
        )


def _check_labels(data: ImageData, class_count: int, alpha: float, method: str, fit_options: dict) -> ImageData:
    labels = data.train.labels
    if len(labels) and not -1 <= labels.min() <= labels.max() < class_count:
        raise ValueError(
            f"data.train has labels from {labels.min()} to {labels.max()}: "
            f"expected 0 to {class_count - 1}, or -1 where there is none"
        )
    if alpha < 1 and len(labels) and labels.max() < 0:
        raise ValueError(f"alpha={alpha!r}, but no image of data.train has a label: expected alpha=1")
    blends = _blends(fit_options)
    if not blends:
        return data
    if method == "decoupled":
        raise ValueError(f"{blends}, method='decoupled': a blend of two images has no one right class")
    if (labels < 0).any():
        if alpha < 1:
            raise ValueError(
                f"{blends} blends labels, but some images have none: expected {_without(blends)} or alpha=1"
            )
        # Any labels do: they are blended, and nobody looks at the result.
        return replace(data, train=Split(data.train.images, torch.zeros_like(labels)))
    return data


def _blends(fit_options: dict) -> str:
    """Those of ``mixup`` and ``cutmix`` that are asked for, with their values."""
    return ", ".join(f"{name}={fit_options[name]!r}" for name in ("mixup", "cutmix") if fit_options.get(name, 0))


def _without(blends: str) -> str:
    return " and ".join(f"{blend.partition('=')[0]}=0" for blend in blends.split(", "))


def _check_cache(cache: TeacherCache, teacher, train: Split, method: str, fit_options: dict) -> None:
    if method in FEATURE_LOSSES:
        raise ValueError(f"cache, method={method!r}: a cache holds answers, not features; expected cache=None")
    if blends := _blends(fit_options):
        raise ValueError(
            f"cache, {blends}: the teacher has never seen the blended images; expected cache=None or {_without(blends)}"
        )
    if fit_options.get("augment", cache.seeds is not None) != (cache.seeds is not None):
        raise ValueError(
            f"augment={fit_options['augment']!r}: the cache was made with augment={cache.seeds is not None}"
        )
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
