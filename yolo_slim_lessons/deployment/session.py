"""Run an ONNX file in ONNX Runtime: threads, warm-up and batches. Used in lesson 09.

Leaves out: other processors than the one it runs on, though a session of ONNX Runtime takes its providers likewise.
"""

import numbers
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from yolo_slim_lessons.arguments import check_positive_integer
from yolo_slim_lessons.data import Split, as_floats


def onnx_session(
    path: str | Path, threads: int | None = None, *, warmup: int = 0, batch_size: int = 1
) -> onnxruntime.InferenceSession:
    """A session on the processor; ``session.run(None, {"images": array})[0]`` are the logits.

    Weights of few bits under activations that are floats are made floats once, here: left to itself, ONNX Runtime does
    so again for every batch.

    Args:
        path: of an ONNX file.
        threads: ``None`` takes as many as PyTorch uses. They sleep between two calls, or a session that waits would
            slow down whatever else is timed.
        warmup: runs on grey images before the session is handed out, as the first ones take longer.
        batch_size: images in each of these runs.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no ONNX model, ``threads`` or ``batch_size`` is below 1, or ``warmup`` below 0.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"path={str(path)!r}: there is no such file; export_onnx writes one")
    for name, value, least in (("threads", threads, 1), ("warmup", warmup, 0), ("batch_size", batch_size, 1)):
        if value is not None and (not isinstance(value, numbers.Integral) or value < least):
            raise ValueError(f"{name}={value!r}: expected {least} or more")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        operators = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
        if "QuantizeLinear" not in operators:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        # ONNX Runtime takes every path for UTF-8, also where the system's names of files are written in another way.
        model = str(path) if str(path).isascii() else Path(path).read_bytes()
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # protobuf and ONNX Runtime have kinds of errors of their own
        raise ValueError(
            f"path={str(path)!r} is not an ONNX model that ONNX Runtime {onnxruntime.__version__} can run ({error}): "
            "write it again with export_onnx"
        ) from error
    entry = session.get_inputs()[0]
    shape = (3, 64, 64) if entry.type == "tensor(uint8)" else entry.shape[1:]  # pictures may have any size
    for _ in range(warmup):
        run_onnx(session, torch.full((batch_size, *shape), 128, dtype=torch.uint8), batch_size)
    return session


def run_onnx(
    session: onnxruntime.InferenceSession, images: Split | torch.Tensor, batch_size: int = 256
) -> torch.Tensor:
    """What the graph answers for every image: logits, or probabilities with ``preprocess=True``; float32 N×classes.

    ``functools.partial(slim.run_onnx, session)`` is a function of images, which ``slim.compare`` times.

    Args:
        session: from ``onnx_session``.
        images: a ``Split``, or a tensor or NumPy array N×3×H×W, uint8 or float 0…1.
        batch_size: images in one call of ONNX Runtime.

    Raises:
        ValueError: ``batch_size`` is below 1, there is no image, its shape does not fit, or it is float where the graph
            reads bytes.

    Example:
        >>> import tempfile, yolo_slim_lessons as slim
        >>> data = slim.load_images("fashion-mnist")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     session = onnx_session(slim.export_onnx(slim.load_model("nano"), Path(folder) / "nano.onnx"))
        >>> data.class_names[run_onnx(session, data.test.images[:1]).argmax()]
        'Ankle boot'
    """
    check_positive_integer("batch_size", batch_size)
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images)
    entry = session.get_inputs()[0]
    reads_bytes = entry.type == "tensor(uint8)"
    channels = 3 if reads_bytes else entry.shape[1]
    pixels = images.images if isinstance(images, Split) else images
    shape = tuple(pixels.shape)
    if len(shape) != 4 or shape[1] not in (3, channels) or shape[0] == 0:
        raise ValueError(f"images has shape {shape}: expected N×{channels}×H×W with at least one image")
    if reads_bytes and pixels.dtype != torch.uint8:
        raise ValueError(f"images are {pixels.dtype}: the graph was exported with preprocess=True and reads uint8")
    if not reads_bytes and shape[2:] != tuple(entry.shape[2:]):
        raise ValueError(f"images have {shape[2:]} pixels: the graph reads {tuple(entry.shape[2:])}")
    if isinstance(images, Split):
        dtype = torch.uint8 if reads_bytes else torch.float32
        batches = (batch for batch, _ in images.batches(batch_size, dtype=dtype, channels=channels))
    else:
        batches = images.split(batch_size)
    answers = []
    for batch in batches:
        if reads_bytes:
            batch = batch.permute(0, 2, 3, 1)
        elif batch.dtype == torch.uint8:
            batch = as_floats(batch)
        answers.append(session.run(None, {entry.name: np.ascontiguousarray(batch.cpu().numpy())})[0])
    return torch.from_numpy(np.concatenate(answers))
