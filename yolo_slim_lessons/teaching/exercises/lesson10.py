"""Checks of lesson 10: what F1 says about rare defects, and the threshold with the lowest cost.

The cost of a function's threshold is compared with that of the best one; usual slips are computed as well, so that they
can be named.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from yolo_slim_lessons.teaching.capstone.detection import best_threshold, detect
from yolo_slim_lessons.teaching.exercises.feedback import Feedback, as_number, check, judge_number

__all__ = ["check_cheapest_threshold", "check_rare_f1"]

MISS_COSTS = (3.0, 30.0, 1.0)


@check
def check_rare_f1(answer: float) -> Feedback:
    """F1 where 1 of 20 is defective, 8 of 10 defects are found, and 1 of 20 sound ones raises an alarm."""
    value = as_number(answer)
    found, missed, alarms, passed = 0.04, 0.01, 0.0475, 0.9025
    precision, recall = found / (found + alarms), found / (found + missed)
    right = 2 * found / (2 * found + missed + alarms)
    mistakes = {
        found + passed: "that is the accuracy: see how well it hides the rest",
        precision: "that is the precision; F1 is the harmonic mean of it and the recall",
        recall: "that is the recall; F1 is the harmonic mean of it and the precision",
        (precision + recall) / 2: "that is the ordinary mean of precision and recall; F1 is their harmonic mean",
        math.sqrt(precision * recall): "that is the geometric mean of precision and recall; F1 is the harmonic one",
        2 * 0.8 / (2 * 0.8 + 0.2 + 0.05): "so it would be with as many defective cells as sound ones; here are 19 "
        "sound ones for each, and so are their alarms",
        2 * passed / (2 * passed + missed + alarms): "that is the F1 of the sound ones; ask for the defects",
        (right + 2 * passed / (2 * passed + missed + alarms)) / 2: "that is the macro F1, the mean over both classes: "
        "the sound ones lift it. Take the defects' alone",
        2 * 0.95 * recall / (0.95 + recall): "19 of 20 sound ones pass, but that is no precision: precision is the "
        "share of the alarms that are defects",
    }
    if math.isclose(value / 100, right, abs_tol=0.004):
        return Feedback(False, "that is a percentage; give it as a fraction")
    if value > 1:
        return Feedback(False, "an F1 lies between 0 and 1: give a fraction, not a percentage")
    praise = "of 1,000 cells: 40 found, 10 missed, 47.5 false alarms; 80 / (80 + 10 + 47.5)"
    hint = "count what becomes of 1,000 cells: 50 are defective. How many are found, how many alarms?"
    return judge_number(value, right, mistakes, praise, hint)


@check
def check_cheapest_threshold(answer: Callable[[torch.Tensor, torch.Tensor, float], float]) -> Feedback:
    """A function of probabilities, truth and the cost of a miss, that names the threshold with the lowest cost."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(400, generator=generator) < 0.15
    probabilities = (torch.randn(400, generator=generator) + 2.2 * truth - 2.4).sigmoid()
    for miss_cost in MISS_COSTS:
        copies = probabilities.clone(), truth.clone()
        threshold = answer(*copies, miss_cost)
        if not torch.equal(copies[0], probabilities) or not torch.equal(copies[1], truth):
            return Feedback(False, "it changed what it was given: work on copies")
        if threshold is None:
            return Feedback(False, "the function returns nothing: end it with return …")
        threshold = threshold if isinstance(threshold, float) else as_number(threshold)
        if math.isnan(threshold):
            return Feedback(False, f"for miss_cost={miss_cost:g} it names no number, but nan")
        cost = detect(probabilities, truth, threshold).cost(miss_cost)
        least = detect(probabilities, truth, best_threshold(probabilities, truth, miss_cost)).cost(miss_cost)
        if math.isclose(cost, least, rel_tol=1e-9):
            continue
        told = f"for miss_cost={miss_cost:g} the threshold {threshold:.3g} costs {cost:.0f}, and {least:.0f} can be had"
        return Feedback(False, f"{told}{_why_dearer(threshold, probabilities, truth, miss_cost)}")
    few, sound_first = torch.tensor([0.2, 0.9]), torch.tensor([True, False])
    if float(answer(few, sound_first, 0.5)) <= 0.9:
        return Feedback(
            False,
            "right so far, but where a miss is cheap, no alarm at all may cost least: try a line above all answers",
        )
    return Feedback(True, "the dearer a miss, the lower the threshold")


def _why_dearer(threshold: float, probabilities: torch.Tensor, truth: torch.Tensor, miss_cost: float) -> str:
    """Which slip leads to this threshold, or to one that is as good by the slip's own measure."""
    if threshold > 1:
        return ": it is above 1; return the threshold itself, not its cost or its place"
    if threshold <= probabilities.min():
        return (
            ": there everything is called defective, and false alarms cost, too (is True taken for sound? True means "
            "defective)"
        )
    if threshold > probabilities.max():
        return ": there nothing is called defective, and every defect is missed"
    if _strict_would_be_best(threshold, probabilities, truth, miss_cost):
        return ": an image at the threshold itself is called defective, too: count with >=, not with >"
    if threshold == 0.5:
        return ": 0.5 knows nothing of costs"
    if math.isclose(threshold, 1 / (1 + miss_cost), rel_tol=1e-6):
        return ": 1 / (1 + miss_cost) would be right if the probabilities were; count, do not trust them"
    if (
        detect(probabilities, truth, threshold).f1
        == detect(probabilities, truth, best_threshold(probabilities, truth)).f1
    ):
        return ": this is the threshold with the highest F1, which knows nothing of costs"
    slips = {
        "the costs are swapped: miss_cost belongs to the misses": (truth, 1 / miss_cost),
        "that is where mistakes are fewest; a miss weighs miss_cost times": (truth, 1.0),
        "True means defective": (~truth, miss_cost),
    }
    for reason, (labels, price) in slips.items():
        best = detect(probabilities, labels, best_threshold(probabilities, labels, price))
        if math.isclose(detect(probabilities, labels, threshold).cost(price), best.cost(price), rel_tol=1e-9):
            return f": {reason}"
    return ": try all thresholds that part the images in another way"


def _strict_would_be_best(threshold, probabilities, truth, miss_cost) -> bool:
    if threshold not in probabilities.tolist():
        return False
    strict = detect((probabilities > threshold).float(), truth).cost(miss_cost)
    best = detect(probabilities, truth, best_threshold(probabilities, truth, miss_cost)).cost(miss_cost)
    return math.isclose(strict, best, rel_tol=1e-9)
