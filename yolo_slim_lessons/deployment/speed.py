"""How fast a model is where it will run: in ONNX Runtime rather than in PyTorch. Used in lesson 08, for budgets.

Leaves out: other runtimes.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.deployment import export_onnx, onnx_session, run_onnx


def onnx_runner(model: ClassificationModel) -> Callable[[torch.Tensor], torch.Tensor]:
    """``model`` in ONNX Runtime, as a function of images that ``time_model`` and ``compare`` can time.

    What it computes with follows from the model, as ``export_onnx`` says: weights that alone are rounded run as floats.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = onnx_session(export_onnx(model, Path(folder) / "model.onnx"))
    return functools.partial(run_onnx, session)
