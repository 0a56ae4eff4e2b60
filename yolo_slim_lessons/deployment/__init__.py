"""Leave PyTorch: a model as an ONNX or LiteRT file, and sessions of ONNX Runtime that run it. Used in lesson 09.

``onnx_graph`` writes what the model computes, ``preprocessing`` puts the steps from a picture in front, and ``session``
runs the file. Leaves out: other runtimes, though many read the same files (see ``benchmarks/deployment.py``).
"""

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx
import torch
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.agreement import check_image_size
from yolo_slim_lessons.data import Split
from yolo_slim_lessons.deployment.exporting import prepare_export
from yolo_slim_lessons.deployment.litert_export import export_litert
from yolo_slim_lessons.deployment.onnx_graph import onnx_graph
from yolo_slim_lessons.deployment.preprocessing import with_preprocessing, with_softmax
from yolo_slim_lessons.deployment.session import onnx_session, run_onnx
from yolo_slim_lessons.files import write_atomically

__all__ = ["export_litert", "export_onnx", "onnx_runner", "onnx_session", "run_onnx"]


def export_onnx(
    model: ClassificationModel,
    path: str | Path,
    *,
    image_size: int | None = None,
    precision: str = "fp32",
    bits: int | None = None,
    calibration: Split | torch.Tensor | None = None,
    preprocess: bool = False,
    probabilities: bool = False,
) -> Path:
    """Write ``model`` as an ONNX file, as it is or quantized on the way.

    The graph reads ``images``, float N×3×H×W in 0…1, any N, and answers with ``logits``, N×classes. The file's metadata
    hold ``class_names``, a list in JSON, and ``image_size``; and what Ultralytics reads, so that with
    ``probabilities=True`` ``YOLO(path)`` predicts and validates.

    What the file computes with follows from the model: FP32 for a float one; 8-bit integers (QDQ, see ``onnx_graph``)
    for one of ``quantize_integer`` with ``activation_bits``; floats from integer weights of 4, 8 or 16 bits for one
    without. On x86 without VNNI, ONNX Runtime adds products of 8-bit weights in 16 bits, which can overflow; weights of
    7 bits cannot.

    Args:
        model: a classifier, pruned or not, quantized or not; it is left alone.
        path: must end in ``.onnx``. An older file stays whole until the new one is complete.
        image_size: pixels a side; ``None`` takes what the model was trained for.
        precision: ``"fp32"`` or ``"fp16"``, for a model whose weights are floats. FP16 halves the file; most processors
            convert back to compute.
        bits: quantizes a float model first. 5 to 8: weights of so many bits, activations of 8, biases corrected, all
            by ``calibration``. 2 to 4: weights alone, rounded to nearest; what ``slim.learn_rounding`` makes is better.
        calibration: for 5 bits and more, some hundred training images; labels are not looked at.
        preprocess: the graph reads ``pictures`` instead, uint8 N×H×W×3 in RGB, all of one size but of any, as a camera
            or PIL gives them, and answers with ``probabilities``. It resizes and cuts out as ``slim.load_images`` does.

        probabilities: end with a softmax, as Ultralytics expects: it takes what a file answers for probabilities, and
            would show logits as such. ``False`` by default, for from logits one can have both.

    Raises:
        TypeError: ``model`` is no classifier, or has a part that is not understood (named, with its place).
        ValueError: another ending, precision or number of bits, ``calibration`` missing or not used, or a quantized
            model that is to be quantized again or that ONNX Runtime could not run.

    Example:
        >>> import tempfile, yolo_slim_lessons as slim
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = export_onnx(slim.load_model("nano"), Path(folder) / "nano.onnx")
        ...     [entry.name for entry in onnx_session(file).get_inputs()]
        ['images']
    """
    export = prepare_export(model, path, image_size, precision, bits, calibration, ending=".onnx", kind="ONNX")
    check_image_size(export.model, (export.image_size, export.image_size), "image_size")
    graph = onnx_graph(export.model, export.image_size, precision)
    if preprocess:
        graph = with_preprocessing(graph, export.image_size)
    elif probabilities:
        graph = with_softmax(graph)
    graph.producer_name = "yolo_slim_lessons"
    properties = export.properties | {"class_names": json.dumps(export.properties["class_names"])}
    onnx.helper.set_model_props(graph, {name: str(value) for name, value in properties.items()})
    onnx.checker.check_model(graph)
    write_atomically(export.path, lambda temporary: temporary.write_bytes(graph.SerializeToString()))
    return export.path


def onnx_runner(model: ClassificationModel) -> Callable[[torch.Tensor], torch.Tensor]:
    """``model`` in ONNX Runtime, as a function of images that ``time_model`` and ``compare`` can time.

    What it computes with follows from the model, as ``export_onnx`` says: weights that alone are rounded run as floats.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = onnx_session(export_onnx(model, Path(folder) / "model.onnx"))
    return functools.partial(run_onnx, session)
