"""What several test files share: the images and the model, loaded once and changed by nobody."""

import os
import subprocess
import sys

import hypothesis
import matplotlib.pyplot as plt
import pytest
import torch
from filelock import FileLock

import yolo_slim_lessons as slim

# The same examples in each run, and no limit on their time: whoever runs the tests learns of faults, not of bad luck.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def close_figures():
    """Figures that a test has drawn and not shown stay open in pyplot, and there may be hundreds."""
    yield
    plt.close("all")


DEVICES = {
    "cpu": lambda: True,
    "cuda": torch.cuda.is_available,
    "mps": torch.backends.mps.is_available,
}


@pytest.fixture(params=DEVICES)
def device(request):
    """The name of every kind of device that PyTorch finds here, one after the other."""
    if not DEVICES[request.param]():
        pytest.skip(f"this machine has no {request.param}")
    return request.param


@pytest.fixture(scope="session")
def data(tmp_path_factory, worker_id):
    """Fashion-MNIST at 64 px: one process of the tests resizes it, and all map the same file into their memory."""
    own = tmp_path_factory.getbasetemp()
    file = (own if worker_id == "master" else own.parent) / "fashion-mnist-64.pt"
    with FileLock(f"{file}.lock"):
        if not file.exists():
            torch.save(slim.load_images("fashion-mnist", image_size=64), file)
    return torch.load(file, mmap=True, weights_only=False)


@pytest.fixture(scope="session")
def nano():
    return slim.load_model("nano")


@pytest.fixture
def run_python(tmp_path):
    """Run code in a fresh Python that works in a folder of its own; returns what it printed, errors included."""

    def run(code: str, *arguments, environment: dict[str, str] | None = None) -> str:
        folder = tmp_path / "fresh-python"
        folder.mkdir(exist_ok=True)
        # What the import of the package set here is no part of a fresh Python.
        clean = {name: value for name, value in os.environ.items() if not name.startswith("YOLO_")}
        clean |= {"YOLO_CONFIG_DIR": str(folder), "YOLO_SLIM_PROGRESS": "", "PYTHONIOENCODING": "utf-8"}
        clean |= environment or {}
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            cwd=folder,
            env=clean,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=300,
            encoding="utf-8",
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    return run
