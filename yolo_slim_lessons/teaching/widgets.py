"""Sliders that answer: a function, its controls, and a picture that follows them.

Leaves out: what is drawn; that is the function's business.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import html
from collections.abc import Callable, Iterator

import ipywidgets
from matplotlib.figure import Figure

from yolo_slim_lessons.teaching.plots import png

DELAY = 0.05  # seconds of rest before an answer is computed, so that a quick drag computes its last value only


def explore(draw: Callable[..., tuple[Figure | str, str]], **controls: ipywidgets.ValueWidget) -> ipywidgets.VBox:
    """Show ``draw(**values of the controls)`` and draw it again whenever a control changes.

    Args:
        draw: returns (figure or HTML text, one sentence that tells the result to readers who see no picture).
        controls: ipywidgets, named as the arguments of ``draw``. Their descriptions are their labels. All work by
            keyboard: Tab reaches them, arrow keys move sliders, and Space opens a drop-down, in which arrow keys
            choose and Enter takes. (While it is closed, JupyterLab takes arrow keys for itself.)

    Returns:
        A box with the controls, a status line and the answer. While it computes, the status says so.
    """
    status, answer = ipywidgets.HTML(), ipywidgets.HTML()
    waiting: asyncio.TimerHandle | None = None

    def update() -> None:
        values = {name: control.value for name, control in controls.items()}
        try:
            with _only_new_garbage():
                shown, sentence = _answer(draw, values)
        except Exception as error:  # a slider must show its error; an exception in a callback goes unseen
            status.value = f"<b>{type(error).__name__}</b>: {html.escape(str(error))}"
            answer.value = ""  # the picture of other values would be taken for theirs
            return
        answer.value = shown
        status.value = html.escape(sentence)  # second: until the picture is there, the status says "working"

    def changed(_) -> None:
        nonlocal waiting
        status.value = "<i>working …</i>"
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # outside a notebook nothing runs later
            update()
            return
        if waiting:
            waiting.cancel()
        waiting = loop.call_later(DELAY, update)

    for control in controls.values():
        control.style.description_width = "initial"
        control.layout.width = "min(40em, 95%)"
        control.observe(changed, names="value")
    update()
    return ipywidgets.VBox([*controls.values(), status, answer])


def _answer(draw: Callable[..., tuple[Figure | str, str]], values: dict[str, object]) -> tuple[str, str]:
    """(the picture as HTML, its sentence); the figure itself is garbage afterwards."""
    picture, sentence = draw(**values)
    return _as_html(picture, sentence), sentence


@contextlib.contextmanager
def _only_new_garbage() -> Iterator[None]:
    """Within, garbage is looked for only among objects that were made within, and what is found goes at the end.

    Figures leave cycles behind. To look for them through all that a lesson has loaded takes some tenths of a second,
    now and then, in the middle of a drag.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()


def _as_html(picture: Figure | str, sentence: str) -> str:
    if isinstance(picture, str):
        return picture
    data = base64.b64encode(png(picture, trimmed=False)).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(sentence, quote=True)}" style="max-width: 100%">'
