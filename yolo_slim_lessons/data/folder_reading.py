"""Read a folder of images: ``train/``, ``val/`` and ``test/``, each with one folder a class.

What is no image is skipped. What claims to be one and cannot be read is refused by name, so that no picture that
somebody collected is left out without a word. Leaves out: raw files of cameras, films and archives.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm.auto import tqdm

from yolo_slim_lessons.data.pictures import read_picture
from yolo_slim_lessons.data.splits import Split

# Some of these only newer or extended versions of Pillow can open; the others name the file that they cannot read.
ENDINGS = (*IMG_EXTENSIONS, ".avif", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".mpo")


def read_image_folder(folder: Path, image_size: int) -> tuple[dict[str, Split], tuple[str, ...]]:
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
        paths = [(path, label) for label, images in enumerate(files.values()) for path in images]
        # Filled in place: a list of all images and a stack of them would take the memory twice.
        images = torch.empty(len(paths), 3, image_size, image_size, dtype=torch.uint8)
        for place, (path, _) in enumerate(tqdm(paths, f"read {name}", delay=2, leave=False)):
            images[place] = read_picture(path, image_size)
        splits[name] = Split(images, torch.tensor([label for _, label in paths]))
    return splits, class_names


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
