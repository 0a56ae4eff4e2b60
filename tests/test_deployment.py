"""deployment: ONNX Runtime must answer as PyTorch does, in floats and in integers, with Python or without."""

import collections
import functools
import json
import runpy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from ultralytics import YOLO

import yolo_slim_lessons as slim
from yolo_slim_lessons.deployment import export_onnx, onnx_session, run_onnx
from yolo_slim_lessons.deployment.onnx_tensors import integer_tensor
from yolo_slim_lessons.quantization import IntegerGrid, QuantizedLayer, signal_to_noise

SCRIPT = Path(__file__).parents[1] / "examples" / "predict_without_torch.py"


@pytest.fixture(scope="module")
def test_images(data):
    return data.test.take(2000)


@pytest.fixture(scope="module")
def calibration(data):
    return data.train.take(128)


@pytest.fixture(scope="module")
def integer_nano(nano, calibration):
    return slim.correct_biases(slim.quantize_integer(nano, 8, 8, calibration), nano, calibration)


@pytest.fixture(scope="module")
def simple(nano, calibration):
    """Everything at once that makes a model fast: ReLU, fewer blocks, fewer channels, integers. Nobody trained it."""
    model = slim.remove_bottlenecks(slim.replace_activations(nano), {"model.2": 0, "model.4": 1, "model.6": 1})
    model = slim.prune_channels(model, target_macs=0.4, scope="global", round_to=16, calibration=calibration)
    return slim.quantize_integer(model, 8, 8, calibration)


@pytest.fixture(scope="module")
def tiny(nano):
    """So small that it is quantized in no time."""
    return slim.prune_channels(nano, 0.85)


def answers(model, split):
    """Logits of PyTorch."""
    with torch.inference_mode():
        return torch.cat([slim.models.logits(model, images) for images, _ in split.batches()])


def in_onnx(model, tmp_path, split, **options):
    return run_onnx(onnx_session(export_onnx(model, tmp_path / "model.onnx", **options), threads=1), split)


def equal(first, second) -> float:
    return (first.argmax(1) == second.argmax(1)).double().mean().item()


def fused_operators(path) -> collections.Counter:
    """What ONNX Runtime makes of the graph."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return collections.Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


# Floats


def test_exported_model_answers_as_pytorch(nano, test_images, tmp_path):
    ours = answers(nano, test_images)
    theirs = in_onnx(nano, tmp_path, test_images)
    assert (theirs.softmax(1) - ours.softmax(1)).abs().max() < 1e-4
    assert equal(theirs, ours) == 1


def test_pruned_model_answers_as_pytorch(nano, data, tmp_path):
    model, split = slim.prune_channels(nano, 0.3), data.test.take(200)
    for part in (split, split[:1]):
        theirs = in_onnx(model, tmp_path, part)
        assert torch.allclose(theirs.softmax(1), answers(model, part).softmax(1), atol=1e-4)


def test_batchnorm_is_folded_and_halves_are_split(nano, tmp_path):
    graph = onnx.load(export_onnx(nano, tmp_path / "model.onnx")).graph
    operators = {node.op_type for node in graph.node}
    assert {"Conv", "Gemm", "Split"} <= operators
    assert not {"BatchNormalization", "Slice"} & operators


def test_fp16_halves_the_file(nano, data, tmp_path):
    split = data.test.take(500)
    whole = export_onnx(nano, tmp_path / "whole.onnx").stat().st_size
    half = in_onnx(nano, tmp_path, split, precision="fp16")
    assert (tmp_path / "model.onnx").stat().st_size < 0.52 * whole
    assert half.dtype == torch.float32
    assert equal(half, answers(nano, split)) >= 0.995
    assert (half.softmax(1) - answers(nano, split).softmax(1)).abs().max() > 1e-6  # it did compute with fewer bits


# Integers


def test_nano_in_integers_answers_as_its_simulation(integer_nano, test_images, tmp_path):
    theirs = in_onnx(integer_nano, tmp_path, test_images)
    assert equal(theirs, answers(integer_nano, test_images)) >= 0.995
    operators = fused_operators(tmp_path / "model.onnx")
    assert operators["QLinearConv"] == 25  # all but the first, which computes with floats
    assert operators["Conv"] == operators["QGemm"] == 1
    assert operators["QLinearAdd"] == 6


def test_simple_model_runs_on_integers_from_end_to_end(simple, data, tmp_path):
    split = data.test.take(500)
    theirs, ours = in_onnx(simple, tmp_path, split), answers(simple, split)
    assert signal_to_noise(ours, theirs) > 25
    operators = fused_operators(tmp_path / "model.onnx")
    convolutions = sum(isinstance(layer, torch.nn.Conv2d) for _, layer in slim.weight_layers(simple))
    expected = {"Conv": 1, "QuantizeLinear": 1, "QLinearConv": convolutions - 1, "QLinearAdd": 3, "QGemm": 1}
    expected |= {"Split": 3, "Concat": 3, "QLinearGlobalAveragePool": 1, "DequantizeLinear": 0, "Relu": 0}
    assert {name: operators[name] for name in expected} == expected
    assert operators["Transpose"] <= 2


def test_the_graph_holds_the_models_integers(simple, tmp_path):
    graph = onnx.load(export_onnx(simple, tmp_path / "model.onnx")).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for name, layer in list(slim.weight_layers(simple))[1:]:
        assert constants[f"{name}.weight"].dtype == np.int8
        assert np.array_equal(constants[f"{name}.weight"], layer.integers.numpy())
        assert np.array_equal(constants[f"{name}.bias"], layer.bias_integers.numpy())
        assert np.allclose(constants[f"{name}.bias_scale"], layer.accumulator_scale.numpy(), rtol=1e-6)


def test_bits_quantizes_on_the_way(tiny, data, tmp_path):
    some = data.train.take(16)
    first = slim.correct_biases(slim.quantize_integer(tiny, 8, 8, some), tiny, some)
    second = export_onnx(tiny, tmp_path / "second.onnx", bits=8, calibration=some)
    assert export_onnx(first, tmp_path / "first.onnx").read_bytes() == second.read_bytes()


def test_eight_bits_take_a_quarter_of_the_file(nano, integer_nano, tmp_path):
    whole, small = export_onnx(nano, tmp_path / "whole.onnx"), export_onnx(integer_nano, tmp_path / "small.onnx")
    assert small.stat().st_size < 0.28 * whole.stat().st_size


def test_weights_of_seven_bits_stay_within_64(tiny, data, tmp_path):
    path = export_onnx(tiny, tmp_path / "model.onnx", bits=7, calibration=data.train.take(16))
    weights = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(path).graph.initializer
        if tensor.name.endswith(".weight") and tensor.data_type == onnx.TensorProto.INT8
    ]
    assert len(weights) == 26
    assert 60 < max(np.abs(weight.astype(int)).max() for weight in weights) <= 64


@pytest.mark.parametrize("activation", ["silu", "hardswish"])
def test_other_functions_than_relu(tiny, data, tmp_path, activation):
    model = slim.quantize_integer(slim.replace_activations(tiny, activation), 8, 8, data.train.take(64))
    split = data.test.take(200)
    assert signal_to_noise(answers(model, split), in_onnx(model, tmp_path, split)) > 12


def test_activations_of_fewer_bits_end_where_their_grid_ends(tiny, data, tmp_path):
    model = slim.quantize_integer(slim.replace_activations(tiny), 8, 5, data.train.take(64))
    split = data.test.take(200)
    assert signal_to_noise(answers(model, split), in_onnx(model, tmp_path, split)) > 12
    highest = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer
        if tensor.name.endswith(".act.highest")
    ]
    assert len(highest) == 26
    assert {int(number) for number in highest} == {31}


def test_layers_left_in_float_compute_so(tiny, data, tmp_path):
    names = [name for name, _ in slim.weight_layers(tiny)]
    kept = ("model.0.conv", "model.4.cv2.conv", "model.9.linear")
    bits = {name: 8 for name in names if name not in kept}
    model = slim.quantize_integer(tiny, bits, 8, data.train.take(64))
    split = data.test.take(200)
    assert signal_to_noise(answers(model, split), in_onnx(model, tmp_path, split)) > 12
    operators = fused_operators(tmp_path / "model.onnx")
    assert (operators["Conv"], operators["Gemm"], operators["QLinearConv"]) == (2, 1, 24)


# Weights alone


@pytest.mark.parametrize(
    ("bits", "options"),
    [(2, {}), (4, {}), (4, {"symmetric": False}), (8, {"granularity": "tensor"}), (12, {})],
)
def test_integer_weights_make_the_same_floats(tiny, data, tmp_path, bits, options):
    model, split = slim.quantize_integer(tiny, bits, **options), data.test.take(200)
    assert torch.allclose(in_onnx(model, tmp_path, split).softmax(1), answers(model, split).softmax(1), atol=1e-4)


def test_four_bits_on_the_way(nano, data, tmp_path):
    model, split = slim.quantize_integer(nano, 4), data.test.take(200)
    first = export_onnx(model, tmp_path / "first.onnx")
    second = export_onnx(nano, tmp_path / "second.onnx", bits=4)
    assert first.read_bytes() == second.read_bytes()
    assert equal(run_onnx(onnx_session(second, threads=1), split), answers(model, split)) == 1
    assert second.stat().st_size < 0.14 * export_onnx(nano, tmp_path / "whole.onnx").stat().st_size
    kinds = {tensor.data_type for tensor in onnx.load(second).graph.initializer if tensor.name.endswith(".weight")}
    assert kinds == {onnx.TensorProto.INT4}


@pytest.mark.parametrize("numbers", [list(range(-8, 8)), [7, -8, 3]])
def test_two_numbers_of_four_bits_share_a_byte(numbers):
    integers = torch.tensor(numbers, dtype=torch.int8)
    grid = IntegerGrid(4, torch.tensor(1.0), torch.tensor(0))
    packed = integer_tensor("x", integers, grid)
    assert len(packed.raw_data) == (len(numbers) + 1) // 2
    assert onnx.numpy_helper.to_array(packed).astype(int).tolist() == numbers


# Pictures


@pytest.mark.parametrize("shape", [(28, 28), (64, 64), (120, 160), (161, 120), (65, 64), (40, 57), (64, 300)])
def test_preprocessing_is_that_of_load_images(nano, tmp_path, shape):
    smooth = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    picture = torch.nn.functional.interpolate(smooth, shape, mode="bicubic").clamp(0, 1).mul(255).to(torch.uint8)
    folder = tmp_path / "images" / "train"
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(picture[0].permute(1, 2, 0).numpy()).save(folder / name / f"{number}.png")
    expected = slim.load_images(folder.parent, image_size=64).train.images[0]

    model = onnx.load(export_onnx(nano, tmp_path / "model.onnx", preprocess=True))
    inner = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["batch", 3, 64, 64])
    model.graph.output.append(inner)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pictures = picture.permute(0, 2, 3, 1).repeat(2, 1, 1, 1).numpy()
    probabilities, images = session.run(None, {"pictures": pictures})
    assert images.shape == (2, 3, 64, 64)
    difference = np.abs(images * 255 - expected.numpy())
    assert difference.max() < 1.01  # torchvision's arithmetic and PIL's, which ONNX Runtime repeats, differ by that
    assert (difference > 0.01).mean() < 0.03
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"precision": "fp16"}, {"bits": 4}, {"bits": 8}])
def test_every_kind_of_file_can_read_pictures(tiny, data, tmp_path, options):
    if options.get("bits") == 8:
        options = options | {"calibration": data.train.take(16)}
    split = data.test.take(100)  # of the right size: nothing is resized
    logits = in_onnx(tiny, tmp_path, split, **options)
    probabilities = in_onnx(tiny, tmp_path, split, preprocess=True, **options)
    assert torch.allclose(probabilities, logits.softmax(1), atol=1e-3)


def test_the_script_needs_neither_torch_nor_this_package(nano, data, tmp_path, run_python):
    model = export_onnx(nano, tmp_path / "model.onnx", preprocess=True)
    pixels = data.test.images[0].permute(1, 2, 0).numpy()
    Image.fromarray(pixels).resize((300, 200)).save(tmp_path / "boot.jpg", quality=90)
    said = run_python(
        "import runpy, sys\n"
        "for name in ('torch', 'torchvision', 'ultralytics', 'yolo_slim_lessons'): sys.modules[name] = None\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')",
        SCRIPT,
        model,
        tmp_path / "boot.jpg",
    )
    with Image.open(tmp_path / "boot.jpg") as image:
        picture = torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)[None]
    probabilities = run_onnx(onnx_session(model, threads=1), picture)[0]
    best = int(probabilities.argmax())
    assert said.strip() == f"{nano.names[best]} {probabilities[best]:.1%}"
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) <= 20


def test_the_script_turns_a_photograph_upright(nano, data, tmp_path, monkeypatch, capsys):
    model = export_onnx(nano, tmp_path / "model.onnx", preprocess=True)
    upright = Image.fromarray(data.test.images[1].permute(1, 2, 0).numpy()).resize((200, 200))
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me by 90 degrees", as phones write it
    upright.save(tmp_path / "upright.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    for name in ("upright", "turned"):
        monkeypatch.setattr("sys.argv", ["script", str(model), str(tmp_path / f"{name}.png")])
        runpy.run_path(str(SCRIPT), run_name="__main__")
    first, second = capsys.readouterr().out.splitlines()
    assert first == second


# Sessions


def test_metadata_name_the_classes(nano, data, tmp_path):
    session = onnx_session(export_onnx(nano, tmp_path / "model.onnx"), threads=1)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == list(data.class_names)
    assert metadata["image_size"] == "64"


def test_batches_make_no_difference(nano, data, tmp_path):
    session = onnx_session(export_onnx(nano, tmp_path / "model.onnx"), threads=1, warmup=2, batch_size=3)
    split = data.test.take(10)
    whole = run_onnx(session, split)
    assert whole.shape == (10, 10)
    assert torch.allclose(run_onnx(session, split, batch_size=3), whole, atol=1e-4)
    assert torch.allclose(run_onnx(session, split.images.float() / 255), whole, atol=1e-4)


def test_sessions_are_timed_in_turns(nano, tiny, tmp_path):
    sessions = [
        onnx_session(export_onnx(model, tmp_path / f"{number}.onnx"), threads=1, warmup=1)
        for number, model in enumerate((nano, tiny))
    ]
    compared = slim.compare(
        *(functools.partial(run_onnx, session) for session in sessions), 32, image_size=64, repeats=11, threads=1
    )
    assert compared.ratio < 1


def test_a_session_for_pictures_warms_up(nano, tmp_path):
    onnx_session(export_onnx(nano, tmp_path / "model.onnx", preprocess=True), threads=1, warmup=1, batch_size=2)


# What must not happen


def test_exporting_leaves_the_model_alone(tiny, simple, data, tmp_path):
    for model, options in (
        (tiny, {}),
        (tiny, {"precision": "fp16", "preprocess": True}),
        (tiny, {"bits": 8, "calibration": data.train.take(8)}),
        (simple, {}),
    ):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        export_onnx(model, tmp_path / "model.onnx", **options)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert all(tensor.dtype == before[name].dtype for name, tensor in model.state_dict().items())
        assert "forward" not in model.model[2].__dict__


def test_a_failure_keeps_the_old_file(nano, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")

    def full_disk(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="no space"):
        export_onnx(nano, path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == b"old"


def test_a_part_that_is_not_understood_is_named_with_its_place(tmp_path):
    model = slim.new_model("yolo12n-cls.yaml", ("one", "two"))
    images = torch.rand(2, 3, 64, 64)
    for options in ({}, {"bits": 8, "calibration": images}):
        with pytest.raises(TypeError, match=r"model\.6\.m\.0\.0\.attn \(AAttn\) computes reshape\(\)"):
            export_onnx(model, tmp_path / "model.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_what_onnx_runtime_cannot_convolve_is_named(tiny, data, tmp_path):
    some = data.train.take(8)
    for bits, activation_bits, options, complaint in (
        (8, 16, {}, "model.0.act puts out 16 bits"),
        (9, 8, {}, "model.0.conv has weights of 9 bits"),
        (8, 8, {"symmetric": False}, "zero point.*symmetric=True"),
    ):
        model = slim.quantize_integer(
            tiny, bits, activation_bits, some, ranges="minmax", weight_ranges="minmax", **options
        )
        with pytest.raises(ValueError, match=complaint):
            export_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_bad_arguments_are_named(nano, tiny, simple, data, tmp_path):
    path = tmp_path / "model.onnx"
    some = data.train.take(8)
    with pytest.raises(TypeError, match="model is a Linear"):
        export_onnx(torch.nn.Linear(1, 1), path)
    for model, options, complaint in (
        (nano, {"precision": "fp8"}, "precision='fp8'"),
        (nano, {"precision": "fp16", "bits": 4}, "precision='fp16'.*integers"),
        (simple, {"precision": "fp16"}, "precision='fp16'.*integers"),
        (nano, {"bits": 1}, "bits=1: expected"),
        (nano, {"bits": 16, "calibration": some}, "bits=16: expected"),
        (nano, {"bits": True}, "bits=True"),
        (nano, {"bits": 8}, "bits=8 needs calibration"),
        (nano, {"bits": 4, "calibration": some}, "calibration is not used with bits=4"),
        (nano, {"calibration": some}, "calibration is not used with bits=None"),
        (simple, {"bits": 8, "calibration": some}, "quantized already"),
        (slim.quantize_float(tiny, "fp8_e4m3", activations="fp8_e4m3"), {}, "rounds activations to e4m3"),
    ):
        with pytest.raises(ValueError, match=complaint):
            export_onnx(model, path, **options)
    with pytest.raises(ValueError, match=r"model\.pt.*\.onnx"):
        export_onnx(nano, tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())


def test_bad_sessions_are_named(nano, data, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.onnx"):
        onnx_session(tmp_path / "missing.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"this is no graph")
    with pytest.raises(ValueError, match=r"broken\.onnx.*not an ONNX model"):
        onnx_session(broken)
    file = export_onnx(nano, tmp_path / "model.onnx")
    for options in ({"threads": 0}, {"warmup": -1}, {"batch_size": 0}, {"threads": 1.5}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}="):
            onnx_session(file, **options)
    session = onnx_session(file, threads=1)
    for images, complaint in (
        (torch.rand(2, 3, 32, 32), r"\(32, 32\) pixels.*\(64, 64\)"),
        (torch.rand(3, 64, 64), r"\(3, 64, 64\).*N×3×H×W"),
        (torch.rand(0, 3, 64, 64), "at least one"),
    ):
        with pytest.raises(ValueError, match=complaint):
            run_onnx(session, images)
    with pytest.raises(ValueError, match="batch_size=0"):
        run_onnx(session, data.test.take(1), batch_size=0)
    pictures = onnx_session(export_onnx(nano, file, preprocess=True), threads=1)
    with pytest.raises(ValueError, match="preprocess=True and reads uint8"):
        run_onnx(pictures, torch.rand(1, 3, 64, 64))


def test_every_quantized_layer_of_nano_is_exported(integer_nano, tmp_path):
    graph = onnx.load(export_onnx(integer_nano, tmp_path / "model.onnx")).graph
    held = {tensor.name.removesuffix(".weight") for tensor in graph.initializer if tensor.name.endswith(".weight")}
    assert held == {name for name, layer in slim.weight_layers(integer_nano) if isinstance(layer, QuantizedLayer)}


# Ultralytics opens our files


@pytest.mark.parametrize("options", [{}, {"precision": "fp16"}, {"bits": 8}, {"bits": 4}], ids=str)
def test_yolo_predicts_with_our_files(nano, data, tmp_path, options):
    calibration = data.train.take(64) if options.get("bits") == 8 else None
    file = slim.export_onnx(nano, tmp_path / "small.onnx", probabilities=True, calibration=calibration, **options)
    some = data.test.take(20)
    pictures = [image.flip(0).permute(1, 2, 0).contiguous().numpy() for image in some.images]  # BGR, as OpenCV has them
    results = YOLO(file).predict(pictures, verbose=False)
    assert results[0].names == nano.names
    answers = torch.stack([result.probs.data for result in results])
    torch.testing.assert_close(answers, slim.run_onnx(slim.onnx_session(file), some), rtol=0, atol=1e-3)
    assert (answers.argmax(1) == slim.predict(nano, some, progress=False).argmax(1)).float().mean() >= 0.95


def test_yolo_validates_our_files(nano, data, tmp_path):
    folder = slim.write_image_folder(data, tmp_path / "images", train=10, val=10, test=100)
    file = slim.export_onnx(nano, tmp_path / "small.onnx", probabilities=True)
    found = YOLO(file).val(data=folder, split="test", verbose=False, plots=False, project=str(tmp_path / "runs"))
    assert found.top1 == pytest.approx(slim.evaluate(nano, data.test.take(100), progress=False).top1)
