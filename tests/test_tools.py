"""The tools for teachers: the zip installs without a network, the report measures what it says."""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


offline, lesson_report = load("offline"), load("lesson_report")

# offline: a project of a few lines, which needs one package and is built by a module of its own

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "tiny"
version = "1.0"
dependencies = ["tiny-dependency>=1"]
"""
BACKEND = """
import pathlib, zipfile

def build_editable(folder, settings=None, metadata=None):
    name = "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(folder, name), "w") as wheel:
        wheel.writestr("tiny.pth", str(pathlib.Path.cwd()))
        for file, lines in {
            "METADATA": ["Metadata-Version: 2.1", "Name: tiny", "Version: 1.0", "Requires-Dist: tiny-dependency>=1"],
            "WHEEL": ["Wheel-Version: 1.0", "Generator: tiny", "Root-Is-Purelib: true", "Tag: py3-none-any"],
            "RECORD": [],
        }.items():
            wheel.writestr("tiny-1.0.dist-info/" + file, "\\n".join(lines) + "\\n" * bool(lines))
    return name
"""


def write_wheel(folder, name, version):
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", f"version = {version!r}\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A git checkout, and an index that is a folder: pip gets nothing from anywhere else."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    folder = tmp_path / "my course ü"
    (folder / "notebooks").mkdir(parents=True)
    files = {"pyproject.toml": PYPROJECT, "backend.py": BACKEND, "tiny.py": "import tiny_dependency\n"}
    files |= {"notebooks/ünï cödé.ipynb": "{}", "not mine.txt": "secret"}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    author = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    for command in (["init", "--quiet"], ["add", *list(files)[:-1]], [*author, "commit", "--quiet", "-m", "all"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    (tmp_path / "index").mkdir()
    for version in ("0.9", "1.1"):
        write_wheel(tmp_path / "index", "tiny_dependency", version)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", (tmp_path / "index").as_uri())
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def test_the_zip_holds_the_course_its_wheels_and_the_way_to_install_it(project, tmp_path):
    (tmp_path / "out ü" / "wheelhouse").mkdir(parents=True)
    write_wheel(tmp_path / "out ü" / "wheelhouse", "tiny_dependency", "1.0")  # of an earlier run
    wheelhouse = offline.build_wheelhouse(project, tmp_path / "out ü" / "wheelhouse")
    archive = offline.write_zip(project, wheelhouse, tmp_path / "out ü")
    names = zipfile.ZipFile(archive).namelist()
    inside = {name.removeprefix("tiny/") for name in names if not name.endswith("/")}
    assert all(name.startswith("tiny/") for name in names)
    assert inside == {
        "INSTALL-OFFLINE.md",
        "pyproject.toml",
        "backend.py",
        "tiny.py",
        "notebooks/ünï cödé.ipynb",
        "wheelhouse/tiny_dependency-1.1-py3-none-any.whl",
    }
    assert f"py{sys.version_info.major}{sys.version_info.minor}" in archive.name
    assert platform.machine() in archive.name or os.name == "nt"
    told = offline.report(archive, wheelhouse)
    assert re.match(r"1 wheels, 0\.0 MB, the largest: tiny_dependency 0\.0 MB\n", told)
    assert str(archive) in told


@pytest.mark.slow
def test_the_zip_installs_and_runs_with_the_network_off(project, tmp_path):
    """In a fresh environment that sees nothing of this one, by the commands of the instructions."""
    wheelhouse = offline.build_wheelhouse(project, tmp_path / "out ü" / "wheelhouse")
    archive = offline.write_zip(project, wheelhouse, tmp_path / "out ü")
    shutil.rmtree(tmp_path / "index")
    shutil.rmtree(wheelhouse)
    code = """
import pathlib, tiny, urllib.request
print(tiny.tiny_dependency.version, pathlib.Path(tiny.__file__).parent.name)
for attempt in (lambda: __import__("torch"), lambda: urllib.request.urlopen("http://example.org")):
    try:
        attempt()
    except (ImportError, OSError) as error:
        print(type(error).__name__)
"""
    assert offline.try_zip(archive, code).splitlines() == ["1.1 tiny", "ModuleNotFoundError", "URLError"]
    assert [path.name for path in (tmp_path / "out ü").iterdir()] == [archive.name]


@pytest.mark.slow
def test_a_zip_without_a_needed_wheel_is_found_out(project, tmp_path):
    wheelhouse = offline.build_wheelhouse(project, tmp_path / "out ü" / "wheelhouse")
    for wheel in wheelhouse.iterdir():
        wheel.unlink()
    with pytest.raises(SystemExit, match="tiny-dependency"):
        offline.try_zip(offline.write_zip(project, wheelhouse, tmp_path / "out ü"))


def test_the_instructions_hold_the_commands_that_were_tried():
    text = offline.instructions()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"with Python {version}" in text
    _, install = offline.install_commands("python")
    assert f"    {' '.join(install)}\n" in text
    assert re.search(rf"^    py\S*[ -]?{version} -m venv \.venv$", text, re.MULTILINE)


def test_what_is_not_committed_is_not_in_the_zip_and_is_named(project, tmp_path, capsys):
    (tmp_path / "wheelhouse").mkdir()
    (project / "tiny.py").write_text("a change", encoding="utf-8")
    archive = offline.write_zip(project, tmp_path / "wheelhouse", tmp_path)
    assert "Not committed, and so not in the zip:\n M tiny.py\n" in capsys.readouterr().out
    assert zipfile.ZipFile(archive).read("tiny/tiny.py") == b"import tiny_dependency\n"


def test_a_connection_that_fails_and_a_folder_without_git_say_so(project, tmp_path, monkeypatch):
    for wheel in (tmp_path / "index").iterdir():
        wheel.unlink()
    with pytest.raises(SystemExit, match="pip could not get all packages"):
        offline.build_wheelhouse(project, tmp_path / "wheelhouse")
    shutil.rmtree(project / ".git")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    with pytest.raises(SystemExit, match="git cannot pack .*not a git repository"):
        offline.write_zip(project, tmp_path / "wheelhouse", tmp_path)


def test_a_zip_too_large_for_common_sticks_is_announced(tmp_path, monkeypatch):
    monkeypatch.setattr(offline, "FAT32_LIMIT", 10)
    (tmp_path / "wheelhouse").mkdir()
    (tmp_path / "course.zip").write_bytes(bytes(11))
    assert "format them as exFAT" in offline.report(tmp_path / "course.zip", tmp_path / "wheelhouse")


# lesson report


def write_notebook(path, *sources, tags=()):
    first = nbformat.v4.new_markdown_cell("# A lesson\n*Time on a 2-core laptop:* 20 minutes, one of them computing.")
    cells = [first, *(nbformat.v4.new_code_cell(source) for source in sources)]
    for cell in cells[1:]:
        cell.metadata["tags"] = list(tags)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_memory_of_programs_that_a_lesson_starts_counts(tmp_path):
    child = "import time; held = bytearray(b'x') * 400_000_000; time.sleep(0.5)"
    lesson = lesson_report.measure_notebook(
        write_notebook(
            tmp_path / "00.ipynb", f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])"
        )
    )
    assert 400e6 < lesson.peak_bytes < 700e6


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A notebook that sleeps, computes and holds memory, each for a known amount."""
    path = write_notebook(
        tmp_path_factory.mktemp("notebooks") / "00-tiny.ipynb",
        "import time\nfrom pathlib import Path",
        "# a comment\ndef nap():\n    time.sleep(0.8)\n\n\nnap()",
        "held = bytearray(b'x') * 300_000_000\ntime.sleep(0.3)\ndel held",
        "end = time.process_time() + 0.5\nwhile time.process_time() < end:\n    pass",
        "Path('here.txt').write_text('relative to the notebook')",
    )
    before = path.read_bytes()
    lesson = lesson_report.measure_notebook(path)
    assert path.read_bytes() == before
    return lesson


def test_time_memory_and_the_slowest_cell_are_measured(measured):
    assert measured.name == "00-tiny"
    assert measured.error == ""
    assert measured.seconds >= 1.6
    assert sum(seconds for seconds, _ in measured.cells) == pytest.approx(measured.seconds, abs=0.1)
    assert [source for _, source in measured.cells][1] == "nap()"
    assert measured.cells[1][0] >= 0.8
    assert measured.cpu_seconds >= 0.5
    assert 300e6 < measured.peak_bytes < 600e6  # an empty kernel takes some 70 MB
    assert measured.stated_minutes == 20
    assert len(measured.cells) == 5


def test_the_row_says_the_same_in_readable_units():
    lesson = lesson_report.Lesson("04-x", 150, 240, 1_234_000_000, ((20, "a()"), (130, "b()")), 60)
    assert lesson.row() == ["04-x", "2.5", "4.0", "0.07", "1.23", "130 s: b()"]


def test_a_failing_cell_ends_the_lesson_and_is_named(tmp_path):
    lesson = lesson_report.measure_notebook(write_notebook(tmp_path / "01.ipynb", "1 / 0", "print('not reached')"))
    assert lesson.error == "fails: ZeroDivisionError: division by zero"
    assert len(lesson.cells) == 1
    expected = write_notebook(tmp_path / "02.ipynb", "1 / 0", "1 + 1", tags=["raises-exception"])
    assert lesson_report.measure_notebook(expected).error == ""


def lessons():
    return [
        lesson_report.Lesson("00-a|b", 60, 60, 500_000_000, ((1.0, "f(x) | y"), (59.0, "<b>")), None),
        lesson_report.Lesson("01-c", 90, 90, 1_500_000_000, ((90.0, "g()"),), 40),
    ]


@pytest.mark.parametrize(("gigabytes", "learners"), [(16, 10), (4, 2), (2, 0), (0.5, 0)])
def test_learners_are_counted_by_the_hungriest_lesson(gigabytes, learners):
    assert lesson_report.learners_that_fit(lessons(), gigabytes * 1e9) == learners  # (16 − 1) / 1.5


def test_the_page_and_the_tables_show_every_lesson():
    page = lesson_report.page(lessons(), "a <machine>")
    assert page.count("<h2>") == 2
    assert "59 s: &lt;b&gt;" in page
    assert "a &lt;machine&gt;" in page
    assert "<code>f(x) | y</code>" in page
    assert re.search(r"learners at once</td>\s*<td>2</td>\s*<td>4</td>\s*<td>10</td>", page)  # in 4, 8 and 16 GB
    text = lesson_report.markdown(lessons(), "a machine")
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    assert [len(row) for row in rows] == [6] * 7
    assert rows[3][4].strip() == "1.50"
    assert [cell.strip() for cell in rows[-1]] == ["learners at once", "2", "4", "10", "20", "42"]


def test_the_guide_gets_the_tables_between_its_marks_and_keeps_the_rest(tmp_path):
    guide = tmp_path / "guide.md"
    guide.write_text(f"before\n\n{lesson_report.BEGIN}\nold\n{lesson_report.END}\n\nafter\n", encoding="utf-8")
    for _ in range(2):
        lesson_report.write_guide(guide, "| new |")
        text = guide.read_text(encoding="utf-8")
        assert text == f"before\n\n{lesson_report.BEGIN}\n\n| new |\n\n{lesson_report.END}\n\nafter\n"
    guide.write_text("no marks", encoding="utf-8")
    with pytest.raises(SystemExit, match="must hold each of these lines once"):
        lesson_report.write_guide(guide, "| new |")


def test_the_instructors_guide_has_the_marks_and_the_same_parts_for_each_lesson():
    notebooks = ROOT / "notebooks"
    text = (notebooks / "instructor-guide.md").read_text(encoding="utf-8")
    assert text.count(lesson_report.BEGIN) == text.count(lesson_report.END) == 1
    assert all((notebooks / name).is_file() for name in re.findall(r"\]\(([^)]+)\)", text))
    sections = re.split(
        r"^### \[(\d\d) · .*\]\(\1-[\w-]+\.ipynb\)$", text.split("## When something fails")[0], flags=re.M
    )
    assert sections[1::2] == [path.name[:2] for path in sorted(notebooks.glob("[0-9]*.ipynb"))]
    for section in sections[2::2]:
        parts = re.findall(r"^\*\*(.*?)\.\*\*", section, re.MULTILINE)
        assert parts == ["Goals", "Ask", "Predictions to collect", "Typical misunderstandings", "What may fail"]


def test_the_command_measures_prints_and_writes(tmp_path, monkeypatch, capsys):
    cores = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, chosen: cores.append(len(chosen)), raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    path = write_notebook(tmp_path / "00-tiny.ipynb", "1 + 1")
    guide, page = tmp_path / "guide.md", tmp_path / "out" / "page.html"
    guide.write_text(f"{lesson_report.BEGIN}\n{lesson_report.END}\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["", str(path), "--page", str(page), "--guide", str(guide)])
    lesson_report.main()
    assert cores == [2]  # unless told otherwise, like the laptop that the lessons speak of
    assert "00-tiny" in capsys.readouterr().out
    assert "00-tiny" in page.read_text(encoding="utf-8")
    assert "| 00-tiny |" in guide.read_text(encoding="utf-8")

    failing = write_notebook(tmp_path / "01-fails.ipynb", "1 / 0")
    monkeypatch.setattr(sys, "argv", ["", str(failing), "--page", str(page), "--guide", str(guide)])
    with pytest.raises(SystemExit, match="a lesson failed"):
        lesson_report.main()
    assert "ZeroDivisionError" in page.read_text(encoding="utf-8")
    assert "01-fails" not in guide.read_text(encoding="utf-8")
