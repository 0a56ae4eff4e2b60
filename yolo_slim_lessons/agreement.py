"""Whether a model and images speak of the same classes, and of images of the same size.

A function that joins the two asks here. Labels are joined by the names of their classes, never by their position alone.
Used from lesson 01 on. Leaves out: what a model is (``models``), and whether files hold pictures (``data``).
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import nn

from yolo_slim_lessons.data import ImageData, Split
from yolo_slim_lessons.models import image_size_of

NAMES_SHOWN = 5


class ClassOrderWarning(UserWarning):
    """Model and images have the same classes in another order; the labels were brought into the model's order."""


class ImageSizeWarning(UserWarning):
    """Model and images are of different sizes, which changes accuracy, products and time."""


def join_split(model: nn.Module, split: Split, name: str = "split") -> Split:
    """``split`` with labels in the model's order of classes.

    Args:
        model: what has ``names``, a mapping from label to class name.
        split: one without ``class_names`` is returned as it is; its labels are the model's, then.
        name: of the argument, for messages.

    Raises:
        TypeError: no ``Split``.
        ValueError: the two have not the same classes (named, with the way out).

    Example:
        >>> from yolo_slim_lessons.models import load_model
        >>> from yolo_slim_lessons.data import load_images
        >>> few = load_images().test.take(10)
        >>> join_split(load_model("nano"), few).labels.equal(few.labels)
        True
    """
    check_split(split, name)
    if getattr(split, "class_names", None) is None:
        return split
    known = tuple(model.names[label] for label in sorted(model.names))
    places = class_places(split.class_names, known, name)
    if places == list(range(len(known))):
        return split
    warnings.warn(
        f"{name} has its classes in another order than the model, {_some(split.class_names)} instead of "
        f"{_some(known)}: its labels are brought into the model's order, by name",
        ClassOrderWarning,
        stacklevel=3,
    )
    labels = torch.tensor([*places, -1])[split.labels]  # the last for -1, an image without a label
    return split.relabelled(labels, known)


def join_data(model: nn.Module, data: ImageData, name: str = "data") -> ImageData:
    """``data`` with the labels of all its splits in the model's order of classes; errors as of ``join_split``."""
    if not isinstance(data, ImageData):
        raise TypeError(f"{name} is a {type(data).__name__}: expected ImageData, such as load_images returns")
    known = tuple(model.names[label] for label in sorted(model.names))
    if class_places(data.class_names, known, name) == list(range(len(known))):
        return data
    splits = {part: join_split(model, getattr(data, part), name) for part in ("train", "val", "test")}
    return replace(data, **splits, class_names=known)


def class_places(names: Sequence[str], known: Sequence[str], name: str = "data") -> list[int]:
    """For each of ``names``, where it stands in ``known``.

    Names that differ in case, in signs or by a number in front ("0 T-shirt-top", which ``write_image_folder`` writes
    for "T-shirt/top") are the same.

    Raises:
        ValueError: the two are not the same classes (named).

    Example:
        >>> class_places(["0 T-shirt-top", "1 Bag"], ["Bag", "T-shirt/top"])
        [1, 0]
    """
    for alike in (str, _plain, _unnumbered(names), _unnumbered(known)):
        places = {alike(other): place for place, other in enumerate(known)}
        found = [places.get(alike(one)) for one in names]
        if len(found) == len(known) and set(found) == set(range(len(known))):
            return found
    only = {
        name: [one for one in names if _plain(one) not in map(_plain, known)],
        "model": [one for one in known if _plain(one) not in map(_plain, names)],
    }
    differences = "; ".join(f"only {which} has {_some(some)}" for which, some in only.items() if some)
    differences = differences or "a name stands there twice"
    raise ValueError(
        f"{name} has {len(names)} classes, model has {len(known)}: they must agree ({differences}). "
        "If these are other names of the same classes, set model.names, a mapping from label to name, to those of the "
        "images; for other classes, give the model a new head with slim.adapt and train it"
    )


def check_image_size(model: nn.Module, size: Sequence[int], name: str = "split", then: str | None = None) -> None:
    """Say so by an ``ImageSizeWarning`` if images are of another size than the model was trained for.

    Args:
        model: one that does not say its image size fits all.
        size: height and width in pixels.
        name: of the argument, for messages.
        then: what follows from it, for the message.

    Raises:
        ValueError: height and width differ.
    """
    check_square(size, name)
    try:
        trained = image_size_of(model)
    except ValueError:
        return
    if size[-1] != trained:
        share = (size[-1] / trained) ** 2
        then = then or f"expect another accuracy, and {share:.2g} times the products and time"
        warnings.warn(
            f"model was trained for images of {trained} px, and {name} has {size[-1]} px: {then}",
            ImageSizeWarning,
            stacklevel=3,
        )


def check_split(split: object, name: str = "split") -> None:
    """Raise ``TypeError`` unless ``split``, the value of argument ``name``, gives batches of images."""
    if isinstance(split, ImageData):
        raise TypeError(f"{name} is ImageData: expected a part of it, such as data.val")
    if not hasattr(split, "batches"):
        raise TypeError(
            f"{name} is a {type(split).__name__}: expected a Split, such as data.val; Split(images, labels), of "
            "yolo_slim_lessons.data, makes one of tensors"
        )


def check_square(size: Sequence[int], name: str = "split") -> None:
    """Raise ``ValueError`` unless ``size``, the height and width of the images in argument ``name``, are equal."""
    if size[-2] != size[-1]:
        raise ValueError(
            f"{name} has images of {size[-2]}×{size[-1]} px (height×width): expected squares, which load_images makes"
        )


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", " ", unicodedata.normalize("NFC", str(name))).strip().casefold()


def _unnumbered(names: Iterable[str]) -> Callable[[str], str]:
    """What takes a number off a name, if each of ``names`` begins with the number of its place."""
    if any(re.match(rf"0*{place} ", one) is None for place, one in enumerate(names)):
        return _plain
    return lambda name: _plain(re.sub(r"^\d+ ", "", name))


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(one) for one in names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown}, …"
