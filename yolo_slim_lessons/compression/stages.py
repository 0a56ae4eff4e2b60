"""What a stage is: a function of this package with its settings, and what all stages of a recipe share.

Leaves out: their order and their scorecards (``compress``).
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import yaml
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.compression.stage_bar import StageBar
from yolo_slim_lessons.data import ImageData, Split
from yolo_slim_lessons.distillation import TeacherCache, cache_teacher, distill
from yolo_slim_lessons.files import RECIPES_DIR, fingerprint, write_atomically
from yolo_slim_lessons.packing import load_packed, packed_sizes, save_packed
from yolo_slim_lessons.pruning.blocks import remove_bottlenecks, replace_activations
from yolo_slim_lessons.pruning.channels import prune_channels, reestimate_batchnorm
from yolo_slim_lessons.pruning.weights import prune_weights
from yolo_slim_lessons.quantization import few_bits, quantize_integer
from yolo_slim_lessons.quantization.few_bits import round_biases, train_quantized
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
    files = RECIPES_DIR.glob("*.yaml")
    shipped = {file.stem: file for file in files if "\nstart:" in file.read_text(encoding="utf-8")}
    file = Path(shipped.get(recipe, recipe))
    if not file.is_file():
        expected = f"expected the path of a YAML file, or one of {sorted(shipped)}"
        raise FileNotFoundError(f"recipe={str(recipe)!r}: there is no such file; {expected}")
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no YAML file: {error}. Mend it there, or write it again") from error


class RecipeRun:
    """What the stages of a recipe share: data, teacher, seed, and the folder in which finished stages are found again.

    Attributes:
        data, teacher, seed, progress, folder: as ``compress`` was given them.
        bar: learns what is finished.
        history: all that the next stage depends on; its files are named by a hash of that.
    """

    def __init__(self, model, teacher, data: ImageData, seed: int, folder: Path | None, progress: bool, bar: StageBar):
        self.teacher, self.data, self.seed, self.folder, self.progress = teacher, data, seed, folder, progress
        self.bar, self.on_epoch = bar, bar.epoch
        self.history: list = []
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.history = [fingerprint(model), fingerprint(teacher), data.train.fingerprint(), seed]

    @property
    def calibration(self) -> Split:
        return self.data.train.take(min(CALIBRATION_IMAGES, len(self.data.train)))

    split = calibration  # as ``reestimate_batchnorm`` calls it

    @property
    def checkpoint(self) -> Path | None:
        return self._file("training.pt")

    def stage(self, model: ClassificationModel, name: str, settings: dict) -> tuple[ClassificationModel, float]:
        """What the stage makes of ``model``, and the seconds that it took; from the folder, if it is there."""
        self.history.append([name, settings])
        self.bar.begin(name)
        finished = self._file(f"{name}.slim")
        if finished and finished.exists():
            self.bar.end(found=True)
            note = json.loads(finished.with_suffix(".json").read_text(encoding="utf-8"))
            return load_packed(finished), note["seconds"]
        started = time.monotonic()
        function, shared = STAGES[name]
        options = {argument: getattr(self, argument) for argument in shared} | settings
        if function in (distill, train_quantized):
            options.setdefault("cache", self.answers(options.pop("versions", None), options.get("augment", True)))
        made = function(model, **options)
        seconds = time.monotonic() - started
        self.bar.end(found=False)
        if finished:
            self._keep(made, finished, {"stage": name, "settings": settings, "seconds": seconds})
        return made, seconds

    def _keep(self, made: ClassificationModel, finished: Path, note: dict) -> None:
        """Write what a stage made; if it cannot be packed, the state of its training stays instead."""
        text = json.dumps(note)
        write_atomically(finished.with_suffix(".json"), lambda file: file.write_text(text, encoding="utf-8"))
        with contextlib.suppress(ValueError):
            save_packed(made, finished)
            self.checkpoint.unlink(missing_ok=True)

    def answers(self, versions: int | None, augment: bool | str = True) -> TeacherCache | None:
        """The teacher's, to so many versions of each image; kept in the folder, for other recipes to use."""
        if versions is None:  # the teacher is asked anew in every epoch
            return None
        known_by = [*self.history[1:4], versions] + ([] if augment is True else [augment])
        file = self.folder and self.folder / f"answers-{hash_of(known_by)}.pt"
        if file and file.exists():
            return TeacherCache(self.data.train.images, **torch.load(file, weights_only=True), augment=augment)
        options = {"augment": augment, "seed": self.seed, "progress": self.progress}
        cache = cache_teacher(self.teacher, self.data.train, versions, **options)
        if file:
            write_atomically(file, lambda path: torch.save({"scores": cache.scores, "seeds": cache.seeds}, path))
        return cache

    def _file(self, ending: str) -> Path | None:
        """A file of the stage that is being made."""
        number = len(self.history) - 4
        return self.folder and self.folder / f"{number:02}-{hash_of(self.history)}-{ending}"


def packed_bytes(model: ClassificationModel) -> int | None:
    """Of its ``.slim`` file; ``None`` for a network that packing cannot describe, such as one of a custom YAML file."""
    try:
        return packed_sizes(model).file
    except ValueError:
        return None


def hash_of(value: object) -> str:
    """Twelve characters for a file's name, of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def _quantize_integer(model, calibration: Split, activation_bits=None, correct_biases: bool = False, **settings):
    images = None if activation_bits is None else calibration
    quantized = quantize_integer(model, activation_bits=activation_bits, calibration=images, warn=False, **settings)
    return few_bits.correct_biases(quantized, model, calibration) if correct_biases else quantized


_TRAINING = ("data", "seed", "checkpoint", "progress", "on_epoch")

# Name of a stage → its function, and the arguments that all stages share of which it takes some. A recipe may set these
# anew. ``distill`` and ``train_quantized`` also know ``versions``, as of ``cache_teacher``; ``quantize_integer`` knows
# ``correct_biases: true``.
STAGES: dict[str, tuple[Callable[..., ClassificationModel], tuple[str, ...]]] = {
    "replace_activations": (replace_activations, ()),
    "remove_bottlenecks": (remove_bottlenecks, ()),
    "prune_channels": (prune_channels, ("seed", "calibration")),
    "reestimate_batchnorm": (reestimate_batchnorm, ("split",)),
    "prune_weights": (prune_weights, ("seed",)),
    "fit": (fit, _TRAINING),
    "distill": (distill, ("teacher", *_TRAINING)),
    "quantize_integer": (_quantize_integer, ("calibration",)),
    "train_quantized": (train_quantized, ("teacher", *_TRAINING)),
    "round_biases": (round_biases, ()),
}
