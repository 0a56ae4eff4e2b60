"""The ``.slim`` file: the bits of a compressed model and hardly anything else.

``structure`` says in a few words which network it is, ``values`` finds the smallest encoding of each part of it,
``entropy_coder`` writes symbols at their entropy, and ``container`` makes a file of them, with a checksum. Used in
lessons 05, 06 and 08. Leaves out: other models than the classifiers of this package, and reading a file in part.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.files import write_atomically
from yolo_slim_lessons.models import as_classifier
from yolo_slim_lessons.packing import container
from yolo_slim_lessons.packing.entropy_coder import entropy_bits
from yolo_slim_lessons.packing.integers import join_grids, stored_tensors
from yolo_slim_lessons.packing.structure import build, describe
from yolo_slim_lessons.packing.values import Encoding, encode_values

__all__ = ["Encoding", "PackedPart", "PackedSizes", "entropy_bits", "load_packed", "packed_sizes", "save_packed"]


@dataclass(frozen=True)
class PackedPart:
    """One part of a ``.slim`` file: the weights of one layer, or all vectors of one kind, such as biases.

    Attributes:
        name: of its tensor, or what the names of its tensors end in.
        values: how many numbers it holds.
        encoding: how they are stored.
        coded_bytes, plain_bytes: its share of the entropy coder's stream, and what is stored as it is.
        entropy_bytes: the values at their entropy, as ``entropy_bits`` counts it.
    """

    name: str
    values: int
    encoding: Encoding
    coded_bytes: float
    plain_bytes: int
    entropy_bytes: float

    @property
    def bytes(self) -> float:
        return self.coded_bytes + self.plain_bytes


@dataclass(frozen=True)
class PackedSizes:
    """What takes how many bytes in a ``.slim`` file; renders as a table in a notebook.

    Attributes:
        file: all of it.
        parts: the values.
        frame: name of the format, checksum, lengths.
        description: the structure of the network and the encodings.
        tables: how often each symbol occurs.
        coder: what is in the coded stream beyond the parts' shares.
    """

    file: int
    parts: tuple[PackedPart, ...]
    frame: int
    description: int
    tables: int
    coder: float

    def rows(self) -> list[tuple[str, str, str]]:
        """The table as (what, bytes, bits a value)."""
        rows = [(part.name, f"{part.bytes:,.0f}", f"{8 * part.bytes / part.values:.2f}") for part in self.parts]
        others = {
            "frame and checksum": self.frame,
            "description": self.description,
            "tables of frequencies": self.tables,
            "ends of the coded stream": self.coder,
            "file": self.file,
        }
        return rows + [(name, f"{size:,.0f}", "") for name, size in others.items()]

    def __repr__(self) -> str:
        return "\n".join(f"{name:36} {size:>12} {bits:>6}".rstrip() for name, size, bits in self.rows())

    def _repr_html_(self) -> str:
        left = "<tr><th style='text-align:left'>"
        head = f"{left}part</th><th>bytes</th><th>bits a value</th></tr>"
        rows = [f"{left}{name}</th><td>{size}</td><td>{bits}</td></tr>" for name, size, bits in self.rows()]
        return f"<table>{head}{''.join(rows)}</table>"


def save_packed(model: ClassificationModel, path: str | Path) -> Path:
    """Write ``model`` as a ``.slim`` file, in as few bits as it needs. Every value comes back exactly.

    Args:
        model: a classifier as this package loads, prunes, folds or quantizes it; in FP32, FP16 or BF16.
        path: must end in ``.slim``. An older file stays whole until the new one is complete.

    Raises:
        ValueError: another ending, or a network that is not one of Ultralytics' architectures with fewer channels.
        TypeError: ``model`` is not a classifier.

    Example:
        >>> import tempfile, yolo_slim_lessons as slim
        >>> model = slim.quantize_float(slim.load_model("nano"), "fp8_e4m3")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_packed(model, Path(folder) / "nano.slim").stat().st_size < 1_300_000
        True
    """
    model = as_classifier(model)
    path = _slim_path(path)
    data = _packed(model)
    write_atomically(path, lambda temporary: temporary.write_bytes(data))
    return path


def load_packed(path: str | Path) -> ClassificationModel:
    """Read a model that ``save_packed`` wrote, in eval mode and PyTorch's usual memory format. No code is run from it.

    Its outputs are those of the model that was saved, to the last bit on the same machine.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another ending, or a file that is cut short, altered, or says what cannot be; with the reason.
    """
    with _contents(path) as data:
        model, parts, _ = _unpacked(data)
        state = {}
        for tensors, part in zip(_parts(model).values(), parts, strict=True):
            pieces = part.tensor().split([tensor.numel() for tensor in tensors.values()])
            state |= {name: piece.reshape(tensors[name].shape) for name, piece in zip(tensors, pieces, strict=True)}
        model.load_state_dict(state, strict=False, assign=True)
        join_grids(model)
    return model.requires_grad_(False)


def packed_sizes(source: ClassificationModel | str | Path) -> PackedSizes:
    """What takes how many bytes in a ``.slim`` file.

    Args:
        source: the path of such a file, or a model, which is then packed in memory.

    Raises:
        As ``load_packed``, or as ``save_packed``.
    """
    if not isinstance(source, str | Path):
        return _sizes(_packed(as_classifier(source, "source")))
    with _contents(source) as data:
        return _sizes(data)


def _packed(model: ClassificationModel) -> bytes:
    structure = describe(model)
    flat = [torch.cat([tensor.cpu().flatten() for tensor in tensors.values()]) for tensors in _parts(model).values()]
    return container.write(structure, [encode_values(tensor) for tensor in flat])


def _unpacked(data: bytes) -> tuple[ClassificationModel, list[container.StoredValues], list[memoryview]]:
    """(network without values, its parts, the sections of the file)."""
    sections = container.unframe(data)
    structure, encodings = container.read_description(sections[0])
    model = build(structure)
    layout = []
    for tensors in _parts(model).values():
        first, *_ = tensors.values()
        layout.append((first.dtype, sum(tensor.numel() for tensor in tensors.values())))
    return model, container.read_parts(encodings, layout, sections), sections


def _sizes(data: bytes) -> PackedSizes:
    model, stored, sections = _unpacked(data)
    parts = []
    for name, part in zip(_parts(model), stored, strict=True):
        entropy_bytes = entropy_bits(part.tensor()) / 8
        sizes = part.coded_bits() / 8, len(part.plain), entropy_bytes
        parts.append(PackedPart(name, part.count, part.encoding, *sizes))
    description, tables, _, coded = map(len, sections)
    coder = coded - sum(part.coded_bytes for part in parts)
    return PackedSizes(len(data), tuple(parts), container.FRAME_BYTES, description, tables, coder)


def _parts(model: ClassificationModel) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of a model in the order of the file: each kernel and matrix a part, vectors of one kind together."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for part, name, tensor in stored_tensors(model):
        parts.setdefault(part, {})[name] = tensor
    return parts


def _slim_path(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".slim":
        raise ValueError(f"path={str(path)!r}: expected a name that ends in .slim")
    return path


@contextlib.contextmanager
def _contents(path: str | Path) -> Iterator[bytes]:
    """The bytes of a file. Whatever turns out to be wrong with them within is said of the file."""
    path = _slim_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path={str(path)!r}: there is no such file; save_packed(model, path) writes one")
    try:
        yield path.read_bytes()
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be read: {error}. It is damaged or no .slim file; get it again from where it came from, "
            "or write it again with save_packed"
        ) from error
