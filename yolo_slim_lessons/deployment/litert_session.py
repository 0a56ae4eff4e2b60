"""Run a ``.tflite`` file in LiteRT's interpreter, with its kernels for processors, XNNPACK. Used in lesson 12.

Leaves out: accelerators of phones, whose delegates load the same files, and tflite-micro, whose interpreter does.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from yolo_slim_lessons.arguments import check_positive_integer
from yolo_slim_lessons.data import Split, as_floats


def litert_interpreter(file: str | Path | bytes, threads: int | None = None, batch_size: int = 1):
    """An interpreter on the processor, which ``run_litert`` runs.

    Args:
        file: path of a ``.tflite`` file, or what it holds.
        threads: ``None`` takes as many as PyTorch uses.
        batch_size: images in one call. It is settled here, before anything is prepared: LiteRT 2.3.0 gave wrong
            answers for images behind the 32nd when a prepared interpreter was enlarged (YOLO11, int8, 224 px).

    Returns:
        ``ai_edge_litert.interpreter.Interpreter``.

    Raises:
        ImportError: ``ai-edge-litert`` is not installed.
        FileNotFoundError: there is no such file.
        ValueError: the file is no model that LiteRT can run, or ``threads`` or ``batch_size`` is below 1.
    """
    if threads is not None:
        check_positive_integer("threads", threads)
    check_positive_integer("batch_size", batch_size)
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ImportError(f"LiteRT needs ai-edge-litert ({error}): pip install 'yolo-slim-lessons[deploy]'") from error
    if not isinstance(file, bytes) and not Path(file).is_file():
        raise FileNotFoundError(f"file={str(file)!r}: there is no such file; export_litert writes one")
    content = file if isinstance(file, bytes) else Path(file).read_bytes()
    try:
        interpreter = Interpreter(model_content=content, num_threads=threads or torch.get_num_threads())
        entry = interpreter.get_input_details()[0]
        interpreter.resize_tensor_input(entry["index"], [batch_size, *entry["shape"][1:]])
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        name = "these bytes" if isinstance(file, bytes) else f"file={str(file)!r}"
        raise ValueError(
            f"{name}: no model that LiteRT can run ({error}); write it again with export_litert"
        ) from error
    return interpreter


def run_litert(interpreter, images: Split | torch.Tensor | np.ndarray) -> torch.Tensor:
    """What the file answers for every image: logits, or probabilities if it was written so; float32 N×classes.

    Args:
        interpreter: from ``litert_interpreter``.
        images: a ``Split``, or a tensor or array N×C×H×W, uint8 or float 0…1; they are turned to N×H×W×C here.

    Raises:
        ValueError: there is no image, or its shape does not fit.

    Example:
        >>> import tempfile, yolo_slim_lessons as slim
        >>> data = slim.load_images("fashion-mnist")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = slim.export_litert(slim.load_model("nano"), Path(folder) / "nano.tflite")
        ...     answers = run_litert(litert_interpreter(file), data.test.images[:1])
        >>> data.class_names[answers.argmax()]
        'Ankle boot'
    """
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images)
    entry = interpreter.get_input_details()[0]
    batch_size, height, width, channels = entry["shape"].tolist()
    shape = tuple((images.images if isinstance(images, Split) else images).shape)
    if len(shape) != 4 or shape[1] not in (3, channels) or shape[0] == 0:
        raise ValueError(f"images has shape {shape}: expected N×{channels}×H×W with at least one image")
    if shape[2:] != (height, width):
        raise ValueError(f"images have {shape[2:]} pixels: the file reads {(height, width)}")
    if isinstance(images, Split):
        batches = (batch for batch, _ in images.batches(batch_size, channels=channels))
    else:
        batches = (as_floats(batch) if batch.dtype == torch.uint8 else batch for batch in images.split(batch_size))
    return torch.cat([_answers(interpreter, batch.float().permute(0, 2, 3, 1).cpu().numpy()) for batch in batches])


def _answers(interpreter, pixels: np.ndarray) -> torch.Tensor:
    """Of images N×H×W×C, as many as the interpreter takes in one call, or fewer."""
    entry, answer = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    filled = np.zeros(entry["shape"], np.float32)
    filled[: len(pixels)] = pixels
    interpreter.set_tensor(entry["index"], filled)
    interpreter.invoke()
    return torch.from_numpy(interpreter.get_tensor(answer["index"])[: len(pixels)].copy())
