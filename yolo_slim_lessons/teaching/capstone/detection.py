"""Find the rare class: what a threshold finds, what it misses, and what both cost.

For two classes or more; one of them is the *defect*, and its probability is all that counts here. Leaves out: costs
that differ from image to image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from yolo_slim_lessons.data import ImageData
from yolo_slim_lessons.training import Loss

RESAMPLES = 10_000


@dataclass(frozen=True)
class Detection:
    """What became of the images: four counts, and what follows from them.

    Attributes:
        found: defects that were called so.
        missed: defects that were let through.
        alarms: sound ones that were called defective.
        passed: sound ones that were let through.
    """

    found: int
    missed: int
    alarms: int
    passed: int

    @property
    def images(self) -> int:
        return self.found + self.missed + self.alarms + self.passed

    @property
    def accuracy(self) -> float:
        return (self.found + self.passed) / self.images

    @property
    def precision(self) -> float:
        """Of what was called defective, the share that is; 0 if nothing was."""
        return self.found / max(self.found + self.alarms, 1)

    @property
    def recall(self) -> float:
        """Of the defects, the share that was found; 0 if there is none."""
        return self.found / max(self.found + self.missed, 1)

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall; 0 if there is no defect and no alarm."""
        return 2 * self.found / max(2 * self.found + self.missed + self.alarms, 1)

    def cost(self, miss_cost: float) -> float:
        """Of 1,000 images, if a false alarm costs 1 and a missed defect ``miss_cost``."""
        return 1000 * (miss_cost * self.missed + self.alarms) / self.images

    def __repr__(self) -> str:
        return (
            f"recall {self.recall:.1%} ({self.missed} of {self.found + self.missed} missed), precision "
            f"{self.precision:.1%} ({self.alarms} false alarms), F1 {self.f1:.1%}, accuracy {self.accuracy:.1%}"
        )


def detect(probabilities: torch.Tensor, is_defect: torch.Tensor, threshold: float = 0.5) -> Detection:
    """Call every image defective whose probability is at least ``threshold``, and count.

    Args:
        probabilities: of the defect, float N.
        is_defect: the truth, bool N.
        threshold: 0…1; 0 calls everything defective.

    Raises:
        ValueError: the two do not hold as many images, or none.

    Example:
        >>> detect(torch.tensor([0.9, 0.4, 0.6]), torch.tensor([True, True, False]))
        recall 50.0% (1 of 2 missed), precision 50.0% (1 false alarms), F1 50.0%, accuracy 33.3%
    """
    _check_pair(probabilities, is_defect)
    called = probabilities >= threshold
    counts = (called & is_defect, ~called & is_defect, called & ~is_defect, ~called & ~is_defect)
    return Detection(*(int(each.sum()) for each in counts))


def best_threshold(probabilities: torch.Tensor, is_defect: torch.Tensor, miss_cost: float | None = None) -> float:
    """The threshold with the lowest cost, or without ``miss_cost`` the one with the highest F1.

    It lies midway between two probabilities, as far from both as can be; of equally good ones the highest is taken,
    which raises the fewest alarms.

    Args:
        probabilities: of the defect, float N, on images of ``val``: a threshold is a choice.
        is_defect: the truth, bool N.
        miss_cost: of a missed defect, if a false alarm costs 1.

    Raises:
        ValueError: the two do not hold as many images, or none; or ``miss_cost`` is negative.
    """
    _check_pair(probabilities, is_defect)
    if miss_cost is not None and not miss_cost >= 0:
        raise ValueError(f"miss_cost={miss_cost!r}: expected 0 or more, in false alarms, such as 20")
    ordered = np.unique(np.asarray(probabilities, dtype=np.float64))[::-1]
    ends = np.concatenate([[max(1.0, ordered[0]) + 1e-6], (ordered[:-1] + ordered[1:]) / 2, [0.0]])
    # Of the k highest different probabilities, how many images and how many defects: all thresholds at once.
    places = len(ordered) - 1 - np.searchsorted(ordered[::-1], np.asarray(probabilities, dtype=np.float64))
    defects = np.bincount(places, weights=np.asarray(is_defect, dtype=float), minlength=len(ordered))
    found = np.concatenate([[0], defects.cumsum()])
    alarms = np.concatenate([[0], np.bincount(places, minlength=len(ordered)).cumsum()]) - found
    missed = found[-1] - found
    if miss_cost is None:
        return float(ends[np.argmax(2 * found / np.maximum(2 * found + missed + alarms, 1))])
    return float(ends[np.argmin(miss_cost * missed + alarms)])


def f1_interval(called: torch.Tensor, is_defect: torch.Tensor, seed: int = 0) -> tuple[float, float]:
    """95 % interval of F1: what other images of the same kind could give, by the bootstrap (Efron, 1979).

    Args:
        called: what was called defective, bool N.
        is_defect: the truth, bool N.
        seed: of the resampling.
    """
    return _percentiles(_resampled_f1([called], is_defect, seed)[0])


def f1_gain_interval(
    first: torch.Tensor, second: torch.Tensor, is_defect: torch.Tensor, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of F1 of ``second`` minus F1 of ``first``, both bool N, on the same images.

    An image that is hard for one is hard for the other. Resampling both together leaves that out of the doubt.
    """
    f1 = _resampled_f1([first, second], is_defect, seed)
    return _percentiles(f1[1] - f1[0])


def weighted_loss(data: ImageData) -> Loss:
    """A cross-entropy for ``fit``, in which each class counts alike, however rare.

    An image of class c counts N / (C · N_c) times, for N training images, N_c of them of this class, and C classes.
    """
    counts = torch.bincount(data.train.labels, minlength=len(data.class_names))
    weights = len(data.train) / (len(counts) * counts.clamp(min=1))

    def loss(scores: torch.Tensor, labels: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(scores, labels, weights)

    loss.settings = {"loss": "weighted cross-entropy", "weights": weights.tolist()}
    return loss


def _resampled_f1(calls: list[torch.Tensor], is_defect: torch.Tensor, seed: int) -> np.ndarray:
    """F1 of each row of ``calls``, each in all resamples: array len(calls)×RESAMPLES.

    To draw N images with replacement is to draw how often each combination of truth and calls occurs.
    """
    for called in calls:
        _check_pair(called, is_defect)
    rows = np.stack([np.asarray(each, dtype=bool) for each in (is_defect, *calls)], axis=1)
    kinds, counts = np.unique(rows, axis=0, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(rows), counts / len(rows), RESAMPLES)
    defect = kinds[:, 0]
    f1 = []
    for column in range(1, kinds.shape[1]):
        found, wrong = draws @ (kinds[:, column] & defect), draws @ (kinds[:, column] ^ defect)
        f1.append(2 * found / np.maximum(2 * found + wrong, 1))
    return np.stack(f1)


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5]).tolist()
    return low, high


def _check_pair(first: torch.Tensor, is_defect: torch.Tensor) -> None:
    if len(first) != len(is_defect) or len(first) == 0:
        raise ValueError(f"{len(first)} answers for {len(is_defect)} images: expected as many, and at least one")
