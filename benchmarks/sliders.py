"""How long a slider takes to answer in JupyterLab: ``python benchmarks/sliders.py``, on a machine that rests.

Each slider and drop-down of each lesson is moved by one step, again and again, in a real browser without a screen (the
same one as in ``tests/browser``). Counted is the time from the key to the new picture, decoded and in its place. Only
those cells are run before that the slider needs. Needs Chromium (``apt-get install chromium``).

Finished lessons are kept in ``results/sliders.json``; a second call goes on from there. The table is
``results/sliders.md``.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from _results import Results, machine

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "browser")]

from lab import NOTEBOOKS, Control, Lesson, find_chromium, running_browser, running_lab  # noqa: E402
from needed_cells import sliders_and_their_needs  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "sliders.json"
MOVES = 20


def seconds_of(control: Control) -> list[float]:
    """The answers of ``MOVES`` steps, up and down."""
    control.go_to_start()
    control.box.settle()
    seconds, direction = [], 1
    for _ in range(MOVES):
        direction = -direction if control.is_at_end(direction) else direction
        control.step(direction)
        seconds.append(round(control.box.wait_for_answer(), 3))
    return seconds


def measure(lesson: Lesson) -> list[dict]:
    """For each control that has a choice: its label, and the seconds of each move."""
    lesson.run_all()
    controls = [control for box in lesson.boxes() for control in box.controls()]
    movable = [control for control in controls if not (control.is_at_end(+1) and control.is_at_end(-1))]
    return [{"label": control.label, "seconds": seconds_of(control)} for control in movable]


def table(lessons: dict[str, list[dict]], machine_line: str) -> str:
    """A row for each control, and one for all, as Markdown."""
    lines = [
        f"{machine_line}\n",
        "| lesson | control | median, s | 95 % within, s | longest, s |",
        "|---|---|---|---|---|",
    ]
    rows = [(lesson, each["label"], each["seconds"]) for lesson, found in lessons.items() for each in found]
    rows.append(("all", "", [each for *_, seconds in rows for each in seconds]))
    for lesson, label, seconds in rows:
        cells = (f"{value:.2f}" for value in (np.median(seconds), np.quantile(seconds, 0.95), max(seconds)))
        lines.append(f"| {lesson} | {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def run(file: Path = RESULTS) -> None:
    """Measure the lessons that are missing in ``file``, and write it and the table beside it."""
    results = Results(file)
    found = {}
    with tempfile.TemporaryDirectory() as folder, running_lab(Path(folder) / "course") as server:
        for notebook in NOTEBOOKS:
            with running_browser() as browser:
                lesson = Lesson(browser, server, server.copy(notebook, sliders_and_their_needs))
                found[notebook.stem] = results.get(notebook.stem, lambda lesson=lesson: measure(lesson))
                lesson.close()
    results.write_table(table(found, results.get("machine", machine)))


if __name__ == "__main__":
    if find_chromium():
        run()
    else:
        print("benchmarks/sliders.py needs a browser: apt-get install chromium")
