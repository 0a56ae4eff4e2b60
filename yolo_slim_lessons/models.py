"""Load, save and copy YOLO classifiers, and what a checkpoint says of its model.

The models are Ultralytics' own ``ClassificationModel``, unmodified: whatever this package makes of them, a file saved
here opens with plain ``YOLO(path)``. Used from lesson 00 on. Leaves out: training (``training``) and other
tasks than classification.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import ultralytics
from torch import nn
from ultralytics import YOLO
from ultralytics.data.augment import classify_transforms
from ultralytics.nn.modules import Classify, Conv
from ultralytics.nn.tasks import SAFE_LOAD, ClassificationModel, load_checkpoint, temporary_modules
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER

from yolo_slim_lessons.files import WEIGHTS_DIR, verify_files, write_atomically


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


def load_model(source: str | Path | YOLO = "nano", *, device: str | torch.device | None = None) -> ClassificationModel:
    """Load a classifier.

    A checkpoint may run code of its own while it is loaded: load only files whose origin you trust.

    Args:
        source: ``"nano"``, ``"teacher"``, ``"slim"`` or ``"fast"`` (trained on Fashion-MNIST, in ``data/weights/``),
            the path of an Ultralytics ``.pt`` file, or an ``ultralytics.YOLO``, which is copied.
        device: where its weights go, such as ``"cuda"``; training, evaluation and timing then work there. ``None`` is
            the processor, and for an ``ultralytics.YOLO`` wherever that one is.

    Returns:
        A plain FP32 ``ClassificationModel`` in eval mode. ``model.names`` maps label to class name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or altered, or is no checkpoint (named, with what it is and the way out); or
            this machine has no such ``device``.
        TypeError: the model is not an image classifier.

    Example:
        >>> model = load_model("nano")
        >>> len(model.names)
        10
    """
    if device is not None:
        _check_device(device)
    if isinstance(source, YOLO):
        model = copy_model(source.model) if isinstance(source.model, nn.Module) else load_model(source.ckpt_path)
        origin = "the YOLO object"
    elif isinstance(source, str | Path):
        path = _checkpoint_path(source)
        origin = str(path)
        try:
            with _quiet():
                model = _read_checkpoint(path.absolute())
        except Exception as error:  # bytes that are no checkpoint make pickle raise nearly anything
            raise ValueError(
                f"{path} is not a readable Ultralytics checkpoint ({type(error).__name__}): {_what_it_is(path)}"
            ) from error
    else:
        raise TypeError(f"source={source!r}: expected a name, a path or an ultralytics.YOLO")
    if not isinstance(model, ClassificationModel):
        raise TypeError(
            f"{origin} holds a {type(model).__name__}, not an image classifier: "
            "use a -cls model, such as yolov8n-cls.pt"
        )
    return model.float().to(device).eval()


def save_model(model: ClassificationModel, path: str | Path, precision: str = "fp32") -> Path:
    """Write an ordinary Ultralytics checkpoint, which ``YOLO(path)`` predicts with, validates, trains and exports.

    Args:
        model: any classifier of this package, pruned ones included.
        path: must end in ``.pt``. An older file stays whole until the new one is complete.
        precision: ``"fp32"`` (default; bit-exact) or ``"fp16"`` (half the size; what Ultralytics itself ships).

    Raises:
        ValueError: another ``precision`` or ending, or a model that a plain ``YOLO`` could not open, as it computes
            with layers of this package: one with quantized layers, or with rounded activations.
        TypeError: ``model`` is not a classifier.

    Example:
        >>> save_model(load_model("nano"), "mine.pt", precision="fp16").stat().st_size < 3_000_000
        True
    """
    check_classifier(model)
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
    model = copy_model(model).to(memory_format=torch.contiguous_format).requires_grad_(False)
    model = model.half() if precision == "fp16" else model.float()
    for attribute in ("pt_path", "criterion"):  # leftovers of loading and training; the first is a path of this machine
        model.__dict__.pop(attribute, None)
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


def check_classifier(model: object, name: str = "model") -> None:
    """Raise ``TypeError`` unless ``model``, the value of argument ``name``, is a classifier."""
    if not isinstance(model, ClassificationModel):
        raise TypeError(f"{name} is a {type(model).__name__}: expected a classifier, such as load_model() returns")


def image_size_of(model: nn.Module) -> int:
    """Pixels a side that ``model`` was trained for, as its checkpoint says.

    Raises:
        ValueError: the model does not say, or names a height and a width that differ.
    """
    args = getattr(model, "args", None)
    size = args.get("imgsz") if isinstance(args, dict) else getattr(args, "imgsz", None)
    if not isinstance(size, int):
        raise ValueError(f"the model's image size is {size!r}: pass image_size=, such as 64")
    return size


def device_of(model: nn.Module) -> torch.device:
    """Where the weights of ``model`` are; the processor if it has none."""
    return next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))


def input_format(model: nn.Module) -> dict[str, object]:
    """What images ``model`` reads, as keywords of ``Split.batches``: ``device``, ``dtype`` and ``channels``."""
    first = next((layer for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)
    floats = (tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point())
    return {
        "device": device_of(model),
        "dtype": next(floats, torch.float32),
        "channels": 3 if first is None else first.in_channels,
    }


def blank_images(model: nn.Module, image_size: int | None = None, count: int = 1) -> torch.Tensor:
    """Black images that ``model`` can read: of its channels, number type and device.

    Args:
        model: any network; its first convolution reads the image.
        image_size: pixels a side; ``None`` takes what the model was trained for.
        count: N.

    Returns:
        Zeros, N×C×H×W.
    """
    what = input_format(model)
    size = image_size_of(model) if image_size is None else image_size
    return torch.zeros(count, what["channels"], size, size, dtype=what["dtype"], device=what["device"])


def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Unnormalized class scores, N×classes, from float images N×3×H×W in 0…1.

    In eval mode Ultralytics' head answers with (probabilities, logits), in training mode with logits alone.
    """
    output = model(images)
    return output[1] if isinstance(output, tuple) else output


def weight_layers(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d | nn.Linear]]:
    """Every layer that multiplies by weights, as (name, layer): convolutions and linear layers, in order.

    Example:
        >>> name, layer = next(weight_layers(load_model("nano")))
        >>> name, tuple(layer.weight.shape)
        ('model.0.conv', (16, 3, 3, 3))
    """
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            yield name, layer


def values_of(model: nn.Module) -> Iterator[torch.Tensor]:
    """Every weight, bias and BatchNorm factor; of quantized layers, the numbers that their integers stand for."""
    for module in model.modules():
        computed = ("weight", "bias") if hasattr(module, "weight_grid") else ()
        for name in dict.fromkeys((*module._parameters, *computed)):
            value = getattr(module, name)
            if value is not None:
                yield value


def layers_of_this_package(model: nn.Module) -> list[str]:
    """Names of the layers whose class or hook is defined in this package, such as quantized layers."""
    package = __name__.partition(".")[0]
    return [
        name
        for name, layer in model.named_modules()
        if name  # not the model as a whole
        and any(
            type(part).__module__.partition(".")[0] == package
            for part in (layer, *layer._forward_pre_hooks.values(), *layer._forward_hooks.values())
        )
    ]


def _check_device(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # PyTorch has a type for each cause
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={str(device)!r} cannot be used here ({reason}): expected such as 'cpu'") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No word from Ultralytics within, even where it was imported first or told to be verbose."""
    level = LOGGER.level
    LOGGER.setLevel(logging.ERROR)
    try:
        yield
    finally:
        LOGGER.setLevel(level)


def _read_checkpoint(path: Path) -> nn.Module:
    """The network in a checkpoint, as Ultralytics' ``load_checkpoint`` returns it.

    That function cannot be used: it changes some names (it's.pt, yolov5n.pt) and asks the network for what they are
    then. Only whoever has set ``ULTRALYTICS_SAFE_LOAD`` gets it, for this is where Ultralytics keeps to that setting.
    """
    if SAFE_LOAD:
        return load_checkpoint(str(path))[0]
    if path.suffix.lower() != ".pt":
        raise ValueError(f"{path.name} ends in {path.suffix!r}")  # YOLO refuses it, too
    with temporary_modules(
        # As early releases of Ultralytics 8.0 named them; and paths of another system, which settings may hold.
        modules={
            "ultralytics.yolo.utils": "ultralytics.utils",
            "ultralytics.yolo.v8": "ultralytics.models.yolo",
            "ultralytics.yolo.data": "ultralytics.data",
        },
        attributes={
            f"pathlib.{foreign}": "pathlib.Path"
            for foreign in ("PosixPath", "WindowsPath")
            if foreign != type(path).__name__
        },
    ):
        contents = torch.load(path, map_location="cpu", weights_only=False)
    model = contents.get("ema") or contents["model"]
    model.args = {**DEFAULT_CFG_DICT, **contents.get("train_args", {})}
    for layer in model.modules():
        if hasattr(layer, "inplace"):
            layer.inplace = True
    return model


def _what_it_is(path: Path) -> str:
    """What a file that is no checkpoint seems to be, and the way out."""
    with path.open("rb") as file:
        beginning = file.read(200)
    for start, meaning in {
        b"<": "it is a web page. The link led to a page about the file: download the file itself",
        b"version https://git-lfs": "it is a pointer of Git LFS. Get the file itself with: git lfs pull",
        b"SLIM": "it is a packed file. Use slim.load_packed",
    }.items():
        if beginning.lstrip().startswith(start):
            return meaning
    if not beginning:
        return "it is empty. Get it again from where it came from, or train it again"
    if path.suffix.lower() != ".pt":
        return f"expected a file whose name ends in .pt, not in {path.suffix!r}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever else it is
        return (
            "it is damaged, cut short, of another program or another kind of file. "
            "Get it again from where it came from, or train it again"
        )
    return (
        f"it holds a {type(contents).__name__} without a network, such as weights alone (a state_dict). "
        "Save the whole model in the program that made it, with YOLO.save"
    )


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
