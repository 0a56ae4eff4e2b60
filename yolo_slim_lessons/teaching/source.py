"""Read the package from a notebook: ``slim.show(slim.fit)``. Leaves out: whole modules; open those in the editor."""

from __future__ import annotations

import inspect

from IPython.display import Code


def show(thing) -> Code:
    """The source of a function or class as highlighted text, docstring included.

    Raises:
        TypeError: ``thing`` is no function or class, or was not written in Python.
    """
    try:
        return Code(inspect.getsource(thing), language="python")
    except TypeError as error:
        raise TypeError(
            f"thing is a {type(thing).__name__}: expected a function or class written in Python, such as slim.fit"
        ) from error
