"""Thirty times smaller and no defect lost? Five splits of the solar cells: ``python benchmarks/capstone.py``.

For each split an expert is made of nano, by transfer at 128 pixels, and a small model of the expert, by the recipe
below. Both get the threshold with the highest F1 on ``val``. Then their F1 on ``test`` is compared, split by split. The
splits are those of ``load_task``: stratified by grade and kind of cell, 60 % to learn from, 20 % val, 20 % test.

The photographs come with ``pip install elpv-dataset`` (CC BY-NC-SA 4.0: not for commercial use). Every finished split
is kept in ``results/capstone.json``; a second call goes on from there. The table is ``results/capstone.md``.
"""

import tempfile
import time
from dataclasses import asdict, dataclass, field
from importlib import util
from pathlib import Path

import numpy as np
from _results import Results, machine
from scipy import stats
from sklearn.metrics import average_precision_score

import yolo_slim_lessons as slim
from yolo_slim_lessons.data import ImageData, Split
from yolo_slim_lessons.teaching import capstone

RESULTS = Path(__file__).parent / "results" / "capstone.json"
STAGES = [
    {"prune_channels": {"target_parameters": 0.25, "scope": "global"}},
    {"distill": {"epochs": 12, "batch_size": 64, "versions": 4}},
    {"train_quantized": {"bits": 4, "epochs": 4, "batch_size": 64, "versions": 4}},
    {"round_biases": {"format": "bf16"}},
]


@dataclass(frozen=True)
class Settings:
    """What all splits share; other settings need another results file."""

    image_size: int = 128
    splits: int = 5
    neighbours_apart: bool = False
    epochs: int = 12
    learning_rate: float = 2e-3
    batch_size: int = 64
    stages: list = field(default_factory=lambda: STAGES)


def run(settings: Settings, file: Path = RESULTS) -> dict:
    """Do the splits that are missing in ``file``, write it and a table beside it, and return the summary.

    Raises:
        ValueError: ``file`` holds results of other settings.
    """
    results = Results(file)
    results.keep_to(asdict(settings))
    results.get("machine", machine)
    splits = [
        results.get(f"split {seed}", lambda seed=seed: one_split(settings, seed)) for seed in range(settings.splits)
    ]
    summary = summarize(splits)
    results.write_table(table(splits, summary))
    return summary


def one_split(settings: Settings, seed: int) -> dict:
    """Train both models; their scores on test, their bytes and the minutes."""
    started = time.monotonic()
    task = capstone.load_task("solar cells", settings.image_size, seed, neighbours_apart=settings.neighbours_apart)
    data = task.data
    start = capstone.adapt(slim.load_model("nano"), data.class_names, settings.image_size, seed)
    options = {"learning_rate": settings.learning_rate, "batch_size": settings.batch_size}
    expert = slim.fit(start, data, settings.epochs, loss=capstone.weighted_loss(data), seed=seed, **options)
    with tempfile.TemporaryDirectory() as folder:  # both trainings find the same answers of the expert there
        result = slim.compress(expert, data, {"seed": seed, "stages": settings.stages}, folder=folder)
    minutes = (time.monotonic() - started) / 60
    opened = capstone.open_test(data)  # nothing is chosen by it; the thresholds below are chosen on val
    found = {"expert": _scores(expert, task, opened), "small": _scores(result.model, task, opened)}
    sizes = {"bytes": result.stages[-1].packed_bytes, "factor": result.factor, "macs": result.stages[-1].macs}
    return found | sizes | {"looks": data.test.looks, "minutes": round(minutes, 1)}


def _scores(model, task: capstone.Task, data: ImageData) -> dict:
    """On test, at the threshold with the highest F1 on val; the average precision knows no threshold."""
    threshold = capstone.best_threshold(_ask(model, data.val, task), task.is_defect(data.val))
    answers, truth = _ask(model, data.test, task), task.is_defect(data.test)
    done = capstone.detect(answers, truth, threshold)
    scores = {name: getattr(done, name) for name in ("f1", "recall", "precision", "accuracy")}
    return scores | {"average_precision": float(average_precision_score(truth, answers)), "threshold": threshold}


def _ask(model, split: Split, task: capstone.Task):
    return slim.predict(model, split, progress=False)[:, task.defect]


def summarize(splits: list[dict]) -> dict:
    """Means over the splits, and F1 of the small model minus F1 of the expert, with its 95 % interval (Student's t)."""
    summary = {
        who: {name: float(np.mean([split[who][name] for split in splits])) for name in splits[0][who]}
        for who in ("expert", "small")
    }
    gains = np.array([split["small"]["f1"] - split["expert"]["f1"] for split in splits])
    summary |= {"gain": float(gains.mean()), "interval": None}
    if len(gains) > 1:
        half = stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains))
        summary["interval"] = [summary["gain"] - float(half), summary["gain"] + float(half)]
    return summary | {
        name: float(np.mean([split[name] for split in splits])) for name in ("bytes", "factor", "minutes")
    }


def table(splits: list[dict], summary: dict) -> str:
    """Splits and their means as Markdown."""
    lines = [
        "| split | expert: F1, recall | small: F1, recall | difference of F1, points | bytes in .slim | times smaller "
        "| minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in [*((str(seed), split) for seed, split in enumerate(splits)), ("mean", summary)]:
        gain = f"{100 * (row['small']['f1'] - row['expert']['f1']):+.2f}"
        if name == "mean" and summary["interval"]:
            low, high = summary["interval"]
            gain += f" ({100 * low:+.2f} to {100 * high:+.2f})"
        scores = [f"{row[who]['f1']:.1%}, {row[who]['recall']:.1%}" for who in ("expert", "small")]
        cells = (name, *scores, gain, f"{row['bytes']:,.0f}", f"{row['factor']:.1f}", f"{row['minutes']:.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if util.find_spec("elpv_dataset"):
        run(Settings())
    else:
        print("benchmarks/capstone.py needs the photographs of solar cells: pip install elpv-dataset")
