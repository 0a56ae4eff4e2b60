"""Quantization beside ONNX Runtime and NNCF: same model, same 512 calibration images, in one run.

    python benchmarks/quantization.py        (or: make bench)

First 8 bits for weights and activations: ONNX Runtime's ``quantize_static`` (min-max, percentile, entropy) and NNCF's
post-training quantization, both on nano's ONNX graph and executed by ONNX Runtime, and ours. None of them sees a
label. Then fewer bits, with what repairs them: learned rounding, and quantization-aware training. Which of our ways is
the one to compare was chosen on ``val``, whose columns are in the table; the test images only report.

Every finished result is kept in ``results/quantization.json``; a second call goes on from there. The table is
``results/quantization.md``.
"""

import logging
import os
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

os.environ["NNCF_CI"] = "true"  # NNCF then sends nothing anywhere

import nncf
import numpy as np
import onnx
import torch
from _results import Results, machine
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

import yolo_slim_lessons as slim
from yolo_slim_lessons.data import ImageData, as_floats
from yolo_slim_lessons.models import logits
from yolo_slim_lessons.quantization import signal_to_noise

CALIBRATION_IMAGES = 512
BATCH = 256
QAT_IMAGES, QAT_EPOCHS = 20_000, 2


class Reader(CalibrationDataReader):
    """The calibration images, as ONNX Runtime asks for them."""

    def __init__(self, images: torch.Tensor):
        self.batches = ({"images": batch.numpy()} for batch in images.split(64))

    def get_next(self) -> dict | None:
        return next(self.batches, None)


def onnxruntime_static(float_file: Path, file: Path, images: torch.Tensor, method: CalibrationMethod) -> Path:
    """nano in 8 bits by ONNX Runtime, with what it recommends: the graph prepared, a scale for each channel."""
    prepared = file.with_suffix(".prepared.onnx")
    quant_pre_process(str(float_file), str(prepared))
    quantize_static(
        str(prepared),
        str(file),
        Reader(images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=method,
    )
    return file


def nncf_static(float_file: Path, file: Path, images: torch.Tensor) -> Path:
    """nano in 8 bits by NNCF's post-training quantization, with its defaults."""
    dataset = nncf.Dataset([{"images": image[None].numpy()} for image in images])
    onnx.save(nncf.quantize(onnx.load(float_file), dataset, subset_size=len(images)), file)
    return file


def scores_in_onnx_runtime(file: Path, images: torch.Tensor) -> torch.Tensor:
    session = slim.onnx_session(file)
    parts = [session.run(None, {"images": as_floats(batch).numpy()})[0] for batch in images.split(BATCH)]
    return torch.from_numpy(np.concatenate(parts))


@torch.inference_mode()
def scores_in_pytorch(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([logits(model, as_floats(batch)) for batch in images.split(BATCH)])


class Bench:
    """Top-1 of whatever answers with logits, beside that of nano."""

    def __init__(self, data: ImageData, nano: nn.Module):
        self.data = data
        self.nano_on_val = scores_in_pytorch(nano, data.val.images)

    def measure(self, scores) -> dict:
        """Top-1 on test and val; on val also the share of nano's answers, and the logits' signal to noise in dB."""
        val = scores(self.data.val.images)
        return {
            "test": (scores(self.data.test.images).argmax(1) == self.data.test.labels).double().mean().item(),
            "val": (val.argmax(1) == self.data.val.labels).double().mean().item(),
            "agreement": (val.argmax(1) == self.nano_on_val.argmax(1)).double().mean().item(),
            "snr": signal_to_noise(self.nano_on_val, val),
        }


def main() -> None:
    for name in ("nncf", "root"):
        logging.getLogger(name).setLevel(logging.ERROR)
    data, nano = slim.load_images("fashion-mnist"), slim.load_model("nano")
    results = Results(Path(__file__).parent / "results" / "quantization.json")
    made_on = results.get("machine", machine)
    bench, calibration = Bench(data, nano), data.train.take(CALIBRATION_IMAGES)
    images, part = as_floats(calibration.images), data.take(QAT_IMAGES, 1000)
    quantize = partial(slim.quantize_integer, nano, calibration=calibration)
    eight = partial(quantize, 8, 8)
    rows = {"nano, FP32": results.get("nano", lambda: bench.measure(partial(scores_in_pytorch, nano)))}

    with tempfile.TemporaryDirectory() as folder:
        float_file = slim.export_onnx(nano, Path(folder) / "nano.onnx")
        ways = {
            f"ONNX Runtime {version('onnxruntime')}, {method.name}": partial(onnxruntime_static, method=method)
            for method in (CalibrationMethod.MinMax, CalibrationMethod.Percentile, CalibrationMethod.Entropy)
        } | {f"NNCF {version('nncf')}": nncf_static}
        for name, way in ways.items():

            def peer(way=way):
                file = way(float_file, Path(folder) / "int8.onnx", images)
                return bench.measure(partial(scores_in_onnx_runtime, file))

            rows[f"W8A8, {name}"] = results.get(name, peer)

    ours = {
        "W8A8, ours: mse": eight,
        "W8A8, ours: min-max": partial(eight, ranges="minmax", weight_ranges="minmax"),
        "W8A8, ours: mse, biases corrected": lambda: slim.correct_biases(eight(), nano, calibration),
        "W4A8, ours: rounded to nearest": partial(quantize, 4, 8),
        "W4A8, ours: learned rounding": lambda: slim.learn_rounding(quantize(4, 8), nano, calibration, progress=False),
        "W4A4, ours: rounded to nearest": partial(quantize, 4, 4),
        "W4A4, ours: trained": partial(
            slim.train_quantized, nano, part, 4, 4, epochs=QAT_EPOCHS, calibration=calibration, progress=False
        ),
        "W3, ours: rounded to nearest": partial(quantize, 3),
        "W3, ours: trained": partial(slim.train_quantized, nano, part, 3, epochs=QAT_EPOCHS, progress=False),
    }
    for name, make in ours.items():

        def own(make=make):
            started = time.perf_counter()
            model = make()
            seconds = time.perf_counter() - started
            measured = bench.measure(partial(scores_in_pytorch, model))
            return measured | {"seconds": seconds, "bytes": slim.packed_sizes(model).file}

        rows[name] = results.get(name, own)

    lines = [
        "# Quantization",
        "",
        f"Made by `python benchmarks/quantization.py` on {made_on}.",
        "",
        f"Calibrated on the same {CALIBRATION_IMAGES} training images, without labels. W4A4 and W3 are trained for "
        f"{QAT_EPOCHS} epochs on {QAT_IMAGES:,} images. Agreement (same answer as nano) and signal to noise of the "
        "logits are those on the 5,000 images of val.",
        "",
        "| weights and activations | top-1 on test | points | top-1 on val | agreement | dB | seconds | .slim bytes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        points = f"{100 * (row['test'] - rows['nano, FP32']['test']):+.2f}"
        cost = (f"{row['seconds']:.0f}", f"{row['bytes']:,}") if "bytes" in row else ("", "")
        decibels = "" if name == "nano, FP32" else f"{row['snr']:.1f}"
        cells = (name, f"{row['test']:.2%}", points, f"{row['val']:.2%}", f"{row['agreement']:.2%}", decibels, *cost)
        lines.append("| " + " | ".join(cells) + " |")
    results.write_table("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
