"""Lesson 01: the drawings show what the model has, and the checks tell right from typically wrong."""

import pytest
import torch
from ultralytics.nn.modules import C2f, Conv

import yolo_slim_lessons as slim
from yolo_slim_lessons.data import FASHION_MNIST_CLASSES
from yolo_slim_lessons.teaching import diagrams, exercises, plots


def texts(figure):
    """Every text of a drawing, from left to right."""
    labels = [text for text in figure.axes[0].texts if text.get_text()]
    return [text.get_text() for text in sorted(labels, key=lambda text: text.get_position()[0])]


def new(size):
    return slim.new_model(f"yolov8{size}-cls.yaml", FASHION_MNIST_CLASSES)


@pytest.fixture(scope="module")
def untrained():
    return new("n")


def test_network_drawing_names_every_block_and_what_it_hands_on(untrained):
    drawn = texts(diagrams.draw_network(untrained))
    # By hand: the yaml's channels × 0.25, and the side halved by each of the five Conv blocks.
    shapes = ["3 × 64 × 64", "16 × 32 × 32", "32 × 16 × 16", "32 × 16 × 16", "64 × 8 × 8", "64 × 8 × 8"]
    shapes += ["128 × 4 × 4", "128 × 4 × 4", "256 × 2 × 2", "256 × 2 × 2", "10"]
    assert [text for text in drawn if "×" in text and "channels" not in text] + ["10"] == shapes
    kinds = ["image", "Conv", "Conv", "C2f", "Conv", "C2f", "Conv", "C2f", "Conv", "C2f", "Classify"]
    assert [text for text in drawn if text in set(kinds)] == kinds
    assert [text for text in drawn if text.isdigit() and text != "10"] == [str(index) for index in range(10)]


def test_network_drawing_follows_width_and_image_size():
    drawn = texts(diagrams.draw_network(new("s"), image_size=96))
    assert "3 × 96 × 96" in drawn
    assert "32 × 48 × 48" in drawn
    assert drawn.count("512 × 3 × 3") == 2


def test_taller_maps_are_drawn_taller(untrained):
    heights = [diagrams.draw_network(untrained, size).get_size_inches()[1] for size in (32, 64, 128)]
    assert heights == sorted(set(heights))


@pytest.mark.parametrize(
    ("name", "bottlenecks", "half", "joined", "handed_on"),
    [
        ("model.2", 1, "16 × 16 × 16", "48 × 16 × 16", "32 × 16 × 16"),
        ("model.4", 2, "32 × 8 × 8", "128 × 8 × 8", "64 × 8 × 8"),
        ("model.8", 1, "128 × 2 × 2", "384 × 2 × 2", "256 × 2 × 2"),
    ],
)
def test_c2f_drawing_has_a_lane_for_each_joined_part(untrained, name, bottlenecks, half, joined, handed_on):
    drawn = texts(diagrams.draw_c2f(untrained, name))
    assert drawn.count(half) == 2 + bottlenecks
    assert drawn.count(joined) == 1
    assert drawn.count(handed_on) >= 2  # in and out; and between the first convolution and the split
    assert drawn.count("Conv 3×3") == 2 * bottlenecks
    assert drawn.count("Conv 1×1") == 2
    assert drawn.count("shortcut") == drawn.count("+") == bottlenecks


class UnevenC2f(C2f):
    """As a pruned block may be: halves of 16 and 9 channels."""

    def forward(self, x):
        parts = list(self.cv1(x).split([16, 9], 1))
        return self.cv2(torch.cat([*parts, self.m[0](parts[-1])], 1))


def test_c2f_drawing_shows_what_became_of_the_block():
    model = new("n")
    block = model.model[2]
    block.__class__ = UnevenC2f
    block.cv1, block.cv2 = Conv(32, 25, 1), Conv(16 + 9 + 11, 32, 1)
    block.m[0].cv1, block.m[0].cv2, block.m[0].add = Conv(9, 7, 5), Conv(7, 11, 3), False
    drawn = texts(diagrams.draw_c2f(model, "model.2"))
    for shape in ("25 × 16 × 16", "16 × 16 × 16", "9 × 16 × 16", "11 × 16 × 16", "36 × 16 × 16", "Conv 5×5"):
        assert drawn.count(shape) == 1
    assert "shortcut" not in drawn


def test_c2f_drawing_refuses_other_blocks(untrained):
    with pytest.raises(ValueError, match=r"name='model\.3'.*model\.2.*model\.8"):
        diagrams.draw_c2f(untrained, "model.3")


def test_classify_drawing(untrained):
    drawn = texts(diagrams.draw_classify(untrained))
    assert [text for text in drawn if text[0].isdigit()] == ["256 × 2 × 2", "1,280 × 2 × 2", "1,280", "10", "10"]


def test_drawing_leaves_the_model_alone(untrained):
    before = {key: value.clone() for key, value in untrained.state_dict().items()}
    untrained.train()
    diagrams.draw_network(untrained)
    assert untrained.training
    assert not any(module._forward_hooks for module in untrained.modules())
    assert all(torch.equal(value, before[key]) for key, value in untrained.state_dict().items())
    untrained.eval()


def test_no_text_of_a_drawing_is_cut_off_or_covers_another(untrained):
    for figure in (diagrams.draw_network(untrained, 128), diagrams.draw_c2f(untrained, "model.2")):
        figure.canvas.draw()
        boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text()]
        assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 for box in boxes)
        assert not [1 for i, one in enumerate(boxes) for other in boxes[:i] if one.overlaps(other)]
        assert plots.png(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("answer", "right", "hint"),
    [
        # By hand: (2 halves + 1 bottleneck) × 128 channels in, 256 out, 1×1, and 2 × 256 of BatchNorm.
        (3 * 128 * 256 + 512, True, "joined"),
        (3 * 128 * 256, False, "BatchNorm is missing"),
        (3 * 128 * 256 + 256, False, "two numbers a channel"),
        (2 * 128 * 256 + 512, False, "two halves only"),
        (3 * 128 * 256 * 9 + 512, False, "1×1, not 3×3"),
        (3 * 128 * 256 + 4 * 256, False, "recorded, not learned"),
        (256 * 256 + 512 + 2 * (128 * 128 * 9 + 256) + 3 * 128 * 256 + 512, False, "the whole block"),
        (12, False, "too few"),
        (10**9, False, "too many"),
        (..., False, "not tried"),
        ("many", False, "not a number"),
    ],
)
def test_check_c2f_parameters(answer, right, hint):
    feedback = exercises.check_c2f_parameters(answer)
    assert feedback.right is right
    assert hint in feedback.message


@pytest.mark.parametrize(
    ("change", "right", "hint"),
    [
        (lambda macs: 4 * (macs - 12_800) + 12_800, True, "positions"),
        (lambda macs: 4 * macs, False, "nearly"),
        (lambda macs: 2 * macs, False, "twice the width"),
        (lambda macs: macs, False, "more positions"),
        (lambda macs: 4 * (macs - 12_800), False, "linear layer is missing"),
        (lambda macs: 16 * macs, False, "not sixteen times"),
        (lambda macs: macs - 12_800, False, "the part that grows"),
        (lambda macs: ..., False, "not tried"),
    ],
)
def test_check_larger_image_macs(untrained, change, right, hint):
    feedback = exercises.check_larger_image_macs(change(slim.count_macs(untrained, 64)))
    assert feedback.right is right
    assert hint in feedback.message


@pytest.mark.parametrize(
    ("answer", "right", "hint"),
    [
        (lambda model, images: model.eval()(images / 255)[0], True, "eval mode"),
        (lambda model, images: model.eval()(images / 255)[1].softmax(1), True, "eval mode"),
        (lambda model, images: model.eval()(images / 255), False, "return the first"),
        (lambda model, images: model.eval()(images / 255)[1], False, "logits"),
        (lambda model, images: model.eval()(images / 255)[0].softmax(1), False, "twice"),
        (lambda model, images: model.eval()(images.float())[0], False, "divide by 255"),
        (lambda model, images: model(images / 255).softmax(1), False, "training mode"),
        (lambda model, images: model.eval()(images / 255)[0].argmax(1), False, "shape (8,)"),
        (lambda model, images: model.eval()(images / 128)[0], False, "not the model's probabilities"),
        (lambda model, images: None, False, "returns nothing"),
        (lambda model, images: model(images), False, "integers 0…255"),
        (lambda model, images: [p for p, _ in [model(images / 255)]], False, "call model.eval() first"),
        (lambda model, images: model(images / 255), False, "logits, in training mode"),
        (lambda model, images: model(images / 255)[0], False, "the first image's row"),
        (lambda model, images: model.eval()(images / 255)[0].double(), True, "eval mode"),
        (lambda model, images: model.eval()(images / 255)[0].numpy(), False, "a ndarray, expected a tensor"),
        (lambda model, images: model.eval()(images / 255)[0].max(1), False, "expected a tensor"),
        (lambda model, images: model.forget(), False, "could not be checked"),
        (0.9, False, "expected a function"),
        (..., False, "not tried"),
    ],
)
def test_check_probabilities(answer, right, hint):
    feedback = exercises.check_probabilities(answer)
    assert feedback.right is right
    assert hint in feedback.message
