"""A seal on the test images: whoever looks before the end is told, and the report says how often.

A number stays honest only as long as nothing was chosen by it. The seal forbids nothing; it counts. Leaves out: those
who go round it on purpose.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace

import torch

from yolo_slim_lessons.data import ImageData, Split


class TestLookWarning(UserWarning):
    """Somebody looked at test images before the end."""

    __test__ = False  # pytest would take the name for a test


class SealedSplit(Split):
    """A split that counts how often its images are read, and warns each time.

    Its length and its labels are free. Parts of it, by an index or by ``take``, carry the same seal and count together.

    Attributes:
        looks: how often images were read before ``open_test``.
        openings: how often ``open_test`` was called.
    """

    def __init__(self, split: Split, seal: SealedSplit | None = None):
        # Split is frozen and its fields are properties here, so plain assignment is not to be had.
        object.__setattr__(self, "_split", split)
        object.__setattr__(self, "_counts", {"looks": 0, "openings": 0} if seal is None else seal._counts)

    @property
    def images(self) -> torch.Tensor:
        self._counts["looks"] += 1
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
    def looks(self) -> int:
        return self._counts["looks"]

    @property
    def openings(self) -> int:
        return self._counts["openings"]

    def __getitem__(self, indices) -> SealedSplit:
        return SealedSplit(self._split[indices], self)

    def batches(self, batch_size: int = 256, **options) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return Split(self.images, self.labels).batches(batch_size, **options)

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
    return data if isinstance(data.test, SealedSplit) else replace(data, test=SealedSplit(data.test))


def open_test(data: ImageData) -> ImageData:
    """The same data with test images that may be looked at: for the report, when all is chosen.

    Raises:
        TypeError: ``data`` is not sealed.
    """
    sealed = data.test
    if not isinstance(sealed, SealedSplit):
        raise TypeError(f"data.test is a {type(sealed).__name__}: expected data from seal_test")
    sealed._counts["openings"] += 1
    if sealed.openings > 1:
        warnings.warn(
            f"opening {sealed.openings} of the test images: what was changed since the first may suit them too well",
            TestLookWarning,
            stacklevel=2,
        )
    return replace(data, test=sealed._split)
