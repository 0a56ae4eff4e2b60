"""The files that the course ships, images and weights: where they lie, and whether they are whole.

Leaves out: getting them back, which git does.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

DATA_DIR = Path(__file__).resolve().parents[2] / "data"


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
