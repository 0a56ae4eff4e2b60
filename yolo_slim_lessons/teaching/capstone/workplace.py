"""Where the capstone's files go: a folder beside the notebook, if one may be made there.

Leaves out: tidying up; what lies in the folder is the learner's.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def make_folder(name: str | Path = "my-capstone") -> Path:
    """The folder ``name``, made if need be; where that is forbidden, a new temporary one, and a line that says so.

    Example:
        >>> import tempfile
        >>> make_folder(Path(tempfile.mkdtemp()) / "mine").name
        'mine'
    """
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder} may not be written to")
    except OSError as error:
        reason = error.strerror or str(error)
        folder = Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))
        print(f"{str(name)!r} cannot be used here ({reason}). The files go to {folder}: copy what you want to keep.")
    return folder
