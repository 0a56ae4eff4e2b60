"""A plugin of pytest, for which each lesson is a file of tests.

nbval runs its cells in one kernel and compares their outputs with the stored ones; what tags and ``nbval.cfg`` say of a
cell counts. Then the folded solutions run in the same kernel.
"""

import re
from collections import defaultdict
from pathlib import Path

import nbformat
import psutil
from nbval.plugin import IPyNbCell, IPyNbFile

SOLUTION = re.compile(r"<details><summary>Solution</summary>\n\n```python\n(.*?)\n```", re.DOTALL)
MOST_SECONDS = 60  # of a cell
PROGRESS = re.compile(r"[\w ]+: +\d+%\|")  # a bar that a busy machine shows for a while, and that goes when it is full


def pytest_collect_file(file_path, parent):
    return Lesson.from_parent(parent, path=file_path) if file_path.match("[0-9]*.ipynb") else None


def exercises(notebook):
    """(code cells above the exercise, text of its folded solution) for every exercise."""
    above, found = [], []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            above.append(cell.source)
        found += [(above[:-1], solution) for solution in SOLUTION.findall(cell.source)]
    return found


class Cell(IPyNbCell):
    """A cell of a lesson, which no learner should have to wait for longer than a minute."""

    def runtest(self):
        kernel = psutil.Process(self.parent.kernel.km.provisioner.pid)
        before = kernel.cpu_times()
        super().runtest()
        after = kernel.cpu_times()
        # Processor time, because other programs on the machine lengthen all else.
        seconds = after.user + after.system - before.user - before.system
        if seconds > MOST_SECONDS:
            self.raise_cell_error(f"takes {seconds:.0f} s of processor time; at most {MOST_SECONDS} are allowed")

    def compare_outputs(self, test, ref, skip_compare=None):
        lasting = [output for output in test if not PROGRESS.match(output.get("data", {}).get("text/plain", ""))]
        return super().compare_outputs(lasting, ref, skip_compare)


class Lesson(IPyNbFile):
    """A notebook whose tests are its cells, and behind them its folded solutions."""

    def collect(self):
        cells = list(super().collect())
        for cell in cells:
            yield self._cell(cell.name, cell.cell_num, cell.cell, cell.options)
        for number, (_, solution) in enumerate(exercises(self.nb)):
            *lines, last = solution.splitlines()
            source = "\n".join([*lines, f"feedback = {last}", "assert feedback.right, feedback"])
            cell = nbformat.v4.new_code_cell(source)
            # No options: what a solution prints is compared with nothing.
            yield self._cell(f"Solution {number + 1}", len(cells) + number, cell, defaultdict(bool))

    def _cell(self, name, number, cell, options):
        return Cell.from_parent(self, name=name, cell_num=number, cell=cell, options=options)

    def get_sanitize_files(self):
        return [Path(__file__).with_name("nbval.cfg")]
