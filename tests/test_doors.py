"""What enters is checked at every door: a table of doors (public functions) and faults (what people hand over).

A fault either works as if there were none, or is refused by one clear sentence before any work begins.
"""

import inspect
import re
import tempfile
import time
import traceback
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from ultralytics import YOLO
from ultralytics.nn.tasks import ClassificationModel

import yolo_slim_lessons as slim
from yolo_slim_lessons.agreement import ClassOrderWarning, ImageSizeWarning, class_places
from yolo_slim_lessons.compression.budgets import survey_layers
from yolo_slim_lessons.compression.channel_scan import scan_channels
from yolo_slim_lessons.data import FASHION_MNIST_CLASSES
from yolo_slim_lessons.distillation import cache_teacher
from yolo_slim_lessons.models import copy_model, image_size_of
from yolo_slim_lessons.quantization.few_bits import bit_sensitivity
from yolo_slim_lessons.search.sensitivity import sensitivity

QUIET = {"progress": False}
RECIPE = {"stages": [{"prune_channels": {"prune_rate": 0.5}}]}


@pytest.fixture(scope="module")
def few(data):
    return data.take(64, 32)


@pytest.fixture(scope="module")
def small(nano):
    return slim.prune_channels(nano, 0.8)


# Each door as a function of (model, small, few, folder): the model is what is handed over, the others are fine.
MODEL_DOORS = {
    "bit_sensitivity": lambda m, s, d, f: bit_sensitivity(m, d.train.take(8), (4,), **QUIET).bytes,
    "cache_teacher": lambda m, s, d, f: cache_teacher(m, d.val, **QUIET).scores,
    "channel_groups": lambda m, s, d, f: len(slim.channel_groups(m)),
    "compare": lambda m, s, d, f: slim.compare(m, s, repeats=1).ratio > 0,
    "compress": lambda m, s, d, f: slim.compress(m, d, RECIPE, **QUIET).model,
    "correct_biases": lambda m, s, d, f: slim.correct_biases(slim.quantize_integer(s, 4), m, d.train.take(16)),
    "count_macs": lambda m, s, d, f: slim.count_macs(m),
    "count_parameters": lambda m, s, d, f: slim.count_parameters(m),
    "distill (student)": lambda m, s, d, f: slim.distill(m, slim.load_model("teacher"), d, epochs=1, **QUIET),
    "distill (teacher)": lambda m, s, d, f: slim.distill(s, m, d, epochs=1, **QUIET),
    "evaluate": lambda m, s, d, f: slim.evaluate(m, d.val, **QUIET).top1,
    "export_litert": lambda m, s, d, f: slim.export_litert(m, f / "model.tflite").stat().st_size,
    "export_c": lambda m, s, d, f: slim.export_c(m, f, bits=8, calibration=d.train.take(16)).stat().st_size,
    "export_onnx": lambda m, s, d, f: slim.export_onnx(m, f / "model.onnx").stat().st_size,
    "fit": lambda m, s, d, f: slim.fit(m, d, 1, **QUIET),
    "layer_costs": lambda m, s, d, f: len(slim.layer_costs(m)),
    "learn_rounding": lambda m, s, d, f: slim.learn_rounding(
        slim.quantize_integer(s, 4), m, d.train.take(8), steps=1, **QUIET
    ),
    "measure": lambda m, s, d, f: slim.measure(m, d.val, repeats=1, **QUIET).macs,
    "packed_sizes": lambda m, s, d, f: slim.packed_sizes(m).file,
    "predict": lambda m, s, d, f: slim.predict(m, d.val, **QUIET),
    "prune_channels": lambda m, s, d, f: slim.prune_channels(m, 0.5),
    "prune_gradually": lambda m, s, d, f: slim.prune_gradually(m, d, 0.5, steps=1, epochs=1, **QUIET),
    "prune_weights": lambda m, s, d, f: slim.prune_weights(m, 0.5),
    "quantize_float": lambda m, s, d, f: slim.quantize_float(m, "fp16"),
    "quantize_integer": lambda m, s, d, f: slim.quantize_integer(m, 4),
    "reestimate_batchnorm": lambda m, s, d, f: slim.reestimate_batchnorm(m, d.train.take(32)),
    "remove_bottlenecks": lambda m, s, d, f: slim.remove_bottlenecks(m, {"model.4": 1}),
    "replace_activations": lambda m, s, d, f: slim.replace_activations(m, "relu"),
    "save_model": lambda m, s, d, f: slim.save_model(m, f / "model.pt", "fp16").stat().st_size,
    "save_packed": lambda m, s, d, f: slim.save_packed(m, f / "model.slim").stat().st_size,
    "scan_channels": lambda m, s, d, f: scan_channels(m, d.val.take(10), **QUIET),
    "sensitivity": lambda m, s, d, f: sensitivity(
        m, d.val.take(10), slim.prune_weights, ["model.0.conv"], [0.5], **QUIET
    ),
    "survey_layers": lambda m, s, d, f: survey_layers(m, d.val, images=10, bits=(4,), **QUIET),
    "time_model": lambda m, s, d, f: slim.time_model(m, repeats=1).median > 0,
    "train_quantized": lambda m, s, d, f: slim.train_quantized(m, d, 4, epochs=1, **QUIET),
}


def yolo_of(model):
    """The ``YOLO`` object that people have in their hands."""
    yolo = YOLO("yolov8n-cls.yaml", verbose=False)
    yolo.model = copy_model(model)
    return yolo


def masked(model):
    model = copy_model(model)
    prune.l1_unstructured(model.model[1].conv, "weight", 0.5)
    return model


def dynamic_int8(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(copy_model(model), {nn.Linear}, dtype=torch.qint8)


def with_nan(model):
    model = copy_model(model)
    model.model[1].conv.weight.data[0, 0, 0, 0] = float("nan")
    return model


# What is handed over in place of a model → what must be said.
MODEL_FAULTS = {
    "masks of torch": (masked, ValueError, r"has masks of torch.nn.utils.prune, first on layer model\.1\.conv.*remove"),
    "dynamic int8": (
        dynamic_int8,
        ValueError,
        r"is quantized by PyTorch: layer model\.\d+\.linear is a .*quantize_integer",
    ),
    "NaN": (with_nan, ValueError, r"numbers that are not finite \(NaN or infinity\), in model\.1\.conv\.weight"),
    "a path": (lambda model: "best.pt", TypeError, r"names a model or its file: pass load_model\('best.pt'\)"),
    "a state_dict": (lambda model: model.state_dict(), TypeError, r"a state_dict, which holds weights without"),
}
ANY_FUNCTION = {"compare", "time_model"}  # which time anything that can be called
MEASURING = {"compare", "count_macs", "count_parameters", "layer_costs", "time_model"}  # of whatever the layers hold


@pytest.fixture(scope="module")
def faulty(small):
    return {name: make(small) for name, (make, _, _) in MODEL_FAULTS.items()}


def names_of_arguments(door):
    """The arguments of the function, and what it hands on to ``fit`` or ``distill``."""
    function = getattr(slim, door.partition(" ")[0], None) or globals()[door.partition(" ")[0]]
    names = set(inspect.signature(function).parameters)
    return names | (names_of_arguments("fit") | {"temperature", "alpha"} if "fit_options" in names else set())


def assert_names_only_its_arguments(message, door):
    """An error tells people to pass an argument only where there is one of that name."""
    without_code = re.sub(
        r"[\w.]+\([^()]*\)", "", message
    )  # calls such as torch.nn.utils.prune.remove(layer, 'weight')
    named = set(re.findall(r"\b([a-z_]+)=(?!=)", without_code))
    assert named <= names_of_arguments(door), message


def refuses(door, fault):
    """All but those that time any function, measure whatever the layers hold, or take a path as well."""
    if MODEL_FAULTS[fault][1] is ValueError:
        return door not in MEASURING
    return door not in ANY_FUNCTION and (door, fault) != ("packed_sizes", "a path")


@pytest.mark.parametrize(
    ("door", "fault"), [(door, fault) for fault in MODEL_FAULTS for door in MODEL_DOORS if refuses(door, fault)]
)
def test_a_faulty_model_is_refused_by_name(door, fault, faulty, small, few, tmp_path):
    _, error, said = MODEL_FAULTS[fault]
    before = list(tmp_path.iterdir())
    with pytest.raises(error, match=said) as caught:
        MODEL_DOORS[door](faulty[fault], small, few, tmp_path)
    assert_names_only_its_arguments(str(caught.value), door)
    assert list(tmp_path.iterdir()) == before


@pytest.mark.parametrize("door", MODEL_DOORS)
def test_a_yolo_object_works_wherever_a_model_does(door, small, nano, few, tmp_path):
    given = nano if door in ("correct_biases", "distill (teacher)", "learn_rounding") else small
    if door in ("correct_biases", "learn_rounding"):
        small = nano
    results = [MODEL_DOORS[door](each, small, few, tmp_path) for each in (given, yolo_of(given))]
    assert same(*results)


def same(first, second):
    if isinstance(first, nn.Module):
        mine, theirs = first.state_dict(), second.state_dict()
        return mine.keys() == theirs.keys() and all(tensor.equal(theirs[name]) for name, tensor in mine.items())
    if isinstance(first, torch.Tensor):
        return first.equal(second)
    return repr(first) == repr(second)


# One channel


@pytest.fixture(scope="module")
def grey(few):
    """A classifier that reads one channel, and images for it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "grey-cls.yaml")
        text = "nc: 10\nch: 1\nbackbone:\n  - [-1, 1, Conv, [16, 3, 4]]\n  - [-1, 1, C2f, [16, True]]\n"
        file.write_text(text + "head:\n  - [-1, 1, Classify, [nc]]\n", encoding="utf-8")
        network = ClassificationModel(str(file), ch=1, nc=10, verbose=False)
    network.names, network.task = dict(enumerate(FASHION_MNIST_CLASSES)), "classify"
    network.args = {"task": "classify", "imgsz": 64}
    return slim.reestimate_batchnorm(network.eval(), few.train)


PACKED = {"packed_sizes", "save_packed", "compress", "survey_layers"}  # architectures of one's own are not packed
NOT_FOR_GREY = {"distill (student)", "distill (teacher)", "correct_biases", "learn_rounding", "remove_bottlenecks"}


@pytest.mark.parametrize("door", [door for door in MODEL_DOORS if door not in PACKED | NOT_FOR_GREY])
def test_a_model_of_one_channel_works(door, grey, few, tmp_path):
    MODEL_DOORS[door](grey, grey, few, tmp_path)


def test_a_model_of_one_channel_leaves_as_it_is(grey, few, tmp_path):
    expected = slim.predict(grey, few.val, progress=False)
    quantized = slim.quantize_integer(grey, 8, 8, few.train)
    for model in (grey, slim.learn_rounding(slim.quantize_integer(grey, 8), grey, few.train, steps=1, progress=False)):
        answers = slim.run_onnx(slim.onnx_session(slim.export_onnx(model, tmp_path / "grey.onnx")), few.val).softmax(1)
        torch.testing.assert_close(answers, slim.predict(model, few.val, progress=False), rtol=1e-3, atol=1e-4)
    assert (slim.predict(quantized, few.val, progress=False) - expected).abs().max() < 0.1


# Networks that are not as Ultralytics builds them


def with_own_head(model):
    model = copy_model(model)
    head = model.model[-1]
    head.linear = nn.Sequential(nn.Linear(head.linear.in_features, 16), nn.ReLU(), nn.Linear(16, 10))
    return model.eval()


@pytest.mark.parametrize("door", MODEL_DOORS)
@pytest.mark.parametrize("change", [with_own_head, lambda model: copy_model(model).fuse(verbose=False)])
def test_other_networks_work_or_are_refused_by_a_sentence(door, change, small, few, tmp_path):
    given = small if door not in ("correct_biases", "learn_rounding") else change(small)
    refusal = None
    try:
        MODEL_DOORS[door](change(small), given, few, tmp_path)
    except (ValueError, TypeError) as error:
        refusal = error
    if refusal:
        assert "yolo_slim_lessons" in traceback.extract_tb(refusal.__traceback__)[-1].filename
        assert len(str(refusal)) > 40, refusal


# Images


# Doors of images as functions of (model, split, data, folder), and the argument that the images are passed as.
SPLIT_DOORS = {
    "cache_teacher": (lambda m, x, d, f: cache_teacher(m, x, **QUIET), "split"),
    "evaluate": (lambda m, x, d, f: slim.evaluate(m, x, **QUIET), "split"),
    "measure": (lambda m, x, d, f: slim.measure(m, x, repeats=1, **QUIET), "split"),
    "predict": (lambda m, x, d, f: slim.predict(m, x, **QUIET), "split"),
    "prune_channels": (lambda m, x, d, f: slim.prune_channels(m, 0.5, "taylor", calibration=x), "calibration"),
    "reestimate_batchnorm": (lambda m, x, d, f: slim.reestimate_batchnorm(m, x), "split"),
}
CALIBRATION_DOORS = {
    "bit_sensitivity": lambda m, x, d, f: bit_sensitivity(m, x, (4,), **QUIET),
    "correct_biases": lambda m, x, d, f: slim.correct_biases(slim.quantize_integer(m, 4), m, x),
    "export_litert": lambda m, x, d, f: slim.export_litert(m, f / "model.tflite", bits=8, calibration=x),
    "export_c": lambda m, x, d, f: slim.export_c(m, f, bits=8, calibration=x),
    "export_onnx": lambda m, x, d, f: slim.export_onnx(m, f / "model.onnx", bits=8, calibration=x),
    "learn_rounding": lambda m, x, d, f: slim.learn_rounding(slim.quantize_integer(m, 4), m, x, steps=1, **QUIET),
    "quantize_integer": lambda m, x, d, f: slim.quantize_integer(m, 8, 8, x),
    "train_quantized": lambda m, x, d, f: slim.train_quantized(m, d, 4, 8, epochs=1, calibration=x, **QUIET),
}
DATA_DOORS = {
    "compress": lambda m, d: slim.compress(m, d, RECIPE, **QUIET).stages[0].scores.top1,
    "distill": lambda m, d: slim.distill(m, slim.load_model("teacher"), d, epochs=1, **QUIET),
    "fit": lambda m, d: slim.fit(m, d, 1, **QUIET),
    "prune_gradually": lambda m, d: slim.prune_gradually(m, d, 0.5, steps=1, epochs=1, **QUIET),
    "train_quantized": lambda m, d: slim.train_quantized(m, d, 4, epochs=1, **QUIET),
}
CALIBRATION_FAULTS = {
    "0…255": (lambda x: x.images.float(), ValueError, r"calibration holds numbers from 0 to 2\d\d: expected 0 to 1"),
    "normalized": (lambda x: (x.images / 255 - 0.5) / 0.25, ValueError, "calibration holds numbers from -2 to 2"),
    "NumPy": (lambda x: x.images.numpy(), TypeError, r"calibration is a NumPy array: .*torch.from_numpy\(array\)"),
    "one image": (lambda x: x.images[0] / 255, ValueError, r"calibration\[None\] is a batch of one image"),
    "channels last": (lambda x: x.images.permute(0, 2, 3, 1), ValueError, r"channels last: .*permute\(0, 3, 1, 2\)"),
    "none": (lambda x: x.images[:0], ValueError, "calibration is empty"),
    "NaN": (lambda x: x.images / 255 * float("nan"), ValueError, "calibration holds NaN or infinity"),
    "rectangles": (lambda x: x.images[..., :32], ValueError, r"calibration has images of 64×32 px"),
    "a list": (lambda x: list(x.images), TypeError, "calibration is a list: expected a Split or a tensor"),
}


@pytest.mark.parametrize("door", CALIBRATION_DOORS)
@pytest.mark.parametrize("fault", CALIBRATION_FAULTS)
def test_faulty_calibration_images_are_refused_by_name(door, fault, small, few, tmp_path):
    make, error, said = CALIBRATION_FAULTS[fault]
    with pytest.raises(error, match=said) as caught:
        CALIBRATION_DOORS[door](small, make(few.train.take(16)), few, tmp_path)
    assert_names_only_its_arguments(str(caught.value), door)


def at_size(split, height, width):
    return replace(split, images=nn.functional.interpolate(split.images.float(), (height, width)).byte())


@pytest.mark.parametrize("door", [*SPLIT_DOORS, *CALIBRATION_DOORS])
def test_images_of_another_size_are_measured_with_a_word(door, small, few, tmp_path):
    call = CALIBRATION_DOORS[door] if door in CALIBRATION_DOORS else SPLIT_DOORS[door][0]
    with pytest.warns(ImageSizeWarning, match=r"model was trained for images of 64 px, and \w+ has 96 px"):
        call(small, at_size(few.val.take(16), 96, 96), few, tmp_path)


@pytest.mark.parametrize("door", SPLIT_DOORS)
def test_rectangles_are_refused(door, small, few, tmp_path):
    with pytest.raises(ValueError, match=rf"{SPLIT_DOORS[door][1]} has images of 64×96 px \(height×width\)"):
        SPLIT_DOORS[door][0](small, at_size(few.val.take(16), 64, 96), few, tmp_path)


@pytest.mark.parametrize("door", SPLIT_DOORS)
def test_what_is_no_split_is_named(door, small, few, tmp_path):
    argument = SPLIT_DOORS[door][1]
    for given, said in ((few.val.images, "a Tensor: expected a Split"), (few, "ImageData: expected a part of it")):
        if argument == "calibration" and given is few:
            continue
        with pytest.raises(TypeError, match=f"{argument} is {said}"):
            SPLIT_DOORS[door][0](small, given, few, tmp_path)


@pytest.mark.parametrize("door", DATA_DOORS)
def test_a_split_in_place_of_data_is_named(door, small, few):
    with pytest.raises(TypeError, match="data is a Split: expected ImageData"):
        DATA_DOORS[door](small, few.train)


@pytest.mark.parametrize("door", ["count_macs", "layer_costs", "time_model", "export_c", "export_onnx"])
def test_an_image_size_is_one_number(door, small, tmp_path):
    arguments = {"export_c": {"folder": tmp_path}, "export_onnx": {"path": tmp_path / "model.onnx"}}.get(door, {})
    with pytest.raises((ValueError, TypeError), match=r"image_size=\(64, 96\): expected"):
        getattr(slim, door)(small, **arguments, image_size=(64, 96))


def test_onnx_runtime_takes_arrays(small, few, tmp_path):
    session = slim.onnx_session(slim.export_onnx(small, tmp_path / "model.onnx"))
    assert slim.run_onnx(session, few.val.images.numpy()).equal(slim.run_onnx(session, few.val))


def test_export_at_another_size_is_said(small, tmp_path):
    with pytest.warns(ImageSizeWarning, match="image_size has 96 px"):
        slim.export_onnx(small, tmp_path / "large.onnx", image_size=96)


@pytest.mark.parametrize("door", DATA_DOORS)
def test_data_of_another_size_are_said_and_what_is_trained_is_for_them(door, small, few):
    larger = replace(few, **{part: at_size(getattr(few, part), 96, 96) for part in ("train", "val")}, image_size=96)
    with pytest.warns(ImageSizeWarning, match="data has 96 px"):
        trained = DATA_DOORS[door](small, larger)
    if door != "compress":
        assert image_size_of(trained) == 96
        assert image_size_of(small) == 64


# Class names

ALPHABETICAL = tuple(sorted(FASHION_MNIST_CLASSES))


def reordered(split):
    places = torch.tensor(class_places(split.class_names, ALPHABETICAL))
    return split.relabelled(places[split.labels], ALPHABETICAL)


def renamed(split, names):
    return split.relabelled(split.labels, names)


NAMED_DOORS = {door: SPLIT_DOORS[door][0] for door in ("evaluate", "measure", "prune_channels")}


@pytest.mark.parametrize("door", NAMED_DOORS)
def test_a_split_in_another_order_is_joined_by_name(door, nano, few, tmp_path):
    expected = NAMED_DOORS[door](nano, few.val, few, tmp_path)
    with pytest.warns(ClassOrderWarning):
        found = NAMED_DOORS[door](nano, reordered(few.val), few, tmp_path)
    if door == "measure":
        found, expected = found.scores, expected.scores
    assert same(found, expected)


@pytest.mark.parametrize("door", NAMED_DOORS)
@pytest.mark.parametrize("names", [("ant", *FASHION_MNIST_CLASSES[1:]), FASHION_MNIST_CLASSES[:9], ("ant", "bee")])
def test_a_split_of_other_classes_is_refused(door, names, nano, few, tmp_path):
    with pytest.raises(ValueError, match=rf"has {len(names)} classes, model has 10: they must agree"):
        NAMED_DOORS[door](nano, renamed(few.val, names), few, tmp_path)


@pytest.mark.parametrize("door", DATA_DOORS)
def test_data_in_another_order_are_joined_by_name(door, small, few):
    expected = DATA_DOORS[door](small, few)
    other = replace(
        few, train=reordered(few.train), val=reordered(few.val), test=few.test[:4], class_names=ALPHABETICAL
    )
    with pytest.warns(ClassOrderWarning):
        assert same(DATA_DOORS[door](small, other), expected)


@pytest.mark.parametrize("door", DATA_DOORS)
def test_data_of_other_classes_are_refused_before_any_work(door, small, few):
    names = tuple(f"kind {number}" for number in range(10))
    other = replace(few, train=renamed(few.train, names), val=renamed(few.val, names), class_names=names)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"they must agree \(only data has 'kind 0', .*slim.adapt"):
        DATA_DOORS[door](small, other)
    assert time.perf_counter() - start < 5


# What training makes


@pytest.mark.parametrize("door", ["fit", "distill", "train_quantized"])
def test_a_training_that_runs_away_says_when_and_keeps_nothing_of_it(door, small, few):
    train = {
        "fit": lambda: slim.fit(small, few, 3, learning_rate=1e6, batch_size=8, **QUIET),
        "distill": lambda: slim.distill(
            small, slim.load_model("teacher"), few, epochs=3, learning_rate=1e6, batch_size=8, **QUIET
        ),
        "train_quantized": lambda: slim.train_quantized(small, few, 4, epochs=3, learning_rate=1e30, **QUIET),
    }
    with pytest.raises(ValueError, match=r"in epoch \d of 3 at learning_rate=\S+: .*a tenth"):
        train[door]()
