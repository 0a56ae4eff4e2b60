"""Every notebook as its reader gets it: complete, clean, and with solutions that solve."""

import ast
import builtins
import re
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9]*.ipynb"))
SOLUTION = re.compile(r"<details><summary>Solution</summary>\n\n```python\n(.*?)\n```", re.DOTALL)
MACHINE_PATH = re.compile(r"/(home|root|tmp|work|usr|opt|Users)/|[A-Z]:\\|site-packages")


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


def exercises(notebook):
    """(code cells above the exercise, text of its folded solution) for every exercise."""
    above, found = [], []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            above.append(cell.source)
        found += [(above[:-1], solution) for solution in SOLUTION.findall(cell.source)]
    return found


def names(source, context):
    """Names that ``source`` reads (``ast.Load``) or makes (``ast.Store``)."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, context):
            found.add(node.id)
        if context is ast.Store and isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        if context is ast.Store and isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
    return found


def names_from_elsewhere(source):
    """Names that ``source`` reads and does not make itself."""
    return names(source, ast.Load) - names(source, ast.Store) - set(dir(builtins))


def cells_needed(above, solution):
    """The cells above that make what the solution reads; to run the others too would only cost time."""
    wanted, needed = names_from_elsewhere(solution), []
    for source in reversed(above):
        if names(source, ast.Store) & wanted:
            needed.insert(0, source)
            wanted |= names_from_elsewhere(source)
    return needed


def test_has_two_or_three_exercises_each_with_a_placeholder_that_is_not_yet_right(path):
    notebook = read(path)
    assert 2 <= len(exercises(notebook)) <= 3
    tried = [cell for cell in code_cells(notebook) if "exercises.check_" in cell.source]
    assert len(tried) == len(exercises(notebook))
    for cell in tried:
        assert "not tried" in "".join(text for output in cell.outputs for text in texts_of(output))


def test_folded_solutions_are_right(path):
    for above, solution in exercises(read(path)):
        *lines, last = solution.splitlines()
        sources = [
            *cells_needed(above, solution),
            "\n".join(lines),
            f"feedback = {last}\nassert feedback.right, feedback",
        ]
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
        nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": path.parent}}).execute()
