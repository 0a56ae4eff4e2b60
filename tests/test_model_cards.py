"""The card says what was measured, and asks for what was not."""

import dataclasses
import hashlib
import re

import pytest
import torch

import yolo_slim_lessons as slim
from yolo_slim_lessons.compression.model_cards import model_card

TEXTS = {
    "name": "Clothes",
    "data_description": "Fashion-MNIST.",
    "licence": "AGPL-3.0, data MIT.",
    "intended_use": "For a course, not for a shop.",
}


@pytest.fixture(scope="module")
def part(data):
    return dataclasses.replace(data.take(train=20, val=20), test=data.test.take(300))


def test_card_holds_the_scores_of_the_test_images(nano, part, tmp_path):
    file = tmp_path / "nano.bin"
    file.write_bytes(b"weights")
    card = model_card(nano, part, files=[file], made_by="By hand.", **TEXTS)
    scores = slim.evaluate(nano, part.test)
    assert f"Top-1 accuracy {scores.top1:.2%}" in card
    for row in scores.per_class:
        assert f"| {row.name} | {row.precision:.1%} | {row.recall:.1%} | {row.f1:.1%} | {row.images:,} |" in card
    assert f"| `nano.bin` | 7 | `{hashlib.sha256(b'weights').hexdigest()}` |" in card
    assert re.findall("^## (.*)", card, re.MULTILINE) == [
        *("What it is", "What it is for", "Data", "How good it is", "Limits", "Files", "Licence")
    ]
    for text in ("By hand.", *TEXTS.values(), "1,451,098 parameters", "20 images to learn from"):
        assert text in card


def test_limits_name_the_weakest_class_and_the_worst_confusion(nano, part):
    """A model that takes every coat for a bag, and is always sure."""
    coat, bag = part.class_names.index("Coat"), part.class_names.index("Bag")
    blind = slim.load_model("nano")
    with torch.no_grad():
        linear = blind.model[-1].linear
        linear.weight[coat], linear.bias[coat] = 0, -1000
        linear.weight[bag], linear.bias[bag] = 0, 1000
    card = model_card(blind, part, **TEXTS)
    assert "It finds 0.0% of" in card
    assert "taken for Bag (30)" in card
    assert "in 100% of 200 cases" in card
    assert "## Files" not in card


@pytest.mark.parametrize("argument", TEXTS)
def test_a_card_without_its_texts_is_refused(nano, part, argument):
    with pytest.raises(ValueError, match=f"{argument}=' '"):
        model_card(nano, part, **TEXTS | {argument: " "})


def test_files_must_exist_and_models_be_classifiers(nano, part, tmp_path):
    with pytest.raises(FileNotFoundError, match="lost.onnx"):
        model_card(nano, part, files=[tmp_path / "lost.onnx"], **TEXTS)
    with pytest.raises(TypeError, match=r"pass load_model\('nano'\)"):
        model_card("nano", part, **TEXTS)
