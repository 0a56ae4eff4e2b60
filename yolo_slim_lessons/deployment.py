"""Leave PyTorch: a model as an ONNX graph, and a session of ONNX Runtime that runs it.

Used by the benchmarks. Leaves out: other runtimes.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import onnxruntime
import torch
from torch import nn
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.models import copy_model, image_size_of, logits, write_atomically


class _Scores(nn.Module):
    """Logits alone, whatever else the model answers with."""

    def __init__(self, model: ClassificationModel):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return logits(self.model, images)


def export_onnx(model: ClassificationModel, path: str | Path, *, image_size: int | None = None) -> Path:
    """Write ``model`` as an ONNX graph in FP32, with BatchNorm folded into the convolutions.

    The graph reads ``images``, float N×3×H×W in 0…1, any N, and answers with ``logits``, N×classes.

    Args:
        model: a float classifier, pruned or not; it is left alone.
        path: must end in ``.onnx``. An older file stays whole until the new one is complete.
        image_size: pixels a side; ``None`` takes what the model was trained for.

    Raises:
        TypeError: ``model`` is no classifier.
        ValueError: another ending.

    Example:
        >>> import tempfile, yolo_slim_lessons as slim
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = export_onnx(slim.load_model("nano"), Path(folder) / "nano.onnx")
        ...     [entry.name for entry in onnx_session(file).get_inputs()]
        ['images']
    """
    if not isinstance(model, ClassificationModel):
        raise TypeError(f"model is a {type(model).__name__}: expected a classifier, such as load_model() returns")
    path = Path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"path={str(path)!r}: expected a name that ends in .onnx")
    size = image_size_of(model) if image_size is None else image_size
    graph = _Scores(copy_model(model).eval())
    images = torch.zeros(1, 3, size, size)

    def write(temporary: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter by tracing is deprecated, but needs no further package
            torch.onnx.export(
                graph, (images,), str(temporary), dynamo=False, input_names=["images"], output_names=["logits"],
                dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
            )  # fmt: skip

    write_atomically(path, write)
    return path


def onnx_session(path: str | Path, threads: int | None = None) -> onnxruntime.InferenceSession:
    """A session on the processor; ``session.run(None, {"images": array})[0]`` are the logits.

    Args:
        path: of an ONNX file.
        threads: ``None`` takes as many as PyTorch uses. They sleep between two calls, or a session that waits would
            slow down whatever else is timed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: ``threads`` is below 1.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"path={str(path)!r}: there is no such file; export_onnx writes one")
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads!r}: expected 1 or more")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
