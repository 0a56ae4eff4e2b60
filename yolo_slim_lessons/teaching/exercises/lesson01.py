"""Checks of lesson 01. Every right answer is counted or computed on a model, none is written down here."""

from __future__ import annotations

import torch

from yolo_slim_lessons.data import FASHION_MNIST_CLASSES, as_floats
from yolo_slim_lessons.measurement import count_macs, count_parameters
from yolo_slim_lessons.models import copy_model, load_model, new_model
from yolo_slim_lessons.teaching.exercises.feedback import Feedback, as_number, check, judge_number

__all__ = ["check_c2f_parameters", "check_larger_image_macs", "check_probabilities"]


@check
def check_c2f_parameters(answer: int) -> Feedback:
    """How many parameters has the convolution behind the concatenation of block 8, with its BatchNorm?"""
    block = _nano_blueprint().model[8]
    convolution = block.cv2.conv
    outputs, halves = convolution.out_channels, 2 * block.c
    batch_norm = 2 * outputs
    reasons = {
        convolution.weight.numel(): f"BatchNorm is missing: it learns two numbers for each of the {outputs} channels",
        convolution.weight.numel() + outputs: "BatchNorm learns two numbers a channel, a factor and an addend",
        convolution.weight.numel()
        + 2 * batch_norm: "mean and variance are recorded, not learned: BatchNorm learns γ, β",
        count_parameters(block): "that is the whole block: asked is its last 1×1 Conv alone",
        halves * outputs + batch_norm: "you joined the two halves only: what the bottleneck made is joined as well",
        (halves + block.c) * outputs * 9 + batch_norm: "the convolution behind the concatenation is 1×1, not 3×3",
    }
    return _judge_count(
        answer,
        count_parameters(block.cv2),
        reasons,
        "a bottleneck's output is joined to both halves, so each bottleneck more widens this convolution's input",
    )


@check
def check_larger_image_macs(answer: int) -> Feedback:
    """How many MACs does nano need for one image of 128 px, if its 64 px need ``count_macs(nano)``?"""
    model = _nano_blueprint()
    before, linear = count_macs(model, 64), model.model[9].linear.weight.numel()
    reasons = {
        4 * before: "nearly: one layer comes after the mean over all positions, and sees none of the larger image",
        2 * before: "an image of twice the side has twice the height and twice the width",
        before: "the weights stay the same, but each is used at more positions",
        4 * (before - linear): "the linear layer is missing: it takes as many MACs as before, so add them once",
        16 * before: "twice the side means four times the positions, not sixteen times",
        before - linear: "that is the part that grows: how many times, and plus what?",
    }
    return _judge_count(
        answer,
        count_macs(model, 128),
        reasons,
        "convolutions follow the number of positions, the linear layer behind the pool does not",
    )


@check
def check_probabilities(answer) -> Feedback:
    """A function of a model, perhaps in training mode, and uint8 images that returns N×classes probabilities."""
    if not callable(answer):
        return Feedback(False, "expected a function: def answer(model, images): …")
    images = torch.randint(256, (8, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = load_model("nano")
    with torch.no_grad():
        expected, scores = model(as_floats(images))
        unscaled, _ = model(images.float())
        training_scores = copy_model(model).train()(as_floats(images))
        try:
            result = answer(copy_model(model).train(), images.clone())
        except (RuntimeError, ValueError) as error:
            if "too many values to unpack" in str(error):
                return Feedback(False, "in training mode the model answers with logits alone: call model.eval() first")
            if "Byte" in str(error) or "unsigned char" in str(error):
                return Feedback(False, "the images went in as integers 0…255: divide them by 255, which makes floats")
            raise
    if result is None:
        return Feedback(False, "the function returns nothing: end it with return …")
    if type(result) is tuple:  # and none of PyTorch's own, such as that of max
        return Feedback(False, "in eval mode the head answers with (probabilities, logits): return the first")
    if not isinstance(result, torch.Tensor):
        return Feedback(False, f"the function returned a {type(result).__name__}, expected a tensor")
    if result.shape == training_scores[0].shape and torch.allclose(result.float(), training_scores[0], atol=1e-4):
        return Feedback(False, "in training mode the model answers with logits alone, and [0] is the first image's row")
    result = result.float()
    if tuple(result.shape) != tuple(expected.shape):
        return Feedback(
            False, f"the result has the shape {tuple(result.shape)}, expected one row an image {tuple(expected.shape)}"
        )
    mistakes = (
        (scores, "these are logits: the first of the two answers holds the probabilities"),
        (expected.softmax(1), "softmax was applied twice, which makes all classes look alike: the head did it already"),
        (unscaled, "the images went in as 0…255, but the model learned from 0…1: divide by 255"),
        (
            training_scores,
            "these are logits, in training mode: call model.eval(), and return the first of the two answers",
        ),
        (
            training_scores.softmax(1),
            "the model was still in training mode, where the images of a batch disturb each other",
        ),
    )
    if torch.allclose(result, expected, atol=1e-4):
        return Feedback(True, "floats in 0…1, eval mode, and the first of the two answers")
    for wrong, reason in mistakes:
        if torch.allclose(result, wrong, atol=1e-4):
            return Feedback(False, reason)
    return Feedback(False, "these are not the model's probabilities: mind the mode, the range 0…1 and the two answers")


def _nano_blueprint():
    return new_model("yolov8n-cls.yaml", FASHION_MNIST_CLASSES)


def _judge_count(answer: float, expected: int, mistakes: dict[int, str], praise: str) -> Feedback:
    number = as_number(answer)
    direction = "too many" if number > expected else "too few"
    hint = f"{number:,.0f} are {direction}: go through it again step by step"
    return judge_number(number, expected, mistakes, praise, hint, rel_tol=0)
