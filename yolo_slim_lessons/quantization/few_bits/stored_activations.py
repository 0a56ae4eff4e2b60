"""What a layer puts out for all calibration images, kept where it does not fill the memory.

Repairs go through a network step by step, and each needs what the step before made of every image: gigabytes, for a
large network at 224 pixels. Beyond a limit the numbers go into a temporary file that is mapped into memory, whose pages
the system takes back when it needs them. Leaves out: keeping anything for another call.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import nn

from yolo_slim_lessons.data import Split
from yolo_slim_lessons.quantization.observation import image_batches

IN_MEMORY = 64_000_000  # bytes of one result that stay in memory
PIXELS_AT_ONCE = 128 * 64**2  # 128 small images, or fewer large ones


class StoredActivations:
    """Numbers of any shape for ``count`` images, written in order, read in any; iteration gives ``batch_size`` each."""

    def __init__(self, count: int, batch_size: int):
        self.count, self.batch_size = count, batch_size
        self.numbers: torch.Tensor | None = None
        self.filled = 0

    @classmethod
    def of(cls, batches: Iterable[torch.Tensor], count: int, batch_size: int) -> StoredActivations:
        """The numbers of all ``batches``, each of ``batch_size`` images but the last."""
        stored = cls(count, batch_size)
        for batch in batches:
            stored.append(batch)
        return stored

    def __len__(self) -> int:
        return self.count

    def append(self, batch: torch.Tensor) -> None:
        """The numbers of the next images. Channels lie innermost in memory if they do so in the first batch."""
        if self.numbers is None:
            self.channels_last = batch.dim() == 4 and batch.is_contiguous(memory_format=torch.channels_last)
            self.device = batch.device
            shape = self._as_kept(batch).shape[1:]
            self.in_file = self.count * shape.numel() * batch.dtype.itemsize > IN_MEMORY
            make = _mapped if self.in_file else torch.empty
            self.numbers = make((self.count, *shape), dtype=batch.dtype)
        self.numbers[self.filled : self.filled + len(batch)] = self._as_kept(batch)
        self.filled += len(batch)

    def __getitem__(self, images: torch.Tensor | slice) -> torch.Tensor:
        """The numbers of these images, on the device they came from."""
        chosen = self.numbers[images].to(self.device)
        return chosen.permute(0, 3, 1, 2) if self.channels_last else chosen

    def __iter__(self) -> Iterator[torch.Tensor]:
        for start in range(0, self.count, self.batch_size):
            yield self[slice(start, start + self.batch_size)]

    def _as_kept(self, batch: torch.Tensor) -> torch.Tensor:
        return batch.detach().permute(0, 2, 3, 1) if self.channels_last else batch.detach()


def stored_images(calibration: Split | torch.Tensor, model: nn.Module) -> StoredActivations:
    """The images as ``model`` reads them; so many at a time that computing with them needs little memory."""
    first = next(image_batches(calibration, 1, model))
    batch_size = max(1, min(128, PIXELS_AT_ONCE // first[0, 0].numel()))
    return StoredActivations.of(image_batches(calibration, batch_size, model), len(calibration), batch_size)


def _mapped(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor whose numbers are in a temporary file."""
    numpy_type = torch.empty(0, dtype=dtype).numpy().dtype
    with tempfile.TemporaryFile(prefix="activations-") as file:  # it goes when nobody maps it any more
        return torch.from_numpy(np.memmap(file, numpy_type, "w+", shape=tuple(shape)))
