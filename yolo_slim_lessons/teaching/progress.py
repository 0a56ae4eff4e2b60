"""Which exercises are solved: shown in lesson 00, and forgotten on request.

Leaves out: noting them, which ``exercises/solved.py`` does when a check says right.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

from yolo_slim_lessons.teaching import exercises
from yolo_slim_lessons.teaching.exercises.solved import VARIABLE, notes_file, solved_checks


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
    file, solved = notes_file(), solved_checks()
    rows = tuple(_progress_in(lesson, checks, solved.get(lesson, [])) for lesson, checks in _all_checks().items())
    if file is None:
        return Progress(rows, f"Nothing is noted, because {VARIABLE} is empty.")
    return Progress(rows, f"Noted on this computer only, in {_short(file)}; forget_progress() deletes it.")


def forget_progress() -> None:
    """Delete the notes, and say so."""
    file = notes_file()
    if file is None or not file.exists():
        print("There was nothing to forget.")
        return
    file.unlink()
    print(f"Forgotten: {_short(file)} is deleted.")


def _progress_in(lesson: str, checks: list[str], solved: list[str]) -> LessonProgress:
    readable = {check: check.removeprefix("check_").replace("_", " ") for check in checks}
    return LessonProgress(
        lesson.removeprefix("lesson"),
        tuple(name for check, name in readable.items() if check in solved),
        tuple(name for check, name in readable.items() if check not in solved),
    )


def _all_checks() -> dict[str, list[str]]:
    """The names of all checks by the name of their lesson's module, in the order in which they are written."""
    modules = {name: module for name, module in sorted(vars(exercises).items()) if name.startswith("lesson")}
    return {lesson: [name for name in vars(module) if name.startswith("check_")] for lesson, module in modules.items()}


def _short(file: Path) -> str:
    """The path with ~ for the user's folder, which need not be read by everybody who sees the notebook."""
    try:
        return str(Path("~") / file.relative_to(Path.home()))
    except ValueError:
        return str(file)
