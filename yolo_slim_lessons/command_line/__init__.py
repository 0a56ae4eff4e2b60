"""The command line: ``python -m yolo_slim_lessons compress``, ``measure`` and ``export``, for models of one's own.

``arguments`` reads what was typed; ``compress``, ``measure`` and ``export`` do it, by the functions that the lessons
call; ``formats`` is the table of files that can be written. Leaves out: whatever takes Python to say, such as giving a
model a head for other classes.
"""

import contextlib
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence

from yolo_slim_lessons.command_line.arguments import PROGRAM, read_arguments

DONE, NOT_MET, WRONG_INPUT, STOPPED = 0, 1, 2, 130  # exit statuses; the last two as of argparse and of a shell
SECONDS_BETWEEN = "10"  # two states of a progress bar that goes into a file


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what ``arguments`` say, or else what was typed.

    What the functions object to is printed without a traceback. After Ctrl-C a line says how to go on.

    Returns:
        The exit status: 0; 1 if all was written and the budget is not met; 2 for wrong input; 130 after Ctrl-C.
    """
    typed = sys.argv[1:] if arguments is None else list(arguments)
    settings = read_arguments(typed)
    try:
        with _warnings_as_notes():
            is_met = _run(settings)
    except KeyboardInterrupt:
        again = f"{PROGRAM} {shlex.join(typed)}"
        kept = "What is finished is kept; go on with" if settings.command == "compress" else "Start again with"
        print(f"\nStopped. {kept}: {again}", file=sys.stderr)
        return STOPPED
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    return DONE if is_met else NOT_MET


def _run(settings) -> bool:
    if not sys.stderr.isatty():  # read by tqdm when it is imported
        os.environ.setdefault("TQDM_MININTERVAL", SECONDS_BETWEEN)
    # Here, for PyTorch takes seconds to load, and --help should not.
    from yolo_slim_lessons.command_line import compress, export, measure

    return {"compress": compress, "measure": measure, "export": export}[settings.command].run(settings)


@contextlib.contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """Warnings of this package are for the user: they are shown as sentences, without the line of code."""
    with warnings.catch_warnings():
        as_before = warnings.showwarning

        def show(message, category, *place, **options) -> None:
            if category.__module__.startswith(__package__.partition(".")[0]):
                print(f"note: {message}", file=sys.stderr)
            else:
                as_before(message, category, *place, **options)

        warnings.showwarning = show
        yield
