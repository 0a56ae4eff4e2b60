"""The shipped models and how they were made: one small YAML file each.

``python -m yolo_slim_lessons.recipes nano`` trains ``data/weights/nano.pt`` again, resuming where it was stopped,
and rewrites ``data/weights/README.md`` from what it measured.
"""

from __future__ import annotations

import csv
import hashlib
import json
import platform
import time
from pathlib import Path

import torch
import ultralytics
import yaml

from yolo_slim_lessons.data import load_images
from yolo_slim_lessons.models import WEIGHTS_DIR, load_model, new_model, save_model, write_atomically
from yolo_slim_lessons.training import fit, top1_accuracy

RECIPES_DIR = Path(__file__).parent


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

    Every stage starts from the best weights so far. Called again after an interruption, or after a stage was added
    to the recipe, it goes on where the log ends; with a complete log it starts anew. The epoch with the best top-1 on
    ``val`` is kept; ``test`` is looked at when a call ends.
    """
    recipe = read_recipe(name)
    data = load_images(recipe["data"], recipe["image_size"], recipe["seed"])
    checkpoint, log, weights = folder / f"{name}.training", folder / f"{name}-log.csv", folder / f"{name}.pt"
    if len(_read_log(log)) == sum(stage["epochs"] for stage in recipe["stages"]):
        log.unlink()

    for number, stage in enumerate(recipe["stages"]):
        logged = sum(int(row["stage"]) == number + 1 for row in _read_log(log))
        if logged == stage["epochs"]:
            continue
        if number == 0:
            model = new_model(recipe["architecture"], data.class_names, recipe["image_size"], recipe["seed"])
        else:
            model = load_model(weights)
        keep_best = _best_keeper(log, weights, number + 1)
        settings = stage | {"batch_size": recipe["batch_size"], "weight_decay": recipe["weight_decay"]}
        fit(model, data, **settings, seed=recipe["seed"] + number, checkpoint=checkpoint, on_epoch=keep_best)
        checkpoint.unlink()

    rows = _read_log(log)
    best = max(range(len(rows)), key=lambda index: float(rows[index]["val_top1"]))
    trained = load_model(weights)
    result = {
        "recipe": recipe,
        "epochs": len(rows),
        "kept_epoch": best + 1,
        "minutes": round(sum(float(row["seconds"]) for row in rows) / 60),
        "val_top1": top1_accuracy(trained, data.val),
        "test_top1": top1_accuracy(trained, data.test),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "ultralytics": ultralytics.__version__,
        },
    }
    write_atomically(folder / f"{name}.json", lambda file: file.write_text(json.dumps(result, indent=1) + "\n"))
    write_index(folder)
    return weights


def _best_keeper(log: Path, weights: Path, stage: int):
    """What ``fit`` calls after each epoch: log it, and save the weights if no epoch before was better on ``val``."""
    started = time.monotonic()

    def keep_best(epoch: int, loss: float, val_top1: float, model) -> None:
        nonlocal started
        rows = _read_log(log)
        if all(val_top1 > float(row["val_top1"]) for row in rows):
            save_model(model, weights, precision="fp16")
        seconds = time.monotonic() - started
        rows.append(
            {
                "stage": stage,
                "epoch": epoch,
                "loss": f"{loss:.4f}",
                "val_top1": f"{val_top1:.4f}",
                "seconds": f"{seconds:.0f}",
                "threads": torch.get_num_threads(),
            }
        )
        _write_log(log, rows)
        started = time.monotonic()
        print(rows[-1], flush=True)

    return keep_best


def write_index(folder: Path = WEIGHTS_DIR) -> None:
    """Write ``folder``'s README.md and SHA256SUMS from its checkpoints and their measured results."""
    lines = [
        "# Shipped weights",
        "",
        "Written by `python -m yolo_slim_lessons.recipes NAME`, which makes any of these files again.",
        "Trained on Fashion-MNIST's training images less the 5,000 of `val`, on which the epoch was chosen. The 10,000",
        "test images were looked at after each stage. They chose no epoch, but later stages were added with them seen.",
        "The files are FP16; top-1 is what they reach as stored. Settings are in",
        "`yolo_slim_lessons/recipes/NAME.yaml`, every epoch is in `NAME-log.csv`.",
        "Licence: AGPL-3.0, as Ultralytics' code.",
        "",
        "| file | architecture | epochs (kept) | seed | minutes | top-1 on val | top-1 on test |",
        "|---|---|---|---|---|---|---|",
    ]
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        recipe = result["recipe"]
        lines.append(
            f"| `{file.stem}.pt` | {Path(recipe['architecture']).stem} at {recipe['image_size']} px "
            f"| {result['epochs']} ({result['kept_epoch']}) | {recipe['seed']} "
            f"| {result['minutes']} | {result['val_top1']:.2%} | {result['test_top1']:.2%} |"
        )
    write_atomically(folder / "README.md", lambda file: file.write_text("\n".join(lines) + "\n", encoding="utf-8"))
    checksums = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sorted(folder.glob("*.pt"))
    ]
    write_atomically(folder / "SHA256SUMS", lambda file: file.write_text("".join(checksums), encoding="utf-8"))


def _read_log(log: Path) -> list[dict]:
    if not log.exists():
        return []
    with log.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _write_log(log: Path, rows: list[dict]) -> None:
    def write(file: Path) -> None:
        with file.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(log, write)
