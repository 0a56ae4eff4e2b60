"""check(): is this machine ready for the course? One table, the first thing that lesson 00 shows.

The lesson imports this file on its own, without the package around it: a check that needs PyTorch cannot say that
PyTorch is missing. So the course, and all that it needs, is imported inside the functions, where a failure becomes a
row of the table. Leaves out: repairing anything, graphics cards, and whether JupyterLab shows widgets, which only the
reader can see.
"""

from __future__ import annotations

import contextlib
import html
import importlib
import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement  # present wherever a notebook runs: its kernel needs it too
from packaging.specifiers import SpecifierSet

COURSE = "yolo-slim-lessons"
THREADS, DISK_GB, MEMORY_GB = 2, 1, 2
RESTART = "then menu Kernel → Restart Kernel"


@dataclass(frozen=True)
class Finding:
    """One row of the report: what was looked at, what is there, what the course needs, and what to do if that differs.

    ``way_out`` is empty if all is well.
    """

    what: str
    found: str
    needed: str
    way_out: str = ""

    @property
    def verdict(self) -> str:
        return f"✘ {self.way_out}" if self.way_out else "✔ fine"


@dataclass(frozen=True)
class Report:
    """What ``check`` found; renders as a table in a notebook."""

    findings: tuple[Finding, ...]

    @property
    def ready(self) -> bool:
        return not any(finding.way_out for finding in self.findings)

    @property
    def summary(self) -> str:
        if self.ready:
            return "✔ Everything is ready."
        names = [finding.what for finding in self.findings if finding.way_out]
        return f"✘ {len(names)} of {len(self.findings)} rows ask you to do something: {', '.join(names)}."

    def __repr__(self) -> str:
        rows = [f"{row.what}: {row.found} (needed: {row.needed}) {row.verdict}" for row in self.findings]
        return "\n".join([self.summary, *rows])

    def _repr_html_(self) -> str:
        titles = ("what", "found", "needed", "verdict")
        rows = ["".join(f"<th style='text-align:left'>{title}</th>" for title in titles)]
        for row in self.findings:
            what, found, needed, verdict = map(html.escape, (row.what, row.found, row.needed, row.verdict))
            colour = "#D55E00" if row.way_out else "#009E73"
            verdict = f"<b style='color:{colour}'>{verdict[0]}</b>{verdict[1:]}"
            rows.append("".join(f"<td style='text-align:left'>{text}</td>" for text in (what, found, needed, verdict)))
        table = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<p><b>{html.escape(self.summary)}</b></p><table>{table}</table>"


def check() -> Report:
    """Look at Python, the packages, the machine and the course's files; takes a few seconds and changes nothing.

    Returns:
        A ``Report``, whatever is missing or broken: nothing here raises.
    """
    files = _files("images", "fashion-mnist"), _files("trained models", "weights")
    return Report((*_python_and_packages(), _loading_the_course(), *_machine(), *files))


def _python_and_packages() -> list[Finding]:
    """Versions against the bounds that the course itself declares when it is installed."""
    try:
        course = metadata.metadata(COURSE)
    except metadata.PackageNotFoundError:
        way_out = (
            "choose the Python that the course was installed into: menu Kernel → Change Kernel. "
            f"Or install it into this one: run %pip install -e .. in a new cell, {RESTART}"
        )
        return [Finding("the course", "not installed in this Python", "installed", way_out)]
    bounds = SpecifierSet(course["Requires-Python"])
    way_out = f"get a Python {_readable(bounds)} and install the course again with it"
    findings = [_version("Python", platform.python_version(), bounds, way_out)]
    for needed in map(Requirement, metadata.requires(COURSE) or []):
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            try:
                version = metadata.version(needed.name)
            except metadata.PackageNotFoundError:
                version = None
            way_out = f'run %pip install "{needed}" in a new cell, {RESTART}'
            findings.append(_version(needed.name, version, needed.specifier, way_out))
    return findings


def _version(what: str, version: str | None, bounds: SpecifierSet, way_out: str) -> Finding:
    fits = version is not None and bounds.contains(version, prereleases=True)
    return Finding(what, version or "not installed", _readable(bounds), "" if fits else way_out)


def _readable(bounds: SpecifierSet) -> str:
    """``<3.14,>=3.10`` as ``≥ 3.10, < 3.14``."""
    return ", ".join(sorted(map(str, bounds), reverse=True)).replace(">=", "≥ ").replace("<", "< ")


def _loading_the_course() -> Finding:
    try:
        course = importlib.import_module("yolo_slim_lessons")
        for name in course.__all__:  # each is loaded when it is first used
            getattr(course, name)
    except Exception as error:  # a package that is missing, half installed, or lacks a library of the system
        way_out = (
            f"repair the rows above, {RESTART}. If they are fine, a library of the system is missing: on Windows "
            "install Microsoft's Visual C++ Redistributable, on Debian or Ubuntu apt-get install libgl1 libglib2.0-0"
        )
        return Finding("loading the course", f"{type(error).__name__}: {error}", "works", way_out)
    return Finding("loading the course", "works", "works")


def _machine() -> list[Finding]:
    # Of the processor, what this process may use; in a container or on a shared server the machine has more.
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    slow = "go on, but expect a lesson to compute for twice the time it states"
    folder = tempfile.gettempdir()  # lessons write to it
    full = f"free some space on the disk that holds {folder}"
    amounts = [
        ("CPU threads", threads, THREADS, "", slow),
        ("free disk", shutil.disk_usage(folder).free / 1e9, DISK_GB, " GB", full),
    ]
    with contextlib.suppress(ImportError):  # psutil, which then has a red row already
        import psutil

        crowded = "close other programs, and notebooks: menu Kernel → Shut Down All Kernels"
        amounts.append(("free memory", psutil.virtual_memory().available / 1e9, MEMORY_GB, " GB", crowded))
    return [
        Finding(what, f"{there:.{1 if unit else 0}f}{unit}", f"≥ {needed}{unit}", "" if there >= needed else way_out)
        for what, there, needed, unit, way_out in amounts
    ]


def _files(what: str, folder_name: str) -> Finding:
    needed = "unaltered (sha256)"
    try:
        from yolo_slim_lessons.files import DATA_DIR, verify_files

        listed = len((DATA_DIR / folder_name / "SHA256SUMS").read_text(encoding="utf-8").splitlines())
        if listed == 0:
            raise ValueError(f"{DATA_DIR / folder_name / 'SHA256SUMS'} lists no file")
        verify_files(DATA_DIR / folder_name)
    except (OSError, ValueError) as error:
        way_out = f"run !git checkout -- ../data/{folder_name} in a new cell, or download the course again"
        return Finding(what, f"{type(error).__name__}: {error}", needed, way_out)
    except Exception:  # the import failed, which has a row of its own
        return Finding(what, "not checked", needed, "first make the course load, as said above")
    return Finding(what, f"{listed} files, unaltered", needed)
