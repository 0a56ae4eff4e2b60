"""The same pictures classified by ONNX Runtime, OpenVINO and ncnn: how fast, how large, and how often right.

    python benchmarks/deployment.py        (or: make bench)

Every row is timed in turns with the first one, nano in FP32 in ONNX Runtime, so that whatever else the machine does
falls on both alike. All runtimes get 2 threads, and these sleep while they wait: one that span would slow down the
other's turn. int8 is calibrated on the same 512 training images everywhere. OpenVINO and ncnn read the ONNX files, as
their guides recommend, and choose their own precision: bfloat16 or fp16 where the processor has it. ncnn takes one
image at a time. What is not installed is left out.

Every finished row is kept in ``results/deployment.json``; a second call goes on from there. The table is
``results/deployment.md``.
"""

import os
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

os.environ["OMP_WAIT_POLICY"] = "passive"  # ncnn's threads then sleep, too

import numpy as np
import torch
from _results import Results, machine
from onnxruntime.quantization import CalibrationMethod
from quantization import CALIBRATION_IMAGES, onnxruntime_static

import yolo_slim_lessons as slim
from yolo_slim_lessons.data import Split, as_floats

THREADS = 2
IMAGE_SIZE = 64
REPEATS = {1: 500, 64: 100}  # batch size → how often

Runner = Callable[[torch.Tensor], torch.Tensor]  # float images N×3×H×W → logits N×classes


def in_onnx_runtime(file: Path, batch_size: int) -> Runner:
    return partial(slim.run_onnx, slim.onnx_session(file, THREADS, warmup=3, batch_size=batch_size))


def in_openvino(file: Path, batch_size: int) -> Runner:
    """With the batch size fixed, for which OpenVINO compiles better code."""
    import openvino

    core = openvino.Core()
    model = core.read_model(file)
    model.reshape([batch_size, 3, IMAGE_SIZE, IMAGE_SIZE])
    compiled = core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": THREADS})
    return lambda images: torch.from_numpy(compiled(np.ascontiguousarray(images))[0].copy())


def in_ncnn(file: Path, batch_size: int) -> Runner:
    """Converted by pnnx; ``batch_size`` images are so many calls."""
    import ncnn
    import pnnx

    parameters = file.with_suffix(".ncnn.param")
    if not parameters.exists():
        command = [pnnx.EXEC_PATH, file.name, f"inputshape=[1,3,{IMAGE_SIZE},{IMAGE_SIZE}]"]
        subprocess.run(command, cwd=file.parent, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    net = ncnn.Net()
    net.opt.num_threads = THREADS
    net.load_param(str(parameters))
    net.load_model(str(file.with_suffix(".ncnn.bin")))

    def run(images: torch.Tensor) -> torch.Tensor:
        answers = []
        for image in np.ascontiguousarray(images):
            with net.create_extractor() as extractor:
                extractor.input("in0", ncnn.Mat(image))
                answers.append(np.array(extractor.extract("out0")[1]))
        return torch.from_numpy(np.stack(answers))

    return run


def top1(run: Runner, split: Split, batch_size: int) -> float:
    """Share of right answers; the last batch is filled up with copies of its last image, for runners of one size."""
    right = 0
    for images, labels in zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True):
        missing = batch_size - len(images)
        full = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)])
        right += int((run(as_floats(full))[: len(labels)].argmax(1) == labels).sum())
    return right / len(split)


def measure(load: Callable[[Path, int], Runner], file: Path, base: Path, test: Split) -> dict:
    """Top-1 on ``test``, bytes, and for each batch size milliseconds and how many times as fast as ``base``."""
    row = {"top1": top1(load(file, max(REPEATS)), test, max(REPEATS))}
    row["bytes"] = (file.with_suffix(".ncnn.bin") if load is in_ncnn else file).stat().st_size
    for batch_size, repeats in REPEATS.items():
        first, second = in_onnx_runtime(base, batch_size), load(file, batch_size)
        paired = slim.compare(first, second, batch_size, IMAGE_SIZE, repeats, warmup=10, threads=THREADS)
        row[f"batch {batch_size}"] = {
            "base": paired.first.median,
            "milliseconds": paired.second.median,
            "speedup": 1 / paired.ratio,
            "spread": sorted(1 / ratio for ratio in paired.spread),
        }
    return row


KINDS = ("FP32", "int8, ours", "int8, ONNX Runtime's own", "FP16", "4-bit weights, ours")
RUNTIMES = {  # name → how to load a file, the packages it takes, which files it is given
    "ONNX Runtime": (in_onnx_runtime, ("onnxruntime",), KINDS),
    "OpenVINO": (in_openvino, ("openvino",), KINDS[:2]),
    "ncnn": (in_ncnn, ("ncnn", "pnnx"), KINDS[:1]),
}


def main() -> None:
    torch.set_num_threads(THREADS)
    data = slim.load_images("fashion-mnist", IMAGE_SIZE)
    results = Results(Path(__file__).parent / "results" / "deployment.json")
    made_on = results.get("machine", machine)
    calibration = data.train.take(CALIBRATION_IMAGES)
    images = as_floats(calibration.images)
    rows, left_out = {}, []

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        files = {}
        for name in ("nano", "fast"):
            model, file = slim.load_model(name), folder / f"{name}.onnx"
            files[name, "FP32"] = slim.export_onnx(model, file)
            int8 = slim.export_onnx(model, folder / f"{name}-int8.onnx", bits=8, calibration=calibration)
            files[name, "int8, ours"] = int8
            static = onnxruntime_static(file, folder / f"{name}-static.onnx", images, CalibrationMethod.Percentile)
            files[name, "int8, ONNX Runtime's own"] = static
        nano = slim.load_model("nano")
        files["nano", "FP16"] = slim.export_onnx(nano, folder / "nano-fp16.onnx", precision="fp16")
        files["nano", "4-bit weights, ours"] = slim.export_onnx(nano, folder / "nano-4.onnx", bits=4)

        base = files["nano", "FP32"]
        for runtime, (load, packages, kinds) in RUNTIMES.items():
            missing = [package for package in packages if find_spec(package) is None]
            if missing:
                left_out.append(f"{runtime} (not installed: {', '.join(missing)})")
                continue
            for (name, kind), file in files.items():
                if kind in kinds:
                    key = name, kind, f"{runtime} {version(packages[0])}"
                    rows[key] = results.get(", ".join(key), partial(measure, load, file, base, data.test))

    whole = next(iter(rows.values()))
    lines = [
        "# Deployment",
        "",
        f"Made by `python benchmarks/deployment.py` on {made_on}.",
        "",
        f"Each row was timed in turns with the first one, {THREADS} threads each; in brackets the middle half of the "
        f"ratios. int8 was calibrated on {CALIBRATION_IMAGES} training images. Top-1 is that of the "
        f"{len(data.test):,} test images.",
        "",
        "| model | numbers | runtime | file, bytes | top-1 | points "
        + "".join(f"| batch {size}, ms | times as fast " for size in REPEATS)
        + "|",
        "|---" * (6 + 2 * len(REPEATS)) + "|",
    ]
    for (name, kind, runtime), row in rows.items():
        cells = [name, kind, runtime, f"{row['bytes']:,}", f"{row['top1']:.2%}"]
        cells.append(f"{100 * (row['top1'] - whole['top1']):+.2f}")
        for size in REPEATS:
            timed = row[f"batch {size}"]
            low, high = timed["spread"]
            cells += [f"{timed['milliseconds']:.3f}", f"{timed['speedup']:.2f} ({low:.2f} to {high:.2f})"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"Left out: {'; '.join(left_out)}."] if left_out else []
    results.write_table("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
