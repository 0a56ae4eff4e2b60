"""What a checkpoint may ask for while it is read: the parts of a classifier of Ultralytics, and nothing that runs code.

A checkpoint is a program for Python's unpickler, which names classes and functions and calls them. PyTorch's
``weights_only`` lets it have those on a list. This is the list. Its rule: **whatever is called with arguments that the
file chooses must be harmless with any arguments**. Constructors of layers are not (``ClassificationModel`` evaluates a
text of its settings as Python, ``TorchVision`` downloads), so that layers are made without them, as unpickling does.

Left out on purpose: anything that calls what it is given, such as ``functools.partial``, ``operator`` or the
``Lambda`` of torchvision; and the networks of other tasks.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from pickle import UnpicklingError
from types import MethodType

import numpy as np
from torch import nn
from torchvision.transforms.functional import InterpolationMode
from ultralytics.utils import IterableSimpleNamespace

# Early releases of Ultralytics 8.0 had their modules elsewhere.
MOVED = {
    "ultralytics.yolo.utils": "ultralytics.utils",
    "ultralytics.yolo.v8": "ultralytics.models.yolo",
    "ultralytics.yolo.data": "ultralytics.data",
}
LAYERS = re.compile(
    r"torch\.nn\.modules\.\w+|ultralytics\.nn\.modules(\.\w+)?|torchvision\.(models|ops)\.\w+", re.ASCII
)
# What a network carries besides its layers: how its images are prepared, and its loss.
PARTS = {
    "torchvision.transforms.transforms": ("CenterCrop", "Compose", "Normalize", "Resize", "ToTensor"),
    "ultralytics.data.augment": ("CenterCrop", "ClassifyLetterBox", "ToTensor"),
    "ultralytics.nn.tasks": ("ClassificationModel",),
    "ultralytics.utils.loss": ("v8ClassificationLoss",),
}
NUMBERS = re.compile(r"[<>|=]?(\?|b1|[iuf][1248]|f16|U\d{1,5})", re.ASCII)


class Blueprint:
    """Stands for a class while a file is read: makes instances of it, and never calls its constructor.

    The unpickler of ``weights_only`` makes an instance by ``__new__`` of what is on the list, and sets attributes of it
    if its class equals something on the list.
    """

    def __init__(self, made: type):
        self.made = made
        self.__new__ = lambda _: object.__new__(made)

    def __eq__(self, other: object) -> bool:
        return other is self or other is self.made

    __hash__ = object.__hash__

    def __call__(self, *arguments: object) -> None:
        raise UnpicklingError(f"it calls {self.made.__module__}.{self.made.__qualname__}, as no checkpoint does")


class NumpyType:
    """Stands for ``numpy.dtype``, whose own unpickling trusts what the file says of its memory."""

    def __init__(self, code: str, *_: object):
        if not NUMBERS.fullmatch(code):
            raise UnpicklingError(f"it holds numbers of the type {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


def numpy_scalar(kind: NumpyType, contents: bytes) -> object:
    """A number that NumPy wrote, as Python has it."""
    return np.frombuffer(contents, kind.dtype, count=1)[0].item()


def interpolation_mode(value: str) -> InterpolationMode:
    """Stands for the enum, whose members are shared by the whole process: not on the list, they cannot be changed."""
    return InterpolationMode(value)


def bound_method(owner: object, name: str) -> object:
    """Stands for ``getattr``: fused layers ask for ``forward_fuse`` by it, and Python 3.11 for members of an enum."""
    if isinstance(owner, nn.Module) and name in ("forward", "forward_fuse", "forward_split"):
        return MethodType(getattr(type(owner), name), owner)
    if owner is interpolation_mode:
        return InterpolationMode[name]
    raise UnpicklingError(f"it asks for {name!r} of a {type(owner).__name__}")


def dill_type(name: str) -> type:
    """Stands for what ``dill`` writes for a set: Ultralytics 8.0 to 8.2 used it where it was installed."""
    if name != "set":
        raise UnpicklingError(
            f"dill wrote a {name} into it. If the file is your own: pip install dill, and load_model(path, trust=True)"
        )
    return set


FUNCTIONS = {
    "builtins.getattr": bound_method,
    "dill._dill._load_type": dill_type,
    "numpy.core.multiarray.scalar": numpy_scalar,
    "numpy._core.multiarray.scalar": numpy_scalar,
    "numpy.dtype": NumpyType,
    "torchvision.transforms.functional.InterpolationMode": interpolation_mode,
    "ultralytics.utils.IterableSimpleNamespace": IterableSimpleNamespace,
    # Of whatever system, and as Python 3.13 names them.
    **{f"pathlib{inner}.{kind}Path": Path for inner in ("", "._local") for kind in ("Posix", "Windows", "")},
}


def present_name(name: str) -> str:
    """``module.name`` as the installed Ultralytics calls it."""
    for old, new in MOVED.items():
        if name.startswith(old + "."):
            return new + name.removeprefix(old)
    return name


def permitted(name: str) -> object | None:
    """What a file gets that asks for ``module.name``; ``None`` if it is not on the list, or not installed.

    Example:
        >>> permitted("torch.nn.modules.conv.Conv2d").made
        <class 'torch.nn.modules.conv.Conv2d'>
        >>> permitted("posix.system") is None
        True
    """
    name = present_name(name)
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    module, _, attribute = name.rpartition(".")
    found = getattr(sys.modules.get(module), attribute, None)  # imports nothing that a file names
    if not isinstance(found, type) or found.__new__ is not object.__new__:
        return None
    is_layer = LAYERS.fullmatch(module) and LAYERS.fullmatch(found.__module__) and issubclass(found, nn.Module)
    return Blueprint(found) if is_layer or attribute in PARTS.get(module, ()) else None


def plain(model: nn.Module) -> nn.Module:
    """``model`` with the classes themselves where a layer remembers one, such as the kind of its normalization."""
    for layer in model.modules():
        for name, value in vars(layer).items():
            if isinstance(value, Blueprint):
                vars(layer)[name] = value.made
    return model
