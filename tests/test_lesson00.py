"""The checks of lesson 00: right answers, and each typical wrong one with its own reason."""

import pytest
import torch

import yolo_slim_lessons as slim
from yolo_slim_lessons.teaching import exercises
from yolo_slim_lessons.teaching.exercises import lesson00


@pytest.fixture(scope="module")
def on_test(data, nano):
    part = data.test.take(1000)
    confidence, predicted = slim.predict(nano, part, progress=False).max(1)
    return confidence, predicted == part.labels


@pytest.fixture(scope="module")
def on_val(data, nano):
    confidence, predicted = slim.predict(nano, data.val, progress=False).max(1)
    return confidence, predicted == data.val.labels


def lowest_threshold(confidence, right):
    """Counted the slow way, threshold by threshold."""
    for percent in range(101):
        given = [bool(r) for c, r in zip(confidence.tolist(), right, strict=True) if c >= percent / 100]
        if given and sum(given) >= 0.98 * len(given):
            return percent / 100
    raise AssertionError("no threshold is high enough")


def test_surest_mistake(on_test):
    confidence, right = on_test
    by_confidence = confidence.argsort(descending=True)
    mistakes = by_confidence[~right[by_confidence]]
    surest, least_sure = mistakes[0].item(), mistakes[-1].item()
    place = (~right).nonzero().squeeze(1).tolist().index(surest)
    some_right = next(index for index in reversed(range(1000)) if right[index] and confidence[index] < confidence.max())
    assert exercises.check_surest_mistake(surest).right
    assert exercises.check_surest_mistake(torch.tensor(surest)).right
    for answer, reason in (
        (by_confidence[0].item(), "highest confidence, but it is right"),
        (place, "place among the wrong ones"),
        (some_right, "the model says so"),
        (least_sure, "lowest confidence"),
        (mistakes[len(mistakes) // 2].item(), "made with more"),
        (1000, "from 0 to 999"),
        (-1, "from 0 to 999"),
        (2.5, "whole number"),
        ("shirt", "not a number"),
        (..., "not tried"),
    ):
        feedback = exercises.check_surest_mistake(answer)
        assert not feedback.right
        assert reason in feedback.message, (answer, feedback)


def test_threshold(on_val, on_test):
    chosen, chosen_on_test = lowest_threshold(*on_val), lowest_threshold(*on_test)
    assert exercises.check_threshold(chosen).right
    for answer, reason in (
        (100 * chosen, f"is written {chosen:g}"),
        (0, "98% are asked for"),
        (on_val[0].max().item(), "lower threshold"),
        ("high", "not a number"),
        (..., "not tried"),
    ):
        feedback = exercises.check_threshold(answer)
        assert not feedback.right
        assert reason in feedback.message, (answer, feedback)
    if abs(chosen - chosen_on_test) > 1e-6:
        assert "chosen on the test images" in exercises.check_threshold(chosen_on_test).message


def test_threshold_that_no_image_reaches(monkeypatch, data, on_val):
    confidence, right = on_val
    labels = data.val.labels
    answers = (data.val, 0.9 * confidence, torch.where(right, labels, labels + 1))
    monkeypatch.setattr(lesson00, "_answers_on_val", lambda: answers)
    feedback = exercises.check_threshold(0.95)
    assert not feedback.right
    assert "no image of val" in feedback.message


def test_threshold_between_two_whole_percents(on_val):
    confidence, right = on_val
    chosen = lowest_threshold(*on_val)
    between = [chosen - tenth / 1000 for tenth in range(1, 10)]
    enough = [threshold for threshold in between if right[confidence >= threshold].float().mean() >= 0.98]
    for threshold in enough:  # no lower whole percent is enough, so the feedback must not say so
        feedback = exercises.check_threshold(threshold)
        assert not feedback.right
        assert "asked is a threshold in whole percents" in feedback.message
