"""distill() computes what the papers say, learns without labels, and touches neither student nor teacher."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from one_channel import one_channel_model
from scipy.special import log_softmax, softmax
from torch.nn import functional as F

import yolo_slim_lessons as slim
from yolo_slim_lessons import distillation
from yolo_slim_lessons.data import Split, as_floats
from yolo_slim_lessons.distillation import (
    attention_loss,
    cache_teacher,
    decoupled_loss,
    hide_labels,
    hint_loss,
    soft_target_loss,
    with_unlabelled,
)
from yolo_slim_lessons.distillation.features import add_adapters, feature_shapes, match_layers, record
from yolo_slim_lessons.distillation.losses import known_label_loss
from yolo_slim_lessons.models import copy_model, logits


@pytest.fixture(scope="module")
def few():
    """200 training and 50 validation images, without test images: distill() must not look at any."""
    part = slim.load_images("fashion-mnist", image_size=32).take(train=200, val=50)
    return replace(part, test=None)


@pytest.fixture(scope="module")
def student(few):
    """An untrained, narrow model, changed by nobody."""
    return slim.prune_channels(slim.new_model("yolov8n-cls.yaml", few.class_names, 32), target_macs=0.25)


@pytest.fixture(scope="module")
def teacher(nano):
    return nano


def distill(student, teacher, few, temperature=4.0, alpha=0.9, epochs=1, **options):
    return slim.distill(
        student, teacher, few, temperature, alpha, epochs, **{"batch_size": 50, "progress": False} | options
    )


def same(first, second):
    states = first.state_dict(), second.state_dict()
    return states[0].keys() == states[1].keys() and all(value.equal(states[1][key]) for key, value in states[0].items())


def random_scores(seed, images=6, classes=10):
    return 3 * torch.randn(images, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# the formulas


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_targets_are_the_divergence_of_softened_probabilities(temperature):
    scores, answers = random_scores(0), random_scores(1)
    p, q = softmax(answers.numpy() / temperature, 1), softmax(scores.numpy() / temperature, 1)
    by_hand = temperature**2 * (p * np.log(p / q)).sum(1).mean()
    assert soft_target_loss(scores, answers, temperature).item() == pytest.approx(by_hand)
    assert soft_target_loss(answers, answers, temperature).item() == pytest.approx(0, abs=1e-12)


def gradient(loss, scores):
    scores = scores.clone().requires_grad_()
    loss(scores).backward()
    return scores.grad


def test_the_factor_keeps_the_size_of_gradients_at_any_temperature():
    scores, answers = random_scores(0), random_scores(1)
    # Hinton et al. (2015), equation 2: each image pulls with T² · 1/T · (q - p).
    for temperature in (1.0, 4.0, 20.0):
        pull = temperature * (softmax(scores / temperature, 1) - softmax(answers / temperature, 1)) / len(scores)
        found = gradient(lambda s, t=temperature: soft_target_loss(s, answers, t), scores)
        torch.testing.assert_close(found, torch.as_tensor(pull))
    # Equation 4: when T is large, this is the plain difference of centred logits by the number of classes.
    limit = ((scores - scores.mean(1, keepdim=True)) - (answers - answers.mean(1, keepdim=True))) / (10 * len(scores))
    found = gradient(lambda s: soft_target_loss(s, answers, 1e4), scores)
    torch.testing.assert_close(found, limit, rtol=1e-2, atol=1e-4)


def test_decoupled_parts_add_up_to_soft_targets_when_weighted_by_the_teachers_doubt():
    # Zhao et al. (2022), equation 7: KL = TCKD + (1 - p_target) · NCKD, image by image.
    for seed in range(5):
        scores, answers, target = random_scores(seed, 1), random_scores(seed + 100, 1), torch.tensor([seed])
        doubt = 1 - softmax(answers.numpy() / 3, 1)[0, seed]
        decoupled = decoupled_loss(scores, answers, target, temperature=3, beta=doubt)
        assert decoupled.item() == pytest.approx(soft_target_loss(scores, answers, 3).item())


def test_decoupled_by_hand():
    scores, answers = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[3.0, 1.0, 0.0]])
    p, q = softmax(answers.numpy(), 1)[0], softmax(scores.numpy(), 1)[0]
    target_part = p[0] * np.log(p[0] / q[0]) + (1 - p[0]) * np.log((1 - p[0]) / (1 - q[0]))
    others_p, others_q = p[1:] / p[1:].sum(), q[1:] / q[1:].sum()
    other_part = (others_p * np.log(others_p / others_q)).sum()
    found = decoupled_loss(scores, answers, torch.tensor([0]), temperature=1, beta=5.0)
    assert found.item() == pytest.approx(target_part + 5 * other_part, rel=1e-5)


def test_hints_by_hand():
    ours, theirs = torch.tensor([1.0, 2.0, 3.0, 5.0]).view(1, 1, 2, 2), torch.full((1, 1, 2, 2), 2.0)
    assert hint_loss(ours, theirs).item() == pytest.approx((1 + 0 + 1 + 9) / (4 * 4))


def test_attention_is_where_and_neither_how_much_nor_in_how_many_channels():
    narrow, wide = torch.zeros(1, 2, 2, 2), torch.zeros(1, 5, 2, 2)
    narrow[..., 0, 0], wide[..., 0, 0] = 3, 70
    assert attention_loss(narrow, wide).item() == pytest.approx(0, abs=1e-6)
    elsewhere = wide.flip(-1)
    assert attention_loss(narrow, elsewhere).item() == pytest.approx(2)  # unit vectors at a right angle: 1 + 1


def test_known_label_loss_is_the_mean_over_images_that_have_a_label():
    scores = random_scores(0, images=3)
    by_hand = -log_softmax(scores.numpy(), 1)[[0, 2], [4, 7]].mean()
    assert known_label_loss(scores, torch.tensor([4, -1, 7])).item() == pytest.approx(by_hand)
    assert known_label_loss(scores, torch.tensor([-1, -1, -1])).item() == 0
    shares = torch.full((3, 10), 0.1, dtype=torch.float64)
    assert known_label_loss(scores, shares).item() == pytest.approx(F.cross_entropy(scores, shares).item())


# what distill does


@pytest.mark.parametrize("method", distillation.METHODS)
def test_both_inputs_are_left_alone_and_the_result_is_a_plain_student(student, teacher, few, tmp_path, method):
    learner, master = copy_model(student), copy_model(teacher).train().requires_grad_(True)
    seen = []
    learned = distill(
        learner,
        master,
        few,
        method=method,
        on_epoch=lambda *report: seen.append((*report[:3], slim.save_model(report[3], tmp_path / "epoch.pt"))),
    )
    assert same(learner, student)
    assert same(master, teacher)
    assert master.training
    assert all(parameter.requires_grad for parameter in master.parameters())
    assert not any(module._forward_hooks for model in (learner, master, learned) for module in model.modules())
    assert learned.state_dict().keys() == student.state_dict().keys()
    assert not same(learned, student)
    assert not learned.training
    assert [epoch for epoch, *_ in seen] == [1]
    assert same(slim.load_model(tmp_path / "epoch.pt"), learned)


def test_a_teacher_in_training_mode_teaches_the_same(student, teacher, few):
    assert same(distill(student, teacher, few), distill(student, copy_model(teacher).train(), few))


def test_the_loss_is_the_sum_that_the_docstring_says(student, teacher, few):
    losses = []
    options = {"batch_size": 200, "augment": False, "on_epoch": lambda epoch, loss, *_: losses.append(loss)}
    distill(student, teacher, few, temperature=3.0, alpha=0.7, **options)
    batch = few.train[torch.arange(200)]
    scores, answers = (
        logits(copy_model(student).train(), as_floats(batch.images)),
        logits(teacher, as_floats(batch.images)),
    )
    by_hand = 0.3 * F.cross_entropy(scores, batch.labels) + 0.7 * soft_target_loss(scores, answers, 3.0)
    assert losses[0] == pytest.approx(by_hand.item(), rel=1e-4)
    distill(student, teacher, few, temperature=3.0, alpha=0.7, method="decoupled", beta=2.0, **options)
    decoupled = decoupled_loss(scores, answers, batch.labels, 3.0, beta=2.0)
    by_hand = 0.3 * F.cross_entropy(scores, batch.labels) + 0.7 * decoupled
    assert losses[1] == pytest.approx(by_hand.item(), rel=1e-4)


@pytest.mark.parametrize("method", ["hints", "attention"])
def test_features_add_their_distance_to_the_loss(student, teacher, few, method):
    losses = []
    options = {"batch_size": 200, "augment": False, "on_epoch": lambda epoch, loss, *_: losses.append(loss)}
    for weight in (0.0, 1.0, 3.0):
        distill(student, teacher, few, method=method, layers=["model.4"], feature_weight=weight, **options)
    distance = losses[1] - losses[0]
    assert losses[2] - losses[0] == pytest.approx(3 * distance, rel=1e-3)
    features, learner = {}, copy_model(student).train()
    taught = {}
    master = copy_model(teacher)
    record(master, ["model.4"], taught)
    if method == "hints":
        add_adapters(learner, teacher, {"model.4": "model.4"}, 32, seed=0)
    record(learner, ["model.4"], features)
    images = as_floats(few.train.images)
    learner(images), master(images)
    loss = distillation.FEATURE_LOSSES[method]
    assert distance == pytest.approx(loss(features["model.4"], taught["model.4"]).item(), rel=1e-2)


def test_teacher_and_student_see_the_same_augmented_images(student, teacher, few, monkeypatch):
    seen = {"teacher": [], "student": []}
    master = copy_model(teacher)
    master.register_forward_pre_hook(lambda _, inputs: seen["teacher"].append(inputs[0].clone()))
    learner = copy_model(student)
    learner.register_forward_pre_hook(
        lambda model, inputs: seen["student"].append(inputs[0].clone()) if model.training else None
    )
    distill(learner, master, few, epochs=2)
    assert len(seen["teacher"]) == len(seen["student"]) == 8
    assert all(a.equal(b) for a, b in zip(*seen.values(), strict=True))
    originals = {image.numpy().tobytes() for image in few.train.images.contiguous()}
    pixels = [
        image.numpy().tobytes() for batch in seen["teacher"] for image in (batch * 255).round().byte().contiguous()
    ]
    assert sum(each in originals for each in pixels) < 0.2 * len(pixels)  # most are mirrored, shifted or erased


def test_it_comes_closer_to_the_teacher(student, teacher, few):
    def agreement(model):
        return (slim.predict(model, few.val).argmax(1) == slim.predict(teacher, few.val).argmax(1)).float().mean()

    learned = distill(student, teacher, few, alpha=1.0, epochs=12, batch_size=20)
    assert agreement(student) < 0.25
    assert agreement(learned) > agreement(student) + 0.2


@pytest.mark.parametrize("method", ["soft", "hints", "attention"])
def test_without_labels_the_teacher_alone_decides(student, teacher, few, method):
    options = {"alpha": 1.0, "method": method}
    with_labels = distill(student, teacher, few, **options)
    wrong = replace(few, train=Split(few.train.images, few.train.labels.flip(0)))
    assert same(with_labels, distill(student, teacher, wrong, **options))
    assert same(with_labels, distill(student, teacher, hide_labels(few, keep=0), **options))


@pytest.mark.parametrize("blend", ["mixup", "cutmix"])
def test_blends_need_no_labels_either_when_only_the_teacher_decides(student, teacher, few, blend):
    options = {"alpha": 1.0, blend: 0.4}
    hidden = hide_labels(few, keep=10)
    assert same(distill(student, teacher, few, **options), distill(student, teacher, hidden, **options))
    with pytest.raises(ValueError, match=rf"{blend}=0\.4 blends labels, but some images have none: expected {blend}=0"):
        distill(student, teacher, hidden, **{blend: 0.4})


def test_alpha_0_is_fit(student, teacher, few):
    plain = slim.fit(student, few, 1, batch_size=50, progress=False)
    assert same(plain, distill(student, teacher, few, alpha=0.0))


def test_zeros_stay_zero(student, teacher, few):
    pruned = slim.prune_weights(student, 0.5)
    for method in ("soft", "hints"):
        learned = distill(pruned, teacher, few, method=method)
        for (name, before), (_, after) in zip(slim.weight_layers(pruned), slim.weight_layers(learned), strict=True):
            assert (after.weight[before.weight == 0] == 0).all(), name
            assert after.weight.count_nonzero() == before.weight.count_nonzero()


def test_bfloat16(student, teacher, few):
    losses = []
    for method in distillation.METHODS:
        learned = distill(student, teacher, few, method=method, bfloat16=True, on_epoch=lambda *r: losses.append(r[1]))
        assert {parameter.dtype for parameter in learned.parameters()} == {torch.float32}
    assert np.isfinite(losses).all()


# images without labels


def test_hidden_labels_are_all_but_those_of_take(few):
    hidden = hide_labels(few, keep=40)
    known = hidden.train.labels >= 0
    assert hidden.train.images.equal(few.train.images)
    assert hidden.train.images[known].equal(few.train.take(40).images)
    assert hidden.train.labels[known].equal(few.train.take(40).labels)
    assert (hidden.train.labels[~known] == -1).all()
    assert hide_labels(few, keep=200).train.labels.equal(few.train.labels)
    assert hidden.val is few.val


def test_more_images_without_labels(few):
    more = with_unlabelled(few.take(20), few.val.images)
    assert more.train.images.equal(torch.cat([few.train.take(20).images, few.val.images]))
    assert more.train.images.stride(1) == 0  # grey is still stored once
    assert more.train.labels.equal(torch.cat([few.train.take(20).labels, torch.full((50,), -1)]))
    colour = with_unlabelled(few.take(20), few.val.images.contiguous())
    assert colour.train.images.equal(more.train.images)
    with pytest.raises(ValueError, match=r"\(5, 3, 64, 64\): expected torch\.uint8 with the shape N×3×32×32"):
        with_unlabelled(few, torch.zeros(5, 3, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize("method", distillation.METHODS)
def test_few_labels_and_many_images_without(student, teacher, few, method):
    hidden = hide_labels(few, keep=5)  # some batches hold no label at all
    learned = distill(student, teacher, hidden, method=method)
    assert not same(learned, distill(student, teacher, few, method=method))
    assert all(value.isfinite().all() for value in learned.state_dict().values())


def test_fit_refuses_images_without_labels(student, few):
    with pytest.raises(ValueError, match=r"labels from -1 to 9: expected 0 to 9; distill also learns from"):
        slim.fit(student, hide_labels(few, keep=100), 1, progress=False)


# cached answers


def test_cached_answers_are_those_of_the_teacher(teacher, few):
    cache = cache_teacher(teacher, few.train, versions=3, seed=5, progress=False)
    assert cache.scores.shape == (3, 200, 10)
    indices, versions = torch.tensor([7, 199, 7, 0]), torch.tensor([0, 2, 1, 2])
    state = torch.get_rng_state()
    images = cache.version(indices, versions)
    assert torch.get_rng_state().equal(state)
    assert images.equal(cache.version(indices, versions))
    assert not images[0].equal(images[2])  # two versions of one image
    fresh = logits(teacher, as_floats(images))
    torch.testing.assert_close(cache.scores[versions, indices], fresh, rtol=1e-4, atol=1e-4)
    again = cache_teacher(copy_model(teacher).train(), few.train, versions=3, seed=5, batch_size=7, progress=False)
    torch.testing.assert_close(again.scores, cache.scores, rtol=1e-4, atol=1e-4)
    other = cache_teacher(teacher, few.train, versions=1, seed=6, progress=False)
    assert not other.version(indices, torch.zeros(4, dtype=torch.int64)).equal(cache.version(indices, 0 * versions))


def test_learning_from_cached_answers_is_learning_from_fresh_ones(student, teacher, few):
    cache = cache_teacher(teacher, few.train, versions=1, augment=False, progress=False)
    losses = {}
    for name, options in (("cached", {"cache": cache}), ("fresh", {"augment": False})):
        report = losses.setdefault(name, [])
        distill(student, teacher, few, epochs=2, on_epoch=lambda *r, report=report: report.append(r[1]), **options)
    assert losses["cached"] == pytest.approx(losses["fresh"], rel=1e-3)


def test_with_a_cache_each_image_comes_in_all_its_versions(student, teacher, few):
    cache = cache_teacher(teacher, few.train, versions=2, progress=False)
    seen = []
    learner = copy_model(student)
    learner.register_forward_pre_hook(lambda model, inputs: seen.append(inputs[0].clone()) if model.training else None)
    asked = []
    master = copy_model(teacher)
    master.register_forward_pre_hook(lambda _, inputs: asked.append(len(inputs[0])))
    distill(learner, master, few, epochs=6, cache=cache)
    assert sum(asked) <= 32  # a look at whether the cache is its own, and no more
    every = torch.arange(200)
    known = {image.numpy().tobytes() for v in (0, 1) for image in cache.version(every, torch.full((200,), v))}
    pixels = [image.numpy().tobytes() for batch in seen for image in (batch * 255).round().byte().contiguous()]
    assert len(pixels) == 6 * 200
    assert set(pixels) <= known
    assert len(set(pixels)) > 0.95 * len(known)  # each is missed in one of 2⁶ trainings


def test_one_cache_serves_other_labels_of_the_same_images(student, teacher, few):
    cache = cache_teacher(teacher, few.train, versions=2, progress=False)
    hidden = hide_labels(few, keep=40)
    assert not same(distill(student, teacher, few, cache=cache), distill(student, teacher, hidden, cache=cache))


def test_a_cache_that_does_not_fit_is_refused(student, teacher, few):
    cache = cache_teacher(teacher, few.train, versions=1, progress=False)
    for data, options, message in (
        (few.take(100), {}, "made of 200 images that are not the 100 of data.train"),
        (replace(few, train=few.train[torch.arange(200).flip(0)]), {}, "or not in this order"),
        (few, {"augment": False}, "augment=False: the cache was made with augment=True"),
        (few, {"mixup": 0.2}, r"cache, mixup=0\.2: the teacher has never seen the blended images.* mixup=0$"),
        (few, {"cutmix": 0.5}, r"cache, cutmix=0\.5: the teacher has never seen the blended images.* cutmix=0$"),
        (few, {"method": "hints"}, "method='hints': a cache holds answers, not features"),
    ):
        with pytest.raises(ValueError, match=message):
            distill(student, teacher, data, cache=cache, **options)
    other = slim.new_model("yolov8s-cls.yaml", few.class_names, 32)
    with pytest.raises(ValueError, match="cache was made by another teacher"):
        distill(student, other, few, cache=cache)
    for versions in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"versions={versions}: expected a positive integer"):
            cache_teacher(teacher, few.train, versions=versions)
    with pytest.raises(ValueError, match="versions=2, augment=False: unchanged images have one version only"):
        cache_teacher(teacher, few.train, versions=2, augment=False)


# layers


def test_stages_are_matched_by_the_size_of_their_maps(student, few):
    wide = slim.new_model("yolov8s-cls.yaml", few.class_names, 32)
    assert match_layers(student, wide, None, 64) == {f"model.{index}": f"model.{index}" for index in (2, 4, 6, 8)}
    # By hand, from the yaml × 0.5 at 64 px: five times half the side.
    assert feature_shapes(wide, 64)["model.4"] == (128, 8, 8)
    other_family = slim.new_model("yolo11n-cls.yaml", few.class_names, 32)
    found = match_layers(student, other_family, None, 64)
    sizes = feature_shapes(student, 64), feature_shapes(other_family, 64)
    assert [sizes[0][ours][1:] for ours in found] == [sizes[1][theirs][1:] for theirs in found.values()]
    assert found["model.8"] == "model.9"  # its last stage has an attention block more


def test_layers_by_name(student, teacher, few):
    assert match_layers(student, teacher, ["model.4.cv1"], 32) == {"model.4.cv1": "model.4.cv1"}
    learned = distill(student, teacher, few, method="hints", layers={"model.3": "model.4"})
    assert learned.state_dict().keys() == student.state_dict().keys()


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["model.4", "model.40"], r"'model\.40' is no layer of the student .*'model\.0', .*'model\.8'"),
        ({"model.4": "neck"}, r"'neck' is no layer of the teacher"),
        (["model.9"], r"'model\.9' is no layer of the student that puts out one feature map"),
        (
            {"model.4": "model.2"},
            r"student's 'model\.4' puts out maps of \(4, 4\), the teacher's 'model\.2' of \(8, 8\)",
        ),
        ([], "no layer was named"),
        ("model.4", r"layers='model\.4': expected several names, such as \['model\.4'\]"),
    ],
)
def test_layers_that_do_not_match_are_named(student, teacher, few, layers, message):
    with pytest.raises(ValueError, match=message):
        distill(student, teacher, few, method="attention", layers=layers)


# checkpoints


@pytest.mark.parametrize("method", ["soft", "hints"])
def test_a_resumed_distillation_ends_where_an_uninterrupted_one_does(student, teacher, few, tmp_path, method):
    def stop(epoch, *_):
        if epoch == 1:
            raise KeyboardInterrupt

    whole = distill(student, teacher, few, epochs=2, method=method)
    checkpoint = tmp_path / "state.training"
    with pytest.raises(KeyboardInterrupt):
        distill(student, teacher, few, epochs=2, method=method, checkpoint=checkpoint, on_epoch=stop)
    assert same(whole, distill(student, teacher, few, epochs=2, method=method, checkpoint=checkpoint))


def test_a_checkpoint_of_another_loss_is_refused(student, teacher, few, tmp_path):
    checkpoint = tmp_path / "state.training"
    distill(student, teacher, few, checkpoint=checkpoint)
    cache = cache_teacher(teacher, few.train, versions=1, augment=False, progress=False)
    other = slim.new_model("yolov8s-cls.yaml", few.class_names, 32)
    for options in (
        {"temperature": 2.0},
        {"alpha": 1.0},
        {"method": "decoupled"},
        {"teacher": other},
        {"cache": cache},
    ):
        with pytest.raises(ValueError, match=r"state\.training' belongs to a training with .*loss="):
            distill(**{"student": student, "teacher": teacher, "few": few, "checkpoint": checkpoint} | options)
    with pytest.raises(ValueError, match=r"loss=\{'method': 'soft', .*\} \(now None\)"):
        slim.fit(student, few, 1, batch_size=50, progress=False, checkpoint=checkpoint)


# bad input


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("temperature", 0, ValueError, "temperature=0: expected a number above 0"),
        ("temperature", -2.0, ValueError, r"temperature=-2\.0"),
        ("temperature", float("nan"), ValueError, "temperature=nan"),
        ("temperature", float("inf"), ValueError, "temperature=inf"),
        ("temperature", "4", TypeError, "temperature='4'"),
        ("alpha", -0.1, ValueError, r"alpha=-0\.1: expected 0 \(labels only\) to 1 \(teacher only\)"),
        ("alpha", 1.1, ValueError, r"alpha=1\.1"),
        ("alpha", True, TypeError, "alpha=True"),
        ("beta", -1, ValueError, "beta=-1: expected 0 or more"),
        ("feature_weight", -1, ValueError, "feature_weight=-1"),
        ("epochs", 0, ValueError, "epochs=0"),
        ("method", "hint", ValueError, r"method='hint': expected one of \('soft', 'decoupled', 'hints', 'attention'\)"),
        ("layers", ["model.4"], ValueError, r"method='soft': only \('hints', 'attention'\) look at layers"),
    ],
)
def test_arguments_out_of_range_are_named(student, teacher, few, name, value, error, message):
    with pytest.raises(error, match=message):
        distill(student, teacher, few, **{name: value})


@pytest.mark.parametrize("blend", ["mixup", "cutmix"])
def test_decoupled_and_blends_exclude_each_other(student, teacher, few, blend):
    with pytest.raises(
        ValueError, match=rf"{blend}=0\.2, method='decoupled': a blend of two images has no one right class"
    ):
        distill(student, teacher, few, method="decoupled", **{blend: 0.2})


def test_classes_must_agree(student, teacher, few):
    with pytest.raises(ValueError, match="teacher has 2 classes, student has 10"):
        distill(student, slim.new_model("yolov8n-cls.yaml", ("ant", "bee"), 32), few)
    reordered = copy_model(teacher)
    reordered.names = dict(enumerate(reversed(few.class_names)))
    with pytest.raises(ValueError, match="teacher and student know the same classes in another order"):
        distill(student, reordered, few)
    other_data = replace(few, class_names=few.class_names[:9])
    with pytest.raises(ValueError, match="data has 9 classes, model has 10"):
        distill(student, teacher, other_data)


def test_channels_must_agree(student, few):
    grey = one_channel_model(few.class_names)
    with pytest.raises(ValueError, match="student reads 3 channels, teacher reads 1: they see the same images"):
        distill(student, grey, few)


def test_the_teacher_must_be_another_model(student, teacher, few):
    for itself in (student, copy_model(student)):
        with pytest.raises(ValueError, match="teacher is the student, or has the very same weights"):
            distill(student, itself, few)
    with pytest.raises(TypeError, match=r"pass load_model\('teacher'\)"):
        distill(student, "teacher", few)


def test_labels_that_cannot_be(student, teacher, few):
    for label, message in ((-2, "labels from -2 to 9"), (10, "labels from 0 to 10")):
        labels = few.train.labels.clone()
        labels[3] = label
        with pytest.raises(ValueError, match=f"{message}: expected 0 to 9, or -1 where there is none"):
            distill(student, teacher, replace(few, train=Split(few.train.images, labels)))
    with pytest.raises(ValueError, match=r"alpha=0\.9, but no image of data\.train has a label: expected alpha=1"):
        distill(student, teacher, hide_labels(few, keep=0))
    for keep in (-1, 201, True):
        with pytest.raises(ValueError, match=f"keep={keep}: expected 0 to 200"):
            hide_labels(few, keep=keep)
