"""Checks of arguments that several rooms make: an error names the argument, its value and what is allowed.

Leaves out: what only one function asks of its arguments, which it checks itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from numbers import Integral, Real


def check_rate(name: str, rate: float) -> None:
    """Raise unless ``rate``, the value of argument ``name``, is a number with 0 ≤ rate < 1."""
    if isinstance(rate, bool) or not isinstance(rate, Real):
        raise TypeError(f"{name}={rate!r}: expected a number, 0 <= rate < 1")
    if not 0 <= rate < 1:  # false for NaN, too
        raise ValueError(f"{name}={rate!r}: expected 0 <= rate < 1, such as 0.5 for half")


def check_positive_integer(name: str, value: int) -> None:
    """Raise ``ValueError`` unless ``value``, that of argument ``name``, is 1, 2, 3 or more."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}={value!r}: expected a positive integer")


def check_choice(name: str, value: str, allowed: Collection[str]) -> None:
    """Raise ``ValueError`` unless ``value``, that of argument ``name``, is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: expected one of {allowed}")


def check_layer_names(argument: str, names: Collection[str], known: Collection[str]) -> None:
    """Raise ``ValueError`` unless ``argument`` names layers, and only such as are among ``known``."""
    if not names:
        raise ValueError(f"{argument} names no layer: expected some of {known}")
    for name in names:
        if name not in known:
            raise ValueError(f"{argument} names {name!r}, which is no layer with weights: expected some of {known}")


def value_of_each_layer(
    argument: str, value: object, names: Collection[str], check: Callable[[str, object], None]
) -> dict[str, object]:
    """Layer name → what a mapping ``value`` says, or else ``value`` for all of ``names``; ``check`` sees each value."""
    if not isinstance(value, Mapping):
        check(argument, value)
        return dict.fromkeys(names, value)
    check_layer_names(argument, value, names)
    for name, each in value.items():
        check(f"{argument}[{name!r}]", each)
    return dict(value)
