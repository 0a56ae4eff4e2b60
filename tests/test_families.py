"""Every operation on all three families in all sizes, as they are built, pruned, and with another activation function.

Weights are random, with BatchNorm measured on the images, so that every layer has something to say. The smallest
networks of YOLOv8 and YOLO11 run with each ``make test``; marked slow are larger ones, and those of YOLO26, whose
classifiers are YOLO11's layer by layer.
"""

from pathlib import Path

import pytest
import torch
from ultralytics.nn.tasks import ClassificationModel

import yolo_slim_lessons as slim
from yolo_slim_lessons.data import ImageData, Split
from yolo_slim_lessons.deployment.litert_session import litert_interpreter, run_litert
from yolo_slim_lessons.models import copy_model, logits, new_model, weight_layers
from yolo_slim_lessons.quantization import (
    QuantizedLayer,
    integer_outputs,
    run_integer,
    signal_to_noise,
    simulated_outputs,
)
from yolo_slim_lessons.quantization.floats import quantize_float

FAMILIES = ("yolov8", "yolo11", "yolo26")
SIZES = ("n", "s", "m", "l", "x")
ALL = [
    pytest.param(f"{family}{size}-cls", marks=[] if size == "n" and family != "yolo26" else pytest.mark.slow)
    for family in FAMILIES
    for size in SIZES
]
SIZE = 64
YOLO11 = Path(__file__).with_name("files") / "yolo11n.pt"  # trained on Fashion-MNIST


@pytest.fixture(scope="module")
def images():
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (12, 3, SIZE // 8, SIZE // 8), dtype=torch.uint8, generator=random)
    return Split(pixels.repeat_interleave(8, 2).repeat_interleave(8, 3), torch.arange(12) % 4)


@pytest.fixture(scope="module", params=["as built", "pruned, ReLU"])
def kind(request):
    return request.param


@pytest.fixture(scope="module", params=ALL)
def model(request, images, kind):
    model = new_model(f"{request.param}.yaml", ("a", "b", "c", "d"), SIZE)
    if kind != "as built":
        model = slim.prune_channels(slim.replace_activations(model, "relu"), 0.5)
    return slim.reestimate_batchnorm(model, images)


@pytest.fixture(scope="module")
def w8a8(model, images):
    return slim.quantize_integer(model, 8, 8, images, weight_ranges="minmax")


def floats(images):
    return images.images.float() / 255


@torch.no_grad()
def answers(model, images):
    return logits(model, floats(images))


def in_onnx(model, images, path, **options):
    return slim.run_onnx(slim.onnx_session(slim.export_onnx(model, path, **options), threads=1), floats(images))


def equal_models(first, second):
    mine, theirs = first.state_dict(), second.state_dict()
    return mine.keys() == theirs.keys() and all(tensor.equal(theirs[name]) for name, tensor in mine.items())


@pytest.mark.parametrize("size", SIZES)
def test_the_classifiers_of_yolo26_are_those_of_yolo11(size):
    yolo11, yolo26 = (new_model(f"{family}{size}-cls.yaml", ("a", "b"), SIZE) for family in ("yolo11", "yolo26"))
    assert repr(yolo11.model) == repr(yolo26.model)
    assert equal_models(yolo11, yolo26)  # drawn by the same seed


def test_integers_equal_the_simulation_on_every_layer(w8a8, images):
    integers = integer_outputs(w8a8, floats(images)[:4])
    simulated = simulated_outputs(w8a8, floats(images)[:4], torch.float64)
    assert set(integers) == {name for name, _ in weight_layers(w8a8)}
    for name, output in integers.items():
        assert torch.equal(output.double(), simulated[name].double()), name
    assert run_integer(w8a8, floats(images)[:4]).isfinite().all()


def test_eight_bits_answer_nearly_as_floats_do(model, w8a8, images):
    assert signal_to_noise(answers(model, images), answers(w8a8, images)) > 8  # random weights pass errors on


def test_files_for_onnx_runtime_answer_as_their_models_do(model, w8a8, images, tmp_path):
    expected = answers(model, images)
    torch.testing.assert_close(in_onnx(model, images, tmp_path / "a.onnx"), expected, rtol=1e-3, atol=1e-4)
    assert (
        signal_to_noise(expected, in_onnx(model, images, tmp_path / "a.onnx", precision="fp16")) > 25
    )  # 33 dB and more, measured: random weights pass errors on
    assert (
        signal_to_noise(answers(w8a8, images), in_onnx(w8a8, images, tmp_path / "a.onnx")) > 8
    )  # 11.5 dB and more, measured
    w4 = slim.quantize_integer(model, 4, weight_ranges="minmax")
    torch.testing.assert_close(in_onnx(w4, images, tmp_path / "a.onnx"), answers(w4, images), rtol=1e-3, atol=1e-4)


def in_litert(model, images, path, **options):
    file = slim.export_litert(model, path, **options)
    return run_litert(litert_interpreter(file, 1, len(images)), floats(images))


def test_files_for_litert_answer_as_their_models_do(model, w8a8, images, tmp_path):
    expected = answers(model, images)
    torch.testing.assert_close(in_litert(model, images, tmp_path / "a.tflite"), expected, rtol=1e-3, atol=1e-4)
    assert signal_to_noise(answers(w8a8, images), in_litert(w8a8, images, tmp_path / "a.tflite")) > 8
    w4 = slim.quantize_integer(model, 4, weight_ranges="minmax")
    torch.testing.assert_close(in_litert(w4, images, tmp_path / "a.tflite"), answers(w4, images), rtol=1e-3, atol=1e-4)


def test_packed_files_come_back_to_the_bit(model, w8a8, images, tmp_path):
    for each in (model, w8a8, quantize_float(model, "fp8_e4m3")):
        loaded = slim.load_packed(slim.save_packed(each, tmp_path / "model.slim"))
        assert equal_models(loaded, each)
        assert torch.equal(answers(loaded, images), answers(each, images))


def test_checkpoints_open_without_this_package(model, images, tmp_path):
    loaded = slim.load_model(slim.save_model(model, tmp_path / "model.pt"))
    assert type(loaded) is ClassificationModel
    assert torch.equal(answers(loaded, images), answers(model, images))


def test_repairs_work_on_every_layer(model, images):
    rounded = slim.quantize_integer(model, 4, 8, images, weight_ranges="minmax")
    corrected = slim.correct_biases(rounded, model, images)
    learned = slim.learn_rounding(rounded, model, images, steps=2, batch_size=4, progress=False)
    exact = answers(model, images)
    assert signal_to_noise(exact, answers(corrected, images)) > signal_to_noise(exact, answers(rounded, images)) - 3
    for (_, before), (name, after) in zip(weight_layers(rounded), weight_layers(learned), strict=True):
        assert isinstance(after, QuantizedLayer), name
        assert (after.integers.int() - before.integers).abs().max() <= 1, name
    for repaired in (corrected, learned):
        assert run_integer(repaired, floats(images)[:2]).isfinite().all()


def test_training_while_rounded_ends_in_integers(model, images):
    data = ImageData(images, images, images, ("a", "b", "c", "d"), SIZE)
    options = {"quantize_options": {"weight_ranges": "minmax"}, "calibration": images, "progress": False}
    before = copy_model(model)
    trained = slim.train_quantized(model, data, 4, 8, epochs=1, batch_size=6, augment=False, **options)
    assert equal_models(before, model)
    integers = integer_outputs(trained, floats(images)[:2])
    simulated = simulated_outputs(trained, floats(images)[:2], torch.float64)
    assert all(torch.equal(output.double(), simulated[name].double()) for name, output in integers.items())


# Models of one's own


def own_model(rows, names=("a", "b", "c")):
    layers = {"nc": len(names), "backbone": rows, "head": [[-1, 1, "Classify", [len(names)]]]}
    model = ClassificationModel(layers, nc=len(names), verbose=False).eval()
    model.names, model.task, model.args = dict(enumerate(names)), "classify", {"task": "classify", "imgsz": SIZE}
    return model


OWN = {
    "another width and a skip": [
        [-1, 1, "Conv", [24, 3, 2]],
        [-1, 1, "Conv", [32, 3, 2]],
        [-1, 1, "C2f", [32, True]],
        [[-1, 1], 1, "Concat", [1]],
        [-1, 1, "Conv", [40, 3, 2]],
    ],
    "attention after one convolution": [[-1, 1, "Conv", [128, 3, 4]], [-1, 1, "C2PSA", [128]]],
    "convolutions of one channel each": [[-1, 1, "Conv", [16, 3, 2]], [-1, 1, "DWConv", [16, 3, 2]]],
    "layers without a block": [[-1, 1, "Conv", [16, 3, 2]], [-1, 1, "Conv", [24, 3, 2]]],
}


@pytest.mark.parametrize("rows", OWN.values(), ids=OWN)
def test_models_of_ones_own_parts_work(rows, images, tmp_path):
    model = own_model(rows)
    if rows is OWN["layers without a block"]:
        plain = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, 2, 1), torch.nn.BatchNorm2d(16), torch.nn.ReLU())
        plain.f, plain.i = model.model[0].f, model.model[0].i
        model.model[0] = plain.eval()
    model = slim.reestimate_batchnorm(model, images)
    pruned = slim.reestimate_batchnorm(slim.prune_channels(model, 0.5, image_size=SIZE), images)
    assert slim.count_parameters(pruned) < slim.count_parameters(model)
    for each in (model, pruned):
        quantized = slim.quantize_integer(each, 8, 8, images)
        assert signal_to_noise(answers(each, images), answers(quantized, images)) > 12
        integers = integer_outputs(quantized, floats(images)[:2])
        simulated = simulated_outputs(quantized, floats(images)[:2], torch.float64)
        assert all(torch.equal(output.double(), simulated[name].double()) for name, output in integers.items())
        expected = answers(each, images)
        torch.testing.assert_close(in_onnx(each, images, tmp_path / "a.onnx"), expected, rtol=1e-3, atol=1e-4)
        assert signal_to_noise(answers(quantized, images), in_onnx(quantized, images, tmp_path / "a.onnx")) > 20


def test_what_is_not_understood_is_named_with_its_place(images):
    model = own_model([[-1, 1, "Conv", [16, 3, 2]], [-1, 1, "SPPF", [16, 5]]])
    for change in (
        lambda: slim.prune_channels(model, 0.5, image_size=SIZE),
        lambda: slim.quantize_integer(model, 8, 8, images),
    ):
        with pytest.raises(TypeError, match=r"model\.1\.m is a MaxPool2d, which is not understood"):
            change()
    assert slim.quantize_integer(model, 8).model[1].cv1.conv.integers.dtype == torch.int8  # weights need no graph


# Trained weights


def agreement(model, calibration, test, folder):
    """Share of answers of the int8 file that are those of the quantized model, and of the float model."""
    quantized = slim.correct_biases(slim.quantize_integer(model, 8, 8, calibration), model, calibration)
    file = slim.export_onnx(quantized, folder / "int8.onnx")
    assert file.stat().st_size < 0.29 * slim.export_onnx(model, folder / "fp32.onnx").stat().st_size
    in_file = slim.run_onnx(slim.onnx_session(file, threads=1), test).argmax(1)
    answers = [slim.predict(each, test, progress=False).argmax(1) for each in (quantized, model)]
    return [(in_file == theirs).float().mean().item() for theirs in answers]


@pytest.mark.parametrize(
    ("architecture", "weights"),
    [("yolov8n-cls", "nano"), ("yolo11n-cls", YOLO11), pytest.param("yolo26n-cls", YOLO11, marks=pytest.mark.slow)],
)
def test_int8_files_of_trained_networks_answer_as_their_models_do(architecture, weights, data, tmp_path):
    """One trained network stands for YOLO11 and YOLO26, whose classifiers are the same."""
    model = new_model(f"{architecture}.yaml", data.class_names, SIZE)
    model.load_state_dict(slim.load_model(weights).state_dict())
    with_integers, with_floats = agreement(model, data.train.take(256), data.test.take(1000), tmp_path)
    assert with_integers >= 0.99
    assert with_floats >= 0.985
