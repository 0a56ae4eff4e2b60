"""The notes of solved exercises: one small file of this user on this computer; nothing is sent anywhere.

The file is named by ``YOLO_SLIM_PROGRESS`` or lies in the place that the operating system has for such things. A check
that says right notes it here, and ``progress.py`` shows the notes. Leaves out: answers, times, and several learners at
one account.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import platformdirs

from yolo_slim_lessons.files import write_atomically

VARIABLE = "YOLO_SLIM_PROGRESS"


def notes_file() -> Path | None:
    """Where the notes are; ``None`` where the variable is set and empty, which means that none are wanted."""
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE]).expanduser() if os.environ[VARIABLE] else None
    return Path(platformdirs.user_state_dir("yolo-slim-lessons", appauthor=False), "progress.json")


def solved_checks() -> dict[str, list[str]]:
    """Names of checks by module, such as ``{"lesson03": ["check_break_even"]}``; empty if the file is damaged."""
    file = notes_file()
    try:
        noted = {} if file is None else json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    fits = isinstance(noted, dict) and all(isinstance(checks, list) for checks in noted.values())
    return noted if fits else {}


def note_solved(lesson: str, check: str) -> None:
    """Note that the exercise ``check`` of ``lesson`` was solved. Never raises, whatever the disk says."""
    try:
        file, solved = notes_file(), solved_checks()
        if file is None or check in solved.get(lesson, []):
            return
        solved[lesson] = [*solved.get(lesson, []), check]
        text = json.dumps(solved, indent=1) + "\n"
        write_atomically(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    except Exception:  # a folder that is read-only or full must not take the answer "right" from a learner
        return
