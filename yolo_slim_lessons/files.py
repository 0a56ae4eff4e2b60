"""Files: what the course ships, whether it is whole, and writing so that a failure loses nothing.

Used by every module that reads or writes. Leaves out: getting shipped files back, which git does.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

DATA_DIR = Path(__file__).resolve().parents[1] / "data"
WEIGHTS_DIR = DATA_DIR / "weights"
HASHED_AT_ONCE = 2**22  # numbers
RECIPES_DIR = Path(__file__).resolve().parent / "compression" / "recipes"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write(temporary path)``, then rename to ``path``: a full disk or Ctrl-C leaves the old file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def fingerprint(model: nn.Module | torch.Tensor) -> str:
    """The same 16 characters for the same numbers, on whatever device they are."""
    digest = hashlib.sha256()
    for tensor in [model] if isinstance(model, torch.Tensor) else model.state_dict().values():
        rows = tensor.detach().reshape(1) if tensor.dim() == 0 else tensor.detach()
        # A part at a time: only a part is copied to where hashing can read it.
        for part in rows.split(max(1, HASHED_AT_ONCE * len(rows) // max(1, rows.numel()))):
            digest.update(part.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def verify_files(folder: Path, only: str | None = None) -> None:
    """Compare the files listed in ``folder/SHA256SUMS``, or ``only`` one of them, with their checksums.

    Raises:
        FileNotFoundError: a file is missing (the first one is named, with the way to get it back).
        ValueError: a file is damaged or altered (likewise).
    """
    listed = folder / "SHA256SUMS"
    if not listed.is_file():
        raise FileNotFoundError(
            f"{listed} is missing: install the course from its own folder with 'pip install -e .', "
            f"or get the files back with: git checkout -- data/{folder.name}"
        )
    for line in listed.read_text(encoding="utf-8").splitlines():
        expected, name = line.split()
        if only not in (None, name):
            continue
        file = folder / name
        way_out = f"Get it back with: git checkout -- data/{folder.name}/{name}"
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing. {way_out}")
        actual = hashlib.sha256(file.read_bytes()).hexdigest()
        if actual != expected:
            raise ValueError(
                f"{file} is damaged or altered ({file.stat().st_size:,} bytes, sha256 {actual[:12]}…, "
                f"expected {expected[:12]}…). {way_out}"
            )
