"""The command line: what it writes and prints, what it objects to, and that Ctrl-C loses nothing."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from ultralytics import YOLO

import yolo_slim_lessons as slim
from yolo_slim_lessons import command_line, training
from yolo_slim_lessons.command_line import compress as compress_command
from yolo_slim_lessons.command_line.arguments import read_arguments
from yolo_slim_lessons.command_line.formats import FORMATS, Format
from yolo_slim_lessons.command_line.numbers import file_size
from yolo_slim_lessons.compression import Target

EPOCHS = 6
STAGES = [
    {"prune_channels": {"prune_rate": 0.75}},
    {"fit": {"epochs": EPOCHS, "batch_size": 32}},
    {"quantize_integer": {"bits": 4}},
]
RECIPE = {"seed": 1, "stages": STAGES}


@pytest.fixture(scope="module")
def home(tmp_path_factory, data):
    """A folder with best.pt, photographs/ and a recipe."""
    home = tmp_path_factory.mktemp("home")
    slim.save_model(slim.load_model("nano"), home / "best.pt", "fp16")
    slim.write_image_folder(data, home / "photographs", train=64, val=40, test=40)
    (home / "short.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    return home


@pytest.fixture
def run(home, monkeypatch, capsys):
    """Run a command in that folder; returns (exit status, what it printed, what went to the error stream)."""
    monkeypatch.chdir(home)

    def run(*arguments):
        try:
            status = command_line.main(list(map(str, arguments)))
        except SystemExit as end:  # argparse
            status = end.code
        return status, *capsys.readouterr()

    return run


# what is typed


@pytest.mark.parametrize(
    ("text", "size"),
    [("100000", 100_000), ("100kB", 100_000), ("1.5MB", 1_500_000), ("64 KiB", 65_536), ("1MiB", 2**20), ("7B", 7)],
)
def test_sizes_have_units(text, size):
    settings = read_arguments(["compress", "best.pt", "photographs", "--bytes", text])
    assert settings.bytes == file_size(text) == size


@pytest.mark.parametrize("text", ["", "kB", "100kb", "100 Mb", "1e5", "-5", "100_000", "nan", "100kB/s", "0", "0.2B"])
def test_what_is_no_size_is_named(run, text):
    status, _, errors = run("compress", "best.pt", "photographs", f"--bytes={text}")
    assert status == 2
    assert f"argument --bytes: {text!r} is" in errors
    assert "expected" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compress", "best.pt", "photographs"], "no budget: expected --bytes"),
        (["compress", "best.pt", "photographs", "--bytes", "9kB", "--times-smaller", "5"], "not allowed with"),
        (["compress", "best.pt", "photographs", "--recipe", "a.yaml", "--max-drop", "1"], "expected no --max-drop"),
        (["compress", "best.pt", "photographs", "--max-drop", "100"], "expected points from 0 to less than 100"),
        (["compress", "best.pt", "photographs", "--milliseconds", "0"], "expected a number above 0"),
        (["compress", "best.pt", "photographs", "--bytes", "9kB", "--epochs", "1.5"], "expected a whole number"),
        (["measure", "a.pt", "b.pt", "c.pt", "photographs"], "3 models, a.pt, b.pt, c.pt: expected one or two"),
        (["export", "best.pt"], "--for"),
        (
            ["export", "best.pt", "--for", "onnx", "--bits", "8", "--activations", "8"],
            "needs --bits .* and --calibrate",
        ),
        (["export", "best.pt", "--for", "onnx", "--calibrate", "photographs"], "used with --bits only"),
    ],
)
def test_what_cannot_be_meant_is_said_at_once(capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        read_arguments(arguments)
    assert end.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_help_comes_at_once_and_shows_how_it_is_used(run_python):
    code = (
        "import sys; sys.argv = ['-', 'compress', '--help']\n"
        "import runpy\n"
        "try: runpy.run_module('yolo_slim_lessons', run_name='__main__')\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    printed = run_python(code)
    assert "compress best.pt photographs/ --bytes 100kB" in printed
    assert printed.splitlines()[-1] == "0 False"


# compress


def test_compress_leaves_a_folder_with_all_that_is_given_away(run, home):
    untrained = {"seed": 1, "stages": [STAGES[0], STAGES[2]]}
    (home / "untrained.yaml").write_text(yaml.safe_dump(untrained), encoding="utf-8")
    status, printed, _ = run("compress", "best.pt", "photographs", "--recipe", "untrained.yaml", "--for", "onnx")
    assert status == 0
    folder = home / "best-slim"
    assert {path.name for path in folder.iterdir()} == {
        *("best-slim.onnx", "best-slim.pt", "recipe.yaml", "report.html", "report.md", "work")
    }
    assert yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8")) == untrained
    assert "best-slim.onnx" in (folder / "report.md").read_text(encoding="utf-8")
    test = slim.load_images(home / "photographs").test
    checkpoint = slim.load_model(YOLO(folder / "best-slim.pt"))
    answers = slim.run_onnx(slim.onnx_session(folder / "best-slim.onnx"), test)
    assert torch.allclose(answers.softmax(1), slim.predict(checkpoint, test), atol=1e-4)
    for line in ("quantize_integer", "best-slim.onnx: ", "second minus first"):
        assert line in printed


@pytest.mark.parametrize(
    ("arguments", "budget"),
    [
        (["--bytes", "100kB"], {"target_bytes": 100_000}),
        (["--times-smaller", "50", "--epochs", "3"], {"target_bytes": 4 * 1_451_098 // 50, "epochs": 3}),
        (["--milliseconds", "2", "--max-drop", "0.5"], {"target_latency": 2.0, "max_drop": 0.005}),
    ],
)
@pytest.mark.parametrize("kind", ["slim", "onnx"])
def test_the_arguments_are_the_budget_and_ctrl_c_says_how_to_go_on(run, monkeypatch, arguments, budget, kind):
    asked = []

    def stopped(model, data, goal, *, target_file, **options):
        asked.append((goal, target_file and target_file.name))
        raise KeyboardInterrupt

    monkeypatch.setattr(compress_command, "compress", stopped)
    typed = ["compress", "best.pt", "photographs", *arguments, "--for", kind]
    status, _, errors = run(*typed)
    assert status == 130
    assert asked == [(slim.Budget(**budget), None if kind == "slim" else kind)]
    assert errors.splitlines()[-1].endswith(f"go on with: python -m yolo_slim_lessons {' '.join(typed)}")


def test_a_budget_that_is_not_met_is_told_by_the_exit_status(run, home, monkeypatch):
    half = {"stages": [{"prune_channels": {"prune_rate": 0.5}}]}
    missed = Target("max_drop", 0.005, 0.2)

    def compress(model, data, goal, **options):
        return replace(slim.compress(model, data, half, progress=False), targets=(missed,))

    monkeypatch.setattr(compress_command, "compress", compress)
    status, printed, _ = run("compress", "best.pt", "photographs", "--max-drop", "0.5", "--output", "missed")
    assert status == 1
    assert str(missed) in printed
    assert (home / "missed" / "missed.slim").exists()


CHILD = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's jobs in the background ignore it
from yolo_slim_lessons.command_line import main
sys.exit(main())
"""


def test_ctrl_c_in_a_training_and_the_same_command_goes_on(run, home, monkeypatch):
    typed = ["compress", "best.pt", "photographs", "--recipe", "short.yaml", "--output", "stopped"]
    command = [sys.executable, "-c", CHILD, *typed]
    environment = {**os.environ, "PYTHONPATH": str(Path(slim.__file__).parents[1])}
    with subprocess.Popen(command, cwd=home, env=environment, stderr=subprocess.PIPE, encoding="utf-8") as running:
        deadline = time.monotonic() + 120
        while not list(home.glob("stopped/work/02-*-training.pt")) and time.monotonic() < deadline:
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        errors = running.communicate(timeout=60)[1]
    assert running.returncode == 130, errors
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].endswith(" ".join(typed))
    (state,) = home.glob("stopped/work/02-*-training.pt")
    finished = torch.load(state, weights_only=True)["epoch"]
    assert 1 <= finished < EPOCHS

    epochs = []
    original = training.top1_accuracy
    monkeypatch.setattr(training, "top1_accuracy", lambda *given: epochs.append(1) or original(*given))
    status, printed, _ = run(*typed)
    assert status == 0
    assert len(epochs) == EPOCHS - finished
    assert "stopped.slim" in printed
    assert slim.load_packed("stopped/stopped.slim").model[1].conv.weight_grid.bits == 4


# measure and export


def test_measure_prints_what_the_functions_measure(run, home):
    status, printed, _ = run("measure", "best.pt", "photographs", "--split", "val")
    assert status == 0
    val = slim.load_images(home / "photographs").val
    scores = slim.evaluate(slim.load_model(home / "best.pt"), val)
    assert f"top-1: {scores.top1:.2%} (95 % interval {scores.interval[0]:.2%}" in printed
    assert f"best.pt: {(home / 'best.pt').stat().st_size:,} bytes, 10 classes, 64 px" in printed
    for words in ("40 images of val", "MACs for one image of 64 px", "ms (p95"):
        assert words in printed


def test_two_models_are_compared_on_the_same_images(run, home):
    assert run("export", "best.pt", "--for", "slim", "--bits", "2", "--output", "broken.slim")[0] == 0
    assert run("export", "best.pt", "--for", "onnx")[0] == 0
    status, printed, _ = run("measure", "best.onnx", "broken.slim", "photographs")
    assert status == 0
    assert "best.onnx, 40 images of test" in printed
    assert "second minus first: -" in printed
    assert "only the second on 0" in printed
    assert "second / first: " in printed


def test_export_rounds_and_repairs(run, home):
    arguments = ["--bits", 8, "--activations", 8, "--calibrate", "photographs", "--output", "w8a8.onnx"]
    status, printed, _ = run("export", "best.pt", "--for", "onnx", *arguments)
    assert status == 0
    assert f"w8a8.onnx: {(home / 'w8a8.onnx').stat().st_size:,} bytes" in printed
    assert (home / "w8a8.onnx").stat().st_size < 1_700_000
    assert "of 40 images of val get the same answer" in printed
    assert b"QuantizeLinear" in (home / "w8a8.onnx").read_bytes()


def test_a_format_that_is_not_there_is_refused_before_any_work(run, monkeypatch):
    monkeypatch.setitem(FORMATS, "c", Format("export_punch_cards", "-c"))
    for command in (["export", "best.pt"], ["compress", "best.pt", "photographs", "--bytes", "100kB"]):
        status, printed, errors = run(*command, "--for", "c")
        assert (status, printed) == (2, "")
        assert "--for c: this version has no slim.export_punch_cards; expected one of ['slim', 'onnx'" in errors


# what functions object to


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["measure", "nowhere.pt", "photographs"], "source='nowhere.pt': there is no such file"),
        (["measure", "best.pt", "nowhere"], "nowhere"),
        (["measure", "best.pt", "two"], "split has 2 classes, model has 10"),
        (["compress", "best.pt", "two", "--bytes", "1MB"], "data has 2 classes, model has 10"),
        (["compress", "best.pt", "photographs", "--recipe", "nowhere.yaml"], "there is no such file"),
        (["measure", "best.pt", "photographs", "--image-size", "50"], "image_size=50: expected a multiple of 32"),
        (["export", "best.pt", "--for", "slim", "--bits", "1"], "bits=1"),
        (["export", "best.pt", "--for", "onnx", "--output", "best.pt"], "best.pt would replace the model itself"),
        (["compress", "best.pt", "photographs", "--bytes", "1MB", "--output", "best.pt"], "best.pt is a file"),
        (
            ["compress", "best.pt", "photographs", "--bytes", "1MB", "--for", "c"],
            "best-slim.pt --for c --bits 8",
        ),
        (["measure", "broken.onnx", "photographs"], "broken.onnx' is not an ONNX model"),
    ],
)
def test_errors_are_those_of_the_functions_without_a_traceback(run, home, data, arguments, message):
    (home / "broken.onnx").write_bytes(b"nothing")
    if not (home / "two").exists():
        for name in ("ant", "bee"):
            os.makedirs(home / "two" / "train" / name)
            for image in (home / "photographs" / "train").glob("*/*.png"):
                os.link(image, home / "two" / "train" / name / f"{image.parent.name[0]}{image.name}")
    status, _, errors = run(*arguments)
    assert status == 2
    assert errors.splitlines()[-1].startswith("error: ")
    assert message in errors
    assert "Traceback" not in errors


def test_what_the_package_warns_of_is_a_note(run, home):
    shutil.copytree(home / "photographs", home / "spoiled")
    broken = next((home / "spoiled" / "test").glob("*/*.png"))
    broken.write_bytes(b"no picture")
    status, _, errors = run("measure", "best.pt", "spoiled")
    assert status == 2
    assert broken.name in errors
    status, printed, errors = run("measure", "best.pt", "spoiled", "--broken", "skip")
    assert status == 0
    assert "39 images of test" in printed
    assert errors.startswith("note: ")
    assert broken.name in errors
    assert ".py:" not in errors
