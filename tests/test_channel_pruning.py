"""Channel pruning: the ties as data, the criteria, the budgets, the surgery, and what plain Ultralytics makes of it."""

import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from ultralytics.nn.modules import C2f
from ultralytics.nn.tasks import ClassificationModel, DetectionModel

import yolo_slim_lessons as slim
from yolo_slim_lessons.models import copy_model, logits
from yolo_slim_lessons.pruning.channels.criteria import importance
from yolo_slim_lessons.pruning.channels.surgery import remove_channels

PRUNE_TYPES = ["magnitude", "random", "bn_scale", "taylor"]
FAMILIES = [f"yolov8{scale}-cls.yaml" for scale in "nsmlx"] + [
    "yolo11n-cls.yaml",
    "yolo11m-cls.yaml",
    "yolo26n-cls.yaml",
]


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def fresh(architecture):
    """An untrained model whose BatchNorm layers have something to say."""
    model = slim.new_model(architecture, ("cat", "dog"), image_size=64)
    generator = torch.Generator().manual_seed(1)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            for tensor in (layer.weight.data, layer.running_var):
                tensor.uniform_(0.5, 2, generator=generator)
            for tensor in (layer.bias.data, layer.running_mean):
                tensor.uniform_(-1, 1, generator=generator)
    return model


def outputs(model, images):
    with torch.inference_mode():
        return logits(model, images)


def widths(model):
    return [tuple(layer.weight.shape[:2]) for _, layer in slim.weight_layers(model)]


def with_zero_channels(model, share):
    """``model`` with the first channels of each prunable group at exactly zero, and the rates that remove those."""
    model, rates = copy_model(model), {}
    for group in slim.channel_groups(model):
        if not group.prunable:
            continue
        zeros = int(share * group.size)
        for part in group.producers:
            norm = model.get_submodule(part.layer.removesuffix("conv") + "bn")
            norm.weight.data[part.start : part.start + zeros] = 0
            norm.bias.data[part.start : part.start + zeros] = 0
        rates[group.producers[0].layer] = zeros / group.size
    return model, rates


# The ties


def test_the_groups_of_a_c2f_block_are_those_worked_out_by_hand(nano):
    groups = {group.name: group for group in slim.channel_groups(nano)}
    left, right = groups["model.4.cv1.conv[0:32]"], groups["model.4.cv1.conv[32:64]"]
    assert [str(part) for part in left.producers] == ["model.4.cv1.conv[0:32]"]
    assert [str(part) for part in left.consumers] == ["model.4.cv2.conv[0:32]"]
    assert [str(part) for part in right.producers] == [
        "model.4.cv1.conv[32:64]",
        "model.4.m.0.cv2.conv[0:32]",
        "model.4.m.1.cv2.conv[0:32]",
    ]
    assert [str(part) for part in right.consumers] == [
        "model.4.m.0.cv1.conv[0:32]",
        "model.4.m.1.cv1.conv[0:32]",
        "model.4.cv2.conv[32:64]",
        "model.4.cv2.conv[64:96]",
        "model.4.cv2.conv[96:128]",
    ]
    assert (left.same_size_as, right.same_size_as) == (right.name, left.name)
    assert "shortcut" in right.why
    assert "split" in left.why


def test_image_and_classes_are_kept(nano):
    groups = slim.channel_groups(nano)
    assert [(group.name, group.size) for group in groups if not group.prunable] == [
        ("image", 3),
        ("model.9.linear", 10),
    ]


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_channel_is_made_and_read_in_exactly_one_place(architecture):
    model = slim.new_model(architecture, ("cat", "dog"))
    layers = {name: layer for name, layer in slim.weight_layers(model) if ".attn." not in name}
    for role, side in (("producers", 0), ("consumers", 1)):
        counts = {name: torch.zeros(layer.weight.shape[side]) for name, layer in layers.items()}
        for group in slim.channel_groups(model):
            for part in getattr(group, role):
                if part.layer in counts:
                    counts[part.layer][part.start : part.stop] += 1
                    assert part.stop - part.start == group.size
        assert all((count == 1).all() for count in counts.values())


@pytest.mark.parametrize(
    "architecture", ["yolov8n-cls.yaml", "yolov8m-cls.yaml", "yolo11n-cls.yaml", "yolo26n-cls.yaml"]
)
def test_removing_zero_channels_changes_no_output(architecture, images):
    # With a wrong tie or a wrong offset a channel that is not zero would go.
    model, rates = with_zero_channels(fresh(architecture), share=0.3)
    pruned = slim.prune_channels(model, rates, round_to=1)
    assert slim.count_parameters(pruned) < 0.7 * slim.count_parameters(model)
    torch.testing.assert_close(outputs(pruned, images), outputs(model, images), rtol=0, atol=1e-5)


@settings(max_examples=10)
@given(share=st.floats(0, 0.95), prune_type=st.sampled_from(["magnitude", "bn_scale"]))
def test_removing_zero_channels_of_the_trained_model_changes_no_output(nano, images, share, prune_type):
    model, rates = with_zero_channels(nano, share)
    pruned = slim.prune_channels(model, rates, prune_type, round_to=1)
    torch.testing.assert_close(outputs(pruned, images), outputs(model, images), rtol=0, atol=1e-5)


# Whatever is asked for


@settings(max_examples=25)
@given(
    architecture=st.sampled_from(["yolov8n-cls.yaml", "yolov8s-cls.yaml", "yolo11n-cls.yaml"]),
    share=st.floats(0.3, 0.99),
    way=st.sampled_from(["prune_rate", "target_macs", "target_parameters"]),
    prune_type=st.sampled_from(["magnitude", "random", "bn_scale"]),
    scope=st.sampled_from(["layer", "global"]),
    round_to=st.sampled_from([1, 4, 8, 16]),
    seed=st.integers(0, 2**31),
)
def test_any_request_gives_a_working_model(images, architecture, share, way, prune_type, scope, round_to, seed):
    model = fresh(architecture)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    request = {way: 1 - share if way == "prune_rate" else share}
    pruned = slim.prune_channels(model, prune_type=prune_type, scope=scope, round_to=round_to, seed=seed, **request)
    assert outputs(pruned, images).isfinite().all()
    for (name, layer), full in zip(slim.weight_layers(pruned), widths(model), strict=True):
        made, read = layer.weight.shape[:2]
        assert (made, read) <= full
        if isinstance(layer, torch.nn.Conv2d):
            norm = pruned.get_submodule(name.removesuffix("conv") + "bn")
            assert made == layer.out_channels == norm.num_features == len(norm.running_mean)
            unit = 2 * round_to if ".cv1" in name and name.count(".") == 3 else round_to  # two halves of a split
            assert made == full[0] or (made % round_to == 0 and made >= min(unit, full[0]))
    count = {"target_macs": slim.count_macs, "target_parameters": slim.count_parameters}.get(way)
    if count:
        assert count(pruned) <= share * count(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("prune_type", PRUNE_TYPES)
def test_each_criterion_prunes_the_trained_model(nano, data, images, prune_type):
    pruned = slim.prune_channels(nano, 0.5, prune_type, calibration=data.train.take(32))
    assert widths(pruned) == widths(slim.prune_channels(nano, 0.5))
    assert outputs(pruned, images).isfinite().all()


def test_a_rate_takes_its_share_of_each_layer(nano):
    pruned = dict(slim.weight_layers(slim.prune_channels(nano, 0.25)))
    # Of 16 channels 12 would be left, which rounds to 16; of 32 24 are left, of 64 48, and so on.
    expected = {"model.0": 16, "model.1": 24, "model.3": 48, "model.5": 96, "model.7": 192, "model.9.conv": 960}
    assert {name: pruned[f"{name}.conv"].out_channels for name in expected} == expected
    assert pruned["model.4.cv1.conv"].out_channels == 2 * 24
    assert pruned["model.4.cv2.conv"].in_channels == 4 * 24
    assert pruned["model.9.linear"].in_features == 960


def test_no_layer_falls_below_one_multiple(nano):
    pruned = slim.prune_channels(nano, 0.99)
    assert min(layer.weight.shape[0] for name, layer in slim.weight_layers(pruned) if name != "model.9.linear") == 8
    assert {layer.weight.shape[0] for _, layer in slim.weight_layers(slim.prune_channels(nano, 0.99, round_to=64))} >= {
        16,
        32,
        64,
    }


def test_a_mapping_prunes_the_named_layers_and_those_tied_to_them_only(nano):
    pruned = slim.prune_channels(nano, {"model.4.m.1.cv2.conv": 0.5, "model.5.conv": 0.25})
    changed = {
        name: layer.weight.shape[0]
        for (name, layer), (_, old) in zip(slim.weight_layers(pruned), slim.weight_layers(nano), strict=True)
        if layer.weight.shape[0] != old.weight.shape[0]
    }
    assert changed == {
        "model.4.cv1.conv": 32,  # both halves of the split
        "model.4.m.0.cv2.conv": 16,
        "model.4.m.1.cv2.conv": 16,
        "model.5.conv": 96,
    }


def test_rate_zero_and_target_one_change_nothing(nano, images):
    for request in ({"prune_rate": 0}, {"prune_rate": {"model.1.conv": 0.0}}, {"target_macs": 1.0}):
        pruned = slim.prune_channels(nano, **request)
        assert torch.equal(outputs(pruned, images), outputs(nano, images))


def test_a_layer_with_an_odd_number_of_channels_is_pruned_again(nano, images):
    once = slim.prune_channels(nano, 0.1, round_to=1)
    twice = slim.prune_channels(once, 0.3, round_to=1)
    assert slim.count_macs(twice) < slim.count_macs(once) < slim.count_macs(nano)
    assert outputs(twice, images).isfinite().all()


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("share", [0.7, 0.5, 0.3])
def test_targets_are_met_closely_and_not_exceeded(nano, scope, share):
    by_macs = slim.prune_channels(nano, target_macs=share, scope=scope)
    assert share - 0.02 < slim.count_macs(by_macs) / slim.count_macs(nano) <= share
    by_size = slim.prune_channels(nano, target_parameters=share, scope=scope)
    assert share - 0.02 < slim.count_parameters(by_size) / slim.count_parameters(nano) <= share


def test_global_scope_spares_the_layer_that_matters(nano):
    # One layer, all of whose channels but eight are next to nothing, gives up more of them than any other.
    model = copy_model(nano)
    model.model[5].bn.weight.data[8:] *= 1e-3
    pruned = slim.prune_channels(model, target_macs=0.8, scope="global")
    left = [
        layer.weight.shape[0] / old.weight.shape[0]
        for (_, layer), (_, old) in zip(slim.weight_layers(pruned), slim.weight_layers(model), strict=True)
    ]
    assert dict(slim.weight_layers(pruned))["model.5.conv"].out_channels == 8
    assert min(left) == 8 / 128


# The criteria


def test_magnitude_is_the_spread_of_a_channel_times_the_norm_of_the_fused_weights_that_read_it(nano):
    fused = dict(slim.weight_layers(copy_model(nano).fuse(verbose=False)))
    normal = torch.randn(100_000, 1, generator=torch.Generator().manual_seed(0))

    def spread(name, rows=slice(None)):
        norm = nano.get_submodule(name.removesuffix("conv") + "bn")
        return F.silu(normal * norm.weight[rows] + norm.bias[rows]).std(0)

    def reading(name, columns):
        return fused[name].weight[:, columns].square().sum((0, 2, 3))

    scores = importance(nano, slim.channel_groups(nano), "magnitude")
    expected = spread("model.0.conv") * reading("model.1.conv", slice(0, 16)).sqrt()
    torch.testing.assert_close(scores["model.0.conv"], expected, rtol=0.02, atol=1e-4)
    half = slice(16, 32)  # of model.2.cv1: a bottleneck adds to it, and three layers read it
    made = (spread("model.2.cv1.conv", half) ** 2 + spread("model.2.m.0.cv2.conv") ** 2).sqrt()
    read = reading("model.2.m.0.cv1.conv", slice(0, 16))
    read += reading("model.2.cv2.conv", slice(16, 32)) + reading("model.2.cv2.conv", slice(32, 48))
    torch.testing.assert_close(scores["model.2.cv1.conv[16:32]"], made * read.sqrt(), rtol=0.02, atol=1e-4)


def test_bn_scale_is_the_size_of_the_batchnorm_factor(nano):
    scores = importance(nano, slim.channel_groups(nano), "bn_scale")
    torch.testing.assert_close(scores["model.3.conv"], nano.model[3].bn.weight.abs())


def test_taylor_is_the_size_of_the_derivative_of_a_gate_behind_each_channel(nano, data):
    split = data.train.take(64)
    scores = importance(nano, slim.channel_groups(nano), "taylor", split)
    model = copy_model(nano)
    block = model.model[2]
    alone, tied = torch.ones(32, requires_grad=True), torch.ones(16, requires_grad=True)
    model.model[1].bn.register_forward_hook(lambda _, __, output: output * alone[:, None, None])
    both = torch.cat([torch.ones(16), tied])
    block.cv1.bn.register_forward_hook(lambda _, __, output: output * both[:, None, None])
    block.m[0].cv2.bn.register_forward_hook(lambda _, __, output: output * tied[:, None, None])
    squares = []
    for images, labels in split.batches(32):
        both = torch.cat([torch.ones(16), tied])
        squares.append(
            [g**2 for g in torch.autograd.grad(F.cross_entropy(logits(model, images), labels), [alone, tied])]
        )
    for name, index in (("model.1.conv", 0), ("model.2.cv1.conv[16:32]", 1)):
        expected = torch.stack([square[index] for square in squares]).mean(0).sqrt()
        torch.testing.assert_close(scores[name], expected, rtol=1e-3, atol=1e-9)


def test_random_follows_its_seed(nano):
    first, again, other = (
        slim.prune_channels(nano, 0.5, "random", seed=seed).model[3].conv.weight for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_highest_channels_are_kept_in_their_order(nano):
    pruned = slim.prune_channels(nano, {"model.3.conv": 0.5}, "bn_scale")
    kept = nano.model[3].bn.weight.abs().topk(32).indices.sort().values
    assert torch.equal(pruned.model[3].conv.weight, nano.model[3].conv.weight[kept])
    assert torch.equal(pruned.model[4].cv1.conv.weight, nano.model[4].cv1.conv.weight[:, kept])


# What becomes of the model


def test_both_ways_through_a_split_agree(nano, images):
    pruned = slim.prune_channels(nano, 0.5)
    expected = outputs(pruned, images)
    for block in pruned.modules():
        if isinstance(block, C2f):
            block.forward = block.forward_split  # what Ultralytics' exporter does
    torch.testing.assert_close(outputs(pruned, images), expected)


def test_plain_ultralytics_loads_a_pruned_model(nano, images, tmp_path):
    pruned = slim.prune_channels(nano, target_macs=0.5)
    file = slim.save_model(pruned, tmp_path / "pruned.pt")
    torch.save((images, outputs(pruned, images)), tmp_path / "expected.pt")
    program = f"""
import sys
sys.modules["yolo_slim_lessons"] = None  # importing it is an error now
import torch
from ultralytics import YOLO
images, expected = torch.load({str(tmp_path / "expected.pt")!r})
yolo = YOLO({str(file)!r})
torch.testing.assert_close(yolo.model.eval()(images)[1], expected)
answer = yolo.predict((images[0].permute(1, 2, 0) * 255).byte().numpy(), verbose=False)[0]
assert len(answer.names) == 10 and abs(answer.probs.data.sum() - 1) < 1e-4
print("loaded", yolo.model.model[5].conv.out_channels)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.stdout.strip().endswith(f"loaded {pruned.model[5].conv.out_channels}"), result.stderr


def test_a_pruned_model_learns(nano, data):
    pruned = slim.prune_channels(nano, 0.5)
    trained = slim.fit(pruned, data.take(512, 256), epochs=1, progress=False)
    assert widths(trained) == widths(pruned)
    assert slim.evaluate(trained, data.val.take(256)).top1 > slim.evaluate(pruned, data.val.take(256)).top1


def test_reestimated_batchnorm_brings_accuracy_back(nano, data):
    pruned = slim.prune_channels(nano, 0.3)
    before = pruned.model[0].bn.running_mean.clone()
    better = slim.reestimate_batchnorm(pruned, data.train.take(512))
    val = data.val.take(500)
    assert slim.evaluate(better, val).top1 > slim.evaluate(pruned, val).top1 + 0.1
    assert not better.training
    assert torch.equal(pruned.model[0].bn.running_mean, before)


def test_reestimated_statistics_are_those_of_the_images(nano, data):
    split = data.train.take(256)
    again = slim.reestimate_batchnorm(nano, split, batch_size=256)
    images = next(split.batches(256))[0]
    convolved = nano.model[0].conv(images)
    torch.testing.assert_close(again.model[0].bn.running_mean, convolved.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(again.model[0].bn.running_var, convolved.var((0, 2, 3)), rtol=1e-3, atol=1e-4)


def test_pruning_takes_less_than_half_a_second(nano):
    slim.prune_channels(nano, 0.5)
    seconds = []
    for request in ({"prune_rate": 0.5}, {"target_macs": 0.5, "scope": "global"}):
        start = time.process_time()
        slim.prune_channels(nano, **request)
        seconds.append(time.process_time() - start)
    assert max(seconds) < 0.5


# Wrong arguments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prune_rate": -0.1}, ValueError, "prune_rate=-0.1"),
        ({"prune_rate": 1}, ValueError, "prune_rate=1"),
        ({"prune_rate": 1.5}, ValueError, "0 <= rate < 1"),
        ({"prune_rate": float("nan")}, ValueError, "prune_rate=nan"),
        ({"prune_rate": "half"}, TypeError, "prune_rate='half'"),
        ({"prune_rate": True}, TypeError, "prune_rate=True"),
        ({"prune_rate": {}}, ValueError, "names no layer"),
        ({"prune_rate": {"model.77.conv": 0.5}}, ValueError, "'model.77.conv', which is no layer"),
        ({"prune_rate": {"model.1.conv": float("nan")}}, ValueError, r"prune_rate\['model.1.conv'\]=nan"),
        ({"prune_rate": {"model.9.linear": 0.5}}, ValueError, "keeps all its channels: one score for each class"),
        ({"prune_rate": {"model.2.cv1.conv": 0.5, "model.2.m.0.cv2.conv": 0.25}}, ValueError, "tied.*a shortcut"),
        ({"prune_rate": {"model.1.conv": 0.5}, "scope": "global"}, ValueError, "scope='global'"),
        ({"prune_rate": 0.5, "prune_type": "luck"}, ValueError, "prune_type='luck'.*magnitude"),
        ({"prune_rate": 0.5, "prune_type": "taylor"}, ValueError, "calibration=None"),
        ({"prune_rate": 0.5, "scope": "world"}, ValueError, "scope='world'"),
        ({"prune_rate": 0.5, "round_to": 0}, ValueError, "round_to=0"),
        ({"prune_rate": 0.5, "round_to": 2.0}, ValueError, "round_to=2.0"),
        ({}, ValueError, "one of prune_rate, target_macs and target_parameters"),
        ({"prune_rate": 0.5, "target_macs": 0.5}, ValueError, "one of prune_rate"),
        ({"target_macs": 0}, ValueError, "target_macs=0"),
        ({"target_macs": 1.1}, ValueError, "target_macs=1.1"),
        ({"target_macs": float("nan")}, ValueError, "target_macs=nan"),
        ({"target_parameters": "all"}, TypeError, "target_parameters='all'"),
        ({"prune_rate": 0.999, "scope": "global"}, ValueError, "prune_rate asks for.*smallest possible"),
    ],
)
def test_wrong_arguments_are_named(nano, arguments, error, message):
    with pytest.raises(error, match=message):
        slim.prune_channels(nano, **arguments)


def test_a_target_that_cannot_be_met_says_the_smallest_possible(nano):
    with pytest.raises(ValueError, match="smallest possible is") as caught:
        slim.prune_channels(nano, target_macs=0.01)
    smallest = float(str(caught.value).split("smallest possible is ")[1].split(",")[0])
    pruned = slim.prune_channels(nano, target_macs=smallest + 1e-4)
    assert slim.count_macs(pruned) / slim.count_macs(nano) == pytest.approx(smallest, abs=1e-4)


def test_a_fused_model_is_refused(nano):
    with pytest.raises(ValueError, match="model is fused"):
        slim.prune_channels(copy_model(nano).fuse(verbose=False), 0.5)


def test_detectors_and_other_networks_are_refused():
    with pytest.raises(TypeError, match="DetectionModel, not an image classifier"):
        slim.prune_channels(DetectionModel("yolov8n.yaml", verbose=False), 0.5)
    with pytest.raises(TypeError, match="model is a Linear: expected a classifier"):
        slim.prune_channels(torch.nn.Linear(2, 2), 0.5)


def test_a_layer_that_is_not_understood_is_named():
    layers = {"nc": 2, "backbone": [[-1, 1, "Conv", [16, 3, 2]], [-1, 1, "nn.MaxPool2d", [2]]]}
    model = ClassificationModel(layers | {"head": [[-1, 1, "Classify", [2]]]}, verbose=False)
    with pytest.raises(TypeError, match="model.1 is a MaxPool2d, which is not understood"):
        slim.prune_channels(model, 0.5, image_size=64)


def test_no_images_no_statistics(nano, data):
    with pytest.raises(ValueError, match="split is empty"):
        slim.reestimate_batchnorm(nano, data.train[:0])
    with pytest.raises(ValueError, match="no BatchNorm"):
        slim.reestimate_batchnorm(copy_model(nano).fuse(verbose=False), data.train.take(8))


def test_surgery_keeps_what_it_is_told_to(nano):
    groups = slim.channel_groups(nano)
    keep = torch.arange(32) % 2 == 0
    pruned = remove_channels(nano, groups, {"model.1.conv": keep})
    assert torch.equal(pruned.model[1].bn.running_var, nano.model[1].bn.running_var[::2])
    assert torch.equal(pruned.model[2].cv1.conv.weight, nano.model[2].cv1.conv.weight[:, ::2])
