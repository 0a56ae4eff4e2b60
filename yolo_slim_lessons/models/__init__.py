"""Load, save and copy YOLO classifiers, and what a checkpoint says of its model.

The models are Ultralytics' own ``ClassificationModel``, unmodified: whatever this package makes of them, a file saved
here opens with plain ``YOLO(path)``. ``checkpoints`` reads files, ``permitted`` lists what these may ask for,
``file_kinds`` tells what other files are, ``checks`` says what a model must be, ``description`` what it says of itself.
Used from lesson 00 on. Leaves out: training (``training``) and other tasks than classification.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator
from pathlib import Path

import torch
import ultralytics
from torch import nn
from ultralytics import YOLO
from ultralytics.data.augment import classify_transforms
from ultralytics.nn.modules import Classify, Conv
from ultralytics.nn.tasks import ClassificationModel
from ultralytics.utils import LOGGER

from yolo_slim_lessons.files import WEIGHTS_DIR, verify_files, write_atomically
from yolo_slim_lessons.models.checkpoints import read_network
from yolo_slim_lessons.models.checks import (
    USE_A_CLASSIFIER,
    as_classifier,
    as_network,
    check_classifier,
    check_finite,
    class_names_of,
)
from yolo_slim_lessons.models.description import (
    blank_images,
    device_of,
    image_size_of,
    input_format,
    layers_of_this_package,
    logits,
    values_of,
    weight_layers,
)

__all__ = [
    "as_classifier",
    "as_network",
    "blank_images",
    "check_classifier",
    "check_finite",
    "class_names_of",
    "copy_model",
    "device_of",
    "image_size_of",
    "input_format",
    "layers_of_this_package",
    "load_model",
    "logits",
    "new_model",
    "save_model",
    "values_of",
    "weight_layers",
]


def new_model(architecture: str, class_names: tuple[str, ...], image_size: int = 64, seed: int = 0):
    """An untrained classifier.

    Args:
        architecture: what Ultralytics builds from, such as ``"yolov8n-cls.yaml"``.
        class_names: one name per label, in the order of the labels.
        image_size: pixels a side, stored so that ``YOLO(path).predict`` resizes to it.
        seed: of the random initial weights.

    Returns:
        A ``ClassificationModel`` in eval mode.

    Raises:
        ValueError: ``architecture`` describes no classifier, or there is no class name.
        FileNotFoundError: Ultralytics knows no such architecture.

    Example:
        >>> new_model("yolov8n-cls.yaml", ("ant", "bee")).names
        {0: 'ant', 1: 'bee'}
    """
    if len(class_names) == 0:
        raise ValueError(f"class_names={class_names!r}: expected one name per label, at least one")
    with torch.random.fork_rng(), _quiet():
        torch.manual_seed(seed)
        model = ClassificationModel(architecture, nc=len(class_names), verbose=False)
    if not isinstance(model.model[-1], Classify):
        raise ValueError(f"architecture={architecture!r}: expected a classifier, such as 'yolov8n-cls.yaml'")
    # Ultralytics gives all models of a process one and the same activation, and changes it when it builds a detector.
    for block in model.modules():
        if isinstance(block, Conv) and isinstance(block.act, nn.SiLU):
            block.act = nn.SiLU()
    model.names = dict(enumerate(class_names))
    model.task = "classify"
    model.args = {"task": "classify", "imgsz": image_size}
    return model.eval()


def adapt(
    model: ClassificationModel, class_names: tuple[str, ...], image_size: int | None = None, seed: int = 0
) -> ClassificationModel:
    """A copy of ``model`` for other classes: all layers as they were, but the last one new and random.

    A network that was trained on other images starts with what it knows about edges and shapes. A model that knows just
    these classes, in this order, keeps its last layer.

    Args:
        model: what to start from; it is left alone.
        class_names: one name per label, in the order of the labels.
        image_size: pixels a side from now on; convolutions take any. ``None`` leaves it as it was.
        seed: of the new layer's weights.

    Raises:
        ValueError: fewer than two classes.
        TypeError: ``model`` is no classifier.

    Example:
        >>> adapt(load_model("nano"), ("defective", "sound")).model[-1].linear.out_features
        2
    """
    model = as_classifier(model)
    if len(class_names) < 2:
        raise ValueError(f"class_names={class_names!r}: expected two or more")
    adapted = copy_model(model)
    if tuple(model.names.values()) != tuple(class_names):
        head = adapted.model[-1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head.linear = nn.Linear(head.linear.in_features, len(class_names)).to(device_of(model))
        adapted.names = dict(enumerate(class_names))
        adapted.yaml = {**adapted.yaml, "nc": len(class_names)}
    adapted.args = {"task": "classify", "imgsz": image_size or image_size_of(model)}
    return adapted.eval()


def load_model(
    source: str | Path | YOLO = "nano", *, device: str | torch.device | None = None, trust: bool = False
) -> ClassificationModel:
    """Load a classifier.

    A checkpoint can hold code, which runs while it is read. Here nothing runs: a file is read only if it consists of
    the parts of Ultralytics' classifiers, as those of Ultralytics 8.0 and later do. (``YOLO(path)`` itself lets a file
    run what it brings.)

    Args:
        source: ``"nano"``, ``"teacher"``, ``"slim"`` or ``"fast"`` (trained on Fashion-MNIST, in ``data/weights/``),
            the path of an Ultralytics ``.pt`` file, or an ``ultralytics.YOLO``, which is copied.
        device: where its weights go, such as ``"cuda"``; training, evaluation and timing then work there. ``None`` is
            the processor, and for an ``ultralytics.YOLO`` wherever that one is.
        trust: read a file with layers or settings of your own, too, and let it run code. Only for files that you or
            people whom you trust made.

    Returns:
        A plain FP32 ``ClassificationModel`` in eval mode. ``model.names`` maps label to class name, in the order of the
        labels.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or altered, is no checkpoint (named, with what it is and the way out) or asks
            for more than a classifier consists of (named likewise); the model has more or fewer names than outputs, or
            numbers that are not finite; or this machine has no such ``device``.
        TypeError: the model is not an image classifier.

    Example:
        >>> model = load_model("nano")
        >>> len(model.names)
        10
    """
    if device is not None:
        _check_device(device)
    if isinstance(source, YOLO) and isinstance(source.model, nn.Module):
        name = "source"
        model = copy_model(as_classifier(source, name))
    elif isinstance(source, YOLO):  # around an exported file
        return load_model(source.ckpt_path, device=device, trust=trust)
    elif isinstance(source, str | Path):
        path = _checkpoint_path(source)
        name = str(path)
        with _quiet():
            model = read_network(path.absolute(), trust)
        if not isinstance(model, ClassificationModel):
            raise TypeError(f"{name} holds a {type(model).__name__}, not an image classifier: {USE_A_CLASSIFIER}")
        model = as_classifier(model, name)
    else:
        raise TypeError(f"source={source!r}: expected a name, a path or an ultralytics.YOLO")
    model.names = class_names_of(model, name)
    check_finite(model, name)
    return model.float().to(device).eval()


def save_model(model: ClassificationModel, path: str | Path, precision: str = "fp32") -> Path:
    """Write an ordinary Ultralytics checkpoint, which ``YOLO(path)`` predicts with, validates, trains and exports.

    Args:
        model: any classifier of this package, pruned ones included, or an ``ultralytics.YOLO``.
        path: must end in ``.pt``. An older file stays whole until the new one is complete.
        precision: ``"fp32"`` (default; bit-exact) or ``"fp16"`` (half the size; what Ultralytics itself ships).

    Raises:
        ValueError: another ``precision`` or ending; a model that a plain ``YOLO`` could not open, as it computes
            with layers of this package (quantized ones, or rounded activations) or under masks; more or fewer names
            than outputs; or numbers that are not finite.
        TypeError: ``model`` is not a classifier.

    Example:
        >>> save_model(load_model("nano"), "mine.pt", precision="fp16").stat().st_size < 3_000_000
        True
    """
    model = as_classifier(model)
    if ours := layers_of_this_package(model):
        raise ValueError(
            f"model has layers that only this package can compute ({ours[0]} and {len(ours) - 1} more), so that "
            "YOLO(path) could not open its checkpoint. Where only weights are quantized, save dequantize(model); "
            "save_packed and export_onnx write any quantized model"
        )
    path = Path(path)
    if path.suffix != ".pt":
        raise ValueError(f"path={str(path)!r}: expected a name that ends in .pt, which Ultralytics requires")
    if precision not in ("fp32", "fp16"):
        raise ValueError(f"precision={precision!r}: expected 'fp32' or 'fp16'")
    names = class_names_of(model)
    model = copy_model(model).to(memory_format=torch.contiguous_format).requires_grad_(False)
    model = model.half() if precision == "fp16" else model.float()
    if precision == "fp16" and not all(tensor.isfinite().all() for tensor in values_of(model)):
        raise ValueError(
            "precision='fp16': model has weights above 65,504, the largest number of FP16; expected 'fp32'"
        )
    for attribute in ("pt_path", "criterion"):  # leftovers of loading and training; the first is a path of this machine
        model.__dict__.pop(attribute, None)
    model.names = names
    args = {key: value for key, value in getattr(model, "args", {}).items() if key in ("task", "imgsz")}
    model.args = args
    if "imgsz" in args:  # releases of Ultralytics before 8.4.130 cannot predict without
        model.transforms = classify_transforms(args["imgsz"])
    contents = {"model": model, "train_args": args, "version": ultralytics.__version__, "license": "AGPL-3.0"}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a path, torch.save would write its random name into the file
            torch.save(contents, file)

    write_atomically(path, write)
    return path


def copy_model(model: ClassificationModel) -> ClassificationModel:
    """A copy that shares nothing with its original."""
    return copy.deepcopy(model)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No word from Ultralytics within, even where it was imported first or told to be verbose."""
    level = LOGGER.level
    LOGGER.setLevel(logging.ERROR)
    try:
        yield
    finally:
        LOGGER.setLevel(level)


def _check_device(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # PyTorch has a type for each cause
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={str(device)!r} cannot be used here ({reason}): expected such as 'cpu'") from error


def _checkpoint_path(source: str | Path) -> Path:
    shipped = {file.stem: file for file in WEIGHTS_DIR.glob("*.pt")}
    if source in shipped:
        verify_files(WEIGHTS_DIR, shipped[source].name)
        return shipped[source]
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(
            f"source={str(source)!r}: there is no such file, and the shipped models are {sorted(shipped)}. "
            f"Weights that are missing from {WEIGHTS_DIR} come back with: git checkout -- data/weights"
        )
    return path
