"""Checks of lesson 02: F1 from a table, images for an interval, MACs of a convolution.

Leaves out: measured numbers. All three answers follow by hand from what the exercise gives.
"""

from __future__ import annotations

from yolo_slim_lessons.teaching.exercises.feedback import Feedback, check, judge_number

__all__ = ["check_f1", "check_images_needed", "check_convolution_macs"]


@check
def check_f1(answer: float) -> Feedback:
    """F1 of the defective class, if 30 defects are found and 20 missed, and 10 of 950 sound pieces are refused."""
    found, missed, refused, passed = 30, 20, 10, 940
    precision, recall = found / (found + refused), found / (found + missed)
    f1, f1_of_sound = (2 * hits / (2 * hits + missed + refused) for hits in (found, passed))
    mistakes = {
        (found + passed) / 1000: "that is the accuracy, which the many sound pieces dominate",
        precision: "that is the precision: F1 also asks how many of the defects were found",
        recall: "that is the recall: F1 also asks how many of the refused pieces deserved it",
        (precision + recall) / 2: "that is the plain mean of precision and recall: F1 is their harmonic mean",
        f1_of_sound: "that is the F1 of the sound class: here the defective ones are to be found",
        (f1 + f1_of_sound) / 2: "that is the macro F1, the mean over both classes: asked is the defective class alone",
        100 * f1: "right as a percentage; in this course shares are fractions from 0 to 1",
    }
    praise = "it lies nearer to the smaller of precision and recall, so neither can make up for the other"
    hint = "start with precision = 30 / (30 + 10) and recall = 30 / (30 + 20)"
    return judge_number(answer, f1, mistakes, praise, hint)


@check
def check_images_needed(answer: float) -> Feedback:
    """How many test images a 95 % interval of ±0.5 points takes for a model that is right about 94 times in 100."""
    p, half_width, z = 0.94, 0.005, 1.96
    needed = p * (1 - p) * (z / half_width) ** 2
    mistakes = {
        4 * needed: "±0.5 points means half a point to either side; you took half a point for the whole interval",
        needed / 4: "±0.5 points means half a point to either side; you took a whole point to either side",
        needed / z**2: "z is missing: without 1.96 this interval would hold in 68 of 100 cases only",
        needed * (1.645 / z) ** 2: "z = 1.645 belongs to a 90 % interval; for 95 % it is 1.96",
        needed / (p * (1 - p)): "the factor p (1 − p) is missing",
        0.25 * (z / half_width) ** 2: "that is the worst case, p = 0.5; at p = 0.94 the answers scatter less",
        2 * needed: "that is for the difference of two models, each on its own images; here there is one model",
        p * (1 - p) * z / half_width: "z divided by the half width must be squared: n stands under a square root",
        needed**0.5: "that is the square root of the answer: solve z·√(p (1 − p) / n) = 0.005 for n",
        needed / 100**2: "half a point is 0.005 as a fraction, not 0.5",
    }
    praise = "and half that width would take four times as many images"
    return judge_number(answer, needed, mistakes, praise, "solve z·√(p (1 − p) / n) = 0.005 for n, where p is 0.94")


@check
def check_convolution_macs(answer: float) -> Feedback:
    """MACs of a 3×3 convolution, stride 2, padding 1, from 16 to 32 channels, on maps of 40×40."""
    inputs, outputs, kernel, side = 16, 32, 3, 40 // 2
    weights = inputs * outputs * kernel**2
    macs = weights * side**2
    mistakes = {
        weights: "that is the number of weights: each of them is used at every position of the output",
        weights * (2 * side) ** 2: "with stride 2 the output is half as high and half as wide as the input",
        weights * side: "the output has a height and a width: side times side positions",
        weights * (side - 1) ** 2: "padding 1 adds a border, so that the output has 20 × 20 positions",
        macs // inputs: "every filter looks at all input channels: that factor is missing",
        macs // outputs: "there are as many filters as output channels: that factor is missing",
        macs // kernel: "the filter has a height and a width: 3 × 3",
        macs // kernel**2: "the size of the filter is missing: 3 × 3",
        2 * macs: "that counts multiplications and additions apart (FLOPs); a MAC is one of each",
        macs + outputs * side**2: "YOLOv8's convolutions have no bias, and a MAC count leaves biases out anyway",
    }
    praise = "weights times output positions; twice the side of the image would mean four times the MACs"
    return judge_number(answer, macs, mistakes, praise, "MACs = weights of the layer × height × width of its output")
