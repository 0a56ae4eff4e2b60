"""What a machine with CUDA makes of it, in at most ten minutes: the tests there, images a second, time to compress.

    python benchmarks/gpu.py [--device cuda] [--images 2048] [--image-size 224] [--model yolov8n-cls.yaml]

Random images will do, for how right answers are is measured elsewhere. Trained and evaluated are networks with random
weights, in FP32 and in mixed precision, beside Ultralytics' own trainer on the same images (which it reads from files,
as it always does). With ``--device cpu --images 64 --image-size 64`` the script itself is tried where there is no such
machine. Results go to ``results/gpu.json``, the table to ``results/gpu.md``.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _results import Results, machine

import yolo_slim_lessons as slim
from yolo_slim_lessons.data import ImageData, Split

HERE = Path(__file__).parent
CLASSES = ("daisy", "dandelion", "roses", "sunflowers", "tulips")
BATCH = 64


def random_data(images: int, size: int) -> ImageData:
    random = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=random)
        return Split(pixels, torch.arange(count) % len(CLASSES), CLASSES)

    return ImageData(split(images), split(images // 4), split(images // 4), CLASSES, size)


def seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Of a second run: the first one compiles kernels and chooses algorithms."""
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def ultralytics_seconds(model, data: ImageData, device: torch.device, size: int) -> float:
    """Of the second of two epochs of Ultralytics' own trainer, with its own settings."""
    from ultralytics import YOLO

    with tempfile.TemporaryDirectory() as folder:
        images = slim.write_image_folder(data, Path(folder) / "images")
        yolo, ends = YOLO(slim.save_model(model, Path(folder) / "start.pt")), []
        yolo.add_callback("on_train_epoch_end", lambda trainer: ends.append(time.perf_counter()))
        yolo.train(
            data=str(images),
            epochs=2,
            imgsz=size,
            batch=BATCH,
            device=0 if device.type == "cuda" else "cpu",
            project=folder,
            plots=False,
            val=False,
            verbose=False,
        )
    return ends[1] - ends[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--model", default="yolov8n-cls.yaml")
    options = parser.parse_args()
    device, size, images = torch.device(options.device), options.image_size, options.images
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(
            "--device cuda: PyTorch finds none here; --device cpu --images 64 --image-size 64 tries the script"
        )
    results = Results(HERE / "results" / "gpu.json")
    results.keep_to({"device": options.device, "images": images, "image size": size, "model": options.model})
    made_on = results.get("machine", machine)
    name = results.get("card", lambda: torch.cuda.get_device_name() if device.type == "cuda" else "no card")
    data = random_data(images, size)
    model = slim.new_model(options.model, CLASSES, size).to(device)

    def tests() -> str:
        command = [sys.executable, "-m", "pytest", "-q", "tests/test_devices.py"]
        done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=False)
        return done.stdout.strip().splitlines()[-1]

    def training(**settings) -> float:
        return images / seconds(device, lambda: slim.fit(model, data, 1, batch_size=BATCH, progress=False, **settings))

    def evaluating() -> float:
        return len(data.test) / seconds(device, lambda: slim.evaluate(model, data.test, progress=False))

    def compressing() -> float:
        started = time.perf_counter()
        budget = slim.Budget(target_bytes=slim.count_parameters(model) * 4 // 20, epochs=2)
        slim.compress(model, data, budget, progress=False)
        return time.perf_counter() - started

    rows = {
        "tests on this device": results.get("tests", tests),
        "training, FP32, images a second": results.get("training", training),
        "training, bfloat16, images a second": results.get("training, bfloat16", lambda: training(bfloat16=True)),
        "training, photographs' augmentation, images a second": results.get(
            "training, photographs",
            lambda: training(augment="photographs"),
        ),
        "training, Ultralytics' own trainer, images a second": results.get(
            "Ultralytics", lambda: images / ultralytics_seconds(model, data, device, size)
        ),
        "evaluation, images a second": results.get(
            "evaluation",
            lambda: (
                len(data.test) / seconds(device, lambda: slim.evaluate(model.to(device), data.test, progress=False))
            ),
        ),
        "compress to a twentieth, two epochs, seconds": results.get("compress", compressing),
    }
    lines = [
        "# On a graphics card",
        "",
        f"Made by `python benchmarks/gpu.py --device {options.device}` on {name} ({made_on}).",
        "",
        f"{options.model}, {images:,} random images of {size} px, batches of {BATCH}.",
        "",
        "| what | |",
        "|---|---|",
        *(f"| {what} | {value if isinstance(value, str) else format(value, '.0f')} |" for what, value in rows.items()),
    ]
    results.write_table("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
