"""The checks of lesson 04 know right from wrong, and its drawings show what is tied."""

import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

import yolo_slim_lessons as slim
from yolo_slim_lessons.teaching import exercises, plots
from yolo_slim_lessons.teaching.tied_channels import draw_channel, draw_tied_channels

# Exercise 1


def test_half_the_macs_are_half_of_what_a_layer_computes():
    rate = 0.2929
    assert exercises.check_half_the_macs(rate).right
    model = slim.new_model("yolov8s-cls.yaml", ("a", "b"))
    half = slim.prune_channels(model, rate, round_to=1)
    before, after = (
        {cost.name: cost.macs for cost in slim.layer_costs(each)}["model.6.m.0.cv1.conv"] for each in (model, half)
    )
    assert after / before == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (0.5, "a quarter of the MACs"),
        (0.7071, "share of the channels that is left"),
        (0.25, "a little more than half"),
        (0.75, "0.25 × 0.25"),
        (0.159, "too many roots"),
        (29.3, "not a percentage"),
        (0.4, "inputs × outputs"),
        ("0.3", "not a number"),
    ],
)
def test_half_the_macs_mistakes_are_named(answer, reason):
    feedback = exercises.check_half_the_macs(answer)
    assert not feedback.right
    assert reason in feedback.message


# Exercise 2


def test_narrower_layers_are_those_that_pruning_makes_narrower(nano):
    pruned = slim.prune_channels(nano, {"model.6.m.0.cv2.conv": 0.5})
    pairs = zip(slim.weight_layers(nano), slim.weight_layers(pruned), strict=True)
    changed = {name for (name, old), (_, new) in pairs if len(new.weight) < len(old.weight)}
    assert exercises.check_narrower_layers(changed).right
    assert exercises.check_narrower_layers([name.removesuffix(".conv") for name in changed]).right


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"model.6.m.0.cv2.conv"}, "added to what went past it"),
        ({"model.6.m.0.cv2.conv", "model.6.m.1.cv2.conv"}, "comes out of the split"),
        ({"model.6.m.0.cv2.conv", "model.6.cv1.conv"}, "two bottlenecks"),
        ({"model.6.m.0.cv2.conv", "model.6.cv1.conv", "model.6.cv2.conv"}, "model.6.cv2.conv reads fewer"),
        ({"model.6.cv1.conv"}, "itself was told"),
        ({"model.6.m.0.cv2.conv", "model.6.m.7.cv2"}, "'model.6.m.7.cv2.conv' is no layer"),
        (
            {"model.6.m.0.cv2", "model.6.m.1.cv2", "model.6.cv1", "model.5"},
            "model.5.conv has nothing to do with these channels",
        ),
        ("model.6.cv1.conv", "several names"),
    ],
)
def test_narrower_layers_mistakes_are_named(answer, reason):
    feedback = exercises.check_narrower_layers(answer)
    assert not feedback.right
    assert reason in feedback.message


# Exercise 3


def test_channels_removed_by_index_are_right():
    def by_index(first, gamma, second, keep):
        kept = keep.nonzero().squeeze(1)
        return first.index_select(0, kept), gamma.index_select(0, kept), second.index_select(1, kept)

    assert exercises.check_remove_channels(by_index).right


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda f, g, s, k: (f[~k], g[~k], s[:, ~k]), "keep is True where a channel stays"),
        (lambda f, g, s, k: (f * k[:, None, None, None], g * k, s), "set to zero are still there"),
        (lambda f, g, s, k: (f[k], g, s[:, k]), "gamma still has all"),
        (lambda f, g, s, k: (f[k], g[k], s), "second still has all"),
        (lambda f, g, s, k: (f[k], g[k], s[k[:4]]), "second reads the channels"),
        (lambda f, g, s, k: (f[:, k[:3]], g[k], s[:, k]), "first makes the channels"),
        (lambda f, g, s, k: (f[k].flip(0), g[k], s[:, k]), "kept channels in order"),
        (lambda f, g, s, k: (f[k], g[k]), "expected three tensors"),
        (lambda f, g, s, k: (f[k], g[k], s[:, k].tolist()), "second is a list"),
        (lambda f, g: (f, g), "could not be checked"),
    ],
)
def test_removed_channels_mistakes_are_named(answer, reason):
    feedback = exercises.check_remove_channels(answer)
    assert not feedback.right
    assert reason in feedback.message


# Drawings


def texts_of(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_tied_channels_are_drawn_with_every_part_and_reason(nano):
    texts = texts_of(draw_tied_channels(nano, "model.4"))
    assert texts.count("32 channels") == 4
    assert "32 : 64\n64 : 96\n96 : 128" in texts  # what the convolution behind the concatenation reads of one group
    assert sum("a shortcut adds to them" in text for text in texts) == 1
    # In the order of the forward pass, in which the block's last convolution comes last.
    headers = [text for text in texts if text.startswith("model.")]
    assert headers == [
        "model.3",
        "model.4\ncv1",
        *(f"model.4\nm.{number}.cv{half}" for number in (0, 1) for half in (1, 2)),
        "model.4\ncv2",
        "model.5",
    ]


def test_a_pruned_model_is_drawn_as_it_has_become_and_the_head_keeps_its_classes(nano):
    texts = texts_of(draw_tied_channels(slim.prune_channels(nano, 0.5), "model.9"))
    assert "640 channels" in texts
    assert "10 channels, all kept" in texts


def test_blocks_without_channels_are_refused(nano):
    with pytest.raises(ValueError, match="model.77"):
        draw_tied_channels(nano, "model.77")


def test_a_channel_is_drawn_as_its_rows_and_columns(nano):
    group = next(group for group in slim.channel_groups(nano) if group.name == "model.4.cv1.conv[32:64]")
    figure = draw_channel(nano, group, 5)
    marks = [
        p for p in figure.axes[0].patches if isinstance(p, Rectangle) and to_hex(p.get_facecolor()) == plots.RED.lower()
    ]
    rows = [mark.get_y() for mark in marks if mark.get_height() == 1]
    columns = [mark.get_x() for mark in marks if mark.get_width() == 1]
    assert sorted(rows) == [5, 5, 32 + 5]  # two bottlenecks, and the second half of the split
    assert len(columns) == 5
    before_last, last = sorted(columns)[-2:]
    assert last - before_last == 32  # the concatenation lays the pieces side by side
    with pytest.raises(ValueError, match="number=32: expected 0 to 31"):
        draw_channel(nano, group, 32)
