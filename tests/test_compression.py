"""compress() against its stages done by hand, stopped in the middle, and held to its budget."""

import inspect
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml

import yolo_slim_lessons as slim
from yolo_slim_lessons import training
from yolo_slim_lessons.compression import (
    STAGES,
    Compression,
    StageResult,
    TargetFile,
    budgets,
    compress,
    read_stages,
    recipes,
    within_budget,
)
from yolo_slim_lessons.compression.budgets import survey_layers
from yolo_slim_lessons.compression.stage_bar import StageBar
from yolo_slim_lessons.data import Split
from yolo_slim_lessons.quantization.few_bits import round_biases

TRAINED = {"epochs": 2, "batch_size": 32, "augment": False}
RECIPE = {
    "seed": 3,
    "stages": [
        {"prune_channels": {"prune_rate": 0.5}},
        {"distill": TRAINED},
        {"quantize_integer": {"bits": 4}},
        {"round_biases": {"format": "bf16"}},
    ],
}


class Sealed:
    """Test images that nobody may look at."""

    def __getattribute__(self, name):
        raise AssertionError(f"test images were asked for {name}")


@pytest.fixture(scope="module")
def few():
    data = slim.load_images("fashion-mnist", image_size=32).take(train=64, val=50)
    return replace(data, test=Sealed())


@pytest.fixture
def unweighed(monkeypatch):
    """Where files do not matter, none is packed just to see its size."""
    monkeypatch.setattr("yolo_slim_lessons.compression.packed_bytes", lambda model: 1)


@pytest.fixture(scope="module")
def made(nano, few):
    return compress(nano, few, RECIPE, progress=False)


def same(first, second):
    states = first.state_dict(), second.state_dict()
    return states[0].keys() == states[1].keys() and all(value.equal(states[1][key]) for key, value in states[0].items())


# what it does


def test_a_recipe_is_its_stages_one_by_one(nano, few, made):
    before = {name: tensor.clone() for name, tensor in nano.state_dict().items()}
    by_hand = [nano, slim.prune_channels(nano, 0.5)]
    by_hand.append(slim.distill(by_hand[-1], nano, few, **TRAINED, seed=3, progress=False))
    by_hand.append(slim.quantize_integer(by_hand[-1], 4))
    by_hand.append(round_biases(by_hand[-1], "bf16"))
    assert [stage.name for stage in made.stages] == ["start", *(name for stage in RECIPE["stages"] for name in stage)]
    for stage, expected in zip(made.stages, by_hand, strict=True):
        assert same(stage.model, expected), stage.name
        assert stage.scores.top1 == slim.evaluate(expected, few.val, progress=False).top1
        assert stage.parameters == slim.count_parameters(expected)
        assert stage.macs == slim.count_macs(expected)
        assert stage.packed_bytes == slim.packed_sizes(expected).file
    assert made.model is made.stages[-1].model
    assert made.recipe == RECIPE
    assert all(tensor.equal(before[name]) for name, tensor in nano.state_dict().items())


def test_drop_and_factor_are_those_of_the_ends(nano, made):
    first, last = made.stages[0], made.stages[-1]
    assert made.drop == first.scores.top1 - last.scores.top1
    assert made.factor == slim.count_parameters(nano) * 4 / last.packed_bytes
    assert made.factor > 20


def test_the_table_shows_every_stage(made):
    words = repr(made).splitlines()
    assert len(words) == 6
    assert "top-1 on val" in words[0]
    assert "ms in ONNX Runtime" not in words[0]
    for line, stage in zip(words[1:], made.stages, strict=True):
        for text in (stage.name, f"{stage.scores.top1:.2%}", f"{stage.parameters:,}", f"{stage.packed_bytes:,}"):
            assert text in line
    html = made._repr_html_()
    assert html.count("<tr>") == 6
    assert html.count("<td>") == 5 * 7
    assert f"<td>{made.factor:.1f}</td>" in html


def test_every_stage_of_the_list_runs(nano, few):
    training = {"epochs": 1, "batch_size": 32}
    settings = {
        "replace_activations": {"activation": "relu"},
        "remove_bottlenecks": {"keep": {"model.2": 0}},
        "prune_channels": {"prune_rate": 0.75, "prune_type": "taylor"},
        "reestimate_batchnorm": {"batch_size": 16},
        "prune_weights": {"prune_rate": 0.5},
        "fit": training,
        "distill": training | {"versions": 2, "alpha": 0.5},
        "quantize_integer": {"bits": 8, "activation_bits": 8, "correct_biases": True},
    }
    rounded = {"train_quantized": training | {"bits": 3, "versions": 2}, "round_biases": None}
    float_stages = [{name: options} for name, options in settings.items() if name != "quantize_integer"]
    narrow = compress(nano, few, {"stages": float_stages}, progress=False).model
    for last in ({"quantize_integer": settings["quantize_integer"]}, rounded):
        stages = [{name: options} for name, options in last.items()]
        small = compress(narrow, few, {"stages": stages}, teacher=nano, progress=False)
        assert small.stages[-1].packed_bytes < small.stages[0].packed_bytes / 2
    assert settings.keys() | rounded.keys() == STAGES.keys()


def test_each_stage_can_be_timed(nano, few, unweighed):
    recipe = {"stages": [{"prune_channels": {"target_macs": 0.2}}, {"quantize_integer": {"bits": 4}}]}
    timed = compress(nano, few, recipe, latency=True, progress=False)
    assert all(stage.latency.second.median > 0 for stage in timed.stages)
    assert timed.stages[0].latency.ratio == pytest.approx(1, abs=0.5)  # against itself
    assert timed.head()[-2:] == ("ms in ONNX Runtime", "times faster")
    assert all(len(row) == 9 for row in timed.rows())
    assert timed.targets == ()


def test_the_seed_of_a_recipe_reaches_every_stage_that_takes_one(nano, few, unweighed):
    def zeros(recipe):
        model = compress(nano, few, recipe, progress=False).model
        return torch.cat([(layer.weight == 0).flatten() for _, layer in slim.weight_layers(model)])

    stages = [{"prune_weights": {"prune_rate": 0.5, "prune_type": "random"}}]
    first, second, again = (zeros({"seed": seed, "stages": stages}) for seed in (0, 1, 0))
    assert first.equal(again)
    assert not first.equal(second)
    stages[0]["prune_weights"]["seed"] = 0  # of the stage itself
    assert zeros({"seed": 1, "stages": stages}).equal(first)
    for name, (function, shared) in STAGES.items():
        assert ("seed" in inspect.signature(function).parameters) <= ("seed" in shared), name


@pytest.fixture
def of_ones_own(few, tmp_path):
    """A classifier that no architecture of Ultralytics describes."""
    file = tmp_path / "mine-cls.yaml"
    layers = "backbone: [[-1, 1, Conv, [8, 3, 2]], [-1, 1, Conv, [16, 3, 2]]]\nhead: [[-1, 1, Classify, [nc]]]\n"
    file.write_text(f"nc: 10\n{layers}", encoding="utf-8")
    return slim.new_model(str(file), few.class_names, image_size=32)


def test_a_network_that_cannot_be_packed_is_compressed_without_a_packed_size(of_ones_own, few, validations, tmp_path):
    stages = [{"prune_weights": {"prune_rate": 0.5}}, {"fit": TRAINED}, {"quantize_integer": {"bits": 4}}]
    made = compress(of_ones_own, few, {"stages": stages}, folder=tmp_path / "stages", progress=False)
    assert [stage.packed_bytes for stage in made.stages] == [None] * 4
    assert made.factor is None
    assert repr(made).count("not packable") == 4
    again = compress(of_ones_own, few, {"stages": stages}, folder=tmp_path / "stages", progress=False)
    assert validations.count == 2  # epochs of the first call
    assert same(again.model, made.model)


@pytest.mark.parametrize("target", [{"target_bytes": 10_000}, {"max_drop": 0.1}])
def test_a_target_of_bytes_for_a_network_that_cannot_be_packed_is_refused(of_ones_own, few, surveys, target):
    ((name, value),) = target.items()
    with pytest.raises(ValueError, match=rf"{name}={value} needs the size of a \.slim file.*mine-cls\.yaml"):
        compress(of_ones_own, few, slim.Budget(**target), progress=False)
    assert surveys == []


# stopping and going on


@pytest.fixture
def validations(monkeypatch):
    """Counts the epochs that end; ``stop_after`` makes the next one after so many raise KeyboardInterrupt."""
    seen = SimpleNamespace(count=0, stop_after=math.inf)
    original = training.top1_accuracy

    def counted(*arguments):
        if seen.count >= seen.stop_after:
            raise KeyboardInterrupt
        seen.count += 1
        return original(*arguments)

    monkeypatch.setattr(training, "top1_accuracy", counted)
    return seen


def test_a_stopped_call_goes_on_in_the_middle_of_a_training(nano, few, made, validations, unweighed, tmp_path):
    validations.stop_after = 1  # of two epochs
    with pytest.raises(KeyboardInterrupt):
        compress(nano, few, RECIPE, folder=tmp_path, progress=False)
    assert [file.name[:2] for file in tmp_path.glob("*.slim")] == ["01"]
    assert len(list(tmp_path.glob("*-training.pt"))) == 1
    validations.stop_after = math.inf
    resumed = compress(nano, few, RECIPE, folder=tmp_path, progress=False)
    assert validations.count == 2  # one before, one after
    assert same(resumed.model, made.model)
    assert list(tmp_path.glob("*-training.pt")) == []
    again = compress(nano, few, RECIPE, folder=tmp_path, progress=False)
    assert validations.count == 2
    assert same(again.model, made.model)
    assert [stage.seconds for stage in again.stages] == [stage.seconds for stage in resumed.stages]


def test_each_stage_is_told_as_soon_as_it_is_done(nano, few, validations, unweighed, tmp_path):
    validations.stop_after, told = 1, []
    with pytest.raises(KeyboardInterrupt):
        compress(nano, few, RECIPE, folder=tmp_path, on_stage=told.append, progress=False)
    assert [stage.name for stage in told] == ["start", "prune_channels"]
    assert told[1].macs < told[0].macs


def test_the_bar_of_stages_counts_epochs_and_estimates_by_what_was_computed():
    stages = [("prune", lambda model, rate: model, {}), ("fit", lambda model, epochs=2: model, {"epochs": 10})]
    with StageBar([*stages, ("distill", stages[1][1], {})], shown=True) as bar:
        assert bar.bar.total == 1 + 11 + 3
        bar.begin("prune")
        bar.end(found=True)
        assert (bar.bar.n, bar.bar.initial) == (1, 1)
        bar.begin("fit")
        bar.epoch(5)  # four were found
        assert (bar.bar.n, bar.bar.initial) == (6, 5)
        bar.epoch(6)
        assert (bar.bar.n, bar.bar.initial) == (7, 5)
        bar.end(found=False)
        bar.begin("distill")
        bar.epoch(1)
        assert (bar.bar.n, bar.bar.initial) == (13, 5)
    with StageBar(stages, shown=False) as bar:  # computes the same and shows nothing
        bar.begin("prune")
        bar.end(found=True)


def test_stages_before_a_change_are_not_made_again(nano, few, validations, unweighed, tmp_path):
    compress(nano, few, RECIPE, folder=tmp_path, progress=False)
    fewer_bits = {"seed": 3, "stages": [*RECIPE["stages"][:2], {"quantize_integer": {"bits": 3}}]}
    changed = compress(nano, few, fewer_bits, folder=tmp_path, progress=False)
    assert validations.count == 2
    assert changed.model.model[1].conv.weight_grid.bits == 3
    other_seed = RECIPE | {"seed": 4}
    compress(nano, few, other_seed, folder=tmp_path, progress=False)
    assert validations.count == 4


def test_zeros_of_a_stage_that_is_found_again_are_kept_by_the_next_training(nano, few, unweighed, tmp_path):
    stages = [{"prune_weights": {"prune_rate": 0.5}}, {"fit": TRAINED}]
    compress(nano, few, {"stages": stages[:1]}, folder=tmp_path, progress=False)
    resumed, at_once = (
        compress(nano, few, {"stages": stages}, folder=folder, progress=False) for folder in (tmp_path, None)
    )
    assert same(resumed.model, at_once.model)
    assert (resumed.model.model[7].conv.weight == 0).float().mean() >= 0.5


def test_colours_of_the_images_count(nano, few, unweighed, tmp_path):
    coloured = few.train.images.clone()
    recipe = {"stages": [{"reestimate_batchnorm": {}}]}
    for blue in (0, 255):
        coloured[:, 2] = blue
        data = replace(few, train=Split(coloured.clone(), few.train.labels))
        kept = compress(nano, data, recipe, folder=tmp_path, progress=False)
        assert same(kept.model, compress(nano, data, recipe, progress=False).model)


def test_the_teachers_answers_are_kept_for_other_recipes(nano, few, unweighed, tmp_path):
    stage = {"distill": {"epochs": 1, "batch_size": 32, "versions": 2}}
    for rate in (0.5, 0.75):
        compress(
            nano, few, {"stages": [{"prune_channels": {"prune_rate": rate}}, stage]}, folder=tmp_path, progress=False
        )
        assert len(list(tmp_path.glob("answers-*.pt"))) == 1


# recipes


def test_shipped_recipes_are_known_by_name():
    for name in ("slim", "lossless", "fast"):
        stages = recipes.read_recipe(name)["stages"]
        expected = [item for stage in stages for item in stage.items()]
        assert read_stages(name)["stages"] == expected
        assert {stage for stage, _ in expected} <= STAGES.keys()


def test_a_file_is_what_stands_in_it(nano, few, made, unweighed, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    assert same(compress(nano, few, path, progress=False).model, made.model)
    assert read_stages(str(path)) == read_stages(RECIPE)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({}, r"recipe=\{\}: expected a mapping with stages, which are a list"),
        ({"stages": None}, "expected a mapping with stages"),
        ({"stages": {"fit": {}}}, "expected a mapping with stages, which are a list"),
        ({"stages": [{"prune": {}}]}, r"stage 1 is 'prune': expected one of \['distill'"),
        ({"stages": [{"fit": {}}, {"fit": {}, "distill": {}}]}, r"stage 2 is \{'fit'.*expected one name"),
        ({"stages": ["fit"]}, "stage 1 is 'fit': expected one name with its settings"),
        ({"stages": [{"fit": 3}]}, "stage 1, fit, has 3: expected settings by name, or nothing"),
        ({"stages": [{"prune_channels": {"prune_rate": 2}}]}, "prune_rate=2"),
        (7, "recipe=7: expected a mapping"),
    ],
)
def test_wrong_recipes_are_named(nano, few, recipe, unweighed, words):
    with pytest.raises(ValueError, match=words):
        compress(nano, few, recipe, progress=False)


def test_wrong_files_are_named(nano, few, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"recipe='slin': .*one of \['fast', 'lossless', 'slim'\]"):
        compress(nano, few, "slin")
    path = tmp_path / "broken.yaml"
    path.write_text("stages: [", encoding="utf-8")
    with pytest.raises(ValueError, match="broken.yaml is no YAML file"):
        compress(nano, few, path)


def test_wrong_models_are_named(few, nano):
    with pytest.raises(TypeError, match="model is a Linear: expected a classifier"):
        compress(torch.nn.Linear(1, 1), few, RECIPE)
    other = slim.new_model("yolov8n-cls.yaml", ("ant", "bee"))
    with pytest.raises(ValueError, match="teacher has 2 classes"):
        compress(nano, few, RECIPE, teacher=other)


# budgets


@pytest.fixture(scope="module")
def survey(nano, few):
    return survey_layers(nano, few.val, images=10, bits=(2, 8), progress=False)


@pytest.fixture
def surveys(monkeypatch, survey):
    """A coarse survey in place of a fine one; the list holds how many images each one asked for could have seen."""
    asked = []
    monkeypatch.setattr(
        within_budget, "survey_layers", lambda model, split, progress: asked.append(len(split)) or survey
    )
    return asked


def test_a_budget_of_bytes_is_planned_kept_and_checked(nano, few, surveys, tmp_path):
    budget = slim.Budget(target_bytes=40_000, max_drop=0.05, epochs=0)
    made = compress(nano, few, budget, folder=tmp_path, progress=False)
    size, drop = made.targets
    assert (size.name, size.allowed, size.met) == ("target_bytes", 40_000, True)
    assert size.measured == slim.save_packed(made.model, tmp_path / "made.slim").stat().st_size
    assert (drop.name, drop.allowed, drop.measured, drop.met) == ("max_drop", 0.05, made.drop, made.drop <= 0.05)
    assert not drop.met  # nothing was trained
    assert not made.met
    for shown in (repr(made), made._repr_html_()):
        assert f"target_bytes met: {size.measured:,}, allowed 40,000" in shown
        assert f"max_drop NOT met: {made.drop:.4g}, allowed 0.05" in shown
    (plan,) = tmp_path.glob("plan-*.yaml")
    assert yaml.safe_load(plan.read_text(encoding="utf-8")) == made.recipe
    again = compress(nano, few, budget, folder=tmp_path, progress=False)
    assert same(again.model, made.model)
    assert surveys == [50]  # the plan was found in the folder


def test_a_survey_is_kept_for_other_budgets(nano, few, surveys, unweighed, tmp_path):
    for target_bytes in (100_000, 200_000):
        compress(nano, few, slim.Budget(target_bytes=target_bytes, epochs=0), folder=tmp_path, progress=False)
    assert len(list(tmp_path.glob("plan-*.yaml"))) == 2
    assert surveys == [50]


def test_the_bytes_can_be_those_of_another_file(nano, few, surveys, tmp_path):
    """Of one with an overhead, that stores 8 bits and no others."""
    weighed = []

    def size(model):
        weighed.append(model)
        return 30_000 + slim.count_parameters(model)

    file = TargetFile("plain", (8,), size)
    budget = slim.Budget(target_bytes=400_000, epochs=0)
    made = compress(nano, few, budget, target_file=file, folder=tmp_path, progress=False)
    (target,) = made.targets
    assert target.met
    assert target.measured == 30_000 + slim.count_parameters(made.model) > 300_000
    assert made.model.model[1].conv.weight_grid.bits == 8
    rounds = len(weighed)
    compress(nano, few, budget, target_file=file, folder=tmp_path, progress=False)
    assert len(weighed) == rounds + 1  # the plan was found, and the result weighed
    with pytest.raises(ValueError, match="target_bytes=31000, of a file for plain: .*expected more bytes"):
        compress(nano, few, slim.Budget(target_bytes=31_000), target_file=file, progress=False)


def test_an_edited_plan_is_followed(nano, few, surveys, unweighed, tmp_path):
    budget = slim.Budget(target_bytes=100_000, epochs=0)
    compress(nano, few, budget, folder=tmp_path, progress=False)
    (plan,) = tmp_path.glob("plan-*.yaml")
    plan.write_text("stages: [{quantize_integer: {bits: 8}}]", encoding="utf-8")
    made = compress(nano, few, budget, folder=tmp_path, progress=False)
    assert [stage.name for stage in made.stages] == ["start", "quantize_integer"]


def test_a_budget_of_time_is_measured_in_the_end(nano, few, surveys, unweighed, monkeypatch):
    monkeypatch.setattr(budgets, "onnx_runner", lambda model: model)
    monkeypatch.setattr(
        budgets, "time_model", lambda model, image_size: SimpleNamespace(median=slim.count_macs(model) / 1e6)
    )
    made = compress(nano, few, slim.Budget(target_latency=8.0, epochs=0), progress=False)
    (target,) = made.targets
    assert (target.name, target.allowed) == ("target_latency", 8.0)
    assert target.measured == made.stages[-1].latency.second.median
    assert [stage.name for stage in made.stages] == ["start", "prune_channels", "reestimate_batchnorm"]


@pytest.mark.parametrize("enough", range(8))
@pytest.mark.parametrize("impossible", [0, 3])
def test_the_smallest_size_that_loses_little_enough_is_found(nano, few, surveys, monkeypatch, enough, impossible):
    """Sizes number ``enough`` and larger lose little; the first ``impossible`` ones cannot be planned at all."""
    sizes = [4 * slim.count_parameters(nano) // factor for factor in (256, 128, 64, 32, 16, 8, 4)]

    def plan(model, survey, budget):
        if budget.target_bytes in sizes[:impossible]:
            raise ValueError(f"target_bytes={budget.target_bytes}: too small")
        return {"seed": budget.target_bytes, "stages": []}

    def stage(top1, size=0):
        return StageResult("", {}, None, SimpleNamespace(top1=top1, interval=(0, 1)), 1, 1, size, 0.0)

    def run(recipe):
        loss = 0.005 if recipe["seed"] in sizes[enough:] else 0.2
        return Compression((stage(0.9), stage(0.9 - loss, recipe["seed"])), recipe)

    monkeypatch.setattr(within_budget, "plan_recipe", plan)
    made = within_budget.compress_within(slim.Budget(max_drop=0.01), nano, few, None, False, run)
    smallest = max(enough, impossible)
    expected = sizes[smallest] if smallest < 7 else sizes[-1]
    assert made.stages[-1].packed_bytes == expected
    assert made.met == (smallest < 7)
    tried = {attempt.stages[-1].packed_bytes for attempt in (made, *made.attempts)}
    assert len(tried) == len(made.attempts) + 1 <= 3
    assert len(surveys) == 1


def test_a_budget_that_cannot_be_met_says_so(nano, few, surveys):
    with pytest.raises(ValueError, match=r"target_bytes=900: the smallest plan takes [\d,]+ bytes"):
        compress(nano, few, slim.Budget(target_bytes=900), progress=False)
