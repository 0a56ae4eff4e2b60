"""What the browser tests ask the kernel of a lesson: what a slider shows now, computed anew, and when it drew.

``lab.py`` puts this folder on the kernel's path and calls ``watch()`` before the first cell runs. Names of the lesson
are neither read nor made, so the lesson runs as it does for a learner.
"""

from __future__ import annotations

import threading
import time

from matplotlib.figure import Figure

from yolo_slim_lessons.teaching import widgets

_explored: list[Explored] = []


class Explored:
    """One call of ``explore``: its function, which now notes when it has drawn, and its controls."""

    def __init__(self, draw, controls):
        self.draw, self.controls = draw, controls
        self.ends: list[float] = []
        self.lock = threading.Lock()  # JupyterLab lets controls answer in another thread than cells

    def counted(self, **values):
        with self.lock:
            answer = self.draw(**values)
        self.ends.append(time.time())
        return answer


def watch() -> None:
    """Note every call of ``explore`` from now on."""
    explore = widgets.explore

    def watched(draw, **controls):
        _explored.append(Explored(draw, controls))
        return explore(_explored[-1].counted, **controls)

    widgets.explore = watched


def values(box: int) -> list[str]:
    """The value of every control, as Python writes it."""
    return [repr(control.value) for control in _explored[box].controls.values()]


def answer(box: int) -> tuple[str, str]:
    """(sentence, picture) that the package computes for the present values; the picture as JupyterLab gets it.

    Raises:
        ValueError: something of the picture reaches beyond its edge, where it is cut off.
    """
    explored = _explored[box]
    with explored.lock:
        now = {name: control.value for name, control in explored.controls.items()}
        drawn, sentence = explored.draw(**now)
        picture = drawn if isinstance(drawn, str) else widgets._as_html(drawn, sentence)
        if isinstance(drawn, Figure) and (beyond := inches_beyond_the_edge(drawn)) > 0.02:  # two pixels
            raise ValueError(f"{now}: the picture reaches {beyond:.2f} inches beyond its edge")
    return sentence, picture


def inches_beyond_the_edge(figure: Figure) -> float:
    """How far words and lines reach out of ``figure``, which was saved."""
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    return max(-box.x0, -box.y0, box.x1 - width, box.y1 - height)


def drawn_since(box: int, moment: float) -> int:
    """How many pictures were finished after ``moment`` (seconds since 1970)."""
    return sum(end > moment for end in _explored[box].ends)
