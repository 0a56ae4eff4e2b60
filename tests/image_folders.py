"""Folders of noise, as the tests of image folders need them."""

import numpy as np
from PIL import Image


def noise(seed=0, size=(40, 40)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write_noise(folder, name, count, seed=0, ending="png"):
    """Noise images as folder/name/00.png, no two alike."""
    random = np.random.default_rng([seed, *name.encode()])
    (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name / f"{number:02d}.{ending}")


def counts(data):
    """How many images of each class are in train, val and test."""
    return [
        split.labels.bincount(minlength=len(data.class_names)).tolist() for split in (data.train, data.val, data.test)
    ]
