"""The capstone's tools against cases worked out by hand and scikit-learn, and the checks of its exercises."""

import copy
import importlib
import math
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from feedback_checks import assert_wrong
from PIL import Image
from sklearn.metrics import f1_score, precision_recall_curve, precision_score, recall_score
from ultralytics import YOLO

import yolo_slim_lessons as slim
from yolo_slim_lessons.data import ImageData, Split
from yolo_slim_lessons.teaching import capstone
from yolo_slim_lessons.teaching.exercises import lesson10 as exercises

# Sealing


@pytest.fixture
def sealed(data):
    return capstone.seal_test(data.take(train=20, val=20))


def test_every_look_at_test_images_is_counted_and_warned_of(sealed, nano):
    part = sealed.test.take(30)
    assert (len(part), len(sealed.test), sealed.test.looks) == (30, 10_000, 0)
    assert sealed.test.labels.bincount().tolist() == [1000] * 10  # labels are no look
    for look in (1, 2):
        with pytest.warns(capstone.TestLookWarning, match=f"look {look} at test images"):
            slim.evaluate(nano, part, progress=False)
        assert sealed.test.looks == look
    with pytest.warns(capstone.TestLookWarning, match="look 3"):
        part[:2].images.float()
    with pytest.warns(capstone.TestLookWarning, match="look 4"):
        next(replace(sealed, val=sealed.val).test.batches(5))
    assert "4 looks" in repr(sealed.test)


def test_training_and_choosing_by_val_break_no_seal(sealed, nano):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slim.fit(nano, sealed, epochs=1, progress=False)
        slim.evaluate(nano, sealed.val, progress=False)
        slim.compress(nano, sealed, {"stages": [{"prune_channels": {"prune_rate": 0.5}}]}, progress=False)
        assert "test 10,000" in repr(sealed)
        assert sealed.test == sealed.test
    assert sealed.test.looks == 0


def test_opened_test_is_the_same_images_and_a_second_opening_is_told(sealed, data):
    opened = capstone.open_test(sealed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(opened.test.images[:5], data.test.images[:5])
        assert len(opened.test.take(7).images) == 7
    assert (sealed.test.looks, sealed.test.openings) == (0, 1)
    with pytest.warns(capstone.TestLookWarning, match="opening 2"):
        capstone.open_test(sealed)
    with pytest.raises(TypeError, match="data from seal_test"):
        capstone.open_test(data)


def test_sealing_twice_does_not_reset_the_count(sealed):
    with pytest.warns(capstone.TestLookWarning):
        _ = sealed.test.images
    assert capstone.seal_test(sealed).test.looks == 1


# Detection


@pytest.fixture(scope="module")
def answers():
    """Probabilities, many of them equal, that go along with the truth but not too well."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(300, generator=generator) < 0.2
    noise = torch.rand(300, generator=generator)
    return (0.5 * noise + 0.3 * truth).mul(40).round().div(40), truth


def test_counts_and_costs_by_hand():
    found = capstone.detect(torch.tensor([0.9, 0.2, 0.5, 0.4]), torch.tensor([True, True, False, False]), 0.5)
    assert (found.found, found.missed, found.alarms, found.passed) == (1, 1, 1, 1)
    assert found.cost(miss_cost=19) == 1000 * 20 / 4
    assert (found.accuracy, found.precision, found.recall, found.f1) == (0.5, 0.5, 0.5, 0.5)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9])
def test_scores_are_those_of_scikit_learn(answers, threshold):
    probabilities, truth = answers
    said = (probabilities >= threshold).numpy()
    found = capstone.detect(probabilities, truth, threshold)
    for ours, theirs in ((found.precision, precision_score), (found.recall, recall_score), (found.f1, f1_score)):
        assert ours == pytest.approx(theirs(truth.numpy(), said, zero_division=0))


@pytest.mark.parametrize("miss_cost", [0, 0.2, 1, 5, 50, None])
def test_no_threshold_is_better_than_the_best(answers, miss_cost):
    probabilities, truth = answers
    best = capstone.detect(probabilities, truth, capstone.best_threshold(probabilities, truth, miss_cost))
    others = [capstone.detect(probabilities, truth, threshold) for threshold in np.linspace(0, 1.01, 203)]
    if miss_cost is None:
        assert best.f1 == max(other.f1 for other in others)
        precision, recall, _ = precision_recall_curve(truth.numpy(), probabilities.numpy())
        assert best.f1 == pytest.approx((2 * precision * recall / (precision + recall)).max())
    else:
        assert best.cost(miss_cost) == min(other.cost(miss_cost) for other in others)


def test_the_best_threshold_lies_midway():
    probabilities, truth = torch.tensor([0.1, 0.2, 0.6, 0.8]), torch.tensor([False, False, True, True])
    assert capstone.best_threshold(probabilities, truth) == pytest.approx(0.4)
    assert capstone.best_threshold(probabilities, truth, miss_cost=5) == pytest.approx(0.4)
    nothing = torch.zeros(4, dtype=torch.bool)
    assert capstone.detect(probabilities, nothing, capstone.best_threshold(probabilities, nothing, 5)).alarms == 0
    everything = ~nothing
    assert capstone.detect(probabilities, everything, capstone.best_threshold(probabilities, everything, 5)).missed == 0


def test_interval_of_f1_holds_the_truth_as_often_as_it_says():
    """Draws with a known F1: recall 0.8, one of five a defect, 5 % false alarms."""
    generator = torch.Generator().manual_seed(1)
    true_f1 = 2 * 0.16 / (2 * 0.16 + 0.04 + 0.04)
    inside = 0
    for _ in range(60):
        truth = torch.rand(500, generator=generator) < 0.2
        called = torch.rand(500, generator=generator) < torch.where(truth, 0.8, 0.05)
        low, high = capstone.f1_interval(called, truth)
        inside += low <= true_f1 <= high
    assert inside >= 51  # of 60; 57 are expected, and fewer than 51 come once in some hundred times


def test_interval_of_a_gain_is_narrower_than_that_of_each():
    truth = torch.arange(400) % 4 == 0
    first = truth.clone()
    first[:80] = ~first[:80]
    second = first.clone()
    second[:8] = truth[:8]  # a few repaired, all else the same
    low, high = capstone.f1_gain_interval(first, second, truth)
    assert 0 < low < high < 0.1
    assert capstone.f1_gain_interval(first, first, truth) == (0, 0)
    wide = capstone.f1_interval(first, truth)
    assert high - low < (wide[1] - wide[0]) / 2


@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.zeros(0)])
def test_answers_must_match_the_images(wrong):
    truth = torch.zeros(len(wrong) and 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="expected as many"):
        capstone.detect(wrong, truth)
    with pytest.raises(ValueError, match="expected as many"):
        capstone.best_threshold(wrong, truth)
    with pytest.raises(ValueError, match="miss_cost=-1"):
        capstone.best_threshold(torch.zeros(4), torch.zeros(4, dtype=torch.bool), -1)


def test_weighted_loss_lets_each_class_count_alike(data):
    labels = torch.tensor([0] * 30 + [1] * 10)
    two = ImageData(Split(data.train.images[:40], labels), data.val, data.test, ("many", "few"), 64)
    loss = capstone.weighted_loss(two)
    scores = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    each = torch.nn.functional.cross_entropy(scores, labels, reduction="none")
    assert loss(scores, labels, two.train.images).item() == pytest.approx(
        (each[:30].mean() / 2 + each[30:].mean() / 2).item(), rel=1e-5
    )
    assert loss.settings["weights"] == pytest.approx([2 / 3, 2])


# Transfer


def test_a_new_head_for_new_classes_and_all_else_as_it_was(nano, tmp_path):
    before = copy.deepcopy(nano.state_dict())
    adapted = capstone.adapt(nano, ("defective", "sound"), image_size=128, seed=5)
    after = adapted.state_dict()
    assert [name for name in before if not torch.equal(before[name], nano.state_dict()[name])] == []
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "model.9.linear.weight",
        "model.9.linear.bias",
    }
    assert adapted.model[-1].linear.out_features == 2
    assert adapted.names == {0: "defective", 1: "sound"}
    again = capstone.adapt(nano, ("defective", "sound"), image_size=128, seed=5)
    assert torch.equal(adapted.model[-1].linear.weight, again.model[-1].linear.weight)
    file = slim.save_model(adapted, tmp_path / "adapted.pt")
    (result,) = YOLO(file).predict(np.zeros((300, 300, 3), np.uint8), verbose=False)
    assert result.names == {0: "defective", 1: "sound"}
    assert slim.models.image_size_of(slim.load_model(file)) == 128


def test_known_classes_keep_their_head(nano, data):
    kept = capstone.adapt(nano, data.class_names, image_size=96)
    assert torch.equal(kept.model[-1].linear.weight, nano.model[-1].linear.weight)
    assert slim.models.image_size_of(kept) == 96
    assert slim.models.image_size_of(nano) == 64
    with pytest.raises(ValueError, match="expected two or more"):
        capstone.adapt(nano, ("one",))


# Tasks


@pytest.fixture
def solar_cells(tmp_path, monkeypatch):
    """A package that looks like elpv-dataset: 360 pictures, whose number is to be read off the pixels."""
    package = tmp_path / "site" / "elpv_dataset"
    (package / "data" / "images").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    lines = []
    for number in range(360):
        probability = (0.0, 0.0, 1.0, 0.3333333333333333, 0.6666666666666666, 0.0)[number % 6]
        kind = "mono" if number < 180 else "poly"
        picture = Image.new("L", (300, 300), number % 250)
        picture.paste(number // 250, (150, 0, 300, 300))
        picture.save(package / "data" / "images" / f"cell{number:04d}.png")
        lines.append(f"images/cell{number:04d}.png  {probability}  {kind}")
    (package / "data" / "labels.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    for name in [name for name in sys.modules if name.split(".")[0] == "elpv_dataset"]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()


def numbers_of(split):
    left, right = split.images[:, 0, 0, 0].int(), split.images[:, 0, 0, -1].int()
    return (left + 250 * right).tolist()


@pytest.mark.parametrize("apart", [False, True])
def test_solar_cells_come_with_label_and_kind(solar_cells, apart):
    task = capstone.load_task("solar cells", image_size=32, seed=1, neighbours_apart=apart)
    data = capstone.open_test(task.data)
    assert (task.defect_name, data.class_names, data.image_size) == ("defective", ("defective", "sound"), 32)
    seen = []
    for name in ("train", "val", "test"):
        split = getattr(data, name)
        for number, label, group in zip(numbers_of(split), split.labels.tolist(), task.groups[name], strict=True):
            assert label == (0 if number % 6 in (2, 4) else 1)
            kind, certainty = group.split(", ")
            assert kind == ("mono" if number < 180 else "poly")
            assert certainty == ("doubtful" if number % 6 in (3, 4) else "sure")
        assert torch.equal(task.is_defect(split), split.labels == 0)
        assert task.is_defect(split).float().mean().item() == pytest.approx(1 / 3, abs=0.06)
        seen += numbers_of(split)
    assert sorted(seen) == list(range(360))  # each cell once
    if apart:
        blocks = [{number // 60 for number in numbers_of(split)} for split in (data.train, data.val, data.test)]
        assert sum(map(len, blocks)) == 6  # no stretch of 60 is in two splits
    assert "CC BY-NC-SA 4.0" in task.licence
    assert "elpv-dataset" in task.description


def test_another_seed_gives_other_splits(solar_cells):
    first, again, other = (capstone.load_task(image_size=32, seed=seed).data.train.images for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_the_package_it_says_how_to_get_it_and_takes_clothes(monkeypatch):
    monkeypatch.setattr("yolo_slim_lessons.teaching.capstone.tasks.util.find_spec", lambda name: None)
    task = capstone.load_task("solar cells", image_size=32)
    assert "pip install elpv-dataset" in task.story
    assert "not for commercial use" in task.story
    data = capstone.open_test(task.data)
    assert [len(split) for split in (data.train, data.val, data.test)] == [1600, 600, 1500]
    for name in ("train", "val", "test"):
        split, groups = getattr(data, name), np.array(task.groups[name])
        assert set(groups[task.is_defect(split).numpy()]) == {"Shirt"}
        assert set(groups[~task.is_defect(split).numpy()]) == {"T-shirt/top", "Pullover", "Coat"}
        assert task.is_defect(split).float().mean().item() == pytest.approx(0.1)


@pytest.fixture
def own_folder(tmp_path):
    """Three classes, the second one rare."""
    for class_name, count, grey in (("crack", 20, 10), ("hole", 14, 100), ("whole", 40, 200)):
        (tmp_path / "mine" / "train" / class_name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (40, 50), (grey, number, 0)).save(tmp_path / "mine/train" / class_name / f"{number}.png")
    return tmp_path / "mine"


def test_a_folder_of_ones_own_needs_nothing_else(own_folder):
    task = capstone.load_task(own_folder, image_size=32)
    assert task.defect_name == "hole"
    assert set(task.groups["val"]) == {"crack", "hole", "whole"}
    assert task.groups["val"] == tuple(task.data.class_names[label] for label in task.data.val.labels)
    assert isinstance(task.data.test, capstone.SealedSplit)
    assert capstone.load_task(own_folder, image_size=32, defect="crack").defect == 0
    with pytest.raises(ValueError, match=r"defect='dent': expected one of \['crack', 'hole', 'whole'\]"):
        capstone.load_task(own_folder, defect="dent")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        capstone.load_task(own_folder.parent / "nowhere")


def test_any_folder_and_checkpoint_go_through_the_whole_lesson(own_folder, nano):
    """Classes, head, training, threshold, stages: with three classes as with two."""
    task = capstone.load_task(own_folder, image_size=32)
    start = capstone.adapt(nano, task.data.class_names, task.data.image_size)
    expert = slim.fit(start, task.data, epochs=1, loss=capstone.weighted_loss(task.data), progress=False)
    recipe = {"stages": [{"prune_channels": {"prune_rate": 0.5}}, {"quantize_integer": {"bits": 4}}]}
    small = slim.compress(expert, task.data, recipe, progress=False)
    probabilities = slim.predict(small.model, task.data.val, progress=False)[:, task.defect]
    threshold = capstone.best_threshold(probabilities, task.is_defect(task.data.val), miss_cost=5)
    assert 0 <= threshold <= 1.1
    assert task.data.test.looks == 0


# Files


def test_files_go_into_the_folder_that_is_named(tmp_path, capsys):
    for _ in range(2):
        assert capstone.make_folder(tmp_path / "new" / "mine") == tmp_path / "new" / "mine"
    assert (tmp_path / "new" / "mine").is_dir()
    assert capsys.readouterr().out == ""


def test_where_no_folder_may_be_made_the_files_go_elsewhere_and_it_says_where(tmp_path, capsys):
    (tmp_path / "mine").write_text("a file, no folder")
    folder = capstone.make_folder(tmp_path / "mine")
    (folder / "report.md").write_text("written")
    assert folder != tmp_path / "mine"
    assert str(folder) in capsys.readouterr().out


def test_a_folder_that_may_not_be_written_to_is_left_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("yolo_slim_lessons.teaching.capstone.workplace.os.access", lambda *_: False)
    folder = capstone.make_folder(tmp_path)
    assert folder != tmp_path
    assert "may not be written to" in capsys.readouterr().out


# Exercise 1


def test_rare_f1_is_that_of_scikit_learn():
    truth = np.repeat([1, 1, 0, 0], [800, 200, 950, 18050])
    said = np.repeat([1, 0, 1, 0], [800, 200, 950, 18050])
    assert exercises.check_rare_f1(f1_score(truth, said)).right
    assert_wrong(exercises.check_rare_f1(precision_score(truth, said)), "that is the precision")
    assert_wrong(exercises.check_rare_f1(recall_score(truth, said)), "that is the recall")
    assert_wrong(exercises.check_rare_f1((truth == said).mean()), "that is the accuracy")
    assert_wrong(exercises.check_rare_f1(f1_score(truth, said, average="macro")), "macro F1")
    assert_wrong(exercises.check_rare_f1(f1_score(1 - truth, 1 - said)), "F1 of the sound ones")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (58.2, "a percentage"),
        (94.25, "between 0 and 1"),
        (0.629, "ordinary mean"),
        (0.605, "geometric mean"),
        (0.865, "as many defective cells as sound ones"),
        (0.869, "no precision"),
        (0.1, "count what becomes of 1,000 cells"),
        ("0.58", "not a number"),
        (..., "not tried"),
    ],
)
def test_rare_f1_mistakes_are_named(answer, words):
    assert_wrong(exercises.check_rare_f1(answer), words)


# Exercise 2


def by_trying(probabilities, truth, miss_cost):
    tried = [0.0, *probabilities.tolist(), 1.1]
    return min(
        tried,
        key=lambda t: (miss_cost * ((probabilities < t) & truth).sum() + ((probabilities >= t) & ~truth).sum()).item(),
    )


def cost_from(line, probabilities, truth, miss_cost):
    return capstone.detect(probabilities, truth, line).cost(miss_cost)


def strict(probabilities, truth, miss_cost):
    return min(
        [0.0, *probabilities.tolist()],
        key=lambda t: (miss_cost * ((probabilities <= t) & truth).sum() + ((probabilities > t) & ~truth).sum()).item(),
    )


@pytest.mark.parametrize("answer", [by_trying, capstone.best_threshold])
def test_the_cheapest_threshold_may_be_found_in_several_ways(answer):
    assert exercises.check_cheapest_threshold(answer).right


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda p, y, c: 0.5, "0.5 knows nothing"),
        (lambda p, y, c: 1 / (1 + c), "would be right if the probabilities were"),
        (lambda p, y, c: capstone.best_threshold(p, y), "highest F1"),
        (lambda p, y, c: by_trying(p, y, 1 / c), "swapped"),
        (lambda p, y, c: by_trying(p, y, 1), "mistakes are fewest"),
        (lambda p, y, c: by_trying(p, ~y, c), "True means defective"),
        (lambda p, y, c: 200, "return the threshold itself"),
        (lambda p, y, c: 0.2, "try all thresholds"),
        (lambda p, y, c: by_trying(p.zero_(), y, c), "it changed what it was given"),
        (lambda p, y, c: math.nan, "no number"),
        (lambda p, y, c: None, "returns nothing"),
        (lambda p, y, c: 0, "everything is called defective"),
        (lambda p, y, c: 0.9, "nothing is called defective"),
        (strict, "not with >"),
        (lambda p, y, c: min(p.tolist(), key=lambda t: cost_from(t, p, y, c)), "no alarm at all"),
        (lambda p, y, c: "0.5", "not a number"),
        (lambda p, y, c: (0.3, 1.0), "not a number"),
        (lambda p, y: 0.5, "could not be checked"),
        (..., "not tried"),
    ],
)
def test_cheapest_threshold_mistakes_are_named(answer, words):
    assert_wrong(exercises.check_cheapest_threshold(answer), words)
