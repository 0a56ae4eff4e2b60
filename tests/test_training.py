"""fit() learns, repeats itself, resumes to the last bit and changes nothing that it was not asked to."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F
from ultralytics import YOLO

import yolo_slim_lessons as slim
from yolo_slim_lessons import training
from yolo_slim_lessons.data import FASHION_MNIST_CLASSES, ImageData, Split, as_floats
from yolo_slim_lessons.models import copy_model, logits, weight_layers
from yolo_slim_lessons.training import label_loss, top1_accuracy
from yolo_slim_lessons.training.augmentation import augmented


@pytest.fixture(scope="module")
def few(data):
    """96 training and 20 validation images, without test images: fit() must not look at any."""
    part = data.take(train=96, val=20)
    return ImageData(part.train, part.val, None, part.class_names, part.image_size)


@pytest.fixture(scope="module")
def start(data):
    """An untrained model, changed by nobody."""
    return slim.new_model("yolov8n-cls.yaml", data.class_names)


def fit(start, few, epochs=2, **settings):
    return slim.fit(start, few, epochs, **{"batch_size": 32, "progress": False} | settings)


def same(first, second):
    return all(a.equal(b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


# what it does


def test_it_learns_from_a_small_part(start, data):
    part = data.take(train=1_000, val=500)
    history = []
    trained = slim.fit(
        start,
        part,
        3,
        batch_size=50,
        progress=False,
        on_epoch=lambda number, loss, top1, _: history.append((loss, top1)),
    )
    losses = [loss for loss, _ in history]
    assert all(later < earlier for earlier, later in pairwise(losses))
    assert top1_accuracy(trained, part.val) > 0.45  # guessing gets 0.1
    assert top1_accuracy(trained, part.val) == history[-1][1] == slim.evaluate(trained, part.val).top1


def test_the_input_is_left_alone(start, few):
    model = copy_model(start).train().requires_grad_(False)
    trained = fit(model, few, 1)
    assert same(model, start)
    assert model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not trained.training
    assert not any(parameter.requires_grad for parameter in trained.parameters())
    assert all(parameter.is_contiguous() for parameter in trained.parameters())  # else it would be timed unfairly
    assert not same(trained, start)


def test_the_seed_decides_everything(start, few):
    torch.manual_seed(1)
    first, state = fit(start, few, seed=3), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.get_rng_state().equal(state)  # the caller's random numbers go on as if nothing had been
    torch.manual_seed(2)
    assert same(first, fit(start, few, seed=3))
    assert not same(first, fit(start, few, seed=4))


def test_each_epoch_is_reported(start, few):
    reports = []
    fit(start, few, on_epoch=lambda *report: reports.append((*report[:3], report[3].training)))
    assert [report[0] for report in reports] == [1, 2]
    assert all(loss > 0 and 0 <= top1 <= 1 and not training for _, loss, top1, training in reports)


def test_zeros_of_pruned_layers_stay_zero_and_others_learn(start, few):
    """Other zeros are chance, or what rounding left: they are no reason to freeze a weight."""
    names = [name for name, _ in weight_layers(start)]
    pruned = slim.prune_weights(
        slim.prune_weights(start, dict.fromkeys(names[::4], 0.5)), dict.fromkeys(names[2::4], 0.5)
    )
    assert pruned.pruned_layers == sorted(names[::2])
    with torch.no_grad():
        for name, layer in weight_layers(pruned):
            if name not in pruned.pruned_layers:
                layer.weight[layer.weight.abs() < layer.weight.abs().median()] = 0
    before = dict(weight_layers(pruned))
    trained = fit(pruned, few)
    assert trained.pruned_layers == pruned.pruned_layers
    for name, layer in weight_layers(trained):
        was_zero = before[name].weight == 0
        if name in pruned.pruned_layers:
            assert (layer.weight[was_zero] == 0).all(), name
            assert (layer.weight[~was_zero] != before[name].weight[~was_zero]).float().mean() > 0.9
        else:
            assert (layer.weight[was_zero] != 0).float().mean() > 0.5, name


def test_zeros_that_quantization_left_learn(nano, data):
    rounded = slim.dequantize(slim.quantize_integer(nano, 3))
    zeros = {name: layer.weight == 0 for name, layer in weight_layers(rounded)}
    trained = slim.fit(rounded, data.take(64, 20), 1, batch_size=32, progress=False)
    still = sum((layer.weight[zeros[name]] == 0).sum().item() for name, layer in weight_layers(trained))
    assert still < 0.05 * sum(mask.sum().item() for mask in zeros.values())


def test_what_was_pruned_is_known_after_all_that_changes_a_model(nano, tmp_path):
    pruned = slim.prune_weights(nano, 0.5, layers=["model.0.conv", "model.9.linear"])
    known = ["model.0.conv", "model.9.linear"]
    assert not hasattr(nano, "pruned_layers")
    file = slim.save_model(pruned, tmp_path / "pruned.pt")
    for model in (
        slim.load_model(file),
        slim.load_model(YOLO(file)),
        YOLO(file).model,
        slim.prune_channels(pruned, 0.3),
        slim.prune_weights(pruned, 0.0),
        slim.dequantize(slim.quantize_integer(pruned, 8)),
        copy_model(pruned).fuse(verbose=False),
    ):
        assert model.pruned_layers == known
    assert slim.prune_weights(pruned, {"model.7.conv": 0.2}).pruned_layers == [known[0], "model.7.conv", known[1]]


def test_weight_decay_shrinks_weights_and_spares_the_rest(start, few):
    # A loss without a slope leaves nothing but the decay: w ← w (1 - rate × decay), at rates up to 0.002.
    trained = fit(start, few, 1, weight_decay=0.5, loss=lambda scores, labels, images: 0 * scores.sum())
    steps = 3
    for (name, before), after in zip(start.named_parameters(), trained.parameters(), strict=True):
        if before.ndim == 1:
            assert after.equal(before), name
        else:
            factor = (after / before)[before != 0]
            assert factor.max() < 1
            assert factor.min() > (1 - 0.002 * 0.5) ** steps - 1e-5
            assert factor.max() - factor.min() < 1e-5


def test_the_loss_sees_scores_labels_and_the_images_as_they_are(start, few):
    seen = []

    def spy(scores, labels, images):
        seen.append((scores.shape, labels, images))
        return label_loss(scores, labels, images)

    fit(start, few, 1, loss=spy, augment=False)
    assert [shape for shape, _, _ in seen] == [(32, 10)] * 3
    assert torch.cat([labels for _, labels, _ in seen]).bincount().equal(few.train.labels.bincount())
    pixels = {image.tobytes() for _, _, images in seen for image in (images * 255).round().byte().numpy()}
    assert pixels == {image.numpy().tobytes() for image in few.train.images.contiguous()}


def test_label_loss_is_cross_entropy_for_both_kinds_of_labels():
    scores = torch.tensor([[2.0, 1.0, 0.1], [0.5, 2.5, 0.3]])
    by_hand = -(scores - scores.exp().sum(1, keepdim=True).log())
    assert label_loss(scores, torch.tensor([0, 1]), None) == pytest.approx(((by_hand[0, 0] + by_hand[1, 1]) / 2).item())
    shares = torch.tensor([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0]])
    assert label_loss(scores, shares, None) == pytest.approx((by_hand * shares).sum(1).mean().item())


def test_a_single_leftover_image_joins_the_batch_before_it():
    # 33 images of 32 px: the last layers see one position only, and BatchNorm cannot learn from one number.
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (33, 3, 32, 32), dtype=torch.uint8, generator=random)
    split = Split(images, torch.arange(33) % 2)
    data = ImageData(split, split[:4], None, ("ant", "bee"), 32)
    sizes = []

    def count(scores, labels, images):
        sizes.append(len(labels))
        return label_loss(scores, labels, images)

    fit(slim.new_model("yolov8n-cls.yaml", data.class_names, 32), data, 1, batch_size=16, loss=count)
    assert sizes == [16, 17]


def test_progress_is_shown_only_if_asked_for(start, few, capsys):
    fit(start, few, 1, progress=False)
    assert capsys.readouterr() == ("", "")
    fit(start, few, 1, progress=True)
    assert "train" in capsys.readouterr().err


# mixup


def test_mixup_blends_images_and_labels_alike(start, few):
    seen = []

    def spy(scores, labels, images):
        seen.append((labels, images))
        return label_loss(scores, labels, images)

    trained = fit(start, few, mixup=0.4, loss=spy, augment=False)
    labels, images = torch.cat([labels for labels, _ in seen]), torch.cat([images for _, images in seen])
    assert labels.shape == (192, 10)
    assert labels.sum(1).allclose(torch.ones(192))
    assert ((labels > 0.01) & (labels < 0.99)).any(1).float().mean() > 0.1
    # Brightness is linear: the mean over an epoch stays, as each image gives away what another one gets.
    originals = few.train.images.float().mean() / 255
    assert images.mean().item() == pytest.approx(originals.item(), rel=1e-3)
    assert same(trained, fit(start, few, mixup=0.4, augment=False))
    assert not same(trained, fit(start, few, mixup=0.0, augment=False))


def test_without_mixup_labels_are_numbers(start, few):
    kinds = set()

    def spy(scores, labels, images):
        kinds.add((labels.dtype, labels.ndim))
        return F.cross_entropy(scores, labels)

    fit(start, few, 1, loss=spy)
    assert kinds == {(torch.int64, 1)}


# cutmix


@pytest.fixture(scope="module")
def plain():
    """96 images of one brightness each: 20 × the label, of ten labels."""
    labels = torch.arange(96) % 10
    images = (20 * labels).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 64, 64)
    split = Split(images, labels)
    return ImageData(split, split[:20], None, FASHION_MNIST_CLASSES, 64)


def blended(start, data, **settings):
    """What the loss sees of two epochs: a list of (labels, images), one for each batch."""
    seen = []

    def spy(scores, labels, images):
        seen.append((labels, images))
        return label_loss(scores, labels, images)

    fit(start, data, loss=spy, augment=False, **settings)
    return seen


def areas(images):
    """Share of each brightness in each image, N×10."""
    return torch.stack([(images[:, 0] * 255 - 20 * label).abs().lt(0.5).float().mean((1, 2)) for label in range(10)], 1)


def test_cutmix_blends_labels_by_area(start, plain):
    seen = blended(start, plain, cutmix=1.0)
    labels, images = torch.cat([labels for labels, _ in seen]), torch.cat([images for _, images in seen])
    torch.testing.assert_close(labels, areas(images), atol=1e-5, rtol=0)
    two = (labels > 0).sum(1) == 2
    assert two.float().mean() > 0.5
    assert (labels > 0).sum(1).max() == 2
    pasted = images[two][0, 0] != images[two][0, 0].flatten().mode().values  # the smaller part is one rectangle
    rows, columns = pasted.any(1), pasted.any(0)
    assert pasted.equal(rows[:, None] & columns[None, :])


def test_with_both_each_batch_is_pasted_or_blended(start, plain):
    seen = blended(start, plain, cutmix=1.0, mixup=1.0, epochs=4)
    pasted = [torch.allclose(labels, areas(images), atol=1e-5) for labels, images in seen]
    assert len(pasted) == 12
    assert 0 < sum(pasted) < 12
    assert all(labels.sum(1).allclose(torch.ones(len(labels))) for labels, _ in seen)


# running averages


def test_the_average_of_all_steps_by_hand(start, few):
    share, steps, rate = 0.6, 4, 2e-3
    epochs = []
    trained = fit(start, few, steps, batch_size=96, augment=False, average=share,
                  on_epoch=lambda *report: epochs.append(copy_model(report[3]).state_dict()))  # fmt: skip

    model = copy_model(start).train().to(memory_format=torch.channels_last).requires_grad_(True)
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}])
    torch.manual_seed(0)
    average = None
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 + 199 * step / 200) / 200  # rises for 200 steps
        order = torch.randperm(96)
        images = as_floats(few.train.images[order])
        optimizer.zero_grad()
        F.cross_entropy(logits(model, images), few.train.labels[order]).backward()
        optimizer.step()
        now = {name: tensor.clone() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
        average = now if average is None else {
            name: share * before + (1 - share) * now[name] for name, before in average.items()
        }  # fmt: skip
        for name, tensor in average.items():
            torch.testing.assert_close(epochs[step][name], tensor, rtol=1e-3, atol=1e-5)
    assert same_numbers(trained, epochs[-1])
    raw = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    assert any(not tensor.allclose(average[name], rtol=1e-3, atol=1e-5) for name, tensor in raw.items())


def same_numbers(model, state):
    return all(tensor.equal(state[name]) for name, tensor in model.state_dict().items())


def test_an_averaged_training_resumes_where_it_stopped(start, few, tmp_path):
    whole = fit(start, few, average=0.9)
    checkpoint = tmp_path / "state.training"
    with pytest.raises(KeyboardInterrupt):
        fit(start, few, average=0.9, checkpoint=checkpoint, on_epoch=stop_after_first_epoch)
    epochs = []
    resumed = fit(start, few, average=0.9, checkpoint=checkpoint, on_epoch=lambda epoch, *_: epochs.append(epoch))
    assert epochs == [2]
    assert same(whole, resumed)
    assert not same(whole, fit(start, few))
    with pytest.raises(ValueError, match=r"belongs to a training with average=0.9 \(now 0.5\)"):
        fit(start, few, average=0.5, checkpoint=checkpoint)


def test_averages_keep_zeros_and_are_what_is_validated(start, few):
    pruned = slim.prune_weights(start, 0.5)
    reports = []
    trained = fit(pruned, few, average=0.9, on_epoch=lambda *report: reports.append(report[2]))
    assert reports[-1] == top1_accuracy(trained, few.val)
    for (name, before), (_, after) in zip(weight_layers(pruned), weight_layers(trained), strict=True):
        assert (after.weight[before.weight == 0] == 0).all(), name
    assert not any(parameter.requires_grad for parameter in trained.parameters())
    assert not trained.training


# augmentation


def test_augmented_images_are_mirrored_shifted_or_partly_erased():
    random = torch.Generator().manual_seed(0)
    image = torch.randint(1, 256, (3, 32, 32), dtype=torch.uint8, generator=random)
    padded = F.pad(image, [2] * 4)  # 32 px: shifts by up to 2
    places = [(top, left) for top in range(5) for left in range(5)]
    views = {}
    for top, left in places:
        view = padded[:, top : top + 32, left : left + 32]
        views[view.numpy().tobytes()] = (top, left, False)
        views[view.flip(-1).numpy().tobytes()] = (top, left, True)

    torch.manual_seed(0)
    copies = image.expand(1_000, -1, -1, -1)
    before = image.clone()
    results = augmented(copies)
    assert image.equal(before)
    assert results.dtype == torch.uint8
    assert results.shape == copies.shape
    whole = [views[key] for result in results if (key := result.contiguous().numpy().tobytes()) in views]
    # Three of four are not erased; with 1,000 images the share is within 0.05 of that in 999 of 1,000 runs.
    assert len(whole) / 1_000 == pytest.approx(0.75, abs=0.05)
    assert sum(mirrored for _, _, mirrored in whole) / len(whole) == pytest.approx(0.5, abs=0.07)
    assert {place[:2] for place in whole} == set(places)


# checkpoints


def stop_after_first_epoch(epoch, *_):
    if epoch == 1:
        raise KeyboardInterrupt


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_a_resumed_training_ends_where_an_uninterrupted_one_does(start, few, tmp_path, mixup):
    whole = fit(start, few, mixup=mixup)
    checkpoint = tmp_path / "state.training"
    with pytest.raises(KeyboardInterrupt):
        fit(start, few, mixup=mixup, checkpoint=checkpoint, on_epoch=stop_after_first_epoch)
    epochs = []
    resumed = fit(start, few, mixup=mixup, checkpoint=checkpoint, on_epoch=lambda epoch, *_: epochs.append(epoch))
    assert epochs == [2]
    assert same(whole, resumed)


def test_a_finished_training_returns_at_once(start, few, tmp_path):
    checkpoint = tmp_path / "state.training"
    finished = fit(start, few, 1, checkpoint=checkpoint)
    again = fit(start, few, 1, checkpoint=checkpoint, on_epoch=lambda *_: pytest.fail("trained once more"))
    assert same(finished, again)


def test_a_checkpoint_of_another_training_is_refused(start, few, tmp_path):
    checkpoint = tmp_path / "state.training"
    fit(start, few, 1, checkpoint=checkpoint)
    contents = checkpoint.read_bytes()
    for settings, difference in (
        ({"epochs": 2}, r"epochs=1 \(now 2\)"),
        ({"batch_size": 16}, r"batch_size=32 \(now 16\)"),
        ({"learning_rate": 0.01}, r"learning_rate=0.002 \(now 0.01\)"),
        ({"seed": 1}, r"seed=0 \(now 1\)"),
        ({"mixup": 0.2, "augment": False}, r"augment=True \(now False\), mixup=0.0 \(now 0.2\)"),
        ({"loss": F.mse_loss}, r"loss=None \(now 'mse_loss'\)"),
    ):
        message = rf"state\.training' belongs to a training with {difference}: use the same settings, or another file"
        with pytest.raises(ValueError, match=message):
            fit(start, few, **{"epochs": 1, "checkpoint": checkpoint} | settings)
    wider = slim.new_model("yolov8s-cls.yaml", few.class_names)
    with pytest.raises(ValueError, match="belongs to a training with parameters="):
        fit(wider, few, 1, checkpoint=checkpoint)
    assert checkpoint.read_bytes() == contents


def test_a_checkpoint_of_another_model_is_refused(start, few, tmp_path):
    """Settings and counts may agree by chance; what was trained then is another model."""
    first, second = (slim.prune_channels(start, 0.5, "random", seed=seed) for seed in (1, 2))
    fit(first, few, 1, checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match="belongs to a training with other weights at its start: use the same"):
        fit(second, few, 1, checkpoint=tmp_path / "c")
    assert same(fit(first, few, 1, checkpoint=tmp_path / "c"), fit(first, few, 1))


def test_a_checkpoint_of_other_images_or_labels_is_refused(start, few, tmp_path):
    fit(start, few, 1, checkpoint=tmp_path / "c")
    images = few.train.images.clone()
    images[5] += 1
    for train in (Split(images, few.train.labels), Split(few.train.images, few.train.labels.flip(0))):
        with pytest.raises(ValueError, match="belongs to a training with other training images or labels"):
            fit(start, replace(few, train=train), 1, checkpoint=tmp_path / "c")


def test_a_checkpoint_of_an_older_version_is_refused_with_the_way_out(start, few, tmp_path):
    fit(start, few, 1, checkpoint=tmp_path / "c")
    contents = torch.load(tmp_path / "c")
    del contents["settings"]["start"], contents["settings"]["train"]
    torch.save(contents, tmp_path / "c")
    with pytest.raises(ValueError, match="is from an older version, .*: delete it to start anew, or use another file"):
        fit(start, few, 1, checkpoint=tmp_path / "c")


@pytest.mark.parametrize("damage", [lambda whole: whole[:1000], lambda whole: b"", lambda whole: b"no checkpoint"])
def test_a_damaged_checkpoint_is_named_with_the_way_out(start, few, tmp_path, damage):
    checkpoint = tmp_path / "state.training"
    fit(start, few, 1, checkpoint=checkpoint)
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    with pytest.raises(ValueError, match=r"state\.training' is damaged or no training state: .*delete this one"):
        fit(start, few, 1, checkpoint=checkpoint)


# bad input


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", -1),
        ("epochs", 1.5),
        ("epochs", True),
        ("batch_size", 0),
        ("batch_size", 2.0),
        ("learning_rate", 0),
        ("weight_decay", -0.1),
        ("mixup", -1),
        ("cutmix", -0.5),
        ("average", 1),
        ("average", -0.1),
        ("average", float("nan")),
    ],
)
def test_numbers_out_of_range_are_named(start, few, name, value):
    with pytest.raises(ValueError, match=f"{name}={value}: expected"):
        fit(start, few, **{"epochs": 1} | {name: value})


@pytest.mark.parametrize(("label", "found"), [(-1, "-1 to 9"), (10, "0 to 10")])
def test_labels_that_the_model_does_not_know_are_named(start, few, label, found):
    labels = few.train.labels.clone()
    labels[0] = label
    data = ImageData(Split(few.train.images, labels), few.val, None, few.class_names, few.image_size)
    with pytest.raises(ValueError, match=f"data.train has labels from {found}: expected 0 to 9"):
        fit(start, data, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_model_is_refused_with_the_way_out(start, few, dtype):
    with pytest.raises(ValueError, match=rf"model has weights of {dtype}.*: pass model\.float\(\)"):
        fit(copy_model(start).to(dtype), few, 1)


def test_model_and_data_must_agree_on_the_classes(few):
    model = slim.new_model("yolov8n-cls.yaml", ("ant", "bee"))
    with pytest.raises(ValueError, match="data has 10 classes, model has 2"):
        training.fit(model, few, 1)
