"""Read one picture of nearly any kind: upright, RGB, 8 bits a channel, square.

Leaves out: films and the further pages of a file, of which the first is taken.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

DRAFT = 4  # a JPEG is decoded at least so many times larger than needed, and resized with care from there


def read_picture(path: Path, image_size: int) -> torch.Tensor:
    """uint8 tensor 3×``image_size``×``image_size``: the shorter edge resized, the centre cut out.

    Raises:
        ValueError: the file is no readable picture (named, with the reason).
    """
    try:
        with Image.open(path) as image:
            # A JPEG of 8,000 pixels a side need not be unpacked in full; draft() halves it on the way, if it may.
            image.draft(None, (DRAFT * image_size, DRAFT * image_size))
            ImageOps.exif_transpose(image, in_place=True)  # a phone stores how it was held, not an upright picture
            square = _centre(_resized(_as_rgb(image), image_size), image_size)
        return torch.from_numpy(np.array(square)).permute(2, 0, 1)
    except (OSError, SyntaxError, ValueError, ImportError, MemoryError, Image.DecompressionBombError) as error:
        # Once imported, Ultralytics makes Image.open look for a HEIF reader where it used to give its reason.
        reason = error.__context__ if isinstance(error, ImportError) else error
        raise ValueError(f"{path} is not a readable image ({reason}): repair, save as PNG or delete it") from error


def _resized(image: Image.Image, image_size: int) -> Image.Image:
    """Shorter edge ``image_size`` pixels, as torchvision's ``Resize`` does it, with less of Python's lock."""
    shorter = min(image.size)
    return image.resize([image_size * edge // shorter for edge in image.size], Image.Resampling.BILINEAR)


def _centre(image: Image.Image, image_size: int) -> Image.Image:
    left, top = (round((edge - image_size) / 2) for edge in image.size)  # as torchvision's CenterCrop rounds
    return image.crop((left, top, left + image_size, top + image_size))


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("it holds floats, whose range nobody knows; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey; convert("RGB") alone would clip it to white
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65_535:
            raise ValueError(f"its values reach from {values.min()} to {values.max()}; save it with 8 or 16 bits")
        image = Image.fromarray((values // 256).astype(np.uint8))
    if image.mode == "P":  # a palette may hold transparent colours, which RGBA takes without a warning
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy even so
