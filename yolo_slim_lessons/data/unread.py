"""Read the images of a data set into memory, or once into a file that is mapped into memory from then on.

A split that is not read yet is an ``Unread``: how many images there are, and a function that reads them part by part.
What is read goes to either place by plain writes, so that a full disk is an error and not the end of the process.
Leaves out: what is read and how (``folder_reading.py``, ``fashion_mnist.py``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import platformdirs
import psutil
import torch
from tqdm.auto import tqdm

from yolo_slim_lessons.data.findings import Finding
from yolo_slim_lessons.data.splits import Split
from yolo_slim_lessons.data.stored import MappedImages, PixelFile
from yolo_slim_lessons.files import write_atomically

MEMORY_SHARE = 1 / 4
ABANDONED_AFTER = 3600  # seconds without a write
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Part:
    """Some images of a split, n×channels×height×width.

    Attributes:
        images: without those that are missing.
        findings: pictures out of the ordinary, by their place in the split; those that are missing are among them.
    """

    images: np.ndarray
    findings: Mapping[int, Finding] = field(default_factory=dict)


@dataclass(frozen=True)
class Unread:
    """A split whose images are not read yet.

    Attributes:
        name: such as ``"train"``, for the progress bar.
        labels: int64, N.
        shape: of all images, uint8: N, channels (1 for grey, which will be shown three times), height and width.
        parts: reads all images, in order, some at a time. Raises ``UnreadablePicturesError`` at the end, if there are
            some that are not to be left out.
        place: what the images are, such as a folder and the image size. A cache replaces an older one of its place.
        state: what the images depend on besides: a cache with another state is out of date.
    """

    name: str
    labels: torch.Tensor
    shape: tuple[int, int, int, int]
    parts: Callable[[], Iterator[Part]]
    place: str
    state: str

    @property
    def bytes(self) -> int:
        return math.prod(self.shape)


def default_memory_limit() -> int:
    """Bytes that images may take before they go to disk: a quarter of what this machine, or its container, has."""
    memory = psutil.virtual_memory().total
    with contextlib.suppress(OSError, ValueError):  # no container, no limit, or not Linux
        memory = min(memory, int(CONTAINER_LIMIT.read_text(encoding="ascii")))
    return int(memory * MEMORY_SHARE)


def default_cache_folder() -> Path:
    return platformdirs.user_cache_path("yolo-slim-lessons", appauthor=False)


def in_memory(unread: Unread) -> tuple[Split, list[Finding]]:
    """All images that can be read, and what was found on the way."""
    # Filled in place: a list of all images and a stack of them would take the memory twice.
    # By NumPy: PyTorch's threads would wait for the next part by spinning, on the cores that unpack it.
    images = np.empty(unread.shape, np.uint8)
    count, findings = 0, {}
    for part in _with_progress(unread):
        images[count : count + len(part.images)] = part.images
        count += len(part.images)
        findings |= part.findings
    images.resize((count, *unread.shape[1:]), refcheck=False)  # in its place; shorter if pictures are missing
    return Split(torch.from_numpy(images).expand(-1, 3, -1, -1), _labels(unread, findings)), list(findings.values())


def on_disk(unread: Unread, folder: Path) -> tuple[Split, list[Finding]]:
    """The same as ``in_memory`` gives, in a file of ``folder`` that is written unless it is there already."""
    place, state = (hashlib.sha256(text.encode()).hexdigest()[:16] for text in (unread.place, unread.state))
    path = folder / f"{place}-{state}.npy"
    opened = _opened(path, unread)
    if opened is None:
        findings = _write(path, unread)
        for older in folder.glob(f"{place}-*.npy"):
            if older != path:
                with contextlib.suppress(OSError):  # on Windows, where another process still reads it
                    older.unlink()
        opened = PixelFile(path, path.stem), findings
    file, findings = opened
    return Split(MappedImages([file]), _labels(unread, findings)), list(findings.values())


def _labels(unread: Unread, findings: Mapping[int, Finding]) -> torch.Tensor:
    missing = [place for place, finding in findings.items() if finding.is_missing]
    return torch.from_numpy(np.delete(unread.labels.numpy(), missing)) if missing else unread.labels


def _opened(path: Path, unread: Unread) -> tuple[PixelFile, dict[int, Finding]] | None:
    try:
        file = PixelFile(path, path.stem)
        findings = _findings_behind(path)
    except (OSError, ValueError, TypeError, EOFError):  # not there, or damaged, which writing it anew mends
        return None
    return (file, findings) if file.pixels.shape == (len(_labels(unread, findings)), *unread.shape[1:]) else None


def _write(path: Path, unread: Unread) -> dict[int, Finding]:
    """Write the cache; a crash leaves no file of that name, and two processes at once write the same twice."""
    findings = {}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for abandoned in path.parent.glob(".*.npy.*.tmp"):
            if time.time() - abandoned.stat().st_mtime > ABANDONED_AFTER:
                abandoned.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < unread.bytes:
            raise OSError(f"{unread.bytes / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free")
        write_atomically(path, lambda temporary: findings.update(_fill(temporary, unread)))
    except PermissionError as error:
        if not path.exists():  # Windows replaces no file that another process reads; this one is as good
            raise _no_cache(path.parent, error) from error
    except OSError as error:
        raise _no_cache(path.parent, error) from error
    return findings


def _no_cache(folder: Path, error: OSError) -> OSError:
    return OSError(
        f"images cannot be written to {folder} ({error}): make room there, or name another folder by cache_folder="
    )


def _fill(temporary: Path, unread: Unread) -> dict[int, Finding]:
    """A .npy file of the pixels, and behind them, where NumPy does not look, the findings as JSON."""
    findings, count = {}, 0
    with temporary.open("wb") as file:
        _write_header(file, unread.shape)
        for part in _with_progress(unread):
            file.write(np.ascontiguousarray(part.images))
            count += len(part.images)
            findings |= part.findings
        file.write(json.dumps({place: asdict(finding) for place, finding in findings.items()}).encode())
        file.seek(0)
        _write_header(file, (count, *unread.shape[1:]))  # of the same length: NumPy leaves room for any count
        file.flush()
        os.fsync(file.fileno())  # the name must not reach the disk before the contents
    return findings


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _findings_behind(path: Path) -> dict[int, Finding]:
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, _ = np.lib.format.read_array_header_1_0(file)
        file.seek(math.prod(shape), os.SEEK_CUR)
        return {int(place): Finding(**finding) for place, finding in json.loads(file.read()).items()}


def _with_progress(unread: Unread) -> Iterator[Part]:
    with tqdm(total=len(unread.labels), desc=f"read {unread.name}", delay=2, leave=False) as bar:
        for part in unread.parts():
            yield part
            bar.update(len(part.images))
