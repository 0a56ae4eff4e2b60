"""Where the images of a split are: a tensor in memory, or rows of files that are mapped into memory.

Only this room knows which of the two it is. Functions here do for both what a tensor does for itself: choose, read,
join, compare. Leaves out: how the files come to be (``unread.py``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from yolo_slim_lessons.files import fingerprint

COMPARED_AT_ONCE = 256  # images


class PixelFile:
    """A .npy file of uint8 images N×C×H×W, of which the system loads what is read; ``key`` stands for its contents."""

    def __init__(self, path: Path, key: str):
        self.path, self.key = path, key
        # Read only: a writable mapping counts as memory that is promised, even if nobody ever writes.
        self.pixels = np.load(path, mmap_mode="r").view(np.ndarray)

    def __reduce__(self):
        return PixelFile, (self.path, self.key)  # another process maps the file itself


class PixelTensor:
    """A tensor as a part of images that lie on disk otherwise."""

    def __init__(self, images: torch.Tensor):
        self.pixels, self.key = _stored_channels(images).numpy(), fingerprint(_stored_channels(images))


class MappedImages:
    """uint8 images N×C×H×W on disk; an index reads what it asks for, as a tensor.

    Made by ``load_images`` for more images than memory should hold. Grey ones have one channel on disk, shown
    three times.

    Attributes:
        shape: as of a tensor.
        dtype: ``torch.uint8``.
    """

    dtype = torch.uint8

    def __init__(self, parts: list[PixelFile | PixelTensor], rows: torch.Tensor | None = None):
        """``rows`` are places in the parts, counted through from the first part's first image to the last one's."""
        self.parts = parts
        self.starts = np.cumsum([0, *(len(part.pixels) for part in parts)])
        self.rows = torch.arange(int(self.starts[-1])) if rows is None else rows

    @property
    def shape(self) -> torch.Size:
        return torch.Size([len(self.rows), 3, *self.parts[0].pixels.shape[2:]])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index) -> torch.Tensor:
        first, *others = index if isinstance(index, tuple) else (index,)
        if isinstance(first, int):
            return self.read(torch.tensor([range(len(self))[first]]))[(0, *others)]
        return self.read(first)[(slice(None), *others)]

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[place] for place in range(len(self)))

    def __repr__(self) -> str:
        count, channels, height, width = self.shape
        return f"MappedImages({count:,} images of {channels}×{height}×{width} on disk)"

    def read(self, where) -> torch.Tensor:
        """The images at ``where``, an index tensor, a mask or a slice, in memory: uint8, n×3×H×W."""
        rows = self.rows[where].numpy()
        if len(self.parts) == 1:
            return torch.from_numpy(self.parts[0].pixels[rows]).expand(-1, 3, -1, -1)
        part_of_row = np.searchsorted(self.starts, rows, side="right") - 1
        pixels = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for number in np.unique(part_of_row):
            chosen = part_of_row == number
            pixels[chosen] = self.parts[number].pixels[rows[chosen] - self.starts[number]]  # one channel fills three
        return torch.from_numpy(pixels)

    def select(self, where) -> MappedImages:
        """The images at ``where``, still on disk."""
        return MappedImages(self.parts, self.rows[where])

    def fingerprint(self) -> str:
        """The same characters for the same rows of the same files, of which nothing is read."""
        keys = " ".join(part.key for part in self.parts)
        return hashlib.sha256(f"{keys} {fingerprint(self.rows)}".encode()).hexdigest()[:16]


Images = torch.Tensor | MappedImages


def select(images: Images, where) -> Images:
    """The images at ``where``, an index tensor, a mask or a slice, where they were: in memory or on disk."""
    if isinstance(images, MappedImages):
        return images.select(where)
    if _is_grey(images):  # index the one channel, then repeat it again without a copy
        return images[:, :1][where].expand(-1, images.shape[1], -1, -1)
    return images[where]


def read(images: Images, where) -> torch.Tensor:
    """The images at ``where`` in memory: uint8, n×C×H×W."""
    return images.read(where) if isinstance(images, MappedImages) else select(images, where)


def join(first: Images, second: Images) -> Images:
    """All images of the first, then those of the second; on disk stays on disk, and grey is still stored once."""
    if isinstance(first, MappedImages) or isinstance(second, MappedImages):
        first, second = (
            each if isinstance(each, MappedImages) else MappedImages([PixelTensor(each)]) for each in (first, second)
        )
        return MappedImages(first.parts + second.parts, torch.cat([first.rows, second.rows + int(first.starts[-1])]))
    if _is_grey(first) and _is_grey(second):
        return torch.cat([first[:, :1], second[:, :1]]).expand(-1, first.shape[1], -1, -1)
    return torch.cat([first, second])


def same(first: Images, second: Images) -> bool:
    """Whether both are the same images in the same order."""
    if first is second:
        return True
    if first.shape != second.shape:
        return False
    if isinstance(first, MappedImages) and isinstance(second, MappedImages):
        return first.fingerprint() == second.fingerprint()
    pieces = (slice(start, start + COMPARED_AT_ONCE) for start in range(0, len(first), COMPARED_AT_ONCE))
    return all(read(first, piece).equal(read(second, piece)) for piece in pieces)


def images_fingerprint(images: Images) -> str:
    """The same characters for the same images; those on disk are known by their files and not read."""
    return images.fingerprint() if isinstance(images, MappedImages) else fingerprint(_stored_channels(images))


def _is_grey(images: torch.Tensor) -> bool:
    """Whether one channel is shown several times."""
    return images.stride(1) == 0


def _stored_channels(images: torch.Tensor) -> torch.Tensor:
    return images[:, :1] if _is_grey(images) else images
