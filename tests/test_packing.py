"""The .slim file: every value comes back, in hardly more than its entropy, and no other file is taken for a model."""

import json
import math
import random
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats
from ultralytics.nn.modules import Bottleneck, C2f

import yolo_slim_lessons as slim
from yolo_slim_lessons.files import WEIGHTS_DIR
from yolo_slim_lessons.packing import container, entropy_bits, entropy_coder, values
from yolo_slim_lessons.packing.structure import build
from yolo_slim_lessons.quantization import quantize_integer
from yolo_slim_lessons.quantization.floats import float_format


def weights_of(model):
    return [layer.weight.detach() for _, layer in slim.weight_layers(model)]


def half(model):
    return slim.models.copy_model(model).half()


def bfloat16(model):
    return slim.models.copy_model(model).bfloat16()


def fused(model):
    return slim.models.copy_model(model).fuse(verbose=False)


def clustered(model):
    """Every layer's weights replaced by one of 16 odd values of its own, as weight sharing does (Han et al., 2016)."""
    model = slim.models.copy_model(model)
    for layer_weight in weights_of(model):
        book = layer_weight.flatten().quantile(torch.linspace(0.03, 0.97, 16)) * 1.0001
        layer_weight.copy_(book[(layer_weight[..., None] - book).abs().argmin(-1)])
    return model


@pytest.fixture(scope="module")
def small(nano):
    """nano with a quarter of its channels: about 95,000 weights."""
    return slim.prune_channels(nano, 0.75)


@pytest.fixture(scope="module")
def tiny():
    """An untrained network of a few thousand weights."""
    model = slim.new_model("yolov8n-cls.yaml", ("cat", "dög"), image_size=32, seed=5)
    return slim.prune_channels(model, 0.9, round_to=1)


@pytest.fixture(scope="module")
def packed(tiny, data, tmp_path_factory):
    """The bytes of two files of a tiny network: as it is, and quantized to integers."""
    path = tmp_path_factory.mktemp("packed") / "tiny.slim"
    integers = quantize_integer(tiny, 4, 8, data.val.take(20), symmetric=False)
    return {name: slim.save_packed(m, path).read_bytes() for name, m in (("plain", tiny), ("integers", integers))}


def assert_same(loaded, model):
    expected, found = model.state_dict(), loaded.state_dict()
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert found[name].numpy(force=True).tobytes() == tensor.contiguous().numpy(force=True).tobytes(), name
    assert loaded.names == model.names
    assert slim.models.image_size_of(loaded) == slim.models.image_size_of(model)
    assert not loaded.training


VARIANTS = {
    "as it is": lambda model, data: model,
    "half": lambda model, data: half(model),
    "fused": lambda model, data: fused(model),
    "sparse": lambda model, data: slim.prune_weights(model, 0.9),
    "fp8": lambda model, data: slim.quantize_float(model, "fp8_e4m3", scale="channel"),
    "e2m1 with fp16 activations": lambda model, data: slim.quantize_float(model, "e2m1", activations="fp16"),
    "clustered": lambda model, data: clustered(model),
    "W4": lambda model, data: quantize_integer(model, 4),
    "W16 by tensor": lambda model, data: quantize_integer(model, 16, granularity="tensor", symmetric=False),
    "W8A8": lambda model, data: quantize_integer(model, 8, 8, data.val.take(20)),
    "mixed": lambda model, data: quantize_integer(model, {"model.0.conv": 8, "model.3.conv": 2}),
    "ReLU": lambda model, data: slim.replace_activations(model, "relu"),
    "fewer blocks, W4A8": lambda model, data: quantize_integer(
        slim.remove_bottlenecks(slim.replace_activations(model), {"model.2": 0, "model.4": 1}), 4, 8, data.val.take(20)
    ),
    "sparse W3": lambda model, data: quantize_integer(slim.prune_weights(model, 0.8), 3),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_comes_back_to_the_last_bit_and_answers_the_same(small, data, tmp_path, variant):
    model = VARIANTS[variant](small, data)
    loaded = slim.load_packed(slim.save_packed(model, tmp_path / "model.slim"))
    assert_same(loaded, model)
    images = data.val.take(8).images.float().div(255).to(next(slim.models.values_of(model)).dtype)
    with torch.inference_mode():
        assert torch.equal(slim.models.logits(loaded, images), slim.models.logits(model, images))


@pytest.mark.parametrize("name", ["nano", "teacher"])
def test_shipped_models_are_smaller_than_their_checkpoints(name, tmp_path):
    model = slim.load_model(name)
    path = slim.save_packed(model, tmp_path / "model.slim")
    assert_same(slim.load_packed(path), model)
    assert path.stat().st_size < 0.9 * (WEIGHTS_DIR / f"{name}.pt").stat().st_size


@pytest.mark.parametrize("architecture", ["yolo11n-cls", "yolo26n-cls"])
def test_other_families(architecture, tmp_path):
    model = slim.new_model(f"{architecture}.yaml", ("a", "b", "c"), seed=1)
    for version in (model, quantize_integer(model, 4)):
        assert_same(slim.load_packed(slim.save_packed(version, tmp_path / "model.slim")), version)


def test_goes_on_from_a_packed_file(tiny, data, tmp_path):
    loaded = slim.load_packed(slim.save_packed(tiny, tmp_path / "tiny.slim"))
    checkpoint = slim.load_model(slim.save_model(loaded, tmp_path / "tiny.pt"))
    assert_same(checkpoint, tiny)
    assert slim.count_parameters(slim.prune_channels(loaded, 0.5, round_to=1)) < slim.count_parameters(loaded)


def test_settings_of_layers_come_back(tiny, tmp_path):
    model = slim.models.copy_model(tiny)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # as in the checkpoints that Ultralytics trained on ImageNet
            layer.eps, layer.momentum = 1e-3, 0.03
    model.model[-1].drop.p = 0.2
    assert str(slim.load_packed(slim.save_packed(model, tmp_path / "tiny.slim"))) == str(model)


def entropy_bytes(tensor):
    """By scipy, independently of the package."""
    counts = np.unique(tensor.numpy(), return_counts=True)[1]
    return stats.entropy(counts, base=2) * tensor.numel() / 8


@pytest.mark.parametrize(
    ("which", "bits"), [("nano", 8), ("nano", 4), ("nano", 3), ("small", 8), ("small", 4), ("small", 3)]
)
def test_a_file_is_hardly_larger_than_the_entropy_of_its_integers(nano, small, tmp_path, which, bits):
    model = quantize_integer({"nano": nano, "small": small}[which], bits)
    path = slim.save_packed(model, tmp_path / "model.slim")
    integers = sum(entropy_bytes(layer.integers) for _, layer in slim.weight_layers(model))
    sizes = slim.packed_sizes(path)
    scales_and_biases = sum(part.bytes for part in sizes.parts if not part.name.endswith("integers"))
    assert path.stat().st_size <= 1.03 * integers + scales_and_biases
    # and what these need is less than four bytes each
    count = sum(layer.bias.numel() + layer.weight_grid.scale.numel() for _, layer in slim.weight_layers(model))
    assert scales_and_biases < 4 * count


def test_floats_of_few_bits_take_few_bits(nano, tmp_path):
    for name in ("bf16", "fp8_e4m3", "e2m1"):
        model = slim.quantize_float(nano, name, scale="tensor")
        path = slim.save_packed(model, tmp_path / "model.slim")
        weights = sum(entropy_bytes(weight) for weight in weights_of(model))
        biases = 4 * sum(layer.bias.numel() for _, layer in slim.weight_layers(model))
        bits = float_format(name).bits
        assert path.stat().st_size < bits / 8 * sum(weight.numel() for weight in weights_of(model)) + biases
        if bits <= 8:
            assert path.stat().st_size <= 1.03 * weights + biases


def test_zeros_and_shared_values_cost_little(nano):
    whole = slim.packed_sizes(nano).file
    sparse = slim.prune_weights(nano, 0.9)
    # A bit for each weight at the entropy of 90 % zeros, 0.469, and 14 bits for every tenth: 1.87 bits a weight.
    assert slim.packed_sizes(sparse).file < 1.1 * 1.87 / 8 * slim.count_parameters(nano)
    shared = slim.packed_sizes(clustered(nano))
    assert shared.file < whole / 3
    assert all(part.encoding.book == 16 for part in shared.parts if part.values > 100_000)


def test_sizes_add_up_and_render(small, tmp_path):
    path = slim.save_packed(quantize_integer(small, 4), tmp_path / "small.slim")
    for sizes in (slim.packed_sizes(path), slim.packed_sizes(slim.load_packed(path))):
        parts = sum(part.bytes for part in sizes.parts)
        assert sizes.file == path.stat().st_size
        assert parts + sizes.frame + sizes.description + sizes.tables + sizes.coder == pytest.approx(sizes.file)
    assert 0 < sizes.coder < 200
    weights = {part.name: part for part in sizes.parts}["model.7.conv.integers"]
    assert weights.values == math.prod(dict(slim.weight_layers(small))["model.7.conv"].weight.shape)
    assert weights.bytes == pytest.approx(weights.entropy_bytes, rel=0.02)
    assert f"{sizes.file:,}" in repr(sizes)
    assert sizes._repr_html_().count("<tr>") == len(sizes.rows()) + 1


def test_entropy_by_hand_and_by_scipy():
    assert entropy_bits([]) == entropy_bits([7, 7, 7]) == 0
    assert entropy_bits(torch.tensor([[1, 2], [3, 4]])) == 8
    draws = np.random.default_rng(0).binomial(20, 0.3, 5000)
    assert entropy_bits(draws) / 8 == pytest.approx(entropy_bytes(torch.from_numpy(draws)))


@given(arrays.arrays(np.int64, st.integers(1, 3000), elements=st.integers(0, 300), fill=st.just(7)), st.data())
@settings(max_examples=60)
def test_coder_returns_what_it_was_given(symbols, more):
    second = np.array(more.draw(st.lists(st.integers(0, 3), min_size=1)))
    tables = [entropy_coder.frequencies(entropy_coder.rough_counts(np.bincount(s))) for s in (symbols, second)]
    assert all(table.sum() == 2**entropy_coder.PRECISION for table in tables)
    data = entropy_coder.encode([symbols, second], tables)
    found = entropy_coder.decode(data, [len(symbols), len(second)], tables)
    np.testing.assert_array_equal(found[0], symbols)
    np.testing.assert_array_equal(found[1], second)
    for damaged in (data[:-1], data[:-2], data + b"\0\0", b""):
        with pytest.raises(ValueError, match="coded symbols are"):
            entropy_coder.decode(damaged, [len(symbols), len(second)], tables)


@pytest.mark.parametrize("symbols", [2, 15, 255, 4096])
def test_coder_comes_close_to_the_entropy(symbols):
    generator = np.random.default_rng(symbols)
    draws = generator.choice(symbols, 400_000, p=generator.dirichlet(np.full(symbols, 0.5)))
    table = entropy_coder.frequencies(entropy_coder.rough_counts(np.bincount(draws, minlength=symbols)))
    ends = 5 * (len(draws) // 4096)  # bytes of the states
    assert len(entropy_coder.encode([draws], [table])) < 1.01 * entropy_bits(draws) / 8 + ends
    assert len(entropy_coder.encode([draws * 0], [np.array([1 << 15], dtype=np.int64)])) < 500  # nothing new is said


FLAT = {
    torch.float32: arrays.arrays(np.uint32, st.integers(1, 400), elements=st.integers(0, 2**32 - 1)),
    torch.float16: arrays.arrays(np.uint16, st.integers(1, 400), elements=st.integers(0, 2**16 - 1)),
    torch.bfloat16: arrays.arrays(np.uint16, st.integers(1, 400), elements=st.integers(0, 2**16 - 1)),
}


def round_trip(tensor):
    part = values.encode_values(tensor)
    symbols = entropy_coder.encode(part.symbols, [entropy_coder.frequencies(level) for level in part.levels])
    sections = [b"", values.write_levels(part.levels), memoryview(part.plain), symbols]
    return container.read_parts([part.encoding], [(tensor.dtype, len(tensor))], sections)[0].tensor()


@given(st.sampled_from(list(FLAT)), st.data())
@settings(max_examples=150)
def test_any_float_comes_back_bit_by_bit(dtype, draw):
    patterns = draw.draw(FLAT[dtype])
    patterns = np.repeat(patterns, draw.draw(st.sampled_from([1, 50])))  # repeated values, too, make a codebook
    zeros = draw.draw(st.sampled_from([1, 2, 30]))
    patterns[np.arange(len(patterns)) % zeros > 0] = 0  # and zeros a mask
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    tensor = torch.from_numpy(patterns.view(np.int32 if integer == torch.int32 else np.int16)).view(dtype)
    assert torch.equal(round_trip(tensor).view(integer), tensor.view(integer))


@given(
    st.sampled_from([torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64]),
    st.integers(1, 2000),
    st.integers(0, 40),
    st.integers(0, 2**32),
)
@settings(max_examples=100)
def test_any_integer_comes_back(dtype, count, spread, seed):
    info = torch.iinfo(dtype)
    low, high = max(info.min, -(2**spread), -(2**31)), min(info.max, 2**spread, 2**31 - 1)
    tensor = torch.randint(low, high + 1, (count,), generator=torch.Generator().manual_seed(seed)).to(dtype)
    tensor[0] = high
    assert torch.equal(round_trip(tensor), tensor)


def test_values_that_have_no_place_are_refused():
    with pytest.raises(ValueError, match="more than 32 bits"):
        values.encode_values(torch.tensor([2**40]))
    with pytest.raises(ValueError, match="float64"):
        values.encode_values(torch.ones(2).double())


def test_wrong_arguments_are_named(tiny, tmp_path):
    with pytest.raises(ValueError, match="tiny.pt.*ends in .slim"):
        slim.save_packed(tiny, tmp_path / "tiny.pt")
    with pytest.raises(ValueError, match=r"ends in \.slim"):
        slim.load_packed(tmp_path / "tiny.pt")
    for call in (slim.load_packed, slim.packed_sizes):
        with pytest.raises(FileNotFoundError, match="none.slim.*no such file"):
            call(tmp_path / "none.slim")
    (tmp_path / "folder.slim").mkdir()
    with pytest.raises(FileNotFoundError, match="folder.slim"):
        slim.load_packed(tmp_path / "folder.slim")
    with pytest.raises(TypeError, match="Linear"):
        slim.save_packed(torch.nn.Linear(2, 2), tmp_path / "a.slim")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.slim"]


def test_networks_that_could_not_be_rebuilt_are_refused(tiny, tmp_path):
    def change(edit):
        model = slim.models.copy_model(tiny)
        edit(model)
        return model

    def relu(model):
        model.model[0].act = torch.nn.ReLU()

    def stride(model):
        model.model[1].conv.stride = (1, 1)

    def shortcut(model):
        bottleneck = next(block for block in model.modules() if isinstance(block, Bottleneck))
        bottleneck.cv2.add_module("extra", torch.nn.Linear(1, 1))

    cases = [(change(relu), "ReLU"), (change(stride), "stride"), (change(shortcut), "extra|expected")]
    cases += [(change(lambda m: m.yaml.update(yaml_file="mine.yaml")), "'mine.yaml'")]
    cases += [(change(lambda m: m.double()), "float64")]
    for model, words in cases:
        with pytest.raises(ValueError, match=words):
            slim.save_packed(model, tmp_path / "tiny.slim")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tiny, tmp_path, monkeypatch):
    path = slim.save_packed(tiny, tmp_path / "tiny.slim")
    before = path.read_bytes()

    def full(self, data):
        self.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(type(path), "write_bytes", full)
    with pytest.raises(OSError, match="disk full"):
        slim.save_packed(tiny, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.slim"]


def refused(path, data):
    path.write_bytes(data)
    with pytest.raises(ValueError, match="broken.slim cannot be read") as caught:
        slim.load_packed(path)
    return str(caught.value)


def test_every_flipped_bit_and_every_cut_is_noticed(packed, tmp_path):
    generator, data = random.Random(0), packed["integers"]
    for _ in range(600):
        place = generator.choice([generator.randrange(len(data)), generator.randrange(60)])
        flipped = bytearray(data)
        flipped[place] ^= 1 << generator.randrange(8)
        refused(tmp_path / "broken.slim", bytes(flipped))
        refused(tmp_path / "broken.slim", data[:place])
    refused(tmp_path / "broken.slim", data + b"\0")
    refused(tmp_path / "broken.slim", b"")
    assert "does not begin" in refused(tmp_path / "broken.slim", b"PK\x03\x04" + data)
    newer = data[:4] + (2).to_bytes(2, "little") + data[6:]
    assert "version 2" in refused(tmp_path / "broken.slim", newer)


def test_damage_under_a_corrected_checksum_never_crashes(packed):
    """Whoever means harm computes the checksum anew: then the reader itself must hold."""
    generator = random.Random(1)
    for data in packed.values():
        sections = [bytes(section) for section in container.unframe(data)]
        structure, encodings = container.read_description(sections[0])
        parts = slim.packing._parts(build(structure))
        layout = [(next(iter(p.values())).dtype, sum(t.numel() for t in p.values())) for p in parts.values()]
        survived = 0
        for _ in range(250):
            broken = [bytearray(section) for section in sections]
            victim = broken[generator.randrange(4)]
            for _ in range(generator.choice([1, 1, 5])):
                place = generator.randrange(len(victim))
                action = generator.randrange(3)
                if action == 0:
                    victim[place] ^= 1 << generator.randrange(8)
                elif action == 1:
                    victim[place:] = b""
                    victim += b"\0"
                else:
                    victim[place:place] = generator.randbytes(generator.randrange(4))
            try:
                views = container.unframe(container.frame([bytes(section) for section in broken]))
                _, found = container.read_description(views[0])
                for part in container.read_parts(found, layout, views):
                    part.tensor()
                survived += 1
            except ValueError:
                continue
        assert survived < 125  # bits stored as they are may change unnoticed; of the rest, little


def rewritten(data, edit, sections=None):
    """The file with its description edited, and a checksum that is right again."""
    whole = sections or [bytes(section) for section in container.unframe(data)]
    description = json.loads(zlib.decompress(whole[0]))
    text = edit(description)
    whole[0] = zlib.compress(text if isinstance(text, bytes) else json.dumps(description).encode(), 9)
    return container.frame(whole)


def setting(*path_and_value):
    *path, last, value = path_and_value

    def edit(description):
        for key in path:
            description = description[key]
        description[last] = value

    return edit


S = "structure"
HOSTILE = {
    "no JSON": (lambda d: b"{", "no JSON"),
    "not UTF-8": (lambda d: b"\xff", "no JSON"),
    "a list": (lambda d: b"[]", "lacks the structure"),
    "deeply nested": (lambda d: b"[" * 900_000, "no JSON"),
    "a bomb": (lambda d: b" " * 300_000_000, "more than 1,048,576 bytes"),
    "a huge number": (lambda d: b'{"structure":' + b"9" * 100_000 + b"}", "no JSON"),
    "a name twice": (lambda d: b'{"structure":{},"structure":{},"parts":[]}', "occurs twice"),
    "infinity": (lambda d: b'{"structure":{"dropout":Infinity},"parts":[]}', "Infinity"),
    "parts of a wrong type": (setting("parts", 3), "wrong type"),
    "a part of a wrong type": (setting("parts", 0, "raw"), "5 integers"),
    "fractions of bits": (setting("parts", 0, [0, -1, 0, 1.5, 9]), "5 integers"),
    "too few parts": (lambda d: d["parts"].pop(), "parts, and its structure has"),
    "too many parts": (lambda d: d["parts"].append(d["parts"][0]), "parts, and its structure has"),
    "a huge alphabet": (setting("parts", 0, [0, -1, 0, 0, 2**40]), "cannot be encoded"),
    "negative bits": (setting("parts", 0, [0, -1, 0, -3, 5]), "cannot be encoded"),
    "more bits than there are": (setting("parts", 0, [0, -1, 0, 40, 5]), "cannot be encoded"),
    "more kept than there are": (setting("parts", 0, [0, 10**9, 0, 0, 5]), "cannot be encoded"),
    "a book of another size": (setting("parts", 0, [0, -1, 3, 0, 5]), "cannot be encoded"),
    "unknown architecture": (setting(S, "architecture", "yolov9e-cls"), "architecture=yolov9e-cls"),
    "a path for an architecture": (setting(S, "architecture", "../../etc/yolov8n-cls"), "architecture="),
    "a list for an architecture": (setting(S, "architecture", ["yolov8n-cls"]), "architecture="),
    "an unknown activation": (setting(S, "activation", "gelu"), "activation=gelu"),
    "more bottlenecks than there are": (setting(S, "bottlenecks", 0, 3), "keep['model.2']=3"),
    "bottlenecks of other blocks": (setting(S, "bottlenecks", [1, 2]), "bottlenecks has 2 numbers"),
    "negative bottlenecks": (setting(S, "bottlenecks", 0, -1), "keep['model.2']=-1"),
    "no class": (setting(S, "class_names", []), "class_names"),
    "classes that are no names": (setting(S, "class_names", [1, 2]), "class_names"),
    "other classes": (setting(S, "class_names", ["a"] * 90_000), "2 outputs for 90,000 classes"),
    "an image of nothing": (setting(S, "image_size", 0), "image_size=0"),
    "a giant image": (setting(S, "image_size", 10**9), "image_size"),
    "a boolean image": (setting(S, "image_size", True), "image_size=True"),
    "unknown numbers": (setting(S, "dtype", "float8"), "dtype=float8"),
    "other numbers": (setting(S, "dtype", "float16"), None),
    "no channels": (setting(S, "channels", 0, 0), "channels of model.0.conv"),
    "negative channels": (setting(S, "channels", 0, -16), "channels of model.0.conv"),
    "huge channels": (setting(S, "channels", 0, 10**12), "channels of model.0.conv"),
    "channels that do not fit": (setting(S, "channels", 2, 5), "do not fit"),
    "few channels": (setting(S, "channels", [16, 3]), "channels has 2 numbers"),
    "channels in words": (setting(S, "channels", 0, "16"), "channels="),
    "a list of a million": (setting(S, "channels", [1] * 200_000), "channels="),
    "a wrong BatchNorm": (setting(S, "batchnorm", [1e-5, "x"]), "batchnorm="),
    "a negative dropout": (setting(S, "dropout", -1), "dropout=-1"),
    "unknown float format": (
        setting(S, "float_quantization", {"format": "e9m9", "scale": "none", "activations": None, "saturate": True}),
        "float_quantization=",
    ),
    "an unknown field": (setting(S, "code", "import os"), "'code' is no field"),
    "a missing field": (lambda d: d[S].pop("dropout"), "dropout is missing"),
    "integers in words": (setting(S, "integers", "all"), "integers=all"),
    "integers of nothing": (setting(S, "integers", {}), "integers"),
}
HOSTILE_INTEGERS = {
    "one bit": (setting(S, "integers", "layers", 0, 0, 1), "1 bits"),
    "many bits": (setting(S, "integers", "layers", 0, 0, 64), "64 bits"),
    "fewer bits than the integers have": (setting(S, "integers", "layers", 3, 0, 2), "integers outside -2 to 1"),
    "a flag of 7": (setting(S, "integers", "layers", 0, 1, 7), "expected 0 or 1"),
    "a short row": (setting(S, "integers", "layers", 0, [8]), "6 integers"),
    "rows in words": (setting(S, "integers", "activations", "x"), "activations"),
    "a missing row": (lambda d: d[S]["integers"]["sums"].pop(), "sums"),
    "a layer less": (setting(S, "integers", "layers", 0, None), "parts"),
    "BatchNorm on top": (setting(S, "batchnorm", [1e-5, 0.1]), "folded"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_descriptions_are_refused_with_the_reason(packed, tmp_path, case):
    edit, words = HOSTILE[case]
    message = refused(tmp_path / "broken.slim", rewritten(packed["plain"], edit))
    assert words is None or words in message


@pytest.mark.parametrize("case", ["deeply nested", "a bomb", "a list of a million", "other classes", "huge channels"])
def test_hostile_descriptions_get_no_memory(packed, tmp_path, case):
    data = rewritten(packed["plain"], HOSTILE[case][0])
    tracemalloc.start()
    try:
        refused(tmp_path / "broken.slim", data)
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("case", HOSTILE_INTEGERS)
def test_hostile_grids_are_refused_with_the_reason(packed, tmp_path, case):
    edit, words = HOSTILE_INTEGERS[case]
    assert words in refused(tmp_path / "broken.slim", rewritten(packed["integers"], edit))


def test_values_that_the_file_cannot_hold_are_refused_before_memory_is_taken(tmp_path):
    """All weights of the largest network in a file of no weights at all: one symbol each that never changes."""
    model = slim.new_model("yolov8n-cls.yaml", ("a", "b"))
    sections = [bytes(s) for s in container.unframe(slim.save_packed(model, tmp_path / "n.slim").read_bytes())]
    description = json.loads(zlib.decompress(sections[0]))
    with torch.device("meta"):
        giant = slim.new_model("yolov8x-cls.yaml", ("a", "b"))
    channels = [count for _, layer in slim.weight_layers(giant) for count in layer.weight.shape[:2]]
    bottlenecks = [len(block.m) for block in giant.modules() if isinstance(block, C2f)]
    description[S] |= {"architecture": "yolov8x-cls", "channels": channels, "bottlenecks": bottlenecks}
    count = len(slim.packing._parts(giant))
    description["parts"] = [[0, -1, 0, 0, 1]] * count
    levels = values.write_levels([np.array([1], dtype=np.uint8)] * count)
    data = container.frame([zlib.compress(json.dumps(description).encode()), levels, b"", bytes(5 * 1024)])
    tracemalloc.start()
    try:
        assert "values, more than its bytes can hold" in refused(tmp_path / "broken.slim", data)
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()


def test_tables_and_scales_out_of_range_are_refused(packed, tmp_path):
    sections = [bytes(section) for section in container.unframe(packed["plain"])]
    length = len(zlib.decompress(sections[1]))
    for table, words in ((bytes(length), "empty or out of range"), (b"\xff" + bytes(length), "damaged, or unpacks")):
        broken = [sections[0], zlib.compress(table), *sections[2:]]
        assert words in refused(tmp_path / "broken.slim", container.frame(broken))
    with pytest.raises(ValueError, match="out of range"):
        entropy_coder.frequencies(np.array([130], dtype=np.uint8))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_scales_that_are_no_positive_numbers_are_refused(packed, tmp_path, monkeypatch, bad):
    decode = container.StoredValues.tensor

    def with_a_bad_scale(self):
        tensor = decode(self)
        return tensor.index_fill(0, torch.tensor([0]), bad) if tensor.dtype == torch.float32 else tensor

    monkeypatch.setattr(container.StoredValues, "tensor", with_a_bad_scale)
    assert "no positive numbers" in refused(tmp_path / "broken.slim", packed["integers"])
