"""Simpler architectures, against forward passes written out by hand and in a Python without this package."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import yolo_slim_lessons as slim
from yolo_slim_lessons.data import as_floats
from yolo_slim_lessons.models import logits

KEEP = {"model.2": 0, "model.4": 1, "model.6": 1}


@pytest.fixture(scope="module")
def images(data):
    return as_floats(data.val.take(16).images)


def answers(model, images):
    with torch.no_grad():
        return logits(model, images)


# another activation


@pytest.mark.parametrize(
    ("name", "function"), [("relu", lambda x: x.clamp(min=0)), ("hardswish", lambda x: x * (x + 3).clamp(0, 6) / 6)]
)
def test_every_convolution_is_followed_by_the_new_function(nano, images, name, function):
    changed = slim.replace_activations(nano, name)
    by_hand = copy.deepcopy(nano)
    replaced = [block for block in by_hand.modules() if isinstance(getattr(block, "act", None), nn.SiLU)]
    assert len(replaced) == 26  # all but the linear layer
    for block in replaced:
        block.act = nn.Identity()
        block.register_forward_hook(lambda _, __, output: function(output))
    torch.testing.assert_close(answers(changed, images), answers(by_hand, images), rtol=1e-4, atol=1e-4)


def test_weights_stay_and_silu_comes_back(nano, images):
    before = {name: tensor.clone() for name, tensor in nano.state_dict().items()}
    changed = slim.replace_activations(nano, "relu")
    assert all(tensor.equal(before[name]) for name, tensor in changed.state_dict().items())
    assert not answers(changed, images).allclose(answers(nano, images), atol=0.1)
    assert answers(slim.replace_activations(changed, "silu"), images).equal(answers(nano, images))
    assert isinstance(nano.model[0].act, nn.SiLU)


def test_what_cannot_be_replaced_is_named(nano, data):
    with pytest.raises(ValueError, match=r"activation='gelu': expected one of \['hardswish', 'relu', 'silu'\]"):
        slim.replace_activations(nano, "gelu")
    with pytest.raises(TypeError, match="model is a Linear: expected a classifier"):
        slim.replace_activations(nn.Linear(1, 1))
    quantized = slim.quantize_integer(nano, 8, 8, data.train.take(8))
    with pytest.raises(ValueError, match=r"model\.0 has a QuantizedActivation behind it"):
        slim.replace_activations(quantized)


# fewer bottlenecks


def test_a_block_without_its_last_bottlenecks_by_hand(nano):
    block = nano.model[4]  # two bottlenecks with shortcuts, then a convolution that reads four parts
    shallow = slim.remove_bottlenecks(nano, {"model.4": 1}).model[4]
    x = torch.randn(2, block.cv1.conv.in_channels, 8, 8, generator=torch.Generator().manual_seed(0))

    def convolution(layer, x, weight=None):
        conv, norm = layer.conv, layer.bn
        x = F.conv2d(x, conv.weight if weight is None else weight, padding=conv.padding)
        return F.silu(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps))

    first, second = convolution(block.cv1, x).chunk(2, 1)
    third = second + convolution(block.m[0].cv2, convolution(block.m[0].cv1, second))
    width = first.shape[1]
    expected = convolution(block.cv2, torch.cat([first, second, third], 1), block.cv2.conv.weight[:, : 3 * width])
    with torch.no_grad():
        torch.testing.assert_close(shallow(x), expected, rtol=1e-4, atol=1e-4)


def test_removing_is_reading_nothing_from_what_went(nano, images):
    shallow = slim.remove_bottlenecks(nano, KEEP)
    deaf = copy.deepcopy(nano)
    for name, count in KEEP.items():
        block = deaf.get_submodule(name)
        block.cv2.conv.weight.data[:, (2 + count) * block.c :] = 0
    torch.testing.assert_close(answers(shallow, images), answers(deaf, images), rtol=1e-4, atol=1e-4)
    assert slim.count_parameters(shallow) < slim.count_parameters(nano)
    assert slim.count_macs(shallow) < slim.count_macs(nano)
    assert [len(nano.model[number].m) for number in (2, 4, 6)] == [1, 2, 2]


def test_keeping_all_changes_nothing(nano, images):
    same = slim.remove_bottlenecks(nano, {"model.2": 1, "model.4": 2})
    assert answers(same, images).equal(answers(nano, images))


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ({"model.3": 0}, r"keep names 'model\.3', which has no bottlenecks: expected some of \['model.2'"),
        ({"model.4": 3}, r"keep\['model\.4'\]=3: expected 0 to 2, as many as there are"),
        ({"model.4": -1}, "=-1: expected 0 to 2"),
        ({"model.4": True}, "=True: expected 0 to 2"),
        ({"model.4": 1.0}, "=1.0: expected 0 to 2"),
    ],
)
def test_blocks_and_counts_that_are_not_there(nano, keep, words):
    with pytest.raises(ValueError, match=words):
        slim.remove_bottlenecks(nano, keep)


def test_only_classifiers_have_blocks():
    with pytest.raises(TypeError, match=r"pass load_model\('nano'\)"):
        slim.remove_bottlenecks("nano", {})


# together, and on disk


def test_simple_models_can_be_pruned_trained_and_quantized(nano, data, images, tmp_path):
    small = data.take(train=32, val=10)
    simple = slim.prune_channels(slim.remove_bottlenecks(slim.replace_activations(nano), KEEP), 0.5)
    trained = slim.fit(simple, small, 1, batch_size=16, progress=False)
    quantized = slim.quantize_integer(trained, 4)
    packed = slim.load_packed(slim.save_packed(quantized, tmp_path / "simple.slim"))
    assert answers(packed, images).equal(answers(quantized, images))
    assert isinstance(packed.model[0].act, nn.ReLU)
    assert [len(packed.model[number].m) for number in (2, 4, 6, 8)] == [0, 1, 1, 1]


def test_plain_ultralytics_opens_the_file(nano, data, images, run_python, tmp_path):
    simple = slim.remove_bottlenecks(slim.replace_activations(nano, "relu"), KEEP)
    path = slim.save_model(simple, tmp_path / "simple.pt")
    assert answers(slim.load_model(path), images).equal(answers(simple, images))
    picture = data.val.images[:1].permute(0, 2, 3, 1).numpy()[0]
    np.save(tmp_path / "picture.npy", picture)
    code = """
import json, sys, numpy
class Unknown:  # a Python that has never heard of this package
    def find_spec(self, name, path=None, target=None):
        if name.startswith("yolo_slim"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Unknown())
from ultralytics import YOLO
model = YOLO(sys.argv[1])
result = model.predict(numpy.load(sys.argv[2])[..., ::-1], verbose=False)[0]  # Ultralytics reads BGR
acts = sorted({type(m.act).__name__ for m in model.model.modules() if hasattr(m, "act")})
print("ANSWER", json.dumps([acts, [float(p) for p in result.probs.data]]))
"""
    said = run_python(code, path, tmp_path / "picture.npy", environment={"YOLO_OFFLINE": "true"})
    acts, probabilities = json.loads(said.split("ANSWER", 1)[1])
    assert acts == ["ReLU"]
    expected = slim.predict(simple, data.val[:1], progress=False)[0].tolist()
    assert probabilities == pytest.approx(expected, abs=1e-3)
