"""make lesson-report: how long each lesson computes, how much memory it takes, and which cell is its slowest.

Every notebook is executed as a learner would who runs all cells, in a fresh kernel, without changing the file. Leaves
out: the browser, each learner's Jupyter server, and what a learner does between the cells.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import mistune
import nbformat
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from yolo_slim_lessons.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- measured by make lesson-report: begin -->", "<!-- measured by make lesson-report: end -->"
SYSTEM_BYTES = 1e9  # of a machine's memory, for everything but the learners
MACHINES = (4, 8, 16, 32, 64)  # GB
CONVENTIONS = (
    "Memory is that of the kernel at its largest, with what the programs that it starts do not share with it. The "
    "libraries count for each learner, although a machine that many share holds them once; that leaves room for each "
    "learner's Jupyter server. *Busy cores* is the processor "
    "time divided by the time that the lesson states for working through it."
)


@dataclass(frozen=True)
class Lesson:
    """What one notebook took.

    Attributes:
        name: of its file, without ending.
        seconds: from the first cell to the last.
        cpu_seconds: processor time of the kernel, of all cores together.
        peak_bytes: most memory that the kernel (its resident set) and its children (their unique set) held.
        cells: (seconds, first line of its source) of each code cell, in order.
        stated_minutes: what its first cell says that it takes a learner; ``None`` if it says nothing.
        error: the last line of the error that ended it; empty if there was none.
    """

    name: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    cells: tuple[tuple[float, str], ...]
    stated_minutes: int | None
    error: str = ""

    @property
    def slowest(self) -> tuple[float, str]:
        return max(self.cells, default=(0.0, "no cell"))

    def row(self) -> list[str]:
        seconds, source = self.slowest
        busy = "" if not self.stated_minutes else f"{self.cpu_seconds / 60 / self.stated_minutes:.2f}"
        return [
            self.name,
            f"{self.seconds / 60:.1f}",
            f"{self.cpu_seconds / 60:.1f}",
            busy,
            f"{self.peak_bytes / 1e9:.2f}",
            self.error or f"{seconds:.0f} s: {source}",
        ]


HEAD = ["lesson", "minutes to run", "processor minutes", "busy cores", "memory, GB", "slowest cell"]


def measure_notebook(path: Path) -> Lesson:
    """Execute the notebook at ``path`` in a fresh kernel and measure it; the file stays as it is."""
    notebook = nbformat.read(path, as_version=4)
    stated = re.search(r"(\d+) minutes", notebook.cells[0].source if notebook.cells else "")
    client = NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(path.parent)}})
    cells, error, start = [], "", time.perf_counter()
    with client.setup_kernel():
        kernel = psutil.Process(client.km.provisioner.pid)
        with _watch_memory(kernel) as peak:
            start = time.perf_counter()
            for index, cell in enumerate(notebook.cells):
                if cell.cell_type != "code":
                    continue
                before = time.perf_counter()
                try:
                    client.execute_cell(cell, index)
                except CellExecutionError as failure:
                    error = f"fails: {failure.ename}: {failure.evalue}"
                cells.append((time.perf_counter() - before, _first_line(cell.source)))
                if error:
                    break
            seconds = time.perf_counter() - start
        times = kernel.cpu_times()
    minutes = int(stated[1]) if stated else None
    return Lesson(path.stem, seconds, times.user + times.system, max(peak), tuple(cells), minutes, error)


def learners_that_fit(lessons: list[Lesson], memory_bytes: float) -> int:
    """How many learners can run the hungriest of ``lessons`` at the same time in so much memory."""
    return max(0, int((memory_bytes - SYSTEM_BYTES) // max(lesson.peak_bytes for lesson in lessons)))


def markdown(lessons: list[Lesson], machine: str) -> str:
    """The tables for the instructor's guide."""
    rows = [[*lesson.row()[:-1], f"`{lesson.row()[-1]}`"] for lesson in lessons]
    learners = [str(learners_that_fit(lessons, size * 1e9)) for size in MACHINES]
    fit_table = _table(["memory of a machine, GB", *map(str, MACHINES)], [["learners at once", *learners]])
    return "\n\n".join([f"Measured on {machine}.", _table(HEAD, rows), CONVENTIONS, fit_table])


def page(lessons: list[Lesson], machine: str) -> str:
    """The same as a page for the browser, with the cells of each lesson below, the slowest first."""
    parts = ["# Lessons: time and memory", markdown(lessons, machine)]
    for lesson in lessons:
        cells = [[f"{seconds:.1f}", f"`{source}`"] for seconds, source in sorted(lesson.cells, reverse=True)[:10]]
        parts += [f"## {lesson.name}", _table(["seconds", "cell"], cells)]
    to_html = mistune.create_markdown(escape=True, plugins=["table"])
    body = to_html("\n\n".join(parts)).replace("\\|", "|")  # which it keeps escaped in code
    style = "body{font-family:sans-serif;max-width:70em;margin:2em auto}td,th{text-align:left;padding:.2em .8em}"
    head = f"<meta charset='utf-8'><title>Lessons: time and memory</title><style>{style}</style>"
    return f"<!DOCTYPE html><html lang='en'><head>{head}</head><body>{body}</body></html>\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    escaped = [[text.replace("|", "\\|") for text in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *escaped))


def write_guide(guide: Path, tables: str) -> None:
    """Put ``tables`` between the two marks of the guide, in place of what was there.

    Raises:
        SystemExit: the guide lacks a mark.
    """
    text = guide.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"{guide} must hold each of these lines once:\n{BEGIN}\n{END}")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    text = f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"
    write_atomically(guide, lambda file: file.write_text(text, encoding="utf-8"))


def use_cores(cores: int) -> None:
    """Let this process and the kernels that it starts use so many cores, where the system can be told so."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def describe_machine() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)", info.read_text(encoding="utf-8"), re.MULTILINE) if info.exists() else []
    packages = ", ".join(f"{name} {version(name).split('+')[0]}" for name in ("torch", "ultralytics"))
    processor = names[0] if names else platform.processor() or platform.machine()
    return f"{processor}, {cores} cores, {platform.system()}, {packages}"


@contextlib.contextmanager
def _watch_memory(process: psutil.Process, every: float = 0.05) -> Iterator[list[int]]:
    """Within, the memory of ``process`` and what its children have to themselves is noted in the list, in bytes."""
    peak, ended = [process.memory_info().rss], threading.Event()

    def watch() -> None:
        while not ended.wait(every):
            with contextlib.suppress(psutil.NoSuchProcess):  # a child that ends just now
                children = process.children(recursive=True)
                # Not their resident sets, which count the libraries once more that the kernel has in memory already.
                peak.append(process.memory_info().rss + sum(child.memory_full_info().uss for child in children))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def _first_line(source: str) -> str:
    """The first line that does something: no comment, import or definition, and nothing inside of one."""
    telling = [line for line in source.splitlines() if not re.match(r"\s|$|[#@)\]}]|(import|from|def|class)\b", line)]
    return (telling or source.splitlines() or [""])[0][:80]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="instead of all lessons")
    parser.add_argument("--cores", type=int, default=2, help="how many the lessons may use; 2 unless given")
    parser.add_argument("--page", type=Path, default=ROOT / "build" / "lesson-report.html", help="where the page goes")
    parser.add_argument("--guide", type=Path, help="also put the tables into this file, between its two marks")
    options = parser.parse_args()
    use_cores(options.cores)
    lessons = []
    for path in options.notebooks or sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        lessons.append(measure_notebook(path))
        print("  ".join(lessons[-1].row()), flush=True)
    machine = describe_machine()
    write_atomically(options.page, lambda file: file.write_text(page(lessons, machine), encoding="utf-8"))
    print(options.page)
    if any(lesson.error for lesson in lessons):
        raise SystemExit("a lesson failed, see above")
    if options.guide:
        write_guide(options.guide, markdown(lessons, machine))


if __name__ == "__main__":
    main()
