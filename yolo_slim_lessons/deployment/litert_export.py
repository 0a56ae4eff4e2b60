"""A model as a ``.tflite`` file, for phones, browsers and microcontrollers. Used in lesson 12.

Written here, from our own integers, because converters find integers of their own. ``litert-torch`` takes a float
network of PyTorch, which it rounds by ``ai-edge-quantizer`` or PT2E, and installs jax and transformers;
``ai-edge-quantizer`` calibrates a float ``.tflite`` anew; ``onnx2tf`` installs TensorFlow and older numpy and onnx.
Leaves out: the steps from a picture to ``images``, for LiteRT cannot resize as PIL does.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.agreement import check_image_size
from yolo_slim_lessons.data import Split
from yolo_slim_lessons.deployment.exporting import prepare_export
from yolo_slim_lessons.deployment.litert_graph import litert_graph
from yolo_slim_lessons.deployment.litert_session import litert_interpreter, run_litert
from yolo_slim_lessons.files import write_atomically
from yolo_slim_lessons.models import blank_images, logits
from yolo_slim_lessons.quantization import QuantizedModel, signal_to_noise

CHECKED_IMAGES = 4
# What must be left of the logits on these, in dB. Measured: 100 with floats, 30 and more with half ones; with integers
# 28 and more of trained networks and 10 and more of random ones. What is wired wrongly leaves 0.
LEAST = {"fp32": 40.0, "fp16": 20.0, "int8": 4.0}


def export_litert(
    model: ClassificationModel,
    path: str | Path,
    *,
    image_size: int | None = None,
    precision: str = "fp32",
    bits: int | None = None,
    calibration: Split | torch.Tensor | None = None,
    probabilities: bool = False,
) -> Path:
    """Write ``model`` as a file for LiteRT (TensorFlow Lite), as it is or quantized on the way.

    The file reads ``images``, float N×H×W×3 in 0…1 (channels last, unlike PyTorch and ``export_onnx``), any N, and
    answers with ``logits``, N×classes. It ends in a ZIP archive whose ``metadata.json`` holds ``class_names`` and
    ``image_size``, and what Ultralytics reads, so that with ``probabilities=True`` ``YOLO(path)`` predicts.

    What the file computes with follows from the model: FP32 for a float one; 8-bit integers (see ``litert_graph``) for
    one of ``quantize_integer`` with ``activation_bits``; floats from integer weights of 4 or 8 bits for one without.
    Before it is written, LiteRT runs it on a few images, and its answers are compared with those of the model.

    Args:
        model: a classifier, pruned or not, quantized or not; it is left alone.
        path: must end in ``.tflite``. An older file stays whole until the new one is complete.
        image_size: pixels a side; ``None`` takes what the model was trained for.
        precision: ``"fp32"`` or ``"fp16"``, for a model whose weights are floats. FP16 halves the file; most
            processors convert back to compute.
        bits: quantizes a float model first. 5 to 8: weights of so many bits, activations of 8, biases corrected, all
            by ``calibration``. 2 to 4: weights alone, rounded to nearest; what ``slim.learn_rounding`` makes is better.
        calibration: for 5 bits and more, some hundred training images; labels are not looked at.
        probabilities: end with a softmax, as Ultralytics expects.

    Raises:
        ImportError: ``ai-edge-litert`` is not installed, which the extra ``deploy`` brings.
        TypeError: ``model`` is no classifier, or has a part that is not understood (named, with its place).
        ValueError: another ending, precision or number of bits, ``calibration`` missing or not used, or a quantized
            model that is to be quantized again or that LiteRT could not run.
        RuntimeError: what LiteRT makes of the file is not what the model answers; nothing is written.

    Example:
        >>> import tempfile, yolo_slim_lessons as slim
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = export_litert(slim.load_model("nano"), Path(folder) / "nano.tflite", precision="fp16")
        ...     print(round(file.stat().st_size / 1e6, 1), "MB")
        2.9 MB
    """
    export = prepare_export(model, path, image_size, precision, bits, calibration, ending=".tflite", kind="LiteRT")
    check_image_size(export.model, (export.image_size, export.image_size), "image_size")
    content = litert_graph(export.model, export.image_size, precision, probabilities, export.properties)
    _check_answers(export.model, content, export.image_size, precision, probabilities)
    write_atomically(export.path, lambda temporary: temporary.write_bytes(content))
    return export.path


@torch.inference_mode()
def _check_answers(model: ClassificationModel, content: bytes, size: int, precision: str, probabilities: bool) -> None:
    """Raise ``RuntimeError`` unless LiteRT answers as ``model`` does, on smooth pictures of random colours."""
    blank = blank_images(model, size)
    random = torch.Generator().manual_seed(0)
    colours = torch.rand(CHECKED_IMAGES, blank.shape[1], 8, 8, generator=random)
    pictures = (F.interpolate(colours, (size, size), mode="bilinear") * 255).to(torch.uint8)
    expected = logits(model, pictures.to(blank) / 255).float().cpu()
    if probabilities:
        expected = expected.softmax(1)
    found = run_litert(litert_interpreter(content), pictures)
    kind = "int8" if isinstance(model, QuantizedModel) else precision
    left = signal_to_noise(expected, found)
    if not left >= LEAST[kind]:
        raise RuntimeError(
            f"LiteRT does not answer as the model: {left:.1f} dB are left of its answers to {CHECKED_IMAGES} pictures, "
            f"expected {LEAST[kind]:.0f} or more. Nothing was written. Activations of few bits and weights that nobody "
            "trained pass errors on. If evaluate finds the model good, the fault is in export_litert or in this "
            "version of ai-edge-litert, and export_onnx is another way"
        )
