"""Every notebook as its reader gets it: complete, clean, and with solutions that solve."""

import ast
import builtins
import functools
import re
from pathlib import Path

import ipywidgets
import nbformat
import pytest
from lesson_runs import exercises
from needed_cells import top_level_names

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9]*.ipynb"))
MACHINE_PATH = re.compile(r"/(home|root|tmp|work|usr|opt|Users)/|[A-Z]:\\|site-packages")


@functools.cache  # by all tests, which change nothing
def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts_of(output):
    """All that a reader can read in one output of a cell."""
    yield from (str(value) for key, value in output.get("data", {}).items() if key.startswith("text/"))
    yield output.get("text", "")
    yield "\n".join(output.get("traceback", []))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_there_are_lessons():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{number:02d}" for number in range(len(NOTEBOOKS))]
    assert len(NOTEBOOKS) >= 3


def test_is_valid_and_committed_as_executed_from_top_to_bottom(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))


def test_outputs_hold_no_litter(path):
    for cell in code_cells(read(path)):
        for output in cell.outputs:
            assert output.get("name") != "stderr", f"warning or progress bar in the output of:\n{cell.source}"
            expected = "raises-exception" in cell.metadata.get("tags", [])
            assert output.output_type != "error" or expected, f"this cell fails:\n{cell.source}"
            for text in texts_of(output):
                assert not MACHINE_PATH.search(text), f"a path of some machine in the output of:\n{cell.source}"


def test_every_picture_has_a_text_for_readers_who_do_not_see_it(path):
    for cell in code_cells(read(path)):
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                assert len(output.metadata["image/png"].get("alt", "")) > 20, cell.source


def test_cells_are_short(path):
    for cell in code_cells(read(path)):
        assert len(cell.source.splitlines()) <= 20, cell.source


def test_has_the_parts_of_a_lesson(path):
    prose = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    first = read(path).cells[0].source
    for part in ("What you will be able to do", "Time on a 2-core laptop", "Needs"):
        assert part in first
    for part in ("What goes wrong", "Your turn", "In short"):
        assert re.search(f"^## .*{part}", prose, re.MULTILINE), f"no section {part!r}"
    if not path.name.startswith("00"):
        assert prose.count("**An open task.**") == 1


def test_headings_come_in_order(path):
    """One title, and no level left out, so that a screen reader's list of headings is a table of contents."""
    prose = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    headings = re.findall(r"^(#+) ", re.sub(r"^```.*?^```", "", prose, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    levels = [len(marks) for marks in headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below <= above + 1 for above, below in zip(levels, levels[1:], strict=False)), levels


def test_has_two_or_three_exercises_each_with_a_placeholder_that_is_not_yet_right(path):
    notebook = read(path)
    assert 2 <= len(exercises(notebook)) <= 3
    tried = [cell for cell in code_cells(notebook) if "exercises.check_" in cell.source]
    assert len(tried) == len(exercises(notebook))
    for cell in tried:
        assert "not tried" in "".join(text for output in cell.outputs for text in texts_of(output))


def test_a_folded_solution_reads_only_what_the_cells_above_it_have_made(path):
    for above, solution in exercises(read(path)):
        made_above = set(dir(builtins)).union(*(top_level_names(source)[1] for source in above))
        reads, makes, looked_up = top_level_names(solution)
        assert reads | (looked_up - makes) <= made_above


def calls(source, *functions):
    """Every call in ``source`` of a function that is written as one of ``functions``."""
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [call for call in found if ast.unparse(call.func) in functions]


def slider_cells(notebook):
    return [cell for cell in code_cells(notebook) if calls(cell.source, "explore")]


def test_every_control_has_a_label(path):
    controls = [name for name in dir(ipywidgets) if name.endswith(("Slider", "Dropdown", "Text", "Box", "Buttons"))]
    for cell in slider_cells(read(path)):
        found = calls(cell.source, *(f"ipywidgets.{name}" for name in controls))
        assert len(found) >= len(calls(cell.source, "explore")[0].keywords), cell.source
        for call in found:
            given = {keyword.arg: keyword.value for keyword in call.keywords}
            assert len(getattr(given.get("description"), "value", "")) > 1, ast.unparse(call)


def test_a_cell_may_run_twice_and_run_all_above_brings_a_restarted_kernel_anywhere(path):
    """A cell reads what cells above have made, and does not change it: so any cell runs again, or after those above."""
    made_above = set(dir(builtins))
    for cell in code_cells(read(path)):
        reads, makes, _ = top_level_names(cell.source)
        assert reads <= made_above, f"{reads - made_above} is made by no cell above:\n{cell.source}"
        assert not reads & makes, f"{reads & makes} would be something else at the second run:\n{cell.source}"
        made_above |= makes


def test_a_slider_still_means_the_same_when_all_cells_have_run(path):
    """No cell below gives another meaning to a name that the slider's function looks up when it is moved."""
    cells = code_cells(read(path))
    for slider in slider_cells(read(path)):
        place = next(number for number, cell in enumerate(cells) if cell.source == slider.source)
        looked_up = names_looked_up_later([cell.source for cell in cells[: place + 1]])
        for cell in cells[place + 1 :]:
            changed = top_level_names(cell.source)[1] & looked_up
            assert not changed, f"{changed}, which the slider uses, is remade by:\n{cell.source}"


def names_looked_up_later(sources):
    """Names that functions look up which the last of ``sources`` uses, or which these functions use."""
    functions = {
        node.name: ast.unparse(node)
        for source in sources
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef)
    }
    reads, _, looked_up = top_level_names(sources[-1])
    waiting = reads | looked_up
    while waiting:
        name = waiting.pop()
        if name in functions:
            new = top_level_names(functions.pop(name))[2] - looked_up
            looked_up |= new
            waiting |= new
    return looked_up - set(dir(builtins))
