"""What is saved is what was there, opens in plain Ultralytics and means the same to it; the rest is refused by name."""

import io
import json
import logging
import os
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.utils import prune
from torchvision.datasets.mnist import read_image_file, read_label_file
from ultralytics import YOLO
from ultralytics.nn.tasks import ClassificationModel, DetectionModel
from ultralytics.utils import LOGGER

import yolo_slim_lessons as slim
from yolo_slim_lessons import models
from yolo_slim_lessons.data import ImageData, Split
from yolo_slim_lessons.files import DATA_DIR, WEIGHTS_DIR, write_atomically


def assert_same_weights(first, second):
    first, second = first.state_dict(), second.state_dict()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype
        assert tensor.equal(second[name]), name


@pytest.fixture
def fresh():
    """An untrained model that a test may change."""
    return slim.new_model("yolov8n-cls.yaml", ("ant", "bee", "cat"), image_size=32)


@pytest.fixture
def weights_copy(tmp_path, monkeypatch):
    """A copy of the shipped weights that a test may damage."""
    copy = tmp_path / "weights"
    copy.mkdir()
    for name in ("nano.pt", "SHA256SUMS"):
        shutil.copy(WEIGHTS_DIR / name, copy)
    monkeypatch.setattr(models.storing, "WEIGHTS_DIR", copy)
    return copy


# new models


def test_models_share_no_part(fresh):
    other = slim.new_model("yolov8n-cls.yaml", ("ant", "bee", "cat"), image_size=32)
    assert not {id(part) for part in fresh.modules()} & {id(part) for part in other.modules()}
    before = str(fresh)
    DetectionModel("yolov8n.yaml", verbose=False)  # sets a switch of an activation that all models have in common
    assert str(fresh) == before == str(slim.new_model("yolov8n-cls.yaml", ("ant", "bee", "cat"), image_size=32))


def test_new_model_is_a_plain_ultralytics_classifier(fresh):
    assert type(fresh) is ClassificationModel
    assert not fresh.training
    assert fresh.names == {0: "ant", 1: "bee", 2: "cat"}
    assert models.image_size_of(fresh) == 32
    assert models.logits(fresh, torch.rand(2, 3, 32, 32)).shape == (2, 3)


def test_the_seed_decides_the_first_weights_and_disturbs_nobody(fresh):
    state = torch.get_rng_state()
    again, other = (slim.new_model("yolov8n-cls.yaml", ("ant", "bee", "cat"), 32, seed) for seed in (0, 1))
    assert torch.get_rng_state().equal(state)
    assert_same_weights(fresh, again)
    assert not fresh.model[0].conv.weight.equal(other.model[0].conv.weight)


def test_architectures_that_are_no_classifier_are_refused():
    with pytest.raises(ValueError, match="architecture='yolov8n.yaml': expected a classifier"):
        slim.new_model("yolov8n.yaml", ("ant", "bee"))
    with pytest.raises(FileNotFoundError, match="nonsense.yaml"):
        slim.new_model("nonsense.yaml", ("ant", "bee"))
    with pytest.raises(ValueError, match=r"class_names=\(\): expected one name per label"):
        slim.new_model("yolov8n-cls.yaml", ())


# walking a model


def test_logits_are_the_same_kind_of_thing_in_both_modes(fresh):
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        probabilities, _ = fresh(images)
        assert models.logits(fresh, images).softmax(1).allclose(probabilities, atol=1e-6)
        assert models.logits(fresh.train(), images).shape == (4, 3)


def test_weight_layers_are_all_convolutions_and_linear_layers_in_order(nano):
    layers = list(slim.weight_layers(nano))
    assert layers[0][0] == "model.0.conv"
    assert layers[-1][0] == "model.9.linear"
    assert all(dict(nano.named_modules())[name] is layer for name, layer in layers)
    multiplied = {layer.weight.data_ptr() for _, layer in layers}
    # What is left over has one dimension: BatchNorm and biases.
    assert all(p.ndim == 1 for p in nano.parameters() if p.data_ptr() not in multiplied)


def test_a_copy_shares_nothing(fresh):
    copy = models.copy_model(fresh)
    with torch.no_grad():
        copy.model[0].conv.weight.zero_()
    assert fresh.model[0].conv.weight.count_nonzero() > 0


@pytest.mark.parametrize("args", [{}, {"imgsz": None}, {"imgsz": [64, 96]}])
def test_a_model_that_names_no_image_size_says_what_to_do(fresh, args):
    fresh.args = args
    with pytest.raises(
        ValueError,
        match=r"image size is (None|\[64, 96\]): expected the pixels a side that it was trained for\. Say so",
    ):
        models.image_size_of(fresh)


# saving and loading


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_fp32_round_trip_is_bit_exact(fresh, tmp_path, memory_format):
    fresh.to(memory_format=memory_format)
    loaded = slim.load_model(slim.save_model(fresh, tmp_path / "model.pt"))
    assert_same_weights(fresh, loaded)
    assert loaded.names == fresh.names
    assert models.image_size_of(loaded) == 32
    assert not loaded.training


def test_fp16_is_half_the_size_and_the_nearest_half_numbers(nano, tmp_path):
    full = slim.save_model(nano, tmp_path / "full.pt")
    half = slim.save_model(nano, tmp_path / "half.pt", precision="fp16")
    assert 0.48 < half.stat().st_size / full.stat().st_size < 0.55
    loaded = slim.load_model(half)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert_same_weights(models.copy_model(nano).half().float(), loaded)


def test_saving_leaves_the_model_as_it_was(fresh, tmp_path):
    fresh.train().requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    args = dict(fresh.args)
    slim.save_model(fresh, tmp_path / "model.pt", precision="fp16")
    assert fresh.training
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in fresh.parameters())
    assert all(tensor.equal(before[name]) for name, tensor in fresh.state_dict().items())
    assert fresh.args == args


def test_the_same_model_gives_the_same_file_whatever_its_name(nano, tmp_path):
    first, second = (slim.save_model(nano, tmp_path / name) for name in ("a.pt", "folder/a-longer-name.pt"))
    assert first.read_bytes() == second.read_bytes()


def test_a_file_tells_nothing_of_the_machine_it_was_made_on(tmp_path):
    loaded = slim.load_model(slim.save_model(slim.load_model("nano"), tmp_path / "first.pt"))
    contents = slim.save_model(loaded, tmp_path / "second.pt").read_bytes()
    assert os.fsencode(tmp_path) not in contents
    assert os.fsencode(DATA_DIR.parent) not in contents


def test_names_paths_and_yolo_objects_load(fresh, nano, tmp_path):
    path = slim.save_model(fresh, tmp_path / "mine.pt")
    assert_same_weights(slim.load_model(path), fresh)
    assert_same_weights(slim.load_model(str(path)), fresh)
    assert_same_weights(slim.load_model(WEIGHTS_DIR / "nano.pt"), nano)
    assert nano.names[9] == "Ankle boot"
    assert models.image_size_of(nano) == 64


def test_a_yolo_object_is_copied(fresh, tmp_path):
    yolo = YOLO(slim.save_model(fresh, tmp_path / "mine.pt"))
    loaded = slim.load_model(yolo)
    assert_same_weights(loaded, yolo.model)
    with torch.no_grad():
        loaded.model[0].conv.weight.zero_()
    assert yolo.model.model[0].conv.weight.count_nonzero() > 0


def test_a_yolo_object_that_has_predicted_can_still_be_trained(fresh, data, tmp_path):
    yolo = YOLO(slim.save_model(fresh, tmp_path / "mine.pt"))
    yolo.predict(np.zeros((32, 32, 3), np.uint8), verbose=False, project=str(tmp_path / "runs"))
    loaded = slim.load_model(yolo)
    images = Split(data.val.images[:8, :, ::2, ::2], torch.arange(8) % 3)
    trained = slim.fit(loaded, ImageData(images, images, images, ("ant", "bee", "cat"), 32), 1, progress=False)
    assert not trained.model[0].conv.weight.equal(fresh.model[0].conv.weight)


def test_ultralytics_is_silent_within_and_heard_again_after(tmp_path, caplog, data):
    LOGGER.addHandler(caplog.handler)
    level = LOGGER.level
    LOGGER.setLevel(logging.INFO)  # as it is where Ultralytics was imported first
    try:
        yolo = YOLO("yolov8n-cls.yaml")
        assert "summary" in caplog.text  # what Ultralytics says on its own account
        caplog.clear()
        path = slim.save_model(slim.new_model("yolov8n-cls.yaml", data.class_names), tmp_path / "model.pt")
        slim.measure(slim.load_model(path), data.test[:2], repeats=1)
        slim.load_model(yolo)
        assert caplog.text == ""
        LOGGER.info("training: epoch 1")
        assert "training: epoch 1" in caplog.text
    finally:
        LOGGER.setLevel(level)
        LOGGER.removeHandler(caplog.handler)


# a write that fails


def test_a_failed_save_leaves_the_old_file_whole(fresh, nano, tmp_path, monkeypatch):
    path = slim.save_model(nano, tmp_path / "model.pt")
    before = path.read_bytes()

    def full_disk(contents, file):
        file.write(b"the first bytes")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        slim.save_model(fresh, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


def test_an_interrupted_write_leaves_nothing_behind(tmp_path):
    def interrupted(temporary):
        temporary.write_text("half", encoding="utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "new" / "file.txt", interrupted)
    assert list((tmp_path / "new").iterdir()) == []


# plain Ultralytics


def test_a_python_without_this_package_predicts_validates_and_exports(nano, data, tmp_path, run_python):
    path = slim.save_model(nano, tmp_path / "nano.pt")
    folder = slim.write_image_folder(data, tmp_path / "images", train=10, val=200, test=10)
    val = slim.load_images(folder, image_size=64).val
    answer = run_python(
        """
import sys
sys.modules["yolo_slim_lessons"] = None  # any import of it fails
import json, pathlib
import numpy as np
import onnxruntime
from PIL import Image
from ultralytics import YOLO

path, folder, runs = sys.argv[1:]
files = sorted(pathlib.Path(folder, "val").glob("*/*.png"))
predicted = [result.probs.data.tolist() for result in YOLO(path).predict(files, verbose=False)]
top1 = YOLO(path).val(data=folder, imgsz=64, workers=0, plots=False, project=runs).top1
exported = YOLO(path).export(format="onnx")
session = onnxruntime.InferenceSession(exported)
images = np.stack([np.asarray(Image.open(file)) for file in files]).transpose(0, 3, 1, 2).astype(np.float32) / 255
onnx = [session.run(None, {session.get_inputs()[0].name: images[i : i + 1]})[0][0].tolist() for i in range(len(files))]
print(json.dumps({"predicted": predicted, "top1": top1, "onnx": onnx}))
""",
        path,
        folder,
        tmp_path / "runs",
        environment={"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"},
    )
    theirs = json.loads(answer.splitlines()[-1])
    ours = slim.predict(nano, val)
    assert torch.tensor(theirs["predicted"]).allclose(ours, atol=1e-4)
    assert torch.tensor(theirs["onnx"]).allclose(ours, atol=1e-4)
    assert theirs["top1"] == pytest.approx(slim.evaluate(nano, val).top1)


@pytest.mark.parametrize("pixels", [28, 64, 96])
def test_ultralytics_val_and_evaluate_agree(nano, tmp_path, pixels):
    """On 2,000 images stored at 28 px (enlarged to 64), 64 px (taken as they are) and 96 px (shrunk)."""
    raw = read_image_file(str(DATA_DIR / "fashion-mnist" / "t10k-images-idx3-ubyte"))[:2000].numpy()
    labels = read_label_file(str(DATA_DIR / "fashion-mnist" / "t10k-labels-idx1-ubyte"))[:2000].tolist()
    parts = [("val", range(2000)), ("train", range(100))]  # train/ must be there, but nothing is learned from it
    for part, indices in parts:
        for label in range(10):
            (tmp_path / "images" / part / f"{label} {nano.names[label].replace('/', '-')}").mkdir(parents=True)
        folders = sorted((tmp_path / "images" / part).iterdir())
        for index in indices:
            image = Image.fromarray(raw[index]).resize((pixels, pixels), Image.Resampling.BICUBIC)
            image.save(folders[labels[index]] / f"{index:04d}.png", compress_level=1)

    ours = slim.evaluate(nano, slim.load_images(tmp_path / "images", image_size=64).val).top1
    yolo = YOLO(slim.save_model(nano, tmp_path / "nano.pt"))
    theirs = yolo.val(
        data=str(tmp_path / "images"), imgsz=64, batch=128, workers=0, plots=False, project=str(tmp_path / "runs")
    ).top1
    assert ours > 0.85  # else agreement would mean little
    assert abs(ours - theirs) <= 0.002


# models as people hand them over


def test_the_classifier_in_what_people_hand_over_is_found(fresh, tmp_path):
    yolo = YOLO(slim.save_model(fresh, tmp_path / "mine.pt"))
    assert models.as_classifier(fresh) is fresh
    assert models.as_classifier(yolo) is yolo.model
    assert models.as_classifier(torch.compile(fresh)) is fresh
    assert models.as_classifier(nn.DataParallel(fresh)) is fresh
    assert_same_weights(slim.load_model(slim.save_model(yolo, tmp_path / "again.pt")), fresh)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda model: nn.Linear(2, 2), "student is a Linear: expected a classifier, such as load_model"),
        (lambda model: None, "student is a NoneType: expected a classifier"),
        (lambda model: model.state_dict(), r"student is a \w*[dD]ict, such as a state_dict.*load_state_dict"),
        (lambda model: "nano", r"student='nano' names a model or its file: pass load_model\('nano'\)"),
        (lambda model: WEIGHTS_DIR / "nano.pt", r"student='.*nano\.pt' names a model or its file"),
        (
            lambda model: YOLO("yolov8n.yaml"),
            "student: the YOLO object holds a DetectionModel, not an image classifier",
        ),
        (lambda model: DetectionModel("yolov8n.yaml", verbose=False), "student holds a DetectionModel, not an image"),
        (lambda model: torch.jit.script(nn.Linear(2, 2)), r"student is a TorchScript module.*load the \.pt file"),
    ],
    ids=["layer", "nothing", "state_dict", "name", "path", "YOLO detector", "detector", "TorchScript"],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
def test_what_holds_no_classifier_is_refused_with_the_way_out(fresh, make, words):
    with pytest.raises(TypeError, match=words):
        models.as_classifier(make(fresh), "student")


def test_a_yolo_object_around_an_exported_file_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "small.onnx").write_bytes(b"exported")
    with pytest.raises(TypeError, match=r"student is a YOLO object around the exported file '.*small\.onnx'.*load the"):
        models.as_classifier(YOLO(tmp_path / "small.onnx", task="classify"), "student")


def test_a_yolo_object_is_refused_by_name_where_a_model_is_checked(fresh, tmp_path):
    yolo = YOLO(slim.save_model(fresh, tmp_path / "mine.pt"))
    with pytest.raises(TypeError, match=r"student is a YOLO object: pass its network, student\.model"):
        models.check_classifier(yolo, "student")


def masked(model):
    prune.l1_unstructured(model.model[0].conv, "weight", 0.5)


def parametrized(model):
    nn.utils.parametrizations.weight_norm(model.model[9].linear)


def dynamic_int8(model):
    layer = model.model[9].linear
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.model[9].linear = torch.ao.nn.quantized.dynamic.Linear(layer.in_features, layer.out_features)


UNPLAIN = {
    masked: r"masks of torch\.nn\.utils\.prune, first on layer model\.0\.conv.*prune\.remove\(layer, 'weight'\)",
    parametrized: r"first model\.9\.linear.*remove_parametrizations\(layer, 'weight'\)",
    dynamic_int8: r"quantized by PyTorch: layer model\.9\.linear is a torch\.ao.*quantize_integer",
}


@pytest.mark.parametrize("spoil", UNPLAIN)
def test_layers_whose_weights_are_no_plain_parameters_are_refused_by_name(fresh, tmp_path, spoil):
    yolo = YOLO(slim.save_model(fresh, tmp_path / "mine.pt"))
    spoil(yolo.model)
    for refuse in (
        lambda: models.as_classifier(yolo.model, "source"),
        lambda: slim.load_model(yolo),
        lambda: slim.save_model(yolo.model, tmp_path / "other.pt"),
    ):
        with pytest.raises(ValueError, match=UNPLAIN[spoil]):
            refuse()
    assert not (tmp_path / "other.pt").exists()


def test_the_way_out_of_masks_leads_out(fresh, tmp_path):
    masked(fresh)
    prune.remove(fresh.model[0].conv, "weight")
    loaded = slim.load_model(slim.save_model(fresh, tmp_path / "mine.pt"))
    assert (loaded.model[0].conv.weight == 0).float().mean() == 0.5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        ("model.0.conv.weight", r"in model\.0\.conv\.weight:"),
        ("model.0.bn.running_var", r"in model\.0\.bn\.running_var:"),
    ],
)
def test_numbers_that_are_not_finite_are_refused_by_the_name_of_their_layer(fresh, tmp_path, tensor, words, value):
    slim.save_model(fresh, tmp_path / "sound.pt")
    yolo = YOLO(tmp_path / "sound.pt")
    dict(yolo.model.state_dict())[tensor].flatten()[0] = value
    yolo.save(tmp_path / "broken.pt")
    for refuse in (
        lambda: models.check_finite(yolo.model, "student"),
        lambda: slim.load_model(yolo),
        lambda: slim.load_model(tmp_path / "broken.pt"),
        lambda: slim.save_model(yolo.model, tmp_path / "other.pt"),
    ):
        with pytest.raises(ValueError, match=rf"numbers that are not finite .*{words}.*earlier checkpoint"):
            refuse()
    assert not (tmp_path / "other.pt").exists()


# class names


@pytest.mark.parametrize(
    "names",
    [
        ["ant", "bee", "cat"],
        ("ant", "bee", "cat"),
        {2: "cat", 0: "ant", 1: "bee"},
        {"0": "ant", "1": "bee", "2": "cat"},
        {np.int64(0): np.str_("ant"), np.int64(1): "bee", np.int64(2): "cat"},
    ],
    ids=["list", "tuple", "order", "text", "numpy"],
)
def test_names_are_put_right_when_a_model_enters(fresh, tmp_path, names):
    yolo = YOLO(slim.save_model(fresh, tmp_path / "mine.pt"))
    yolo.model.names = names
    torch.save({"model": yolo.model, "train_args": {"imgsz": 32}}, tmp_path / "theirs.pt")
    saved = slim.save_model(yolo.model, tmp_path / "ours.pt")
    for source in (yolo, tmp_path / "theirs.pt", saved):
        loaded = slim.load_model(source)
        assert list(loaded.names.items()) == [(0, "ant"), (1, "bee"), (2, "cat")]
        assert {type(label) for label in loaded.names} == {int}
    assert YOLO(saved).names == {0: "ant", 1: "bee", 2: "cat"}
    assert yolo.model.names is names


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (dict(enumerate(map(str, range(1000)))), "has 3 outputs and 1000 class names"),
        (["ant", "bee"], "has 3 outputs and 2 class names"),
        ({}, "has 3 outputs and 0 class names"),
        ({1: "ant", 2: "bee", 3: "cat"}, r"for the labels \[1, 2, 3\] …: expected 0 to 2"),
        ({"ant": 0, "bee": 1, "cat": 2}, r"for the labels \['ant', 'bee', 'cat'\] …: expected 0 to 2"),
        (None, "has the class names None"),
    ],
    ids=["too many", "too few", "none at all", "from one", "turned round", "missing"],
)
def test_names_that_fit_no_output_are_refused_with_both_numbers(fresh, tmp_path, names, words):
    yolo = YOLO(slim.save_model(fresh, tmp_path / "mine.pt"))
    yolo.model.names = names
    torch.save({"model": yolo.model}, tmp_path / "theirs.pt")
    for refuse in (
        lambda: slim.load_model(yolo),
        lambda: slim.load_model(tmp_path / "theirs.pt"),
        lambda: slim.save_model(yolo.model, tmp_path / "ours.pt"),
    ):
        with pytest.raises(ValueError, match=rf"{words}.*model\.names = {{.*yolo = YOLO\(path\)"):
            refuse()


def test_the_way_out_of_wrong_names_leads_out(fresh, tmp_path):
    fresh.model[-1].linear = nn.Linear(1280, 4)
    torch.save({"model": fresh, "train_args": {"imgsz": 32}}, tmp_path / "mine.pt")
    with pytest.raises(ValueError, match="has 4 outputs and 3 class names"):
        slim.load_model(tmp_path / "mine.pt")
    yolo = YOLO(tmp_path / "mine.pt")
    yolo.model.names = {0: "ant", 1: "bee", 2: "cat", 3: "dog"}
    assert slim.load_model(yolo).names[3] == "dog"


def test_names_that_occur_twice_stay(fresh, tmp_path):
    """As in ImageNet's list, where a bird and a machine are both called crane."""
    fresh.names = {0: "crane", 1: "bee", 2: "crane"}
    assert slim.load_model(slim.save_model(fresh, tmp_path / "mine.pt")).names == fresh.names


# bad input


def test_a_wrong_name_lists_the_right_ones():
    with pytest.raises(FileNotFoundError, match=r"source='nan0': .*shipped models are \[.*'nano'.*git checkout"):
        slim.load_model("nan0")


@pytest.mark.parametrize("source", [5, None, nn.Linear(2, 2)])
def test_what_is_no_name_path_or_yolo_is_refused(source):
    with pytest.raises(TypeError, match="source=.*expected a name, a path or an ultralytics.YOLO"):
        slim.load_model(source)


def test_a_detector_is_refused(tmp_path):
    detector = YOLO("yolov8n.yaml")
    with pytest.raises(
        TypeError, match="YOLO object holds a DetectionModel, not an image classifier: use a -cls model"
    ):
        slim.load_model(detector)
    detector.save(tmp_path / "detector.pt")
    with pytest.raises(TypeError, match=r"detector\.pt holds a DetectionModel, not an image classifier"):
        slim.load_model(tmp_path / "detector.pt")


@pytest.mark.parametrize("task", ["-seg", "-pose", "-obb"])
def test_models_of_other_tasks_are_refused(tmp_path, task):
    YOLO(f"yolov8n{task}.yaml").save(tmp_path / "other.pt")
    with pytest.raises(TypeError, match=r"other\.pt holds a \w+Model, not an image classifier: use a -cls model"):
        slim.load_model(tmp_path / "other.pt")


def test_networks_of_other_makers_are_refused(tmp_path):
    torch.save({"model": nn.Sequential(nn.Linear(2, 2))}, tmp_path / "other.pt")
    with pytest.raises(TypeError, match=r"other\.pt holds a Sequential, not an image classifier"):
        slim.load_model(tmp_path / "other.pt")


@pytest.mark.parametrize("architecture", ["yolo11n-cls.yaml", "yolov8n-cls-resnet50.yaml"])
def test_classifiers_of_other_families_work(tmp_path, architecture):
    model = slim.new_model(architecture, ("ant", "bee"), image_size=32)
    torch.save({"model": model, "train_args": {"imgsz": 32}}, tmp_path / "theirs.pt")
    loaded = slim.load_model(tmp_path / "theirs.pt")
    assert_same_weights(loaded, model)
    assert_same_weights(slim.load_model(slim.save_model(loaded, tmp_path / "ours.pt")), model)
    assert slim.prune_weights(loaded, 0.5).names == {0: "ant", 1: "bee"}
    assert slim.count_macs(loaded) > 0


def test_no_name_leads_to_the_network_or_away_from_the_file(nano, tmp_path, run_python):
    names = ["it's mine.pt", "yolov5n.pt", "yolov8n-cls.pt", " 模型 ü.PT"]
    for name in names:
        shutil.copy(WEIGHTS_DIR / "nano.pt", tmp_path / name)
        assert_same_weights(slim.load_model(tmp_path / name), nano)
        (tmp_path / name).write_bytes(b"cut short")  # Ultralytics would get some of these again by itself
    answer = run_python(
        """
import os, sys
attempts = []
sys.addaudithook(lambda event, _: attempts.append(event) if event in ("socket.connect", "socket.getaddrinfo") else None)
import yolo_slim_lessons as slim
os.chdir(sys.argv[1])
for name in sys.argv[2:]:
    try:
        slim.load_model(name)
    except ValueError as error:
        assert "is not a readable Ultralytics checkpoint" in str(error), error
print(attempts)
""",
        tmp_path,
        *names,
    )
    assert answer.strip() == "[]"
    assert all((tmp_path / name).read_bytes() == b"cut short" for name in names)


def as_bytes(contents):
    stream = io.BytesIO()
    torch.save(contents, stream)
    return stream.getvalue()


WHOLE = (WEIGHTS_DIR / "nano.pt").read_bytes()
NO_CHECKPOINTS = {
    "nothing": (b"", "it is empty. Get it again"),
    "text": (b"hello", "it begins with b'hello', as no file of PyTorch does. Get it again"),
    "half a checkpoint": (WHOLE[: len(WHOLE) // 2], r"it is cut short: the end of its [\d,]+ bytes is missing"),
    "a web page": (b"\n<!DOCTYPE html><html><body>Not found</body></html>", "it is a web page"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "a list": (as_bytes([1, 2, 3]), "a list without a network"),
    "a tensor": (as_bytes(torch.zeros(3)), "a Tensor without a network"),
    "weights alone": (as_bytes({"weight": torch.zeros(3)}), "weights alone .a state_dict.. Save the whole model"),
    "weights in a checkpoint": (as_bytes({"model": {"weight": torch.zeros(3)}}), "weights alone"),
    "a packed file": (b"SLIM\x01", "slim.load_packed"),
}


@pytest.mark.parametrize("what", NO_CHECKPOINTS)
def test_a_file_that_is_no_checkpoint_is_named_with_what_it_is(tmp_path, what):
    path = tmp_path / "mine.pt"
    contents, words = NO_CHECKPOINTS[what]
    path.write_bytes(contents)
    with pytest.raises(ValueError, match=rf"mine\.pt is not a readable Ultralytics checkpoint: .*{words}"):
        slim.load_model(path)
    assert path.read_bytes() == contents


def test_a_checkpoint_whose_name_ends_otherwise_says_so(nano, tmp_path):
    shutil.copy(WEIGHTS_DIR / "nano.pt", tmp_path / "nano.pth")
    with pytest.raises(ValueError, match=r"nano\.pth is .* expected a file whose name ends in \.pt, not in '\.pth'"):
        slim.load_model(tmp_path / "nano.pth")
    with pytest.raises(ValueError, match="slim.load_packed"):
        slim.load_model(slim.save_packed(nano, tmp_path / "nano.slim"))


def test_missing_shipped_weights_are_named_with_the_way_out(weights_copy):
    (weights_copy / "nano.pt").unlink()
    with pytest.raises(FileNotFoundError, match="'nano'.*git checkout -- data/weights"):
        slim.load_model("nano")


def test_weights_without_their_checksums_say_so(weights_copy):
    (weights_copy / "SHA256SUMS").unlink()
    with pytest.raises(FileNotFoundError, match="SHA256SUMS is missing.*git checkout -- data/weights"):
        slim.load_model("nano")


@pytest.mark.parametrize("how", ["truncated", "altered"])
def test_damaged_shipped_weights_are_named_with_the_way_out(weights_copy, how):
    file = weights_copy / "nano.pt"
    contents = bytearray(file.read_bytes())
    contents[len(contents) // 2] ^= 1
    file.write_bytes(contents if how == "altered" else contents[:-1000])
    with pytest.raises(ValueError, match=r"nano\.pt is damaged or altered.*git checkout -- data/weights/nano\.pt"):
        slim.load_model("nano")


def test_one_damaged_model_does_not_stop_another(weights_copy, nano):
    (weights_copy / "teacher.pt").write_bytes(b"damaged")
    assert_same_weights(slim.load_model("nano"), nano)


def test_save_refuses_other_endings_precisions_and_things(fresh, tmp_path):
    with pytest.raises(ValueError, match=r"path='model\.bin': expected a name that ends in \.pt"):
        slim.save_model(fresh, "model.bin")
    with pytest.raises(ValueError, match="precision='int8': expected 'fp32' or 'fp16'"):
        slim.save_model(fresh, tmp_path / "model.pt", precision="int8")
    with pytest.raises(TypeError, match="model is a Linear: expected a classifier"):
        slim.save_model(nn.Linear(2, 2), tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "quantize",
    [
        lambda model, data: slim.quantize_integer(model, 4),
        lambda model, data: slim.quantize_integer(model, 8, 8, calibration=data.train.take(8)),
        lambda model, data: slim.quantize_float(model, "fp16", activations="fp16"),
    ],
    ids=["integers", "integers and activations", "rounded activations"],
)
def test_models_that_plain_ultralytics_could_not_open_are_refused(quantize, nano, data, tmp_path):
    with pytest.raises(ValueError, match=r"model\.0\.conv.*dequantize\(model\).*save_packed and export_onnx"):
        slim.save_model(quantize(nano, data), tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []


def test_the_ways_out_of_that_refusal_lead_out(nano, tmp_path):
    quantized = slim.quantize_integer(nano, 4)
    images = torch.rand(2, 3, 64, 64)
    plain = slim.load_model(slim.save_model(slim.dequantize(quantized), tmp_path / "plain.pt"))
    packed = slim.load_packed(slim.save_packed(quantized, tmp_path / "model.slim"))
    for loaded in (plain, packed):
        torch.testing.assert_close(models.logits(loaded, images), models.logits(quantized, images))
