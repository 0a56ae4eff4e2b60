"""How long does it take: repeated timings, and two models timed in turns.

Used from lesson 02 on. Leaves out: every processor but the one it runs on.
"""

import time
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from torch import nn

from yolo_slim_lessons.models import as_network, copy_model, image_size_of, input_format
from yolo_slim_lessons.threads import cores_are_busy


@dataclass(frozen=True)
class Latency:
    """Repeated timings of one model in milliseconds a batch.

    Attributes:
        milliseconds: one number a run.
        batch_size: images a run.
        threads: of PyTorch, for a model on the processor; ``None`` for functions, such as one that runs an ONNX
            session, and for other devices.
    """

    milliseconds: np.ndarray
    batch_size: int
    threads: int | None = None

    @property
    def median(self) -> float:
        return float(np.median(self.milliseconds))

    @property
    def p95(self) -> float:
        """95 of 100 runs took at most this long."""
        return float(np.percentile(self.milliseconds, 95))

    def __repr__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}, " if self.threads else ""
        how = f"batch {self.batch_size}, {threads}{len(self.milliseconds)} runs"
        return f"{self.median:.2f} ms (p95 {self.p95:.2f} ms; {how})"


@dataclass(frozen=True)
class Comparison:
    """Two models timed in turns, so that whatever else the machine does falls on both alike.

    Attributes:
        first, second: their ``Latency``.
        ratio: median over the rounds of second's time by first's; below 1 the second is faster.
        spread: the middle half of the rounds' ratios (25th and 75th percentile).
    """

    first: Latency
    second: Latency
    ratio: float
    spread: tuple[float, float]

    def __repr__(self) -> str:
        low, high = self.spread
        return (
            f"first {self.first}\nsecond {self.second}\n"
            f"second / first: {self.ratio:.2f} (middle half of the rounds: {low:.2f} to {high:.2f})"
        )


def time_model(
    model,
    batch_size: int = 1,
    image_size: int | None = None,
    repeats: int = 50,
    warmup: int = 5,
    threads: int | None = None,
) -> Latency:
    """Time ``model`` on random images: ``warmup`` runs that do not count, then ``repeats`` that do.

    Args:
        model: a classifier, which is timed on its device, or anything that is called with float images N×3×H×W.
        batch_size: images per run.
        image_size: pixels a side; needed if ``model`` is not a classifier of this package.
        repeats: runs that count.
        warmup: runs before them.
        threads: for PyTorch; ``None`` leaves them as they are, but takes one where other programs keep the cores busy,
            since several would wait for each other. Sessions of other runtimes are told when they are made.

    Raises:
        ValueError: a number is too small, or ``image_size`` is needed.
    """
    return _time_in_turns([model], batch_size, image_size, repeats, warmup, threads)[0]


def compare(
    first,
    second,
    batch_size: int = 1,
    image_size: int | None = None,
    repeats: int = 50,
    warmup: int = 5,
    threads: int | None = None,
) -> Comparison:
    """Time two models in one run, in turns, on the same images; arguments as for ``time_model``."""
    latencies = _time_in_turns([first, second], batch_size, image_size, repeats, warmup, threads)
    ratios = latencies[1].milliseconds / latencies[0].milliseconds
    low, middle, high = np.percentile(ratios, [25, 50, 75]).tolist()
    return Comparison(*latencies, ratio=middle, spread=(low, high))


def _time_in_turns(models, batch_size, image_size, repeats, warmup, threads) -> list[Latency]:
    least = {"batch_size": 1, "image_size": 1, "repeats": 1, "warmup": 0, "threads": 1}
    for name, value in zip(least, (batch_size, image_size, repeats, warmup, threads), strict=True):
        if value is not None and (not isinstance(value, Integral) or value < least[name]):
            raise ValueError(f"{name}={value!r}: expected {least[name]} or more")
    models = [
        as_network(model, only_measured=True) if isinstance(model, torch.nn.Module) else model for model in models
    ]
    if image_size is None:
        if not isinstance(models[0], nn.Module):
            raise ValueError("image_size=None: a function does not say for which images it is; pass such as 64")
        image_size = image_size_of(models[0])
    # In training mode a forward pass changes BatchNorm's statistics: such a model is timed as a copy in eval mode.
    models = [copy_model(model).eval() if getattr(model, "training", False) else model for model in models]
    images = torch.rand(batch_size, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    inputs = [_as_read_by(model, images) for model in models]
    threads_before = torch.get_num_threads()
    threads = threads or (1 if cores_are_busy() else threads_before)
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            # Each turn is a row, each model a column.
            turns = [list(map(_nanoseconds, models, inputs)) for _ in range(warmup + repeats)]
    finally:
        torch.set_num_threads(threads_before)
    milliseconds = np.array(turns[warmup:]).T / 1e6
    latencies = []
    for model, read, row in zip(models, inputs, milliseconds, strict=True):
        on_processor = isinstance(model, nn.Module) and read.is_cpu
        latencies.append(Latency(row, batch_size, threads if on_processor else None))
    return latencies


def _nanoseconds(model, images: torch.Tensor) -> int:
    _finish(images)
    start = time.perf_counter_ns()
    model(images)
    _finish(images)
    return time.perf_counter_ns() - start


def _finish(images: torch.Tensor) -> None:
    """Wait for the device of ``images``: a graphics card takes orders long before it has carried them out."""
    if not images.is_cpu:
        torch.accelerator.synchronize(images.device)


def _as_read_by(model, images: torch.Tensor) -> torch.Tensor:
    if not isinstance(model, nn.Module):
        return images
    what = input_format(model)
    return images[:, : what["channels"]].to(what["device"], what["dtype"])
