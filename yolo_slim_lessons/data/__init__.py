"""Real images as tensors: Fashion-MNIST by name, any image folder by path.

Images stay ``uint8`` until a batch needs floats: a batch of floats is small, a data set of floats is not.
Used from lesson 00 on. Leaves out: augmentation (``training.py``) and videos, boxes or masks of any kind.
"""

from __future__ import annotations

from pathlib import Path

from yolo_slim_lessons.data.fashion_mnist import FASHION_MNIST_CLASSES, read_fashion_mnist
from yolo_slim_lessons.data.folder_reading import read_image_folder
from yolo_slim_lessons.data.folder_writing import write_image_folder
from yolo_slim_lessons.data.splits import ImageData, Split, as_floats, split_off
from yolo_slim_lessons.files import DATA_DIR, verify_files

__all__ = [
    "FASHION_MNIST_CLASSES",
    "ImageData",
    "Split",
    "as_floats",
    "load_images",
    "write_image_folder",
]


def load_images(source: str | Path = "fashion-mnist", image_size: int = 64, seed: int = 0) -> ImageData:
    """Load a data set into memory.

    Args:
        source: ``"fashion-mnist"``, or the path of a folder with ``train/`` and optionally ``val/`` and ``test/``,
            each with one folder of images a class. A missing ``val`` or ``test`` is split off ``train``,
            every class in proportion. Links are followed, so images may lie on another disk. Hidden files and
            folders and files that are no images are skipped.
        image_size: pixels a side, a multiple of 32 (the network halves the picture five times). The shorter edge
            is resized to it and the centre cut out, as Ultralytics does.
        seed: of the split; the same seed gives the same images.

    Raises:
        ValueError: ``image_size`` is not a multiple of 32, there are fewer than two classes, a class is empty or too
            small to be split, an image is broken or in no class folder, a link is broken or leads in a circle, or a
            file of Fashion-MNIST is altered (all named).
        FileNotFoundError: the folder, its ``train/`` or a file of Fashion-MNIST is missing (named).
        TypeError: ``source`` is neither a name nor a path.

    Example:
        >>> load_images("fashion-mnist", image_size=32)
        ImageData(train 55,000, val 5,000, test 10,000 images; 10 classes; 32 px)
    """
    if not isinstance(source, str | Path):
        raise TypeError(f"source={source!r}: expected 'fashion-mnist' or the path of a folder")
    if not isinstance(image_size, int) or image_size < 32 or image_size % 32:
        raise ValueError(f"image_size={image_size!r}: expected a multiple of 32, such as 32, 64, 96 or 224")
    if source == "fashion-mnist":
        verify_files(DATA_DIR / "fashion-mnist")
        splits = read_fashion_mnist(DATA_DIR / "fashion-mnist", image_size)
        class_names = FASHION_MNIST_CLASSES
    else:
        splits, class_names = read_image_folder(Path(source), image_size)
    for name in ("val", "test"):
        if name not in splits:
            splits["train"], splits[name] = split_off(splits["train"], name, class_names, seed)
    return ImageData(splits["train"], splits["val"], splits["test"], class_names, image_size)
