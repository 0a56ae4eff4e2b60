"""Which results no other one beats, when more than one number counts (Pareto, 1896).

Used in lesson 08. Leaves out: which of them to take; that is a matter of what it is for.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np


def pareto_front(
    records: Sequence[Mapping[str, object]],
    *,
    maximize: Iterable[str] = ("top1",),
    minimize: Iterable[str] = ("bytes",),
) -> list[Mapping[str, object]]:
    """The records that no other one beats, in the order they came in.

    One record beats another if it is as good in every number that counts, and better in at least one. Of records that
    are equal in all of them all stay, or all go.

    Args:
        records: what ``sweep`` returns, for one.
        maximize: entries of a record of which more is better.
        minimize: entries of which less is better, such as ``("bytes", "latency_ms")``.

    Raises:
        ValueError: nothing counts, an entry counts both ways, or a number is NaN.
        KeyError: a record lacks an entry; the number of the record is named.

    Example:
        >>> results = [{"top1": 0.9, "bytes": 50}, {"top1": 0.8, "bytes": 60}, {"top1": 0.7, "bytes": 20}]
        >>> [record["bytes"] for record in pareto_front(results)]
        [50, 20]
    """
    maximize, minimize = tuple(maximize), tuple(minimize)
    names = maximize + minimize
    if not names or len(set(names)) < len(names):
        raise ValueError(f"maximize={maximize!r}, minimize={minimize!r}: expected at least one entry, and each once")
    for number, record in enumerate(records):
        if missing := [name for name in names if name not in record]:
            raise KeyError(f"record {number} has no {missing[0]!r}: expected one among {sorted(map(str, record))}")
    costs = np.array([[record[name] for name in names] for record in records], float).reshape(-1, len(names))
    if np.isnan(costs).any():
        number, column = np.argwhere(np.isnan(costs))[0]
        raise ValueError(f"record {number} has {names[column]}=nan: expected a number that can be compared")
    costs[:, : len(maximize)] *= -1
    beaten = [((costs <= cost).all(1) & (costs < cost).any(1)).any() for cost in costs]
    return [record for record, is_beaten in zip(records, beaten, strict=True) if not is_beaten]
