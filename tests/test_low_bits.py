"""Repairs of low bits against formulas worked out by hand, brute force, and the integers that are really computed."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16
from scipy.special import log_softmax
from torch import nn

import yolo_slim_lessons as slim
from yolo_slim_lessons.data import as_floats
from yolo_slim_lessons.models import copy_model, logits
from yolo_slim_lessons.quantization import (
    IntegerGrid,
    QuantizedConv2d,
    QuantizedLayer,
    QuantizedLinear,
    integer_outputs,
    quantize_integer,
    run_integer,
    signal_to_noise,
    simulated_outputs,
)
from yolo_slim_lessons.quantization.few_bits import (
    BitSensitivity,
    bit_sensitivity,
    choose_bits,
    integer_bytes,
    round_biases,
)
from yolo_slim_lessons.quantization.few_bits.pairs import float_original
from yolo_slim_lessons.quantization.few_bits.rounding import SoftRounding
from yolo_slim_lessons.quantization.few_bits.straight_through import (
    LearnedGrid,
    PricedBits,
    RoundedWeight,
    finished,
    trainable,
)


@pytest.fixture(scope="module")
def few():
    """400 training and 100 validation images of 32 pixels; there is no test split that could be looked at."""
    return replace(slim.load_images("fashion-mnist", image_size=32).take(train=400, val=100), test=None)


@pytest.fixture(scope="module")
def calibration(few):
    return few.train.take(64)


def convolution(*rows, bias=False):
    """One layer that multiplies the channels of a pixel by ``rows``."""
    layer = nn.Conv2d(len(rows[0]), len(rows), 1, bias=bias)
    layer.weight.data = torch.tensor(rows).view(len(rows), len(rows[0]), 1, 1)
    return nn.Sequential(layer)


def same(first, second):
    states = first.state_dict(), second.state_dict()
    return states[0].keys() == states[1].keys() and all(value.equal(states[1][key]) for key, value in states[0].items())


def quantized_layers(model):
    return {name: layer for name, layer in slim.weight_layers(model) if isinstance(layer, QuantizedLayer)}


def train(model, few, bits, activation_bits=None, epochs=1, **options):
    return slim.train_quantized(
        model, few, bits, activation_bits, epochs, **{"batch_size": 50, "augment": False, "progress": False} | options
    )


# bias correction


def test_bias_by_hand():
    # 1.4 and 0.6 on the grid -2.8, -1.4, 0, 1.4, each scale rounded up to a bfloat16: 1.40625 and 0 (2.8 / 2 = 1.4)
    model = convolution([1.4, 0.6], bias=True)
    model[0].bias.data = torch.tensor([0.25])
    rounded = quantize_integer(model, bits=2, weight_ranges="minmax")
    assert rounded[0].weight.flatten().tolist() == [1.40625, 0]
    images = torch.tensor([[0.2, 1.0], [0.6, 0.4]]).view(2, 2, 1, 1)  # means 0.4 and 0.7
    corrected = slim.correct_biases(rounded, model, images)
    assert corrected[0].bias.item() == pytest.approx(0.25 + (1.4 - 1.40625) * 0.4 + 0.6 * 0.7)
    assert corrected[0].integers.equal(rounded[0].integers)
    assert rounded[0].bias.item() == 0.25


def test_a_missing_bias_is_added():
    model = convolution([1.4, 0.6])
    corrected = slim.correct_biases(
        quantize_integer(model, bits=2, weight_ranges="minmax"), model, torch.ones(1, 2, 1, 1)
    )
    torch.testing.assert_close(corrected(torch.ones(1, 2, 1, 1)), model(torch.ones(1, 2, 1, 1)))


@pytest.mark.parametrize("activation_bits", [None, 8])
def test_every_channel_of_every_layer_has_its_float_mean_again(nano, calibration, activation_bits):
    def means(model):
        found, model = {}, copy_model(model)
        for name, layer in slim.weight_layers(model):
            layer.register_forward_hook(
                lambda _, __, out, name=name: found.__setitem__(name, out.transpose(0, 1).flatten(1).mean(1))
            )
        with torch.no_grad():
            model(as_floats(calibration.images))
        return found

    rounded = quantize_integer(nano, 4, activation_bits, calibration, granularity="tensor")
    corrected = slim.correct_biases(rounded, nano, calibration)
    original, before, after = (means(model) for model in (float_original(rounded, nano), rounded, corrected))
    assert max((before[name] - original[name]).abs().max() for name in original) > 0.1
    for name in original:
        step = corrected.get_submodule(name).accumulator_scale.max().item() if activation_bits else 0  # of the bias
        torch.testing.assert_close(after[name], original[name], rtol=1e-3, atol=1e-4 + 0.5 * step)
    if activation_bits:  # biases are integers, as before
        exact, simulated = (
            outputs(corrected, calibration.images[:4], *dtype)
            for outputs, dtype in ((integer_outputs, ()), (simulated_outputs, (torch.float64,)))
        )
        assert all(exact[name].equal(simulated[name].to(exact[name].dtype)) for name in list(exact)[:-1])


def test_correction_helps_where_one_scale_serves_a_whole_layer(nano, calibration, few):
    rounded = quantize_integer(nano, 4, granularity="tensor", weight_ranges="minmax")
    images = as_floats(few.val.images)
    with torch.no_grad():
        exact, before, after = (
            logits(model, images) for model in (nano, rounded, slim.correct_biases(rounded, nano, calibration))
        )
    assert signal_to_noise(exact, after) > signal_to_noise(exact, before) + 1


# learned rounding


@pytest.mark.parametrize("seed", [0, 2])  # others happen to be best when rounded to nearest
def test_learned_rounding_is_nearly_the_best_of_all(seed):
    random = torch.Generator().manual_seed(seed)
    model = convolution(torch.randn(8, generator=random).tolist())
    # channels that are positive and alike, as behind an activation function: errors add up
    images = torch.rand(200, 1, 1, 1, generator=random) + 0.2 * torch.rand(200, 8, 1, 1, generator=random)
    images = images / 1.2  # 0 to 1 again
    nearest = quantize_integer(model, bits=3, weight_ranges="minmax")
    options = {"steps": 400, "learning_rate": 0.03, "pressure": 3.0}
    learned = slim.learn_rounding(nearest, model, images, **options, progress=False)

    def error(weight):
        return (images.flatten(1) @ (weight - model[0].weight).flatten()).square().mean().item()

    grid = nearest[0].weight_grid
    floor = (model[0].weight / grid.scale.item()).floor()
    candidates = [floor + torch.tensor(up).view_as(floor) for up in itertools.product([0, 1], repeat=8)]
    errors = sorted(error(each.clamp(grid.lowest, grid.highest) * grid.scale.item()) for each in candidates)
    assert errors[0] <= error(learned[0].weight) <= errors[10]  # of 256
    assert error(learned[0].weight) < error(nearest[0].weight) / 2
    assert learned[0].weight_grid.scale.equal(grid.scale)
    assert ((learned[0].integers - floor) * (learned[0].integers - floor - 1)).count_nonzero() == 0


@pytest.mark.parametrize("symmetric", [True, False])
def test_soft_rounding_starts_at_the_weight_and_ends_on_the_grid(symmetric):
    weight = torch.tensor([[0.31, -0.72, 0.11, 0.9], [0.02, 0.05, -0.01, 0.04]])
    grid = IntegerGrid.from_range(weight.amin(1), weight.amax(1), bits=4, symmetric=symmetric)
    rounding = SoftRounding(grid, weight)
    soft = rounding()
    inside = (weight >= grid.range[0][:, None]) & (weight <= grid.range[1][:, None])
    torch.testing.assert_close(soft[inside], weight[inside])
    assert rounding.penalty(20.0) > rounding.penalty(2.0) > 0
    rounding.decided = True
    assert rounding.penalty(2.0) == 0
    assert rounding().equal(grid.dequantize(rounding.integers(grid)))
    assert rounding().equal(grid.snap(weight))  # nothing was learned


def test_the_seed_decides_how_weights_are_rounded():
    random = torch.Generator().manual_seed(0)
    first_rows, second_rows = torch.randn(8, 16, generator=random), torch.randn(4, 8, generator=random)
    model = nn.Sequential(convolution(*first_rows.tolist()), nn.ReLU(), convolution(*second_rows.tolist()))
    nearest = quantize_integer(model, 3)
    images = torch.rand(64, 16, 2, 2, generator=random)
    first, again, *others = (
        slim.learn_rounding(
            nearest, model, images, steps=60, batch_size=4, learning_rate=0.03, seed=seed, progress=False
        )
        for seed in (0, 0, 1, 2, 3, 4, 5, 6)
    )
    assert same(first, again)
    assert not all(same(first, other) for other in others)  # a single one may well agree


@pytest.mark.parametrize(("bits", "activation_bits"), [(3, None), (4, 8), ({"model.7.conv": 2}, None)])
def test_learned_rounding_of_a_network_is_nearer_to_it(nano, calibration, few, bits, activation_bits):
    before = {name: tensor.clone() for name, tensor in nano.state_dict().items()}
    nearest = quantize_integer(nano, bits, activation_bits, calibration)
    options = {"steps": 25, "batch_size": 16, "progress": False}
    learned = slim.learn_rounding(nearest, nano, calibration, **options)
    images = as_floats(few.val.images)
    with torch.no_grad():
        exact, rounded, repaired = (logits(model, images) for model in (nano, nearest, learned))
    assert signal_to_noise(exact, repaired) > signal_to_noise(exact, rounded) + 0.5
    for name, layer in quantized_layers(nearest).items():
        step = learned.get_submodule(name).integers.int() - layer.integers
        assert step.abs().max() <= 1
        assert learned.get_submodule(name).weight_grid.scale.equal(layer.weight_grid.scale)
    assert all(tensor.equal(before[name]) for name, tensor in nano.state_dict().items())
    if activation_bits:
        torch.testing.assert_close(run_integer(learned, few.val.images), repaired, rtol=1e-2, atol=0.2)


# training while rounded


def test_gradients_by_hand():
    grid = LearnedGrid(IntegerGrid.from_range(torch.tensor(-4.0), torch.tensor(3.0), bits=3))  # scale 1, -4 to 3
    x = torch.tensor([0.3, 1.7, -9.0, 5.0], requires_grad=True)
    snapped = grid.snap(x)
    assert snapped.tolist() == [0, 2, -4, 3]
    snapped.backward(torch.tensor([1.0, 10.0, 100.0, 1000.0]))
    assert x.grad.tolist() == [1, 10, 0, 0]
    # Esser et al. (2020), equation 3: round(x) - x inside, the end of the range outside; by log2(s), ln 2 times that
    by_scale = 1 * (0 - 0.3) + 10 * (2 - 1.7) + 100 * -4 + 1000 * 3
    assert grid.log2_scale.grad.item() == pytest.approx(by_scale * math.log(2), rel=1e-5)


def test_a_scale_for_each_channel_has_a_gradient_for_each_channel():
    random = torch.Generator().manual_seed(0)
    x, pull = torch.randn(2, 3, 5, 4, 4, generator=random)
    grid = IntegerGrid.from_range(x.flatten(1).amin(1), x.flatten(1).amax(1) / 2, bits=3)
    together = LearnedGrid(grid)
    together.snap(x).backward(pull)
    for channel in range(3):
        alone = LearnedGrid(IntegerGrid(3, grid.scale[channel], grid.zero_point[channel]))
        snapped = alone.snap(x[channel])
        snapped.backward(pull[channel])
        assert snapped.equal(together.snap(x)[channel])
        torch.testing.assert_close(alone.log2_scale.grad, together.log2_scale.grad[channel])


def test_the_layout_in_memory_changes_no_gradient():
    random = torch.Generator().manual_seed(0)
    x, pull = torch.randn(2, 4, 6, 5, 5, generator=random)
    grids = [LearnedGrid(IntegerGrid.from_range(torch.tensor(-0.3), torch.tensor(1.0), 4, signed=False)) for _ in "ab"]
    grids[0].snap(x).backward(pull)
    grids[1].snap(x.to(memory_format=torch.channels_last)).backward(pull)
    torch.testing.assert_close(grids[0].log2_scale.grad, grids[1].log2_scale.grad)


@pytest.mark.parametrize(("bits", "activation_bits"), [(3, None), (4, 4), ({"model.7.conv": 5}, 8)])
def test_without_training_nothing_changes(nano, calibration, few, bits, activation_bits):
    quantized = quantize_integer(nano, bits, activation_bits, calibration)
    learner = trainable(quantized, float_original(quantized, nano), RoundedWeight)
    assert same(finished(learner, quantized), quantized)
    images = as_floats(few.val.images)
    with torch.no_grad():
        answers, expected = logits(learner, images), logits(quantized, images)
    assert signal_to_noise(expected, answers) > (10 if activation_bits == 4 else 25)  # some numbers change their level


@pytest.fixture(scope="module")
def trained(nano, few):
    return train(nano, few, 3, 4, learning_rate=5e-3)


def test_training_returns_an_ordinary_quantized_model(nano, few, trained, tmp_path):
    assert {type(layer) for _, layer in slim.weight_layers(trained)} == {QuantizedConv2d, QuantizedLinear}
    images = few.val.images[:20]
    exact, simulated = integer_outputs(trained, images), simulated_outputs(trained, images, torch.float64)
    assert all(simulated[name].to(exact[name].dtype).equal(exact[name]) for name in exact)
    for layer in quantized_layers(trained).values():
        first = layer is trained.model[0].conv
        assert (layer.weight_grid.bits, layer.input_grid.bits) == (3, 8 if first else 4)
        assert layer.integers.abs().max() <= 4
        for scale in (layer.weight_grid.scale, layer.input_grid.scale):
            assert scale.bfloat16().float().equal(scale) or first  # an image's scale is 1/255
    for tensor in trained.tensors[1:]:  # one grid for all that is added, concatenated and read
        modules = [trained.get_submodule(name) for name in (*tensor.writers, *tensor.sums)]
        grids = [module.output_grid for module in modules]
        grids += [trained.get_submodule(name).input_grid for name in tensor.readers]
        assert len({(grid.bits, grid.scale.item(), grid.zero_point.item()) for grid in grids}) == 1
    loaded = slim.load_packed(slim.save_packed(trained, tmp_path / "trained.slim"))
    with torch.no_grad():
        assert logits(loaded, as_floats(images)).equal(logits(trained, as_floats(images)))


def test_training_moves_weights_and_scales_and_leaves_the_model_alone(nano, few, trained):
    before = {name: tensor.clone() for name, tensor in nano.state_dict().items()}
    again = train(nano, few, 3, 4, learning_rate=5e-3)
    assert all(tensor.equal(before[name]) for name, tensor in nano.state_dict().items())
    assert same(again, trained)
    untrained = quantized_layers(quantize_integer(nano, 3, 4, few.train))
    pairs = {name: (layer, untrained[name]) for name, layer in quantized_layers(trained).items()}
    assert sum((layer.integers != start.integers).sum().item() for layer, start in pairs.values()) > 10_000
    for of in ("weight_grid", "input_grid"):
        moved = [name for name, pair in pairs.items() if not torch.equal(*(getattr(each, of).scale for each in pair))]
        assert len(moved) > 5
    assert "model.0.conv" not in moved  # pixels keep their 8 bits


def test_training_wins_back_accuracy(nano, data):
    few = data.take(train=512, val=200)
    before = slim.evaluate(quantize_integer(nano, 2), few.val, progress=False).top1
    seen = []
    after = train(nano, few, 2, epochs=2, batch_size=32, on_epoch=lambda *report: seen.append(report))
    top1 = slim.evaluate(after, few.val, progress=False).top1
    assert top1 > before + 0.1
    assert [epoch for epoch, *_ in seen] == [1, 2]
    assert same(seen[-1][3], after)
    assert seen[-1][2] == pytest.approx(top1, abs=0.011)


def test_pruned_weights_stay_zero(nano, few):
    pruned = slim.prune_weights(nano, 0.5)
    trained = quantized_layers(train(pruned, few, 4))
    for name, layer in slim.weight_layers(pruned):
        assert (trained[name].integers[layer.weight == 0] == 0).all(), name


def test_narrow_networks_can_be_repaired(nano, few, calibration):
    narrow = slim.prune_channels(nano, 0.5)
    quantized = quantize_integer(narrow, 4, 8, calibration)
    for repaired in (
        slim.correct_biases(quantized, narrow, calibration),
        slim.learn_rounding(quantized, narrow, calibration, steps=2, progress=False),
        train(narrow, few, 4, 8),
    ):
        assert run_integer(repaired, few.val.images[:2]).isfinite().all()


# bits for each layer


@given(st.data())
@settings(max_examples=200)
def test_chosen_bits_are_the_best_of_all(data):
    layers, count = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    numbers = st.lists(st.integers(0, 9), min_size=count, max_size=count)
    table = st.lists(numbers, min_size=layers, max_size=layers)
    loss, size = np.array(data.draw(table)) / 4, np.array(data.draw(table)) + 1
    bits = tuple(range(2, 2 + count))
    scan = BitSensitivity(tuple("abcd"[:layers]), bits, loss, size)
    budget = data.draw(st.integers(int(size.min(1).sum()), 45))
    chosen = choose_bits(scan, budget)
    assert list(chosen) == list(scan.layers)

    def total(of, columns):
        return sum(of[row, column] for row, column in enumerate(columns))

    fitting = [each for each in itertools.product(range(count), repeat=layers) if total(size, each) <= budget]
    columns = [bits.index(number) for number in chosen.values()]
    assert tuple(columns) in fitting
    assert total(loss, columns) == min(total(loss, each) for each in fitting)


def test_a_budget_that_cannot_be_met_names_the_smallest():
    scan = BitSensitivity(("a", "b"), (2, 4), np.array([[3.0, 1.0], [2.0, 1.0]]), np.array([[1000, 2000]] * 2))
    assert choose_bits(scan, 2000) == {"a": 2, "b": 2}
    assert choose_bits(scan, 3999.9) == {"a": 4, "b": 2}
    assert choose_bits(scan, 10**12) == {"a": 4, "b": 4}
    for budget in (1999, 0, -1, float("nan")):
        with pytest.raises(ValueError, match=f"budget_bytes={budget}: the fewest bits need 2,000 bytes"):
            choose_bits(scan, budget)
    for budget in ("2000", None, True):
        with pytest.raises(TypeError, match="budget_bytes=.*expected a number"):
            choose_bits(scan, budget)
    broken = replace(scan, loss=np.full((2, 2), np.nan))
    with pytest.raises(ValueError, match="sensitivity: expected finite losses and bytes of 2 layers × 2 bits"):
        choose_bits(broken, 2000)


def test_equal_losses_take_fewer_bits():
    scan = BitSensitivity(("a",), (8, 4), np.array([[0.5, 0.5]]), np.array([[8, 4]]))
    assert choose_bits(scan, 100) == {"a": 4}


def test_sensitivity_is_the_divergence_of_answers_with_one_layer_rounded(nano, few):
    images = few.val.take(40)
    scan = bit_sensitivity(nano, images, (2, 8), progress=False)
    assert scan.layers == tuple(name for name, _ in slim.weight_layers(nano))
    row = scan.layers.index("model.5.conv")
    with torch.no_grad():
        p = log_softmax(logits(nano, as_floats(images.images)).double().numpy(), 1)
        rounded = quantize_integer(nano, {"model.5.conv": 2})
        q = log_softmax(logits(rounded, as_floats(images.images)).double().numpy(), 1)
    assert scan.loss[row, 0] == pytest.approx((np.exp(p) * (p - q)).sum(1).mean(), rel=1e-3)
    assert (scan.loss[:, 0] > scan.loss[:, 1]).all()
    assert scan.bytes[0].tolist() == [432 // 4, 432]  # 16 × 3 × 3 × 3 weights
    mixed = choose_bits(scan, 400_000)
    assert set(mixed.values()) == {2, 8}
    quantized = quantized_layers(quantize_integer(nano, mixed))
    assert {name: layer.weight_grid.bits for name, layer in quantized.items()} == mixed
    assert sum(layer.integers.numel() * layer.weight_grid.bits for layer in quantized.values()) <= 8 * 400_000


def test_bytes_are_rounded_up():
    assert integer_bytes(convolution([1.0, 2.0, 3.0]), ["0"], [2, 3, 8]).tolist() == [[1, 2, 3]]


# wrong arguments


def test_models_that_do_not_belong_together(nano, few, calibration):
    quantized = quantize_integer(nano, 4)
    narrow = slim.prune_channels(nano, 0.5)
    broken = copy_model(nano)
    broken.model[1].conv.weight.data[0] = float("nan")
    for repair in (slim.correct_biases, slim.learn_rounding):
        with pytest.raises(ValueError, match="quantized has no quantized layer"):
            repair(nano, nano, calibration)
        with pytest.raises(ValueError, match=r"model is quantized already \(model.0.conv\)"):
            repair(quantized, quantized, calibration)
        with pytest.raises(ValueError, match=r"model has \(.*\) at model.*, where quantized has \("):
            repair(quantized, narrow, calibration)
        with pytest.raises(ValueError, match="not finite \\(NaN or infinity\\), in model.1.conv.weight"):
            repair(quantized, broken, calibration)
        with pytest.raises(TypeError, match=r"pass load_model\('nano'\)"):
            repair(quantized, "nano", calibration)
        with pytest.raises(ValueError, match="calibration is empty"):
            repair(quantized, nano, few.train[:0])
        with pytest.raises(ValueError, match="calibration holds NaN"):
            repair(quantized, nano, torch.full((1, 3, 32, 32), float("nan")))
        with pytest.raises(TypeError, match="calibration is a list"):
            repair(quantized, nano, [1, 2])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps=0: expected a positive integer"),
        ({"steps": 2.5}, "steps=2.5"),
        ({"batch_size": True}, "batch_size=True"),
        ({"learning_rate": 0}, "learning_rate=0: expected a number above 0"),
        ({"pressure": float("nan")}, "pressure=nan"),
    ],
)
def test_rounding_needs_numbers_in_range(nano, calibration, options, words):
    with pytest.raises(ValueError, match=words):
        slim.learn_rounding(quantize_integer(nano, 4), nano, calibration, **options)


def test_rounding_names_what_it_does_not_understand(calibration):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return self.layer(x).sin()

    with pytest.raises(TypeError, match=r"the network itself computes sin\(\), which is not understood"):
        slim.learn_rounding(quantize_integer(model := Other(), 4), model, calibration)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bits": 1}, "bits=1: expected an integer from 2 to 16"),
        ({"bits": 4, "activation_bits": 17}, "activation_bits=17"),
        ({"bits": {"model.0": 4}}, "'model.0', which is no layer"),
        ({"bits": 4, "epochs": 0}, "epochs=0"),
        ({"bits": 4, "alpha": 2}, "alpha=2"),
        ({"bits": 4, "bfloat16": True}, "bfloat16=True"),
    ],
)
def test_training_needs_arguments_in_range(nano, few, options, words):
    with pytest.raises(ValueError, match=words):
        train(nano, few, **options)


def test_training_starts_from_a_float_classifier(nano, few):
    with pytest.raises(ValueError, match="model is quantized already"):
        train(quantize_integer(nano, 4), few, 4)
    with pytest.raises(TypeError, match="model is a Sequential: expected a classifier"):
        train(convolution([1.0]), few, 4)


@pytest.mark.parametrize(("bits", "words"), [((), "bits is empty"), ((1,), "bits=1"), ((4, 2.5), "bits=2.5")])
def test_sensitivity_needs_bits(nano, few, bits, words):
    with pytest.raises(ValueError, match=words):
        bit_sensitivity(nano, few.val, bits)


# short biases


@pytest.mark.parametrize(("format", "dtype"), [("bf16", bfloat16), ("fp16", np.float16)])
def test_biases_are_rounded_as_numpy_does(nano, format, dtype):
    quantized = quantize_integer(nano, 3)
    before = {name: tensor.clone() for name, tensor in quantized.state_dict().items()}
    rounded = quantized_layers(round_biases(quantized, format))
    assert all(tensor.equal(before[name]) for name, tensor in quantized.state_dict().items())
    for name, layer in quantized_layers(quantized).items():
        expected = layer.bias.detach().numpy().astype(dtype).astype(np.float32)
        assert rounded[name].bias.numpy().tolist() == expected.tolist()
        assert rounded[name].integers.equal(layer.integers)


def test_short_biases_take_half_the_bytes(nano):
    quantized = quantize_integer(nano, 3)
    count = sum(layer.bias.numel() for layer in quantized_layers(quantized).values())
    saved = slim.packed_sizes(quantized).file - slim.packed_sizes(round_biases(quantized)).file
    assert saved > 1.8 * count  # two bytes each, and entropy coding on both sides


def test_biases_that_are_integers_stay(nano, calibration):
    quantized = quantize_integer(nano, 8, 8, calibration)
    assert same(round_biases(quantized), quantized)


def test_biases_without_a_layer_of_their_own_are_refused(nano):
    with pytest.raises(ValueError, match="model has BatchNorm, whose shifts are its biases: fold it first"):
        round_biases(nano)
    with pytest.raises(TypeError, match="model is a Linear: expected a classifier"):
        round_biases(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="'fp9'"):
        round_biases(quantize_integer(nano, 8), "fp9")


# a price for bits


@pytest.mark.parametrize("shape", [(), (4, 1)])
def test_the_price_of_bits_has_the_gradient_of_its_formula(shape):
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 5, generator=random, dtype=torch.float64, requires_grad=True)
    scale = torch.rand(shape, generator=random, dtype=torch.float64).add(0.1).requires_grad_()
    pull = torch.randn(4, 5, generator=random, dtype=torch.float64)
    cost = (pull * weight).sum() + 0.3 * torch.log2(1 + weight.abs() / scale).sum()
    expected = torch.autograd.grad(cost, (weight, scale))
    passed = PricedBits.apply(weight, scale, 0.3)
    assert passed.equal(weight)
    for found, by_formula in zip(torch.autograd.grad(passed, (weight, scale), pull), expected, strict=True):
        torch.testing.assert_close(found, by_formula)


def test_a_price_pulls_weights_to_zero_and_widens_scales():
    base = IntegerGrid.from_range(torch.tensor(-4.0), torch.tensor(3.0), bits=3)  # scale 1
    gradients = []
    for price in (0.0, 0.5):
        grid, x = LearnedGrid(base, price), torch.tensor([-2.2, 0.0, 1.4], requires_grad=True)
        grid.snap(x).sum().backward()
        gradients.append((x.grad, grid.log2_scale.grad))
    (free, free_scale), (priced, priced_scale) = gradients
    by_hand = [-0.5 / (3.2 * math.log(2)), 0, 0.5 / (2.4 * math.log(2))]  # d log2(1 + |x|) / dx, times the price
    assert (priced - free).tolist() == pytest.approx(by_hand)
    # d log2(1 + |x| / s) / d log2(s) at s = 1
    assert (priced_scale - free_scale).item() == pytest.approx(-0.5 * (2.2 / 3.2 + 1.4 / 2.4), rel=1e-5)


def test_a_higher_price_makes_a_smaller_file(nano, few):
    files, zeros = [], []
    for price in (0.0, 1e-5, 1e-4):
        trained = train(nano, few, 4, learning_rate=5e-3, bit_price=price)
        files.append(slim.packed_sizes(round_biases(trained)).file)
        zeros.append(sum((layer.integers == 0).sum().item() for layer in quantized_layers(trained).values()))
    assert files[0] > 1.02 * files[1] > 1.02**2 * files[2]
    assert zeros[0] < zeros[1] < zeros[2]


@pytest.mark.parametrize("price", [-1e-7, float("nan"), math.inf, True, "1e-7"])
def test_prices_are_numbers_from_0(nano, few, price):
    with pytest.raises(ValueError, match=f"bit_price={price!r}: expected 0 or more, such as 1e-7"):
        train(nano, few, 4, bit_price=price)
