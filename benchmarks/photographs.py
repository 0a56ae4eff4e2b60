"""A checkpoint of somebody else's on colour photographs at 224 px: what the course shows, beside the same tools.

    python benchmarks/photographs.py FOLDER CHECKPOINT [PART …]

FOLDER holds ``train``, ``val`` and ``test`` with one folder of images a class; CHECKPOINT is a YOLOv8, YOLO11 or
YOLO26 classifier, trained on whatever. It gets a last layer for the classes at hand and learns ``train``; choices are
made on ``val``, and ``test`` reports. Parts, of which all are made in this order if none is named:

- ``rounding``: weights and activations of few bits, to nearest and repaired;
- ``runtimes``: int8 files of ONNX Runtime, NNCF, OpenVINO and Ultralytics' own export beside ours: size, answers, time;
- ``pruning``: channels beside Torch-Pruning, at the same MACs and with the same fine-tuning;
- ``distillation``: learning from the whole model beside learning from labels;
- ``budgets``: ``slim.compress`` for a fiftieth and a hundredth of the bytes, and for a third of the time.

Every finished result is kept in ``results/photographs-CHECKPOINT.json``, every trained model in ``models/`` (which git
ignores); a second call goes on from there. The tables are ``results/photographs-CHECKPOINT.md``.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

os.environ["NNCF_CI"] = "true"  # NNCF then sends nothing anywhere

import numpy as np
import torch
from _results import Results, instructions, machine
from torch import nn

import yolo_slim_lessons as slim
from yolo_slim_lessons.data import Split, as_floats
from yolo_slim_lessons.measurement import count_macs, paired_difference, predict
from yolo_slim_lessons.models import logits
from yolo_slim_lessons.packing import packed_sizes
from yolo_slim_lessons.quantization import signal_to_noise

HERE = Path(__file__).parent
IMAGE_SIZE = 224
START = {"epochs": 8, "batch_size": 32, "learning_rate": 5e-4, "augment": "photographs"}
TUNE = {"epochs": 5, "batch_size": 32, "learning_rate": 5e-4, "augment": "photographs"}
SEEDS = (0, 1, 2)
CALIBRATION_IMAGES = 512
SHARES_OF_MACS = (0.7, 0.5, 0.3)
REPEATS = {1: 200, 16: 30}  # batch size → how often
BATCH = 64


class Bench:
    """The data, the model to start from, and where results are kept."""

    def __init__(self, folder: Path, checkpoint: Path):
        self.results = Results(HERE / "results" / f"photographs-{checkpoint.stem}.json")
        self.models = HERE / "models" / checkpoint.stem
        self.models.mkdir(parents=True, exist_ok=True)
        self.folder, self.data = folder, slim.load_images(folder, IMAGE_SIZE)
        counts = [len(split) for split in (self.data.train, self.data.val, self.data.test)]
        self.results.keep_to({"images": counts, "start": START, "tune": TUNE, "calibration": CALIBRATION_IMAGES})
        self.made_on = self.results.get("machine", machine)
        self.calibration = self.data.train.take(CALIBRATION_IMAGES)
        loaded = slim.load_model(checkpoint)
        self.start = self.trained("start", lambda: slim.adapt(loaded, self.data.class_names, IMAGE_SIZE), START)
        self.right = self.answers_right(self.start)
        self.on_val = self.logits_on(self.start, self.data.val)
        self.whole = self.results.get("FP32", lambda: self.report(self.start))

    def trained(
        self, name: str, begin: Callable[[], nn.Module], settings: dict, train: Callable = slim.fit
    ) -> nn.Module:
        """What ``train`` makes of the model that ``begin`` returns; kept, with its state, in ``models/``."""
        file = self.models / f"{name}.pt"
        if not file.exists():
            slim.save_model(train(begin(), self.data, checkpoint=file.with_suffix(".training"), **settings), file)
        return slim.load_model(file)

    def logits_on(self, model: nn.Module, split: Split) -> torch.Tensor:
        with torch.inference_mode():
            return torch.cat([logits(model, images) for images, _ in split.batches(BATCH)])

    def answers_right(self, model: nn.Module) -> np.ndarray:
        return (predict(model, self.data.test, BATCH, progress=False).argmax(1) == self.data.test.labels).numpy()

    def report(self, model: nn.Module, scores: Callable[[Split], torch.Tensor] | None = None) -> dict:
        """Top-1 on test and val, the paired difference from the start on test, and the logits' dB on val."""
        scores = scores or partial(self.logits_on, model)
        test, val = scores(self.data.test), scores(self.data.val)
        right = (test.argmax(1) == self.data.test.labels).numpy()
        paired = paired_difference(self.right, right)
        return {
            "test": right.mean().item(),
            "val": (val.argmax(1) == self.data.val.labels).double().mean().item(),
            "difference": [paired.difference, *paired.interval],
            "snr": signal_to_noise(self.on_val, val),
        }


# rounding


def rounding(bench: Bench) -> list[str]:
    quantize = partial(slim.quantize_integer, bench.start, calibration=bench.calibration)

    def learned(*bits: int) -> nn.Module:
        return slim.learn_rounding(quantize(*bits), bench.start, bench.calibration, progress=False)

    def trained(*bits: int, seed: int) -> nn.Module:
        options = {name: TUNE[name] for name in ("epochs", "batch_size")}
        return slim.train_quantized(
            bench.start, bench.data, *bits, calibration=bench.calibration, seed=seed, progress=False, **options
        )

    ways = {"FP32": lambda: bench.start}
    for bits in ((8, 8), (6,), (4,), (3,), (4, 8), (4, 4)):
        name = "".join(f"{what}{number}" for what, number in zip("WA", bits, strict=False))
        ways[f"{name}, to nearest"] = partial(quantize, *bits)
        if bits[0] < 6:
            ways[f"{name}, learned rounding"] = partial(learned, *bits)
    ways |= {f"W4A4, trained, seed {seed}": partial(trained, 4, 4, seed=seed) for seed in SEEDS}
    rows = {}
    for name, way in ways.items():

        def measured(way=way) -> dict:
            started = time.perf_counter()
            model = way()
            seconds = time.perf_counter() - started
            return bench.report(model) | {"seconds": seconds, "bytes": packed_sizes(model).file}

        rows[name] = bench.results.get(f"rounding: {name}", measured)
    return [
        "## Few bits",
        "",
        f"Calibrated, and rounding learned, on {CALIBRATION_IMAGES} training images without labels; trained for "
        f"{TUNE['epochs']} epochs with labels.",
        "",
        "| weights and activations | top-1 on test | points (95 %) | on val | logits, dB | seconds | .slim bytes |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {name} | {row['test']:.2%} | {points(row)} | {row['val']:.2%} "
            f"| {'' if name == 'FP32' else format(row['snr'], '.1f')} | {row['seconds']:.0f} | {row['bytes']:,} |"
            for name, row in rows.items()
        ),
    ]


def points(row: dict) -> str:
    difference, low, high = (100 * share for share in row["difference"])
    return f"{difference:+.2f} ({low:+.2f} to {high:+.2f})"


# runtimes


def ultralytics_int8(bench: Bench, folder: Path) -> Path:
    """int8 by Ultralytics' own export, calibrated on the training images."""
    from ultralytics import YOLO

    file = slim.save_model(bench.start, folder / "ultralytics.pt")
    options = {"quantize": 8, "data": str(bench.folder), "split": "train", "imgsz": IMAGE_SIZE, "verbose": False}
    return Path(YOLO(file).export(format="onnx", dynamic=True, **options))


def in_onnx_runtime(file: Path, threads: int = 1) -> Callable[[torch.Tensor], torch.Tensor]:
    session = slim.onnx_session(file, threads)
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def in_openvino(file: Path, threads: int = 1) -> Callable[[torch.Tensor], torch.Tensor]:
    import openvino

    compiled = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_NUM_THREADS": threads})
    return lambda images: torch.from_numpy(compiled(np.ascontiguousarray(images))[0].copy())


def runtimes(bench: Bench) -> list[str]:
    from onnxruntime.quantization import CalibrationMethod
    from quantization import nncf_static, onnxruntime_static

    images = as_floats(bench.calibration.images)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        float_file = slim.export_onnx(bench.start, folder / "float.onnx")
        calibration = {"bits": 8, "calibration": bench.calibration}
        makers: dict[str, Callable[[], Path]] = {
            "FP32": lambda: float_file,
            "int8, ours": lambda: slim.export_onnx(bench.start, folder / "ours.onnx", **calibration),
            **{
                f"int8, ONNX Runtime {version('onnxruntime')}, {method.name}": partial(
                    onnxruntime_static, float_file, folder / f"{method.name}.onnx", images, method
                )
                for method in (CalibrationMethod.MinMax, CalibrationMethod.Percentile)
            },
            f"int8, NNCF {version('nncf')}": lambda: nncf_static(float_file, folder / "nncf.onnx", images),
            f"int8, Ultralytics {version('ultralytics')}": lambda: ultralytics_int8(bench, folder),
        }
        base = in_onnx_runtime(float_file)
        for name, make in makers.items():
            for runtime, load in (("ONNX Runtime", in_onnx_runtime), ("OpenVINO", in_openvino)):
                key = f"{name}, in {runtime}"
                if runtime == "OpenVINO" and name not in ("FP32", "int8, ours", f"int8, NNCF {version('nncf')}"):
                    continue

                def measured(make=make, load=load) -> dict:
                    file = make()
                    run = load(file)

                    def scores(split: Split) -> torch.Tensor:
                        return torch.cat([run(batch) for batch, _ in split.batches(BATCH)])

                    row = bench.report(bench.start, scores) | {"bytes": file.stat().st_size}
                    for size, repeats in REPEATS.items():
                        paired = slim.compare(base, run, size, IMAGE_SIZE, repeats, warmup=5, threads=1)
                        row[f"batch {size}"] = [paired.second.median, 1 / paired.ratio]
                    return row

                rows[key] = bench.results.get(f"runtimes: {key}", measured)
    return [
        "## int8 files",
        "",
        f"One thread, each timed in turns with the first row on {instructions()}; calibrated on the same images, "
        "Ultralytics' export by its own choice among the training images.",
        "",
        "| file and runtime | bytes | top-1 on test | points (95 %) | on val "
        + "".join(f"| batch {size}, ms | times as fast " for size in REPEATS)
        + "|",
        "|---" * (5 + 2 * len(REPEATS)) + "|",
        *(
            f"| {name} | {row['bytes']:,} | {row['test']:.2%} | {points(row)} | {row['val']:.2%} | "
            + " | ".join("{:.2f} | {:.2f}".format(*row[f"batch {size}"]) for size in REPEATS)
            + " |"
            for name, row in rows.items()
        ),
    ]


# training


def pruning(bench: Bench) -> list[str]:
    from pruning import torch_pruning

    macs, rows = count_macs(bench.start), []
    for share in SHARES_OF_MACS:
        peer, multiple = torch_pruning(bench.start, share, IMAGE_SIZE)
        left = count_macs(peer) / macs
        ours = slim.prune_channels(bench.start, target_macs=left, round_to=multiple)
        for name, narrow in (("Torch-Pruning", peer), ("slim.prune_channels", ours)):
            tuned = [
                bench.results.get(
                    f"pruning: {share:.0%}, {name}, seed {seed}",
                    lambda narrow=narrow, seed=seed: bench.report(
                        slim.fit(narrow, bench.data, seed=seed, progress=False, **TUNE)
                    ),
                )
                for seed in SEEDS
            ]
            rows.append((share, name, multiple, count_macs(narrow) / macs, [row["test"] for row in tuned]))
    return [
        "## Channels",
        "",
        f"Fine-tuned alike for {TUNE['epochs']} epochs; ± is the standard deviation over {len(SEEDS)} seeds.",
        "",
        "| budget of MACs | pruned by | channels in multiples of | MACs left | top-1 on test |",
        "|---|---|---|---|---|",
        *(
            f"| {share:.0%} | {name} | {multiple} | {left:.1%} | {mean_and_spread(top1)} |"
            for share, name, multiple, left, top1 in rows
        ),
    ]


def distillation(bench: Bench) -> list[str]:
    half = slim.prune_channels(bench.start, target_macs=0.5)
    ways = {
        "labels": partial(slim.fit, half, bench.data),
        "labels and the whole model": partial(slim.distill, half, bench.start, bench.data, temperature=4.0, alpha=0.9),
    }
    rows = {
        name: [
            bench.results.get(
                f"distillation: {name}, seed {seed}",
                lambda way=way, seed=seed: bench.report(way(seed=seed, progress=False, **TUNE)),
            )["test"]
            for seed in SEEDS
        ]
        for name, way in ways.items()
    }
    return [
        "## Distillation",
        "",
        f"Half of the MACs, then {TUNE['epochs']} epochs.",
        "",
        "| learns from | top-1 on test |",
        "|---|---|",
        *(f"| {name} | {mean_and_spread(top1)} |" for name, top1 in rows.items()),
    ]


def budgets(bench: Bench) -> list[str]:
    whole = 4 * sum(parameter.numel() for parameter in bench.start.parameters())
    targets = {f"1/{times} of the bytes": slim.Budget(target_bytes=whole // times) for times in (50, 100)}
    base = slim.export_onnx(bench.start, bench.models / "start.onnx")
    third = slim.time_model(in_onnx_runtime(base), image_size=IMAGE_SIZE).median / 3
    targets["a third of the time"] = slim.Budget(target_latency=third)
    rows = {}
    for name, budget in targets.items():

        def measured(name=name, budget=budget) -> dict:
            started = time.perf_counter()
            made = slim.compress(bench.start, bench.data, budget, folder=bench.models / name, progress=False)
            row = bench.report(made.model) | {"minutes": (time.perf_counter() - started) / 60}
            return row | {"bytes": packed_sizes(made.model).file, "met": made.met}

        rows[name] = bench.results.get(f"budgets: {name}", measured)
    return [
        "## Budgets",
        "",
        "| asked for | .slim bytes | times smaller | top-1 on test | points (95 %) | minutes | met |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {name} | {row['bytes']:,} | {whole / row['bytes']:.1f} | {row['test']:.2%} | {points(row)} "
            f"| {row['minutes']:.0f} | {'yes' if row['met'] else 'no'} |"
            for name, row in rows.items()
        ),
    ]


def mean_and_spread(top1: list[float]) -> str:
    return f"{np.mean(top1):.2%} ± {np.std(top1, ddof=1):.2%}"


PARTS = {part.__name__: part for part in (rounding, runtimes, pruning, distillation, budgets)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: expected {', '.join(PARTS)}")
    bench = Bench(options.folder, options.checkpoint)
    command = f"python benchmarks/photographs.py {options.folder.name} {options.checkpoint.name}"
    train, val, test = (len(split) for split in (bench.data.train, bench.data.val, bench.data.test))
    lines = [
        f"# Photographs, from {options.checkpoint.name}",
        "",
        f"Made by `{command}` on {bench.made_on}.",
        "",
        f"{len(bench.data.class_names)} classes, {train:,} images to learn from, {val:,} to choose by, {test:,} to "
        f"report on, {IMAGE_SIZE} px. Points are differences from the model in FP32 on the same test images.",
    ]
    stored = bench.results.values
    for name, part in PARTS.items():
        made_before = any(key.startswith(f"{name}: ") for key in stored)
        if name in (options.parts or PARTS):
            lines += ["", *part(bench)]
        elif made_before:
            print(f"{name} is left out of the table: name it, too")
    bench.results.write_table("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
