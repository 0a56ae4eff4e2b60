"""Take a shipped model through the stages of a recipe, and ship what comes out."""

from __future__ import annotations

from pathlib import Path

from yolo_slim_lessons.compression import compress
from yolo_slim_lessons.compression.recipes import read_recipe, write_result
from yolo_slim_lessons.data import load_images
from yolo_slim_lessons.files import WEIGHTS_DIR, fingerprint
from yolo_slim_lessons.models import load_model, save_model
from yolo_slim_lessons.packing import load_packed, save_packed
from yolo_slim_lessons.quantization import dequantize
from yolo_slim_lessons.training import top1_accuracy


def compress_shipped(name: str, folder: Path = WEIGHTS_DIR) -> Path:
    """Run the stages of recipe ``name`` and write into ``folder`` what it ``makes``, its results and a new README.

    Finished stages are kept in ``folder/compress.training/``, where a call that was stopped goes on. ``test`` is looked
    at once, at the end, with the first file as stored.
    """
    recipe = read_recipe(name)
    data = load_images(recipe["data"], recipe["image_size"], recipe["seed"])
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
        "recipe": recipe,
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
        "val_top1": top1_accuracy(stored, data.val),
        "test_top1": top1_accuracy(stored, data.test),
    }
    write_result(name, result, folder)
    return files[0]
