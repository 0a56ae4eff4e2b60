"""What fit() offers for photographs: other crops and light, unequal classes, frozen layers, smaller images at first."""

from dataclasses import replace

import pytest
import torch

import yolo_slim_lessons as slim
from yolo_slim_lessons.data import ImageData, Split
from yolo_slim_lessons.distillation import cache_teacher
from yolo_slim_lessons.models import adapt, copy_model, weight_layers
from yolo_slim_lessons.training import PHOTOGRAPHS, label_loss
from yolo_slim_lessons.training.augmentation import photographed
from yolo_slim_lessons.training.options import image_shares, random_order, size_in_epoch

QUIET = {"batch_size": 32, "progress": False}


@pytest.fixture(scope="module")
def few(data):
    part = data.take(train=96, val=20)
    return ImageData(part.train, part.val, None, part.class_names, part.image_size)


@pytest.fixture(scope="module")
def small(nano):
    """Few channels, for speed."""
    return slim.prune_channels(nano, 0.8)


def state_of(model, block):
    return {name: tensor for name, tensor in model.state_dict().items() if name.startswith(f"model.{block}.")}


def unchanged(before, after, block):
    return all(after.state_dict()[name].equal(tensor) for name, tensor in state_of(before, block).items())


def seen_by_the_loss(model, data, epochs=1, **settings):
    """(labels, images) of every batch."""
    seen = []

    def spy(scores, labels, images):
        seen.append((labels, images))
        return label_loss(scores, labels, images)

    slim.fit(model, data, epochs, loss=spy, **QUIET | settings)
    return seen


# photographs


@pytest.fixture(scope="module")
def scene():
    """One picture of 64 px whose colour tells the place: red grows to the right, green downwards; blue is constant."""
    ramp = torch.linspace(40, 200, 64)
    picture = torch.stack([ramp.expand(64, 64), ramp.view(-1, 1).expand(64, 64), torch.full((64, 64), 100.0)])
    return picture.round().to(torch.uint8)


def test_each_photograph_is_cropped_recoloured_and_mirrored_in_its_own_way(scene):
    torch.manual_seed(0)
    images = scene.expand(200, -1, -1, -1).contiguous()
    before = images.clone()
    changed = photographed(images)
    assert images.equal(before)
    assert changed.dtype == torch.uint8
    assert changed.shape == images.shape
    assert len({image.numpy().tobytes() for image in changed}) == 200
    whole = changed[(changed.flatten(2) > 0).all(2).all(1)].float()
    assert len(whole) / 200 == pytest.approx(0.75, abs=0.1)  # the others are partly erased
    slope = whole[:, 0, :, -8:].mean((1, 2)) - whole[:, 0, :, :8].mean((1, 2))
    assert (slope < 0).float().mean().item() == pytest.approx(0.5, abs=0.12)  # mirrored
    assert (whole[:, 1, -8:].mean((1, 2)) > whole[:, 1, :8].mean((1, 2))).all()  # never upside down
    brightness = whole.mean((1, 2, 3))
    assert brightness.min() < 0.75 * before.float().mean() < 1.25 * before.float().mean() < brightness.max()


def test_pictures_of_one_channel_keep_it(scene):
    assert photographed(scene[None, :1]).shape == (1, 1, 64, 64)


def test_a_crop_shows_at_least_half_of_the_photograph(scene, monkeypatch):
    monkeypatch.setattr("yolo_slim_lessons.training.augmentation.RECOLOURED", 0.0)
    torch.manual_seed(0)
    changed = photographed(scene.expand(100, -1, -1, -1)).float()
    whole = changed[(changed.flatten(2) > 0).all(2).all(1)]
    assert whole[:, 2].sub(100).abs().max() <= 1  # without other colours a constant stays
    widths = (whole[:, 0].amax((1, 2)) - whole[:, 0].amin((1, 2))) / 160
    heights = (whole[:, 1].amax((1, 2)) - whole[:, 1].amin((1, 2))) / 160
    assert (widths * heights).min() > 0.45
    assert (widths * heights).max() <= 1
    assert (widths * heights).std() > 0.1


def test_photographs_are_trained_on_reproducibly(small, few):
    trained = [slim.fit(small, few, 1, augment="photographs", seed=seed, **QUIET) for seed in (1, 1, 2)]
    first, again, other = (model.state_dict()["model.9.linear.weight"] for model in trained)
    assert first.equal(again)
    assert not first.equal(other)


def test_labels_stay_with_their_photographs(small):
    """Images of one brightness each: crops and mirrors leave it as it is, other light changes it by less than half."""
    labels = torch.arange(32) % 2
    images = (50 + 150 * labels).to(torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, 64, 64)
    split, names = Split(images, labels), tuple(f"kind {number}" for number in range(2))
    before = images.clone()
    data = ImageData(split, split[:4], None, names, 64)
    for told, shown in seen_by_the_loss(adapt(small, names), data, augment="photographs"):
        bright = shown.amax((1, 2, 3)) * 255 > 85  # 50 · 1.4 < 85 < 200 · 0.6
        assert bright.equal(told == 1)
    assert images.equal(before)


def test_a_teacher_is_asked_once_about_versions_of_photographs(small, nano, few):
    cache = cache_teacher(nano, few.train, versions=2, augment="photographs", progress=False)
    some = torch.tensor([5, 6])
    first, second = (cache.version(some, torch.full((2,), version)) for version in (0, 1))
    assert not first.equal(second)
    slim.distill(small, nano, few, epochs=1, cache=cache, augment="photographs", **QUIET)
    with pytest.raises(ValueError, match="augment=True: the cache was made with augment='photographs'"):
        slim.distill(small, nano, few, epochs=1, cache=cache, augment=True, **QUIET)


def test_photographs_have_steps_of_their_own_unless_told(small, few):
    sizes = [len(labels) for labels, _ in seen_by_the_loss(small, few, augment="photographs", batch_size=None)]
    assert sizes == [32, 32, 32]
    assert [len(labels) for labels, _ in seen_by_the_loss(small, few, batch_size=None)] == [96]
    told = slim.fit(small, few, 1, augment="photographs", **PHOTOGRAPHS, progress=False)
    assert all(
        unchanged(told, slim.fit(small, few, 1, augment="photographs", progress=False), block) for block in range(10)
    )


# classes of unequal size


@pytest.fixture(scope="module")
def unequal(few):
    """80 images of label 0, 12 of label 1, 4 of label 2."""
    labels = torch.tensor([0] * 80 + [1] * 12 + [2] * 4)
    return replace(few, train=Split(few.train.images, labels, few.class_names))


def counts_of(seen):
    return torch.cat([labels for labels, _ in seen]).bincount(minlength=3)[:3].tolist()


def test_balanced_classes_are_seen_equally_often(small, unequal):
    assert counts_of(seen_by_the_loss(small, unequal)) == [80, 12, 4]
    assert counts_of(seen_by_the_loss(small, unequal, class_weights="balanced")) == pytest.approx([32] * 3, abs=1)


def test_weights_of_the_classes_say_how_often_each_is_seen(small, unequal):
    weights = [1, 2, 3, *[1] * 7]  # 80 : 24 : 12, of 96 in all
    seen = counts_of(seen_by_the_loss(small, unequal, class_weights=weights))
    assert seen == pytest.approx([66.2, 19.9, 9.9], abs=1)
    assert sum(seen) == 96


def test_balance_costs_nothing_where_classes_are_equal():
    labels = torch.arange(100) % 10
    order = random_order(100, image_shares(labels, "balanced"))
    assert order.sort().values.tolist() == list(range(100))  # each image once


def test_images_without_a_label_are_seen_once():
    shares = image_shares(torch.tensor([0, 0, 0, 1, -1, -1]), "balanced")
    assert shares.tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2, 1, 1])
    shares = image_shares(torch.tensor([0, 1, -1]), [1, 3])
    assert shares.tolist() == pytest.approx([0.5, 1.5, 1])


def test_balance_helps_a_rare_class(nano, data):
    """Shirts are mistaken for T-shirts; with 8 of them beside 400 T-shirts, no shirt is recognised any more."""
    names = (data.class_names[0], data.class_names[6])
    train, val = (
        two_classes(split, names, data, counts) for split, counts in ((data.train, (400, 8)), (data.val, (100, 100)))
    )
    unequal = ImageData(train, val, val, names, 64)
    start = adapt(slim.prune_channels(nano, 0.5), names)
    shirts_found = {}
    for weights in (None, "balanced"):
        trained = slim.fit(start, unequal, 3, class_weights=weights, learning_rate=1e-3, **QUIET)
        shirts_found[weights] = (slim.predict(trained, val, progress=False)[100:].argmax(1) == 1).float().mean().item()
    assert shirts_found["balanced"] > shirts_found[None] + 0.2, shirts_found


def two_classes(split, names, data, counts):
    places = [
        (split.labels == data.class_names.index(name)).nonzero().squeeze(1)[:count]
        for name, count in zip(names, counts, strict=True)
    ]
    labels = torch.tensor([0] * counts[0] + [1] * counts[1])
    return Split(split[torch.cat(places)].images, labels, names)


# frozen layers


@pytest.mark.parametrize("frozen", [3, ["model.0", "model.1", "model.2"]])
def test_frozen_blocks_and_their_statistics_stay_and_others_move(small, few, frozen):
    trained = slim.fit(small, few, 1, frozen=frozen, **QUIET)
    assert all(unchanged(small, trained, block) for block in (0, 1, 2))
    assert not any(unchanged(small, trained, block) for block in (3, 4, 9))
    assert not any(parameter.requires_grad for parameter in trained.parameters())


def test_with_an_average_frozen_blocks_stay_to_the_last_bit(small, few):
    trained = slim.fit(small, few, 2, frozen=2, average=0.7, weight_decay=0.5, **QUIET)
    assert unchanged(small, trained, 0)
    assert not unchanged(small, trained, 2)


def test_no_gradients_are_computed_below_what_learns(small, few):
    needed = []

    def spy(scores, labels, images):
        needed.append([feature.requires_grad for feature in features])
        return label_loss(scores, labels, images)

    features, model = [], copy_model(small)
    for block in (4, 5):
        model.model[block].register_forward_hook(lambda module, inputs, output: features.append(output))
    slim.fit(model, replace(few, train=few.train[:32]), 1, frozen=5, loss=spy, **QUIET)
    assert needed[0] == [False, True]


def test_distillation_and_training_while_rounded_freeze_too(small, nano, few):
    few = replace(few, train=few.train[:32])
    distilled = slim.distill(small, nano, few, epochs=1, frozen=3, class_weights="balanced", **QUIET)
    assert unchanged(small, distilled, 1)
    assert not unchanged(small, distilled, 5)
    options = QUIET | {
        "epochs": 1,
        "batch_size": 8,
        "learning_rate": 0.01,
        "augment": "photographs",
        "image_sizes": (48,),
    }
    start = slim.quantize_integer(small, 4, 8, few.train)
    frozen, free = (slim.train_quantized(small, few, 4, 8, frozen=each, **options) for each in (3, 0))
    first, others, all_others = (dict(weight_layers(model)) for model in (start, frozen, free))
    assert first["model.1.conv"].weight.equal(others["model.1.conv"].weight)
    assert not first["model.1.conv"].weight.equal(all_others["model.1.conv"].weight)
    assert not first["model.5.conv"].weight.equal(others["model.5.conv"].weight)


# image sizes


def test_first_epochs_see_smaller_images(small, few):
    seen = seen_by_the_loss(small, few, epochs=3, image_sizes=(32, 48, 64))
    assert [images.shape[-1] for _, images in seen] == [32] * 3 + [48] * 3 + [64] * 3
    assert [size_in_epoch((128, 224), epoch, 5) for epoch in range(5)] == [128] * 3 + [224] * 2


def test_smaller_images_show_the_same(small, few):
    ((_, images),) = seen_by_the_loss(small, replace(few, train=few.train[:16]), image_sizes=[32], augment=False)
    means = few.train.images[:16].float().mean((1, 2, 3)) / 255
    assert images.shape[-2:] == (32, 32)
    assert images.mean((1, 2, 3)).sort().values.tolist() == pytest.approx(means.sort().values.tolist(), abs=0.005)


def test_what_was_trained_on_smaller_images_is_for_those_of_the_data(small, few):
    trained = slim.fit(small, few, 1, image_sizes=[32], **QUIET)
    assert trained.args["imgsz"] == 64


# together


def test_a_training_with_all_of_it_goes_on_where_it_stopped(small, few, tmp_path):
    options = {"augment": "photographs", "class_weights": "balanced", "frozen": 2, "image_sizes": (32, 64), **QUIET}
    whole = slim.fit(small, few, 2, **options)

    def stop(epoch, *_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        slim.fit(small, few, 2, checkpoint=tmp_path / "c", on_epoch=stop, **options)
    resumed = slim.fit(small, few, 2, checkpoint=tmp_path / "c", **options)
    assert all(unchanged(whole, resumed, block) for block in range(10))
    with pytest.raises(ValueError, match=r"belongs to a training with frozen=\['model.0', 'model.1'\] \(now None\)"):
        slim.fit(small, few, 2, checkpoint=tmp_path / "c", **options | {"frozen": 0})


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"augment": "photos"}, ValueError, r"augment='photos': expected one of \(False, True, 'photographs'\)"),
        ({"class_weights": "even"}, ValueError, "class_weights='even': expected 'balanced', or 10 numbers above 0"),
        ({"class_weights": [1, 2]}, ValueError, r"class_weights=\[1, 2\]: expected 'balanced', or 10 numbers"),
        ({"class_weights": [0] * 10}, ValueError, "10 numbers above 0, one for each class"),
        ({"frozen": 10}, ValueError, "frozen=10: expected 0 to 9, so that the last block learns"),
        ({"frozen": True}, TypeError, "frozen=True: expected a number of blocks, or names such as"),
        ({"frozen": "model.0"}, TypeError, r"frozen='model\.0': expected a number of blocks, or names"),
        ({"frozen": ["model.0", "stem"]}, ValueError, "frozen names 'stem', which holds no weights: expected"),
        ({"frozen": ["model"]}, ValueError, r"frozen=\['model'\]: nothing is left that could learn"),
        ({"image_sizes": ()}, ValueError, r"image_sizes=\[\]: expected 1 to 2 sizes \(epochs=2\) of 32 to 64 px"),
        ({"image_sizes": (32, 48, 64)}, ValueError, r"expected 1 to 2 sizes \(epochs=2\)"),
        ({"image_sizes": (128,)}, ValueError, r"image_sizes=\[128\]: expected 1 to 2 sizes .* of 32 to 64 px"),
        ({"image_sizes": 32}, ValueError, "image_sizes=32: expected 1 to 2 sizes"),
    ],
)
def test_options_out_of_range_are_named(small, few, options, error, said):
    with pytest.raises(error, match=said):
        slim.fit(small, few, 2, **QUIET | options)
