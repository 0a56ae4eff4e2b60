"""One image through one file of C, beside ONNX Runtime and OpenVINO: the same int8 model, one thread, in one run.

    python benchmarks/bare_metal.py        (or: make bench)

Every row is timed in turns with ONNX Runtime's int8, so that whatever else the machine does falls on both alike. The
model is quantized once, on 512 training images, and exported to C and to ONNX. The C file is compiled for this
processor, for AVX2 and without kernels, by the compiler that CC names, or cc; ONNX Runtime always takes all that the
processor has. Each is called from Python with an image that lies ready, as each wants it: the time of a call is in all
rows. What is not installed is left out.

Every finished row is kept in ``results/bare_metal.json``; a second call goes on from there. The table is
``results/bare_metal.md``.
"""

import ctypes
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from _results import Results, machine

import yolo_slim_lessons as slim
from yolo_slim_lessons.data import as_floats

CALIBRATION_IMAGES = 512
IMAGE_SIZE = 64
REPEATS = 2000
COMPILER = os.environ.get("CC", "cc")
FLAGS = {"this processor": ["-march=native"], "AVX2": ["-march=haswell"], "no kernels": ["-DMODEL_PORTABLE"]}
if platform.machine() not in ("x86_64", "AMD64"):
    del FLAGS["AVX2"]

Run = Callable[[object], object]  # classifies one image that lies ready, whatever it is given


def in_c(source: Path, flags: list[str], image: torch.Tensor) -> Run:
    """``image``: uint8 3×H×W."""
    library = Path(tempfile.mkdtemp(dir=source.parent)) / "model.so"
    command = [COMPILER, "-std=c99", "-O3", *flags, "-shared", "-fPIC", "-o", library, source]
    subprocess.run(list(map(str, command)), check=True)
    model_run = ctypes.CDLL(str(library)).model_run
    pixels, logits = np.ascontiguousarray(image.permute(1, 2, 0)), np.zeros(1000, np.int64)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (pixels, logits)]

    def run(_, keep=(pixels, logits)):
        return model_run(*pointers)

    return run


def in_onnx_runtime(file: Path, image: torch.Tensor) -> Run:
    session = slim.onnx_session(file, threads=1)
    inputs = {"images": as_floats(image[None]).numpy()}
    return lambda _: session.run(None, inputs)


def in_openvino(file: Path, image: torch.Tensor) -> Run:
    import openvino

    core = openvino.Core()
    model = core.read_model(file)
    model.reshape([1, *image.shape])
    request = core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": 1}).create_infer_request()
    inputs = as_floats(image[None]).numpy()
    return lambda _: request.infer(inputs)


def compiler_version() -> str:
    return subprocess.check_output([COMPILER, "--version"], text=True).splitlines()[0]


def measure(base: Run, run: Run) -> dict:
    """Milliseconds, and how many times as fast as ``base``, with the middle half of the ratios."""
    paired = slim.compare(base, run, 1, IMAGE_SIZE, REPEATS, warmup=50, threads=1)
    spread = sorted(1 / ratio for ratio in paired.spread)
    row = {"base": paired.first.median, "milliseconds": paired.second.median}
    return row | {"speedup": 1 / paired.ratio, "spread": spread}


def main() -> None:
    torch.set_num_threads(1)
    data = slim.load_images("fashion-mnist", IMAGE_SIZE)
    image = data.test.images[0]
    results = Results(Path(__file__).parent / "results" / "bare_metal.json")
    made_on = results.get("machine", machine)
    compiler = results.get("compiler", compiler_version)
    left_out = [] if find_spec("openvino") else ["OpenVINO (not installed)"]
    rows = {}
    for name in ("fast", "slim"):
        with tempfile.TemporaryDirectory() as folder:
            model = slim.quantize_integer(slim.load_model(name), 8, 8, data.train.take(CALIBRATION_IMAGES))
            source = slim.export_c(model, folder)
            file = slim.export_onnx(model, Path(folder) / "model.onnx")
            base = in_onnx_runtime(file, image)
            runs = {f"ONNX Runtime {version('onnxruntime')}": partial(in_onnx_runtime, file, image)}
            if not left_out:
                runs[f"OpenVINO {version('openvino')}"] = partial(in_openvino, file, image)
            runs |= {f"C, {kind}": partial(in_c, source, flags, image) for kind, flags in FLAGS.items()}
            for kind, make in runs.items():
                rows[name, kind] = results.get(f"{name}, {kind}", lambda base=base, make=make: measure(base, make()))
    lines = [
        "# Bare metal",
        "",
        f"Made by `python benchmarks/bare_metal.py` on {made_on}; C by {compiler}.",
        "",
        "One image, one thread, weights and activations of 8 bits. Each row was timed in turns with ONNX Runtime; in "
        "brackets the middle half of the ratios.",
        "",
        "| model | runtime | ms | times as fast as ONNX Runtime |",
        "|---|---|---|---|",
    ]
    for (name, kind), row in rows.items():
        low, high = row["spread"]
        speedup = f"{row['speedup']:.2f} ({low:.2f} to {high:.2f})"
        lines.append(f"| {name} | {kind} | {row['milliseconds']:.3f} | {speedup} |")
    lines += ["", f"Left out: {'; '.join(left_out)}."] if left_out else []
    results.write_table("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
