"""The checks of lesson 08 know right from wrong, and its drawings show what they are given."""

import math

import numpy as np
import pytest
import torch
from feedback_checks import assert_wrong
from matplotlib.colors import to_hex

from yolo_slim_lessons.packing import entropy_bits
from yolo_slim_lessons.teaching import exercises, plots
from yolo_slim_lessons.teaching.code_pictures import draw_divisions, draw_walk
from yolo_slim_lessons.teaching.size_pictures import draw_areas, draw_waterfall

# Exercise 1


def test_the_combined_factor_is_bytes_before_by_bytes_after():
    assert exercises.check_combined_factor(4_000_000 / (200_000 * 1.5 / 8 + 2_500)).right
    assert exercises.check_combined_factor(100).right


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (40_000, "the file in bytes"),
        (0.01, "turn it round"),
        (5 * 32 / 1.5, "tables are missing"),
        (4_000_000 / 77_500, "full width of 3 bits; the code"),
        (5 * 32 / 3, "without what is stored besides"),
        (32 / 1.5, "four fifths"),
        (4_000_000 / (187_500 + 2_500), "all weights were counted"),
        (4_000_000 / (150_000 + 2_500), "what is *left*"),
        (4_000_000 / (300_000 + 2_500), "eight bits are a byte"),
        (5 * 32 / 3 * 32 / 1.5, "counted twice"),
        (50, "FP16"),
        (5 + 32 / 3 + 3 / 1.5, "do not add up"),
        (7, "bytes before, divided by"),
        ("100", "not a number"),
        (32_000_000 / 40_000, "an FP32 weight has 4 bytes"),
        (4_000_000 / (40_000 * 1.5 / 8 + 2_500), "no square here"),
        (..., "not tried"),
    ],
)
def test_combined_factor_mistakes_are_named(answer, words):
    assert_wrong(exercises.check_combined_factor(answer), words)


# Exercise 2

WEIGHTS = [0] * 896 + [1] * 64 + [-1] * 64
ENTROPY = entropy_bits(WEIGHTS)


def test_the_bits_of_three_codes():
    assert exercises.check_code_bits((2048, 896 * 1 + 64 * 2 + 64 * 2, ENTROPY)).right
    assert exercises.check_code_bits([2048, 1152, 685]).right
    assert exercises.check_code_bits(np.array([2048, 1152, ENTROPY])).right
    assert exercises.check_code_bits(torch.tensor([2048, 1152, ENTROPY])).right


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((ENTROPY, 1152, 2048), "the other way round"),
        ((2, 1.125, ENTROPY / 1024), "for one weight"),
        ((256, 144, ENTROPY / 8), "those are bytes"),
        ((1024, 1152, ENTROPY), "fixed width: one bit tells two"),
        ((1024 * math.log2(3), 1152, ENTROPY), "fixed width: a fixed width is a whole number"),
        ((3072, 1152, ENTROPY), "fixed width: three bits"),
        ((2048, 1024, ENTROPY), "Huffman: the zero has"),
        ((2048, 2048, ENTROPY), "Huffman: the words have different"),
        ((2048, 1024 * 5 / 3, ENTROPY), "Huffman: the mean over the *weights*"),
        ((2048, ENTROPY, ENTROPY), "Huffman: that is the entropy"),
        ((2048, 1152, ENTROPY * math.log(2)), "entropy: in nats"),
        ((2048, 1152, 1152), "entropy: Huffman cannot go below"),
        ((2048, 1152, -1024 * math.log2(7 / 8)), "entropy: that would be if all"),
        ((2048, 1152, 1024 * (7 / 8 * math.log2(8 / 7) + 0.25)), "entropy: 1 and -1 are two"),
        ((2048, 1152, 1024 * (7 / 8 * math.log2(8 / 7) + 0.375)), "entropy: 1 and -1 have 1/16"),
        ((2048, 1152, -ENTROPY), "entropy: a sign is lost"),
        ((2048, 1152, 1024 * math.log2(3)), "entropy: that is for equal shares"),
        ((2048, 1152, 600), "entropy: 600 bits"),
        ((2048, 1152), "three numbers"),
        (2048, "three numbers"),
        ((2, 1152, ENTROPY), "fixed width: that is for one weight"),
        ((32 * 1024, 1152, ENTROPY), "fixed width: 32 bits are those of a float"),
        ((2048, 896 + 64 * 2 + 64 * 3, ENTROPY), "Huffman: with the words 0 and 10"),
        ((2048, 896 + 128 * 4, ENTROPY), "Huffman: four bits are"),
        ((2048, 1152, None), "None is not a number"),
        (("2048", 1152, ENTROPY), "not a number"),
        (..., "not tried"),
    ],
)
def test_code_bits_mistakes_are_named(answer, words):
    assert_wrong(exercises.check_code_bits(answer), words)


# Exercise 3


def beaten_by(beats):
    """A solution from a rule that says whether the first point beats the second."""
    return lambda points, number: not any(beats(other, points[number]) for other in points)


def is_better(other, point):
    return other[0] <= point[0] and other[1] >= point[1] and other != point


def with_arrays(points, number):
    sizes, top1s = np.array(points).T
    no_worse = (sizes <= sizes[number]) & (top1s >= top1s[number])
    better = (sizes < sizes[number]) | (top1s > top1s[number])
    return not (no_worse & better).any()


def by_place(points, number):
    size, top1 = points[number]
    others = [point for place, point in enumerate(points) if place != number]
    return not any(s <= size and t >= top1 for s, t in others)


def sorting(points, number):
    points.sort()
    return True


@pytest.mark.parametrize(
    "answer", [beaten_by(is_better), with_arrays, lambda p, n: torch.tensor(beaten_by(is_better)(p, n))]
)
def test_the_front_may_be_found_in_several_ways(answer):
    assert exercises.check_is_on_front(answer).right


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda points, number: not beaten_by(is_better)(points, number), "*not* beaten"),
        (beaten_by(lambda other, point: other[0] <= point[0] and other[1] >= point[1]), "beat itself"),
        (lambda points, number: True, "everybody is left"),
        (beaten_by(lambda other, point: is_better(point, other)), "turned round: fewer bytes"),
        (beaten_by(lambda o, p: o[0] <= p[0] and o[1] <= p[1] and o != p), "a higher top-1 is better"),
        (beaten_by(lambda o, p: o[0] >= p[0] and o[1] >= p[1] and o != p), "fewer bytes are better, more"),
        (beaten_by(lambda o, p: o[0] < p[0] and o[1] > p[1]), "equal in one number"),
        (lambda points, number: points[number][1] == max(top1 for _, top1 in points), "the most accurate one"),
        (lambda points, number: points[number][0] == min(size for size, _ in points), "the smallest one"),
        (lambda points, number: number in (0, 2, 3, 5), "(50, 0.85) is beaten by (50, 0.90)"),
        (lambda points, number: number in (2, 5), "nobody beats (50, 0.90)"),
        (by_place, "two equal points"),
        (lambda points, number: points, "expected True or False"),
        (lambda points, number: True if beaten_by(is_better)(points, number) else None, "returned None"),
        (sorting, "changed the list"),
        (lambda points: True, "could not be checked"),
        (..., "not tried"),
    ],
)
def test_front_mistakes_are_named(answer, words):
    assert_wrong(exercises.check_is_on_front(answer), words)


def test_better_in_one_number_alone_beats_nobody():
    answer = beaten_by(lambda other, point: other[0] < point[0] or other[1] > point[1])
    assert not exercises.check_is_on_front(answer).right


# Drawings


def boxes(axes):
    return [(patch.get_x(), patch.get_width()) for patch in axes.patches if hasattr(patch, "get_x")]


def test_a_division_draws_each_share_once_in_every_row():
    _, axes = plots.new_figure()
    draw_divisions(axes, {"shares": {0: 0.7, 1: 0.1, -1: 0.2}, "words": {0: 0.5, 1: 0.25, -1: 0.25}})
    np.testing.assert_allclose(boxes(axes)[:3], [(0, 0.2), (0.2, 0.7), (0.9, 0.1)])
    np.testing.assert_allclose(boxes(axes)[3:], [(0, 0.25), (0.25, 0.5), (0.75, 0.25)])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["shares", "words"]
    assert [text.get_text() for text in axes.texts] == ["-1", "0", "1"] * 2


def test_a_division_of_more_than_the_line_is_refused():
    _, axes = plots.new_figure()
    with pytest.raises(ValueError, match="add up to 1.2500: expected at most 1"):
        draw_divisions(axes, {"words": {0: 0.75, 1: 0.5}})


def test_a_walk_ends_in_the_interval_of_its_message():
    _, axes = plots.new_figure()
    draw_walk(axes, {0: 0.5, 1: 0.25, 2: 0.25}, [1, 0, 2])
    # 0.5 to 0.75, its first half to 0.625, of which the last quarter
    assert axes.texts[-1].get_text() == "from 0.593750 to 0.625000"
    with pytest.raises(ValueError, match="message has 7: expected symbols among"):
        draw_walk(axes, {0: 1.0}, [7])


def test_areas_are_weights_times_bits():
    _, axes = plots.new_figure()
    draw_areas(axes, {"whole": (2_000_000, 32), "small": (500_000, 3.2)})
    assert [(patch.get_width(), patch.get_height()) for patch in axes.patches] == [(2.0, 32), (0.5, 3.2)]
    labels = axes.get_legend_handles_labels()[1]
    assert labels == ["whole: 2,000,000 × 32 bits = 8,000 kB", "small: 500,000 × 3.2 bits = 200 kB"]


def test_a_waterfall_falls_in_green_and_rises_in_red():
    _, axes = plots.new_figure()
    draw_waterfall(axes, {"start": 1000, "pruned": 200, "trained": 400, "rounded": 40})
    spans = [(patch.get_y(), patch.get_y() + patch.get_height()) for patch in axes.patches]
    assert spans[1:] == [(200, 1000), (200, 400), (40, 400)]
    colors = [to_hex(patch.get_facecolor()).upper() for patch in axes.patches]
    assert colors == [plots.BLUE, plots.GREEN, plots.RED, plots.GREEN]
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["1,000", "÷ 5\n200", "× 2\n400", "÷ 10\n40"]
    assert axes.get_yscale() == "log"
    with pytest.raises(ValueError, match="expected bytes above 0"):
        draw_waterfall(axes, {"start": 0})
