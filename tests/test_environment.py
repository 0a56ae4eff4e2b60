"""environment.check(): every row green on a sound machine, and each red one with a way out."""

import hashlib
import importlib
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from yolo_slim_lessons.files import DATA_DIR
from yolo_slim_lessons.teaching import environment

TEACHING = Path(environment.__file__).parent
GB = 10**9


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A sound machine, whatever the real one is; a test changes one thing about it."""
    sound = SimpleNamespace(threads=4, disk=50 * GB, memory=8 * GB)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(sound.threads)), raising=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=sound.disk))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=sound.memory))
    return sound


@pytest.fixture
def copied_data(tmp_path, monkeypatch):
    """Small files in place of the course's, which a test may damage."""
    for folder, name in (("fashion-mnist", "t10k-labels-idx1-ubyte"), ("weights", "nano.pt")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(name.encode())
        (tmp_path / folder / "SHA256SUMS").write_text(f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n")
    monkeypatch.setattr("yolo_slim_lessons.files.DATA_DIR", tmp_path)
    return tmp_path


def only_red(report):
    """The one row that asks for something."""
    red = [finding for finding in report.findings if finding.way_out]
    assert len(red) == 1, report
    assert not report.ready
    assert red[0].what in report.summary
    return red[0]


def pretend_version(monkeypatch, package, version):
    real = metadata.version

    def pretended(name):
        if name != package:
            return real(name)
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(metadata, "version", pretended)


def test_a_sound_machine_is_ready():
    report = environment.check()
    assert report.ready, report
    found = {finding.what: finding.found for finding in report.findings}
    assert found["torch"] == metadata.version("torch")
    assert found["ipywidgets"] == metadata.version("ipywidgets")
    assert found["images"].startswith("4 files")
    assert "pytest" not in found  # needed by the extra 'test' only
    assert {finding.verdict for finding in report.findings} == {"✔ fine"}


def test_bounds_are_those_that_the_project_declares():
    declared = (TEACHING.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    dependencies = re.search(r"^dependencies = \[(.*?)^\]", declared, re.MULTILINE | re.DOTALL).group(1)
    needed = {finding.what: finding.needed for finding in environment.check().findings}
    pairs = re.findall(r'"([\w-]+)>=([\d.]+)"', dependencies)
    assert len(pairs) > 5
    assert {name: f"≥ {bound}" for name, bound in pairs}.items() <= needed.items()


@pytest.mark.parametrize("version", ["3.9.19", "3.14.0"])
def test_python_out_of_range(monkeypatch, version):
    monkeypatch.setattr("platform.python_version", lambda: version)
    row = only_red(environment.check())
    assert (row.what, row.found, row.needed) == ("Python", version, "≥ 3.10, < 3.14")
    assert "≥ 3.10, < 3.14" in row.way_out


@pytest.mark.parametrize(
    ("package", "version", "found"), [("ipywidgets", None, "not installed"), ("torch", "2.5.1+cpu", "2.5.1+cpu")]
)
def test_package_missing_or_too_old(monkeypatch, package, version, found):
    pretend_version(monkeypatch, package, version)
    row = only_red(environment.check())
    assert (row.what, row.found) == (package, found)
    assert f'%pip install "{package}>=' in row.way_out
    assert "Restart Kernel" in row.way_out


@pytest.mark.parametrize("version", ["2.6.0+cpu", "2.7.0.dev20250301"])
def test_local_and_development_versions_are_new_enough(monkeypatch, version):
    pretend_version(monkeypatch, "torch", version)
    assert environment.check().ready


def test_course_not_installed_in_this_python(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", missing)
    row = only_red(environment.check())
    assert row.what == "the course"
    assert "Change Kernel" in row.way_out
    assert "%pip install -e .." in row.way_out


def test_library_that_does_not_load(monkeypatch):
    def broken(name):
        raise OSError("[WinError 126] c10.dll")

    monkeypatch.setattr(importlib, "import_module", broken)
    row = only_red(environment.check())
    assert row.found == "OSError: [WinError 126] c10.dll"
    assert "Visual C++" in row.way_out


@pytest.mark.parametrize(
    ("attribute", "value", "what", "found"),
    [
        ("threads", 1, "CPU threads", "1"),
        ("disk", GB // 2, "free disk", "0.5 GB"),
        ("memory", GB // 4, "free memory", "0.2 GB"),
    ],
)
def test_machine_too_small(machine, attribute, value, what, found):
    setattr(machine, attribute, value)
    row = only_red(environment.check())
    assert (row.what, row.found) == (what, found)


def test_memory_is_left_out_where_it_cannot_be_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    report = environment.check()
    assert report.ready
    assert "free memory" not in [finding.what for finding in report.findings]


@pytest.mark.parametrize(("folder", "what"), [("fashion-mnist", "images"), ("weights", "trained models")])
@pytest.mark.parametrize("damage", ["missing", "altered", "no list", "empty list", "no folder"])
def test_files(copied_data, folder, what, damage):
    assert environment.check().ready
    [file] = [file for file in (copied_data / folder).iterdir() if file.name != "SHA256SUMS"]
    if damage == "missing":
        file.unlink()
    elif damage == "altered":
        file.write_bytes(b"something else")
    elif damage == "no list":
        (copied_data / folder / "SHA256SUMS").unlink()
    elif damage == "empty list":
        (copied_data / folder / "SHA256SUMS").write_text("")
    else:
        shutil.rmtree(copied_data / folder)
    row = only_red(environment.check())
    assert row.what == what
    assert (file.name if damage in ("missing", "altered") else "SHA256SUMS") in row.found
    assert f"git checkout -- ../data/{folder}" in row.way_out


def test_answers_without_pytorch_as_the_lesson_calls_it():
    """A new Python in which PyTorch and ipywidgets cannot be imported, and the lines of the lesson's first cell."""
    script = """
import sys
sys.modules["torch"] = sys.modules["ipywidgets"] = None
sys.path.append("../yolo_slim_lessons/teaching")
import environment
report = environment.check()
sys.stdout.reconfigure(encoding="utf-8")
print(report)
"""
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=TEACHING.parents[1] / "notebooks",
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    lines = {line.partition(":")[0]: line for line in run.stdout.splitlines()}
    assert "ModuleNotFoundError" in lines["loading the course"]
    assert "✘" in lines["loading the course"]
    assert lines["images"].endswith("✘ first make the course load, as said above")
    assert "✔ fine" in lines["Python"]


def test_table_tells_by_words_and_escapes_what_it_shows(monkeypatch):
    pretend_version(monkeypatch, "torch", None)
    monkeypatch.setattr(importlib, "import_module", lambda name: exec("raise ImportError('<script> & co')"))
    report = environment.check()
    table = report._repr_html_()
    assert "✘ 2 of" in report.summary
    assert re.search(r"✘</b> run %pip install &quot;torch&gt;=", table)
    assert "ImportError: &lt;script&gt; &amp; co" in table
    assert table.count("✔</b> fine") == len(report.findings) - 2
    assert table.count("<tr>") == len(report.findings) + 1
    assert repr(report).count("\n") == len(report.findings)


def test_readme_of_the_data_tells_origin_and_true_checksums():
    readme = (DATA_DIR / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\S+)` \|.*`([0-9a-f]{64})` \|$", readme, re.MULTILINE))
    folder = DATA_DIR / "fashion-mnist"
    assert rows.keys() == {file.name for file in folder.iterdir()} - {"SHA256SUMS"}
    for name, checksum in rows.items():
        content = (folder / name).read_bytes()
        if name == "LICENSE":
            content = content.replace(b"\r\n", b"\n")  # git on Windows may have changed the line ends of a text
        assert hashlib.sha256(content).hexdigest() == checksum
    for name, shape in (("train-images-idx3-ubyte", (60000, 28, 28)), ("t10k-labels-idx1-ubyte", (10000,))):
        header = np.frombuffer((folder / name).read_bytes()[: 4 + 4 * len(shape)], ">u4")
        assert tuple(header[1:]) == shape
        assert f"`{name}` | {' × '.join(f'{size:,}' for size in shape)} |" in readme
    assert (DATA_DIR / "weights" / "README.md").is_file()
