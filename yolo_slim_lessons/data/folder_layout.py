"""What lies in a folder of images: which folders are train, val and test, and which files are pictures of which class.

Names are taken as the tools of the field write them. Nothing is dropped without a word, except what systems hide.
Leaves out: opening a picture (``pictures.py``).
"""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from yolo_slim_lessons.data.findings import ImageFolderWarning, counted, named
from yolo_slim_lessons.data.pictures import ULTRALYTICS_ENDINGS

SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
# Some of these only newer or extended versions of Pillow can open; the others name the file that they cannot read.
ENDINGS = frozenset((*IMG_EXTENSIONS, *ULTRALYTICS_ENDINGS, ".gif", ".jfif"))
SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini")


def find_splits(folder: Path) -> dict[str, Path]:
    """The folders of ``train``, ``val`` and ``test``; ``folder`` itself is ``train`` if it holds class folders only.

    Errors as of ``load_images``; what is not read is said.
    """
    entries = list(_visible(folder)) if folder.is_dir() else []
    splits = {}
    for entry in entries:
        split = _split_of(entry)
        if split and not entry.is_dir():
            raise ValueError(f"{entry} is {'a file' if entry.exists() else 'a link that leads nowhere'}, not a folder")
        if split in splits:
            raise ValueError(
                f"{folder} holds {splits[split].name}/ and {entry.name}/, which both mean {split}: move the images "
                "into one of them, and the other out of this folder"
            )
        if split:
            splits[split] = entry
    others = [entry for entry in entries if not _split_of(entry)]
    if "train" in splits:
        _warn_of_others(folder, others)
        return {split: splits[split] for split in SPLIT_NAMES if split in splits}
    classes = [entry for entry in others if entry.is_dir()]
    if splits or not classes or any(_holds_train(entry) or not _holds_pictures(entry) for entry in classes):
        raise FileNotFoundError(
            f"source={str(folder)!r}: expected 'fashion-mnist' or a folder that holds train/ (and optionally val/ and "
            "test/) with one folder of images a class, or a folder of nothing but such class folders; "
            f"{_what_it_is(folder, splits, classes)}"
        )
    print(f"{folder} has no train/: its {len(classes)} folders are the classes, and val and test are split off them.")
    return {"train": folder}


def _split_of(entry: Path) -> str | None:
    return SPLIT_OF.get(entry.name.casefold())


def _holds_train(folder: Path) -> bool:
    return any(_split_of(entry) == "train" for entry in _visible(folder))


def _holds_pictures(folder: Path) -> bool:
    return any(_pictures_below(folder, Counter()))


def _what_it_is(folder: Path, splits: dict[str, Path], classes: list[Path]) -> str:
    """Why ``folder`` is no data set."""
    if folder.is_file():
        return "this is a file; an archive is to be unpacked first"
    if not folder.is_dir():
        return "there is no such folder"
    for entry in classes:
        if _holds_train(entry):
            return f"{entry} holds a train/"
    if splits:
        return f"this one holds {' and '.join(f'{path.name}/' for path in splits.values())}, but no train/"
    empty = [f"{entry.name}/" for entry in classes if not _holds_pictures(entry)]
    return f"this one holds {named(empty)} without images" if empty else "this one holds no folder"


def _warn_of_others(folder: Path, others: list[Path]) -> None:
    """Folders and pictures beside train/ might be meant to be read."""
    counts = {f"in {entry.name}/": _count_pictures(entry) for entry in others if entry.is_dir()}
    counts["beside train/"] = sum(_is_picture(entry) for entry in others if entry.is_file())
    counts = {place: count for place, count in counts.items() if count}
    if counts:
        warnings.warn(
            f"{folder} holds images that are not read: {counted(counts)}. Names that are: "
            f"{', '.join(f'{name}/' for names in SPLIT_NAMES.values() for name in names)}",
            ImageFolderWarning,
            stacklevel=5,
        )


def _count_pictures(folder: Path) -> int:
    count = 0
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        count += sum(_is_picture(Path(name)) for name in files if not name.startswith("."))
    return count


def images_by_class(folder: Path, skipped: Counter[str]) -> dict[str, list[Path]]:
    """The pictures of each class folder, both sorted by name; what else lies in ``folder`` goes to ``skipped``."""
    files = {}
    for entry in _entries(folder, skipped):
        if entry.is_dir():
            files[entry.name] = list(_pictures_below(entry, skipped))
        elif _is_picture(entry):
            raise ValueError(
                f"{entry} lies beside the class folders: move it into one of them, or delete it. (If "
                f"{folder.name!r} is a class itself, put all classes together into a folder train/)"
            )
        else:
            skipped[entry.suffix.lower() or "without an ending"] += 1
    return files


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS


def _is_hidden(path: Path) -> bool:
    """Such as .DS_Store, ._photo.jpg, .ipynb_checkpoints, Thumbs.db."""
    return path.name.startswith(".") or path.name == "__MACOSX" or path.name.lower() in SYSTEM_FILES


def _visible(folder: Path) -> Iterator[Path]:
    """Files and folders sorted by name, without what is hidden."""
    return (entry for entry in sorted(folder.iterdir(), key=lambda path: path.name) if not _is_hidden(entry))


def _entries(folder: Path, skipped: Counter[str]) -> Iterator[Path]:
    """What is visible; hidden pictures go to ``skipped``, except those that macOS makes beside each picture."""
    for entry in sorted(folder.iterdir(), key=lambda path: path.name):
        if _is_hidden(entry):
            if _is_picture(entry) and not entry.name.startswith("._"):
                skipped[f"hidden {entry.suffix.lower()}"] += 1
            continue
        if not entry.exists():
            raise ValueError(f"{entry} is a link that leads nowhere: mend or delete it")
        yield entry


def _pictures_below(folder: Path, skipped: Counter[str], above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The pictures of ``folder`` and its subfolders; ``above`` holds the folders that were passed on the way to it."""
    above = (*above, folder.resolve())
    for entry in _entries(folder, skipped):
        if entry.is_dir():
            real = entry.resolve()
            if any(real in (passed, *passed.parents) for passed in above):
                raise ValueError(
                    f"{entry} is a link to a folder that it lies in, a circle without end: delete this link"
                )
            yield from _pictures_below(entry, skipped, above)
        elif _is_picture(entry):
            yield entry
        else:
            skipped[entry.suffix.lower() or "without an ending"] += 1


def check_train(folder: Path, files: dict[str, list[Path]]) -> None:
    """Raise unless there are two classes or more, and images of each."""
    if len(files) < 2:
        found = f"only one class folder, {next(iter(files))!r}" if files else "no class folder"
        raise ValueError(f"{folder} has {found}: expected two or more, each with the images of a class")
    empty = [name for name, images in files.items() if not images]
    if empty:
        raise ValueError(
            f"{folder} has no image of {named(empty)}: add some ({', '.join(IMG_EXTENSIONS)}), "
            "or delete the folder, those of the same name in val/ and test/ as well"
        )


def check_others(folder: Path, files: dict[str, list[Path]], class_names: tuple[str, ...]) -> None:
    """Raise if ``val`` or ``test``, which ``folder`` is, has a class that ``train`` lacks, or no image at all."""
    strangers = [name for name, images in files.items() if images and name not in class_names]
    if strangers:
        problem = (
            f"{folder} has images of {named(strangers)}, and train/ has no such class: add images of it there, give "
            f"the folder the name that it has there ({named(class_names)}), or delete it"
        )
        if {unicodedata.normalize("NFC", name) for name in (*files, *class_names)} != {*files, *class_names}:
            problem += "; names that look alike are stored in two ways, so copy the folders' names from train/"
        raise ValueError(problem)
    if not any(files.values()):
        raise ValueError(f"{folder} has no image: add some, or delete the folder, and some of train/ are taken instead")
