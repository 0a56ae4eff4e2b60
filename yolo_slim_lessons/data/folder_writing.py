"""Write images as a folder that Ultralytics reads, and that ``load_images`` reads back.

Leaves out: other formats than PNG, which alone keeps every pixel and opens everywhere.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import torch
from PIL import Image
from tqdm.auto import tqdm

from yolo_slim_lessons.data.splits import ImageData


def write_image_folder(
    data: ImageData, path: str | Path, *, train: int | None = None, val: int | None = None, test: int | None = None
) -> Path:
    """Write PNG files as ``path/{train,val,test}/class name/00000.png``, the folders that Ultralytics reads.

    Args:
        data: what to write, pixel for pixel.
        path: a folder that is new or empty.
        train: write only so many images of this split, stratified; ``None`` writes all.
        val: the same for this split.
        test: the same for this split.

    Returns:
        The folder, ready for ``YOLO(...).train(data=…)`` or ``slim.load_images``.

    Raises:
        FileExistsError: the folder holds something already.
        ValueError: a split has fewer images than asked for.
    """
    path = Path(path)
    if path.exists() and any(path.iterdir()):
        raise FileExistsError(f"path={str(path)!r} is not empty: choose a new folder, or delete this one first")
    splits = {}
    for name, limit in (("train", train), ("val", val), ("test", test)):
        split = getattr(data, name)
        try:
            splits[name] = split if limit is None else split.take(limit)
        except ValueError as error:
            raise ValueError(f"{name}={limit!r}: expected 1 to {len(split)}, the number of its images") from error
    for name, split in splits.items():
        folders = [path / name / folder for folder in _folder_names(data.class_names)]
        for folder in folders:
            folder.mkdir(parents=True)
        numbers = itertools.count()
        with tqdm(total=len(split), desc=f"write {name}", delay=2, leave=False) as bar:
            for images, labels in split.batches(dtype=torch.uint8):
                for image, label, number in zip(images, labels, numbers, strict=False):
                    pixels = image.permute(1, 2, 0).numpy()
                    Image.fromarray(pixels).save(folders[label] / f"{number:05d}.png", compress_level=1)
                bar.update(len(images))
    return path


def _folder_names(class_names: tuple[str, ...]) -> list[str]:
    """One folder name a class, without the characters that some systems forbid or hide."""
    names = [re.sub(r'[<>:"/\\|?*\x00-\x1f]|^\.|[. ]+$', "-", name) or "-" for name in class_names]
    # Whoever reads the folders numbers the classes by sorted name; names in another order get a number in front, and
    # so do names that differ in letter case only, which are one folder on Windows and macOS.
    if names == sorted(names) and len({name.casefold() for name in names}) == len(names):
        return names
    digits = len(str(len(names) - 1))
    return [f"{number:0{digits}d} {name}" for number, name in enumerate(names)]
