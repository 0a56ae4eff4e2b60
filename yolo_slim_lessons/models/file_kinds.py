"""What a file is that is no checkpoint of a classifier, as far as its bytes show, and the way out.

Used by ``checkpoints``. Leaves out: guesses. Where the bytes do not show the cause, the reason says what they do show.
"""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from pathlib import Path

import ultralytics

from yolo_slim_lessons.models.permitted import present_name

AGAIN = "Get it again from where it came from"
BEFORE_1_6 = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # what PyTorch began its files with
FILE_STARTS = {
    b"<": "it is a web page or XML. The link led to a page about the file: download the file itself",
    b"version https://git-lfs": "it is a pointer of Git LFS. Get the file itself with: git lfs pull",
    b"SLIM": "it is a packed file. Use slim.load_packed",
    b"\x89HDF": "it is an HDF5 file, such as Keras writes. Only Ultralytics' own .pt files are read",
    b"\x89PNG": "it is a PNG image",
    b"\xff\xd8\xff": "it is a JPEG image",
    b"%PDF": "it is a PDF document",
    b"\x1f\x8b": "it is packed by gzip. Unpack it first",
    b"Rar!": "it is packed by RAR. Unpack it first",
    b"7z\xbc\xaf": "it is packed by 7-Zip. Unpack it first",
}
IF_IT_IS_YOURS = "If the file is your own: load_model(path, trust=True), which lets it run code"
FROM_THE_EXPORTED = "Load the .pt file that it was exported from, such as best.pt"
FILL_A_NETWORK = (
    "Save the whole model in the program that made it, with YOLO.save; or build the network that they belong to and "
    "fill it: model = slim.new_model(architecture, class_names); model.load_state_dict(...)"
)


def what_else_it_is(path: Path) -> str | None:
    """Why ``path`` cannot be a checkpoint that PyTorch wrote, or ``None`` if it can be one; nothing in it is run."""
    with path.open("rb") as file:
        start = file.read(200)
    if not start:
        return f"it is empty. {AGAIN}"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return f"it is a safetensors file, which holds weights without their network. {FILL_A_NETWORK}"
    for signature, meaning in FILE_STARTS.items():
        if start.lstrip().startswith(signature):
            return meaning
    if start[4:8] == b"TFL3":
        return f"it is a LiteRT (TensorFlow Lite) file. {FROM_THE_EXPORTED}"
    if start.startswith(b"PK"):
        return _what_archive(path)
    if start.startswith(BEFORE_1_6):
        return None
    if start.startswith(b"\x80"):
        return "it is a Python pickle that torch.save did not write. Save the model with YOLO.save"
    if _is_onnx(path):
        return f"it is an ONNX file. {FROM_THE_EXPORTED}"
    return f"it begins with {start[:12]!r}, as no file of PyTorch does. {AGAIN}"


def what_it_holds(contents: object) -> str:
    """What is in a file of PyTorch without a network."""
    if isinstance(contents, dict):
        if any("pytorch-lightning" in str(key) for key in contents):
            return (
                f"it is a checkpoint of PyTorch Lightning, which holds weights alone (a state_dict). {FILL_A_NETWORK}"
            )
        for part in (contents, *(contents.get(key) for key in ("ema", "model", "state_dict"))):
            if isinstance(part, dict) and part and all(hasattr(value, "shape") for value in part.values()):
                return f"it holds a dict without a network: weights alone (a state_dict). {FILL_A_NETWORK}"
        keys = ", ".join(repr(str(key)) for key in list(contents)[:5])
        return f"it holds a dict without a network, of {keys or 'nothing'}. Save the model with YOLO.save"
    return f"it holds a {type(contents).__name__} without a network. Save the model with YOLO.save"


def what_it_asks_for(names: list[str]) -> str:
    """Why a file that asks for ``names``, which are not permitted, is not read, and the way out."""
    if known := _known_source(names):
        return known
    dill_first = any(name.startswith("dill.") for name in names) and importlib.util.find_spec("dill") is None
    return (
        f"it asks for {_listed(names)}, of which no classifier of Ultralytics consists. Nothing of it was read. "
        f"{IF_IT_IS_YOURS}{' (before that: pip install dill)' if dill_first else ''}"
    )


def what_is_missing(error: ImportError | AttributeError, names: list[str]) -> str:
    """Why a trusted file that asks for ``names`` ended in ``error``, and the way out."""
    if known := _known_source(names):
        return known
    module = getattr(error, "name", None)
    if isinstance(error, ImportError) and module:
        install = "pip install dill" if module.startswith("dill") else "install the package that has it"
        return f"it needs the module {module!r}, which is not here: {install}"
    return f"it needs what is not here ({error})"


def _known_source(names: list[str]) -> str | None:
    """What writes files that ask for such ``names``, and the way out; ``None`` if only the names are to be told."""

    def any_in(*modules: str) -> bool:
        return any(name.startswith(modules) for name in names)

    if any_in("models.yolo.", "models.common.", "models.experimental."):
        return (
            f"it is a network of the YOLOv5 or YOLOv7 repository ({_listed(names)}), whose layers Ultralytics 8 does "
            "not have. It runs and exports in that repository alone; here, start from a -cls model, such as "
            "yolov8n-cls.pt"
        )
    if any_in("torch.nn.utils.prune."):
        return (
            f"its layers are under masks ({_listed(names)}). Make them part of the weights, on each such layer: "
            "torch.nn.utils.prune.remove(layer, 'weight'), and save it again"
        )
    if any_in("torch.ao.", "torchao."):
        return f"it was quantized by PyTorch ({_listed(names)}). Load the float checkpoint that it was made from"
    if any_in("ultralytics.models.", "ultralytics.engine."):
        return (
            f"it holds more than a network ({_listed(names)}), as torch.save(yolo) writes it. In the program that made "
            "it, save the network: yolo.save(path)"
        )
    if any_in("pytorch_lightning.", "lightning."):
        return (
            f"it is a checkpoint of PyTorch Lightning ({_listed(names)}), which holds weights alone. {FILL_A_NETWORK}"
        )
    newer = [name for name in names if name.startswith("ultralytics.") and not _is_installed(name)]
    if newer and newer == names:
        return (
            f"it asks for {_listed(names)}, which Ultralytics {ultralytics.__version__} does not have. A newer release "
            "may: pip install -U ultralytics. Or install the changed Ultralytics that the model was made with"
        )
    return None


def _listed(names: list[str]) -> str:
    return ", ".join(sorted(names)[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _what_archive(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            damaged = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, OSError, EOFError, ValueError) as error:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 2**16))
            whole = b"PK\x05\x06" in file.read()  # what the end of an archive begins with
        what = f"damaged ({error})" if whole else f"cut short: the end of its {path.stat().st_size:,} bytes is missing"
        return f"it is {what}. {AGAIN}"
    if any(name.endswith("constants.pkl") for name in members):
        return f"it is a TorchScript file, whose layers cannot be changed. {FROM_THE_EXPORTED}"
    if any(name.endswith("archive_format") for name in members):
        return f"it is an exported program of torch.export. {FROM_THE_EXPORTED}"
    if not any(name.endswith("data.pkl") for name in members):
        inside = next((name for name in members if name.endswith(".pt")), None)
        return "it is a zip archive " + (
            f"around {inside}. Unpack it first" if inside else "without a checkpoint in it"
        )
    if damaged is not None:
        return f"it is damaged: its part {damaged} is not what was written. {AGAIN}"
    return None


def _is_onnx(path: Path) -> bool:
    import onnx

    try:
        return len(onnx.load(path, load_external_data=False).graph.node) > 0
    except Exception:  # whatever its reader makes of other bytes
        return False


def _is_installed(name: str) -> bool:
    """Whether Ultralytics has ``module.name``; nothing is imported to find out."""
    module, _, attribute = present_name(name).rpartition(".")
    if module in sys.modules:
        return hasattr(sys.modules[module], attribute)
    file = Path(ultralytics.__file__).parents[1].joinpath(*module.split("."))
    return file.with_suffix(".py").is_file() or (file / "__init__.py").is_file()
