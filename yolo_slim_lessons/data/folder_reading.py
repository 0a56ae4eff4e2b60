"""Read a folder of images: ``train``, ``val`` and ``test``, each with one folder a class.

What is no image is skipped, with a word. What claims to be one and cannot be read is refused by name, or left out if
that is asked for, so that no picture that somebody collected is lost in silence. Leaves out: raw files of cameras,
films and archives; which folder is what (``folder_layout.py``).
"""

from __future__ import annotations

import hashlib
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

import numpy as np
import PIL
import torch
from joblib import Parallel, delayed

from yolo_slim_lessons.data import folder_layout as layout
from yolo_slim_lessons.data.faults import HEIF_PACKAGE
from yolo_slim_lessons.data.findings import Finding, ImageFolderWarning, UnreadablePicturesError, counted, named
from yolo_slim_lessons.data.pictures import REPAIRED, UnreadablePictureError, picture_and_remark
from yolo_slim_lessons.data.splits import Split
from yolo_slim_lessons.data.unread import Part, Unread

READER_VERSION = 2  # to be raised when the same file becomes other pixels; caches on disk are then made anew
READ_AT_ONCE = 16  # pictures, by one thread
WORTH_THREADS = 5e-4  # seconds for one picture


def read_image_folder(folder: Path, image_size: int, broken: str) -> tuple[dict[str, Unread], tuple[str, ...]]:
    """The splits that ``folder`` holds, ``train`` at least, and the names of the classes; errors as of ``load_images``.

    Classes are numbered by sorted name, and the images of a class follow one another sorted by name.
    """
    folders = layout.find_splits(folder)
    skipped: Counter[str] = Counter()
    files = {name: layout.images_by_class(path, skipped) for name, path in folders.items()}
    layout.check_train(folders["train"], files["train"])
    class_names = tuple(files["train"])
    for name in files.keys() - {"train"}:
        layout.check_others(folders[name], files[name], class_names)
    if skipped:
        print(f"Skipped in {folder}, as their names are not those of images: {counted(skipped)}.")
    unread = {}
    for name in folders:
        images = [files[name].get(class_name, []) for class_name in class_names]
        unread[name] = _split(name, folder, folders[name], images, image_size, broken)
    return unread, class_names


def _split(name: str, source: Path, folder: Path, images: list[list[Path]], image_size: int, broken: str) -> Unread:
    paths = [path for each in images for path in each]
    labels = torch.arange(len(images)).repeat_interleave(torch.tensor([len(each) for each in images]))
    return Unread(
        name=name,
        labels=labels,
        shape=(len(paths), 3, image_size, image_size),
        parts=lambda: _decoded(paths, image_size, source, broken),
        place=f"{folder.resolve()} {image_size}",
        state=_state(folder, paths, broken),
    )


def _decoded(paths: list[Path], image_size: int, source: Path, broken: str) -> Iterator[Part]:
    """All pictures in order, some at a time; in the end the error that names those that are not to be left out."""
    unreadable = []
    for part in _read_by_all_cores(paths, image_size, source):
        unreadable += [finding for finding in part.findings.values() if finding.is_missing]
        yield part
    nothing_left = len(unreadable) == len(paths)
    if nothing_left or any(broken == "refuse" or finding.kind == "unreachable" for finding in unreadable):
        raise UnreadablePicturesError(unreadable)


def _read_by_all_cores(paths: list[Path], image_size: int, source: Path) -> Iterator[Part]:
    """All pictures in order.

    By threads: Pillow unpacks and resizes without Python's lock, and processes would have to send each picture. Only
    tiny pictures are read by one core, as they are little work outside of that lock.
    """
    seconds = []
    for place, path in enumerate(paths[:READ_AT_ONCE]):
        start = time.perf_counter()
        part = _read_pictures([path], place, image_size, source)
        seconds.append(time.perf_counter() - start)
        yield part
    threads = -1 if statistics.median(seconds) > WORTH_THREADS else 1
    reading = Parallel(n_jobs=threads, backend="threading", return_as="generator")
    yield from reading(
        delayed(_read_pictures)(paths[start : start + READ_AT_ONCE], start, image_size, source)
        for start in range(READ_AT_ONCE, len(paths), READ_AT_ONCE)
    )


def _read_pictures(paths: list[Path], first: int, image_size: int, source: Path) -> Part:
    """The pictures that can be read; ``first`` is the place of the first one in its split."""
    images = np.empty((len(paths), 3, image_size, image_size), np.uint8)
    count, findings = 0, {}
    for place, path in enumerate(paths, start=first):
        try:
            images[count], remark = picture_and_remark(path, image_size)
            count += 1
        except UnreadablePictureError as error:
            kind = "broken" if error.fault.lasting else "unreachable"
            findings[place] = Finding(kind, _below(source, path), error.fault.cause, str(error.fault))
            continue
        if remark:
            kind = REPAIRED if remark == REPAIRED else "only here"
            findings[place] = Finding(kind, _below(source, path), remark, remark)
    return Part(images[:count], findings)


def _below(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _state(folder: Path, paths: list[Path], broken: str) -> str:
    """What the pixels depend on: names, sizes and times of the files, what reads them, and what is left out."""
    digest = hashlib.sha256(f"{READER_VERSION} Pillow {PIL.__version__} {_heif_version()} {broken}".encode())
    for path in paths:
        stat = path.stat()
        digest.update(f"{_below(folder, path)}\0{stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _heif_version() -> str:
    try:
        return f"{HEIF_PACKAGE} {metadata.version(HEIF_PACKAGE)}"
    except metadata.PackageNotFoundError:
        return f"no {HEIF_PACKAGE}"


def check_what_was_read(splits: Mapping[str, Split], class_names: tuple[str, ...]) -> None:
    """Raise if broken pictures were all that ``train`` had of a class; warn of classes that ``val`` or ``test`` lacks.

    Raises:
        ValueError: a class of ``train`` has no image left (named).
    """
    for name, split in splits.items():
        counts = split.labels.bincount(minlength=len(class_names)).tolist()
        missing = [class_name for class_name, count in zip(class_names, counts, strict=True) if not count]
        if missing and name == "train":
            raise ValueError(f"no image of {named(missing)} in train/ can be read: add some, or delete the folder")
        if missing:
            warnings.warn(
                f"{name} has no image of {named(missing)}: what is measured there says nothing about it",
                ImageFolderWarning,
                stacklevel=3,
            )
