"""Measured numbers are those worked out by hand, published, or counted by somebody else's tool."""

import math
import time

import numpy as np
import pytest
import torch
from torch import nn
from ultralytics.utils.torch_utils import get_flops

import yolo_slim_lessons as slim
from yolo_slim_lessons.data import FASHION_MNIST_CLASSES, Split
from yolo_slim_lessons.measurement import (
    LayerCost,
    checkpoint_bytes,
    paired_difference,
    score,
    timing,
    weight_bytes,
)
from yolo_slim_lessons.models import copy_model, weight_layers


@pytest.fixture(scope="module")
def some(data):
    return data.test.take(300)


# MACs and parameters


def test_macs_of_two_layers_by_hand(nano):
    costs = {cost.name: cost for cost in slim.layer_costs(nano)}
    # The first convolution: 3 channels to 16, kernel 3×3, every second pixel of 64×64, so 32×32 positions.
    # 16 × 3 × 3 × 3 = 432 weights, each multiplied at 32 × 32 = 1,024 positions: 442,368. BatchNorm adds 16 + 16.
    assert costs["model.0.conv"] == LayerCost("model.0.conv", 432 + 32, 442_368, (16, 32, 32))
    # The last layer: 1,280 features to 10 classes, one position: 12,800 weights, and 10 biases.
    assert costs["model.9.linear"] == LayerCost("model.9.linear", 12_810, 12_800, (10,))


def test_macs_of_grouped_and_strided_convolutions_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, groups=3), nn.Conv2d(6, 4, 1, stride=2, bias=False))
    grouped, pointwise = slim.layer_costs(model, image_size=8)
    assert grouped.macs == 6 * 1 * 3 * 3 * (8 * 8)  # each of the 6 outputs sees one input channel
    assert grouped.parameters == 6 * 1 * 3 * 3 + 6
    assert pointwise.macs == 4 * 6 * (4 * 4)
    assert pointwise.parameters == 24
    assert slim.count_macs(model, image_size=8) == 3_456 + 384


def test_the_sum_agrees_with_ultralytics_own_count(nano):
    fused = copy_model(nano).fuse(verbose=False)
    theirs = get_flops(fused, 64) * 1e9 / 2  # GFLOPs, at two operations a MAC
    # Theirs counts pooling and softmax as well: less than one in a hundred. Without fusing it would count BatchNorm,
    # which costs nothing once it is folded into the convolutions, too.
    assert slim.count_macs(nano) == pytest.approx(theirs, rel=0.01)
    assert slim.count_macs(fused) == slim.count_macs(nano)


def test_parameters_are_those_ultralytics_publishes(nano):
    # 2,719,288 for yolov8n-cls with ImageNet's 1,000 classes; here 990 rows of 1,280 weights and a bias fewer.
    assert slim.count_parameters(slim.new_model("yolov8n-cls.yaml", tuple(map(str, range(1_000))))) == 2_719_288
    assert slim.count_parameters(nano) == 2_719_288 - 990 * 1_281
    assert sum(cost.parameters for cost in slim.layer_costs(nano)) == slim.count_parameters(nano)


def test_macs_grow_with_the_area_but_for_the_last_layer(nano):
    assert slim.count_macs(nano, 128) - 12_800 == 4 * (slim.count_macs(nano, 64) - 12_800)
    assert slim.count_macs(nano) == slim.count_macs(nano, 64)


def test_only_exact_zeros_are_left_out_of_nonzero(nano):
    pruned = copy_model(nano)
    _, layer = next(weight_layers(pruned))
    already = slim.count_parameters(nano) - slim.count_parameters(nano, nonzero=True)
    with torch.no_grad():
        layer.weight.view(-1)[:100] = 0
        layer.weight.view(-1)[100] = 1e-30
    assert slim.count_parameters(pruned) == slim.count_parameters(nano)
    assert slim.count_parameters(nano) - slim.count_parameters(pruned, nonzero=True) == 100 + already


def test_bytes_are_4_a_parameter_and_those_of_the_written_file(nano, tmp_path):
    assert weight_bytes(nano) == 4 * slim.count_parameters(nano)
    for precision in ("fp16", "fp32"):
        written = slim.save_model(nano, tmp_path / "model.pt", precision)
        assert checkpoint_bytes(nano, precision) == written.stat().st_size


# intervals


@pytest.mark.parametrize(
    ("correct", "images", "low", "high"),
    [  # Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals_are_the_published_ones(correct, images, low, high):
    assert slim.wilson_interval(correct, images) == pytest.approx((low, high), abs=5e-5)
    # Right and wrong are named at will, so the interval of the wrong answers is its mirror image.
    assert slim.wilson_interval(images - correct, images) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_interval_by_its_formula():
    n, p, z = 10_000, 0.94, 1.959964
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    assert slim.wilson_interval(9_400, n) == pytest.approx((middle - reach, middle + reach), abs=1e-7)


def test_two_models_differ_by_the_images_that_one_of_them_gets_right():
    first = np.repeat([True, True, False, False], [80, 9, 3, 8])
    second = np.repeat([True, False, True, False], [80, 9, 3, 8])
    found = paired_difference(first, second)
    assert (found.only_first, found.only_second) == (9, 3)
    assert found.difference == pytest.approx(-0.06)
    # By hand: (3 - 9) / 102, and 1.96 · √((12 + 1) / 102 - that²) / √102.
    assert found.interval == pytest.approx((-0.05882 - 0.06834, -0.05882 + 0.06834), abs=1e-4)
    assert "-6.00 points" in repr(found)
    same = paired_difference(first, first)
    assert same.difference == 0
    assert same.interval[0] == -same.interval[1] < -0.005  # two that agree on 100 images may still differ
    with pytest.raises(ValueError, match=r"first has shape \(100,\), second \(99,\)"):
        paired_difference(first, second[1:])


def test_the_interval_of_a_difference_holds_it_as_often_as_promised():
    random = np.random.default_rng(0)
    held = []
    for _ in range(2_000):
        cell = random.choice(4, size=100, p=[0.85, 0.06, 0.02, 0.07])  # both right, only first, only second, none
        low, high = paired_difference(cell < 2, (cell == 0) | (cell == 2)).interval
        held.append(low <= -0.04 <= high)
    assert 0.94 <= np.mean(held) <= 0.98


def test_wilson_interval_at_its_ends():
    low, high = slim.wilson_interval(0, 100)
    assert low == 0
    assert high == pytest.approx(1.959964**2 / (100 + 1.959964**2), abs=1e-7)
    low, high = slim.wilson_interval(100, 100)
    assert high == 1
    assert slim.wilson_interval(1, 1)[0] == pytest.approx(1 / (1 + 1.959964**2), abs=1e-7)


@pytest.mark.parametrize(("correct", "images"), [(0, 0), (-1, 10), (11, 10)])
def test_impossible_counts_are_named(correct, images):
    with pytest.raises(ValueError, match=f"correct={correct}, images={images}: expected 0 ≤ correct ≤ images"):
        slim.wilson_interval(correct, images)


# scores


def test_scores_worked_out_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 1, 0])
    scores = score(labels, predicted, ("ant", "bee", "cat", "dog"))
    assert scores.confusion.tolist() == [[2, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert scores.top1 == pytest.approx(4 / 6)
    assert scores.interval == slim.wilson_interval(4, 6)
    # Precision: of 3 called ant 2 are, of 3 called bee 2 are, the one cat is missed, and there is no dog.
    # Recall: 2 of 3 ants are found, 2 of 2 bees. F1 = 2 P R / (P + R): 2/3 for ants, (8/6) / (10/6) for bees, else 0.
    rows = [(c.name, c.precision, c.recall, c.f1, c.images) for c in scores.per_class]
    assert rows[0] == ("ant", pytest.approx(2 / 3), pytest.approx(2 / 3), pytest.approx(2 / 3), 3)
    assert rows[1] == ("bee", pytest.approx(2 / 3), 1, pytest.approx(4 / 5), 2)
    assert rows[2] == ("cat", 0, 0, 0, 1)
    assert rows[3] == ("dog", 0, 0, 0, 0)
    # Of dogs nothing can be said: means are over the three classes that have images.
    assert scores.precision == pytest.approx((2 / 3 + 2 / 3) / 3)
    assert scores.recall == pytest.approx((2 / 3 + 1) / 3)
    assert scores.f1 == pytest.approx((2 / 3 + 4 / 5) / 3)
    assert str(scores) == repr(scores) == "top-1 66.7% (95 % interval 30.0% to 90.3%), macro F1 48.9%"


def test_evaluate_counts_the_answers_of_the_model(nano, some):
    with torch.inference_mode():
        answers = torch.cat([nano(images)[0] for images, _ in some.batches()]).argmax(1)
    scores = slim.evaluate(nano, some)
    assert scores.top1 == (answers == some.labels).sum().item() / 300
    assert scores.interval[0] < scores.top1 < scores.interval[1]
    assert scores.confusion.sum(1).tolist() == [30] * 10
    assert scores.confusion.sum(0).tolist() == answers.bincount(minlength=10).tolist()
    assert [row.name for row in scores.per_class] == list(nano.names.values())


def test_predict_is_the_plain_forward_pass(nano, some):
    with torch.inference_mode():
        expected = torch.cat([nano(images)[0] for images, _ in some.batches(64)])
    for batch_size in (64, 128, 7):
        probabilities = slim.predict(nano, some, batch_size)
        assert probabilities.dtype == torch.float32
        assert probabilities.shape == (300, 10)
        assert probabilities.allclose(expected, atol=1e-5, rtol=0)
    assert probabilities.sum(1).allclose(torch.ones(300), atol=1e-5)


def test_predict_takes_a_model_in_either_memory_format(nano, some):
    turned = copy_model(nano).to(memory_format=torch.channels_last)
    assert slim.predict(turned, some).allclose(slim.predict(nano, some), atol=1e-6)


def test_measuring_leaves_the_model_as_it_was(some):
    model = slim.new_model("yolov8n-cls.yaml", FASHION_MNIST_CLASSES).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = [name for name, _ in model.named_modules()]
    slim.measure(model, some, repeats=2)
    slim.compare(model, model, repeats=2)
    assert model.training
    assert [name for name, _ in model.named_modules()] == modules  # BatchNorm is still there
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_a_model_in_training_mode_answers_as_in_eval_mode(nano, some):
    training = copy_model(nano).train()
    assert slim.predict(training, some).equal(slim.predict(nano, some))


def test_evaluation_is_not_slow(nano, data):
    part = data.test.take(1_000)
    slim.predict(nano, part[:128])
    start = time.perf_counter()
    slim.evaluate(nano, part)
    per_second = 1_000 / (time.perf_counter() - start)
    assert per_second > 100, f"{per_second:.0f} images/s"  # some 2,000 on two quiet cores


def test_splits_the_model_cannot_answer_are_refused(nano, some):
    with pytest.raises(ValueError, match="split is empty"):
        slim.evaluate(nano, some[:0])
    with pytest.raises(ValueError, match="split is empty"):
        slim.measure(nano, some[:0])
    for label in (10, -1):
        other = Split(some.images[:2], torch.tensor([0, label]))
        with pytest.raises(ValueError, match=f"split has label {label}, but the model knows the labels 0 to 9"):
            slim.evaluate(nano, other)


# time


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when a test moves it: ``clock.now`` in nanoseconds."""

    class Clock:
        now = 0

    monkeypatch.setattr(timing.time, "perf_counter_ns", lambda: Clock.now)
    return Clock


def timed(clock, milliseconds, log=None, name=None):
    """A model that takes the given times, one after the other."""
    times = iter(milliseconds)

    def model(images):
        clock.now += round(next(times) * 1e6)
        if log is not None:
            log.append(name)

    return model


def test_compare_takes_turns_and_drops_the_warm_up(clock):
    log = []
    first = timed(clock, [500, 100, 2, 2, 2, 2, 2], log, "first")
    second = timed(clock, [500, 1, 4, 6, 8, 10, 12], log, "second")
    comparison = slim.compare(first, second, image_size=32, repeats=5, warmup=2)
    assert log == ["first", "second"] * 7
    assert comparison.first.milliseconds.tolist() == [2] * 5
    assert comparison.second.milliseconds.tolist() == [4, 6, 8, 10, 12]
    # Round by round the second takes 2, 3, 4, 5 and 6 times as long.
    assert comparison.ratio == 4
    assert comparison.spread == (3, 5)
    assert "second / first: 4.00 (middle half of the rounds: 3.00 to 5.00)" in str(comparison)


def test_what_slows_the_machine_down_falls_on_both(clock):
    busy = [1, 1, 1, 10, 10, 10, 1, 1, 1]  # another program runs for a while
    comparison = slim.compare(
        timed(clock, [3 * factor for factor in busy]),
        timed(clock, [6 * factor for factor in busy]),
        image_size=32,
        repeats=9,
        warmup=0,
    )
    assert comparison.ratio == 2
    assert comparison.spread == (2, 2)


def test_median_and_p95_of_known_times(clock):
    latency = slim.time_model(timed(clock, range(1, 101)), image_size=32, repeats=100, warmup=0)
    assert latency.median == 50.5
    assert 95 <= latency.p95 <= 96
    assert (latency.milliseconds <= latency.p95).sum() == 95


def test_sleeps_are_timed_in_milliseconds():
    comparison = slim.compare(
        lambda images: time.sleep(0.01), lambda images: time.sleep(0.03), image_size=32, repeats=5, warmup=1
    )
    assert comparison.first.milliseconds.min() >= 9  # a sleep may last longer, but hardly shorter
    assert comparison.second.milliseconds.min() >= 27
    assert comparison.ratio > 1.2


class Watched(nn.Module):
    """A model that notes what it is called with."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images):
        self.seen.append((tuple(images.shape), torch.get_num_threads(), images.dtype))


def test_batch_image_size_and_threads_are_as_asked():
    model = Watched().eval()
    before = torch.get_num_threads()
    latency = slim.time_model(model, batch_size=4, image_size=96, repeats=2, warmup=1, threads=2)
    assert model.seen == [((4, 3, 96, 96), 2, torch.float32)] * 3
    assert (latency.batch_size, latency.threads) == (4, 2)
    assert "batch 4, 2 threads, 2 runs" in str(latency)
    assert "batch 1, 1 thread, 1 runs" in str(slim.time_model(model, image_size=32, repeats=1, threads=1))
    assert torch.get_num_threads() == before


def test_nothing_is_said_of_threads_that_are_not_pytorchs(nano):
    """A function may run an ONNX session, which has as many threads as it was made with."""
    comparison = slim.compare(nano, lambda images: None, repeats=3, threads=1)
    assert "batch 1, 1 thread, 3 runs" in str(comparison.first)
    assert comparison.second.threads is None
    assert "thread" not in str(comparison.second)


def test_threads_come_back_after_an_error():
    before = torch.get_num_threads()

    def broken(images):
        raise RuntimeError("broken model")

    with pytest.raises(RuntimeError, match="broken model"):
        slim.time_model(broken, image_size=32, threads=before + 1)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 0), ("image_size", 0), ("repeats", 0), ("warmup", -1), ("threads", 0)]
)
def test_numbers_too_small_are_named(nano, name, value):
    with pytest.raises(ValueError, match=f"{name}={value}: expected"):
        slim.time_model(nano, **{name: value})


def test_a_callable_needs_its_image_size_told():
    with pytest.raises(ValueError, match="image_size=None: a function does not say"):
        slim.time_model(lambda images: images)


# the scorecard


def test_scorecard_holds_what_the_single_measurements_say(nano, some):
    card = slim.measure(nano, some, repeats=3)
    assert card.scores.top1 == slim.evaluate(nano, some).top1
    assert card.parameters == slim.count_parameters(nano)
    assert card.nonzero_parameters == slim.count_parameters(nano, nonzero=True)
    assert card.macs == slim.count_macs(nano)
    assert card.bytes == weight_bytes(nano)
    assert card.checkpoint_bytes == checkpoint_bytes(nano)
    assert card.image_size == 64
    assert len(card.latency_ms.milliseconds) == 3
    assert card.latency_ms.batch_size == 1
    assert 0 < card.latency_ms.median <= card.latency_ms.p95


def test_scorecard_is_a_table_in_a_notebook_and_lines_elsewhere(nano, some):
    card = slim.measure(nano, some, repeats=1)
    markup = card._repr_html_()
    assert markup.startswith("<table>")
    assert markup.endswith("</table>")
    assert markup.count("<tr>") == markup.count("</tr>") == len(card.rows()) == 7
    for name, value in card.rows():
        assert f"{name}</th><td>{value}</td>" in markup
        assert f"{name}: {value}" in str(card)
    assert f"{card.macs:,}" in markup
    assert "5.804 MB" in markup  # 4 × 1,451,098 bytes


def test_scorecard_without_a_split_says_nothing_of_accuracy(nano):
    card = slim.measure(nano, repeats=1)
    assert card.scores is None
    assert "top-1" not in card._repr_html_()
    assert "latency" in str(card)


def test_a_quantized_model_is_not_called_larger_than_its_floats(nano):
    whole = slim.measure(nano, repeats=1)
    assert whole.quantized_bytes is None
    for bits in (3, 8):
        quantized = slim.quantize_integer(nano, bits)
        card = slim.measure(quantized, repeats=1)
        assert card.checkpoint_bytes is None  # save_model refuses it
        weights = sum(math.ceil(layer.weight.numel() * bits / 8) for _, layer in slim.weight_layers(quantized))
        outputs = sum(layer.weight.shape[0] for _, layer in slim.weight_layers(quantized))
        assert card.quantized_bytes == weights + 2 * 4 * outputs  # a scale and a bias for each output
        assert weights < card.quantized_bytes < whole.checkpoint_bytes * (bits + 1) / 16
        assert ("weights as integers", f"{card.quantized_bytes / 1e6:.3f} MB") in card.rows()
        assert "checkpoint file at FP16" not in dict(card.rows())


def test_a_model_with_rounded_activations_has_no_checkpoint(nano):
    card = slim.measure(slim.quantize_float(nano, "fp16", activations="fp16"), repeats=1)
    assert card.checkpoint_bytes is card.quantized_bytes is None


# a model that does not say its image size


def test_the_size_of_the_images_counts_where_the_model_names_none(nano, data):
    silent = slim.load_model("nano")
    silent.args = {}
    card = slim.measure(silent, data.val.take(20), repeats=1, progress=False)
    assert (card.image_size, card.macs) == (64, slim.count_macs(nano))
    with pytest.raises(ValueError, match=r"image size is None: .*model\.args = "):
        slim.measure(silent, repeats=1)


def test_macro_means_are_over_the_classes_that_have_images(nano, data):
    some = data.test[data.test.labels < 4]
    scores = slim.evaluate(nano, some, progress=False)
    assert scores.recall == pytest.approx(sum(each.recall for each in scores.per_class[:4]) / 4)
    assert [each.images for each in scores.per_class[4:]] == [0] * 6
