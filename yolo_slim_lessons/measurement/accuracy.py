"""How often is it right: accuracy with its interval, precision, recall, F1 and the confusion matrix.

Used from lesson 02 on. Leaves out: calibration of the probabilities, and top-5.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import nn
from tqdm.auto import tqdm

from yolo_slim_lessons.agreement import check_image_size, check_split, join_split
from yolo_slim_lessons.data import Split
from yolo_slim_lessons.models import as_network, copy_model, input_format, logits


@dataclass(frozen=True)
class PairedDifference:
    """How two models differ in their right answers to the same images.

    Attributes:
        difference: top-1 of the second minus that of the first, -1…1.
        interval: 95 % interval of it (Agresti & Min, 2005), which knows that most images are easy or hard for both.
        only_first, only_second: how many images just one of the two gets right.
    """

    difference: float
    interval: tuple[float, float]
    only_first: int
    only_second: int

    def __repr__(self) -> str:
        low, high = (100 * end for end in self.interval)
        return (
            f"second minus first: {100 * self.difference:+.2f} points of top-1 "
            f"(95 % interval {low:+.2f} to {high:+.2f}); "
            f"only the first is right on {self.only_first:,} images, only the second on {self.only_second:,}"
        )


@dataclass(frozen=True)
class ClassScores:
    """How one class fares: three fractions 0…1 and the number of its images."""

    name: str
    precision: float
    recall: float
    f1: float
    images: int


@dataclass(frozen=True)
class Scores:
    """Right and wrong answers on a split.

    Attributes:
        top1: share of images whose highest score is the right class, 0…1.
        interval: Wilson's 95 % interval of ``top1`` (Wilson, 1927): what other images of the same kind could give.
        precision, recall, f1: means over the classes that have images, each class counting the same (macro).
        per_class: one for each class, in the order of the labels.
        confusion: counts, int64 array classes×classes; row is the true class, column the predicted one.
    """

    top1: float
    interval: tuple[float, float]
    precision: float
    recall: float
    f1: float
    per_class: tuple[ClassScores, ...]
    confusion: np.ndarray

    def __repr__(self) -> str:
        low, high = self.interval
        return f"top-1 {self.top1:.1%} (95 % interval {low:.1%} to {high:.1%}), macro F1 {self.f1:.1%}"


def wilson_interval(correct: int, images: int) -> tuple[float, float]:
    """95 % interval of a share of right answers (Wilson, 1927); it stays inside 0…1 even for few images.

    Raises:
        ValueError: not 0 ≤ ``correct`` ≤ ``images``, or no image.

    Example:
        >>> low, high = wilson_interval(90, 100)
        >>> f"{low:.3f} {high:.3f}"
        '0.826 0.945'
    """
    if images < 1 or not 0 <= correct <= images:
        raise ValueError(f"correct={correct!r}, images={images!r}: expected 0 ≤ correct ≤ images and images ≥ 1")
    interval = binomtest(correct, images).proportion_ci(method="wilson")
    return interval.low, interval.high


def paired_difference(first: np.ndarray, second: np.ndarray) -> PairedDifference:
    """Compare two models by the images that only one of them gets right (McNemar, 1947).

    Args:
        first: bool array of N, whether the first model is right.
        second: the same of the second, for the same images in the same order.

    Raises:
        ValueError: no image, or not equally many.

    Example:
        >>> paired_difference(np.array([True, True, False]), np.array([True, False, False])).only_first
        1
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    if first.shape != second.shape or first.ndim != 1 or len(first) == 0:
        raise ValueError(f"first has shape {first.shape}, second {second.shape}: expected N answers each, N ≥ 1")
    gain = second.astype(int) - first
    only_first, only_second = int((gain < 0).sum()), int((gain > 0).sum())
    # Half an image more in each of the four cells keeps the interval honest where the two never differ.
    images = len(gain) + 2
    middle = (only_second - only_first) / images
    half = 1.96 * math.sqrt(((only_first + only_second + 1) / images - middle**2) / images)
    return PairedDifference(float(gain.mean()), (middle - half, middle + half), only_first, only_second)


def predict(model: nn.Module, split: Split, batch_size: int = 128, progress: bool = True) -> torch.Tensor:
    """Class probabilities for every image of ``split``: float32 tensor N×classes, rows summing to 1.

    ``model`` computes where it is and in its own number type; the answers are with the labels of ``split``.
    """
    check_split(split)
    return _probabilities(as_network(model), split, batch_size, progress)


def _probabilities(model: nn.Module, split: Split, batch_size: int, progress: bool) -> torch.Tensor:
    check_image_size(model, split.height_width)
    fast = _ready_for_speed(model)
    with (
        torch.inference_mode(),
        tqdm(total=len(split), desc="predict", delay=2, leave=False, disable=not progress) as bar,
    ):
        answers = []
        for images, _ in split.batches(batch_size, **input_format(fast)):
            answers.append(logits(fast, images).float().softmax(1))
            bar.update(len(images))
    return torch.cat(answers).to(split.labels.device)


def _ready_for_speed(model: nn.Module) -> nn.Module:
    """A copy that answers the same, in less time."""
    fast = copy_model(model).eval().to(memory_format=torch.contiguous_format)  # which older fuse() insists on
    # Without BatchNorm, which folds into the convolutions; in 16 bits, their weights would be rounded once more.
    if hasattr(fast, "fuse") and input_format(fast)["dtype"] == torch.float32:
        fast = fast.fuse(verbose=False)
    return fast.to(memory_format=torch.channels_last)  # which convolutions on a CPU prefer


def evaluate(model: nn.Module, split: Split, batch_size: int = 128, progress: bool = True) -> Scores:
    """Count right and wrong answers of ``model`` on every image of ``split``.

    Raises:
        ValueError: the split is empty, or has classes or labels that the model does not know.
    """
    model = as_network(model)
    split = join_split(model, split)
    if len(split) == 0:
        raise ValueError("split is empty: expected at least one image")
    unknown = split.labels[(split.labels < 0) | (split.labels >= len(model.names))]
    if len(unknown):
        raise ValueError(f"split has label {unknown[0]}, but the model knows the labels 0 to {len(model.names) - 1}")
    predicted = _probabilities(model, split, batch_size, progress).argmax(1).numpy()
    return score(split.labels.numpy(), predicted, tuple(model.names.values()))


def score(labels: np.ndarray, predicted: np.ndarray, class_names: tuple[str, ...]) -> Scores:
    """``Scores`` from true and predicted labels, both int arrays of N."""
    indices = range(len(class_names))
    # A class that is never predicted has precision 0 here, without a warning.
    columns = precision_recall_fscore_support(labels, predicted, labels=indices, zero_division=0)
    precision, recall, f1, images = columns
    present = images > 0
    correct = int((labels == predicted).sum())
    return Scores(
        top1=correct / len(labels),
        interval=wilson_interval(correct, len(labels)),
        precision=precision[present].mean().item(),
        recall=recall[present].mean().item(),
        f1=f1[present].mean().item(),
        per_class=tuple(map(ClassScores, class_names, *(column.tolist() for column in columns))),
        confusion=confusion_matrix(labels, predicted, labels=indices),
    )
