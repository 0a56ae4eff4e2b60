"""A lesson whose outputs are no longer true, or whose solution is wrong, fails with its place and the difference."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

SOLUTION = "<details><summary>Solution</summary>\n\n```python\n{}\n```\n</details>"
FEEDBACK = "from types import SimpleNamespace as Feedback"
BAR = """
from IPython.display import display
display({"text/plain": "train:  64%|### | 640/1000"}, raw=True)
print("done")
"""
DIVISION = new_output("error", ename="ZeroDivisionError", evalue="division by zero")


def code(source, *outputs, tags=()):
    return new_code_cell(source, execution_count=1, outputs=list(outputs), metadata={"tags": list(tags)})


def printed(text):
    return new_output("stream", text=text)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What pytest says of a lesson with good and bad cells."""
    cells = [
        code(f"{FEEDBACK}\nseconds = 2\nprint('in 3 ms')", printed("in 2 ms\n")),
        code("print(seconds)", printed("3\n")),
        code(
            "1 / 0",
            new_output("error", ename="ZeroDivisionError", evalue="division by zero"),
            tags=["raises-exception"],
        ),
        code("print(id(seconds))", printed("1\n"), tags=["nbval-ignore-output"]),
        code(BAR, printed("done\n")),
        code("undefined"),
        new_markdown_cell(SOLUTION.format("seconds += 1\nFeedback(right=seconds == 3)")),
        new_markdown_cell(SOLUTION.format("Feedback(right=seconds == 2)")),
    ]
    folder = tmp_path_factory.mktemp("lesson")
    nbformat.write(new_notebook(cells=cells), folder / "42-lesson.ipynb")
    here = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "pytest", "-p", "lesson_runs", "--color=no", "-rpf", "42-lesson.ipynb"]
    environment = os.environ | {"PYTHONPATH": here, "PYTEST_ADDOPTS": "--nbval-current-env"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300).stdout


@pytest.mark.parametrize("name", ["Cell 0", "Cell 2", "Cell 3", "Cell 4", "Solution 1"])
def test_times_expected_errors_ignored_outputs_and_bars_may_differ(report, name):
    assert f"PASSED 42-lesson.ipynb::{name}" in report


@pytest.mark.parametrize("name", ["Cell 1", "Cell 5", "Solution 2"])
def test_other_outputs_errors_and_wrong_solutions_fail(report, name):
    assert f"FAILED 42-lesson.ipynb::{name}" in report


def test_a_failure_shows_the_cell_and_the_difference(report):
    assert "Input:\nprint(seconds)\n" in report
    assert "'3\\n' == '2\\n'" in report
    assert "NameError" in report
