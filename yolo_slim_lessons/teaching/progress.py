"""Which exercises are solved: noted when a check says right, shown in lesson 00.

The notes are one small file of this user on this computer, named by ``YOLO_SLIM_PROGRESS`` or in the place that the
operating system has for such things; nothing is sent anywhere. Leaves out: answers, times, and several learners at one
account.
"""

from __future__ import annotations

import html
import importlib
import json
import os
import pkgutil
import sys
from dataclasses import dataclass
from pathlib import Path

from yolo_slim_lessons.files import write_atomically

VARIABLE = "YOLO_SLIM_PROGRESS"


@dataclass(frozen=True)
class LessonProgress:
    """One row: a lesson such as ``"00"``, and its exercises, solved ones and open ones."""

    lesson: str
    solved: tuple[str, ...]
    open: tuple[str, ...]


@dataclass(frozen=True)
class Progress:
    """Solved exercises by lesson; renders as a table in a notebook."""

    lessons: tuple[LessonProgress, ...]
    kept_in: str

    @property
    def summary(self) -> str:
        solved = sum(len(row.solved) for row in self.lessons)
        return f"{solved} of {solved + sum(len(row.open) for row in self.lessons)} exercises solved."

    def _rows(self) -> list[tuple[str, str, str]]:
        return [
            (
                row.lesson,
                f"{len(row.solved)} of {len(row.solved) + len(row.open)}",
                ", ".join(row.open) or "✔ all solved",
            )
            for row in self.lessons
        ]

    def __repr__(self) -> str:
        rows = [f"lesson {lesson}: {solved}; open: {still}" for lesson, solved, still in self._rows()]
        return "\n".join([self.summary, *rows, self.kept_in])

    def _repr_html_(self) -> str:
        head = "".join(f"<th style='text-align:left'>{title}</th>" for title in ("lesson", "solved", "still open"))
        cells = [
            "".join(f"<td style='text-align:left'>{html.escape(text)}</td>" for text in row) for row in self._rows()
        ]
        rows = "".join(f"<tr>{row}</tr>" for row in (head, *cells))
        return f"<p><b>{self.summary}</b></p><table>{rows}</table><p>{html.escape(self.kept_in)}</p>"


def show_progress() -> Progress:
    """The exercises of all lessons, solved and open; changes nothing."""
    file, solved = _file(), _noted()
    rows = []
    for lesson, checks in _all_checks().items():
        done = solved.get(lesson, [])
        names = [(name in done, name.removeprefix("check_").replace("_", " ")) for name in checks]
        rows.append(
            LessonProgress(
                lesson.removeprefix("lesson"),
                tuple(name for right, name in names if right),
                tuple(name for right, name in names if not right),
            )
        )
    if file is None:
        return Progress(tuple(rows), f"Nothing is noted, because {VARIABLE} is empty.")
    return Progress(tuple(rows), f"Noted on this computer only, in {_short(file)}; forget_progress() deletes it.")


def forget_progress() -> None:
    """Delete the notes, and say so."""
    file = _file()
    if file is None or not file.exists():
        print("There was nothing to forget.")
        return
    file.unlink()
    print(f"Forgotten: {_short(file)} is deleted.")


def note_solved(lesson: str, check: str) -> None:
    """Note that the exercise ``check`` of ``lesson`` was solved. Never raises, whatever the disk says."""
    try:
        file, solved = _file(), _noted()
        if file is None or check in solved.get(lesson, []):
            return
        solved[lesson] = [*solved.get(lesson, []), check]
        text = json.dumps(solved, indent=1) + "\n"
        write_atomically(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    except Exception:  # a folder that is read-only or full must not take the answer "right" from a learner
        return


def _all_checks() -> dict[str, list[str]]:
    """The names of all checks by the name of their lesson's module, in the order in which they are written."""
    package = importlib.import_module("yolo_slim_lessons.teaching.exercises")  # which itself imports this module
    checks = {}
    for lesson in sorted(found.name for found in pkgutil.iter_modules(package.__path__)):
        if lesson.startswith("lesson"):
            module = importlib.import_module(f"{package.__name__}.{lesson}")
            own = [name for name, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__]
            checks[lesson] = [name for name in own if name.startswith("check_")]
    return checks


def _noted() -> dict[str, list[str]]:
    """What the file says; nothing if there is none, or if it is damaged."""
    file = _file()
    try:
        noted = {} if file is None else json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    fits = isinstance(noted, dict) and all(isinstance(checks, list) for checks in noted.values())
    return noted if fits else {}


def _file() -> Path | None:
    """Where the notes are; ``None`` where the variable is set and empty, which means that none are wanted."""
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE]).expanduser() if os.environ[VARIABLE] else None
    home = Path.home()
    if sys.platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        folder = home / "Library" / "Application Support"
    else:
        folder = Path(os.environ.get("XDG_STATE_HOME") or home / ".local" / "state")
    return folder / "yolo-slim-lessons" / "progress.json"


def _short(file: Path) -> str:
    """The path with ~ for the user's folder, which need not be read by everybody who sees the notebook."""
    try:
        return str(Path("~") / file.relative_to(Path.home()))
    except ValueError:
        return str(file)
