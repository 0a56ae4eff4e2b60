"""Damaged folders, checkpoints and packed files: each is read as what it was, or refused by one of our own sentences.

A traceback from inside, or a result that is wrong, would be a fault. Some of them are tried by each ``make test``; all
668 together are marked slow.
"""

import contextlib
import random
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import yolo_slim_lessons as slim

QUICK, ALL = 20, 167  # of each of the three kinds
SEEDS = [pytest.param(seed, marks=[] if seed < QUICK else pytest.mark.slow) for seed in range(ALL)]
REFUSALS = (ValueError, TypeError, FileNotFoundError)


def damaged(contents: bytes, dice: random.Random) -> bytes:
    """Some bytes changed, cut off, doubled, blanked or put in front."""
    start = dice.randrange(len(contents))
    length = dice.choice([1, 1, 4, 64, 1000])
    noise = dice.randbytes(length)
    return dice.choice(
        [
            lambda: contents[:start],
            lambda: contents[:start] + noise + contents[start + length :],
            lambda: contents[:start] + noise + contents[start:],
            lambda: contents[:start] + bytes(length) + contents[start + length :],
            lambda: contents[:start] + contents[start + length :],
            lambda: noise + contents,
            lambda: contents + noise,
            lambda: contents[start:],
        ]
    )()


def assert_refused_by_us(error, path):
    """The message names the file, and is one of ours and not a word of pickle's, zip's or PyTorch's alone."""
    frames = []
    trace = error.__traceback__
    while trace:
        frames.append(trace.tb_frame.f_globals.get("__name__", ""))
        trace = trace.tb_next
    assert frames[-1].startswith("yolo_slim_lessons."), frames
    assert path.name in str(error), error


@pytest.fixture(scope="module")
def small():
    """A network of 12 kB, and with it its files."""
    return slim.prune_channels(slim.new_model("yolov8n-cls.yaml", ("ant", "bee"), 32), 0.95, round_to=1)


def same_weights(first, second):
    mine, theirs = first.state_dict(), second.state_dict()
    return mine.keys() == theirs.keys() and all(tensor.equal(theirs[key]) for key, tensor in mine.items())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["pt", "slim"])
def test_a_damaged_model_is_refused_or_the_same(small, tmp_path, kind, seed):
    save, load = {"pt": (slim.save_model, slim.load_model), "slim": (slim.save_packed, slim.load_packed)}[kind]
    path = save(small, tmp_path / f"damaged.{kind}")
    path.write_bytes(damaged(path.read_bytes(), random.Random(seed)))
    try:
        loaded = load(path)
    except REFUSALS as error:
        assert_refused_by_us(error, path)
    else:
        assert same_weights(loaded, small)
        assert loaded.names == small.names


CLASSES = {"ant": 40, "bee": 200}  # name → brightness of all its pictures


def write_folder(folder, dice):
    for part in ("train", "val", "test"):
        for name, brightness in CLASSES.items():
            (folder / part / name).mkdir(parents=True)
            for number in range(4):
                picture = Image.fromarray(np.full((40, 48, 3), brightness, np.uint8))
                picture.save(folder / part / name / f"{number}.{dice.choice(['png', 'jpg', 'webp'])}", quality=95)


def rename(path, name):
    path.rename(path.with_name(name))


def happen_to(file, dice):
    """One thing that happens to folders of pictures, somewhere near ``file``."""
    dice.choice(
        [
            lambda: file.write_bytes(damaged(file.read_bytes(), dice)),
            lambda: file.write_bytes(b""),
            lambda: file.write_text("<!DOCTYPE html><html></html>", encoding="utf-8"),
            lambda: file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", encoding="utf-8"),
            lambda: rename(file, f"{file.stem}.{dice.choice(['gif', 'heic', 'jpeg', 'txt', 'JPG', 'bmp'])}"),
            lambda: (file.parent / ".hidden.png").write_bytes(b"nothing"),
            lambda: (file.parent / "Thumbs.db").write_bytes(b"nothing"),
            lambda: (file.parent / "labels.json").write_text("{}", encoding="utf-8"),
            lambda: rename(file, f"Bild 图 {file.name}"),
            lambda: file.unlink(),
            lambda: (file.parent / "deeper").mkdir(exist_ok=True),
            lambda: (file.parent / f"link-{dice.randrange(99)}.png").symlink_to("nowhere"),
            lambda: rename(file.parent, dice.choice(["ant ", "wasp", "BEE"])),
            lambda: rename(file.parent.parent, dice.choice(["valid", "testing", "training", "more"])),
        ]
    )()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("broken", ["refuse", "skip"])
def test_a_damaged_folder_is_refused_or_each_picture_has_its_label(tmp_path, seed, broken):
    dice = random.Random(seed)
    write_folder(tmp_path, dice)
    for _ in range(dice.randint(1, 3)):
        with contextlib.suppress(OSError):  # a second damage may be impossible, such as a name that is taken
            happen_to(dice.choice([path for path in sorted(tmp_path.rglob("*")) if path.is_file()]), dice)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = slim.load_images(tmp_path, 32, broken=broken)
    except REFUSALS as error:
        assert_refused_by_us(error, tmp_path)
        return
    bright = [data.class_names.index(name) for name in data.class_names if name.strip().lower() == "bee"]
    for split in (data.train, data.val, data.test):
        brightness = split.images.float().mean((1, 2, 3))
        expected = torch.tensor([200.0 if label in bright else 40.0 for label in split.labels.tolist()])
        # A damaged picture may be readable and show something else in a part of it.
        assert ((brightness - expected).abs() < 60).all()
