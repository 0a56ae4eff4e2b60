"""Real images as tensors: Fashion-MNIST by name, any image folder by path.

Images stay ``uint8`` until a batch needs floats: a batch of floats is small, a data set of floats is not. They lie in
memory, or on disk if they are many; either way ``Split.batches`` hands them out. Used from lesson 00 on. Leaves out:
augmentation (``training``) and videos, boxes or masks of any kind.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

from yolo_slim_lessons.data.fashion_mnist import FASHION_MNIST_CLASSES, read_fashion_mnist
from yolo_slim_lessons.data.findings import (
    Finding,
    ImageFolderWarning,
    UnreadablePicturesError,
    left_out,
    refusal,
    say_what_was_done,
)
from yolo_slim_lessons.data.folder_reading import check_what_was_read, read_image_folder
from yolo_slim_lessons.data.folder_writing import write_image_folder
from yolo_slim_lessons.data.splits import ImageData, Split, as_floats, split_off
from yolo_slim_lessons.data.unread import Unread, default_cache_folder, default_memory_limit, in_memory, on_disk
from yolo_slim_lessons.files import DATA_DIR, verify_files

__all__ = [
    "FASHION_MNIST_CLASSES",
    "ImageData",
    "ImageFolderWarning",
    "Split",
    "as_floats",
    "load_images",
    "write_image_folder",
]


def load_images(
    source: str | Path = "fashion-mnist",
    image_size: int = 64,
    seed: int = 0,
    *,
    broken: str = "refuse",
    memory_limit: float | None = None,
    cache_folder: str | Path | None = None,
) -> ImageData:
    """Load a data set: into memory, or onto the disk if it is large.

    More images than ``memory_limit`` allows are read once into files, which are mapped into memory: what is needed is
    loaded when it is needed, and given up when other programs need the room. The files are used again as long as
    the images have the same names, sizes and times; when images change, they are replaced.

    Args:
        source: ``"fashion-mnist"``, or the path of a folder with ``train/`` and optionally ``val/`` and ``test/``,
            each with one folder of images a class; ``training``, ``valid``, ``validation`` and ``testing`` are
            understood, too. A missing ``val`` or ``test`` is split off ``train``, every class in proportion, and both
            of them if the folder holds the class folders themselves. Links are followed, so images may lie on another
            disk. Hidden files are skipped, and so are files that are no images by their names, which is said.
        image_size: pixels a side, a multiple of 32 (the network halves the picture five times). The shorter edge
            is resized to it and the centre cut out, as Ultralytics does.
        seed: of the split; the same seed gives the same images.
        broken: what is done with pictures that cannot be read: ``"refuse"`` names all of them, with the cause of each,
            when all others have been read; ``"skip"`` leaves them out and warns. A JPEG whose last bytes are missing or
            followed by others is read as Ultralytics repairs it, if it does, with a word. No file is changed.
        memory_limit: bytes that all images together may take in memory; ``None`` is a quarter of what this machine
            has, 0 puts images on the disk in any case, and ``math.inf`` in none.
        cache_folder: where files with images are kept; ``None`` is the place that the system has for such files.

    Raises:
        ValueError: ``image_size`` is not a multiple of 32, ``broken`` is another word, two folders have the same
            meaning, there are fewer than two classes, a class of ``train`` is empty or too small to be split, ``val``
            or ``test`` has a class that ``train`` lacks, pictures are broken or in no class folder, a link is broken
            or leads in a circle, or a file of Fashion-MNIST is altered (all named).
        FileNotFoundError: the folder, its ``train/`` or a file of Fashion-MNIST is missing (named).
        TypeError: ``source`` is neither a name nor a path.
        OSError: images do not fit onto the disk, or may not be written to ``cache_folder`` (named).

    Warns:
        ImageFolderWarning: broken pictures are left out, ``val`` or ``test`` lacks a class, or the folder holds images
            beside the ones that are read (all named).

    Example:
        >>> load_images("fashion-mnist", image_size=32)
        ImageData(train 55,000, val 5,000, test 10,000 images; 10 classes; 32 px)
    """
    if not isinstance(source, str | Path):
        raise TypeError(f"source={source!r}: expected 'fashion-mnist' or the path of a folder")
    if not isinstance(image_size, int) or image_size < 32 or image_size % 32:
        raise ValueError(f"image_size={image_size!r}: expected a multiple of 32, such as 32, 64, 96 or 224")
    if memory_limit is not None and not memory_limit >= 0:
        raise ValueError(f"memory_limit={memory_limit!r}: expected bytes, 0 or more, or None for a quarter of memory")
    if broken not in ("refuse", "skip"):
        raise ValueError(f"broken={broken!r}: expected 'refuse' or 'skip'")
    if source == "fashion-mnist":
        verify_files(DATA_DIR / "fashion-mnist")
        unread = read_fashion_mnist(DATA_DIR / "fashion-mnist", image_size)
        class_names = FASHION_MNIST_CLASSES
    else:
        unread, class_names = read_image_folder(Path(source), image_size, broken)
    splits, findings = _read(unread, memory_limit, cache_folder, source, broken)
    missing = [finding for finding in findings if finding.is_missing]
    if missing:
        count = sum(len(part.labels) for part in unread.values())
        warnings.warn(left_out(missing, str(source), count), ImageFolderWarning, stacklevel=2)
    say_what_was_done(findings)
    check_what_was_read(splits, class_names)
    for name in ("val", "test"):
        if name not in splits:
            splits["train"], splits[name] = split_off(splits["train"], name, class_names, seed)
    return ImageData(splits["train"], splits["val"], splits["test"], class_names, image_size)


def _read(
    unread: Mapping[str, Unread],
    memory_limit: float | None,
    cache_folder: str | Path | None,
    source: str | Path,
    broken: str,
) -> tuple[dict[str, Split], list[Finding]]:
    """All splits, and what was found on the way; pictures that cannot be read are refused after all were tried."""
    needed = sum(part.bytes for part in unread.values())
    limit = default_memory_limit() if memory_limit is None else memory_limit
    folder = default_cache_folder() if cache_folder is None else Path(cache_folder)
    if needed > limit:
        print(
            f"{needed / 1e9:.1f} GB of images are more than {limit / 1e9:.1f} GB: they are kept on disk, in {folder}."
        )
    splits, findings, refused = {}, [], []
    for name, part in unread.items():
        try:
            splits[name], found = on_disk(part, folder) if needed > limit else in_memory(part)
            findings += found
        except UnreadablePicturesError as error:
            refused += error.findings
    if refused:
        raise refusal(refused, str(source), sum(len(part.labels) for part in unread.values()), broken)
    return splits, findings
