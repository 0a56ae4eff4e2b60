"""The parts of a data set: learn from ``train``, choose on ``val``, report on ``test``.

Leaves out: where the images come from, and augmentation (``training``).
"""

from __future__ import annotations

import hashlib
import itertools
import numbers
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn.model_selection import train_test_split

from yolo_slim_lessons.data.stored import Images, images_fingerprint, join, read, select
from yolo_slim_lessons.files import fingerprint

VAL_FRACTION = 1 / 12  # 5,000 of Fashion-MNIST's 60,000 training images


@dataclass(frozen=True)
class Split:
    """Images with their labels. For computing, they leave by ``batches``; ``images`` is for looking at some.

    Attributes:
        images: uint8, N×3×H×W, RGB (grey images repeat their one channel without copying it): a tensor in memory, or
            ``MappedImages`` on disk, of which an index reads what it asks for.
        labels: int64 tensor, N; -1 where there is none, which ``distill`` understands.
        class_names: one name per label, by which labels and a model's classes are joined (``agreement``); ``None`` if
            the labels are the model's own.
    """

    images: Images
    labels: torch.Tensor
    class_names: tuple[str, ...] | None = None

    def __post_init__(self):
        check_pixels(self.images)
        if not isinstance(self.labels, torch.Tensor) or self.labels.dtype != torch.int64 or self.labels.dim() != 1:
            raise TypeError(f"labels={self.labels!r:.80}: expected an int64 tensor, such as torch.tensor([0, 1])")
        if len(self.labels) != len(self.images):
            raise ValueError(f"labels has {len(self.labels)} numbers for {len(self.images)} images: expected one each")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def height_width(self) -> tuple[int, int]:
        """Of each image, in pixels."""
        return tuple(self.images.shape[-2:])

    def __getitem__(self, indices) -> Split:
        """The images at ``indices`` (a slice, a mask or an index tensor) as a new split.

        Raises:
            TypeError: ``indices`` is one number; ``split.images[7]`` is one image.
        """
        if isinstance(indices, numbers.Integral):
            raise TypeError(f"indices={indices}: expected a slice, a mask or an index tensor, such as [{indices}:]")
        return Split(select(self.images, indices), self.labels[indices], self.class_names)

    def take(self, n: int) -> Split:
        """The same ``n`` images at every call, each class in proportion; ``take(100)`` is part of ``take(200)``.

        Raises:
            ValueError: if ``n`` is not between 1 and ``len(self)``.
        """
        return self[self.places_of(n)]

    def places_of(self, n: int) -> torch.Tensor:
        """Where the images of ``take(n)`` are: int64, n, rising; errors as of ``take``."""
        if not isinstance(n, numbers.Integral) or not 1 <= n <= len(self):
            raise ValueError(f"n={n!r}: expected 1 to {len(self)}, the number of images in this split")
        place_in_class = torch.empty(len(self))
        for label in self.labels.unique():
            members = (self.labels == label).nonzero().squeeze(1)
            place_in_class[members] = (torch.arange(len(members)) + 0.5) / len(members)
        # Every class is spread evenly over 0…1, so the first n places hold each class in proportion.
        return place_in_class.argsort(stable=True)[:n].sort().values

    def batches(
        self,
        batch_size: int = 256,
        *,
        order: torch.Tensor | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        channels: int = 3,
        merge_single: bool = False,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Pairs of (images, labels), ready for computing; the last batch may be smaller.

        ``split.batches(128, **input_format(model))`` gives what ``model`` reads (``models.input_format``).

        Args:
            batch_size: images at a time.
            order: index tensor of the images to give, one after the other; ``None`` gives all as they are stored.
            device: of images and labels; ``None`` leaves them where they are, in the machine's memory.
            dtype: of the images: a float type for 0…1, or ``torch.uint8`` for 0…255, which are not to be changed.
            channels: 3, or 1 for networks that read grey pictures.
            merge_single: let a single image left over join the batch before it: BatchNorm cannot learn from one.

        Raises:
            ValueError: ``batch_size`` is not a positive integer, or images in colour are asked for one channel.

        Example:
            >>> split = Split(torch.zeros(5, 3, 32, 32, dtype=torch.uint8), torch.arange(5))
            >>> [labels.tolist() for _, labels in split.batches(2, merge_single=True)]
            [[0, 1], [2, 3, 4]]
        """
        for where in batch_places(len(self), batch_size, order, merge_single):
            images = formatted(read(self.images, where), device, dtype, channels)
            yield images, self.labels[where].to(images.device)

    def relabelled(self, labels: torch.Tensor, class_names: tuple[str, ...] | None) -> Split:
        """The same images with other labels, int64 N."""
        return Split(self.images, labels, class_names)

    def joined(self, other: Split) -> Split:
        """The images of this split, then those of the other, which has the same classes, height and width."""
        return Split(join(self.images, other.images), torch.cat([self.labels, other.labels]), self.class_names)

    def fingerprint(self) -> str:
        """The same 16 characters for the same images and labels; images on disk are known by their files."""
        both = f"{images_fingerprint(self.images)} {fingerprint(self.labels)}"
        return hashlib.sha256(both.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ImageData:
    """A data set in three parts: learn from ``train``, choose on ``val``, report on ``test``.

    Attributes:
        train, val, test: three ``Split`` that share no image; they are told the names of the classes.
        class_names: one name per label, in the order of the labels.
        image_size: height and width in pixels.
    """

    train: Split
    val: Split
    test: Split
    class_names: tuple[str, ...]
    image_size: int

    def __post_init__(self):
        for name in ("train", "val", "test"):
            split = getattr(self, name)
            if type(split) is Split and split.class_names is None:  # and not one that is sealed
                object.__setattr__(self, name, replace(split, class_names=tuple(self.class_names)))

    def take(self, train: int, val: int | None = None) -> ImageData:
        """The same data with fewer images: a stratified part of ``train`` and, if asked, of ``val``."""
        smaller_val = self.val if val is None else self.val.take(val)
        return ImageData(self.train.take(train), smaller_val, self.test, self.class_names, self.image_size)

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {len(getattr(self, name)):,}" for name in ("train", "val", "test"))
        return f"ImageData({parts} images; {len(self.class_names)} classes; {self.image_size} px)"


def check_pixels(images: object, name: str = "images") -> None:
    """Raise unless ``images``, the value of argument ``name``, are uint8 N×C×H×W of 3 channels, or of 1.

    Raises:
        TypeError: no tensor, or not of bytes.
        ValueError: another shape.
    """
    if not isinstance(images, Images):
        way = ": expected a tensor, such as torch.from_numpy(array)" if isinstance(images, np.ndarray) else ""
        raise TypeError(f"{name} is a {type(images).__name__}{way or ': expected a uint8 tensor N×3×H×W'}")
    shape = tuple(images.shape)
    if images.dtype != torch.uint8:
        raise TypeError(
            f"{name} has numbers of {images.dtype}: expected bytes 0…255, which (255 * {name}).round().to(torch.uint8) "
            "makes of floats 0…1"
        )
    if len(shape) == 3:
        raise ValueError(f"{name} has shape {shape}: expected N×3×H×W; {name}[None] is a batch of one image")
    if len(shape) == 4 and shape[1] not in (1, 3) and shape[3] in (1, 3):
        raise ValueError(f"{name} has shape {shape}, channels last: expected N×3×H×W; use {name}.permute(0, 3, 1, 2)")
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise ValueError(f"{name} has shape {shape}: expected N×3×H×W")


def batch_places(
    count: int, batch_size: int, order: torch.Tensor | None = None, merge_single: bool = False
) -> Iterator[slice | torch.Tensor]:
    """Which of ``count`` images each batch holds; arguments and errors as for ``Split.batches``."""
    if not isinstance(batch_size, numbers.Integral) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r}: expected a positive integer")
    count = count if order is None else len(order)
    cuts = range(batch_size, count - 1 if merge_single else count, batch_size)
    for start, stop in itertools.pairwise([0, *cuts, count]):
        yield slice(start, stop) if order is None else order[start:stop]


def formatted(
    images: torch.Tensor, device: torch.device | str | None, dtype: torch.dtype, channels: int
) -> torch.Tensor:
    """uint8 images as ``Split.batches`` gives them."""
    if channels != images.shape[1]:
        images = _as_channels(images, channels)
    images = images if device is None else images.to(device)
    return images if dtype == torch.uint8 else as_floats(images, dtype)


def as_floats(images: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """uint8 N×C×H×W in 0…255 to floats in 0…1, channels last in memory, which convolutions on a CPU prefer."""
    return images.to(dtype, memory_format=torch.channels_last).div_(255)


def _as_channels(images: torch.Tensor, channels: int) -> torch.Tensor:
    if channels != 1:
        raise ValueError(f"the model reads {channels} channels, the images have {images.shape[1]}: they must agree")
    if not images[:, 1:].equal(images[:, :1].expand(-1, images.shape[1] - 1, -1, -1)):
        raise ValueError(
            "the model reads 1 channel, and the images are in colour: make them grey first, or take a "
            "model of 3 channels"
        )
    return images[:, :1]


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
