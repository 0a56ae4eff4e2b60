"""The shipped weights can be made again: tried with a recipe that takes seconds."""

import csv
import json

import pytest
import torch
import yaml

import yolo_slim_lessons as slim
from yolo_slim_lessons.compression import recipes
from yolo_slim_lessons.files import WEIGHTS_DIR, verify_files
from yolo_slim_lessons.models import logits


@pytest.fixture
def tiny(data, tmp_path, monkeypatch):
    """A function that writes the recipe ``tiny`` with the given stages; 120 images of 32 px."""
    images = tmp_path / "images"
    slim.write_image_folder(data, images, train=120, val=40, test=40)
    monkeypatch.setattr(recipes, "RECIPES_DIR", tmp_path)

    def write(*epochs):
        stages = [{"epochs": count, "learning_rate": 0.002} for count in epochs]
        recipe = {"architecture": "yolov8n-cls.yaml", "data": str(images), "image_size": 32, "batch_size": 64}
        recipe |= {"weight_decay": 0.05, "seed": 0, "stages": stages}
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")

    return write


def log(folder):
    with (folder / "tiny-log.csv").open(encoding="utf-8", newline="") as stream:
        return [(row["stage"], row["epoch"]) for row in csv.DictReader(stream)]


def test_writes_weights_log_results_and_checksums(tiny, tmp_path):
    tiny(2)
    weights = recipes.train("tiny", tmp_path / "weights")
    result = json.loads((tmp_path / "weights" / "tiny.json").read_text(encoding="utf-8"))
    test = slim.load_images(tmp_path / "images", image_size=32).test
    assert slim.evaluate(slim.load_model(weights), test).top1 == result["test_top1"]
    assert result["kept_epoch"] in (1, 2)
    assert log(weights.parent) == [("1", "1"), ("1", "2")]
    assert f"| {result['test_top1']:.2%} |" in (weights.parent / "README.md").read_text(encoding="utf-8")
    verify_files(weights.parent)


def test_goes_on_after_an_interruption_and_with_a_stage_that_was_added(tiny, tmp_path, monkeypatch):
    class PowerCutError(Exception):
        pass

    def cut_off_in_second_epoch(*arguments, on_epoch, **settings):
        def stop_after_first(epoch, *rest):
            on_epoch(epoch, *rest)
            raise PowerCutError

        return slim.fit(*arguments, on_epoch=stop_after_first, **settings)

    folder = tmp_path / "weights"
    tiny(2)
    with monkeypatch.context() as patched:
        patched.setattr(recipes, "fit", cut_off_in_second_epoch)
        with pytest.raises(PowerCutError):
            recipes.train("tiny", folder)
    assert log(folder) == [("1", "1")]
    recipes.train("tiny", folder)
    assert log(folder) == [("1", "1"), ("1", "2")]
    tiny(2, 1)
    recipes.train("tiny", folder)
    assert log(folder) == [("1", "1"), ("1", "2"), ("2", "1")]
    written = (folder / "tiny-log.csv").stat().st_mtime_ns
    recipes.train("tiny", folder)  # complete, so all is trained again
    assert log(folder) == [("1", "1"), ("1", "2"), ("2", "1")]
    assert (folder / "tiny-log.csv").stat().st_mtime_ns != written
    assert list(folder.glob("*.training")) == []


def test_a_recipe_of_stages_writes_files_results_and_checksums(tiny, tmp_path):
    tiny(1)
    folder, classes = tmp_path / "weights", slim.load_images(tmp_path / "images", image_size=32).class_names
    for seed, name in enumerate(("start", "wise")):
        slim.save_model(slim.new_model("yolov8n-cls.yaml", classes, 32, seed), tmp_path / f"{name}.pt")
    recipe = {
        "start": str(tmp_path / "start.pt"),
        "teacher": str(tmp_path / "wise.pt"),
        "data": str(tmp_path / "images"),
        "image_size": 32,
        "seed": 0,
        "makes": ["small.pt", "small.slim"],
        "stages": [
            {"prune_channels": {"prune_rate": 0.5}},
            {"distill": {"epochs": 1, "versions": 1}},
            {"quantize_integer": {"bits": 4}},
        ],
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    weights = recipes.compress_shipped("small", folder)
    result = json.loads((folder / "small.json").read_text(encoding="utf-8"))
    assert [stage["name"] for stage in result["stages"]] == ["start", *(list(stage)[0] for stage in recipe["stages"])]
    packed = folder / "small.slim"
    assert result["stages"][-1]["packed_bytes"] == packed.stat().st_size
    parameters = slim.count_parameters(slim.load_model(recipe["start"]))
    assert result["factor"] == pytest.approx(4 * parameters / packed.stat().st_size)
    # Both files hold the same network: four bits and a scale of eight fit into the eleven of a 16-bit float.
    images = slim.load_images(tmp_path / "images", image_size=32).test.images[:8] / 255
    stored, unpacked = (logits(model, images) for model in (slim.load_model(weights), slim.load_packed(packed)))
    torch.testing.assert_close(stored, unpacked, rtol=0, atol=1e-3)
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert "`small.pt`, `small.slim`" in readme
    assert f"| {result['test_top1']:.2%} |" in readme
    verify_files(folder)
    assert {line.split()[1] for line in (folder / "SHA256SUMS").read_text().splitlines()} == {"small.pt", "small.slim"}


def test_an_unknown_recipe_names_those_that_exist():
    with pytest.raises(ValueError, match=r"recipe='huge'.*'nano'.*'teacher'"):
        recipes.read_recipe("huge")


@pytest.mark.parametrize("name", ["nano", "teacher"])
def test_shipped_weights_are_as_good_as_their_results_say(name, data):
    result = json.loads((WEIGHTS_DIR / f"{name}.json").read_text(encoding="utf-8"))
    assert result["recipe"] == recipes.read_recipe(name)
    part = data.test.take(2000)
    low, high = slim.evaluate(slim.load_model(name), part).interval
    assert low <= result["test_top1"] <= high


@pytest.mark.parametrize(("name", "goal"), [("nano", 0.940), ("teacher", 0.948)])
def test_shipped_weights_reach_their_goal(name, goal):
    assert json.loads((WEIGHTS_DIR / f"{name}.json").read_text(encoding="utf-8"))["test_top1"] >= goal
