"""What a teacher is worth, over several seeds: ``python benchmarks/distillation.py``.

Two experiments on Fashion-MNIST. What is compared takes the same number of steps (±2 %), with the same kind of
augmentation: endless for labels only, eight versions of each image where the teacher is asked:

- ``10,000 labels``: a small student learns from labels only, from the teacher only, or from both.
- ``1,000 labels``: the student has 1,000 labelled images and, with a teacher, 20,000 more without labels. Alone it
  looks at its 1,000 images twenty-one times as often, so that it takes as many steps.

The student has a quarter of nano's multiplications: nano's architecture, pruned by the same share in every layer. It
starts from random weights, because nano's own have seen the labels of all 55,000 training images, which would hide
what is asked here. The teacher has seen them too: that is what a teacher is. So the second experiment is the case of
somebody who was given a good network, but not the labels it was made with.

Every finished run is kept in ``results/distillation.json``; a second call goes on from there. The table is
``results/distillation.md``. Accuracies are on the 10,000 test images, which no choice was made on.
"""

import time
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from _results import Results, machine
from scipy import stats

import yolo_slim_lessons as slim
from yolo_slim_lessons.data import ImageData
from yolo_slim_lessons.distillation import TeacherCache, cache_teacher, hide_labels

RESULTS = Path(__file__).parent / "results" / "distillation.json"
PROGRESS_IMAGES = 500  # of val, for the progress bar; nothing is chosen by them
ARMS = {"labels only": 0.0, "teacher only": 1.0, "both": 0.9}


@dataclass(frozen=True)
class Settings:
    """What all runs share; other settings need another results file."""

    image_size: int = 64
    target_macs: float = 0.25
    temperature: float = 4.0
    learning_rate: float = 4e-3
    batch_size: int = 128
    seeds: int = 3
    versions: int = 8  # of each image, that the teacher is asked about
    labelled: int = 10_000
    epochs: int = 20
    few_labelled: int = 1_000
    unlabelled: int = 20_000
    few_epochs: int = 5


def run(settings: Settings, file: Path = RESULTS) -> list[dict]:
    """Train what is missing in ``file``, write it and a table beside it, and return the summary.

    Raises:
        ValueError: ``file`` holds results of other settings.
    """
    results = Results(file)
    results.keep_to(asdict(settings))
    results.get("machine", machine)
    data = slim.load_images("fashion-mnist", settings.image_size)
    data = data.take(len(data.train), PROGRESS_IMAGES)
    few = data.take(settings.few_labelled + settings.unlabelled)
    experiments = {
        f"{settings.labelled:,} labels": (data.take(settings.labelled), settings.epochs),
        f"{settings.few_labelled:,} labels": (hide_labels(few, settings.few_labelled), settings.few_epochs),
    }
    runs = []
    for experiment, (part, epochs) in experiments.items():
        trainings = Trainings(part, epochs, settings)
        for seed in range(settings.seeds):
            for arm in ARMS:
                name = f"{experiment}, {arm}, seed {seed}"
                found = results.get(name, lambda arm=arm, seed=seed, trainings=trainings: trainings.train(arm, seed))
                runs.append({"experiment": experiment, "arm": arm, "seed": seed} | found)
    summary = summarize(runs)
    results.write_table(table(summary))
    return summary


class Trainings:
    """The trainings of one experiment. The teacher is asked once for all of them, when the first one needs it."""

    def __init__(self, data: ImageData, epochs: int, settings: Settings):
        self.data, self.epochs, self.settings = data, epochs, settings
        self.teacher = slim.load_model("teacher")

    @cached_property
    def cache(self) -> TeacherCache:
        return cache_teacher(self.teacher, self.data.train, self.settings.versions)

    def train(self, arm: str, seed: int) -> dict:
        """Top-1 on test after one training, and its minutes, with those of asking the teacher if that was due."""
        started = time.monotonic()
        data, settings = self.data, self.settings
        student = new_student(data, settings, seed)
        options = {"batch_size": settings.batch_size, "learning_rate": settings.learning_rate, "seed": seed}
        if arm == "labels only":
            labelled = replace(data, train=data.train[data.train.labels >= 0])
            repeats = round(len(data.train) / len(labelled.train))
            trained = slim.fit(student, labelled, self.epochs * repeats, **options)
        else:
            options |= {"temperature": settings.temperature, "alpha": ARMS[arm], "cache": self.cache}
            trained = slim.distill(student, self.teacher, data, epochs=self.epochs, **options)
        minutes = round((time.monotonic() - started) / 60, 2)
        return {"top1": slim.evaluate(trained, data.test, progress=False).top1, "minutes": minutes}


def new_student(data: ImageData, settings: Settings, seed: int):
    """nano's architecture, narrower in every layer alike, with random weights."""
    nano = slim.new_model("yolov8n-cls.yaml", data.class_names, settings.image_size, seed)
    return slim.prune_channels(nano, target_macs=settings.target_macs)


def summarize(runs: list[dict]) -> list[dict]:
    """For every experiment and arm the mean top-1 over seeds, and how much it is above ``labels only``.

    The difference is taken seed by seed; its 95 % interval is Student's t over the seeds, ``None`` for a single one.
    """
    summary = []
    for experiment, arm in dict.fromkeys((run["experiment"], run["arm"]) for run in runs):
        chosen = [run for run in runs if (run["experiment"], run["arm"]) == (experiment, arm)]
        row = {"experiment": experiment, "arm": arm, "seeds": len(chosen)}
        row |= {name: float(np.mean([run[name] for run in chosen])) for name in ("top1", "minutes")}
        if arm != "labels only":
            alone = {
                run["seed"]: run["top1"] for run in runs if run["experiment"] == experiment and not ARMS[run["arm"]]
            }
            gains = np.array([run["top1"] - alone[run["seed"]] for run in chosen])
            row["gain"], row["interval"] = float(gains.mean()), None
            if len(gains) > 1:
                half = stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains))
                row["interval"] = [row["gain"] - float(half), row["gain"] + float(half)]
        summary.append(row)
    return summary


def table(summary: list[dict]) -> str:
    """The summary as Markdown."""
    lines = [
        "| experiment | learns from | seeds | top-1 on test | above labels only, points (95 %) | minutes a run |",
        "|---|---|---|---|---|---|",
    ]
    for row in summary:
        gain = "" if "gain" not in row else f"{100 * row['gain']:+.2f}"
        if row.get("interval"):
            low, high = row["interval"]
            gain += f" ({100 * low:+.2f} to {100 * high:+.2f})"
        cells = (row["experiment"], row["arm"], row["seeds"], f"{row['top1']:.2%}", gain, f"{row['minutes']:.1f}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run(Settings())
