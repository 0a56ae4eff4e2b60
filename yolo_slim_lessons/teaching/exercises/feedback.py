"""The three answers an exercise gives: not tried, wrong and why, right."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Feedback:
    """What a check says; renders as one line in a notebook.

    Attributes:
        right: whether the exercise is solved.
        message: the reason, in plain words.
    """

    right: bool
    message: str

    def __repr__(self) -> str:
        return ("✔ right: " if self.right else "✘ ") + self.message


def check(function: Callable[..., Feedback]) -> Callable[..., Feedback]:
    """Decorate a check: ``None`` or ``...`` means not tried yet, and an error becomes feedback, never a traceback."""

    @functools.wraps(function)
    def checked(answer) -> Feedback:
        if answer is None or answer is ...:
            return Feedback(False, "not tried yet: replace the placeholder and run the cell again")
        try:
            return function(answer)
        except Exception as error:
            return Feedback(False, f"the answer could not be checked ({type(error).__name__}: {error})")

    return checked
