"""The C file computes the same integers as the package, to the bit, wherever a compiler and a machine are found."""

import functools
import platform
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from ultralytics.nn.tasks import ClassificationModel

import yolo_slim_lessons as slim
from yolo_slim_lessons.data import FASHION_MNIST_CLASSES
from yolo_slim_lessons.deployment.c import memory_plan
from yolo_slim_lessons.models import input_format
from yolo_slim_lessons.quantization.execution import run_integer

HERE = Path(__file__).parent / "c"
YOLO11 = Path(__file__).parent / "files" / "yolo11n.pt"
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Werror"]


def compiler():
    """The command of a C compiler of this machine: its own, or the one that the package ziglang brings."""
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    return zig() if find_spec("ziglang") else pytest.skip("no C compiler: install gcc, or pip install ziglang")


def zig():
    if not find_spec("ziglang"):
        pytest.skip("no ziglang: pip install ziglang")
    return [sys.executable, "-m", "ziglang", "cc"]


def program(name):
    return shutil.which(name) or pytest.skip(f"no {name}")


def run(command, folder):
    done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, encoding="utf-8", timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def compiled(command, folder, model="model.c"):
    # By its full path: zig keeps what it has compiled, and would take "." for the same folder as before.
    run([*command, "-o", "program", HERE / "main.c", model, "-I", folder], folder)


def exported(model, images, folder):
    """Write C and images into ``folder``."""
    images = images[:, : input_format(model)["channels"]]
    slim.export_c(model, folder)
    (folder / "images.bin").write_bytes(images.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
    return folder


def answers(folder, classes=10):
    """Logits as ``run_integer`` gives them, and the likeliest classes."""
    header = (folder / "model.h").read_text(encoding="utf-8")
    bits = int(re.search(r"LOGIT_BITS (\d+)", header)[1])
    numbers = np.fromfile(folder / "answers.bin", np.int64).reshape(-1, classes + 1)
    return torch.from_numpy(numbers[:, :-1].astype(float) / 2.0**bits).float(), torch.from_numpy(numbers[:, -1])


def integer_logits(model, images):
    return run_integer(model, images[:, : input_format(model)["channels"]])


def assert_same(folder, expected):
    logits, best = answers(folder, expected.shape[1])
    assert logits.equal(expected)
    assert best.equal(expected.argmax(1))


OWN_NETWORK = """
nc: 10
ch: 1
backbone:
  - [-1, 1, Conv, [12, 3, 4]]
  - [-1, 1, Conv, [12, 1, 1]]
  - [-1, 1, DWConv, [24, 3, 1]]
  - [[-1, 1], 1, Concat, [1]]
  - [-1, 1, Conv, [7, 1, 1]]
  - [[-1, 1, 1], 1, Concat, [1]]
  - [-1, 1, Conv, [16, 5, 2]]
head:
  - [-1, 1, Classify, [nc]]
"""


def own_network(folder):
    """Of grey images, with groups, and with channels that are concatenated more than once."""
    file = folder / "own-cls.yaml"
    file.write_text(OWN_NETWORK, encoding="utf-8")
    torch.manual_seed(0)
    network = ClassificationModel(str(file), ch=1, nc=10, verbose=False).eval()
    network.names, network.args = dict(enumerate(FASHION_MNIST_CLASSES)), {"task": "classify", "imgsz": 64}
    return network


@pytest.fixture(scope="module")
def quantized(data, tmp_path_factory):
    """By name: networks with ReLU and SiLU, 4 and 8 bits, and widths that no processor likes."""

    @functools.cache
    def make(name):
        few = data.train.take(64)
        if name == "fast":
            return slim.quantize_integer(slim.load_model("fast"), 8, 8, few)
        if name == "slim":
            return slim.quantize_integer(slim.load_model("slim"), 8, 8, few)
        if name == "odd widths":
            nano = slim.load_model("nano")
            return slim.quantize_integer(slim.prune_channels(nano, 0.47, round_to=1), 8, 8, few)
        if name == "own":
            network = slim.reestimate_batchnorm(own_network(tmp_path_factory.mktemp("own")), few)
            return slim.quantize_integer(network, 8, 8, few)
        bits = {name: 4 for name, _ in slim.weight_layers(slim.load_model("fast"))} | {"model.0.conv": 6}
        return slim.quantize_integer(slim.load_model("fast"), bits, 6, few)

    return make


MODELS = ("fast", "slim", "odd widths", "few bits", "own")


@pytest.mark.parametrize("name", MODELS)
def test_the_same_integers_on_this_machine(name, quantized, data, tmp_path):
    images = data.test.images[: 300 if name == "fast" else 60]
    expected = integer_logits(quantized(name), images)
    folder = exported(quantized(name), images, tmp_path)
    flags = [[*STRICT, "-O3", "-march=native"], [*STRICT, "-O2", "-DMODEL_PORTABLE"]]
    for kind in flags:
        compiled([*compiler(), *kind], folder)
        run([folder / "program"], folder)
        assert_same(folder, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fast", "slim"])
def test_the_same_integers_on_all_test_images(name, quantized, data, tmp_path):
    expected = torch.cat([integer_logits(quantized(name), images) for images in data.test.images.split(500)])
    folder = exported(quantized(name), data.test.images[:], tmp_path)
    compiled([*compiler(), "-O3", "-march=native"], folder)
    run([folder / "program"], folder)
    assert_same(folder, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kernels", ["-march=native", "-march=haswell", "-DMODEL_PORTABLE"])
def test_nothing_undefined_happens(name, kernels, quantized, data, tmp_path):
    if kernels == "-march=haswell" and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("no x86")
    noise = torch.randint(0, 256, (100, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = torch.cat([data.test.images[:398], noise, torch.zeros_like(noise[:1]), torch.full_like(noise[:1], 255)])
    folder = exported(quantized(name), images, tmp_path)
    sanitize = ["-fsanitize=undefined,address", "-fno-sanitize-recover=all", "-g"]
    compiled([*compiler(), "-O1", kernels, *sanitize], folder)
    run([folder / "program"], folder)
    assert_same(folder, integer_logits(quantized(name), images))


# Other machines

LINUX = {  # machine → compiler, flags, emulator
    "32-bit ARM": ("arm-linux-gnueabihf-gcc", ["-O2"], ["qemu-arm"]),
    "64-bit ARM": ("aarch64-linux-gnu-gcc", ["-O2"], ["qemu-aarch64"]),
    "64-bit ARM, dot products": ("aarch64-linux-gnu-gcc", ["-O2", "-march=armv8.2-a+dotprod"], ["qemu-aarch64"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("machine", LINUX)
def test_the_same_integers_under_linux_on_arm(machine, name, quantized, data, tmp_path):
    gcc, flags, (emulator,) = LINUX[machine]
    images = data.test.images[:100]
    folder = exported(quantized(name), images, tmp_path)
    compiled([program(gcc), *STRICT, *flags, "-static"], folder)
    run([program(emulator), "-cpu", "max", folder / "program"], folder)
    assert_same(folder, integer_logits(quantized(name), images))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_same_integers_in_webassembly(name, quantized, data, tmp_path):
    wasmtime = pytest.importorskip("wasmtime")
    images = data.test.images[:100]
    folder = exported(quantized(name), images, tmp_path)
    compiled([*zig(), "--target=wasm32-wasi", "-O2"], folder)
    engine = wasmtime.Engine()
    linker, store, wasi = wasmtime.Linker(engine), wasmtime.Store(engine), wasmtime.WasiConfig()
    linker.define_wasi()
    wasi.preopen_dir(str(folder), ".")
    store.set_wasi(wasi)
    instance = linker.instantiate(store, wasmtime.Module.from_file(engine, str(folder / "program")))
    instance.exports(store)["_start"](store)
    assert_same(folder, integer_logits(quantized(name), images))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_same_integers_on_a_microcontroller(name, quantized, data, tmp_path):
    """A Cortex-M3 on a board that QEMU knows; files are its host's, by semihosting."""
    gcc, emulator = program("arm-none-eabi-gcc"), program("qemu-system-arm")
    images = data.test.images[:20]
    folder = exported(quantized(name), images, tmp_path)
    cortex = [gcc, *STRICT, "-O2", "-mcpu=cortex-m3", "-mthumb"]
    run([*cortex, "-c", "model.c"], folder)
    compiled([*cortex, "--specs=rdimon.specs", "-T", HERE / "mps2.ld", "-Wl,-Map=map"], folder, "model.o")
    machine = ["-M", "mps2-an385", "-nographic", "-semihosting-config", "enable=on,target=native"]
    run([emulator, *machine, "-kernel", folder / "program"], folder)
    assert_same(folder, integer_logits(quantized(name), images))
    flash, ram = sizes_in_map((folder / "map").read_text(encoding="utf-8"))
    stated = int(re.search(r"MODEL_RAM (\d+)", (folder / "model.h").read_text(encoding="utf-8"))[1])
    assert memory_plan(quantized(name)).bytes < ram <= stated
    weights = sum(layer.integers.numel() for _, layer in slim.weight_layers(quantized(name)))
    assert flash < 1.1 * weights + 64_000


def sizes_in_map(text):
    """Bytes of flash and RAM that model.o takes, from the map that the linker drew."""
    sections = re.findall(r"^ \.(text|rodata|data|bss)\S*\s+0x\w+\s+(0x\w+) model\.o$", text, re.MULTILINE)
    flash = sum(int(size, 16) for kind, size in sections if kind != "bss")
    return flash, sum(int(size, 16) for kind, size in sections if kind in ("data", "bss"))


# The plan of memory


@pytest.mark.parametrize("name", MODELS)
def test_tensors_that_live_at_the_same_time_share_no_memory(name, quantized):
    plan = memory_plan(quantized(name))
    for number, one in enumerate(plan.tensors):
        assert one.offset >= 0
        assert one.offset + one.bytes <= plan.bytes
        for other in plan.tensors[number + 1 :]:
            apart = one.last < other.first or other.last < one.first
            assert apart or one.offset + one.bytes <= other.offset or other.offset + other.bytes <= one.offset
    assert plan.bytes_at_least <= plan.bytes <= 1.1 * plan.bytes_at_least
    assert plan.bytes < plan.bytes_without_sharing


# What is refused


def test_attention_is_refused_by_its_name(data, tmp_path):
    model = slim.quantize_integer(slim.load_model(YOLO11), 8, 8, data.train.take(8))
    with pytest.raises(TypeError, match=r"model\.9\.m\.0\.attn\.\w+: a \w+ of activations is a part of attention"):
        slim.export_c(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_bytes_cannot_hold_is_refused_by_name(data, tmp_path):
    few, fast = data.train.take(8), slim.load_model("fast")
    with pytest.raises(ValueError, match="computes with floats: .*quantize_integer"):
        slim.export_c(fast, tmp_path)
    with pytest.raises(ValueError, match=r"model\.0\.conv multiplies weights of 10 bits with 8"):
        slim.export_c(slim.quantize_integer(fast, 10, 8, few), tmp_path)
    with pytest.raises(ValueError, match=r"model\.0\.conv puts out 10 bits"):
        slim.export_c(slim.quantize_integer(fast, 8, 10, few), tmp_path)
    with pytest.raises(ValueError, match=r"model\.0\.conv has weights with a zero point"):
        slim.export_c(slim.quantize_integer(fast, 8, 8, few, symmetric=False), tmp_path)
    with pytest.raises(ValueError, match="name='7up': expected letters"):
        slim.export_c(slim.quantize_integer(fast, 8, 8, few), tmp_path, "7up")
    with pytest.raises(ValueError, match="bits=8 without calibration="):
        slim.export_c(fast, tmp_path, bits=8)
    assert not list(tmp_path.iterdir())
