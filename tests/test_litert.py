"""deployment.litert_…: LiteRT must answer as PyTorch does, in floats and in integers, and so must tflite-micro."""

import builtins
import importlib.util
import json
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from ultralytics import YOLO

import yolo_slim_lessons as slim
from yolo_slim_lessons.deployment import litert_export, litert_file
from yolo_slim_lessons.deployment.exporting import grid_in_front_of
from yolo_slim_lessons.deployment.litert_file import nibbles, schema
from yolo_slim_lessons.deployment.litert_session import litert_interpreter, run_litert
from yolo_slim_lessons.models import copy_model, logits, new_model
from yolo_slim_lessons.quantization import IntegerGrid, QuantizedActivation, signal_to_noise

YOLO11 = Path(__file__).with_name("files") / "yolo11n.pt"  # trained on Fashion-MNIST
MICRO = pytest.mark.skipif(importlib.util.find_spec("tflite_micro") is None, reason="needs the package tflite-micro")


@pytest.fixture(scope="module")
def calibration(data):
    return data.train.take(128)


@pytest.fixture(scope="module")
def tiny(nano, calibration):
    """So small that it is quantized in no time."""
    return slim.reestimate_batchnorm(slim.prune_channels(nano, 0.8), calibration)


@pytest.fixture(scope="module")
def integer_nano(nano, calibration):
    return slim.correct_biases(slim.quantize_integer(nano, 8, 8, calibration), nano, calibration)


@pytest.fixture(scope="module")
def yolo11(data):
    model = new_model("yolo11n-cls.yaml", data.class_names, 64)
    model.load_state_dict(slim.load_model(YOLO11).state_dict())
    return model


def answers(model, images):
    """Logits of PyTorch."""
    with torch.inference_mode():
        return torch.cat([logits(model, batch) for batch, _ in images.batches(64)])


def in_litert(model, tmp_path, images, **options):
    path = slim.export_litert(model, tmp_path / "model.tflite", **options)
    return run_litert(litert_interpreter(path, threads=1, batch_size=32), images)


def equal(first, second) -> float:
    return (first.argmax(1) == second.argmax(1)).double().mean().item()


def in_micro(file, images):
    """Answers of tflite-micro, which computes one image after the other."""
    from tflite_micro.python.tflite_micro import runtime

    interpreter, found = runtime.Interpreter.from_file(str(file), arena_size=2**24), []
    for batch, _ in images.batches(1):
        interpreter.set_input(np.ascontiguousarray(batch.permute(0, 2, 3, 1).numpy()), 0)
        interpreter.invoke()
        found.append(torch.from_numpy(interpreter.get_output(0).copy()))
    return torch.cat(found)


def computed_by_xnnpack(file) -> list[list[str]]:
    """Names of the tensors that each part of the graph ends with that XNNPACK has taken over."""
    interpreter = litert_interpreter(file, 1)
    names = {each["index"]: each["name"] for each in interpreter.get_tensor_details()}
    parts = [each for each in interpreter._get_ops_details() if each["op_name"] == "DELEGATE"]
    return [[names[index] for index in part["outputs"]] for part in parts]


def model_of(file):
    """The file as objects of the schema."""
    return schema().ModelT.InitFromPackedBuf(Path(file).read_bytes())


def integers_of(file) -> dict[str, tuple]:
    """Name → numbers, scales and zero points of every tensor of the file that has numbers of its own."""
    model, found = model_of(file), {}
    types = {value: name.lower() for name, value in vars(schema().TensorType).items() if isinstance(value, int)}
    for tensor in model.subgraphs[0].tensors:
        data = model.buffers[tensor.buffer].data
        if data is not None and types[tensor.type] != "int4":
            numbers = np.asarray(data, np.uint8).view(types[tensor.type]).reshape(tensor.shape)
            grid = tensor.quantization
            found[tensor.name.decode()] = (numbers, grid and grid.scale, grid and grid.zeroPoint)
    return found


# Floats


@pytest.mark.parametrize("make", [lambda m: m, lambda m: slim.prune_channels(m, 0.3), slim.replace_activations])
def test_floats_answer_as_pytorch(nano, data, tmp_path, make):
    model, images = make(nano), data.test.take(100)
    ours = answers(model, images)
    assert torch.allclose(in_litert(model, tmp_path, images).softmax(1), ours.softmax(1), atol=1e-4)
    half = in_litert(model, tmp_path, images, precision="fp16")
    assert 1e-6 < (half.softmax(1) - ours.softmax(1)).abs().max() < 0.01  # it did compute with fewer bits


def test_fp16_halves_the_file(nano, tmp_path):
    whole = slim.export_litert(nano, tmp_path / "whole.tflite").stat().st_size
    assert slim.export_litert(nano, tmp_path / "half.tflite", precision="fp16").stat().st_size < 0.52 * whole


def test_attention_answers_as_pytorch(yolo11, data, tmp_path):
    images = data.test.take(50)
    assert torch.allclose(in_litert(yolo11, tmp_path, images), answers(yolo11, images), atol=1e-3)


def test_images_come_with_channels_last_and_in_any_number(tiny, data, tmp_path):
    interpreter = litert_interpreter(slim.export_litert(tiny, tmp_path / "model.tflite"), 1)
    entry, answer = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    assert (entry["name"], answer["name"]) == ("images", "logits")
    assert entry["shape"].tolist() == [1, 64, 64, 3]
    assert entry["shape_signature"].tolist() == [-1, 64, 64, 3]
    assert interpreter.get_signature_list() == {"serving_default": {"inputs": ["images"], "outputs": ["logits"]}}
    images = data.test.take(5)
    one_by_one = run_litert(interpreter, images)
    assert one_by_one.shape == (5, 10)
    assert torch.equal(run_litert(interpreter, images.images.numpy()), one_by_one)
    assert torch.equal(run_litert(interpreter, images.images.float() / 255), one_by_one)
    for batch_size in (2, 8):
        together = run_litert(litert_interpreter(tmp_path / "model.tflite", 1, batch_size), images)
        assert torch.allclose(one_by_one, together, atol=1e-4)


def test_another_image_size(tiny, tmp_path):
    path = slim.export_litert(tiny, tmp_path / "model.tflite", image_size=96)  # strides meet odd sizes on the way
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = logits(tiny, images)
    assert torch.allclose(run_litert(litert_interpreter(path, 1), images), expected, atol=1e-3)


@pytest.mark.parametrize("size", [63, 65, 70])
def test_padding_is_that_of_pytorch_at_odd_sizes(tiny, tmp_path, size):
    images = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = logits(tiny, images)
    path = slim.export_litert(tiny, tmp_path / "model.tflite", image_size=size)
    assert torch.allclose(run_litert(litert_interpreter(path, 1), images), expected, atol=1e-3)


# Integers


def test_nano_in_integers_answers_as_the_quantized_model(integer_nano, data, tmp_path):
    images = data.test.take(1000)
    ours, theirs = answers(integer_nano, images), in_litert(integer_nano, tmp_path, images)
    assert equal(ours, theirs) >= 0.99  # 0.995 of all images: see below
    assert signal_to_noise(ours, theirs) > 18
    onnx = slim.export_onnx(integer_nano, tmp_path / "model.onnx")
    assert (tmp_path / "model.tflite").stat().st_size <= onnx.stat().st_size


def test_attention_in_integers_answers_as_the_quantized_model(yolo11, calibration, data, tmp_path):
    images, model = data.test.take(300), slim.quantize_integer(yolo11, 8, 8, calibration)
    ours, theirs = answers(model, images), in_litert(model, tmp_path, images)
    assert equal(ours, theirs) >= 0.99
    assert signal_to_noise(ours, theirs) > 25
    onnx = slim.export_onnx(model, tmp_path / "model.onnx")
    assert (tmp_path / "model.tflite").stat().st_size <= onnx.stat().st_size


@pytest.mark.parametrize("kind", ["integers", "attention", "floats", "weights of 8 bits"])
def test_xnnpack_computes_all_in_one_go(kind, integer_nano, yolo11, nano, calibration, tmp_path):
    model = {
        "integers": lambda: integer_nano,
        "attention": lambda: slim.quantize_integer(yolo11, 8, 8, calibration[:8]),
        "floats": lambda: yolo11,
        "weights of 8 bits": lambda: slim.quantize_integer(nano, 8),
    }[kind]()
    path = slim.export_litert(model, tmp_path / "model.tflite")
    last = {"integers": "model.9.linear.input", "attention": "model.10.linear.input"}.get(kind, "logits")
    assert computed_by_xnnpack(path) == [[last]]  # the last layer multiplies 16 by 8 bits, which XNNPACK does not


def test_the_file_holds_the_models_integers(integer_nano, tmp_path):
    numbers = integers_of(slim.export_litert(integer_nano, tmp_path / "model.tflite"))
    layers = list(slim.weight_layers(integer_nano))
    for name, layer in layers[1:]:
        weight, scale, zero_point = numbers[f"{name}.weight"]
        expected = layer.integers.clamp(min=-127)  # -128 is not for LiteRT's kernels
        expected = expected[:, :, None, None] if expected.dim() == 2 else expected
        assert weight.dtype == np.int8
        assert np.array_equal(weight, expected.permute(0, 2, 3, 1).numpy()), name
        assert np.array_equal(scale, layer.weight_grid.scale.numpy())
        assert not zero_point.any()
        bias, scale, _ = numbers[f"{name}.bias"]
        assert bias.dtype == (np.int64 if layer is layers[-1][1] else np.int32)
        assert np.array_equal(bias, layer.bias_integers.numpy())
        assert np.allclose(scale, layer.accumulator_scale.numpy(), rtol=1e-6)


def test_activations_lie_on_the_models_grids(integer_nano, tmp_path):
    tensors = model_of(slim.export_litert(integer_nano, tmp_path / "model.tflite")).subgraphs[0].tensors
    grids = {tensor.name.decode(): tensor.quantization for tensor in tensors}
    for name in ("model.1.act", "model.4.m.1.cv2.act", "model.8.cv2.act"):
        grid = integer_nano.get_submodule(name).output_grid
        assert grids[name].scale.tolist() == [grid.scale.item()]
        assert grids[name].zeroPoint.tolist() == [grid.zero_point.item() - 128]


def test_numbers_begin_where_processors_can_load_them(integer_nano, tmp_path):
    content = slim.export_litert(integer_nano, tmp_path / "model.tflite").read_bytes()
    model = schema().Model.GetRootAs(content)
    for number in range(model.BuffersLength()):
        vector = model.Buffers(number)._tab
        field = vector.Offset(4)
        if field:
            assert vector.Vector(field) % 16 == 0


def test_what_is_cut_off_in_front_of_silu_becomes_zero():
    """As in the model: if it became -1, nearly all numbers of a channel would be one level off, and so its average."""
    step = torch.tensor(0.25)
    fixed_point = IntegerGrid(16, torch.tensor(2.0**-9), torch.tensor(0, dtype=torch.int32))
    act = QuantizedActivation(nn.SiLU(), fixed_point, IntegerGrid(8, step, torch.tensor(2, dtype=torch.int32), False))
    lowest, _ = grid_in_front_of(act).range
    assert act.output_grid.quantize(nn.functional.silu(lowest)) == act.output_grid.zero_point


def test_bits_quantizes_on_the_way(tiny, data, tmp_path):
    some = data.train.take(16)
    first = slim.correct_biases(slim.quantize_integer(tiny, 8, 8, some), tiny, some)
    second = slim.export_litert(tiny, tmp_path / "second.tflite", bits=8, calibration=some)
    assert slim.export_litert(first, tmp_path / "first.tflite").read_bytes() == second.read_bytes()


@pytest.mark.parametrize(("activation", "bits"), [("silu", 8), ("relu", 8), ("hardswish", 8), ("silu", 7), ("relu", 6)])
def test_each_function_and_fewer_bits(tiny, data, tmp_path, activation, bits):
    model = slim.quantize_integer(slim.replace_activations(tiny, activation), 8, bits, data.train.take(64))
    images = data.test.take(64)
    assert signal_to_noise(answers(model, images), in_litert(model, tmp_path, images)) > 7  # few weights, many errors


def test_layers_left_in_float_compute_so(tiny, data, tmp_path):
    names = [name for name, _ in slim.weight_layers(tiny)]
    kept = ("model.0.conv", "model.4.cv2.conv", "model.9.linear")
    model = slim.quantize_integer(tiny, {name: 8 for name in names if name not in kept}, 8, data.train.take(64))
    images = data.test.take(64)
    assert signal_to_noise(answers(model, images), in_litert(model, tmp_path, images)) > 9
    numbers = integers_of(tmp_path / "model.tflite")
    assert {name for name in names if numbers[f"{name}.weight"][0].dtype == np.float32} == set(kept)


# Weights alone


@pytest.mark.parametrize(
    ("bits", "options"), [(2, {}), (4, {}), (4, {"symmetric": False}), (8, {"granularity": "tensor"}), (8, {})]
)
def test_integer_weights_make_the_same_floats(tiny, data, tmp_path, bits, options):
    model, images = slim.quantize_integer(tiny, bits, **options), data.test.take(64)
    expected = answers(model, images)
    assert torch.allclose(in_litert(model, tmp_path, images).softmax(1), expected.softmax(1), atol=1e-4)


def test_four_bits_on_the_way(nano, data, tmp_path):
    model, images = slim.quantize_integer(nano, 4), data.test.take(50)
    path = slim.export_litert(nano, tmp_path / "four.tflite", bits=4)
    assert path.read_bytes() == slim.export_litert(model, tmp_path / "first.tflite").read_bytes()
    assert equal(run_litert(litert_interpreter(path, 1), images), answers(model, images)) == 1
    assert path.stat().st_size < 0.14 * slim.export_litert(nano, tmp_path / "whole.tflite").stat().st_size


@pytest.mark.parametrize("numbers", [list(range(-8, 8)), [7, -8, 3]])
def test_two_numbers_of_four_bits_share_a_byte(numbers):
    packed = nibbles(np.array(numbers, np.int8))
    assert len(packed) == (len(numbers) + 1) // 2
    halves = [half for byte in packed for half in (byte & 15, byte >> 4)]
    assert [half - 16 * (half > 7) for half in halves][: len(numbers)] == numbers


# Other programs


def test_the_file_says_what_it_is(tiny, data, tmp_path):
    with zipfile.ZipFile(slim.export_litert(tiny, tmp_path / "model.tflite")) as archive:
        said = json.loads(archive.read("metadata.json"))
    assert said["class_names"] == list(data.class_names)
    assert (said["image_size"], said["channels"], said["task"]) == (64, 3, "classify")


def test_ultralytics_predicts_with_the_file(nano, data, tmp_path):
    path = slim.export_litert(nano, tmp_path / "model.tflite", probabilities=True)
    picture = data.test.images[0].permute(1, 2, 0).numpy()
    [result] = YOLO(path, task="classify").predict(picture[..., ::-1], verbose=False)  # OpenCV's order of colours
    assert result.names == nano.names
    expected = answers(nano, data.test[:1]).softmax(1)[0]
    assert torch.allclose(result.probs.data, expected, atol=0.01)


@MICRO
def test_tflite_micro_answers_alike(integer_nano, data, tmp_path):
    path, images = slim.export_litert(integer_nano, tmp_path / "model.tflite"), data.test.take(50)
    theirs = in_micro(path, images)
    assert equal(theirs, run_litert(litert_interpreter(path, 1), images)) >= 0.98
    assert signal_to_noise(answers(integer_nano, images), theirs) > 18


@MICRO
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["attention", "ReLU", "floats"])
def test_tflite_micro_answers_alike_whatever_the_network(kind, nano, yolo11, calibration, data, tmp_path):
    model = {
        "attention": lambda: slim.quantize_integer(yolo11, 8, 8, calibration),
        "ReLU": lambda: slim.quantize_integer(slim.replace_activations(nano), 8, 8, calibration),
        "floats": lambda: yolo11,
    }[kind]()
    path, images = slim.export_litert(model, tmp_path / "model.tflite"), data.test.take(200)
    assert signal_to_noise(answers(model, images), in_micro(path, images)) > 18


@pytest.mark.slow
def test_all_test_images_of_fashion_mnist(nano, data, tmp_path):
    some = data.train.take(512)
    model = slim.correct_biases(slim.quantize_integer(nano, 8, 8, some), nano, some)
    assert equal(answers(model, data.test), in_litert(model, tmp_path, data.test)) >= 0.995


@pytest.mark.slow
@pytest.mark.skipif("YOLO_SLIM_PHOTOGRAPHS" not in os.environ, reason="needs the photographs beside the project")
@pytest.mark.parametrize("checkpoint", ["yolov8n-cls-fruit.pt", "yolo11n-cls-vehicles.pt"])
def test_photographs(checkpoint, tmp_path):
    """Of flowers a network for fruit or vehicles is never sure, and small errors change answers that nobody needs."""
    folder = Path(os.environ["YOLO_SLIM_PHOTOGRAPHS"])
    flowers = slim.load_images(folder / "flowers", image_size=224)
    some, model = flowers.train.take(256), slim.load_model(folder / checkpoint)
    images = torch.cat([batch for batch, _ in flowers.test.batches(64)])  # other classes: they have no labels here
    model = slim.correct_biases(slim.quantize_integer(model, 8, 8, some), model, some)
    theirs = in_litert(model, tmp_path, images, image_size=224)
    with torch.inference_mode():
        ours = torch.cat([logits(model, batch) for batch in images.split(64)])
    onnx = slim.export_onnx(model, tmp_path / "model.onnx", image_size=224)
    assert signal_to_noise(ours, theirs) > 24  # 27 and 31 dB, measured
    assert equal(ours, theirs) > 0.9
    assert equal(ours, slim.run_onnx(slim.onnx_session(onnx, threads=1), images)) > 0.9
    assert (tmp_path / "model.tflite").stat().st_size <= onnx.stat().st_size


# What must not happen


def test_exporting_leaves_the_model_alone(tiny, integer_nano, data, tmp_path):
    for model, options in (
        (tiny, {}),
        (tiny, {"precision": "fp16", "probabilities": True}),
        (tiny, {"bits": 8, "calibration": data.train.take(8)}),
        (integer_nano, {}),
    ):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        slim.export_litert(model, tmp_path / "model.tflite", **options)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_file_that_answers_otherwise_is_not_written(tiny, tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"old")
    monkeypatch.setattr(litert_export, "logits", lambda model, images: logits(model, images).roll(1, 1))
    with pytest.raises(RuntimeError, match=r"does not answer as the model: .* dB.*Nothing was written"):
        slim.export_litert(tiny, path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["model.tflite"]


def test_what_litert_cannot_compute_is_named(tiny, data, tmp_path):
    some = data.train.take(8)
    for bits, activation_bits, options, complaint in (
        (8, 16, {}, "model.0.act puts out 16 bits: LiteRT convolves"),
        (9, 8, {}, "model.0.conv has weights of 9 bits"),
        (8, 8, {"symmetric": False}, "zero point.*symmetric=True"),
        (12, None, {}, r"model.0.conv has weights of 12 bits.*bits=8, or export slim.dequantize\(model\)"),
    ):
        ranges = {"ranges": "minmax", "weight_ranges": "minmax"}
        model = slim.quantize_integer(
            tiny, bits, activation_bits, some if activation_bits else None, **ranges | options
        )
        with pytest.raises(ValueError, match=complaint):
            slim.export_litert(model, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("export", [slim.export_litert, slim.export_onnx])
def test_an_activation_function_that_nobody_knows_is_not_taken_for_another(tiny, tmp_path, export):
    model = copy_model(tiny)
    model.model[3].act = nn.GELU()
    with pytest.raises(ValueError, match=r"model\.3\.act is a GELU: expected ReLU, SiLU or Hardswish"):
        export(model, tmp_path / f"model.{'onnx' if export is slim.export_onnx else 'tflite'}")


def test_bad_arguments_are_named(nano, integer_nano, data, tmp_path):
    path, some = tmp_path / "model.tflite", data.train.take(8)
    with pytest.raises(TypeError, match="model is a Linear"):
        slim.export_litert(nn.Linear(1, 1), path)
    for model, options, complaint in (
        (nano, {"precision": "fp8"}, "precision='fp8'"),
        (integer_nano, {"precision": "fp16"}, "precision='fp16'.*integers"),
        (nano, {"bits": 16, "calibration": some}, "bits=16: expected"),
        (nano, {"bits": 8}, "bits=8 needs calibration"),
        (nano, {"calibration": some}, "calibration is not used with bits=None"),
        (integer_nano, {"bits": 8, "calibration": some}, "quantized already"),
    ):
        with pytest.raises(ValueError, match=complaint):
            slim.export_litert(model, path, **options)
    with pytest.raises(ValueError, match=r"model\.onnx.*\.tflite"):
        slim.export_litert(nano, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_bad_files_and_images_are_named(tiny, data, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.tflite.*export_litert writes one"):
        litert_interpreter(tmp_path / "missing.tflite")
    (tmp_path / "broken.tflite").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"broken\.tflite.*write it again"):
        litert_interpreter(tmp_path / "broken.tflite")
    path = slim.export_litert(tiny, tmp_path / "model.tflite")
    with pytest.raises(ValueError, match="threads=0"):
        litert_interpreter(path, threads=0)
    with pytest.raises(ValueError, match="batch_size=0"):
        litert_interpreter(path, batch_size=0)
    interpreter = litert_interpreter(path, 1)
    with pytest.raises(ValueError, match=r"images has shape \(3, 64, 64\)"):
        run_litert(interpreter, data.test.images[0])
    with pytest.raises(ValueError, match=r"images have \(32, 32\) pixels: the file reads \(64, 64\)"):
        run_litert(interpreter, torch.zeros(1, 3, 32, 32))


def test_without_the_package_the_extra_is_named(tiny, tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *arguments, **keywords):
        if name.startswith("ai_edge_litert"):
            raise ModuleNotFoundError("No module named 'ai_edge_litert'")
        return real(name, *arguments, **keywords)

    litert_file.schema.cache_clear()
    monkeypatch.setattr(builtins, "__import__", missing)
    for name in [name for name in sys.modules if name.startswith("ai_edge_litert")]:
        monkeypatch.delitem(sys.modules, name)
    for act in (lambda: slim.export_litert(tiny, tmp_path / "model.tflite"), lambda: litert_interpreter(b"")):
        with pytest.raises(ImportError, match=r"needs ai-edge-litert.*pip install 'yolo-slim-lessons\[deploy\]'"):
            act()
    assert not list(tmp_path.iterdir())
