"""The three answers an exercise gives: not tried, wrong and why, right."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from yolo_slim_lessons.teaching.exercises.solved import note_solved

PERCENTAGE = "give a fraction between 0 and 1, not a percentage"


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


class UnreadableAnswerError(Exception):
    """The answer is of another kind than was asked for; the message, for the learner, says which."""


def as_number(answer) -> float:
    """``answer`` as a float: a Python or NumPy number, or a tensor or array that holds one.

    Raises:
        UnreadableAnswerError: it is none, or not finite.
    """
    shown = getattr(answer, "__name__", None) or repr(answer)
    try:
        if isinstance(answer, bool | str):
            raise TypeError
        number = float(answer.item() if hasattr(answer, "item") else answer)
    except (TypeError, ValueError, RuntimeError):
        raise UnreadableAnswerError(f"{shown} is not a number; expected one, such as 0.25 or 1200") from None
    if not math.isfinite(number):
        raise UnreadableAnswerError(f"{number} came out: look for a division by zero, or a logarithm of zero")
    return number


def judge_number(
    answer,
    right: float,
    mistakes: Mapping[float, str],
    praise: str,
    hint: str,
    *,
    rel_tol: float = 0.005,
    abs_tol: float = 0.0,
) -> Feedback:
    """Compare a number with the right one, then with those that typical mistakes lead to.

    Args:
        answer: the learner's, of any kind.
        right: the number that is asked for.
        mistakes: number → what to say of the mistake that leads to it.
        praise: what a right answer hears.
        hint: what an answer hears that comes from no known mistake.
        rel_tol: how near is near enough, as for ``math.isclose``.
        abs_tol: likewise.

    Raises:
        UnreadableAnswerError: ``answer`` is no number.
    """
    number = as_number(answer)
    if math.isclose(number, right, rel_tol=rel_tol, abs_tol=abs_tol):
        return Feedback(True, praise)
    return Feedback(False, name_mistake(number, mistakes, rel_tol=rel_tol, abs_tol=abs_tol) or hint)


def name_mistake(
    number: float, mistakes: Mapping[float, str], *, rel_tol: float = 0.005, abs_tol: float = 1e-9
) -> str | None:
    """What to say of the mistake that leads nearest to ``number``; ``None`` if none leads near it."""
    nearest = min(mistakes, key=lambda value: abs(number - value))
    return mistakes[nearest] if math.isclose(number, nearest, rel_tol=rel_tol, abs_tol=abs_tol) else None


def check(function: Callable[..., Feedback]) -> Callable[..., Feedback]:
    """Decorate a check: ``None`` or ``...`` means not tried yet, and an error becomes feedback, never a traceback.

    An exercise that was solved is noted for ``show_progress``.
    """

    @functools.wraps(function)
    def checked(answer) -> Feedback:
        if answer is None or answer is ...:
            return Feedback(False, "not tried yet: replace the placeholder and run the cell again")
        try:
            feedback = function(answer)
        except UnreadableAnswerError as told:
            return Feedback(False, str(told))
        except Exception as error:
            if isinstance(error, TypeError) and "is not callable" in str(error) and not callable(answer):
                return Feedback(False, "expected a function itself: its name alone, without brackets behind it")
            return Feedback(False, f"the answer could not be checked ({type(error).__name__}: {error})")
        if feedback.right:
            note_solved(function.__module__.rpartition(".")[2], function.__name__)
        return feedback

    return checked
