"""What a model must be before anything is done with it: a classifier, plain, finite, and with a name per output.

Used wherever a model enters. Leaves out: whether it fits the data that it meets (``data``).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from ultralytics import YOLO
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.models.description import weight_layers

USE_A_CLASSIFIER = "use a -cls model, such as yolov8n-cls.pt"


def as_network(model: object, name: str = "model", *, only_measured: bool = False) -> nn.Module:
    """The network in what people hand over: itself, or the one in a ``YOLO`` object or behind ``torch.compile``.

    Args:
        model: what was passed for argument ``name``. The network in it is returned, not a copy.
        name: of the argument, or what else a message shall call the model.
        only_measured: its time or size is what counts, and what is wrong with its layers is part of that.

    Raises:
        TypeError: ``model`` is no network; the message says what it is and the way out.
        ValueError: layers of it are under masks or other parametrizations, hold PyTorch's own integers, or numbers that
            are not finite.

    Example:
        >>> yolo = YOLO("yolov8n-cls.yaml", verbose=False)
        >>> as_network(yolo) is yolo.model
        True
    """
    if isinstance(model, YOLO) and not isinstance(model.model, nn.Module):
        raise TypeError(
            f"{name} is a YOLO object around the exported file {str(model.model)!r}, whose layers cannot be changed: "
            "load the .pt file that it was exported from"
        )
    given = model.model if isinstance(model, YOLO) else model
    for wrapper in ("_orig_mod", "module"):  # of torch.compile; of nn.DataParallel
        if isinstance(given, nn.Module) and not isinstance(given, ClassificationModel):
            given = getattr(given, wrapper, given)
    if not isinstance(given, nn.Module) or isinstance(given, torch.jit.ScriptModule):
        check_classifier(given, name)
    if not only_measured:
        _check_layers(given, name)
        check_finite(given, name)
    return given


def as_classifier(model: object, name: str = "model") -> ClassificationModel:
    """The classifier in what people hand over; arguments and errors as of ``as_network``, and no other network."""
    given = as_network(model, name)
    check_classifier(given, f"{name}: the YOLO object" if isinstance(model, YOLO) else name)
    return given


def check_classifier(model: object, name: str = "model") -> None:
    """Raise ``TypeError`` unless ``model``, the value of argument ``name``, is a classifier."""
    if isinstance(model, ClassificationModel):
        return
    kind = type(model).__name__
    if isinstance(model, YOLO):
        raise TypeError(f"{name} is a YOLO object: pass its network, {name}.model")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"{name} is a TorchScript module, whose layers cannot be changed: load the .pt file that it was made from"
        )
    if isinstance(model, dict):
        raise TypeError(
            f"{name} is a {kind}, such as a state_dict, which holds weights without their network: pass "
            "the model that they belong to, after model.load_state_dict(...)"
        )
    if isinstance(model, str | bytes) or hasattr(model, "__fspath__"):
        raise TypeError(f"{name}={str(model)!r} names a model or its file: pass load_model({str(model)!r})")
    if type(model).__module__ == "ultralytics.nn.tasks":
        raise TypeError(f"{name} holds a {kind}, not an image classifier: {USE_A_CLASSIFIER}")
    raise TypeError(f"{name} is a {kind}: expected a classifier, such as load_model() returns")


def not_finite(model: nn.Module) -> list[str]:
    """Names of the weights, biases and running statistics of ``model`` that hold NaN or infinity."""
    tensors = [(key, tensor) for key, tensor in model.state_dict().items() if isinstance(tensor, torch.Tensor)]
    floats = [(key, tensor) for key, tensor in tensors if tensor.is_floating_point() and not tensor.is_meta]
    # A sum is quicker than a look at each number, and finite only if they all are; it may be too large, though.
    return [key for key, tensor in floats if not tensor.sum().isfinite() and not tensor.isfinite().all()]


def check_finite(model: nn.Module, name: str = "model") -> None:
    """Raise ``ValueError`` if a weight, bias or running statistic of ``model`` is NaN or infinite.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> _ = layer.bias.data.fill_(float("nan"))
        >>> check_finite(layer, "student")
        Traceback (most recent call last):
        ...
        ValueError: student has numbers that are not finite (NaN or infinity), in bias: whatever it computes is ...
    """
    broken = not_finite(model)
    if broken:
        others = f" and {len(broken) - 1} more tensors" if len(broken) > 1 else ""
        raise ValueError(
            f"{name} has numbers that are not finite (NaN or infinity), in {broken[0]}{others}: whatever it computes "
            "is void. Take a copy from before the step that made them, such as an earlier checkpoint of its training"
        )


def class_names_of(model: ClassificationModel, name: str = "model") -> dict[int, str]:
    """The class names of ``model``, label by label, however its maker wrote them down.

    A list becomes a mapping, labels written as text become numbers, and labels are put in order. Names that occur twice
    stay: nothing is computed from them.

    Raises:
        ValueError: there are more or fewer names than outputs, or the labels are not 0, 1, 2 …

    Example:
        >>> from yolo_slim_lessons.models import new_model
        >>> model = new_model("yolov8n-cls.yaml", ("ant", "bee"))
        >>> model.names = {"1": "bee", "0": "ant"}
        >>> class_names_of(model)
        {0: 'ant', 1: 'bee'}
    """
    names = getattr(model, "names", None)
    way_out = (
        "Give each output its name, in the order of the outputs: model.names = {0: ..., 1: ..., ...}. For a file: "
        "yolo = YOLO(path); yolo.model.names = {0: ..., 1: ..., ...}; load_model(yolo)"
    )
    if isinstance(names, list | tuple):
        names = dict(enumerate(names))
    if not isinstance(names, dict):
        raise ValueError(f"{name} has the class names {names!r}, which are no mapping from label to name. {way_out}")
    *_, (_, last) = weight_layers(model)
    outputs = last.out_features if isinstance(last, nn.Linear) else last.out_channels
    if len(names) != outputs:
        raise ValueError(f"{name} has {outputs} outputs and {len(names)} class names. {way_out}")
    by_label = {int(label) if str(label).isdecimal() else label: str(text) for label, text in names.items()}
    if set(by_label) != set(range(outputs)):
        raise ValueError(
            f"{name} has class names for the labels {list(names)[:3]} …: expected 0 to {outputs - 1}. {way_out}"
        )
    return {label: by_label[label] for label in range(outputs)}


def _check_layers(model: nn.Module, name: str) -> None:
    """Refuse layers whose weights are not plain parameters: no copy, pruning or rounding of them would be true."""
    for path, layer in model.named_modules():
        if any(isinstance(hook, prune.BasePruningMethod) for hook in layer._forward_pre_hooks.values()):
            raise ValueError(
                f"{name} has masks of torch.nn.utils.prune, first on layer {path}. Make them part of the weights, "
                "on each such layer: torch.nn.utils.prune.remove(layer, 'weight')"
            )
        if parametrize.is_parametrized(layer):
            raise ValueError(
                f"{name} has parametrized layers, first {path}. Make that part of the weights, on each such layer: "
                "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')"
            )
        if type(layer).__module__.startswith(("torch.ao.nn", "torchao.")):
            raise ValueError(
                f"{name} is quantized by PyTorch: layer {path} is a {type(layer).__module__}.{type(layer).__name__}. "
                "Pass the float model that it was made from, and quantize with quantize_integer"
            )
