"""Checks of lesson 03: what zeros cost to store, pruning by hand, and rates from a sensitivity scan."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from yolo_slim_lessons.search import Sensitivity
from yolo_slim_lessons.teaching.exercises.feedback import PERCENTAGE, Feedback, as_number, check, judge_number

__all__ = ["check_break_even", "check_choose_rates", "check_zero_smallest"]


@check
def check_break_even(answer: float) -> Feedback:
    """Values of 8 bits, indices of 16: above which share of zeros is index + value smaller than dense?"""
    number = as_number(answer)
    mistakes = {
        1 / 3: "that is the share of weights that may be left; the question is the share of zeros",
        1 / 2: "that holds where an index is as long as a value; here a value has 8 bits and its index 16",
        1 / 8: "that is the bitmask, one bit for every weight; here each stored value brings an index of 16 bits",
        2: "that is index / value; one stored weight costs both together",
    }
    praise = "a stored weight costs 8 + 16 = 24 bits, so at most a third of them may be stored"
    hint = "set the bits of all weights stored dense equal to the bits of those that are left, and solve"
    return judge_number(number, 2 / 3, mistakes, praise, PERCENTAGE if 1 < number <= 100 else hint, abs_tol=0.005)


@check
def check_zero_smallest(answer: Callable[[torch.Tensor, float], torch.Tensor]) -> Feedback:
    """A function of a weight tensor and a rate that zeros exactly the smallest."""
    weight = torch.tensor([[0.5, -0.1, 0.3, -0.9], [0.2, -0.4, 0.8, -0.7]])
    before = weight.clone()
    pruned = answer(weight, 0.5)
    if not isinstance(pruned, torch.Tensor):
        return Feedback(False, f"the function must return a tensor; it returned {type(pruned).__name__}")
    if not torch.equal(weight, before):
        return Feedback(False, "it changed the tensor it was given: work on weight.clone()")
    if pruned.shape != weight.shape:
        return Feedback(False, f"the result has shape {tuple(pruned.shape)}, expected {tuple(weight.shape)}")
    if torch.equal(pruned, weight.where(weight > weight.flatten().sort().values[3], 0)):
        return Feedback(False, "it zeroed the most negative weights: a large negative weight matters too, take abs()")
    if torch.equal(pruned, weight.where(weight.abs() < 0.45, 0)):
        return Feedback(False, "it zeroed the largest weights: topk takes the largest unless told largest=False")
    if not torch.equal(pruned, weight.where(weight.abs() > 0.45, 0)):
        return Feedback(False, f"from {weight.tolist()} at rate 0.5 it made {pruned.tolist()}")
    zeros = int((answer(torch.full((2, 5), 0.5), 0.3) == 0).sum())
    if zeros != 3:
        return Feedback(
            False, f"of ten equal weights, rate 0.3 must zero 3, not {zeros}: a threshold cannot tell ties apart"
        )
    if not torch.equal(answer(weight, 0.0), weight):
        return Feedback(False, "at rate 0 it must change nothing")
    return Feedback(True, "exactly the smallest ones, ties included, and the input is as it was")


@check
def check_choose_rates(answer: Callable[[Sensitivity, float], dict[str, float]]) -> Feedback:
    """A function of a scan and a loss that picks for each layer the highest rate it can bear."""
    scan = Sensitivity(
        layers=("a", "b", "c"),
        rates=(0.3, 0.6, 0.9),
        top1=np.array([[0.90, 0.89, 0.87], [0.90, 0.885, 0.40], [0.70, 0.50, 0.10]]),
        baseline=0.90,
        images=200,
    )
    chosen = answer(scan, 0.02)
    if not isinstance(chosen, dict):
        return Feedback(
            False, f"the function must return a dict of layer and rate; it returned {type(chosen).__name__}"
        )
    chosen = {layer: float(rate) for layer, rate in chosen.items()}
    if chosen == {"a": 0.6, "b": 0.6}:
        return Feedback(True, "the highest rate that each layer bears, and no entry for a layer that bears none")
    if set(chosen) - set(scan.layers):
        return Feedback(False, f"keys must be names of layers: {scan.layers}, not {tuple(chosen)}")
    if "c" in chosen:
        return Feedback(False, "layer 'c' loses more than 2 points at every rate: leave it out, so that it stays dense")
    if chosen == {"a": 0.3, "b": 0.3}:
        return Feedback(False, "these are the lowest rates that keep the loss small; the highest ones are asked for")
    if chosen.get("a") == 0.9:
        return Feedback(False, "layer 'a' at rate 0.9 loses 3 points (0.90 to 0.87), more than the 2 allowed")
    return Feedback(False, f"of a scan worked out by hand it made {chosen}; expected 0.6 for 'a' and for 'b', no 'c'")
