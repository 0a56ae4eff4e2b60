"""Solved exercises are noted for this user alone, shown truthfully, forgotten on request, and never in the way."""

import json
import os
import re
from pathlib import Path

import platformdirs
import pytest
from platformdirs import macos, unix, windows

from yolo_slim_lessons.teaching import exercises, progress
from yolo_slim_lessons.teaching.exercises import solved
from yolo_slim_lessons.teaching.exercises.feedback import Feedback, check

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Where this test's progress is noted; not there yet."""
    path = tmp_path / "new folder" / "progress.json"
    monkeypatch.setenv("YOLO_SLIM_PROGRESS", str(path))
    return path


def row(lesson):
    return next(each for each in progress.show_progress().lessons if each.lesson == lesson)


def test_the_tests_write_nowhere_else():
    assert os.environ["YOLO_SLIM_PROGRESS"].startswith(os.environ["YOLO_CONFIG_DIR"])


def test_only_right_answers_are_noted_and_each_once(file):
    assert not exercises.check_break_even(0.5).right
    assert not exercises.check_break_even(...).right
    assert not exercises.check_break_even("nonsense").right
    assert not file.exists()
    assert row("03").solved == ()
    for _ in range(2):
        assert exercises.check_break_even(2 / 3).right
    assert exercises.check_half_the_macs(1 - 0.5**0.5).right
    assert json.loads(file.read_text(encoding="utf-8")) == {
        "lesson03": ["check_break_even"],
        "lesson04": ["check_half_the_macs"],
    }
    assert row("03").solved == ("break even",)
    assert row("03").open == ("zero smallest", "choose rates")
    assert row("04").solved == ("half the macs",)


def test_the_totals_are_the_exercises_of_the_notebooks(file):
    """Counted independently: the calls of checks in each lesson's cells, in their order."""
    for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        called = [
            name.replace("_", " ") for source in sources for name in re.findall(r"exercises\.check_(\w+)", source)
        ]
        assert row(path.name[:2]).open == tuple(called), path.name


def test_the_table_shows_solved_of_total_and_where_it_is_kept(file, monkeypatch):
    exercises.check_f1(2 * 0.75 * 0.6 / (0.75 + 0.6))
    shown = progress.show_progress()
    total = sum(len(each.open) + len(each.solved) for each in shown.lessons)
    assert shown.summary == f"1 of {total} exercises solved."
    table = shown._repr_html_()
    assert table.count("<tr>") == len(shown.lessons) + 1
    assert "<td style='text-align:left'>1 of 3</td><td style='text-align:left'>images needed, convolution macs" in table
    assert str(file) in repr(shown)
    monkeypatch.setattr(Path, "home", lambda: file.parents[1])
    assert f"{Path('~') / 'new folder' / 'progress.json'}; forget_progress() deletes it" in repr(
        progress.show_progress()
    )
    for name in ("check_images_needed", "check_convolution_macs"):
        solved.note_solved("lesson02", name)
    assert "✔ all solved" in progress.show_progress()._repr_html_()


def test_forgetting_deletes_the_file_and_says_so(file, capsys):
    progress.forget_progress()
    assert "nothing to forget" in capsys.readouterr().out
    exercises.check_break_even(2 / 3)
    progress.forget_progress()
    assert f"{file} is deleted" in capsys.readouterr().out
    assert list(file.parent.iterdir()) == []
    assert row("03").solved == ()


def test_an_empty_variable_means_that_nothing_is_noted(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("YOLO_SLIM_PROGRESS", "")
    for name in ("HOME", "XDG_STATE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path))
    assert exercises.check_break_even(2 / 3).right
    assert list(tmp_path.iterdir()) == []
    assert "Nothing is noted, because YOLO_SLIM_PROGRESS is empty" in repr(progress.show_progress())
    progress.forget_progress()
    assert "nothing to forget" in capsys.readouterr().out


@pytest.mark.parametrize("contents", ["", "{", "[1, 2]", '{"lesson03": 5}', "\udcff"])
def test_a_damaged_file_counts_as_none_and_is_written_anew(file, contents):
    file.parent.mkdir()
    file.write_bytes(contents.encode("utf-8", "surrogateescape"))
    assert row("03").solved == ()
    assert exercises.check_break_even(2 / 3).right
    assert row("03").solved == ("break even",)


def test_notes_on_exercises_that_are_gone_do_not_count(file):
    solved.note_solved("lesson03", "check_of_an_older_release")
    solved.note_solved("lesson99", "check_anything")
    assert progress.show_progress().summary.startswith("0 of ")


def test_a_place_that_cannot_be_written_spoils_no_answer(tmp_path, monkeypatch):
    (tmp_path / "a file").write_text("no folder", encoding="utf-8")
    monkeypatch.setenv("YOLO_SLIM_PROGRESS", str(tmp_path / "a file" / "progress.json"))  # for root, too
    assert exercises.check_break_even(2 / 3).right
    assert row("03").solved == ()
    monkeypatch.setenv("YOLO_SLIM_PROGRESS", str(tmp_path))  # a folder
    assert exercises.check_break_even(2 / 3).right
    assert row("03").solved == ()
    assert [path.name for path in tmp_path.iterdir()] == ["a file"]


def test_whatever_goes_wrong_while_noting_the_answer_stands(monkeypatch):
    def broken(*_):
        raise RuntimeError("no home folder")

    monkeypatch.delenv("YOLO_SLIM_PROGRESS")
    monkeypatch.setattr(platformdirs, "user_state_dir", broken)

    @check
    def check_nothing(answer):
        return Feedback(True, "well done")

    assert check_nothing(1).right


@pytest.mark.parametrize(
    ("system", "variables", "expected"),
    [
        (unix.Unix, {}, ".local/state/yolo-slim-lessons/progress.json"),
        (unix.Unix, {"XDG_STATE_HOME": "state"}, "state/yolo-slim-lessons/progress.json"),
        (macos.MacOS, {}, "Library/Application Support/yolo-slim-lessons/progress.json"),
        (windows.Windows, {"LOCALAPPDATA": "local"}, "local/yolo-slim-lessons/progress.json"),
    ],
)
def test_each_system_has_its_place(tmp_path, monkeypatch, system, variables, expected):
    for name in ("YOLO_SLIM_PROGRESS", "XDG_STATE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "", **variables}.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.setattr(platformdirs, "PlatformDirs", system)
    monkeypatch.setattr(windows, "get_win_folder", windows.get_win_folder_from_env_vars)  # which any system can do
    assert exercises.check_break_even(2 / 3).right
    assert (tmp_path / expected).is_file()
