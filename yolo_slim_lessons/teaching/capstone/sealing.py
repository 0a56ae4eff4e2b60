"""A seal on the test images: whoever looks before the end is told, and the report says how often.

A number stays honest only as long as nothing was chosen by it. The seal forbids nothing; it counts. Leaves out: those
who go round it on purpose.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from yolo_slim_lessons.data import ImageData, Split


class TestLookWarning(UserWarning):
    """Somebody looked at test images before the end."""

    __test__ = False  # pytest would take the name for a test


@dataclass
class Seal:
    """What became of test images: how often they were read before the end, and how often they were opened."""

    looks: int = 0
    openings: int = 0


class SealedSplit(Split):
    """A split that notes on its ``seal`` how often its images are read, and warns each time.

    Its length and its labels are free. Parts of it, by an index or by ``take``, carry the same seal.
    """

    def __init__(self, split: Split, seal: Seal):
        vars(self).update(_split=split, seal=seal)  # Split's own fields are frozen, and properties here

    @property
    def images(self) -> torch.Tensor:
        self.seal.looks += 1
        warnings.warn(
            f"look {self.looks} at test images before the end. What you choose now, you choose by them as well, and "
            "what they say in the end will be too good. Choose by data.val; for the end there is capstone.open_test",
            TestLookWarning,
            stacklevel=2,
        )
        return self._split.images

    @property
    def labels(self) -> torch.Tensor:
        return self._split.labels

    @property
    def height_width(self) -> tuple[int, int]:
        return self._split.height_width

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self._split.class_names

    def relabelled(self, labels: torch.Tensor, class_names: tuple[str, ...] | None) -> SealedSplit:
        return SealedSplit(self._split.relabelled(labels, class_names), self.seal)

    @property
    def looks(self) -> int:
        return self.seal.looks

    @property
    def openings(self) -> int:
        return self.seal.openings

    def __getitem__(self, indices) -> SealedSplit:
        return SealedSplit(self._split[indices], self.seal)

    def batches(self, *sizes, **options) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return Split(self.images, self.labels).batches(*sizes, **options)  # all batches together are one look

    def __repr__(self) -> str:
        return f"SealedSplit({len(self):,} images, {self.looks} looks, opened {self.openings} times)"

    __eq__ = object.__eq__  # a comparison of fields would be a look
    __hash__ = object.__hash__


def seal_test(data: ImageData) -> ImageData:
    """The same data, with a seal on ``data.test``. Data that are sealed keep their seal.

    Example:
        >>> import yolo_slim_lessons as slim
        >>> sealed = seal_test(slim.load_images("fashion-mnist", 32))
        >>> sealed.test.looks
        0
    """
    return data if isinstance(data.test, SealedSplit) else replace(data, test=SealedSplit(data.test, Seal()))


def open_test(data: ImageData) -> ImageData:
    """The same data with test images that may be looked at: for the report, when all is chosen.

    Raises:
        TypeError: ``data`` is not sealed.
    """
    sealed = data.test
    if not isinstance(sealed, SealedSplit):
        raise TypeError(f"data.test is a {type(sealed).__name__}: expected data from seal_test")
    sealed.seal.openings += 1
    if sealed.openings > 1:
        warnings.warn(
            f"opening {sealed.openings} of the test images: what was changed since the first may suit them too well",
            TestLookWarning,
            stacklevel=2,
        )
    return replace(data, test=sealed._split)
