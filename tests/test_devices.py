"""Everything computes where the model is, in the model's number type and channels, or says why it does not."""

from dataclasses import replace

import pytest
import torch
from one_channel import one_channel_model
from ultralytics import YOLO

import yolo_slim_lessons as slim
from yolo_slim_lessons.data import Split
from yolo_slim_lessons.distillation import cache_teacher
from yolo_slim_lessons.files import WEIGHTS_DIR
from yolo_slim_lessons.models import blank_images, copy_model, input_format, logits
from yolo_slim_lessons.pruning.sparse_sizes import sparse_sizes
from yolo_slim_lessons.quantization.observation import image_batches, observe_inputs
from yolo_slim_lessons.training import top1_accuracy


@pytest.fixture(scope="module")
def few():
    return slim.load_images("fashion-mnist", image_size=32).take(train=128, val=64)


@pytest.fixture(scope="module")
def colourful(few):
    """The same images, one of which is not grey."""
    images = few.val.images.contiguous()
    images[7, 1] = 0
    return Split(images, few.val.labels)


@pytest.fixture
def there(nano, device):
    """nano on the device."""
    return copy_model(nano).to(device)


def kind(model):
    return next(model.parameters()).device.type


# devices


def test_load_model_takes_a_device(device):
    for source in ("nano", WEIGHTS_DIR / "nano.pt", YOLO(WEIGHTS_DIR / "nano.pt")):
        assert kind(slim.load_model(source, device=device)) == device
    assert kind(slim.load_model("nano")) == "cpu"


@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
def test_a_device_that_is_not_there_is_named(device):
    with pytest.raises(ValueError, match=f"device='{device}' cannot be used here"):
        slim.load_model("nano", device=device)


def test_batches_come_to_the_device(few, device):
    for images, labels in few.val.batches(50, device=device):
        assert images.device.type == labels.device.type == device
    [images] = [images for images, _ in few.val[:8].batches(device=device, dtype=torch.uint8)]
    assert images.cpu().equal(few.val.images[:8])


def test_measuring_gives_the_same_numbers_on_every_device(nano, there, few):
    answers = slim.predict(there, few.val, progress=False)
    assert answers.device == few.val.labels.device
    assert answers.allclose(slim.predict(nano, few.val, progress=False), atol=1e-3)
    assert slim.evaluate(there, few.val, progress=False).confusion.sum() == 64
    card = slim.measure(there, few.val, repeats=3, progress=False)
    assert card.macs == slim.count_macs(nano)
    assert 0 < card.latency_ms.median < 10_000
    assert slim.compare(nano, there, repeats=3).ratio > 0


def test_training_draws_the_same_on_every_device(nano, there, few, tmp_path):
    losses = {}
    for name, model in (("cpu", nano), ("there", there)):
        report = losses.setdefault(name, [])
        trained = slim.fit(model, few, 2, batch_size=32, progress=False, mixup=0.2, checkpoint=tmp_path / name,
                           on_epoch=lambda *r, report=report: report.append(r[1]))  # fmt: skip
        assert kind(trained) == kind(model)
        again = slim.fit(model, few, 2, batch_size=32, progress=False, mixup=0.2, checkpoint=tmp_path / name)
        assert top1_accuracy(again, few.val) == top1_accuracy(trained, few.val)
    assert losses["there"] == pytest.approx(losses["cpu"], rel=0.02)


@pytest.mark.parametrize(
    "options",
    [
        {"bfloat16": True},
        {"average": 0.9},
        {"augment": "photographs", "class_weights": "balanced", "frozen": 2, "image_sizes": [32]},
    ],
)
def test_options_of_training_work_on_every_device(there, few, options):
    trained = slim.fit(slim.prune_weights(there, 0.5), few, 1, batch_size=32, progress=False, **options)
    assert kind(trained) == kind(there)
    assert trained.model[3].conv.weight.count_nonzero() <= 0.5 * trained.model[3].conv.weight.numel()


@pytest.mark.parametrize("method", ["soft", "decoupled", "hints", "attention"])
def test_distillation_brings_the_teacher_to_the_student(nano, device, few, method):
    student = slim.prune_channels(nano, 0.5).to(device)
    learned = slim.distill(student, nano, few, epochs=1, method=method, batch_size=64, progress=False)
    assert kind(learned) == device
    assert kind(nano) == "cpu"


def test_a_cache_serves_every_device(nano, there, few, device):
    cache = cache_teacher(there, few.train, versions=2, progress=False)
    student = slim.prune_channels(nano, 0.5).to(device)
    assert kind(slim.distill(student, nano, few, epochs=1, cache=cache, batch_size=64, progress=False)) == device


def test_ranges_are_observed_on_every_device(nano, there, few):
    names = ["model.2", "model.9"]
    ours, theirs = (observe_inputs(model, names, few.val, histograms=False) for model in (nano, there))
    for name in names:
        assert theirs[name] == pytest.approx(ours[name], rel=1e-3, abs=1e-3)


# 16 bits


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_models_are_evaluated_as_they_are(nano, few, device, dtype):
    half = copy_model(nano).to(device, dtype)
    with torch.inference_mode():
        batches = few.val.batches(**input_format(half))
        expected = torch.cat([logits(half, images).float().softmax(1) for images, _ in batches]).cpu()
    answers = slim.predict(half, few.val, progress=False)
    assert answers.dtype == torch.float32
    assert answers.allclose(expected, atol=1e-2)
    assert slim.evaluate(half, few.val, progress=False).top1 == top1_accuracy(half, few.val)
    assert slim.measure(half, few.val, repeats=2, progress=False).macs == slim.count_macs(nano)
    assert next(half.parameters()).dtype == dtype
    assert sparse_sizes(half).dense > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_models_teach(nano, few, dtype):
    student, half = slim.prune_channels(nano, 0.5), copy_model(nano).to(dtype)
    cache = cache_teacher(half, few.train, versions=1, progress=False)
    for options in ({}, {"method": "hints"}, {"cache": cache}):
        learned = slim.distill(student, half, few, epochs=1, batch_size=64, progress=False, **options)
        assert learned.model[0].conv.weight.dtype == torch.float32
    with pytest.raises(ValueError, match=r"pass model\.float\(\)"):
        slim.distill(copy_model(student).to(dtype), nano, few, epochs=1, progress=False)


# one channel


def test_one_channel_models_read_grey_images_of_three(few, tmp_path):
    model = one_channel_model(few.class_names)
    trained = slim.fit(model, few, 1, batch_size=32, progress=False)
    taught = slim.distill(model, trained, few, epochs=1, batch_size=32, progress=False)
    for each in (model, trained, taught):
        card = slim.measure(each, few.val, repeats=2, progress=False)
        with torch.inference_mode():
            images = few.val.images[:, :1].float() / 255
            assert card.scores.top1 == (each(images)[1].argmax(1) == few.val.labels).float().mean().item()
        assert card.macs < slim.count_macs(slim.new_model("yolov8n-cls.yaml", few.class_names, 32))
    assert [tuple(batch.shape[1:]) for batch in image_batches(few.val, model=model)] == [(1, 32, 32)]
    assert tuple(blank_images(model, count=2).shape) == (2, 1, 32, 32)


def test_one_channel_models_refuse_colours(few, colourful):
    model = one_channel_model(few.class_names)
    message = "the model reads 1 channel, and the images are in colour: make them grey first"
    with pytest.raises(ValueError, match=message):
        slim.evaluate(model, colourful, progress=False)
    with pytest.raises(ValueError, match=message):
        slim.fit(model, replace(few, train=colourful), 1, progress=False)
    with pytest.raises(ValueError, match="the model reads 5 channels, the images have 3"):
        next(few.val.batches(channels=5))


def test_grouped_convolutions_read_all_channels():
    grouped = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3, groups=3), torch.nn.ReLU())
    assert blank_images(grouped, 32).shape == (1, 3, 32, 32)
