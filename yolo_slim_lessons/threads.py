"""How many threads compute, and how they wait for each other: the one place for both.

PyTorch's threads wait for each other by spinning, for milliseconds. Where other programs want the cores as well, the
thread that is waited for does not run while the other one spins, and what takes 2 seconds takes 36. Three rules:

- Threads spin for some microseconds only, then sleep: enough for the next layer of a network on a machine that rests.
- Many small operations, such as the search for a grid, are done by one thread, which is as quick.
- A single image is timed with one thread where other programs keep the cores busy.

Leaves out: Windows and macOS, whose PyTorch comes with other libraries for threads; and ONNX Runtime's own threads,
which ``deployment.session`` tells to sleep.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, MutableMapping

SPINS = "3000"  # of GNU's OpenMP; its own default of 300,000 is for machines without other programs
SMALL = 2**20  # numbers; operations on fewer are done by one thread
BUSY = 0.5  # share of all cores that others use
FRESH = 0.05, 1.0  # seconds that a look at the processor's clock is worth comparing with

_seen: tuple[float, float, float] | None = None  # time, idle and own processor time at the last look


def sleep_soon(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let threads that wait sleep soon, unless the environment says otherwise; works before PyTorch is imported."""
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", SPINS)


@contextlib.contextmanager
def one_thread(numbers: int = 0) -> Iterator[None]:
    """Within, PyTorch computes with one thread, if there are only few ``numbers`` to compute with."""
    import torch

    before = torch.get_num_threads()
    if numbers < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def others_share() -> float:
    """The share of all cores, 0…1, that other programs have used since the last call, or while this one sleeps."""
    global _seen
    now = _look()
    if _seen is None or not FRESH[0] <= now[0] - _seen[0] <= FRESH[1]:
        _seen = now
        time.sleep(FRESH[0])
        now = _look()
    (start, idle, own), _seen = _seen, now
    whole = (now[0] - start) * (os.cpu_count() or 1)
    return min(max(1 - (now[1] - idle + now[2] - own) / whole, 0.0), 1.0)


def cores_are_busy() -> bool:
    """Whether other programs use more than half of the cores."""
    return others_share() > BUSY


def _look() -> tuple[float, float, float]:
    import psutil

    times = psutil.cpu_times()
    return time.monotonic(), times.idle + getattr(times, "iowait", 0.0), time.process_time()
