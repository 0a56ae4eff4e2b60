"""Read one picture of nearly any kind: upright, RGB, 8 bits a channel, square.

Leaves out: films and the further pages of a file, of which the first is taken.
"""

from __future__ import annotations

import importlib.util
import io
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from yolo_slim_lessons.data.faults import HEAD, HEIF_READER, Fault, UnsuitableError, fault_of, kind_of, unreachable

DRAFT = 4  # a JPEG is decoded at least so many times larger than needed, and resized with care from there

# Of other pictures, Ultralytics reads none (IMG_FORMATS of ultralytics.data.utils).
ULTRALYTICS_NAMES = ("avif", "bmp", "dng", "heic", "heif", "jp2", "jpeg", "jpg", "mpo", "png", "tif", "tiff", "webp")
ULTRALYTICS_ENDINGS = {f".{name}" for name in ULTRALYTICS_NAMES}
ULTRALYTICS_FORMATS = {name.upper() for name in ULTRALYTICS_NAMES} | {"JPEG2000"}
ULTRALYTICS_SMALLEST = 10  # pixels, the shorter edge

REPAIRED = "repaired"


class UnreadablePictureError(ValueError):
    """A file is no readable picture; ``fault`` says why."""

    def __init__(self, path: Path, fault: Fault):
        super().__init__(f"{path} cannot be read as a picture: {fault}")
        self.fault = fault


def read_picture(path: Path, image_size: int) -> torch.Tensor:
    """uint8 tensor 3×``image_size``×``image_size``: the shorter edge resized, the centre cut out.

    Raises:
        ValueError: the file is no readable picture (named, with the cause and the way out).
    """
    return torch.from_numpy(picture_and_remark(path, image_size)[0])


def picture_and_remark(path: Path, image_size: int) -> tuple[np.ndarray, str]:
    """The pixels as of ``read_picture``, and ``REPAIRED``, or why Ultralytics would leave the picture out, or ``""``.

    Raises:
        UnreadablePictureError: the file is no readable picture.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise UnreadablePictureError(path, unreachable(error)) from error
    with file:
        try:
            with _opened(file) as image:
                remark = _remark(image, path, file)
                return _square(_repaired(image) if remark == REPAIRED else image, image_size), remark
        except Exception as error:  # what is damaged makes Pillow raise anything, such as IndexError
            raise UnreadablePictureError(path, fault_of(path, file, error)) from error


def _opened(file: BinaryIO) -> Image.Image:
    try:
        return Image.open(file)
    except (UnidentifiedImageError, ImportError):
        # Once imported, Ultralytics makes Image.open raise ImportError if there is no reader of HEIC.
        file.seek(0)
        if kind_of(file.read(HEAD)) != "HEIC" or importlib.util.find_spec(HEIF_READER) is None:
            raise
        importlib.import_module(HEIF_READER).register_heif_opener()
        file.seek(0)
        return Image.open(file)


def _remark(image: Image.Image, path: Path, file: BinaryIO) -> str:
    if path.suffix.lower() not in ULTRALYTICS_ENDINGS:
        return path.suffix.lower()
    if min(image.size) < ULTRALYTICS_SMALLEST:
        return f"smaller than {ULTRALYTICS_SMALLEST} pixels"
    if image.format not in ULTRALYTICS_FORMATS:
        return f"{image.format} under another ending"
    if image.format == "JPEG":
        file.seek(-2, os.SEEK_END)
        return "" if file.read() == b"\xff\xd9" else REPAIRED
    return ""


def _repaired(image: Image.Image) -> Image.Image:
    """As Ultralytics writes a JPEG anew that does not end as it should; raises if pixels are missing."""
    written = io.BytesIO()
    ImageOps.exif_transpose(image).save(written, "JPEG", subsampling=0, quality=100)
    return Image.open(written)


def _square(image: Image.Image, image_size: int) -> np.ndarray:
    # A JPEG of 8,000 pixels a side need not be unpacked in full; draft() halves it on the way, if it may.
    image.draft(None, (DRAFT * image_size, DRAFT * image_size))
    ImageOps.exif_transpose(image, in_place=True)  # a phone stores how it was held, not an upright picture
    square = _centre(_resized(_as_rgb(image), image_size), image_size)
    return np.array(square).transpose(2, 0, 1)


def _resized(image: Image.Image, image_size: int) -> Image.Image:
    """Shorter edge ``image_size`` pixels, as torchvision's ``Resize`` does it, with less of Python's lock."""
    shorter = min(image.size)
    return image.resize([image_size * edge // shorter for edge in image.size], Image.Resampling.BILINEAR)


def _centre(image: Image.Image, image_size: int) -> Image.Image:
    left, top = (round((edge - image_size) / 2) for edge in image.size)  # as torchvision's CenterCrop rounds
    return image.crop((left, top, left + image_size, top + image_size))


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise UnsuitableError(Fault("it holds floats, whose range nobody knows", "save it with 8 or 16 bits"))
    if image.mode.startswith("I"):  # 16-bit grey; convert("RGB") alone would clip it to white
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65_535:
            reach = f"its values reach from {values.min()} to {values.max()}"
            raise UnsuitableError(Fault(reach, "save it with 8 or 16 bits"))
        image = Image.fromarray((values // 256).astype(np.uint8))
    if image.mode == "P":  # a palette may hold transparent colours, which RGBA takes without a warning
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy even so
