"""Ask the teacher once: its logits for a fixed set of augmented versions of every training image.

The versions themselves are not stored. A seed for each makes it again, pixel for pixel, so that a cache takes 40 bytes
an image and version with ten classes. Leaves out: feature maps, which would take a thousand times that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from tqdm.auto import tqdm
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.agreement import check_image_size, check_split
from yolo_slim_lessons.arguments import check_choice, check_positive_integer
from yolo_slim_lessons.data import Split
from yolo_slim_lessons.data.splits import batch_places, formatted
from yolo_slim_lessons.data.stored import Images, read
from yolo_slim_lessons.models import as_classifier, copy_model, input_format, logits
from yolo_slim_lessons.training.augmentation import AUGMENTATIONS


@dataclass(frozen=True)
class TeacherCache:
    """What a teacher says to versions of images. Made by ``cache_teacher``, used by ``distill(cache=…)``.

    Attributes:
        images: the unchanged images, as in a ``Split``: uint8, N×3×H×W.
        scores: the teacher's logits, float32, versions×N×classes.
        seeds: one for each version of each image, int64, versions×N; ``None`` if images are not augmented.
        augment: how they are, if they are: as for ``cache_teacher``.
    """

    images: Images
    scores: torch.Tensor
    seeds: torch.Tensor | None
    augment: bool | str = True

    def version(self, indices: torch.Tensor, versions: torch.Tensor) -> torch.Tensor:
        """The images at ``indices``, each in the version of that number: uint8, len(indices)×3×H×W."""
        images = read(self.images, indices)
        if self.seeds is None:
            return images
        seeds, augment = self.seeds[versions, indices].tolist(), AUGMENTATIONS[self.augment]
        made = []
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers go on as if nothing had been
            for image, seed in zip(images, seeds, strict=True):
                torch.default_generator.manual_seed(seed)
                made.append(augment(image.unsqueeze(0)))
        return torch.cat(made)


@torch.no_grad()
def cache_teacher(
    teacher: ClassificationModel,
    split: Split,
    versions: int = 4,
    *,
    augment: bool | str = True,
    seed: int = 0,
    batch_size: int = 256,
    progress: bool = True,
) -> TeacherCache:
    """Let ``teacher`` look at ``versions`` augmented versions of every image of ``split``, once.

    One cache serves any number of students, seeds, temperatures and alphas. Few versions mean less variety than
    ``fit``'s endless augmentation; eight are hard to tell from it.

    Args:
        teacher: run in eval mode, as a copy.
        split: the training images; labels are not looked at.
        versions: of each image. Without augmentation there is one.
        augment: how, as for ``fit``.
        seed: of the augmentation.
        batch_size: images at a time.
        progress: show a progress bar.

    Raises:
        ValueError: ``versions`` is no positive integer, or more than one without augmentation.
    """
    teacher = as_classifier(teacher, "teacher")
    check_split(split)
    check_image_size(teacher, split.height_width)
    check_positive_integer("versions", versions)
    check_choice("augment", augment, tuple(AUGMENTATIONS))
    if not augment and versions > 1:
        raise ValueError(f"versions={versions!r}, augment=False: unchanged images have one version only")
    teacher = copy_model(teacher).eval().float().to(memory_format=torch.channels_last)
    random = torch.Generator().manual_seed(seed)
    seeds = torch.randint(2**32, (versions, len(split)), generator=random) if augment else None
    scores = torch.empty(versions, len(split), len(teacher.names))
    cache = TeacherCache(split.images, scores, seeds, augment)
    with tqdm(total=versions * len(split), desc="ask teacher", delay=2, leave=False, disable=not progress) as bar:
        for version in range(versions):
            for indices in torch.arange(len(split)).split(batch_size):
                images = formatted(cache.version(indices, torch.full_like(indices, version)), **input_format(teacher))
                scores[version, indices] = logits(teacher, images).to(scores)
                bar.update(len(indices))
    return cache


class TaughtLabels(NamedTuple):
    """What ``CachedSplit`` gives in place of labels: these, and the teacher's logits for the same images, N×classes."""

    labels: torch.Tensor
    answers: torch.Tensor


class CachedSplit:
    """What ``fit`` sees of a split and its cache: at each look one version of an image, drawn at random.

    Its batches hold ``TaughtLabels``, which ``fit`` hands to the loss as it does with labels.
    """

    def __init__(self, labels: torch.Tensor, cache: TeacherCache):
        self.labels, self.cache = labels, cache

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def height_width(self) -> tuple[int, int]:
        return tuple(self.cache.images.shape[-2:])

    def batches(
        self, batch_size: int = 256, order: torch.Tensor | None = None, merge_single: bool = False, **what
    ) -> Iterator[tuple[torch.Tensor, TaughtLabels]]:
        """Pairs of (images, labels and answers); arguments as for ``Split.batches``."""
        order = torch.arange(len(self)) if order is None else order
        count = len(self.cache.scores)
        for indices in batch_places(len(self), batch_size, order, merge_single):
            versions = torch.randint(count, indices.shape) if count > 1 else torch.zeros_like(indices)
            images = formatted(self.cache.version(indices, versions), **what)
            answers = self.cache.scores[versions, indices]
            yield images, TaughtLabels(self.labels[indices].to(images.device), answers.to(images.device))

    def fingerprint(self) -> str:
        """Of images and labels, as of a ``Split``; the loss knows the cache."""
        return Split(self.cache.images, self.labels).fingerprint()
