"""Fashion-MNIST (Xiao and colleagues, 2017): 70,000 grey pictures of clothes, from the original IDX files.

Leaves out: the split of the 60,000 into ``train`` and ``val``, which is the same for every data set.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.transforms import v2

from yolo_slim_lessons.data.splits import Split

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


def read_fashion_mnist(folder: Path, image_size: int) -> dict[str, Split]:
    """``train``, 60,000 images, and ``test``, 10,000, resized to ``image_size`` pixels a side."""
    return {name: _split(folder, prefix, image_size) for name, prefix in (("train", "train"), ("test", "t10k"))}


def _split(folder: Path, prefix: str, image_size: int) -> Split:
    images = read_image_file(str(folder / f"{prefix}-images-idx3-ubyte")).unsqueeze(1)
    # Resized in parts: torchvision needs some working memory for every image of a call.
    images = torch.cat([v2.functional.resize(part, [image_size] * 2) for part in images.split(2000)])
    return Split(images.expand(-1, 3, -1, -1), read_label_file(str(folder / f"{prefix}-labels-idx1-ubyte")))
