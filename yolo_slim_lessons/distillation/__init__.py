"""Learn from a teacher: a small network is trained on what a larger one answers, with or without labels.

``losses`` holds the formulas, ``features`` matches layers, ``cache`` asks the teacher once instead of in every epoch,
``unlabelled`` adds images without labels. Used in lesson 07. Leaves out: teachers that learn along, several teachers,
and training on several devices (``ultralytics_trainer.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.agreement import join_data
from yolo_slim_lessons.arguments import check_choice
from yolo_slim_lessons.data import ImageData
from yolo_slim_lessons.distillation.cache import CachedSplit, TeacherCache, cache_teacher
from yolo_slim_lessons.distillation.checks import check_cache, check_numbers, check_teacher, checked_data
from yolo_slim_lessons.distillation.features import add_adapters, match_layers, record, without_extras
from yolo_slim_lessons.distillation.losses import (
    FEATURE_LOSSES,
    attention_loss,
    decoupled_loss,
    hint_loss,
    known_label_loss,
    soft_target_loss,
)
from yolo_slim_lessons.distillation.unlabelled import hide_labels, with_unlabelled
from yolo_slim_lessons.files import fingerprint
from yolo_slim_lessons.models import as_classifier, copy_model, device_of, logits
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
    student = as_classifier(student, "student")
    teacher = as_classifier(teacher, "teacher")
    data = join_data(student, data)
    check_numbers(temperature=temperature, alpha=alpha, beta=beta, feature_weight=feature_weight)
    check_choice("method", method, METHODS)
    if layers is not None and method not in FEATURE_LOSSES:
        raise ValueError(f"layers={layers!r}, method={method!r}: only {tuple(FEATURE_LOSSES)} look at layers")
    check_teacher(student, teacher)
    data = checked_data(data, len(student.names), alpha, method, fit_options)
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
        check_cache(cache, teacher, data.train, method, fit_options)
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
