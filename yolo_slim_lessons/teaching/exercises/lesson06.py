"""Checks of lesson 06: decoding eight bits, the largest fp8 number, and the best way to split a budget of bits."""

from __future__ import annotations

from collections.abc import Callable

import torch

from yolo_slim_lessons.quantization import signal_to_noise
from yolo_slim_lessons.quantization.floats import FloatFormat, float_format, round_to_format
from yolo_slim_lessons.teaching.exercises.feedback import Feedback, check, judge_number

__all__ = ["check_best_format", "check_decoded_bits", "check_largest_fp8"]

EXACT = 1e-6  # but for how a float prints


@check
def check_decoded_bits(answer: float) -> Feedback:
    """The value of 1 1000 010 in fp8 e4m3."""
    mistakes = {
        2.5: "the first bit is 1: the number is negative",
        -320.0: "2^8 is far too much: take the bias, 7, off the exponent field",
        -0.5: "the mantissa has a 1 in front that is not stored: 1 + 2/8, not 2/8",
        -1.25: "the bias of four exponent bits is 2^3 - 1 = 7, not 8",
        -5.0: "the bias of four exponent bits is 2^3 - 1 = 7, not 6",
        -2.25: "three mantissa bits count eighths, not sixteenths: 010 is 2/8",
        -3.0: "010 is 2, and three bits count eighths: 2/8, not 2/4",
        -2.4: "010 is 2/8, a binary fraction, not 0.2",
        -2.02: "010 is 2/8, a binary fraction, not 0.010",
        -62.0: "you read an integer in two's complement; a float has fields",
        -66.0: "you read an integer with a sign bit; a float has an exponent and a mantissa",
        194.0: "you read an unsigned integer; a float has fields",
    }
    hint = "sign 1, exponent field 1000 = 8, mantissa field 010 = 2: put them into the formula"
    return judge_number(answer, -2.5, mistakes, "−(1 + 2/8) × 2^(8 − 7)", hint, rel_tol=EXACT)


@check
def check_largest_fp8(answer: float) -> Feedback:
    """The largest finite number of fp8 e4m3."""
    mistakes = {
        480.0: "that would be the code 1111 111, and just this one means NaN: the largest number is the one below",
        240.0: "so it would be if the whole highest exponent were kept for infinity and NaN, as IEEE 754 has it; e4m3 "
        "gives only its very highest code away",
        256.0: "2^8 is right for the exponent; add what mantissa the largest code may have",
        57344.0: "that is 1.75 × 2^15: the bias, 7, is missing (or it is the largest of e5m2, which is the same)",
        224.0: "the bias is 7: the exponent field 15 stands for 2^(15 - 7)",
        896.0: "the bias is 7: the exponent field 15 stands for 2^(15 - 7)",
        1.75: "that is its mantissa, 1 + 6/8; now the exponent",
        127.0: "that is the largest int8; a float has an exponent",
        -448.0: "that is the smallest",
    }
    praise = "exponent field 15, mantissa field 6: (1 + 6/8) × 2^(15 − 7)"
    hint = "the highest exponent field is 15; with it, the mantissa field may be 0 to 6, since 7 would mean NaN"
    return judge_number(answer, float_format("fp8_e4m3").max, mistakes, praise, hint, rel_tol=EXACT)


@check
def check_best_format(answer: Callable[[torch.Tensor, int], str]) -> Feedback:
    """A function of values and bits that names the eXmY of so many bits that rounds these values best."""
    generator = torch.Generator().manual_seed(0)
    bell = torch.randn(2000, generator=generator)
    tests = {
        "evenly spread numbers": (6 * torch.rand(2000, generator=generator) - 3, 6),
        "numbers from a bell curve": (bell, 8),
        "numbers of very different sizes": (bell * 2.0 ** torch.randint(-12, 4, (2000,), generator=generator), 8),
        "large numbers from a bell curve": (3 * bell, 7),
    }
    for name, (values, bits) in tests.items():
        before = values.clone()
        chosen = answer(values, bits)
        if not torch.equal(values, before):
            return Feedback(False, "it changed the values it was given: work on a copy")
        reason = _why_not_best(chosen, values, bits)
        if reason:
            return Feedback(False, f"for {name} and {bits} bits: {reason}")
    return Feedback(True, "few exponent bits where sizes are alike, more where they differ")


def _why_not_best(chosen: str, values: torch.Tensor, bits: int) -> str:
    """What is wrong with a choice, or nothing."""
    if not isinstance(chosen, str | FloatFormat):
        return f"the function must return a name such as 'e3m2'; it returned {type(chosen).__name__}"
    format = float_format(chosen)
    if format.bits != bits:
        forgot = ": the sign takes one, too" if format.bits == bits + 1 else ""
        return f"{format.name} has {format.bits} bits{forgot}"
    candidates = [FloatFormat(f"e{e}m{bits - 1 - e}", e, bits - 1 - e) for e in range(1, min(bits, 9))]
    decibels = {each.name: signal_to_noise(values, round_to_format(values, each)) for each in candidates}
    best, worst = max(decibels, key=decibels.get), min(decibels, key=decibels.get)
    if decibels[format.name] >= decibels[best] - 1e-6:
        return ""
    told = f"{format.name} gives {decibels[format.name]:.1f} dB and {best} gives {decibels[best]:.1f}"
    if format.name == worst:
        return f"{told}: this is the worst of all, and more dB are better"
    errors = {each.name: (values - round_to_format(values, each)).abs() for each in candidates}
    largest = {name: error.max().item() for name, error in errors.items()}
    mean = {name: error.mean().item() for name, error in errors.items()}
    if format.name == min(largest, key=largest.get):
        return f"{told}: it has the smallest largest error, but dB count the errors of all values"
    if format.name == min(mean, key=mean.get):
        return f"{told}: it has the smallest mean error, but dB count the squares of errors, so the large ones more"
    return told
