"""Fashion-MNIST (Xiao and colleagues, 2017): 70,000 grey pictures of clothes, from the original IDX files.

Leaves out: the split of the 60,000 into ``train`` and ``val``, which is the same for every data set.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torchvision
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.transforms import v2

from yolo_slim_lessons.data.unread import Part, Unread

FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def read_fashion_mnist(folder: Path, image_size: int) -> dict[str, Unread]:
    """``train``, 60,000 images, and ``test``, 10,000, to be resized to ``image_size`` pixels a side."""
    return {name: _split(name, folder, prefix, image_size) for name, prefix in (("train", "train"), ("test", "t10k"))}


def _split(name: str, folder: Path, prefix: str, image_size: int) -> Unread:
    pixels = folder / f"{prefix}-images-idx3-ubyte"
    labels = read_label_file(str(folder / f"{prefix}-labels-idx1-ubyte"))

    def parts() -> Iterator[Part]:
        # Resized in parts: torchvision needs some working memory for every image of a call.
        for part in read_image_file(str(pixels)).unsqueeze(1).split(2000):
            yield Part(v2.functional.resize(part, [image_size] * 2).numpy())

    return Unread(
        name=name,
        labels=labels,
        shape=(len(labels), 1, image_size, image_size),
        parts=parts,
        place=f"{pixels.resolve()} {image_size}",
        state=f"{pixels.stat().st_size} {pixels.stat().st_mtime_ns} torchvision {torchvision.__version__}",
    )
