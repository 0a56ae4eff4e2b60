"""The images of the capstone: solar cells if ``elpv-dataset`` is installed, any folder of yours, else clothes.

The photographs of solar cells (Buerhop-Lutz et al., 2018; Deitsch et al., 2019) are licensed CC BY-NC-SA 4.0: not for
commercial use. They come with the Python package ``elpv-dataset``, which is not installed unless you ask for it, and
nothing of it is part of this course. Leaves out: the grade of a defect; four probabilities become two classes.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources, util
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from yolo_slim_lessons.data import FASHION_MNIST_CLASSES, ImageData, Split, load_images
from yolo_slim_lessons.teaching.capstone.sealing import seal_test

CELLS_A_MODULE = 60  # 2,624 cells of 44 modules; which cell is of which, the data set does not say
ORDERED = ("T-shirt/top", "Pullover", "Coat")
STRAY_SHARE = 0.1
CLOTHES = {"train": 1600, "val": 600, "test": 1500}  # images of each split
MIXED = "Cells of one module may be in training and test images alike, so that new modules may be harder."
APART = f"Stretches of {CELLS_A_MODULE} neighbouring cells, about a module each, are in one split."
HOW_TO_GET_CELLS = (
    "The photographs of solar cells come with the package elpv-dataset (91 MB; CC BY-NC-SA 4.0: not for commercial "
    "use). To get them, run\n    pip install elpv-dataset\nand restart the kernel. Until then this notebook runs on "
    "clothes."
)


@dataclass(frozen=True)
class Task:
    """A thing to be done, with its images.

    Attributes:
        data: with a seal on ``test`` (``seal_test``).
        defect: label of the class that must not be missed.
        groups: split → one word for each of its images, to look at errors by.
        story: what it is about.
        description: of the images, for a model card.
        licence: of the images, for a model card.
        epochs: how often a training may look at each image to get somewhere.
    """

    data: ImageData
    defect: int
    groups: Mapping[str, tuple[str, ...]]
    story: str
    description: str
    licence: str
    epochs: int = 12

    @property
    def defect_name(self) -> str:
        return self.data.class_names[self.defect]

    def is_defect(self, split: Split) -> torch.Tensor:
        """The truth: bool N."""
        return split.labels == self.defect


def load_task(
    source: str | Path = "solar cells",
    image_size: int | None = None,
    seed: int = 0,
    *,
    defect: str | None = None,
    neighbours_apart: bool = False,
) -> Task:
    """Images, and which of their classes must not be missed.

    Args:
        source: ``"solar cells"``, which are clothes as long as ``elpv-dataset`` is not installed; ``"clothes"``; or
            the path of a folder, as for ``load_images``.
        image_size: pixels a side; ``None`` takes 128, and 64 for clothes, which have no more to show.
        seed: of the splits; the same seed gives the same images.
        defect: name of the class that must not be missed; ``None`` takes the rarest one of ``train``.
        neighbours_apart: for solar cells: cells whose numbers are close come into the same split.

    Raises:
        ValueError: there is no class ``defect``, or whatever ``load_images`` objects to.
        FileNotFoundError: the folder is missing.
    """
    cells_missing = source == "solar cells" and util.find_spec("elpv_dataset") is None
    if source == "clothes" or cells_missing:
        task = _clothes(image_size or 64, seed)
        task = replace(task, story=f"{HOW_TO_GET_CELLS}\n\n{task.story}") if cells_missing else task
    elif source == "solar cells":
        task = _solar_cells(image_size or 128, seed, neighbours_apart)
    else:
        task = _folder(Path(source), image_size or 128, seed)
    if defect is not None:
        if defect not in task.data.class_names:
            raise ValueError(f"defect={defect!r}: expected one of {list(task.data.class_names)}")
        task = replace(task, defect=task.data.class_names.index(defect))
    return replace(task, data=seal_test(task.data))


def _solar_cells(image_size: int, seed: int, neighbours_apart: bool) -> Task:
    """60 % to learn from, 20 % to choose by, 20 % for the end: defects and kinds of cells in proportion in each."""
    root = resources.files("elpv_dataset") / "data"
    columns = [line.split() for line in (root / "labels.csv").read_text(encoding="utf-8").splitlines()]
    probabilities = np.array([float(probability) for _, probability, _ in columns])
    doubtful = (probabilities > 0) & (probabilities < 1)
    kinds = [f"{kind}, {'doubtful' if doubt else 'sure'}" for (*_, kind), doubt in zip(columns, doubtful, strict=True)]
    strata = [f"{probability} {kind}" for _, probability, kind in columns]
    parts = _apart(strata, seed) if neighbours_apart else _at_random(strata, seed)
    groups = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, numbers in parts.items():
            rows = [
                ("defective" if probabilities[number] >= 0.5 else "sound", Path(columns[number][0]).name, number)
                for number in numbers
            ]
            for class_name, file, number in rows:
                copy = Path(folder, name, class_name, file)
                copy.parent.mkdir(parents=True, exist_ok=True)
                with resources.as_file(root / columns[number][0]) as photograph:
                    shutil.copyfile(photograph, copy)
            # load_images goes by class, then by file name, and so do these.
            groups[name] = tuple(kinds[number] for _, _, number in sorted(rows))
        data = load_images(folder, image_size)
    return Task(
        data,
        defect=data.class_names.index("defective"),
        groups=groups,
        story="Solar cells, photographed in the dark while a current makes them glow (electroluminescence). Cracks and "
        "dead parts stay dark. Experts have graded each cell: defective for certain, probably, probably not, or sound. "
        "Here the first two are 'defective', the others 'sound'.",
        description="Electroluminescence photographs of 2,624 solar cells of 44 modules (Buerhop-Lutz et al., 2018; "
        "Deitsch et al., 2019; package elpv-dataset), defective if the experts' probability is at least 0.5. "
        + (APART if neighbours_apart else MIXED),
        licence="The photographs are licensed CC BY-NC-SA 4.0: not for commercial use, and what is made of them is to "
        "be shared alike. The course's code and weights are AGPL-3.0.",
    )


def _at_random(strata: list[str], seed: int) -> dict[str, np.ndarray]:
    strata = np.array(strata)
    rest, test = train_test_split(np.arange(len(strata)), test_size=0.2, stratify=strata, random_state=seed)
    train, val = train_test_split(rest, test_size=0.25, stratify=strata[rest], random_state=seed)
    return {"train": train, "val": val, "test": test}


def _apart(strata: list[str], seed: int) -> dict[str, np.ndarray]:
    """Stretches of neighbours stay together, and the proportions are kept as well as that allows."""
    stretches = np.arange(len(strata)) // CELLS_A_MODULE
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(stretches, strata, stretches)
    fifths = [numbers for _, numbers in folds]
    return {"train": np.concatenate(fifths[2:]), "val": fifths[1], "test": fifths[0]}


def _clothes(image_size: int, seed: int) -> Task:
    """Three classes of Fashion-MNIST as one, and a few of a fourth that looks like them all."""
    everything = load_images("fashion-mnist", image_size)
    generator = torch.Generator().manual_seed(seed)
    wanted = {name: (1 - STRAY_SHARE) / len(ORDERED) for name in ORDERED} | {"Shirt": STRAY_SHARE}
    splits, groups = {}, {}
    for name, count in CLOTHES.items():
        split = getattr(everything, name)
        chosen = []
        for class_name, share in wanted.items():
            members = (split.labels == FASHION_MNIST_CLASSES.index(class_name)).nonzero().squeeze(1)
            chosen.append(members[torch.randperm(len(members), generator=generator)][: round(share * count)])
        part = split[torch.cat(chosen)]
        groups[name] = tuple(FASHION_MNIST_CLASSES[label] for label in part.labels)
        splits[name] = Split(part.images, (part.labels == FASHION_MNIST_CLASSES.index("Shirt")).long())
    data = ImageData(**splits, class_names=("as ordered", "stray"), image_size=image_size)
    return Task(
        data,
        defect=1,
        groups=groups,
        story="A warehouse packs T-shirts, pullovers and coats, three classes of Fashion-MNIST as one: 'as ordered'. "
        "Now and then a shirt gets among them, which looks much like all three: 'stray'. It is to be found before the "
        "parcel leaves.",
        description=f"Fashion-MNIST (Xiao et al., 2017): {', '.join(ORDERED)} as one class, and shirts, made rare.",
        licence="The images are licensed MIT. The course's code and weights are AGPL-3.0.",
        epochs=4,
    )


def _folder(folder: Path, image_size: int, seed: int) -> Task:
    data = load_images(folder, image_size, seed)
    counts = torch.bincount(data.train.labels, minlength=len(data.class_names))
    groups = {
        name: tuple(data.class_names[label] for label in getattr(data, name).labels)
        for name in ("train", "val", "test")
    }
    return Task(
        data,
        defect=int(counts.argmin()),
        groups=groups,
        story=f"Images of your own, from {folder.name}: {', '.join(data.class_names)}.",
        description=f"The image folder {folder.name}.",
        licence="That of the images, which their owner knows. The course's code and weights are AGPL-3.0.",
    )
