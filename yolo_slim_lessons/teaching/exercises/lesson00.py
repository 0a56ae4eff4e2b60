"""Checks of lesson 00. Every right answer is computed on the images, none is written down here."""

from __future__ import annotations

import functools

import torch

from yolo_slim_lessons.data import Split, load_images
from yolo_slim_lessons.measurement import predict
from yolo_slim_lessons.models import load_model
from yolo_slim_lessons.teaching.exercises.feedback import Feedback, as_number, check

__all__ = ["check_surest_mistake", "check_threshold"]

TEST_IMAGES = 1000  # the lesson's part of test
GOAL = 0.98  # share of right answers that the threshold must reach


@check
def check_surest_mistake(answer: int) -> Feedback:
    """Which of the lesson's 1,000 test images does nano get wrong with the highest confidence?"""
    number = as_number(answer)
    index = int(number)
    if index != number or not 0 <= index < TEST_IMAGES:
        return Feedback(False, f"expected the number of an image, a whole number from 0 to {TEST_IMAGES - 1}")
    part, confidence, predicted = _answers_on_test()
    wrong = (predicted != part.labels).nonzero().squeeze(1)
    surest = wrong[confidence[wrong].argmax()]
    names = load_model("nano").names
    truth, said = names[part.labels[index].item()], names[predicted[index].item()]
    # Two images as good as equal may change places on another processor.
    if index in wrong and confidence[index] > confidence[surest] - 1e-4:
        return Feedback(True, f"image {index} is {truth}, and the model says {said} with {confidence[index]:.1%}")
    if index < len(wrong) and wrong[index] == surest:
        return Feedback(False, f"{index} is its place among the wrong ones: which number has that image among all?")
    if confidence[index] == confidence.max():
        return Feedback(False, f"image {index} has the highest confidence, but it is right: look among the wrong ones")
    if index not in wrong:
        return Feedback(False, f"image {index} is {truth}, and the model says so: look among the wrong ones")
    if index == wrong[confidence[wrong].argmin()]:
        return Feedback(False, f"image {index} is the mistake with the lowest confidence: look for the highest")
    return Feedback(False, f"image {index} is a mistake made with {confidence[index]:.1%}: there is one made with more")


@check
def check_threshold(answer: float) -> Feedback:
    """The lowest threshold in whole percents at which 98 % of nano's answers on val are right, as a fraction 0…1."""
    threshold = as_number(answer)
    if threshold < 0:
        return Feedback(False, f"a confidence lies between 0 and 1, and is never {threshold:g}")
    if threshold > 1:
        return Feedback(False, f"a confidence lies between 0 and 1: {threshold:g} % is written {threshold / 100:g}")
    on_val, on_test = _lowest_threshold(*_answers_on_val()), _lowest_threshold(*_answers_on_test())
    share, answered = _share_right(*_answers_on_val(), threshold)
    if answered == 0:
        return Feedback(False, f"no image of val reaches a confidence of {threshold:g}: choose a lower threshold")
    told = f"at {threshold:g} the model answers {answered:.1%} of val, and {share:.2%} of these answers are right"
    if abs(threshold - on_val) < 1e-6:
        return Feedback(True, told)
    if abs(threshold - on_test) < 1e-6:
        return Feedback(False, "this was chosen on the test images: choose on val, and keep test for the report")
    if share >= GOAL and threshold < on_val:
        return Feedback(False, f"{told}: enough, but asked is a threshold in whole percents: 0.00, 0.01, 0.02, …")
    if share >= GOAL:
        return Feedback(False, f"{told}: enough, but a lower threshold in whole percents is enough as well")
    return Feedback(False, f"{told}: {GOAL:.0%} are asked for")


@functools.cache
def _answers_on_test() -> tuple[Split, torch.Tensor, torch.Tensor]:
    return _answers(load_images("fashion-mnist").test.take(TEST_IMAGES))


@functools.cache
def _answers_on_val() -> tuple[Split, torch.Tensor, torch.Tensor]:
    return _answers(load_images("fashion-mnist").val)


def _answers(split: Split) -> tuple[Split, torch.Tensor, torch.Tensor]:
    """The images, nano's confidence in its answers, and the answers, each N."""
    return split, *predict(load_model("nano"), split, progress=False).max(1)


def _share_right(split: Split, confidence: torch.Tensor, predicted: torch.Tensor, threshold: float):
    """(share of right ones among the answers given, share of images answered)."""
    given = confidence >= threshold
    return (predicted == split.labels)[given].float().mean().item(), given.float().mean().item()


def _lowest_threshold(split: Split, confidence: torch.Tensor, predicted: torch.Tensor) -> float:
    thresholds = (percent / 100 for percent in range(101))
    return next(it for it in thresholds if _share_right(split, confidence, predicted, it)[0] >= GOAL)
