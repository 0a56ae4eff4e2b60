"""The list of shipped files: what each is, how it was made and how good it is, from the results beside them."""

import hashlib
import json
from pathlib import Path

from yolo_slim_lessons.files import fingerprint, write_atomically
from yolo_slim_lessons.models import load_model

HEAD = """# Shipped weights

Written by `python -m yolo_slim_lessons.compression.recipes NAME`, which makes any of these files again.
Trained on Fashion-MNIST's training images less the 5,000 of `val`, on which epochs were chosen. The 10,000 test images
were looked at after each stage of the first table. They chose no epoch, but later stages were added with them seen.
Top-1 is what the files reach as stored; `.pt` files are FP16. Settings are in
`yolo_slim_lessons/compression/recipes/NAME.yaml`. Licence: AGPL-3.0, as Ultralytics' code.

## From random weights

Every epoch is in `NAME-log.csv`.

| file | architecture | epochs (kept) | seed | minutes | top-1 on val | top-1 on test |
|---|---|---|---|---|---|---|
"""
COMPRESSED = """
## Compressed

Recipes of `slim.compress`; what each stage left is in `NAME.json`. Bytes are those of the `.slim` file of the same
model, and "times smaller" compares them with the first model's FP32 weights, 4 bytes a parameter. Top-1 is in the last
two columns. The teacher is known by the fingerprint of its weights.

| recipe, files | from | taught by | seed | minutes | parameters | million MACs | bytes | times smaller | val | test |
|---|---|---|---|---|---|---|---|---|---|---|
"""


def write_index(folder: Path) -> None:
    """Write ``folder``'s README.md and SHA256SUMS from its models and their measured results."""
    results = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}
    trained = [_trained(name, result) for name, result in results.items() if "architecture" in result["recipe"]]
    compressed = [_compressed(name, result, folder) for name, result in results.items() if "start" in result["recipe"]]
    text = HEAD + "".join(trained) + (COMPRESSED + "".join(compressed) if compressed else "")
    write_atomically(folder / "README.md", lambda file: file.write_text(text, encoding="utf-8"))
    models = sorted(file for file in folder.iterdir() if file.suffix in (".pt", ".slim"))
    sums = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in models)
    write_atomically(folder / "SHA256SUMS", lambda file: file.write_text(sums, encoding="utf-8"))


def _trained(name: str, result: dict) -> str:
    recipe = result["recipe"]
    return (
        f"| `{name}.pt` | {Path(recipe['architecture']).stem} at {recipe['image_size']} px "
        f"| {result['epochs']} ({result['kept_epoch']}) | {recipe['seed']} "
        f"| {result['minutes']} | {result['val_top1']:.2%} | {result['test_top1']:.2%} |\n"
    )


def _compressed(name: str, result: dict, folder: Path) -> str:
    recipe, last = result["recipe"], result["stages"][-1]
    teacher = folder / f"{recipe['teacher']}.pt"
    as_shipped = teacher.exists() and fingerprint(load_model(teacher)) == result["teacher"]
    taught_by = recipe["teacher"] if as_shipped else f"an earlier stage of {recipe['teacher']}"
    files = ", ".join(f"`{file}`" for file in recipe["makes"])
    return (
        f"| {name}: {files} | {recipe['start']} | {taught_by} | {recipe['seed']} | {result['minutes']} "
        f"| {last['parameters']:,} | {last['macs'] / 1e6:.2f} | {last['packed_bytes']:,} | {result['factor']:.1f} "
        f"| {result['val_top1']:.2%} | {result['test_top1']:.2%} |\n"
    )
