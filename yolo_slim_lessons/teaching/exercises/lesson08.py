"""Checks of lesson 08: bytes of a combined recipe, bits of three codes, and which results none other beats."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from yolo_slim_lessons.search import pareto_front
from yolo_slim_lessons.teaching.exercises.feedback import Feedback, as_number, check, judge_number, name_mistake

__all__ = ["check_code_bits", "check_combined_factor", "check_is_on_front"]

WEIGHTS, LEFT, WIDTH, ENTROPY, REST = 1_000_000, 0.2, 3, 1.5, 2_500  # of the first exercise
COUNT, SHARES = 1024, {0: 7 / 8, 1: 1 / 16, -1: 1 / 16}  # of the second
Points = Sequence[tuple[float, float]]


@check
def check_combined_factor(answer: float) -> Feedback:
    """Of a million FP32 weights a fifth is left, at 1.5 bits, and 2,500 bytes besides: how many times smaller?"""
    before, left = 4 * WEIGHTS, LEFT * WEIGHTS
    file = left * ENTROPY / 8 + REST
    mistakes = {
        file: "that is the file in bytes; how many of them go into the FP32 weights?",
        file / before: "that is the share that is left: turn it round",
        before / (file - REST): "the scales, biases and tables are missing: they take their bytes, too",
        before / (left * WIDTH / 8 + REST): "that is the file at its full width of 3 bits; the code needs 1.5",
        before / (left * WIDTH / 8): "that is at the full width of 3 bits, and without what is stored besides",
        32 / ENTROPY: "that is what the bits give; four fifths of the weights are gone, too",
        before / (WEIGHTS * ENTROPY / 8 + REST): "all weights were counted; only a fifth of them is left",
        before / ((1 - LEFT) * WEIGHTS * ENTROPY / 8 + REST): "a fifth is what is *left*, not what is gone",
        before / (left * ENTROPY + REST): "1.5 are bits, and the rest is in bytes: eight bits are a byte",
        1 / LEFT * 32 / WIDTH * 32 / ENTROPY: "the bits are counted twice: 32 became 3, and 3 became 1.5",
        8 * before / file: "bits before were divided by bytes after: an FP32 weight has 4 bytes",
        before / (LEFT**2 * WEIGHTS * ENTROPY / 8 + REST): "a fifth of the *weights* is left: no square here",
        before / 2 / file: "that compares with FP16; the question is about FP32, 4 bytes a weight",
        1 / LEFT + 32 / WIDTH + WIDTH / ENTROPY: "factors multiply, they do not add up",
    }
    praise = f"{before:,} bytes became {file:,.0f}; without the rest it would be {before / 37_500:.0f}"
    hint = "bytes before, divided by bytes after: weights × bits / 8, and what is stored besides"
    return judge_number(answer, before / file, mistakes, praise, hint)


@check
def check_code_bits(answer: Sequence[float]) -> Feedback:
    """Bits for 1,024 weights of which 7/8 are zero and 1/16 each 1 and -1: fixed width, Huffman, entropy."""
    if not isinstance(answer, Sequence | np.ndarray | torch.Tensor) or isinstance(answer, str) or len(answer) != 3:
        return Feedback(False, "expected three numbers: (fixed_width, huffman, entropy)")
    given = [as_number(number) for number in answer]
    entropy = sum(share * -math.log2(share) for share in SHARES.values())
    right = [2 * COUNT, (7 / 8 + 2 / 8) * COUNT, entropy * COUNT]
    if all(map(_near, given, right)):
        return Feedback(True, f"{entropy:.3f} bits a weight are enough, and no word of Huffman's is shorter than 1")
    if all(map(_near, given, reversed(right))):
        return Feedback(False, "the right numbers, the other way round: first the fixed width")
    if all(_near(number * COUNT, wanted) for number, wanted in zip(given, right, strict=True)):
        return Feedback(False, f"that is for one weight; there are {COUNT:,}")
    if all(_near(number * 8, wanted) for number, wanted in zip(given, right, strict=True)):
        return Feedback(False, "those are bytes; the question asks for bits")
    slips = (
        (
            "fixed width",
            {
                COUNT: "one bit tells two symbols apart, and here are three",
                math.log2(3)
                * COUNT: "a fixed width is a whole number of bits: what is the smallest for three symbols?",
                32 * COUNT: "32 bits are those of a float; how few tell three symbols apart?",
                3 * COUNT: "three bits would tell eight symbols apart, and here are three",
            },
        ),
        (
            "Huffman",
            {
                COUNT: "the zero has a word of 1 bit, but the two others need longer ones, or nobody could tell",
                2 * COUNT: "the words have different lengths: 1 for the zero, 2 for each of the others",
                (7 / 8 + 5 / 16) * COUNT: "with the words 0 and 10, the third may be 11: nothing else begins with it",
                (7 / 8 + 8 / 16) * COUNT: "four bits are what 1 and -1 deserve; Huffman's words for them have two",
                5 / 3 * COUNT: "the mean over the *weights*: a word counts as often as its symbol occurs",
                right[2]: "that is the entropy; Huffman's words have whole numbers of bits",
            },
        ),
        (
            "entropy",
            {
                right[2] * math.log(2): "in nats; take the logarithm to the base 2",
                right[1]: "Huffman cannot go below 1 bit a weight, the entropy can: sum p · log2(1 / p)",
                -math.log2(7 / 8) * COUNT: "that would be if all were zeros: weigh log2(1 / p) of each symbol by its p",
                (7 / 8 * -math.log2(7 / 8) + 4 / 16) * COUNT: "1 and -1 are two symbols: each adds p · log2(1 / p)",
                (7 / 8 * -math.log2(7 / 8) + 3 / 8) * COUNT: "1 and -1 have 1/16 each, not 1/8 together as one symbol",
                -right[2]: "a sign is lost: the logarithm of a share is negative",
                math.log2(3) * COUNT: "that is for equal shares; here they are 7/8, 1/16 and 1/16",
            },
        ),
    )
    for number, wanted, (name, mistakes) in zip(given, right, slips, strict=True):
        if _near(number * COUNT, wanted):
            return Feedback(False, f"{name}: that is for one weight; there are {COUNT:,}")
        if not _near(number, wanted):
            mistake = name_mistake(number, mistakes)
            return Feedback(False, f"{name}: {mistake or f'{number:g} bits are not right'}")
    raise AssertionError("one of the three differs")


@check
def check_is_on_front(answer: Callable[[Points, int], bool]) -> Feedback:
    """A function of points (bytes, top1) and a number: whether no other point beats that one."""
    points = [(50, 0.90), (60, 0.80), (20, 0.70), (50, 0.85), (30, 0.70), (80, 0.95), (25, 0.60), (90, 0.65)]
    twins = [(50, 0.90), (50, 0.90), (60, 0.80)]
    given = list(points)
    found = [answer(points, number) for number in range(len(points))]
    if points != given:
        return Feedback(False, "it changed the list it was given")
    for each in found:
        if not isinstance(each, bool | np.bool_) and not (isinstance(each, torch.Tensor) and each.dtype == torch.bool):
            return Feedback(False, f"it returned {each!r}, expected True or False")
    found, right = [bool(each) for each in found], _on_front(points)
    if found != right:
        return Feedback(False, _why_wrong_front(points, found, right))
    alike = [bool(answer(twins, number)) for number in range(3)]
    if alike != _on_front(twins):
        return Feedback(False, "two equal points do not beat each other: to beat, be better in at least one number")
    if not answer([(10, 0.5)], 0):
        return Feedback(False, "a point that is alone is on the front: nobody beats it")
    return Feedback(True, "as good in both, and better in one: only such a point beats another")


def _why_wrong_front(points: Points, found: list[bool], right: list[bool]) -> str:
    turned = _on_front([(-size, -top1) for size, top1 in points])
    slips = (
        ([not each for each in right], "turned round: True is for those that are *not* beaten"),
        ([False] * len(points), "nobody is left: does each point beat itself?"),
        (
            [True] * len(points),
            "everybody is left: of two points with equal bytes, the more accurate one beats the other",
        ),
        (turned, "turned round: fewer bytes are better, and a higher top-1"),
        (_on_front([(size, -top1) for size, top1 in points]), "a higher top-1 is better, a lower one is not"),
        (_on_front([(-size, top1) for size, top1 in points]), "fewer bytes are better, more are not"),
        (
            [not any(o[0] < p[0] and o[1] > p[1] for o in points) for p in points],
            "(50, 0.85) is beaten by (50, 0.90): equal in one number and better in the other is enough",
        ),
        (
            [not any(o[0] < p[0] or o[1] > p[1] for o in points) for p in points],
            "to be better in *one* number is not enough, if it is worse in the other",
        ),
        ([p[1] == max(q[1] for q in points) for p in points], "that is the most accurate one; smaller ones count, too"),
        (
            [p[0] == min(q[0] for q in points) for p in points],
            "that is the smallest one; more accurate ones count, too",
        ),
    )
    for mistake, reason in slips:
        if found == mistake:
            return reason
    number = next(number for number in range(len(points)) if found[number] != right[number])
    size, top1 = points[number]
    if right[number]:
        return f"nobody beats ({size}, {top1:.2f}): no other is at most as large and at least as accurate"
    beating = next(q for q in points if q[0] <= size and q[1] >= top1 and q != points[number])
    return f"({size}, {top1:.2f}) is beaten by ({beating[0]}, {beating[1]:.2f})"


def _on_front(points: Points) -> list[bool]:
    records = [{"bytes": size, "top1": top1, "number": number} for number, (size, top1) in enumerate(points)]
    front = {record["number"] for record in pareto_front(records)}
    return [number in front for number in range(len(points))]


def _near(number: float, wanted: float) -> bool:
    return math.isclose(number, wanted, rel_tol=0.005)
