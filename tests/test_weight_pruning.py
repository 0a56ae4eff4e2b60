"""Weight pruning against torch.nn.utils.prune, against counts worked out by hand, and against bytes really packed."""

import copy
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

import yolo_slim_lessons as slim
from yolo_slim_lessons.measurement import checkpoint_bytes
from yolo_slim_lessons.models import logits
from yolo_slim_lessons.pruning.sparse_sizes import break_even_rate, index_bits, sparse_sizes
from yolo_slim_lessons.pruning.weights import gradual_rates


@pytest.fixture(scope="module")
def scales():
    """Untrained models of two sizes, with distinct weights."""
    return {scale: slim.new_model(f"yolov8{scale}-cls.yaml", ("a", "b"), seed=3) for scale in "ns"}


def weights_of(model):
    return {name: layer.weight.detach() for name, layer in slim.weight_layers(model)}


def zeros(weight):
    return int((weight == 0).sum())


def linear(*rows):
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows)
    return nn.Sequential(layer)


@given(
    scale=st.sampled_from("ns"),
    rate=st.floats(0, 1, exclude_max=True),
    prune_type=st.sampled_from(["magnitude", "random"]),
    scope=st.sampled_from(["layer", "global"]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=25)
def test_exact_count_same_shapes_finite_output_and_untouched_input(scales, scale, rate, prune_type, scope, seed):
    model = scales[scale]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruned = slim.prune_weights(model, rate, prune_type, scope, seed=seed)
    sizes = {name: weight.numel() for name, weight in weights_of(model).items()}
    found = {name: zeros(weight) for name, weight in weights_of(pruned).items()}
    if scope == "global":
        assert sum(found.values()) == round(rate * sum(sizes.values()))
    else:
        assert found == {name: round(rate * size) for name, size in sizes.items()}
    after = pruned.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
        # what is not zero is as it was
        assert torch.equal(after[name], torch.where((after[name] == 0) & (tensor != 0), after[name], tensor))
    with torch.inference_mode():
        assert torch.isfinite(logits(pruned, torch.rand(2, 3, 32, 32))).all()


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.91])
def test_each_layer_agrees_with_torch(scales, rate):
    reference = copy.deepcopy(scales["n"])
    for _, layer in slim.weight_layers(reference):
        prune.l1_unstructured(layer, "weight", amount=rate)
    ours = weights_of(slim.prune_weights(scales["n"], rate))
    for name, weight in weights_of(reference).items():
        assert torch.equal(ours[name], weight), name


def test_global_scope_agrees_with_torch(scales):
    reference = copy.deepcopy(scales["n"])
    parameters = [(layer, "weight") for _, layer in slim.weight_layers(reference)]
    prune.global_unstructured(parameters, prune.L1Unstructured, amount=0.7)
    ours = weights_of(slim.prune_weights(scales["n"], 0.7, scope="global"))
    for name, weight in weights_of(reference).items():
        assert torch.equal(ours[name], weight), name


def test_random_zeros_as_many_as_torch_and_others_with_another_seed(scales):
    reference = copy.deepcopy(scales["n"])
    for _, layer in slim.weight_layers(reference):
        prune.random_unstructured(layer, "weight", amount=0.37)
    first, again, other = (weights_of(slim.prune_weights(scales["n"], 0.37, "random", seed=s)) for s in (1, 1, 2))
    for name, weight in weights_of(reference).items():
        assert zeros(first[name]) == zeros(weight)
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
    # Any weight is as likely as any other: the zeroed ones are as large as the rest.
    name, weight = max(weights_of(scales["n"]).items(), key=lambda item: item[1].numel())
    gone = first[name] == 0
    assert weight[gone].abs().mean() == pytest.approx(weight.abs().mean().item(), rel=0.02)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_ties_are_cut_at_the_exact_count(scope):
    model = linear([0.5] * 10)
    assert zeros(slim.prune_weights(model, 0.3, scope=scope)[0].weight) == 3
    assert zeros(slim.prune_weights(linear([1.0, -1.0, 1.0, -1.0, 2.0]), 0.4, scope=scope)[0].weight) == 2


@pytest.mark.parametrize("prune_type", ["magnitude", "random"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_weights_already_zero_count_first(scales, prune_type, scope):
    once = slim.prune_weights(scales["n"], 0.4, prune_type, scope, seed=1)
    twice = slim.prune_weights(once, 0.6, prune_type, scope, seed=2)
    total = sum(weight.numel() for weight in weights_of(once).values())
    for name, weight in weights_of(twice).items():
        assert (weight[weights_of(once)[name] == 0] == 0).all()
        if scope == "layer":
            assert zeros(weight) == round(0.6 * weight.numel())
    assert sum(map(zeros, weights_of(twice).values())) == pytest.approx(0.6 * total, abs=30)
    lower = weights_of(slim.prune_weights(once, 0.2, prune_type, scope, seed=3))
    assert all(torch.equal(weight, lower[name]) for name, weight in weights_of(once).items())


def test_global_scope_takes_the_smallest_wherever_they_are():
    model = nn.Sequential(linear([5.0, 6.0, 7.0, 8.0])[0], linear([1.0], [2.0], [3.0], [9.0])[0])
    pruned = slim.prune_weights(model, 0.5, scope="global")
    assert pruned[0].weight.tolist() == [[0, 6, 7, 8]]
    assert pruned[1].weight.flatten().tolist() == [0, 0, 0, 9]


def test_mapping_and_layers_leave_the_others_alone(scales):
    names = [name for name, _ in slim.weight_layers(scales["n"])]
    by_mapping = weights_of(slim.prune_weights(scales["n"], {names[3]: 0.25, names[5]: 0.5}))
    by_layers = weights_of(slim.prune_weights(scales["n"], 0.5, layers=names[3:4]))
    for name, weight in weights_of(scales["n"]).items():
        assert zeros(by_mapping[name]) == round({names[3]: 0.25, names[5]: 0.5}.get(name, 0) * weight.numel())
        assert zeros(by_layers[name]) == (weight.numel() // 2 if name == names[3] else 0)


def test_works_where_the_channels_are_innermost_in_memory(scales):
    inner = copy.deepcopy(scales["n"]).to(memory_format=torch.channels_last)
    for options in ({"prune_rate": 0.5, "scope": "global"}, {"prune_rate": 0.5, "pattern": "2:4"}):
        expected = weights_of(slim.prune_weights(scales["n"], **options))
        for name, weight in weights_of(slim.prune_weights(inner, **options)).items():
            assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize(("pattern", "kept", "group"), [("2:4", 2, 4), ("1:4", 1, 4), ("3:8", 3, 8)])
def test_pattern_keeps_the_largest_of_each_group_along_the_input(scales, pattern, kept, group):
    pruned = weights_of(slim.prune_weights(scales["n"], 1 - kept / group, pattern=pattern))
    original = weights_of(scales["n"])
    assert zeros(pruned["model.0.conv"]) == 0  # three colours make no group
    name = "model.2.m.0.cv1.conv"
    before, after = original[name].numpy(), pruned[name].numpy()
    for out in range(before.shape[0]):
        for row, column in np.ndindex(before.shape[2:]):
            for first in range(0, before.shape[1], group):
                values = before[out, first : first + group, row, column]
                expected = np.where(np.argsort(np.argsort(-abs(values))) < kept, values, 0)
                np.testing.assert_array_equal(after[out, first : first + group, row, column], expected)
    for name, weight in pruned.items():
        if name != "model.0.conv":
            groups = weight.movedim(1, -1).reshape(-1, group)
            assert ((groups != 0).sum(1) == kept).all(), name


def test_random_pattern_has_the_same_counts_and_other_places(scales):
    chosen = [slim.prune_weights(scales["n"], 0.5, "random", pattern="2:4", seed=seed) for seed in (0, 1)]
    first, other = (weights_of(model)["model.7.conv"] for model in chosen)
    assert ((first.movedim(1, -1).reshape(-1, 4) != 0).sum(1) == 2).all()
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"prune_rate": -0.1}, ValueError, "prune_rate=-0.1"),
        ({"prune_rate": 1}, ValueError, "prune_rate=1: expected 0 <= rate < 1"),
        ({"prune_rate": 30}, ValueError, "prune_rate=30"),
        ({"prune_rate": float("nan")}, ValueError, "prune_rate=nan"),
        ({"prune_rate": float("inf")}, ValueError, "prune_rate=inf"),
        ({"prune_rate": True}, TypeError, "prune_rate=True"),
        ({"prune_rate": "0.5"}, TypeError, "prune_rate='0.5'"),
        ({"prune_rate": None}, TypeError, "prune_rate=None"),
        ({"prune_rate": 0.5, "prune_type": "l1"}, ValueError, r"prune_type='l1': expected one of \('magnitude'"),
        ({"prune_rate": 0.5, "scope": "model"}, ValueError, r"scope='model': expected one of \('layer', 'global'\)"),
        ({"prune_rate": {}}, ValueError, "prune_rate names no layer"),
        ({"prune_rate": {"model.0": 0.5}}, ValueError, "'model.0', which is no layer with weights.*model.0.conv"),
        ({"prune_rate": {"model.0.conv": 1.5}}, ValueError, r"prune_rate\['model.0.conv'\]=1.5"),
        ({"prune_rate": {"model.0.conv": 0.5}, "layers": ["model.1.conv"]}, ValueError, "layers"),
        ({"prune_rate": {"model.0.conv": 0.5}, "scope": "global"}, ValueError, "scope='global'"),
        ({"prune_rate": 0.5, "layers": []}, ValueError, "layers names no layer"),
        ({"prune_rate": 0.5, "layers": ["conv7"]}, ValueError, "layers names 'conv7'"),
        ({"prune_rate": 0.5, "pattern": "4:2"}, ValueError, "pattern='4:2'"),
        ({"prune_rate": 0.5, "pattern": ""}, ValueError, "pattern=''"),
        ({"prune_rate": 0.5, "pattern": 24}, ValueError, "pattern=24"),
        ({"prune_rate": 0.3, "pattern": "2:4"}, ValueError, "prune_rate=0.3: pattern='2:4' zeros 0.5"),
        ({"prune_rate": 0.5, "pattern": "2:4", "scope": "global"}, ValueError, "scope='global'"),
        ({"prune_rate": 0.5, "pattern": "2:4", "layers": ["model.0.conv"]}, ValueError, "3 inputs, no multiple of 4"),
    ],
)
def test_wrong_arguments_are_named_with_what_is_allowed(scales, options, error, words):
    with pytest.raises(error, match=words):
        slim.prune_weights(scales["n"], **options)


def test_no_network_and_no_layer():
    with pytest.raises(TypeError, match=r"pass load_model\('nano'\)"):
        slim.prune_weights("nano", 0.5)
    with pytest.raises(ValueError, match="names no layer"):
        slim.prune_weights(nn.Sequential(nn.ReLU()), 0.5)


def test_a_pruned_model_is_an_ordinary_checkpoint(nano, tmp_path):
    pruned = slim.prune_weights(nano, 0.5)
    loaded = slim.load_model(slim.save_model(pruned, tmp_path / "pruned.pt"))
    for name, tensor in pruned.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_is_quick_enough_for_a_slider(nano):
    def seconds():
        start = time.perf_counter()
        slim.prune_weights(nano, 0.5, scope="global")
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.3


def test_gradual_rates_by_hand():
    # s_T (1 - (1 - t/T)³) with s_T = 0.8: 1 - 27/64, 1 - 8/64, 1 - 1/64 and all of it
    assert gradual_rates(0.8, 4) == pytest.approx([0.8 * 37 / 64, 0.8 * 56 / 64, 0.8 * 63 / 64, 0.8])
    assert gradual_rates(0.9, 1) == [0.9]
    assert gradual_rates(0.9, 2, initial_rate=0.5) == pytest.approx([0.9 - 0.4 / 8, 0.9])


@pytest.mark.parametrize("steps", [0, -1, 1.5, True, None])
def test_gradual_rates_need_a_number_of_steps(steps):
    with pytest.raises(ValueError, match="steps="):
        gradual_rates(0.5, steps)


def test_gradual_pruning_alternates_with_fine_tuning_that_keeps_zeros(nano, data):
    small, seen = data.take(64, 20), []
    options = {"scope": "global", "batch_size": 32, "augment": False, "progress": False}
    total = sum(weight.numel() for weight in weights_of(nano).values())
    result = slim.prune_gradually(nano, small, 0.8, 2, on_step=lambda *step: seen.append(step), **options)
    assert [rate for rate, _, _ in seen] == gradual_rates(0.8, 2)
    for rate, pruned, tuned in seen:
        assert sum(map(zeros, weights_of(pruned).values())) == round(rate * total)
        for name, weight in weights_of(pruned).items():
            assert torch.equal(weights_of(tuned)[name] == 0, weight == 0)
            assert not torch.equal(weights_of(tuned)[name], weight)
    assert result is seen[-1][2]
    assert zeros(weights_of(nano)["model.7.conv"]) < 10
    with pytest.raises(TypeError, match="prune_rate="):
        slim.prune_gradually(nano, small, {"model.7.conv": 0.5}, 2)


def test_gradual_pruning_goes_on_where_it_was_stopped(nano, data, tmp_path):
    small, epochs = data.take(64, 20), []
    options = {"batch_size": 32, "progress": False, "checkpoint": tmp_path / "state.pt"}

    def stop_in_the_second_step(*report):
        epochs.append(report)
        if len(epochs) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        slim.prune_gradually(nano, small, 0.8, 2, epochs=2, on_epoch=stop_in_the_second_step, **options)
    result = slim.prune_gradually(
        nano, small, 0.8, 2, epochs=2, on_epoch=lambda *report: epochs.append(report), **options
    )
    assert len(epochs) == 2 * 2
    without = slim.prune_gradually(nano, small, 0.8, 2, epochs=2, **options | {"checkpoint": None, "on_epoch": None})
    for name, weight in weights_of(without).items():
        assert torch.equal(weights_of(result)[name], weight)


def bits_of(numbers, bits):
    return (numbers[:, None] >> np.arange(bits)) & 1


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_sparse_sizes_are_those_of_bytes_really_packed(nano, precision):
    pruned = slim.prune_weights(nano, 0.7, scope="global")
    sizes = sparse_sizes(pruned, precision)
    dtype = np.float16 if precision == "fp16" else np.float32
    rest = with_index = with_mask = 0
    for weight in weights_of(pruned).values():
        flat = weight.numpy().astype(dtype).flatten()
        rest += flat.nbytes
        places, values = np.flatnonzero(flat), flat[flat != 0]
        width = int(np.ceil(np.log2(flat.size)))
        packed = np.packbits(bits_of(places, width).astype(np.uint8))
        with_index += len(packed) + values.nbytes
        # and nothing is lost: the places come back from the bits
        unpacked = np.unpackbits(packed, count=width * len(places)).reshape(-1, width)
        np.testing.assert_array_equal(unpacked @ (1 << np.arange(width)), places)
        with_mask += len(np.packbits(flat != 0)) + values.nbytes
    assert sizes.dense == checkpoint_bytes(pruned, precision)
    # each layer is rounded up to whole bytes, indices and values together or apart
    assert sizes.index_value == pytest.approx(sizes.dense - rest + with_index, abs=len(weights_of(pruned)))
    assert sizes.bitmask_value == pytest.approx(sizes.dense - rest + with_mask, abs=len(weights_of(pruned)))
    assert sizes.gzip < 0.7 * sizes.dense


def test_zeros_leave_the_dense_file_as_large_as_it_was(nano):
    before, after = sparse_sizes(nano), sparse_sizes(slim.prune_weights(nano, 0.9))
    assert after.dense == before.dense
    assert after.gzip < before.gzip / 3
    assert before.bitmask_value > before.dense  # a mask that spares nothing


@given(st.integers(1, 64), st.one_of(st.none(), st.integers(1, 64)))
def test_break_even_is_where_both_cost_the_same(value, index):
    rate = break_even_rate(value, index)
    stored = 1 - rate
    sparse = 1 + stored * value if index is None else stored * (value + index)
    assert sparse == pytest.approx(value)


def test_break_even_by_hand():
    assert break_even_rate(16, 16) == 0.5
    assert break_even_rate(8) == 1 / 8
    with pytest.raises(ValueError, match="value_bits=0"):
        break_even_rate(0)
    assert [index_bits(size) for size in (1, 2, 3, 256, 257)] == [1, 1, 2, 8, 9]
