"""Choose the range that a grid covers: from all numbers, from most of them, or by what is lost.

A wide range rounds coarsely, a narrow one cuts off large numbers. Four ways to decide: ``"minmax"`` cuts nothing,
``"percentile"`` the outermost share, ``"mse"`` as much as makes the squared error least, ``"kl"`` as much as keeps the
histogram's information. Used in lesson 05. Leaves out: where the numbers come from (``observation``), and the grids
(``grids``): any function that makes one from a low and a high end will do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from yolo_slim_lessons.arguments import check_choice
from yolo_slim_lessons.threads import one_thread

RANGES = ("mse", "minmax", "percentile", "kl")
BINS = 4096
FRACTIONS = torch.linspace(1, 0.02, 50).tolist()  # of the full range, tried by "mse"
KL_CANDIDATES = 128

MakeGrid = Callable[[torch.Tensor, torch.Tensor], object]


@dataclass(frozen=True)
class Histogram:
    """How often numbers occur, each counted at the nearest of evenly spaced points."""

    points: torch.Tensor  # float32, from the smallest number to the largest
    counts: torch.Tensor  # float64, as many

    @classmethod
    def of(cls, values: torch.Tensor, low: float | None = None, high: float | None = None, bins: int = BINS):
        """Count ``values``, a float tensor; ``low`` and ``high`` default to its extremes."""
        low = float(values.min()) if low is None else low
        high = float(values.max()) if high is None else high
        half = (high - low) / (bins - 1) / 2
        if high > low:
            counts = torch.histc(values, bins, low - half, high + half).double()
        else:  # all are the same
            counts = torch.zeros(bins, dtype=torch.float64, device=values.device)
            counts[0] = values.numel()
        return cls(torch.linspace(low, high, bins, device=values.device), counts)


def choose_grid(
    values: torch.Tensor | Histogram, make_grid: MakeGrid, ranges: str = "mse", percentile: float = 99.99
) -> object:
    """The grid whose range suits ``values``.

    Args:
        values: n numbers, C×n for a range per row (per channel), or a ``Histogram``.
        make_grid: called with the low and the high end, tensors () or C; what it returns has ``snap`` and
            ``symmetric``. ``functools.partial(IntegerGrid.from_range, bits=8)``, for one.
        ranges: ``"minmax"`` covers all. ``"percentile"`` leaves out ``100 - percentile`` percent at either end.
            ``"mse"`` minimizes the mean squared error of rounding and clipping, by search. ``"kl"`` chooses the upper
            end (both, of a symmetric grid) so that the histogram on the grid diverges least from the true one
            (Migacz, 2017); one range only.
        percentile: above 50, at most 100.

    Returns:
        What ``make_grid`` made of the best range.

    Raises:
        ValueError: an unknown choice, no number, NaN or infinity, or rows with ``"kl"``.
    """
    check_choice("ranges", ranges, RANGES)
    if not 50 < percentile <= 100:
        raise ValueError(f"percentile={percentile!r}: expected 50 < percentile <= 100")
    points, counts = (values.points, values.counts) if isinstance(values, Histogram) else (values, None)
    if points.numel() == 0:
        raise ValueError("values is empty: expected at least one number")
    if not points.isfinite().all():
        raise ValueError("values: expected finite numbers, found NaN or infinity")
    if ranges == "kl" and points.dim() > 1:
        raise ValueError(f"ranges='kl' finds one range for all, but values has {len(points)} rows")
    with one_thread(points.numel()):
        if ranges == "percentile":
            return make_grid(*_quantiles(points, counts, percentile))
        low, high = points.amin(-1).clamp(max=0), points.amax(-1).clamp(min=0)
        if ranges == "mse":
            return _least_squares(points, counts, make_grid, low, high)
        if ranges == "kl":
            histogram = values if isinstance(values, Histogram) else Histogram.of(values)
            return _least_divergence(histogram, make_grid, low, high)
        return make_grid(low, high)


def _quantiles(points, counts, percentile) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest numbers of ``points`` that 100 - ``percentile``, and ``percentile``, percent do not exceed."""
    counts = torch.ones(points.shape[-1], dtype=torch.float64, device=points.device) if counts is None else counts
    cumulative = counts.cumsum(0)
    shares = torch.tensor([100 - percentile, percentile], dtype=torch.float64, device=points.device) / 100
    # The decimals of a percentage are no sums of powers of two: 1 % of 3000 must not become a little more than 30.
    low, high = torch.searchsorted(cumulative, shares * cumulative[-1] * (1 - 1e-12)).tolist()
    ordered = points.sort(-1).values
    return ordered[..., low], ordered[..., high]


def _least_squares(points, counts, make_grid, low, high):
    """Try fractions of the full range: both ends together, then, unless symmetric, the high and the low end alone."""

    def errors(low, high):
        """For each grid from one of ``low`` to one of ``high``."""
        rows = points.expand(*low.shape, points.shape[-1])
        squares = make_grid(low, high).snap(rows).sub_(rows).square_()
        return (squares if counts is None else squares * counts).sum(-1)

    best = [low, high, errors(low, high)]
    steps = [(True, True)] if make_grid(low, high).symmetric else [(True, True), (False, True), (True, False)] * 2
    for move_low, move_high in steps:
        fixed_low, fixed_high, _ = best
        tries = [
            (low * fraction if move_low else fixed_low, high * fraction if move_high else fixed_high)
            for fraction in FRACTIONS
        ]
        if points.dim() == 1:  # few numbers: all grids at once
            ends = [torch.stack(sides) for sides in zip(*tries, strict=True)]
            found = zip(tries, errors(*ends), strict=True)
        else:
            found = ((ends, errors(*ends)) for ends in tries)
        for ends, error in found:
            better = error < best[2]
            best = [torch.where(better, new, old) for new, old in zip((*ends, error), best, strict=True)]
    return make_grid(best[0], best[1])


def _least_divergence(histogram: Histogram, make_grid, low, high):
    """Cut off ever more of the histogram, and compare it each time with itself on as few levels as the grid has."""
    grid = make_grid(low, high)
    points, counts = histogram.points.cpu().numpy(), histogram.counts.cpu().numpy()
    if grid.symmetric:  # magnitudes, on the half of the levels that is for positive numbers
        reach = float(torch.maximum(-low, high))
        places = np.round(np.abs(points) / (reach or 1) * (len(points) - 1)).astype(int)
        counts, levels, start = np.bincount(places, counts, len(points)), grid.highest + 1, 0.0
    else:
        reach, levels, start = float(points[-1]), grid.highest - grid.lowest + 1, float(points[0])
    if levels >= len(counts):  # the grid is finer than the histogram: nothing to tell apart
        return grid
    best, kept = np.inf, len(counts)
    for stop in np.unique(np.linspace(levels, len(counts), KL_CANDIDATES).round().astype(int)):
        divergence = kl_divergence(counts, stop, levels)
        if divergence < best:
            best, kept = divergence, stop
    cut = torch.tensor(start + (reach - start) * (kept - 1) / (len(counts) - 1)).to(low)
    return make_grid(-cut if grid.symmetric else low, cut)


def kl_divergence(counts: np.ndarray, stop: int, levels: int) -> float:
    """Information lost, in nats, if only the first ``stop`` bins are kept and merged to ``levels`` levels.

    The reference counts everything beyond in its last bin; the candidate spreads each level's count evenly over those
    of its bins that are not empty (Migacz, 2017: 8-bit Inference with TensorRT). Infinite where the candidate has
    nothing although the reference has something.
    """
    reference = counts[:stop].astype(np.float64)
    reference[-1] += counts[stop:].sum()
    filled = reference > 0
    starts = np.arange(levels) * stop // levels
    level_of_bin = np.repeat(np.arange(levels), np.diff(np.append(starts, stop)))
    count, bins = np.bincount(level_of_bin, counts[:stop]), np.bincount(level_of_bin, filled)
    candidate = np.where(filled, (count / np.maximum(bins, 1))[level_of_bin], 0)
    if not candidate.any() or (candidate[filled] == 0).any():
        return np.inf
    p, q = reference[filled] / reference.sum(), candidate[filled] / candidate.sum()
    return float((p * np.log(p / q)).sum())
