"""Checks of lesson 09: multiplications a second, what a faster part is worth, and from a picture to a batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from yolo_slim_lessons.teaching.exercises.feedback import Feedback, as_number, check, judge_number

__all__ = ["check_macs_per_second", "check_network_speedup", "check_to_batch"]

MACS, BATCH, MILLISECONDS = 4_000_000, 64, 8  # of the first exercise
SHARE, FASTER, ROUNDING = 0.6, 3, 0.1  # of the second
ToBatch = Callable[[np.ndarray], np.ndarray]


@check
def check_macs_per_second(answer: float) -> Feedback:
    """A batch of 64 images, 4 million MACs each, takes 8 ms: how many billion MACs a second?"""
    right = MACS * BATCH / (MILLISECONDS / 1000) / 1e9
    mistakes = {
        right * 1e9: "right, in single MACs: divide by 10⁹ for billions",
        right * 1e3: "those are millions; divide by 10⁹ for billions",
        right / BATCH: "the batch has 64 images, and each takes 4 million MACs",
        right / 1000: "8 ms are 0.008 seconds: divided by 8, it is per millisecond",
        right / 1000 * 1e9: "divided by 8, it is per millisecond: 8 ms are 0.008 seconds",
        right / BATCH / 1000: "the 64 images are missing, and 8 ms are 0.008 seconds",
        right / BATCH**2: "a batch is more work, not less: multiply by 64",
        2 * right: "that counts multiplications and additions one by one; a MAC is one of each",
        1 / right: "upside down: MACs by seconds",
        MACS * BATCH * (MILLISECONDS / 1000) / 1e9: "divide by the seconds, do not multiply",
        MACS * BATCH / 1e9: "that is how many MACs the batch takes; divide by the seconds",
        BATCH / (MILLISECONDS / 1000): "those are images a second; each of them takes 4 million MACs",
    }
    praise = f"{BATCH} × {MACS:,} MACs in {MILLISECONDS / 1000} s"
    hint = "MACs of the whole batch, divided by its seconds, divided by 10⁹"
    return judge_number(answer, right, mistakes, praise, hint)


@check
def check_network_speedup(answer: float) -> Feedback:
    """Convolutions, 60 % of the time, become 3 times as fast; rounding adds 10 % of the old time. The network?"""
    number = as_number(answer)
    left = SHARE / FASTER + (1 - SHARE) + ROUNDING
    right = 1 / left
    mistakes = {
        100 * right: "that is in per cent; give the factor itself",
        right - 1: "that is how much *faster* it is; as fast as before is 1, so add 1",
        100 * (right - 1): "that is how many per cent *faster* it is; give the factor: as fast as before is 1",
        left: "that is the share of the old time that is left: turn it round",
        100 * left: "that is the share of the old time that is left, in per cent: turn it round",
        1 - left: "that is the share of the time that is saved; how many times as fast is it?",
        FASTER: "only the convolutions are 3 times as fast, and they are 60 % of the time",
        1 / (SHARE / FASTER + 1 - SHARE): "the rounding is missing: it adds 10 % of the old time",
        1 / (SHARE / FASTER + ROUNDING): "all the rest is missing: it takes its 40 % as before",
        FASTER / SHARE: "a share of the time is divided by the factor, not the factor by the share",
        SHARE * FASTER: "3 times as fast on 60 % of the time is not 1.8 times as fast: add up times, not factors",
        SHARE * FASTER + (1 - SHARE): "that is a mean of factors; add up the times that are left",
        SHARE * FASTER + (1 - SHARE) - ROUNDING: "that is a mean of factors; add up the times that are left",
        1 / ((1 - SHARE) / FASTER + SHARE + ROUNDING): "turned round: the convolutions are the 60 %, not the rest",
        1
        / (
            SHARE / FASTER + 1 - SHARE - ROUNDING
        ): "the rounding is new work that adds time, and a third of the convolutions' time is left",
        1 / (SHARE * (1 + ROUNDING) / FASTER + 1 - SHARE): "the rounding takes 10 % of the *whole* old time",
        1 / (SHARE / FASTER + (1 - SHARE) * (1 + ROUNDING)): "the rounding takes 10 % of the *whole* old time",
    }
    praise = f"{left:.0%} of the old time are left; were the convolutions to take none, half would be"
    hint = "let the old time be 1 and add up what each part takes now; then divide 1 by the sum"
    if math.isclose(number, round(right, 1)):
        return Feedback(True, praise)
    return judge_number(number, right, mistakes, praise, hint)


@check
def check_to_batch(answer: ToBatch) -> Feedback:
    """A function from a picture, uint8 H×W×3 in RGB, to what the network reads, float32 1×3×H×W in 0…1."""
    picture = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    picture[0, 0], picture[1, 1] = 0, 255
    given = picture.copy()
    try:
        found = answer(picture)
    except ValueError as error:
        if "read-only" not in str(error):
            raise
        return Feedback(False, "pictures may be read-only: make a new array, do not write into the one you got")
    if not np.array_equal(picture, given):
        return Feedback(False, "it changed the picture it was given")
    if not isinstance(found, np.ndarray):
        return Feedback(False, f"it returned a {type(found).__name__}, expected a NumPy array")
    wanted = np.ascontiguousarray(given.transpose(2, 0, 1)[None], dtype=np.float32) / 255
    if reason := _why_wrong_shape(found, wanted) or _why_wrong_values(found, wanted, given):
        return Feedback(False, reason)
    darker = given // 2
    if not np.allclose(answer(darker.copy()), np.ascontiguousarray(darker.transpose(2, 0, 1)[None]) / 255, atol=1e-3):
        return Feedback(False, "divide by 255, not by the largest pixel: a dark picture must stay dark")
    if found.dtype != np.float32:
        return Feedback(False, f"the values are right, but {found.dtype}: the graph reads float32 and refuses others")
    return Feedback(True, "channels first, a batch of one, floats from 0 to 1")


def _why_wrong_shape(found: np.ndarray, wanted: np.ndarray) -> str:
    height, width = wanted.shape[2:]
    reasons = {
        (3, height, width): "the batch is missing: one image is a batch of one, with a dimension in front",
        (height, width, 3): "the channels come first, and a dimension for the batch before them",
        (1, height, width, 3): "the channels still come last; the network reads N×3×H×W",
        (1, 3, width, height): "height and width are exchanged: the picture lies on its side",
        (3, width, height): "height and width are exchanged, and the batch is missing",
    }
    if found.shape == wanted.shape:
        return ""
    return reasons.get(found.shape, f"its shape is {found.shape}, expected {wanted.shape} for 6×5 pixels")


def _why_wrong_values(found: np.ndarray, wanted: np.ndarray, picture: np.ndarray) -> str:
    if np.allclose(found, wanted, atol=1e-3 if found.dtype == np.float16 else 1e-6):
        return ""
    channels_first = picture.transpose(2, 0, 1)[None]
    mean, deviation = (np.array(numbers)[:, None, None] for numbers in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    mistakes = (
        (picture.reshape(wanted.shape) / 255, "reshape() does not move a pixel: it mixes colours; use transpose()"),
        (channels_first.astype(float), "the values still go up to 255: divide, so that they end at 1"),
        (picture.reshape(wanted.shape).astype(float), "reshape() mixes colours, and the values still go up to 255"),
        (channels_first / 256, "divided by 256, white is a little less than 1: 255 is the largest value"),
        (100 * wanted, "these go from 0 to 100: no per cent, 0 to 1"),
        (wanted[:, ::-1], "red and blue are exchanged: the picture is RGB already"),
        (wanted[:, ::-1] * 255, "red and blue are exchanged, and the values still go up to 255"),
        (2 * wanted - 1, "these go from -1 to 1; the network has learned with 0 to 1"),
        ((wanted - mean) / deviation, "ImageNet's mean and deviation: other networks want them, this one has not"),
        (wanted[:, :, ::-1], "upside down: the first row of the picture is the top"),
        (wanted[..., ::-1], "left and right are exchanged"),
        (
            channels_first // 255,
            "// and a conversion to integers after the division cut the decimals off: nearly everything becomes 0",
        ),
        (np.round(wanted), "rounded to 0 and 1: divide after the conversion to float"),
    )
    for values, reason in mistakes:
        if np.allclose(found, values, atol=1e-6):
            return reason
    pixels = [values[0, :, 0, 1].round(4).tolist() for values in (found, wanted)]
    return f"the second pixel of the first row became {pixels[0]}, expected {pixels[1]}"
