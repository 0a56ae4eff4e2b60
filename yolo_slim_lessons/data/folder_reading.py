"""Read a folder of images: ``train/``, ``val/`` and ``test/``, each with one folder a class.

What is no image is skipped. What claims to be one and cannot be read is refused by name, so that no picture that
somebody collected is left out without a word. Leaves out: raw files of cameras, films and archives.
"""

from __future__ import annotations

import hashlib
import statistics
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL
import torch
from joblib import Parallel, delayed
from torchvision.datasets.folder import IMG_EXTENSIONS

from yolo_slim_lessons.data.pictures import read_picture
from yolo_slim_lessons.data.unread import Unread

READER_VERSION = 1  # to be raised when the same file becomes other pixels; caches on disk are then made anew
READ_AT_ONCE = 16  # pictures, by one thread
WORTH_THREADS = 5e-4  # seconds for one picture

# Some of these only newer or extended versions of Pillow can open; the others name the file that they cannot read.
ENDINGS = (*IMG_EXTENSIONS, ".avif", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".mpo")


def read_image_folder(folder: Path, image_size: int) -> tuple[dict[str, Unread], tuple[str, ...]]:
    """The splits that ``folder`` holds, ``train`` at least, and the names of the classes; errors as of ``load_images``.

    Classes are numbered by sorted name, and the images of a class follow one another sorted by name.
    """
    if not (folder / "train").is_dir():
        raise FileNotFoundError(
            f"source={str(folder)!r}: expected 'fashion-mnist' or a folder that holds train/ "
            "(and optionally val/ and test/) with one folder of images a class"
        )
    splits, class_names = {}, None
    for name in ("train", "val", "test"):
        if not (folder / name).is_dir():
            continue
        files = _images_by_class(folder / name)
        _check_classes(folder / name, files, class_names)
        class_names = tuple(files)
        splits[name] = _split(name, folder / name, files, image_size)
    return splits, class_names


def _split(name: str, folder: Path, files: dict[str, list[Path]], image_size: int) -> Unread:
    paths = [path for images in files.values() for path in images]
    labels = torch.arange(len(files)).repeat_interleave(torch.tensor([len(images) for images in files.values()]))
    return Unread(
        name=name,
        labels=labels,
        shape=(len(paths), 3, image_size, image_size),
        parts=lambda: _decoded(paths, image_size),
        place=f"{folder.resolve()} {image_size}",
        state=_state(folder, paths),
    )


def _decoded(paths: list[Path], image_size: int) -> Iterator[np.ndarray]:
    """All pictures in order, some at a time, read by all cores.

    By threads: Pillow unpacks and resizes without Python's lock, and processes would have to send each picture. Only
    tiny pictures are read by one core, as they are little work outside of that lock.
    """
    first, seconds = [], []
    for path in paths[:READ_AT_ONCE]:
        start = time.perf_counter()
        first.append(read_picture(path, image_size).numpy())
        seconds.append(time.perf_counter() - start)
    yield np.stack(first)
    groups = (paths[start : start + READ_AT_ONCE] for start in range(READ_AT_ONCE, len(paths), READ_AT_ONCE))
    threads = -1 if statistics.median(seconds) > WORTH_THREADS else 1
    reading = Parallel(n_jobs=threads, backend="threading", return_as="generator")
    yield from reading(delayed(_read_pictures)(group, image_size) for group in groups)


def _read_pictures(paths: list[Path], image_size: int) -> np.ndarray:
    images = np.empty((len(paths), 3, image_size, image_size), np.uint8)
    for place, path in enumerate(paths):
        images[place] = read_picture(path, image_size)
    return images


def _state(folder: Path, paths: list[Path]) -> str:
    """What the pixels depend on: names, sizes and times of the files, and what reads them."""
    digest = hashlib.sha256(f"{READER_VERSION} Pillow {PIL.__version__}".encode())
    for path in paths:
        stat = path.stat()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _images_by_class(folder: Path) -> dict[str, list[Path]]:
    files = {}
    for entry in _entries(folder):
        if entry.is_dir():
            files[entry.name] = list(_images_below(entry))
        elif entry.suffix.lower() in ENDINGS:
            raise ValueError(f"{entry} lies beside the class folders: move it into one of them, or delete it")
    return files


def _entries(folder: Path) -> Iterator[Path]:
    """Files and folders sorted by name, without what systems hide: .DS_Store, ._photo.jpg, .ipynb_checkpoints."""
    for entry in sorted(folder.iterdir(), key=lambda path: path.name):
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        if not entry.exists():
            raise ValueError(f"{entry} is a link that leads nowhere: mend or delete it")
        yield entry


def _images_below(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The images of ``folder`` and its subfolders; ``above`` holds the folders that were passed on the way to it."""
    above = (*above, folder.resolve())
    for entry in _entries(folder):
        if entry.is_dir():
            real = entry.resolve()
            if any(real in (passed, *passed.parents) for passed in above):
                raise ValueError(
                    f"{entry} is a link to a folder that it lies in, a circle without end: delete this link"
                )
            yield from _images_below(entry, above)
        elif entry.suffix.lower() in ENDINGS:
            yield entry


def _check_classes(folder: Path, files: dict[str, list[Path]], expected: tuple[str, ...] | None) -> None:
    if len(files) < 2:
        found = f"only one class folder, {next(iter(files))!r}" if files else "no class folder"
        raise ValueError(f"{folder} has {found}: expected two or more, each with the images of a class")
    empty = [name for name, images in files.items() if not images]
    if empty:
        raise ValueError(
            f"{folder} has no image of {', '.join(map(repr, empty))}: add some ({', '.join(IMG_EXTENSIONS)}), "
            "or delete the folder"
        )
    if expected not in (None, tuple(files)):
        problem = f"{folder} has the classes {list(files)}, but train/ has {list(expected)}"
        if {unicodedata.normalize("NFC", name) for name in (*files, *expected)} != {*files, *expected}:
            problem += ": names that look alike are stored in two ways, so copy the folders' names from train/"
        raise ValueError(problem)
