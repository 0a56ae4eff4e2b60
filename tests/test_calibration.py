"""Ranges against numpy, against brute force over every candidate, and against a divergence written out in loops."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from yolo_slim_lessons.quantization import IntegerGrid
from yolo_slim_lessons.quantization.calibration import (
    FRACTIONS,
    Histogram,
    choose_grid,
    kl_divergence,
)
from yolo_slim_lessons.quantization.observation import image_batches, observe_inputs


def grids(bits=8, **options):
    return functools.partial(IntegerGrid.from_range, bits=bits, **options)


@pytest.fixture
def numbers():
    """Most near zero, some far away, more to one side: like activations."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3000, generator=generator) ** 3 + 0.3


def error(grid, values):
    return ((grid.snap(values) - values) ** 2).sum(-1)


@pytest.mark.parametrize("symmetric", [False, True])
def test_minmax_covers_everything_and_hardly_more(numbers, symmetric):
    grid = choose_grid(numbers, grids(symmetric=symmetric), "minmax")
    low, high = numbers.min(), numbers.max()
    if symmetric:
        high, low = max(high, -low), -max(high, -low)
    step = float(grid.scale)
    assert step * 255 == pytest.approx(float(high - low), rel=0.013)  # 2^-7 of rounding up, and one of 256 levels
    assert grid.range[0] <= low + 0.5 * step
    assert grid.range[1] >= high - 0.5 * step


def test_minmax_per_row_is_that_of_each_row(numbers):
    rows = numbers.view(3, 1000) * torch.tensor([[1.0], [10.0], [0.1]])
    together = choose_grid(rows, grids(), "minmax")
    for index, row in enumerate(rows):
        alone = choose_grid(row, grids(), "minmax")
        assert together.scale[index] == alone.scale
        assert together.zero_point[index] == alone.zero_point


@pytest.mark.parametrize("percentile", [90, 99, 99.9, 100])
def test_percentile_is_numpys(numbers, percentile):
    numbers, found = numbers[:2999], []  # a prime: no percentage of it is whole, where numpy's own rounding decides

    def make_grid(low, high):
        found.extend([low, high])
        return grids()(low, high)

    choose_grid(numbers, make_grid, "percentile", percentile=percentile)
    expected = np.percentile(numbers.numpy(), [100 - percentile, percentile], method="inverted_cdf")
    np.testing.assert_array_equal(np.array(found), expected)
    # the same from a histogram, as far as that resolves
    choose_grid(Histogram.of(numbers), make_grid, "percentile", percentile=percentile)
    distance = float(numbers.max() - numbers.min()) / 4095
    np.testing.assert_allclose(found[2:], expected, atol=0.51 * distance)


def test_percentile_by_hand():
    ends = []
    choose_grid(torch.arange(1.0, 1001), lambda *found: ends.extend(found), "percentile", percentile=99)
    assert ends == [10, 990]  # 1 % do not exceed 10, 99 % do not exceed 990


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_squared_error_of_a_symmetric_grid_is_the_least_of_all_candidates(numbers, bits):
    make_grid = grids(bits, symmetric=True)
    largest = numbers.abs().max()
    candidates = [make_grid(-largest * fraction, largest * fraction) for fraction in FRACTIONS]
    chosen = choose_grid(numbers, make_grid, "mse")
    assert error(chosen, numbers) == min(error(grid, numbers) for grid in candidates)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_squared_error_of_an_affine_grid_is_close_to_the_least_of_all_pairs(numbers, bits):
    make_grid, low, high = grids(bits), numbers.min(), numbers.max()
    pairs = itertools.product(FRACTIONS, FRACTIONS)
    least = min(float(error(make_grid(low * a, high * b), numbers)) for a, b in pairs)
    assert error(choose_grid(numbers, make_grid, "mse"), numbers) <= 1.05 * least
    # the histogram's points stand for numbers up to half a bin away
    from_histogram = choose_grid(Histogram.of(numbers), make_grid, "mse")
    assert error(from_histogram, numbers) <= 1.1 * least


def test_squared_error_per_row_is_that_of_each_row(numbers):
    rows = numbers.view(3, 1000) * torch.tensor([[1.0], [10.0], [0.1]])
    for options in ({"symmetric": True}, {}):
        together = choose_grid(rows, grids(4, **options), "mse")
        for index, row in enumerate(rows):
            assert together.scale[index] == choose_grid(row, grids(4, **options), "mse").scale


def divergence_in_loops(counts, stop, levels):
    """The method's definition, one bin at a time."""
    reference = [float(count) for count in counts[:stop]]
    reference[-1] += float(sum(counts[stop:]))
    candidate = [0.0] * stop
    for level in range(levels):
        bins = range(level * stop // levels, (level + 1) * stop // levels)
        filled = [i for i in bins if reference[i] > 0]
        for i in filled:
            candidate[i] = sum(counts[j] for j in bins) / len(filled)
    p_total, q_total = sum(reference), sum(candidate)
    total = 0.0
    for p, q in zip(reference, candidate, strict=True):
        if p > 0:
            if q == 0:
                return math.inf
            total += p / p_total * math.log((p / p_total) / (q / q_total))
    return total


@given(st.lists(st.integers(0, 20), min_size=12, max_size=40), st.integers(4, 8), st.data())
@settings(max_examples=200)
def test_divergence_is_that_of_the_definition(counts, levels, draw):
    assume(any(counts))
    stop = draw.draw(st.integers(levels, len(counts)))
    ours = kl_divergence(np.array(counts, dtype=float), stop, levels)
    assert ours == pytest.approx(divergence_in_loops(counts, stop, levels), abs=1e-12)


def test_divergence_by_hand():
    # Four bins on two levels, none cut off: (3, 1) becomes (2, 2), (2, 2) stays. Sum of p ln(p / q) with p = 3/8, …
    expected = 3 / 8 * math.log(3 / 2) + 1 / 8 * math.log(1 / 2)
    assert kl_divergence(np.array([3.0, 1, 2, 2]), 4, 2) == pytest.approx(expected)


@pytest.mark.parametrize("symmetric", [False, True])
def test_divergence_cuts_off_a_far_outlier_and_takes_the_least(numbers, symmetric):
    values = torch.cat([numbers.abs().clamp(max=2), torch.tensor([20.0])])
    grid = choose_grid(values, grids(4, symmetric=symmetric), "kl")
    assert 0.3 < grid.range[1] < 6
    # Brute force over every possible cut of the same histogram finds nothing notably better.
    counts, levels = Histogram.of(values).counts.numpy(), 8 if symmetric else 16
    if symmetric:  # all numbers are positive here, so magnitudes differ by where the first bin starts
        places = np.round(Histogram.of(values).points.numpy() / 20 * 4095).astype(int)
        counts = np.bincount(places, counts, 4096)
    divergences = [kl_divergence(counts, stop, levels) for stop in range(levels, 4097)]
    kept = round(float(grid.range[1]) / 20 * 4096)
    assert min(divergences[max(0, kept - 64 - levels) : kept + 64]) <= 1.1 * min(divergences)


def test_every_method_bears_constants_and_one_sided_numbers():
    for ranges in ("minmax", "percentile", "mse", "kl"):
        for values in (torch.zeros(100), torch.full((100,), 3.0), torch.full((100,), -3.0)):
            for symmetric in (False, True):
                grid = choose_grid(values, grids(8, symmetric=symmetric), ranges)
                torch.testing.assert_close(grid.snap(values), values, atol=0.02, rtol=0)


def test_histogram_counts_like_numpy(numbers):
    histogram = Histogram.of(numbers, bins=64)
    half = float(numbers.max() - numbers.min()) / 63 / 2
    expected, _ = np.histogram(numbers.numpy(), 64, (float(numbers.min()) - half, float(numbers.max()) + half))
    assert abs(histogram.counts.numpy() - expected).sum() <= 2  # a number on the border of two bins
    assert histogram.counts.sum() == len(numbers)
    assert histogram.points[0] == numbers.min()
    assert histogram.points[-1] == numbers.max()


def test_observed_inputs_are_those_of_the_layers(data):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(inplace=True), nn.Conv2d(4, 2, 3)).eval()
    images = data.train.take(300)
    with torch.inference_mode():
        expected = model[1](model[0](torch.cat(list(image_batches(images)))))
    assert observe_inputs(model, ["0"], images, histograms=False) == {"0": (0.0, 1.0)}
    histogram = observe_inputs(model, ["2"], images)["2"]
    assert histogram.counts.sum() == expected.numel()
    assert histogram.points[0].item() == pytest.approx(expected.min().item(), abs=1e-6)
    mean = (histogram.points * histogram.counts).sum() / histogram.counts.sum()
    assert mean.item() == pytest.approx(expected.mean().item(), abs=1e-4)
    # uint8 and float images are the same images, and no hook is left behind
    floats = observe_inputs(model, ["2"], images.images.float() / 255)["2"]
    assert torch.equal(floats.counts, histogram.counts)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"ranges": "entropy"}, r"ranges='entropy': expected one of \('mse', 'minmax'"),
        ({"ranges": "percentile", "percentile": 0.99}, "percentile=0.99"),
        ({"ranges": "percentile", "percentile": 101}, "percentile=101"),
        ({"values": torch.empty(0)}, "values is empty"),
        ({"values": torch.tensor([1.0, float("nan")])}, "NaN or infinity"),
        ({"values": torch.tensor([1.0, float("inf")])}, "NaN or infinity"),
        ({"values": torch.ones(2, 5), "ranges": "kl"}, "values has 2 rows"),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        choose_grid(**({"values": torch.ones(5), "make_grid": grids()} | arguments))
