"""Real images as tensors: Fashion-MNIST by name, any image folder by path.

Images stay ``uint8`` until a batch needs floats: a batch of floats is small, a data set of floats is not.
Used from lesson 00 on. Leaves out: augmentation (``training.py``) and videos, boxes or masks of any kind.
"""

from __future__ import annotations

import hashlib
import numbers
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from sklearn.model_selection import train_test_split
from torchvision.datasets import ImageFolder
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.transforms import v2
from tqdm.auto import tqdm

DATA_DIR = Path(__file__).resolve().parents[1] / "data"
FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
VAL_FRACTION = 1 / 12  # 5,000 of Fashion-MNIST's 60,000 training images


@dataclass(frozen=True)
class Split:
    """Images with their labels.

    Attributes:
        images: uint8 tensor, N×3×H×W, RGB (grey images repeat their one channel without copying it).
        labels: int64 tensor, N; -1 where there is none, which ``distill`` understands.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices) -> Split:
        """The images at ``indices`` (a slice, a mask or an index tensor) as a new split.

        Raises:
            TypeError: ``indices`` is one number; ``split.images[7]`` is one image.
        """
        if isinstance(indices, numbers.Integral):
            raise TypeError(f"indices={indices}: expected a slice, a mask or an index tensor, such as [{indices}:]")
        if self.images.stride(1) == 0:  # grey: index the one channel, then repeat it again without a copy
            return Split(self.images[:, :1][indices].expand(-1, 3, -1, -1), self.labels[indices])
        return Split(self.images[indices], self.labels[indices])

    def take(self, n: int) -> Split:
        """The same ``n`` images at every call, each class in proportion; ``take(100)`` is part of ``take(200)``.

        Raises:
            ValueError: if ``n`` is not between 1 and ``len(self)``.
        """
        if not isinstance(n, numbers.Integral) or not 1 <= n <= len(self):
            raise ValueError(f"n={n!r}: expected 1 to {len(self)}, the number of images in this split")
        place_in_class = torch.empty(len(self))
        for label in self.labels.unique():
            members = (self.labels == label).nonzero().squeeze(1)
            place_in_class[members] = (torch.arange(len(members)) + 0.5) / len(members)
        # Every class is spread evenly over 0…1, so the first n places hold each class in proportion.
        return self[place_in_class.argsort(stable=True)[:n].sort().values]

    def batches(self, batch_size: int = 256) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Pairs of (float images in 0…1, labels), in order; the last batch may be smaller.

        Raises:
            ValueError: ``batch_size`` is not a positive integer.
        """
        if not isinstance(batch_size, numbers.Integral) or batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r}: expected a positive integer")
        for images, labels in zip(self.images.split(batch_size), self.labels.split(batch_size), strict=True):
            yield as_floats(images), labels


@dataclass(frozen=True)
class ImageData:
    """A data set in three parts: learn from ``train``, choose on ``val``, report on ``test``.

    Attributes:
        train, val, test: three ``Split`` that share no image.
        class_names: one name per label, in the order of the labels.
        image_size: height and width in pixels.
    """

    train: Split
    val: Split
    test: Split
    class_names: tuple[str, ...]
    image_size: int

    def take(self, train: int, val: int | None = None) -> ImageData:
        """The same data with fewer images: a stratified part of ``train`` and, if asked, of ``val``."""
        smaller_val = self.val if val is None else self.val.take(val)
        return ImageData(self.train.take(train), smaller_val, self.test, self.class_names, self.image_size)

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {len(getattr(self, name)):,}" for name in ("train", "val", "test"))
        return f"ImageData({parts} images; {len(self.class_names)} classes; {self.image_size} px)"


def as_floats(images: torch.Tensor) -> torch.Tensor:
    """uint8 N×3×H×W in 0…255 to float32 in 0…1, channels last in memory, which convolutions on a CPU prefer."""
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255)


def load_images(source: str | Path = "fashion-mnist", image_size: int = 64, seed: int = 0) -> ImageData:
    """Load a data set into memory.

    Args:
        source: ``"fashion-mnist"``, or the path of a folder with ``train/`` and optionally ``val/`` and ``test/``,
            each with one folder of images a class. A missing ``val`` or ``test`` is split off ``train``,
            every class in proportion.
        image_size: pixels a side, a multiple of 32 (the network halves the picture five times). The shorter edge
            is resized to it and the centre cut out, as Ultralytics does.
        seed: of the split; the same seed gives the same images.

    Raises:
        ValueError: ``image_size`` is not a multiple of 32, a class is empty, an image is broken, or a file of
            Fashion-MNIST is altered (all named).
        FileNotFoundError: the folder, its ``train/`` or a file of Fashion-MNIST is missing (named).

    Example:
        >>> load_images("fashion-mnist", image_size=32)
        ImageData(train 55,000, val 5,000, test 10,000 images; 10 classes; 32 px)
    """
    if not isinstance(image_size, int) or image_size < 32 or image_size % 32:
        raise ValueError(f"image_size={image_size!r}: expected a multiple of 32, such as 32, 64, 96 or 224")
    if source == "fashion-mnist":
        verify_files(DATA_DIR / "fashion-mnist")
        splits = {
            "train": _fashion_mnist_split("train", image_size),
            "test": _fashion_mnist_split("t10k", image_size),
        }
        class_names = FASHION_MNIST_CLASSES
    else:
        splits, class_names = _folder_splits(Path(source), image_size)
    for name in ("val", "test"):
        if name not in splits:
            splits["train"], splits[name] = _split_off(splits["train"], name, seed)
    return ImageData(splits["train"], splits["val"], splits["test"], class_names, image_size)


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
        pairs = tqdm(zip(split.images, split.labels, strict=True), f"write {name}", len(split), delay=2, leave=False)
        for number, (image, label) in enumerate(pairs):
            pixels = image.permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(folders[label] / f"{number:05d}.png", compress_level=1)
    return path


def verify_files(folder: Path, only: str | None = None) -> None:
    """Compare the files listed in ``folder/SHA256SUMS``, or ``only`` one of them, with their checksums.

    Raises:
        FileNotFoundError: a file is missing (the first one is named, with the way to get it back).
        ValueError: a file is damaged or altered (likewise).
    """
    listed = folder / "SHA256SUMS"
    if not listed.is_file():
        raise FileNotFoundError(
            f"{listed} is missing: install the course from its own folder with 'pip install -e .', "
            f"or get the files back with: git checkout -- data/{folder.name}"
        )
    for line in listed.read_text(encoding="utf-8").splitlines():
        expected, name = line.split()
        if only not in (None, name):
            continue
        file = folder / name
        way_out = f"Get it back with: git checkout -- data/{folder.name}/{name}"
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing. {way_out}")
        actual = hashlib.sha256(file.read_bytes()).hexdigest()
        if actual != expected:
            raise ValueError(
                f"{file} is damaged or altered ({file.stat().st_size:,} bytes, sha256 {actual[:12]}…, "
                f"expected {expected[:12]}…). {way_out}"
            )


def _fashion_mnist_split(prefix: str, image_size: int) -> Split:
    folder = DATA_DIR / "fashion-mnist"
    images = read_image_file(str(folder / f"{prefix}-images-idx3-ubyte")).unsqueeze(1)
    # Resized in parts: torchvision needs some working memory for every image of a call.
    images = torch.cat([v2.functional.resize(part, [image_size] * 2) for part in images.split(2000)])
    return Split(images.expand(-1, 3, -1, -1), read_label_file(str(folder / f"{prefix}-labels-idx1-ubyte")))


def _folder_splits(folder: Path, image_size: int) -> tuple[dict[str, Split], tuple[str, ...]]:
    if not (folder / "train").is_dir():
        raise FileNotFoundError(
            f"source={str(folder)!r}: expected 'fashion-mnist' or a folder that holds train/ "
            "(and optionally val/ and test/) with one folder of images a class"
        )
    splits, class_names = {}, None
    for name in ("train", "val", "test"):
        if not (folder / name).is_dir():
            continue
        try:
            files = ImageFolder(str(folder / name))
        except FileNotFoundError as error:  # torchvision names the empty class or says that there is none
            raise ValueError(f"{folder / name}: {error}") from error
        if class_names not in (None, files.classes):
            raise ValueError(f"{folder / name} has the classes {files.classes}, but train/ has {class_names}")
        class_names = files.classes
        paths = tqdm([path for path, _ in files.samples], f"read {name}", delay=2, leave=False)
        images = torch.stack([_read_image(path, image_size) for path in paths])
        splits[name] = Split(images, torch.tensor(files.targets))
    return splits, tuple(class_names)


def _read_image(path: str, image_size: int) -> torch.Tensor:
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)  # a phone stores how it was held, not an upright picture
            if image.mode.startswith("I"):  # 16-bit grey; convert("RGB") alone would clip it to white
                image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
            if image.mode == "P":  # a palette may hold transparent colours, which RGBA takes without a warning
                image = image.convert("RGBA")
            pixels = v2.functional.pil_to_tensor(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, ImportError, Image.DecompressionBombError) as error:
        # Once imported, Ultralytics makes Image.open look for a HEIF reader where it used to give its reason.
        reason = error.__context__ if isinstance(error, ImportError) else error
        raise ValueError(f"{path} is not a readable image ({reason}): repair or delete it") from error
    return v2.functional.center_crop(v2.functional.resize(pixels, [image_size]), [image_size] * 2)


def _split_off(train: Split, name: str, seed: int) -> tuple[Split, Split]:
    count = max(round(len(train) * VAL_FRACTION), len(train.labels.unique()))  # at least one image a class
    try:
        kept, taken = train_test_split(
            np.arange(len(train)), test_size=count, stratify=train.labels.numpy(), random_state=seed
        )
    except ValueError as error:
        raise ValueError(
            f"train/ has too few images to split {name}/ off it ({error}): add images, or a {name}/ folder"
        ) from error
    return train[torch.from_numpy(np.sort(kept))], train[torch.from_numpy(np.sort(taken))]


def _folder_names(class_names: tuple[str, ...]) -> list[str]:
    """One folder name a class, without the characters that some systems forbid."""
    names = [re.sub(r'[<>:"/\\|?*]', "-", name) for name in class_names]
    # Whoever reads the folders numbers the classes by sorted name; names in another order get a number in front, and
    # so do names that differ in letter case only, which are one folder on Windows and macOS.
    if names == sorted(names) and len({name.casefold() for name in names}) == len(names):
        return names
    digits = len(str(len(names) - 1))
    return [f"{number:0{digits}d} {name}" for number, name in enumerate(names)]
