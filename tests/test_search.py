"""Scans against models changed and measured one by one, and plans against the files that they lead to."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from scipy.special import softmax
from scipy.stats import spearmanr
from torch import nn

import yolo_slim_lessons as slim
from yolo_slim_lessons.compression import budgets
from yolo_slim_lessons.compression.budgets import Survey, plan_recipe, survey_layers
from yolo_slim_lessons.compression.channel_scan import narrower_models
from yolo_slim_lessons.data import as_floats
from yolo_slim_lessons.models import copy_model, logits
from yolo_slim_lessons.quantization.few_bits import round_biases
from yolo_slim_lessons.search import sensitivity


def test_scan_holds_the_accuracy_of_each_model(nano, data):
    few = data.val.take(60)
    layers, rates = ["model.1.conv", "model.9.linear"], [0.0, 0.95]
    scan = sensitivity(nano, few, slim.prune_weights, layers, rates, progress=False)
    assert (scan.layers, scan.rates, scan.images) == (tuple(layers), tuple(rates), 60)
    assert scan.baseline == slim.evaluate(nano, few, progress=False).top1
    assert scan.top1.shape == (2, 2)
    assert (scan.top1[:, 0] == scan.baseline).all()
    for layer, top1 in zip(layers, scan.top1[:, 1], strict=True):
        assert top1 == slim.evaluate(slim.prune_weights(nano, {layer: 0.95}), few, progress=False).top1
    assert scan.top1[0, 1] < scan.baseline  # an early layer does not bear 95 %


def test_change_is_called_with_one_layer_and_rate_at_a_time(nano, data):
    calls = []
    sensitivity(
        nano, data.val.take(10), lambda model, change: calls.append(change) or model, "ab", [0.1, 0.2], progress=False
    )
    assert calls == [{"a": 0.1}, {"a": 0.2}, {"b": 0.1}, {"b": 0.2}]


@pytest.mark.parametrize(("layers", "rates"), [([], [0.5]), (["model.0.conv"], [])])
def test_nothing_to_scan(nano, data, layers, rates):
    with pytest.raises(ValueError, match="expected at least one of each"):
        sensitivity(nano, data.val.take(10), slim.prune_weights, layers, rates)


def test_a_wrong_layer_is_named(nano, data):
    with pytest.raises(ValueError, match="'conv7'"):
        sensitivity(nano, data.val.take(10), slim.prune_weights, ["conv7"], [0.5], progress=False)


# budgets: what layers can bear


@pytest.fixture(scope="module")
def few():
    """Small images, none to train on and none to report on."""
    data = slim.load_images("fashion-mnist", image_size=32).take(train=1, val=60)
    return replace(data, train=None, test=None)


@pytest.fixture(scope="module")
def survey(nano, few):
    return survey_layers(nano, few.val, images=24, bits=(2, 4, 8), progress=False)


@pytest.fixture(scope="module")
def exact(nano, few):
    return survey_layers(nano, few.val, images=24, bits=(2, 4, 8), exact=True, progress=False)


def test_the_exact_survey_is_the_divergence_with_one_layer_narrowed(nano, few, exact):
    images = as_floats(few.val.take(24).images)

    def probabilities(model):
        model = copy_model(model)
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.train()  # normalizes by the batch at hand
        with torch.no_grad():
            return softmax(logits(model, images).double().numpy(), 1)

    scan = exact.channels
    names = [scan.groups[members[0]].name for members in scan.families]
    row = names.index("model.5.conv")
    assert scan.counts[row].tolist() == [128, 96, 64, 32, 16, 8]
    p, q = probabilities(nano), probabilities(slim.prune_channels(nano, {"model.5.conv": 0.75}))
    assert scan.losses[row][3] == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=0.01)
    assert all((np.diff(losses) >= 0).all() and losses[0] == 0 for losses in scan.losses)
    assert exact.bits.layers == tuple(name for name, _ in slim.weight_layers(nano))


def all_losses(survey):
    return np.concatenate([losses[1:] for losses in survey.channels.losses]), survey.bits.loss.ravel()


def test_the_survey_of_one_pass_ranks_as_the_exact_one_does(nano, data):
    options = {"images": 64, "bits": (3,), "progress": False}
    surveys = [survey_layers(nano, data.val, exact=exact, **options) for exact in (False, True)]
    for estimated, measured in zip(*map(all_losses, surveys), strict=True):
        assert spearmanr(estimated, measured).statistic > 0.9
        # The small ones, on which plans are built, have the right size, too.
        small = (measured > 1e-4) & (measured < 0.1)
        assert 0.5 < np.exp(np.log(estimated[small] / measured[small]).mean()) < 2


@pytest.mark.slow
def test_the_survey_of_one_pass_serves_attention_and_depthwise_convolutions(data):
    model = slim.load_model(Path(__file__).parent / "files" / "yolo11n.pt")
    options = {"images": 64, "bits": (3,), "progress": False}
    surveys = [survey_layers(model, data.val, exact=exact, **options) for exact in (False, True)]
    for estimated, measured in zip(*map(all_losses, surveys), strict=True):
        assert spearmanr(estimated, measured).statistic > 0.9


def test_models_of_the_sequence_get_smaller_and_never_cheaper(nano, survey):
    line = narrower_models(nano, survey.channels, "parameters")
    assert survey.channels.loss(line[0]) == 0
    assert survey.channels.rates(line[0]) == {}
    for before, after in pairwise(line):
        assert (after <= before).all()
        assert 8 <= (before - after).sum() <= 16  # a block of 8, or one of each tied half
        assert survey.channels.loss(after) >= survey.channels.loss(before)
    smallest = slim.prune_channels(nano, survey.channels.rates(line[-1]))
    widths = {layer.weight.shape[0] for name, layer in slim.weight_layers(smallest)}
    assert widths == {8, 16, 10}  # the halves of a split make 16, and there are ten classes
    middle = slim.prune_channels(nano, survey.channels.rates(line[60]))
    groups = slim.channel_groups(middle)
    assert [group.size for group in groups] == line[60].tolist()


# budgets: plans


def carried_out(model, recipe):
    """The model of a recipe without any training, and the settings of its stages."""
    settings = {name: options for stage in recipe["stages"] for name, options in stage.items()}
    narrow = slim.prune_channels(model, **settings["prune_channels"]) if "prune_channels" in settings else model
    bits = (settings.get("train_quantized") or settings["quantize_integer"])["bits"]
    return round_biases(slim.quantize_integer(narrow, bits)), settings


@pytest.mark.parametrize("target", [15_000, 60_000])
def test_the_plan_fits_into_the_bytes_and_uses_them(nano, survey, target, tmp_path):
    recipe = plan_recipe(nano, survey, slim.Budget(target_bytes=target))
    small, settings = carried_out(nano, recipe)
    size = slim.save_packed(small, tmp_path / "small.slim").stat().st_size
    assert 0.95 * target < size <= target
    assert list(settings) == ["prune_channels", "distill", "train_quantized", "round_biases"]
    assert yaml.safe_load(yaml.safe_dump(recipe)) == recipe


def test_the_same_survey_gives_the_same_plan(nano, survey):
    first, again = (plan_recipe(nano, survey, slim.Budget(target_bytes=40_000)) for _ in range(2))
    assert first == again


def test_a_large_budget_takes_all_bits_and_prunes_nothing(nano, survey):
    recipe = plan_recipe(nano, survey, slim.Budget(target_bytes=10**8, epochs=4))
    assert [name for stage in recipe["stages"] for name in stage] == ["train_quantized", "round_biases"]
    assert set(recipe["stages"][0]["train_quantized"]["bits"].values()) == {8}


def test_what_cannot_bear_it_is_spared(nano, survey):
    budget = slim.Budget(target_bytes=40_000)
    _, settings = carried_out(nano, plan_recipe(nano, survey, budget))
    assert settings["prune_channels"]["prune_rate"]["model.7.conv"] > 0
    assert settings["train_quantized"]["bits"]["model.8.cv1.conv"] < 8
    bit_losses, channel_losses = survey.bits.loss.copy(), list(survey.channels.losses)
    bit_losses[survey.bits.layers.index("model.8.cv1.conv"), :2] += 1000
    names = [survey.channels.groups[members[0]].name for members in survey.channels.families]
    row = names.index("model.7.conv")
    channel_losses[row] = channel_losses[row] + 1000 * (channel_losses[row] > 0)
    touchy = Survey(replace(survey.channels, losses=channel_losses), replace(survey.bits, loss=bit_losses))
    _, settings = carried_out(nano, plan_recipe(nano, touchy, budget))
    assert "model.7.conv" not in settings["prune_channels"]["prune_rate"]
    assert settings["train_quantized"]["bits"]["model.8.cv1.conv"] == 8


@pytest.mark.parametrize(
    ("epochs", "names", "split"),
    [
        (0, ["prune_channels", "reestimate_batchnorm", "quantize_integer", "round_biases"], []),
        (1, ["prune_channels", "reestimate_batchnorm", "train_quantized", "round_biases"], [1]),
        (12, ["prune_channels", "distill", "train_quantized", "round_biases"], [9, 3]),
    ],
)
def test_epochs_are_shared_out(epochs, names, split):
    stages = [item for stage in budgets._stages({"a": 0.5}, {"a": 4}, epochs) for item in stage.items()]
    assert [name for name, _ in stages] == names
    assert [settings["epochs"] for _, settings in stages if "epochs" in settings] == split


@pytest.fixture
def milliseconds_are_macs(monkeypatch):
    """A processor that takes a millisecond for a million multiplications, every time."""
    monkeypatch.setattr(budgets, "onnx_runner", lambda model: model)
    monkeypatch.setattr(
        budgets, "time_model", lambda model, image_size: SimpleNamespace(median=slim.count_macs(model) / 1e6)
    )


def test_channels_go_until_the_model_is_fast_enough(nano, survey, milliseconds_are_macs):
    whole = slim.count_macs(nano) / 1e6
    recipe = plan_recipe(nano, survey, slim.Budget(target_latency=whole / 2))
    assert [name for stage in recipe["stages"] for name in stage] == ["prune_channels", "distill"]
    rates = recipe["stages"][0]["prune_channels"]["prune_rate"]
    macs = slim.count_macs(slim.prune_channels(nano, rates)) / 1e6
    assert 0.85 * 0.9 * whole / 2 < macs <= 0.9 * whole / 2  # the first on the line below the target less a tenth
    both = plan_recipe(nano, survey, slim.Budget(target_latency=whole / 2, target_bytes=60_000))
    small, settings = carried_out(nano, both)
    assert slim.packed_sizes(small).file <= 60_000
    assert slim.count_macs(small) / 1e6 <= 0.9 * whole / 2
    assert all(settings["prune_channels"]["prune_rate"][layer] >= rate for layer, rate in rates.items())


def test_fast_enough_already(nano, survey, milliseconds_are_macs):
    recipe = plan_recipe(nano, survey, slim.Budget(target_latency=1000))
    assert recipe == {"seed": 0, "stages": []}


def test_targets_that_cannot_be_met_name_the_least(nano, survey, milliseconds_are_macs):
    with pytest.raises(ValueError, match=r"target_bytes=900: the smallest plan takes [\d,]+ bytes"):
        plan_recipe(nano, survey, slim.Budget(target_bytes=900))
    with pytest.raises(ValueError, match=r"target_latency=0.01: the narrowest model takes 1\.\d+ ms"):
        plan_recipe(nano, survey, slim.Budget(target_latency=0.01))


@pytest.mark.parametrize(
    ("targets", "error", "words"),
    [
        ({}, ValueError, "Budget without a target: expected target_bytes, target_latency or max_drop"),
        ({"target_bytes": 0}, ValueError, "target_bytes=0: expected a number of bytes above 0"),
        ({"target_bytes": "50k"}, TypeError, "target_bytes='50k'"),
        ({"target_latency": float("nan")}, ValueError, "target_latency=nan: expected milliseconds above 0"),
        ({"max_drop": 1.5}, ValueError, "max_drop=1.5: expected 0 or more, less than 1"),
        ({"max_drop": True}, TypeError, "max_drop=True"),
        ({"max_drop": 0.01, "epochs": -1}, ValueError, "epochs=-1: expected a number of epochs"),
        ({"max_drop": 0.01, "epochs": 2.5}, ValueError, "epochs=2.5"),
        ({"max_drop": 0.01, "epochs": None}, TypeError, "epochs=None"),
    ],
)
def test_budgets_out_of_range_are_named(targets, error, words):
    with pytest.raises(error, match=words):
        slim.Budget(**targets)


def test_a_plan_needs_a_budget_that_can_be_foreseen(nano, survey):
    with pytest.raises(ValueError, match="only training tells what is lost"):
        plan_recipe(nano, survey, slim.Budget(max_drop=0.01))
    with pytest.raises(TypeError, match="budget=50000: expected a Budget"):
        plan_recipe(nano, survey, 50_000)
    with pytest.raises(TypeError, match=r"pass load_model\('nano'\)"):
        survey_layers("nano", None)


@pytest.mark.parametrize("images", [1, 0, 2.5, True])
def test_a_survey_needs_images(nano, few, images):
    with pytest.raises(ValueError, match=f"images={images}, of 60: expected 2 or more, such as 256"):
        survey_layers(nano, few.val, images=images)
