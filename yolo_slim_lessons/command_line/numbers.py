"""What is typed for a number: bytes with units, points, numbers above 0, whole numbers.

Each function takes a text and returns a number; argparse prints what it objects to. Leaves out: all that is no number.
"""

import argparse
import math
import re

UNITS = {"": 1, "B": 1, "kB": 1000, "KB": 1000, "MB": 1000**2, "KiB": 1024, "MiB": 1024**2}
LARGEST_DROP = 100  # points


def file_size(text: str) -> int:
    """A number of bytes, with or without a unit.

    Example:
        >>> file_size("1.5MB"), file_size("64 KiB"), file_size("100000")
        (1500000, 65536, 100000)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-zA-Z]*)", text.strip())
    if match is None or match[2] not in UNITS:
        units = ", ".join(filter(None, UNITS))
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size: expected bytes such as 100000, 100kB or 1.5MB; units are {units}"
        )
    size = round(float(match[1]) * UNITS[match[2]])
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is less than a byte: expected such as 100kB")
    return size


def number_above_0(text: str) -> float:
    """A number above 0."""
    value = _float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0")
    return value


def points(text: str) -> float:
    """Points of accuracy, such as 0.5."""
    value = _float(text)
    if not 0 <= value < LARGEST_DROP:
        raise argparse.ArgumentTypeError(f"{text!r}: expected points from 0 to less than {LARGEST_DROP}, such as 0.5")
    return value


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def whole_number(text: str) -> int:
    """0, 1, 2, 3 or more."""
    if not text.isascii() or not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 0 or more")
    return int(text)
