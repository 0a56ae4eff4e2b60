"""The parts of a data set: learn from ``train``, choose on ``val``, report on ``test``.

Leaves out: where the images come from, and augmentation (``training.py``).
"""

from __future__ import annotations

import numbers
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.model_selection import train_test_split

VAL_FRACTION = 1 / 12  # 5,000 of Fashion-MNIST's 60,000 training images


@dataclass(frozen=True)
class Split:
    """Images with their labels.

    Attributes:
        images: uint8 tensor, N×3×H×W, RGB (grey images repeat their one channel without copying it).
        labels: int64 tensor, N; -1 where there is none, which ``distill`` understands.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices) -> Split:
        """The images at ``indices`` (a slice, a mask or an index tensor) as a new split.

        Raises:
            TypeError: ``indices`` is one number; ``split.images[7]`` is one image.
        """
        if isinstance(indices, numbers.Integral):
            raise TypeError(f"indices={indices}: expected a slice, a mask or an index tensor, such as [{indices}:]")
        if self.images.stride(1) == 0:  # grey: index the one channel, then repeat it again without a copy
            return Split(self.images[:, :1][indices].expand(-1, 3, -1, -1), self.labels[indices])
        return Split(self.images[indices], self.labels[indices])

    def take(self, n: int) -> Split:
        """The same ``n`` images at every call, each class in proportion; ``take(100)`` is part of ``take(200)``.

        Raises:
            ValueError: if ``n`` is not between 1 and ``len(self)``.
        """
        if not isinstance(n, numbers.Integral) or not 1 <= n <= len(self):
            raise ValueError(f"n={n!r}: expected 1 to {len(self)}, the number of images in this split")
        place_in_class = torch.empty(len(self))
        for label in self.labels.unique():
            members = (self.labels == label).nonzero().squeeze(1)
            place_in_class[members] = (torch.arange(len(members)) + 0.5) / len(members)
        # Every class is spread evenly over 0…1, so the first n places hold each class in proportion.
        return self[place_in_class.argsort(stable=True)[:n].sort().values]

    def batches(self, batch_size: int = 256) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Pairs of (float images in 0…1, labels), in order; the last batch may be smaller.

        Raises:
            ValueError: ``batch_size`` is not a positive integer.
        """
        if not isinstance(batch_size, numbers.Integral) or batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r}: expected a positive integer")
        for images, labels in zip(self.images.split(batch_size), self.labels.split(batch_size), strict=True):
            yield as_floats(images), labels


@dataclass(frozen=True)
class ImageData:
    """A data set in three parts: learn from ``train``, choose on ``val``, report on ``test``.

    Attributes:
        train, val, test: three ``Split`` that share no image.
        class_names: one name per label, in the order of the labels.
        image_size: height and width in pixels.
    """

    train: Split
    val: Split
    test: Split
    class_names: tuple[str, ...]
    image_size: int

    def take(self, train: int, val: int | None = None) -> ImageData:
        """The same data with fewer images: a stratified part of ``train`` and, if asked, of ``val``."""
        smaller_val = self.val if val is None else self.val.take(val)
        return ImageData(self.train.take(train), smaller_val, self.test, self.class_names, self.image_size)

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {len(getattr(self, name)):,}" for name in ("train", "val", "test"))
        return f"ImageData({parts} images; {len(self.class_names)} classes; {self.image_size} px)"


def as_floats(images: torch.Tensor) -> torch.Tensor:
    """uint8 N×3×H×W in 0…255 to float32 in 0…1, channels last in memory, which convolutions on a CPU prefer."""
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255)


def split_off(train: Split, name: str, class_names: tuple[str, ...], seed: int) -> tuple[Split, Split]:
    """What is left of ``train``, and a twelfth of it as ``name``: every class in proportion, at least one image each.

    Raises:
        ValueError: a class has fewer than two images.
    """
    counts = train.labels.bincount(minlength=len(class_names))
    fewest = int(counts.argmin())
    if counts[fewest] < 2:
        raise ValueError(
            f"train/ has too few images to split {name}/ off it (class {class_names[fewest]!r} can give none of its "
            f"{int(counts[fewest])}): add images, or a {name}/ folder"
        )
    count = max(round(len(train) * VAL_FRACTION), len(class_names))
    kept, taken = train_test_split(
        np.arange(len(train)), test_size=count, stratify=train.labels.numpy(), random_state=seed
    )
    # A class of a few images may get no place among many others; without one it could not be measured.
    for label in range(len(class_names)):
        if label not in train.labels[taken]:
            moved = kept[train.labels[kept] == label][0]
            kept, taken = kept[kept != moved], np.append(taken, moved)
    return train[torch.from_numpy(np.sort(kept))], train[torch.from_numpy(np.sort(taken))]
