"""What a stage is: a function of this package with its settings, and what all stages share.

Leaves out: their order, and what came of it (``compress``).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import yaml
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.data import ImageData
from yolo_slim_lessons.distillation import TeacherCache, cache_teacher, distill
from yolo_slim_lessons.files import RECIPES_DIR, fingerprint, write_atomically
from yolo_slim_lessons.packing import load_packed, save_packed
from yolo_slim_lessons.pruning.blocks import remove_bottlenecks, replace_activations
from yolo_slim_lessons.pruning.channels import prune_channels, reestimate_batchnorm
from yolo_slim_lessons.pruning.weights import prune_weights
from yolo_slim_lessons.quantization import quantize_integer
from yolo_slim_lessons.quantization.few_bits import correct_biases, round_biases, train_quantized
from yolo_slim_lessons.training import fit

CALIBRATION_IMAGES = 512


def read_stages(recipe: str | Path | Mapping[str, object]) -> dict:
    """A recipe, by its name, path or contents, with its stages as (name, settings) and a seed.

    Raises:
        ValueError: there is no list of stages, or one that is no function of ``STAGES`` with settings.
        FileNotFoundError: there is no such recipe.
    """
    if isinstance(recipe, str | Path):
        recipe = _read(recipe)
    if not isinstance(recipe, Mapping) or not isinstance(recipe.get("stages"), list):
        raise ValueError(f"recipe={recipe!r:.80}: expected a mapping with stages, which are a list")
    stages = []
    for number, stage in enumerate(recipe["stages"], start=1):
        if not isinstance(stage, Mapping) or len(stage) != 1:
            raise ValueError(f"stage {number} is {stage!r:.80}: expected one name with its settings")
        ((name, settings),) = stage.items()
        if name not in STAGES:
            raise ValueError(f"stage {number} is {name!r}: expected one of {sorted(STAGES)}")
        if not isinstance(settings, Mapping | None):
            raise ValueError(f"stage {number}, {name}, has {settings!r:.80}: expected settings by name, or nothing")
        stages.append((name, dict(settings or {})))
    return {"seed": recipe.get("seed", 0), "stages": stages}


def _read(recipe: str | Path) -> object:
    """What stands in the file of a recipe; a name of one that is shipped goes before a path."""
    files = {file.stem: file for file in RECIPES_DIR.glob("*.yaml")}
    shipped = {name: file for name, file in files.items() if "\nstart:" in file.read_text(encoding="utf-8")}
    file = Path(shipped.get(recipe, recipe))
    if not file.is_file():
        raise FileNotFoundError(
            f"recipe={str(recipe)!r}: there is no such file; expected the path of a YAML file, or one of "
            f"{sorted(shipped)}"
        )
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no YAML file: {error}. Mend it there, or write it again") from error


class Workshop:
    """What all stages share: data, teacher, seed, and the folder in which finished stages are found again."""

    def __init__(self, model, teacher, data: ImageData, seed: int, folder: Path | None):
        self.teacher, self.data, self.seed, self.folder = teacher, data, seed, folder
        images = data.train.images
        grey = images.stride(1) == 0  # one channel, shown three times
        images = f"{len(images)} {fingerprint(images[:, :1] if grey else images)}"
        self.history = [fingerprint(model), fingerprint(teacher), images, seed]

    @property
    def calibration(self):
        return self.data.train.take(min(CALIBRATION_IMAGES, len(self.data.train)))

    def run(self, model, name: str, settings: dict, progress: bool) -> tuple[ClassificationModel, float]:
        """What the stage makes of ``model``, and the seconds that it took; from the folder, if it is there."""
        self.history.append([name, settings])
        finished = self._file(f"{name}.slim")
        if finished and finished.exists():
            return load_packed(finished), json.loads(self._file(f"{name}.json").read_text())["seconds"]
        started = time.monotonic()
        made = STAGES[name](model, self, settings, progress)
        seconds = time.monotonic() - started
        if finished:
            note = json.dumps({"stage": name, "settings": settings, "seconds": seconds})
            write_atomically(self._file(f"{name}.json"), lambda file: file.write_text(note))
            save_packed(made, finished)
            self._file("training.pt").unlink(missing_ok=True)
        return made, seconds

    def training(self, settings: dict, progress: bool) -> dict:
        """Settings of a training, with what the recipe leaves to its surroundings."""
        checkpoint = self._file("training.pt")
        if checkpoint:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
        return {"seed": self.seed, "checkpoint": checkpoint, "progress": progress} | settings

    def answers(self, versions: int, progress: bool) -> TeacherCache:
        """The teacher's, to so many versions of each image; kept in the folder, for other recipes to use."""
        key = hashlib.sha256(json.dumps([*self.history[1:4], versions]).encode()).hexdigest()[:12]
        file = self.folder and self.folder / f"answers-{key}.pt"
        if file and file.exists():
            return TeacherCache(self.data.train.images, **torch.load(file, weights_only=True))
        cache = cache_teacher(self.teacher, self.data.train, versions, seed=self.seed, progress=progress)
        if file:
            write_atomically(file, lambda path: torch.save({"scores": cache.scores, "seeds": cache.seeds}, path))
        return cache

    def _file(self, ending: str) -> Path | None:
        """A file for the stage that is being made: its name holds what all stages so far were called with."""
        if self.folder is None:
            return None
        key = hashlib.sha256(json.dumps(self.history).encode()).hexdigest()[:12]
        return self.folder / f"{len(self.history) - 4:02}-{key}-{ending}"


def _distill(model, workshop: Workshop, settings: dict, progress: bool):
    """With ``versions``, the teacher is asked once for each of so many versions of an image, not in every epoch."""
    settings = dict(settings)
    versions = settings.pop("versions", None)
    cache = None if versions is None else workshop.answers(versions, progress)
    return distill(model, workshop.teacher, workshop.data, cache=cache, **workshop.training(settings, progress))


def _train_quantized(model, workshop: Workshop, settings: dict, progress: bool):
    settings = dict(settings)
    versions = settings.pop("versions", None)
    cache = None if versions is None else workshop.answers(versions, progress)
    options = workshop.training(settings, progress) | {"teacher": workshop.teacher, "cache": cache}
    return train_quantized(model, workshop.data, **options)


def _quantize_integer(model, workshop: Workshop, settings: dict, progress: bool):
    """With ``activation_bits``, ``correct_biases: true`` may follow among the settings."""
    settings = dict(settings)
    corrected = settings.pop("correct_biases", False)
    needs_images = settings.get("activation_bits") is not None
    quantized = quantize_integer(model, **settings, calibration=workshop.calibration if needs_images else None)
    return correct_biases(quantized, model, workshop.calibration) if corrected else quantized


# Name of a stage → function of the model, the workshop, the settings, and whether to show progress.
STAGES: dict[str, Callable[[ClassificationModel, Workshop, dict, bool], ClassificationModel]] = {
    "replace_activations": lambda model, workshop, settings, progress: replace_activations(model, **settings),
    "remove_bottlenecks": lambda model, workshop, settings, progress: remove_bottlenecks(model, **settings),
    "prune_channels": lambda model, workshop, settings, progress: prune_channels(
        model, **{"seed": workshop.seed, "calibration": workshop.calibration} | settings
    ),
    "reestimate_batchnorm": lambda model, workshop, settings, progress: reestimate_batchnorm(
        model, workshop.calibration, **settings
    ),
    "prune_weights": lambda model, workshop, settings, progress: prune_weights(model, **settings),
    "fit": lambda model, workshop, settings, progress: fit(
        model, workshop.data, **workshop.training(settings, progress)
    ),
    "distill": _distill,
    "quantize_integer": _quantize_integer,
    "train_quantized": _train_quantized,
    "round_biases": lambda model, workshop, settings, progress: round_biases(model, **settings),
}
