"""The files that ``--for`` knows: the one table of them.

Leaves out: how they are written, which the functions named here do.
"""

import importlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        function: the public name of what writes it, called with a model and a path.
        ending: of the path; that of a folder has none of its own.
        bits: that it can store for the weights of a layer; ``None`` for all.
        integers_only: whether it has no floats, so that activations must be rounded, too, which ``compress`` does not.
    """

    function: str
    ending: str
    bits: tuple[int, ...] | None = None
    integers_only: bool = False


FORMATS = {
    "slim": Format("save_packed", ".slim"),
    "onnx": Format("export_onnx", ".onnx", (4, 8)),
    "litert": Format("export_litert", ".tflite", (4, 8)),
    "c": Format("export_c", "-c", integers_only=True),
}


def writer(kind: str) -> Callable[..., object]:
    """The function that writes files of ``kind``.

    Raises:
        ValueError: this version of the package has no such function.
    """
    package = importlib.import_module(__name__.partition(".")[0])
    function = getattr(package, FORMATS[kind].function, None)
    if function is None:
        known = [name for name, each in FORMATS.items() if hasattr(package, each.function)]
        raise ValueError(f"--for {kind}: this version has no slim.{FORMATS[kind].function}; expected one of {known}")
    return function


def file_bytes(kind: str, model) -> int:
    """What ``model`` takes as a file of ``kind``."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{FORMATS[kind].ending}"
        writer(kind)(model, path)
        return bytes_of(path)


def bytes_of(path: Path) -> int:
    """Of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
