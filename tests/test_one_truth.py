"""A quantized layer holds integers and a grid, and everything follows from these, or is refused by name."""

import copy

import pytest
import torch

import yolo_slim_lessons as slim
from yolo_slim_lessons.data import as_floats
from yolo_slim_lessons.models import logits, weight_layers
from yolo_slim_lessons.quantization import run_integer
from yolo_slim_lessons.quantization.floats import quantize_float


@pytest.fixture(scope="module")
def narrow(nano):
    return slim.prune_channels(nano, 0.75)


@pytest.fixture(scope="module")
def few(data):
    return data.take(train=64, val=64)


@pytest.fixture(scope="module")
def w8a8(narrow, few):
    return slim.quantize_integer(narrow, 8, 8, few.train)


@pytest.fixture(scope="module")
def w4(narrow):
    return slim.quantize_integer(narrow, 4)


def test_weights_follow_from_the_integers(w4):
    changed = copy.deepcopy(w4)
    layer = changed.model[1].conv
    layer.integers[0] = 3
    expected = 3 * layer.weight_grid.scale[0]
    assert torch.equal(layer.weight[0], expected.expand_as(layer.weight[0]))
    assert not torch.equal(layer.weight, w4.model[1].conv.weight)
    with pytest.raises(AttributeError):
        layer.weight = torch.zeros_like(layer.weight)


@pytest.mark.parametrize("name", ["w8a8", "w4"])
def test_pruned_quantized_models_agree_with_their_files(name, few, request, tmp_path):
    model = request.getfixturevalue(name)
    pruned = slim.prune_weights(model, 0.9)
    for layer_name, layer in weight_layers(pruned):
        assert (layer.integers == 0).float().mean() >= 0.895, layer_name
    images = as_floats(few.val.images)
    with torch.no_grad():
        expected = logits(pruned, images)
        loaded = logits(slim.load_packed(slim.save_packed(pruned, tmp_path / "a.slim")), images)
        assert not torch.equal(expected, logits(model, images))
    assert torch.equal(loaded, expected)
    in_onnx = slim.run_onnx(slim.onnx_session(slim.export_onnx(pruned, tmp_path / "a.onnx"), threads=1), images)
    assert (in_onnx.argmax(1) == expected.argmax(1)).float().mean() > 0.9
    if name == "w8a8":
        assert (run_integer(pruned, images).argmax(1) == expected.argmax(1)).float().mean() > 0.9


@pytest.mark.parametrize("name", ["w8a8", "w4"])
def test_numbers_that_are_loaded_count_everywhere(name, narrow, few, request):
    model = copy.deepcopy(request.getfixturevalue(name))
    other = slim.quantize_integer(slim.prune_weights(narrow, 0.5), 8 if name == "w8a8" else 4, *_extra(name, few))
    model.load_state_dict(other.state_dict())
    images = as_floats(few.val.images)
    with torch.no_grad():
        assert torch.equal(logits(model, images), logits(other, images))
    for (_, mine), (_, theirs) in zip(weight_layers(model), weight_layers(other), strict=True):
        assert torch.equal(mine.weight, theirs.weight)


def _extra(name, few):
    return (8, few.train) if name == "w8a8" else ()


@pytest.mark.parametrize("name", ["w8a8", "w4"])
@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda model, few, path: slim.fit(model, few, 1, progress=False), "quantized.*train_quantized"),
        (
            lambda model, few, path: slim.distill(model, slim.load_model("nano"), few, epochs=1, progress=False),
            "quantized.*train_quantized",
        ),
        (lambda model, few, path: slim.prune_channels(model, 0.5), "quantized: prune the float model"),
        (lambda model, few, path: slim.remove_bottlenecks(model, {"model.2": 0}), "quantized: remove bottlenecks"),
        (lambda model, few, path: slim.quantize_integer(model, 4), "quantized already"),
        (lambda model, few, path: quantize_float(model, "fp16"), "quantized already"),
        (lambda model, few, path: slim.reestimate_batchnorm(model, few.train), "no BatchNorm"),
        (lambda model, few, path: slim.save_model(model, path / "model.pt"), "quantized"),
    ],
)
def test_what_cannot_be_done_with_integers_is_refused_by_name(act, words, name, few, tmp_path, request):
    model = request.getfixturevalue(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises((ValueError, TypeError), match=words):
        act(model, few, tmp_path)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not list(tmp_path.iterdir())


def test_a_quantized_teacher_teaches(w8a8, narrow, few):
    assert slim.distill(narrow, w8a8, few, epochs=1, batch_size=32, progress=False) is not narrow


def test_ordinary_layers_again_can_be_trained(w4, few):
    plain = slim.dequantize(w4)
    trained = slim.fit(plain, few, 1, batch_size=32, progress=False)
    zeros = plain.model[5].conv.weight == 0
    assert zeros.any()
    assert (trained.model[5].conv.weight[zeros] != 0).float().mean() > 0.9  # rounded to zero is not pruned


@pytest.mark.parametrize("bits", [4, 8])
def test_counts_are_those_of_the_float_model(narrow, few, bits):
    quantized = slim.quantize_integer(narrow, bits, 8, few.train)
    weights = sum(layer.weight.numel() for _, layer in weight_layers(narrow))
    assert slim.count_parameters(quantized) == weights + sum(len(layer.bias) for _, layer in weight_layers(quantized))
    assert slim.count_macs(quantized) == slim.count_macs(narrow)
