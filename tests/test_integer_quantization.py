"""Integer quantization against numpy, torch's own rounding, plain integer arithmetic, and its own two executions."""

import copy
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from ultralytics.nn.tasks import ClassificationModel

import yolo_slim_lessons as slim
from yolo_slim_lessons.data import as_floats
from yolo_slim_lessons.models import logits
from yolo_slim_lessons.quantization import (
    FidelityWarning,
    IntegerGrid,
    QuantizedConv2d,
    fold_batchnorm,
    integer_outputs,
    layer_errors,
    run_integer,
    signal_to_noise,
    simulated_outputs,
)
from yolo_slim_lessons.quantization.execution import accumulate, divide, fixed_point_multiplier
from yolo_slim_lessons.quantization.few_bits import bit_sensitivity
from yolo_slim_lessons.quantization.layers import QuantizedActivation, QuantizedSum


@pytest.fixture(scope="module")
def calibration(data):
    return data.train.take(128)


@pytest.fixture(scope="module")
def w8a8(nano, calibration):
    return slim.quantize_integer(nano, 8, 8, calibration)


finite = st.floats(-1e4, 1e4, width=32)


# --- the grid


@given(
    st.lists(finite, min_size=1, max_size=30),
    finite,
    finite,
    st.integers(2, 16),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=200)
def test_grid_rounds_like_numpy_and_snaps_to_what_it_stores(numbers, low, high, bits, symmetric, signed):
    grid = IntegerGrid.from_range(
        torch.tensor(min(low, high)), torch.tensor(max(low, high)), bits, symmetric=symmetric, signed=signed
    )
    x = torch.tensor(numbers)
    scale, zero = grid.scale.numpy(), grid.zero_point.numpy()
    with np.errstate(over="ignore"):  # infinity is clipped like any large number
        expected = np.clip(np.round(x.numpy() / scale) + zero, grid.lowest, grid.highest)
    np.testing.assert_array_equal(grid.quantize(x).numpy(), expected)
    # exactly, in float64, too: nothing is rounded when integers become floats
    exact = (expected - zero).astype(np.float64) * float(scale)
    np.testing.assert_array_equal(grid.dequantize(grid.quantize(x)).double().numpy(), exact)
    assert torch.equal(grid.snap(x), grid.dequantize(grid.quantize(x)))
    assert torch.equal(grid.snap(grid.snap(x)), grid.snap(x))
    kept = x.clone()
    grid.snap(x)
    assert torch.equal(x, kept)
    assert torch.equal(grid.snap(kept, inplace=True), grid.snap(x))
    assert grid.highest - grid.lowest == 2**bits - 1
    assert grid.snap(torch.zeros(1)) == 0
    assert torch.equal(grid.quantize(x).to(grid.dtype).to(torch.int32), grid.quantize(x))


def test_grid_agrees_with_torch():
    x = torch.linspace(-3, 5, 1001)
    grid = IntegerGrid.from_range(x.min(), x.max(), 8, signed=False)
    ours = grid.snap(x)
    theirs = torch.fake_quantize_per_tensor_affine(x, float(grid.scale), int(grid.zero_point), 0, 255)
    torch.testing.assert_close(ours, theirs)
    rows = torch.randn(4, 50, generator=torch.Generator().manual_seed(1))
    grid = IntegerGrid.from_range(rows.amin(1), rows.amax(1), 4)
    theirs = torch.fake_quantize_per_channel_affine(rows, grid.scale, grid.zero_point, 0, -8, 7)
    torch.testing.assert_close(grid.snap(rows), theirs)


def test_ties_go_to_even_and_the_rest_to_the_ends():
    grid = IntegerGrid(4, torch.tensor(0.5), torch.tensor(0, dtype=torch.int32))
    x = torch.tensor([-9.0, -0.75, -0.25, 0.25, 0.75, 1.25, 9.0])
    assert grid.quantize(x).tolist() == [-8, -2, 0, 0, 2, 2, 7]
    # with an odd zero point, too: x / scale is rounded before the zero point is added
    shifted = IntegerGrid(4, torch.tensor(0.5), torch.tensor(1, dtype=torch.int32))
    assert shifted.quantize(x).tolist() == [-8, -1, 1, 1, 3, 3, 7]
    assert shifted.snap(x).tolist() == [-4.5, -1, 0, 0, 1, 1, 3]


# --- the model


def test_weights_lie_on_as_many_levels_as_bits_say(nano):
    folded = dict(slim.weight_layers(fold_batchnorm(nano)))
    for bits in (2, 5, 8, 12):
        for name, layer in slim.weight_layers(slim.quantize_integer(nano, bits)):
            assert layer.integers.dtype == (torch.int8 if bits <= 8 else torch.int16)
            assert -(2 ** (bits - 1)) <= int(layer.integers.min())
            assert int(layer.integers.max()) < 2 ** (bits - 1)
            assert torch.equal(layer.weight, layer.weight_grid.dequantize(layer.integers))
            # within the range, no weight moves by more than half a step
            low, high = (end.view(-1, *(1,) * (layer.weight.dim() - 1)) for end in layer.weight_grid.range)
            original = folded[name].weight
            inside = (original >= low) & (original <= high)
            step = layer.weight_grid.scale.view_as(low)
            assert ((layer.weight - original).abs() <= 0.5001 * step)[inside].all(), name
            assert torch.equal(layer.bias, folded[name].bias)


def test_granularity_symmetry_and_ranges_do_what_they_say(nano):
    error = {}
    for granularity in ("channel", "tensor"):
        for symmetric, ranges in ((True, "minmax"), (True, "mse"), (False, "minmax")):
            options = {"granularity": granularity, "symmetric": symmetric, "weight_ranges": ranges}
            quantized = slim.quantize_integer(nano, 5, **options)
            for _, layer in slim.weight_layers(quantized):
                assert layer.weight_grid.scale.numel() == (layer.weight.shape[0] if granularity == "channel" else 1)
                assert symmetric <= layer.weight_grid.symmetric
            error[granularity, symmetric, ranges] = np.mean(list(layer_errors(nano, quantized).values()))
        assert error[granularity, True, "mse"] > error[granularity, True, "minmax"]
        assert error[granularity, False, "minmax"] > error[granularity, True, "minmax"]
    for symmetric in (True, False):
        assert error["channel", symmetric, "minmax"] > error["tensor", symmetric, "minmax"] + 3  # dB


def test_minmax_per_channel_by_numpy(nano):
    layer = dict(slim.weight_layers(slim.quantize_integer(nano, 8, weight_ranges="minmax")))["model.7.conv"]
    weight = dict(slim.weight_layers(fold_batchnorm(nano)))["model.7.conv"].weight.numpy()
    largest = abs(weight).reshape(len(weight), -1).max(1)
    # rounded up by at most one unit of 8 significant bits
    ratio = layer.weight_grid.scale.numpy() / (largest / 127)
    assert (ratio >= 1 - 1e-6).all()
    assert (ratio <= 1 + 2**-7).all()
    expected = np.round(weight / layer.weight_grid.scale.numpy()[:, None, None, None])
    np.testing.assert_array_equal(layer.integers.numpy(), expected)


def test_result_is_a_classifier_and_the_input_is_left_alone(nano, calibration):
    before = {name: tensor.clone() for name, tensor in nano.state_dict().items()}
    quantized = slim.quantize_integer(nano, 8, 8, calibration)
    assert all(torch.equal(tensor, before[name]) for name, tensor in nano.state_dict().items())
    assert isinstance(quantized, ClassificationModel)
    assert type(slim.quantize_integer(nano, 8)) is ClassificationModel
    assert quantized.names == nano.names
    assert quantized.args == nano.args
    assert not quantized.training
    assert not any(isinstance(module, nn.BatchNorm2d) for module in quantized.modules())
    assert slim.count_macs(quantized) == slim.count_macs(nano)


def test_accuracy(nano, w8a8, data):
    split = data.test.take(1000)
    before, after = slim.evaluate(nano, split), slim.evaluate(w8a8, split)
    assert after.top1 >= before.top1 - 0.006
    assert slim.evaluate(slim.quantize_integer(nano, 8), split).top1 >= before.top1 - 0.004


def test_more_bits_are_less_error(nano, data):
    images = data.val.take(8).images.float() / 255
    errors = [layer_errors(nano, slim.quantize_integer(nano, bits), images)["model.9.linear"] for bits in (2, 4, 8, 12)]
    assert errors == sorted(errors)
    assert errors[-1] > errors[0] + 40


def test_teacher_and_pruned_models_work(nano, calibration, data):
    images = data.val.take(4).images
    for model in (slim.prune_channels(nano, 0.5), slim.new_model("yolov8s-cls.yaml", ("a", "b"))):
        quantized = slim.quantize_integer(model, 8, 8, calibration.take(8))
        floats = logits(fold_batchnorm(model), images.float() / 255)
        assert signal_to_noise(floats, run_integer(quantized, images)) > 10


def test_zeroed_channels_keep_their_bias_in_32_bits(nano, calibration):
    broken = copy.deepcopy(nano)
    broken.model[3].bn.weight.data[:5] = 0
    broken.model[3].bn.weight.data[5:9] = 1e-12
    broken.model[3].bn.bias.data[:9] = 0.7
    quantized = slim.quantize_integer(broken, 8, 8, calibration)
    torch.testing.assert_close(quantized.model[3].conv.bias[:9], torch.full((9,), 0.7))
    images = calibration.take(4).images
    exact = simulated_outputs(quantized, images, torch.float64)
    for name, output in integer_outputs(quantized, images).items():
        assert torch.equal(output.double(), exact[name].double()), name


def test_mapping_leaves_other_layers_in_float(nano):
    quantized = dict(slim.weight_layers(slim.quantize_integer(nano, {"model.1.conv": 3, "model.9.linear": 8})))
    assert quantized["model.1.conv"].weight_grid.bits == 3
    assert quantized["model.9.linear"].weight_grid.bits == 8
    assert type(quantized["model.0.conv"]) is nn.Conv2d


def test_any_network_for_weights_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 2)).eval()
    x = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(slim.quantize_integer(model, 16)(x), model(x), atol=1e-3, rtol=0)


def test_state_survives_copy_memory_format_and_state_dict(nano, w8a8, calibration, data):
    images = data.val.take(8).images.float() / 255
    expected = logits(w8a8, images)
    inner = copy.deepcopy(w8a8).to(memory_format=torch.channels_last)
    assert all(torch.equal(a, b) for a, b in zip(inner.state_dict().values(), w8a8.state_dict().values(), strict=True))
    other = slim.quantize_integer(slim.prune_weights(nano, 0.5), 8, 8, calibration.take(10), ranges="minmax")
    assert not torch.equal(logits(other, images), expected)
    other.load_state_dict(w8a8.state_dict())
    assert torch.equal(logits(other, images), expected)
    widened = copy.deepcopy(w8a8).double().float()
    assert torch.equal(logits(widened, images), expected)


def test_every_activation_lies_on_its_grid(w8a8, data):
    model, seen = copy.deepcopy(w8a8), []

    def on_grid(grid, tensor):
        seen.append(grid)
        assert torch.equal(grid.snap(tensor), tensor)

    for name, layer in slim.weight_layers(model):
        if name not in ("model.0.conv", "model.9.linear"):  # these two snap what they read themselves
            layer.register_forward_pre_hook(lambda layer, inputs: on_grid(layer.input_grid, inputs[0]))
    for module in model.modules():
        if isinstance(module, QuantizedActivation | QuantizedSum):
            module.register_forward_hook(lambda module, _, output: on_grid(module.output_grid, output))
    images = data.val.take(8).images.float() / 255
    kept = images.clone()
    model(images)
    assert torch.equal(images, kept)
    assert len(seen) == 25 + 26 + 6  # convolutions but the first, activation functions, shortcuts


# --- integer execution


def test_integers_equal_the_simulation_in_float64_on_every_layer(w8a8, data):
    images = data.test.take(20).images
    integers = integer_outputs(w8a8, images)
    exact = simulated_outputs(w8a8, images, torch.float64)
    assert list(integers) == list(exact)
    assert set(integers) == {name for name, _ in slim.weight_layers(w8a8)}
    for name, output in integers.items():
        assert output.dtype == (torch.int64 if name == "model.9.linear" else torch.uint8)
        assert torch.equal(output.double(), exact[name].double()), name
    followed = simulated_outputs(w8a8, images, torch.float32, follow=integers)
    for name, output in integers.items():
        difference = (output.double() - followed[name].double()).abs()
        if name == "model.9.linear":  # sums, which float32 holds to 24 bits
            assert difference.max() <= 1e-5 * output.abs().max()
        else:
            assert difference.max() <= 1, name
            assert (difference > 0).double().mean() < 0.001, name
    torch.testing.assert_close(
        run_integer(w8a8, images), logits(copy.deepcopy(w8a8).double(), (images.float() / 255).double()).float()
    )


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 4, "activation_bits": 4},
        {"bits": 3, "activation_bits": 6, "symmetric": False},
        {"bits": 8, "activation_bits": 8, "granularity": "tensor", "ranges": "percentile"},
        {"bits": 5, "activation_bits": 10, "symmetric": False, "granularity": "tensor", "ranges": "minmax"},
    ],
)
def test_integers_equal_the_simulation_for_other_grids(nano, calibration, data, options):
    quantized = slim.quantize_integer(nano, calibration=calibration.take(16), weight_ranges="minmax", **options)
    images = data.test.take(4).images
    exact = simulated_outputs(quantized, images, torch.float64)
    for name, output in integer_outputs(quantized, images).items():
        assert torch.equal(output.double(), exact[name].double()), name


@pytest.mark.parametrize("name", ["model.0.conv", "model.3.conv", "model.8.m.0.cv1.conv"])
def test_sums_are_those_of_int32_arithmetic_on_uint8_and_int8(w8a8, data, name):
    layer = w8a8.get_submodule(name)
    shape = (1, layer.in_channels, 8, 8)
    x = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    # Padding stands for zero, so it is the zero point; its share of each sum is taken off afterwards.
    zero = int(layer.input_grid.zero_point)
    padded = F.pad(x.int(), (1, 1, 1, 1), value=zero).numpy()
    weight = layer.integers.numpy()
    size = (8 + 2 - 3) // layer.stride[0] + 1
    expected = np.empty((layer.out_channels, size, size), dtype=np.int32)
    for row, column in np.ndindex(size, size):
        top, left = row * layer.stride[0], column * layer.stride[1]
        patch = padded[0, :, top : top + 3, left : left + 3]
        products = patch.astype(np.int32) * weight.astype(np.int32)
        expected[:, row, column] = products.sum((1, 2, 3), dtype=np.int32)
    correction = zero * weight.sum((1, 2, 3), dtype=np.int32)
    expected += (layer.bias_integers.numpy() - correction)[:, None, None]
    np.testing.assert_array_equal(accumulate(name, layer, x)[0].numpy(), expected)


@given(st.integers(-(2**31), 2**31 - 1), st.integers(1, 2**30))
def test_division_rounds_to_nearest_ties_to_even(number, divisor):
    assert divide(torch.tensor([number]), divisor).item() == round(Fraction(number, divisor))


@given(st.integers(128, 255), st.integers(128, 255), st.integers(-40, 10))
def test_multiplier_and_shift_are_exact(first, second, exponent):
    factor = torch.tensor([first * second * 2.0**exponent], dtype=torch.float64)
    multiplier, shift = fixed_point_multiplier(factor)
    assert 2**15 <= multiplier < 2**16
    assert Fraction(int(multiplier)) / Fraction(2) ** int(shift) == Fraction(factor.item())


def test_sums_that_do_not_fit_in_32_bits_are_refused(nano, calibration, data):
    quantized = slim.quantize_integer(nano, 16, 16, calibration.take(8))
    with pytest.raises(OverflowError, match=r"model\.\d.*does not fit in 32 bits"):
        run_integer(quantized, data.test.take(4).images)


def test_integer_execution_needs_quantized_activations(nano, calibration, data):
    images = data.test.take(2).images
    for model in (
        nano,
        slim.quantize_integer(nano, 8),
        slim.quantize_integer(nano, {"model.1.conv": 8}, 8, calibration.take(4)),
    ):
        with pytest.raises(ValueError, match="model computes with floats"):
            run_integer(model, images)


# --- errors in dB


def test_signal_to_noise_by_hand():
    assert signal_to_noise(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])) == pytest.approx(20)
    assert signal_to_noise(torch.ones(3), torch.ones(3)) == float("inf")
    with pytest.raises(ValueError, match="approximation is"):
        signal_to_noise(torch.ones(3), torch.ones(4))


# --- bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bits": 1}, "bits=1: expected an integer from 2 to 16"),
        ({"bits": 17}, "bits=17: expected an integer from 2 to 16"),
        ({"bits": 8.0}, "bits=8.0"),
        ({"bits": "8"}, "bits='8'"),
        ({"bits": True}, "bits=True"),
        ({"bits": None}, "bits=None"),
        ({"bits": {}}, "bits names no layer"),
        ({"bits": {"model.0": 8}}, "'model.0', which is no layer with weights.*model.0.conv"),
        ({"bits": {"model.0.conv": 1}}, r"bits\['model.0.conv'\]=1"),
        ({"activation_bits": 8}, "activation_bits=8 needs calibration="),
        ({"activation_bits": 1, "calibration": torch.zeros(1, 3, 64, 64)}, "activation_bits=1"),
        ({"activation_bits": 8, "calibration": torch.zeros(0, 3, 64, 64)}, "calibration is empty"),
        ({"activation_bits": 8, "calibration": torch.full((1, 3, 64, 64), torch.nan)}, "calibration holds NaN"),
        ({"activation_bits": 8, "calibration": torch.full((1, 3, 64, 64), torch.inf)}, "calibration holds NaN"),
        ({"granularity": "layer"}, r"granularity='layer': expected one of \('channel', 'tensor'\)"),
        ({"ranges": "max"}, "ranges='max'"),
        ({"weight_ranges": "kl"}, r"weight_ranges='kl': expected one of \('mse', 'minmax'\)"),
    ],
)
def test_wrong_arguments_are_named_with_what_is_allowed(nano, options, words):
    with pytest.raises(ValueError, match=words):
        slim.quantize_integer(nano, **options)


def test_wrong_models_are_refused(nano, w8a8, calibration):
    for quantized in (w8a8, slim.quantize_integer(nano, {"model.9.linear": 4})):
        with pytest.raises(ValueError, match="model is quantized already"):
            slim.quantize_integer(quantized, 8)
    with pytest.raises(ValueError, match="model is quantized already, to e4m3"):
        slim.quantize_integer(slim.quantize_float(nano, "fp8_e4m3"), 8)
    for value in (float("nan"), float("inf")):
        broken = copy.deepcopy(nano)
        broken.model[3].conv.weight.data[0, 0, 0, 0] = value
        with pytest.raises(ValueError, match=r"not finite \(NaN or infinity\), in model\.3\.conv\.weight"):
            slim.quantize_integer(broken, 8)
    with pytest.raises(TypeError, match=r"pass load_model\('nano'\)"):
        slim.quantize_integer("nano")
    with pytest.raises(TypeError, match="calibration is a list"):
        slim.quantize_integer(nano, 8, 8, [1, 2])
    other = slim.new_model("yolo12n-cls.yaml", ("a", "b"))
    with pytest.raises(
        TypeError, match=r"model\.6\.m\.0\.0\.attn \(AAttn\) computes reshape\(\), which is not understood"
    ):
        slim.quantize_integer(other, 8, 8, calibration)
    assert slim.quantize_integer(other, 8) is not other


def test_dequantized_layers_are_ordinary_and_answer_the_same(nano, data, tmp_path):
    quantized = slim.quantize_integer(nano, {"model.0.conv": 3, "model.9.linear": 4})
    plain = slim.dequantize(quantized)
    assert {type(layer) for _, layer in slim.weight_layers(plain)} == {nn.Conv2d, nn.Linear}
    assert type(quantized.model[0].conv) is QuantizedConv2d
    images = as_floats(data.val.images[:4])
    assert torch.equal(logits(plain, images), logits(quantized, images))
    reloaded = slim.load_model(slim.save_model(plain, tmp_path / "plain.pt"))
    torch.testing.assert_close(logits(reloaded, images), logits(quantized, images), rtol=0, atol=1e-4)


def test_quantized_activations_are_not_for_ordinary_layers(w8a8):
    with pytest.raises(ValueError, match=r"model has quantized activations \(model\.0\.act\)"):
        slim.dequantize(w8a8)


# a warning where rounding ruins


def fidelity_warnings(call, *arguments, **options):
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        call(*arguments, **options)
    return [warning for warning in given if warning.category is FidelityWarning]


def test_whoever_takes_too_few_bits_is_told_how_little_is_left_and_what_repairs_it(nano, calibration):
    assert not fidelity_warnings(slim.quantize_integer, nano, 8)
    assert not fidelity_warnings(slim.quantize_integer, nano, 4)
    (warning,) = fidelity_warnings(slim.quantize_integer, nano, 2)
    assert warning.filename == __file__
    for part in ("on random pictures", "learn_rounding(quantized, model, calibration)", "train_quantized("):
        assert part in str(warning.message)
    assert not fidelity_warnings(slim.quantize_integer, nano, 2, warn=False)
    (warning,) = fidelity_warnings(slim.quantize_integer, nano, 2, calibration=calibration)
    images = next(calibration.batches(16))[0]
    left = signal_to_noise(logits(nano, images), logits(slim.quantize_integer(nano, 2), images))
    assert f"keep {left:.1f} dB of the float model's on 16 images of calibration" in str(warning.message)


def test_what_trains_rounded_weights_does_not_warn_of_where_it_starts(nano, data):
    few = data.take(64, 16)
    assert not fidelity_warnings(slim.train_quantized, nano, few, 2, epochs=1, progress=False)
    assert not fidelity_warnings(bit_sensitivity, nano, few.val, (2,), exact=False, progress=False)
