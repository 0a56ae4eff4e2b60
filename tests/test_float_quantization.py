"""Rounding to floats of few bits: against torch's and ml_dtypes' own types, and against all values of a format."""

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import yolo_slim_lessons as slim
from yolo_slim_lessons.data import as_floats
from yolo_slim_lessons.models import logits
from yolo_slim_lessons.quantization.floats import float_format, format_fit, round_to_format

TORCH = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
ML_DTYPES = {"e2m1": ml_dtypes.float4_e2m1fn, "e2m3": ml_dtypes.float6_e2m3fn, "e3m2": ml_dtypes.float6_e3m2fn}
INFINITY, NAN = float("inf"), float("nan")


def same(ours, theirs):
    """Equal to the last bit, zeros' signs included; NaN as NaN."""
    theirs = theirs.float()
    both_nan = ours.isnan() & theirs.isnan()
    return bool(((ours.view(torch.int32) == theirs.view(torch.int32)) | both_nan).all())


def all_patterns(dtype):
    """All 2^16 values of a 16-bit type, as float32."""
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).float()


def awkward_floats(format):
    """Random bit patterns of float32, every value of the format, what is halfway between two, and their neighbours."""
    generator = torch.Generator().manual_seed(1)
    patterns = torch.randint(-(2**31), 2**31, (300_000,), generator=generator).to(torch.int32).view(torch.float32)
    values = float_format(format).values().double()
    halfway = ((values[1:] + values[:-1]) / 2).float()
    beyond = torch.tensor([values[-1] + (values[-1] - values[-2]) / 2, 1e30, INFINITY, 0.0]).float()
    exact = torch.cat([values.float(), halfway, beyond])
    near = torch.cat([exact, torch.nextafter(exact, torch.tensor(INFINITY)), torch.nextafter(exact, torch.tensor(0.0))])
    scaled = torch.randn(100_000, generator=generator) * float_format(format).min_normal
    return torch.cat([patterns, near, -near, scaled, torch.tensor([NAN])])


@pytest.mark.parametrize("name", TORCH)
def test_every_half_pattern_and_awkward_float_rounds_as_in_torch(name):
    dtype, top = TORCH[name], torch.finfo(TORCH[name]).max
    for x in (all_patterns(torch.float16), all_patterns(torch.bfloat16), awkward_floats(name)):
        theirs = x.to(dtype).float()
        if name == "fp8_e4m3":  # has no infinity; what torch does beyond the maximum depends on its version
            inside = round_to_format(x, name, saturate=False).isfinite() | x.isnan()
            assert same(round_to_format(x[inside], name, saturate=False), theirs[inside])
            assert same(round_to_format(x[inside], name), theirs[inside])
            assert round_to_format(x[~inside], name, saturate=False).isnan().all()
            assert torch.equal(round_to_format(x[~inside], name), x[~inside].sign() * 448)
            assert bool((x[~inside].abs() > 464).all())  # halfway between 448 and 480, which is even at 448
        else:
            assert same(round_to_format(x, name, saturate=False), theirs)
            assert same(round_to_format(x, name), theirs.clamp(-top, top))


@pytest.mark.parametrize("name", ML_DTYPES)
def test_formats_without_infinity_round_as_in_ml_dtypes(name):
    x = awkward_floats(name)
    x = x[~x.isnan()]
    theirs = torch.from_numpy(x.numpy().astype(ML_DTYPES[name]).astype(np.float32))
    assert same(round_to_format(x, name), theirs)


@pytest.mark.parametrize("name", TORCH)
def test_properties_and_values_are_those_of_torch(name):
    format, info = float_format(name), torch.finfo(TORCH[name])
    assert (format.bits, format.max, format.min_normal) == (info.bits, info.max, info.smallest_normal)
    patterns = torch.arange(2 ** (info.bits - 1))
    theirs = patterns.to(torch.int16 if info.bits == 16 else torch.uint8).view(TORCH[name]).float()
    assert torch.equal(format.values(), theirs[theirs.isfinite()])
    assert format.min_subnormal == format.values()[1]


def test_small_formats_by_hand():
    assert float_format("e2m1").values().tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert float_format("e1m2").values().tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]  # one exponent bit: even spacing
    assert float_format("e3m0").values().tolist() == [0, 0.25, 0.5, 1, 2, 4, 8, 16]  # no mantissa: powers of two
    assert float_format("e4m0").max == 128
    assert float_format("e5m0").max == 2**15
    assert round_to_format(torch.tensor([2.5, 3.5, 5.0, -0.25, 0.75, 99.0]), "e2m1").tolist() == [2, 4, 4, 0, 1, 6]


@given(st.integers(1, 8), st.integers(0, 23), st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_the_result_is_a_neighbour_and_none_is_nearer(exponent_bits, mantissa_bits, x):
    format = float_format(f"e{exponent_bits}m{mantissa_bits}")
    y = round_to_format(torch.tensor(x), format).item()
    step = 2.0 ** max(np.frexp(x)[1] - 1, 2 - 2 ** (exponent_bits - 1)) / 2**mantissa_bits  # Python floats: no rounding
    if abs(x) <= format.max:
        assert abs(y - x) <= step / 2
        assert y % step == 0
        if abs(y - x) == step / 2:
            assert y / step % 2 == 0 or abs(y) == format.max
    else:
        assert abs(y) == format.max
    assert np.sign(y) in (0, np.sign(x))
    assert round_to_format(torch.tensor(y), format).item() == y
    assert round_to_format(torch.tensor(-x), format).item() == -y


def test_fp32_stays_and_other_types_are_widened():
    x = awkward_floats("fp16")
    assert same(round_to_format(x, "e8m23", saturate=False), x)
    half = torch.tensor([0.1, 3.0], dtype=torch.float16)
    assert torch.equal(round_to_format(half, "e8m23"), half.float())
    strided = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    assert torch.equal(round_to_format(strided, "e4m3"), round_to_format(strided.contiguous(), "e4m3"))


def test_rounding_leaves_its_input_alone():
    x = torch.tensor([0.3, 1000.0])
    round_to_format(x, "e4m3")
    assert x.tolist() == [pytest.approx(0.3), 1000]


def folded(model):
    return slim.models.copy_model(model).fuse(verbose=False)


@pytest.mark.parametrize("name", TORCH)
def test_weights_of_the_folded_model_are_rounded_and_biases_are_not(nano, name):
    before = {key: tensor.clone() for key, tensor in nano.state_dict().items()}
    quantized = slim.quantize_float(nano, name)
    for (layer_name, layer), (_, reference) in zip(
        slim.weight_layers(quantized), slim.weight_layers(folded(nano)), strict=True
    ):
        assert torch.equal(layer.weight, reference.weight.to(TORCH[name]).float()), layer_name
        assert torch.equal(layer.bias, reference.bias)
    assert all(torch.equal(tensor, before[key]) for key, tensor in nano.state_dict().items())
    assert not quantized.training
    assert quantized.float_quantization["format"] == float_format(name).name


def two_channels():
    layer = nn.Linear(3, 2, bias=False)
    layer.weight.data = torch.tensor([[6.0, 0.3, -0.1], [0.006, 0.003, 0.0]])
    return nn.Sequential(layer)


def test_scale_is_the_largest_power_of_two_below_the_maximum():
    # e2m1 holds 0, 0.5, 1, 1.5, 2, 3, 4, 6. The layer is left as it is (6 is the maximum), its second channel is
    # multiplied by 512: 0.006 · 512 = 3.07 rounds to 3, 0.003 · 512 = 1.54 to 1.5.
    assert slim.quantize_float(two_channels(), "e2m1")[0].weight.tolist() == [[6, 0.5, 0], [0, 0, 0]]
    assert slim.quantize_float(two_channels(), "e2m1", scale="tensor")[0].weight.tolist() == [[6, 0.5, 0], [0, 0, 0]]
    by_channel = slim.quantize_float(two_channels(), "e2m1", scale="channel")[0].weight
    assert by_channel.tolist() == [[6, 0.5, 0], [3 / 512, 1.5 / 512, 0]]


@pytest.mark.parametrize("scale", ["tensor", "channel"])
def test_scale_of_zeros_and_of_tiny_numbers(scale):
    model = two_channels()
    model[0].weight.data = torch.tensor([[0.0, 0.0, 0.0], [1e-42, -1e-44, 0.0]])
    quantized = slim.quantize_float(model, "fp8_e4m3", scale=scale)[0].weight
    assert quantized.isfinite().all()
    assert quantized[0].tolist() == [0, 0, 0]
    model[0].weight.data = torch.tensor([[3e38, -1.0, 0.0], [1.0, 3e-38, 0.0]])
    assert slim.quantize_float(model, "fp8_e4m3", scale=scale)[0].weight[0, 0].item() == pytest.approx(3e38, rel=1 / 16)


def test_a_scale_saves_weights_that_a_narrow_format_loses(nano, data):
    val = data.val.take(500)
    top1 = {
        scale: slim.evaluate(slim.quantize_float(nano, "e2m1", scale=scale), val).top1 for scale in ("none", "channel")
    }
    assert top1["none"] < 0.3
    assert top1["channel"] > slim.evaluate(nano, val).top1 - 0.05


def test_activations_are_rounded_where_layers_read_them(nano, data):
    images = as_floats(data.val[:4].images)
    seen = []
    quantized = slim.quantize_float(nano, "fp16", activations="fp8_e5m2")
    for _, layer in slim.weight_layers(quantized):
        layer.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0]))
    logits(quantized, images)
    assert len(seen) == len(list(slim.weight_layers(nano)))
    assert all(torch.equal(x, x.to(torch.float8_e5m2).float()) for x in seen)
    assert not torch.equal(logits(quantized, images), logits(slim.quantize_float(nano, "fp16"), images))


def test_activations_overflow_to_infinity_only_if_not_saturated(nano, data):
    images = 255 * as_floats(data.val[:4].images)  # the usual mistake: pixels not divided by 255
    broken = logits(slim.quantize_float(nano, "fp16", activations="e5m1", saturate=False), 1e3 * images)
    assert not broken.isfinite().all()
    assert logits(slim.quantize_float(nano, "fp16", activations="e5m1"), 1e3 * images).isfinite().all()


def test_format_fit_by_hand():
    # e4m3: maximum 448, halfway to the next 464; smallest normal 2^-6, smallest subnormal 2^-9, half of that to zero
    x = torch.tensor([0, 0, 1, -448, 464, 465, -INFINITY, 2**-6, 2**-7, -(2**-9), 2**-10, -(2**-11)])
    fit = format_fit(x, "fp8_e4m3")
    assert (fit.overflow, fit.normal, fit.subnormal, fit.underflow) == (0.2, 0.4, 0.2, 0.2)
    with pytest.raises(ValueError, match="nothing but zeros"):
        format_fit(torch.zeros(3), "fp16")
    with pytest.raises(ValueError, match="NaN"):
        format_fit(torch.tensor([NAN]), "fp16")


@pytest.mark.parametrize("name", ["fp32", "e0m3", "e9m3", "e4m24", "e4", "E4M3", "", None, 8, "e4m-1", "xe4m3"])
def test_unknown_formats_are_named(name):
    with pytest.raises(ValueError, match=r"format=.*expected one of \('fp16'"):
        slim.quantize_float(two_channels(), name)
    with pytest.raises(ValueError, match="format="):
        round_to_format(torch.ones(1), name)


def test_wrong_arguments_are_named(nano):
    with pytest.raises(TypeError, match="model='nano'"):
        slim.quantize_float("nano", "fp16")
    with pytest.raises(ValueError, match="scale='layer': expected one of"):
        slim.quantize_float(two_channels(), "fp16", scale="layer")
    with pytest.raises(ValueError, match="format='int8'"):
        slim.quantize_float(two_channels(), "fp16", activations="int8")
    with pytest.raises(ValueError, match="saturate=False: e2m1 has neither"):
        slim.quantize_float(two_channels(), "e2m1", saturate=False)
    with pytest.raises(ValueError, match="no Conv2d or Linear"):
        slim.quantize_float(nn.Sequential(nn.ReLU()), "fp16")
    with pytest.raises(TypeError, match="torch.float64"):
        round_to_format(torch.ones(1).double(), "fp16")
    with pytest.raises(TypeError, match="list"):
        round_to_format([1.0], "fp16")
    with pytest.raises(ValueError, match="bf16|e8m7|16"):
        float_format("e8m8").values()


@pytest.mark.parametrize("bad", [NAN, INFINITY])
def test_weights_that_are_no_numbers_are_refused(bad):
    model = two_channels()
    model[0].weight.data[1, 2] = bad
    with pytest.raises(ValueError, match=r"not finite \(NaN or infinity\), in 0\.weight"):
        slim.quantize_float(model, "fp16")


def test_quantizing_twice_is_refused_but_not_after_training(nano):
    for options in ({}, {"scale": "channel"}, {"activations": "fp16"}):
        once = slim.quantize_float(nano, "fp8_e4m3", **options)
        with pytest.raises(ValueError, match="quantized already, to e4m3"):
            slim.quantize_float(once, "fp8_e5m2")
    trained = slim.quantize_float(nano, "fp8_e4m3")
    next(slim.weight_layers(trained))[1].weight.data *= 1.01
    assert slim.quantize_float(trained, "fp8_e4m3").float_quantization["format"] == "e4m3"
