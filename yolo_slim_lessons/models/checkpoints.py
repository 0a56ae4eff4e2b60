"""Read the network in a checkpoint of Ultralytics, without running code from the file.

``file_kinds`` tells what other files are, ``permitted`` lists what a checkpoint may ask for. Used by ``load_model``.
Leaves out: writing, which ``save_model`` does.
"""

from __future__ import annotations

import pickle
import re
import threading
import zipfile
from pathlib import Path

import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.nn import tasks
from ultralytics.utils import DEFAULT_CFG_DICT

from yolo_slim_lessons.models.checks import USE_A_CLASSIFIER
from yolo_slim_lessons.models.file_kinds import (
    IF_IT_IS_YOURS,
    what_else_it_is,
    what_is_missing,
    what_it_asks_for,
    what_it_holds,
)
from yolo_slim_lessons.models.permitted import MOVED, permitted, plain

_LIST_OF_PYTORCH = threading.Lock()  # the list is one for the whole process
_ACTIVATION = re.compile(r"(torch\.)?nn\.\w+\([\w\s.,=-]*\)", re.ASCII)


class UnreadableError(Exception):
    """Says why a file is not read, and the way out."""


class OtherTaskError(Exception):
    """Names the network of a file that is for another task than classification."""


def read_network(path: Path, trust: bool = False) -> nn.Module:
    """The network in the checkpoint at ``path``, in FP32, with ``args`` as Ultralytics attaches them.

    Args:
        path: of a file of any kind; it must end in ``.pt``, as Ultralytics requires.
        trust: let the file run whatever code it brings.

    Raises:
        ValueError: it is another kind of file, damaged, or asks for what no classifier consists of.
        TypeError: it holds a network of another task.
    """
    try:
        _check_file(path, trust)
        return _read_trusted(path) if trust else _read_permitted(path)
    except OtherTaskError as error:
        raise TypeError(f"{path} holds a {error}, not an image classifier: {USE_A_CLASSIFIER}") from None
    except Exception as error:  # bytes that are no checkpoint make PyTorch raise nearly anything
        reason = str(error) if isinstance(error, UnreadableError) else f"it cannot be read ({_in_short(error)})"
        raise ValueError(f"{path} is not a readable Ultralytics checkpoint: {reason}") from error


def _check_file(path: Path, trust: bool) -> None:
    if reason := what_else_it_is(path):
        raise UnreadableError(reason)
    if path.suffix.lower() != ".pt":
        raise UnreadableError(f"expected a file whose name ends in .pt, not in {path.suffix!r}")
    if not trust and not zipfile.is_zipfile(path):
        raise UnreadableError(
            "it is in the form that PyTorch wrote before 1.6, which cannot be looked through before it is read. "
            + IF_IT_IS_YOURS
        )


def _read_permitted(path: Path) -> nn.Module:
    """The network, if the file consists of what is permitted; else nothing of it is read."""
    with _LIST_OF_PYTORCH:
        try:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except pickle.UnpicklingError as error:
            reason = f"it has instructions that torch.save does not write ({_in_short(error)}). {IF_IT_IS_YOURS}"
            raise UnreadableError(reason) from error
        parts = {name: permitted(name) for name in names}
        refused = [name for name, part in parts.items() if part is None]
        for name in refused:
            module, _, kind = name.rpartition(".")
            if module == "ultralytics.nn.tasks" and hasattr(tasks, kind):
                raise OtherTaskError(kind)
        if refused:
            raise UnreadableError(what_it_asks_for(refused))
        with torch.serialization.safe_globals([(part, name) for name, part in parts.items()]):
            contents = torch.load(path, map_location="cpu", weights_only=True)
    network = plain(_network_in(contents))
    _check_architecture(network)
    return network


def _read_trusted(path: Path) -> nn.Module:
    """The network, whatever the file runs to build it.

    Ultralytics' own ``load_checkpoint`` cannot be used: it changes some names (it's.pt, yolov5n.pt) and then asks the
    internet for them.
    """
    foreign_paths = {
        f"pathlib.{kind}": "pathlib.Path" for kind in ("PosixPath", "WindowsPath") if kind != type(path).__name__
    }
    try:
        with tasks.temporary_modules(modules=MOVED, attributes=foreign_paths):
            return _network_in(torch.load(path, map_location="cpu", weights_only=False))
    except (ImportError, AttributeError) as error:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else []
        raise UnreadableError(what_is_missing(error, [name for name in names if permitted(name) is None])) from error


def _network_in(contents: object) -> nn.Module:
    """The network in FP32, as Ultralytics would take it from the contents of a checkpoint."""
    if isinstance(contents, YOLO):
        contents = contents.model
    if isinstance(contents, nn.Module):
        contents = {"model": contents, "train_args": getattr(contents, "args", None)}
    candidates = [contents.get("ema"), contents.get("model")] if isinstance(contents, dict) else []
    network = next((part for part in candidates if isinstance(part, nn.Module)), None)
    if network is None:
        raise UnreadableError(what_it_holds(contents))
    settings = contents.get("train_args") or {}
    # Ultralytics' default image size is that of detectors: a file that does not say its own says none.
    defaults = {name: value for name, value in DEFAULT_CFG_DICT.items() if name != "imgsz"}
    network.args = {**defaults, **(settings if isinstance(settings, dict) else vars(settings))}
    for layer in network.modules():
        if hasattr(layer, "inplace"):
            layer.inplace = True
    network.float().state_dict()  # fails here, and not later, if its parts do not belong together
    return network


def _check_architecture(network: nn.Module) -> None:
    """Refuse a description that runs other code than layers': Ultralytics evaluates it when it trains the network."""
    description = getattr(network, "yaml", None)
    if not isinstance(description, dict):
        return
    activation = description.get("activation")
    if activation and not _ACTIVATION.fullmatch(str(activation)):
        raise UnreadableError(f"its activation is {activation!r}: expected one of torch.nn, such as 'nn.SiLU()'")
    for _, _, layer, *_ in (*description.get("backbone", ()), *description.get("head", ())):
        if hasattr(tasks, str(layer)) and permitted(f"ultralytics.nn.modules.{layer}") is None:
            raise UnreadableError(f"its description has {layer!r} for a layer")


def _in_short(error: Exception) -> str:
    """The cause, without PyTorch's advice to read the file regardless."""
    lines = str(error).rpartition("WeightsUnpickler error: ")[2].strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
