"""Checkpoints of every release since Ultralytics 8.0 load; a file that would run code is refused, and nothing runs."""

import builtins
import contextlib
import functools
import io
import operator
import os
import pathlib
import pickle
import subprocess
import threading
import warnings
import zipfile

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torchvision.transforms import InterpolationMode, Lambda
from ultralytics import YOLO
from ultralytics.data.augment import CenterCrop, ClassifyLetterBox, ToTensor, classify_transforms
from ultralytics.nn.modules import TorchVision
from ultralytics.nn.tasks import ClassificationModel
from ultralytics.utils import IterableSimpleNamespace
from ultralytics.utils.loss import v8ClassificationLoss

import yolo_slim_lessons as slim
from yolo_slim_lessons.models import image_size_of
from yolo_slim_lessons.models.permitted import permitted

TINY = {
    "nc": 2,
    "scales": {"n": [1, 1, 1280]},
    "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "C2f", [8, True]]],
    "head": [[-1, 1, "Classify", ["nc"]]],
}
ARGS = {"task": "classify", "imgsz": 32, "data": "flowers", "lr0": 0.01}


def new_network(**description):
    network = ClassificationModel({**TINY, **description}, verbose=False).eval()
    network.names = {0: "ant", 1: "bee"}
    return network


@pytest.fixture
def network():
    torch.manual_seed(0)
    return new_network()


def save(path, contents, renamed=()):
    """Write a checkpoint; ``renamed`` are pairs of what its pickle says and what it shall say instead."""
    stream = io.BytesIO()
    torch.save(contents, stream)
    with zipfile.ZipFile(stream) as made, zipfile.ZipFile(path, "w") as file:
        for name in made.namelist():
            data = made.read(name)
            if name.endswith("data.pkl"):
                for old, new in renamed:
                    assert old in data, old
                    data = data.replace(old, new)
            file.writestr(name, data)
    return path


# what Ultralytics wrote


def stripped(network, **others):
    """What is left of a checkpoint after a training has ended."""
    return {"epoch": -1, "best_fitness": None, "model": network.half(), "ema": None, "optimizer": None, **others}


def under_way(network, **others):
    """What a training writes after each epoch."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network.train()(torch.rand(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    network.eval().zero_grad()
    return {
        "epoch": 3,
        "best_fitness": np.float64(0.5),
        "model": None,
        "ema": network.half(),
        "updates": 40,
        "optimizer": optimizer.state_dict(),
        "train_metrics": {"metrics/accuracy_top1": 0.5, "val/loss": np.float32(0.25), "fitness": np.float64(0.5)},
        "train_results": {"epoch": [1, 2], "time": [1.5, 3.0], "val/loss": [0.5, float("nan")]},
        "date": "2024-01-01T00:00:00",
        **others,
    }


FLAT_MODULES = [
    (b"ultralytics.nn.modules.%s\n" % module, b"ultralytics.nn.modules\n") for module in (b"conv", b"block", b"head")
]
YOLO_DATA = (b"ultralytics.data.augment", b"ultralytics.yolo.data.augment")
YOLO_UTILS = (b"ultralytics.utils\nIter", b"ultralytics.yolo.utils\nIter")
YOLO_LOSS = (b"ultralytics.utils.loss", b"ultralytics.yolo.utils.loss")
DILL_SET = (b"c__builtin__\nset\n", b"cdill._dill\n_load_type\nX\x03\x00\x00\x00set\x85R")


def early_transforms():
    transforms = classify_transforms(32)
    transforms.transforms = [CenterCrop(32), ToTensor()]
    return transforms


def release_8_0_0(network):
    network.transforms = early_transforms()
    old_args = {**ARGS, "v5loader": False, "image_weights": False, "hide_labels": False}
    return stripped(network, train_args=old_args, version="8.0.0"), [*FLAT_MODULES, YOLO_DATA]


def release_8_0_44_under_way(network):
    network.args = IterableSimpleNamespace(**ARGS)
    network.transforms = early_transforms()
    return under_way(network, train_args=ARGS, version="8.0.44"), [*FLAT_MODULES, YOLO_DATA, YOLO_UTILS]


def release_8_0_100(network):
    network.args = IterableSimpleNamespace(**ARGS)
    network.criterion = v8ClassificationLoss()
    namespace = IterableSimpleNamespace(**ARGS)
    return stripped(network, train_args=namespace, version="8.0.100"), [YOLO_UTILS, YOLO_LOSS]


def release_8_1_beside_dill(network):
    network.transforms = classify_transforms(32)
    return under_way(network, train_args=ARGS, version="8.1.0"), [DILL_SET]


def release_8_2_old_numpy(network):
    network.args = IterableSimpleNamespace(**ARGS)
    network.criterion = v8ClassificationLoss()
    network.transforms = classify_transforms(32)
    module = np.float64(0).__reduce__()[0].__module__.encode()
    return under_way(network, train_args=ARGS, version="8.2.70"), [(module, b"numpy.core.multiarray")]


def release_8_3(network):
    network.transforms = classify_transforms(32)
    network.transforms.transforms[0] = ClassifyLetterBox(32)
    git = {"root": "None", "branch": None, "commit": None, "origin": None}
    return stripped(network, train_args=ARGS, version="8.3.200", git=git, license="AGPL-3.0", docs="https://x"), []


def release_8_4_under_way(network):
    return under_way(network, train_args=ARGS, version="8.4.0", scaler={"scale": 65536.0, "_growth_tracker": 0}), []


def of_another_system(network):
    args = {**ARGS, "project": pathlib.PureWindowsPath("runs"), "data": pathlib.Path("flowers")}
    own = f"{pathlib.Path().__class__.__module__}\n{pathlib.Path().__class__.__name__}".encode()
    pure = f"{pathlib.PureWindowsPath.__module__}\nPureWindowsPath".encode()
    return stripped(network, train_args=args), [(own, b"pathlib._local\nPosixPath"), (pure, b"pathlib\nWindowsPath")]


def enum_as_python_3_11_wrote_it(network):
    class Member:
        def __reduce__(self):
            return getattr, (InterpolationMode, "BILINEAR")

    network.transforms = classify_transforms(32)
    network.transforms.transforms[0].interpolation = Member()
    return stripped(network, train_args=ARGS), []


def numpy_labels(network):
    network.names = {np.int64(0): np.str_("ant"), np.int64(1): np.str_("bee")}
    return stripped(network, train_args={**ARGS, "imgsz": np.int32(32)}), []


def fused(network):
    return {"model": network.float().fuse(verbose=False).half(), "train_args": ARGS}, []


def bare(network):
    network.args = ARGS
    return network.half(), []


RELEASES = [
    release_8_0_0,
    release_8_0_44_under_way,
    release_8_0_100,
    release_8_1_beside_dill,
    release_8_2_old_numpy,
    release_8_3,
    release_8_4_under_way,
    of_another_system,
    enum_as_python_3_11_wrote_it,
    numpy_labels,
    fused,
    bare,
]


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.__name__)
def test_what_ultralytics_wrote_since_8_0_loads(network, tmp_path, release):
    contents, renamed = release(network)
    written = contents if isinstance(contents, nn.Module) else contents.get("ema") or contents["model"]
    loaded = slim.load_model(save(tmp_path / "best.pt", contents, renamed))
    assert type(loaded) is ClassificationModel
    assert not loaded.training
    assert loaded.names == {0: "ant", 1: "bee"}
    assert loaded.args["imgsz"] == 32
    expected = written.float().state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(tensor.dtype != torch.float16 and tensor.equal(expected[k]) for k, tensor in loaded.state_dict().items())
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert loaded(images)[1].equal(written.eval()(images)[1])
    again = slim.load_model(slim.save_model(loaded, tmp_path / "again.pt"))
    assert all(tensor.equal(expected[k]) for k, tensor in again.state_dict().items())


@pytest.mark.skipif("YOLO_SLIM_PHOTOGRAPHS" not in os.environ, reason="needs the photographs beside the project")
@pytest.mark.parametrize(("name", "classes"), [("yolov8n-cls-fruit.pt", 37), ("yolo11n-cls-vehicles.pt", 7)])
def test_checkpoints_that_other_people_trained_load(name, classes):
    path = pathlib.Path(os.environ["YOLO_SLIM_PHOTOGRAPHS"]) / name
    loaded, trusted = slim.load_model(path), slim.load_model(path, trust=True)
    assert len(loaded.names) == classes
    assert str(loaded) == str(trusted)
    assert all(a.equal(b) for a, b in zip(loaded.state_dict().values(), trusted.state_dict().values(), strict=True))


def test_a_layer_that_remembers_a_class_still_has_the_class_itself(network, tmp_path):
    network.model[0].norm_layer = nn.BatchNorm2d
    loaded = slim.load_model(save(tmp_path / "mine.pt", {"model": network, "train_args": ARGS}))
    assert loaded.model[0].norm_layer is nn.BatchNorm2d


def test_many_threads_load_at_once_and_pytorchs_own_list_stays(network, tmp_path):
    path = save(tmp_path / "mine.pt", {"model": network, "train_args": ARGS})
    before = torch.serialization.get_safe_globals()
    loaded = []
    threads = [threading.Thread(target=lambda: loaded.append(slim.load_model(path))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 6
    assert torch.serialization.get_safe_globals() == before


# files that would run code


class Call:
    """Pickled, it is a call of ``function`` with ``arguments``, then ``state`` is set on what comes back."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


def touch(path):
    return f"__import__('pathlib').Path({str(path)!r}).touch()"


def inside(thing):
    """A layer with ``thing`` in it."""
    layer = nn.Identity()
    layer.__dict__["thing"] = thing
    return layer


# Each makes what runs code, which creates the file ``mark``, and says which name the refusal gives.
GADGETS = {
    "os.system": (lambda mark: Call(os.system, f"echo > '{mark}'"), r"(posix|nt)\.system"),
    "eval": (lambda mark: Call(eval, touch(mark)), r"builtins\.eval"),
    "exec": (lambda mark: Call(exec, touch(mark)), r"builtins\.exec"),
    "a process": (lambda mark: Call(subprocess.Popen, ["touch", str(mark)]), r"(subprocess|commands)\.Popen"),
    "a file written": (lambda mark: Call(io.open, str(mark), "w"), r"(_?io|builtins)\.open"),
    "a path touched": (lambda mark: Call(pathlib.Path.touch, mark), r"builtins\.getattr|pathlib|asks for"),
    "a second file": (lambda mark: Call(torch.load, str(mark)), r"torch\.serialization\.load"),
    "import": (lambda mark: Call(builtins.__import__, "antigravity"), r"builtins\.__import__"),
    "partial": (lambda mark: Call(functools.partial, eval, touch(mark)), r"functools\.partial"),
    "methodcaller": (lambda mark: Call(operator.methodcaller, "touch"), r"operator\.methodcaller"),
    "in a layer": (lambda mark: inside(Call(eval, touch(mark))), r"builtins\.eval"),
    "a lambda transform": (lambda mark: inside(Lambda(os.system)), r"(posix|nt)\.system.*transforms\.Lambda"),
    "in the rebuilding of a tensor": (
        lambda mark: Call(torch._utils._rebuild_parameter, Call(eval, touch(mark)), False, None),
        r"builtins\.eval",
    ),
    "by the rebuilding of a tensor": (
        lambda mark: Call(torch._tensor._rebuild_from_type_v2, eval, torch.Tensor, (touch(mark),), {}),
        r"builtins\.eval",
    ),
    # What follows asks only for what is permitted: it is the use that is refused.
    "a network that evaluates its settings": (
        lambda mark: Call(ClassificationModel, {**TINY, "activation": touch(mark)}),
        r"calls ultralytics\.nn\.tasks\.ClassificationModel",
    ),
    "by the rebuilding, permitted parts": (
        lambda mark: Call(
            torch._tensor._rebuild_from_type_v2,
            ClassificationModel,
            torch.Tensor,
            ({**TINY, "activation": touch(mark)},),
            {},
        ),
        r"calls ultralytics\.nn\.tasks\.ClassificationModel",
    ),
    "a layer that downloads": (
        lambda mark: Call(TorchVision, "resnet18", "DEFAULT"),
        r"calls ultralytics\.nn\.modules\.block\.TorchVision",
    ),
    "attributes of any object": (lambda mark: Call(getattr, nn.Conv2d, "__init__"), r"asks for '__init__'"),
    "a class changed for all": (lambda mark: Call(getattr, nn.Conv2d, "forward", state={}), r"asks for 'forward'"),
    "an enum changed for all": (
        lambda mark: Call(InterpolationMode, "bilinear", state={"_value_": "nearest"}),
        r"Can only build",
    ),
    "numbers that are objects": (lambda mark: Call(np.dtype, "O"), r"type 'O'"),
}


def tamper(network, gadget, where):
    contents = {"model": network, "train_args": ARGS}
    if where == "beside the network":
        return {**contents, "train_metrics": gadget}
    if where == "in its settings":
        return {**contents, "train_args": {**ARGS, "project": gadget}}
    network.criterion = gadget
    return contents


@pytest.mark.parametrize("what", GADGETS)
def test_a_file_that_would_run_code_is_refused_and_nothing_runs(network, tmp_path, what):
    gadget, name = GADGETS[what]
    mark = tmp_path / "it ran"
    for where in ("beside the network", "in its settings", "in the network"):
        path = save(tmp_path / "best.pt", tamper(network, gadget(mark), where))
        with pytest.raises(ValueError, match=rf"best\.pt is not a readable Ultralytics checkpoint: .*{name}"):
            slim.load_model(path)
        assert not mark.exists()
    assert InterpolationMode.BILINEAR.value == "bilinear"
    assert nn.Conv2d.forward.__qualname__ == "Conv2d.forward"


@pytest.mark.parametrize("what", ["os.system", "eval", "in a layer", "a network that evaluates its settings"])
def test_the_same_file_runs_code_for_whoever_trusts_it(network, tmp_path, what):
    """Else the test above would prove nothing."""
    mark = tmp_path / "it ran"
    path = save(tmp_path / "best.pt", tamper(network, GADGETS[what][0](mark), "in its settings"))
    with contextlib.suppress(ValueError):  # once it has run, what is left may be no setting
        slim.load_model(path, trust=True)
    assert mark.exists()


@pytest.mark.parametrize(
    "description",
    [
        {"activation": "__import__('os').system('true')"},
        {"activation": "nn.ReLU(open('x'))"},
        {"head": [[-1, 1, "yaml_model_load", ["x"]]]},
        {"head": [[-1, 1, "ClassificationModel", ["x"]]]},
    ],
)
def test_a_description_that_ultralytics_would_run_when_it_trains_is_refused(network, tmp_path, description):
    network.yaml = {**network.yaml, **description}
    with pytest.raises(ValueError, match="its activation is|its description has"):
        slim.load_model(save(tmp_path / "best.pt", {"model": network, "train_args": ARGS}))


@pytest.mark.parametrize("activation", ["nn.ReLU()", "torch.nn.LeakyReLU(negative_slope=0.1, inplace=True)"])
def test_activations_of_pytorch_are_permitted_in_a_description(tmp_path, activation):
    network = new_network(activation=activation)
    assert slim.load_model(save(tmp_path / "best.pt", {"model": network, "train_args": ARGS})).yaml == network.yaml


@pytest.mark.parametrize(
    "name",
    [
        "builtins.eval",
        "builtins.object",
        "functools.partial",
        "operator.attrgetter",
        "posix.system",
        "torch.serialization.load",
        "torch.hub.load",
        "torch.nn.modules.module.torch",
        "torch.nn.modules.module.Module.__init__",
        "torch.nn.modules.conv.Optional",
        "torch.nn.utils.prune.L1Unstructured",
        "torchvision.transforms.transforms.Lambda",
        "torchvision.models.feature_extraction.DualGraphModule",
        "torchvision.models.get_model",
        "ultralytics.nn.autobackend.AutoBackend",
        "ultralytics.nn.tasks.DetectionModel",
        "ultralytics.nn.tasks.YAML",
        "ultralytics.utils.downloads.safe_download",
        "ultralytics.models.yolo.model.YOLO",
        "numpy.load",
        "pathlib.os",
        "",
        "Conv",
    ],
)
def test_what_could_do_harm_is_not_permitted(name):
    assert permitted(name) is None


# files that are refused for another reason


def write_foreign(path, network, *names):
    """A checkpoint whose network has layers of classes that are not here."""
    stand_ins = [f"Foreign{number}" for number in range(len(names))]
    for stand_in, layer in zip(stand_ins, network.model, strict=False):
        globals()[stand_in] = type(stand_in, (nn.Module,), {"__module__": __name__})
        layer.extra = globals()[stand_in]()
    renamed = [
        (f"c{__name__}\n{stand_in}\n".encode(), "c{}\n{}\n".format(*name.rsplit(".", 1)).encode())
        for stand_in, name in zip(stand_ins, names, strict=True)
    ]
    return save(path, {"model": network, "train_args": ARGS}, renamed)


FOREIGN = {
    "a newer release": (
        ["ultralytics.nn.modules.block.C9k9"],
        r"\.block\.C9k9, which Ultralytics 8\S+ does not have.*pip install -U ultralytics",
    ),
    "a newer module": (["ultralytics.nn.moe.Gate"], r"ultralytics\.nn\.moe\.Gate.*pip install -U ultralytics"),
    "a newer release and something else": (
        ["ultralytics.nn.modules.block.C9k9", "os.system"],
        r"asks for (os|posix)\.system, .*C9k9, of which no classifier.*trust=True",
    ),
    "what is there but no layer": (
        ["ultralytics.utils.downloads.safe_download"],
        r"asks for ultralytics\.utils\.downloads\.safe_download, of which no classifier.*trust=True",
    ),
    "an own block": (["__main__.MyBlock"], r"asks for __main__\.MyBlock, of which no classifier.*own: .*trust=True"),
    "dill": (["dill._dill._create_function"], r"dill\._dill\._create_function.*trust=True.*pip install dill"),
    "YOLOv5": (["models.yolo.ClassificationModel", "models.common.Conv"], "YOLOv5 or YOLOv7 .*yolov8n-cls.pt"),
    "Lightning": (["pytorch_lightning.utilities.parsing.AttributeDict"], "PyTorch Lightning.*load_state_dict"),
    "int8 layers": (["torch.ao.nn.quantized.dynamic.modules.linear.Linear"], "quantized by PyTorch.*float checkpoint"),
    "a YOLO object": (["ultralytics.models.yolo.model.YOLO"], r"more than a network.*yolo\.save\(path\)"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_file_that_asks_for_more_is_refused_by_name_with_the_way_out(network, tmp_path, what):
    names, words = FOREIGN[what]
    path = write_foreign(tmp_path / "best.pt", network, *names)
    with pytest.raises(ValueError, match=rf"best\.pt is not a readable Ultralytics checkpoint: .*{words}") as caught:
        slim.load_model(path)
    assert "train it again" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dill._dill.Thing", r"needs the module 'dill\S*', which is not here: pip install dill"),
        ("my_blocks.Attention", "needs the module 'my_blocks', which is not here: install the package that has it"),
        ("models.common.Conv", "YOLOv5 or YOLOv7"),
        ("ultralytics.nn.modules.block.C9k9", "pip install -U ultralytics"),
        ("__main__.MyBlock", "it needs what is not here .*MyBlock"),
    ],
)
def test_a_trusted_file_says_what_it_lacks(network, tmp_path, name, words):
    path = write_foreign(tmp_path / "best.pt", network, name)
    with pytest.raises(ValueError, match=words) as caught:
        slim.load_model(path, trust=True)
    assert "trust=True" not in str(caught.value)


def test_an_own_block_loads_for_whoever_trusts_the_file(network, tmp_path):
    network.model[0].act = OwnActivation()
    path = save(tmp_path / "mine.pt", {"model": network, "train_args": ARGS})
    with pytest.raises(ValueError, match=rf"asks for {__name__}\.OwnActivation, .*trust=True"):
        slim.load_model(path)
    assert type(slim.load_model(path, trust=True).model[0].act) is OwnActivation


class OwnActivation(nn.Module):
    def forward(self, features):
        return features.clamp(0, 6)


def test_masks_in_a_file_are_named_with_the_way_out(network, tmp_path):
    prune.l1_unstructured(network.model[0].conv, "weight", 0.5)
    path = save(tmp_path / "masked.pt", {"model": network, "train_args": ARGS})
    for trust in (False, True):
        with pytest.raises(ValueError, match=r"under masks|masks of torch\.nn\.utils\.prune.*model\.0\.conv") as caught:
            slim.load_model(path, trust=trust)
        assert "torch.nn.utils.prune.remove(layer, 'weight')" in str(caught.value)


def test_old_forms_of_pytorch_need_trust(network, tmp_path):
    contents = {"model": network, "train_args": ARGS}
    torch.save(contents, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="PyTorch wrote before 1.6.*trust=True"):
        slim.load_model(tmp_path / "old.pt")
    torch.save(contents, tmp_path / "other.pt", pickle_protocol=4)
    with pytest.raises(ValueError, match="instructions that torch.save does not write.*trust=True"):
        slim.load_model(tmp_path / "other.pt")
    for name in ("old.pt", "other.pt"):
        assert slim.load_model(tmp_path / name, trust=True).names == {0: "ant", 1: "bee"}


# other kinds of file


def as_bytes(contents, **how):
    stream = io.BytesIO()
    torch.save(contents, stream, **how)
    return stream.getvalue()


def zipped(**members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/").replace("_pt", ".pt").replace("_pkl", ".pkl"), data)
    return stream.getvalue()


def torchscript():
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), stream)
    return stream.getvalue()


def onnx_file():
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    return onnx.helper.make_model(graph).SerializeToString()


WHOLE = as_bytes({"model": nn.Linear(64, 64)})
FLIPPED = bytearray(WHOLE)
FLIPPED[len(WHOLE) // 2] ^= 1
HEADER = b'{"weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
KINDS = {
    "TorchScript": (torchscript, r"a TorchScript file.*Load the \.pt file that it was exported from"),
    "ONNX": (onnx_file, r"an ONNX file.*Load the \.pt file that it was exported from"),
    "LiteRT": (lambda: b"\x1c\x00\x00\x00TFL3" + bytes(200), "a LiteRT .TensorFlow Lite. file"),
    "safetensors": (lambda: len(HEADER).to_bytes(8, "little") + HEADER + bytes(4), "safetensors.*load_state_dict"),
    "Keras": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(200), "an HDF5 file"),
    "a picture": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(200), "a PNG image"),
    "gzip": (lambda: b"\x1f\x8b\x08" + bytes(200), "packed by gzip. Unpack it first"),
    "a zip archive": (lambda: zipped(readme=b"hello"), "a zip archive without a checkpoint in it"),
    "a zip archive around it": (lambda: zipped(weights__best_pt=WHOLE), r"around weights/best\.pt. Unpack it first"),
    "cut short": (lambda: WHOLE[:-100], rf"cut short: the end of its {len(WHOLE) - 100:,} bytes is missing"),
    "one bit flipped": (lambda: bytes(FLIPPED), r"damaged: its part \S+data/\d is not what was written"),
    "other bytes": (lambda: b"\x00\x01\x02\x03" * 50, r"begins with b'\\x00\\x01\\x02\\x03"),
    "Lightning": (
        lambda: as_bytes({"pytorch-lightning_version": "2.0", "state_dict": {}}),
        "a checkpoint of PyTorch Lightning, which holds weights alone",
    ),
    "settings": (lambda: as_bytes({"lr0": 0.1, "epochs": 3}), "a dict without a network, of 'lr0', 'epochs'"),
    "an empty dict": (lambda: as_bytes({}), "a dict without a network, of nothing"),
    "a pickle": (lambda: pickle.dumps({"epoch": 3}), "a Python pickle that torch.save did not write"),
}


@pytest.mark.parametrize("what", KINDS)
def test_a_file_of_another_kind_is_named_with_what_it_is(tmp_path, what):
    made, words = KINDS[what]
    (tmp_path / "mine.pt").write_bytes(made())
    for trust in (False, True):
        with pytest.raises(ValueError, match=rf"mine\.pt is not a readable Ultralytics checkpoint: .*{words}"):
            slim.load_model(tmp_path / "mine.pt", trust=trust)


def read_or_refused(path, expected):
    """The message of a refusal; ``None`` if the file was read, to the very weights that were written."""
    try:
        loaded = slim.load_model(path).state_dict()
    except ValueError as error:
        return str(error)
    assert all(tensor.equal(expected[name]) for name, tensor in loaded.items())
    return None


def test_whatever_is_cut_off_or_changed_is_refused_by_name(network, tmp_path):
    """A checkpoint with a byte changed, or cut, anywhere: read as it was, or refused; never anything else."""
    path = save(tmp_path / "best.pt", {"model": network.half(), "train_args": ARGS})
    whole, expected = path.read_bytes(), slim.load_model(path).state_dict()
    draws = np.random.default_rng(0)
    refused = 0
    for number in range(60):
        place = int(draws.integers(len(whole)))
        changed = bytearray(whole[:place] if number % 3 == 0 else whole)
        if number % 3:
            changed[place] ^= int(draws.integers(1, 256))
        path.write_bytes(changed)
        message = read_or_refused(path, expected)
        assert message is None or f"{path} is not a readable Ultralytics checkpoint: it " in message
        refused += message is not None
    assert refused > 50


@pytest.mark.parametrize("spoilt", [{"_buffers": set()}, {"_modules": {1: nn.Identity()}}, {"_parameters": None}])
def test_a_network_of_parts_that_do_not_belong_together_is_refused_by_name(network, tmp_path, spoilt):
    path = tmp_path / "best.pt"
    network.model[1].cv1.__dict__.update(spoilt)
    with pytest.raises(
        ValueError, match=r"best\.pt is not a readable Ultralytics checkpoint: it cannot be read \(\w+Error"
    ):
        slim.load_model(save(path, {"model": network, "train_args": ARGS}))


# YOLO objects


def test_a_yolo_object_around_an_exported_file_says_what_the_file_is(tmp_path):
    (tmp_path / "small.onnx").write_bytes(onnx_file())
    with pytest.raises(ValueError, match=r"small\.onnx is not a readable Ultralytics checkpoint: it is an ONNX file"):
        slim.load_model(YOLO(tmp_path / "small.onnx", task="classify"))


def test_a_file_that_names_no_image_size_is_not_taken_for_one_of_640_pixels(network, tmp_path):
    path = save(tmp_path / "silent.pt", {"model": network, "train_args": {}})
    loaded = slim.load_model(path)
    with pytest.raises(ValueError, match="image size is None"):
        image_size_of(loaded)
    assert "imgsz" not in slim.load_model(slim.save_model(loaded, tmp_path / "again.pt")).args
