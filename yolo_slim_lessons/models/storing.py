"""Load a classifier and save one, as a checkpoint that plain ``YOLO(path)`` opens, too.

``checkpoints`` reads what is in a file. Used from lesson 00 on. Leaves out: the packed file (``packing``).
"""

from __future__ import annotations

from pathlib import Path

import torch
import ultralytics
from torch import nn
from ultralytics import YOLO
from ultralytics.data.augment import classify_transforms
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.files import WEIGHTS_DIR, verify_files, write_atomically
from yolo_slim_lessons.models.building import copy_model, quiet
from yolo_slim_lessons.models.checkpoints import read_network
from yolo_slim_lessons.models.checks import USE_A_CLASSIFIER, as_classifier, class_names_of, not_finite
from yolo_slim_lessons.models.description import layers_of_this_package


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
        with quiet():
            model = read_network(path.absolute(), trust)
        if not isinstance(model, ClassificationModel):
            raise TypeError(f"{name} holds a {type(model).__name__}, not an image classifier: {USE_A_CLASSIFIER}")
        model = as_classifier(model, name)
    else:
        raise TypeError(f"source={source!r}: expected a name, a path or an ultralytics.YOLO")
    model.names = class_names_of(model, name)
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
    if precision == "fp16" and not_finite(model):
        raise ValueError("precision='fp16': model has numbers above 65,504, the largest of FP16; expected 'fp32'")
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
