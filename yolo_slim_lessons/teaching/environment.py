"""check(): is this machine ready for the course? One table, the first thing that lesson 00 shows.

The lesson imports this file on its own, without the package around it: a check that needs PyTorch cannot say that
PyTorch is missing. So the course, and all that it needs, is imported inside the functions, where a failure becomes a
row of the table. Leaves out: repairing anything, graphics cards, and whether JupyterLab shows widgets, which only the
reader can see.
"""

from __future__ import annotations

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
    """One row of the report.

    Attributes:
        what: the thing looked at.
        found: what is there.
        needed: what the course needs.
        way_out: what to do; empty if all is well.
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
        rows = [
            f"{finding.what}: {finding.found} (needed: {finding.needed}) {finding.verdict}" for finding in self.findings
        ]
        return "\n".join([self.summary, *rows])

    def _repr_html_(self) -> str:
        cell = "<td style='text-align:left'>{}</td>".format
        rows = []
        for finding in self.findings:
            colour = "#D55E00" if finding.way_out else "#009E73"
            texts = [html.escape(text) for text in (finding.what, finding.found, finding.needed, finding.verdict)]
            texts[-1] = f"<b style='color:{colour}'>{texts[-1][0]}</b>{texts[-1][1:]}"
            rows.append(f"<tr>{''.join(map(cell, texts))}</tr>")
        head = "".join(f"<th style='text-align:left'>{title}</th>" for title in ("what", "found", "needed", "verdict"))
        return f"<p><b>{html.escape(self.summary)}</b></p><table><tr>{head}</tr>{''.join(rows)}</table>"


def check() -> Report:
    """Look at Python, the packages, the machine and the course's files; takes a few seconds and changes nothing.

    Returns:
        A ``Report``, whatever is missing or broken: nothing here raises.
    """
    return Report(
        (
            *_python_and_packages(),
            _loading_the_course(),
            _threads(),
            _free_disk(),
            *_free_memory(),
            _files("images", "fashion-mnist"),
            _files("trained models", "weights"),
        )
    )


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
    version, bounds = platform.python_version(), SpecifierSet(course["Requires-Python"])
    fits = bounds.contains(version, prereleases=True)
    way_out = "" if fits else f"get a Python {_readable(bounds)} and install the course again with it"
    requirements = map(Requirement, metadata.requires(COURSE) or [])
    return [
        Finding("Python", version, _readable(bounds), way_out),
        *(_package(it) for it in requirements if it.marker is None or it.marker.evaluate({"extra": ""})),
    ]


def _package(requirement: Requirement) -> Finding:
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        version = None
    fits = version is not None and requirement.specifier.contains(version, prereleases=True)
    way_out = "" if fits else f'run %pip install "{requirement}" in a new cell, {RESTART}'
    return Finding(requirement.name, version or "not installed", _readable(requirement.specifier), way_out)


def _readable(bounds: SpecifierSet) -> str:
    """``<3.14,>=3.10`` as ``≥ 3.10, < 3.14``."""
    return ", ".join(sorted(map(str, bounds), reverse=True)).replace(">=", "≥ ").replace("<", "< ")


def _loading_the_course() -> Finding:
    what = "loading the course"
    try:
        importlib.import_module("yolo_slim_lessons")
    except Exception as error:  # a package that is missing, half installed, or lacks a library of the system
        way_out = (
            f"repair the rows above, {RESTART}. If they are fine, a library of the system is missing: on Windows "
            "install Microsoft's Visual C++ Redistributable, on Debian or Ubuntu apt-get install libgl1 libglib2.0-0"
        )
        return Finding(what, f"{type(error).__name__}: {error}", "works", way_out)
    return Finding(what, "works", "works")


def _threads() -> Finding:
    # The number this process may use; in a container or on a shared server the machine has more.
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    way_out = "" if threads >= THREADS else "go on, but expect a lesson to compute for twice the time it states"
    return Finding("CPU threads", str(threads), f"≥ {THREADS}", way_out)


def _free_disk() -> Finding:
    gigabytes = shutil.disk_usage(tempfile.gettempdir()).free / 1e9  # lessons write to the folder of temporary files
    way_out = "" if gigabytes >= DISK_GB else f"free some space on the disk that holds {tempfile.gettempdir()}"
    return Finding("free disk", f"{gigabytes:.1f} GB", f"≥ {DISK_GB} GB", way_out)


def _free_memory() -> list[Finding]:
    try:
        import psutil  # comes with Ultralytics
    except ImportError:
        return []  # Ultralytics has a row of its own
    gigabytes = psutil.virtual_memory().available / 1e9
    way_out = (
        "" if gigabytes >= MEMORY_GB else "close other programs, and notebooks: menu Kernel → Shut Down All Kernels"
    )
    return [Finding("free memory", f"{gigabytes:.1f} GB", f"≥ {MEMORY_GB} GB", way_out)]


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
