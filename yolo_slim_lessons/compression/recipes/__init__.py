"""The shipped models and how they were made: one small YAML file each.

``python -m yolo_slim_lessons.compression.recipes nano`` trains ``data/weights/nano.pt`` again, resuming where it was
stopped, and rewrites ``data/weights/README.md`` from what it measured. A recipe with ``architecture`` trains from
random weights (``train``), one with ``start`` takes a trained model through the stages of ``compress``
(``compress_shipped``). Leaves out: recipes of one's own, which ``compress`` takes.
"""

import csv
import io
import json
import platform
import time
from pathlib import Path

import torch
import ultralytics
import yaml

from yolo_slim_lessons.compression import compress
from yolo_slim_lessons.compression.recipes.index import write_index
from yolo_slim_lessons.data import ImageData, load_images
from yolo_slim_lessons.files import RECIPES_DIR, WEIGHTS_DIR, fingerprint, write_atomically
from yolo_slim_lessons.models import load_model, new_model, save_model
from yolo_slim_lessons.packing import load_packed, save_packed
from yolo_slim_lessons.quantization import dequantize
from yolo_slim_lessons.training import fit, top1_accuracy


def read_recipe(name: str) -> dict:
    """The settings of recipe ``name``.

    Raises:
        ValueError: there is no such recipe.
    """
    names = sorted(file.stem for file in RECIPES_DIR.glob("*.yaml"))
    if name not in names:
        raise ValueError(f"recipe={name!r}: expected one of {names}")
    return yaml.safe_load((RECIPES_DIR / f"{name}.yaml").read_text(encoding="utf-8"))


def train(name: str, folder: Path = WEIGHTS_DIR) -> Path:
    """Train the model of recipe ``name`` and write ``name.pt`` (FP16), its log and a new README into ``folder``.

    Every stage starts from the best weights so far, by top-1 on ``val``; ``test`` is looked at when a call ends. Called
    again after an interruption, or with a new stage, it goes on where the log ends; with a complete log it starts anew.
    """
    recipe, data = _recipe_and_data(name)
    seed, shared = recipe["seed"], {key: recipe[key] for key in ("batch_size", "weight_decay")}
    checkpoint, log, weights = folder / f"{name}.training", folder / f"{name}-log.csv", folder / f"{name}.pt"
    if len(_read_log(log)) == sum(stage["epochs"] for stage in recipe["stages"]):
        log.unlink()
    for number, stage in enumerate(recipe["stages"], start=1):
        if sum(int(row["stage"]) == number for row in _read_log(log)) == stage["epochs"]:
            continue
        if number == 1:
            model = new_model(recipe["architecture"], data.class_names, recipe["image_size"], seed)
        else:
            model = load_model(weights)
        options = stage | shared | {"seed": seed + number - 1, "on_epoch": _best_keeper(log, weights, number)}
        fit(model, data, **options, checkpoint=checkpoint)
        checkpoint.unlink()

    rows = _read_log(log)
    top1 = [float(row["val_top1"]) for row in rows]
    minutes = round(sum(float(row["seconds"]) for row in rows) / 60)
    result = {"epochs": len(rows), "kept_epoch": top1.index(max(top1)) + 1, "minutes": minutes}
    _write_result(name, recipe, result, load_model(weights), data, folder)
    return weights


def compress_shipped(name: str, folder: Path = WEIGHTS_DIR) -> Path:
    """Run the stages of recipe ``name`` and write into ``folder`` what it ``makes``, its results and a new README.

    Finished stages are kept in ``folder/compress.training/``, where a call that was stopped goes on. ``test`` is looked
    at once, at the end, with the first file.
    """
    recipe, data = _recipe_and_data(name)
    start, teacher = load_model(recipe["start"]), load_model(recipe["teacher"])
    made = compress(start, data, recipe, teacher=teacher, folder=folder / "compress.training")
    files = [folder / file for file in recipe["makes"]]
    for file in files:
        if file.suffix == ".slim":
            save_packed(made.model, file)
        else:
            save_model(dequantize(made.model), file, precision="fp16")
    stored = load_packed(files[0]) if files[0].suffix == ".slim" else load_model(files[0])
    result = {
        "start": fingerprint(start),
        "teacher": fingerprint(teacher),
        "stages": [
            {
                "name": stage.name,
                "val_top1": stage.scores.top1,
                "parameters": stage.parameters,
                "macs": stage.macs,
                "packed_bytes": stage.packed_bytes,
                "seconds": round(stage.seconds),
            }
            for stage in made.stages
        ],
        "minutes": round(sum(stage.seconds for stage in made.stages) / 60),
        "factor": made.factor,
    }
    _write_result(name, recipe, result, stored, data, folder)
    return files[0]


def _recipe_and_data(name: str) -> tuple[dict, ImageData]:
    recipe = read_recipe(name)
    return recipe, load_images(recipe["data"], recipe["image_size"], recipe["seed"])


def _write_result(name: str, recipe: dict, result: dict, stored, data: ImageData, folder: Path) -> None:
    """Write ``name.json``, with the accuracy of the model as ``stored``, and the list of all shipped files anew."""
    top1 = {"val_top1": top1_accuracy(stored, data.val), "test_top1": top1_accuracy(stored, data.test)}
    versions = {"python": platform.python_version(), "torch": torch.__version__, "ultralytics": ultralytics.__version__}
    text = json.dumps({"recipe": recipe} | result | top1 | {"versions": versions}, indent=1) + "\n"
    write_atomically(folder / f"{name}.json", lambda file: file.write_text(text, encoding="utf-8"))
    write_index(folder)


def _best_keeper(log: Path, weights: Path, stage: int):
    """What ``fit`` calls after each epoch: log it, and save the weights if no epoch before was better on ``val``."""
    started = time.monotonic()

    def keep_best(epoch: int, loss: float, val_top1: float, model) -> None:
        nonlocal started
        rows = _read_log(log)
        if all(val_top1 > float(row["val_top1"]) for row in rows):
            save_model(model, weights, precision="fp16")
        row = {"stage": stage, "epoch": epoch, "loss": f"{loss:.4f}", "val_top1": f"{val_top1:.4f}"}
        row |= {"seconds": f"{time.monotonic() - started:.0f}", "threads": torch.get_num_threads()}
        _write_log(log, [*rows, row])
        started = time.monotonic()
        print(row, flush=True)

    return keep_best


def _read_log(log: Path) -> list[dict]:
    if not log.exists():
        return []
    with log.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _write_log(log: Path, rows: list[dict]) -> None:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(log, lambda file: file.write_bytes(stream.getvalue().encode()))
