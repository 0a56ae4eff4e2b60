"""What happens on real machines: full disks, Ctrl-C, strange homes and languages, two lessons at once, no network."""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import yolo_slim_lessons as slim
from yolo_slim_lessons import training

resource = pytest.importorskip("resource", reason="limits of processes; Windows has none of this kind")

ROOT = Path(__file__).parents[1]
FEW = {"epochs": 2, "batch_size": 16, "progress": False}  # on 48 images: 2 × 3 steps


@pytest.fixture(scope="module")
def few():
    return slim.load_images("fashion-mnist", image_size=32).take(train=48, val=16)


@pytest.fixture(scope="module")
def small(nano):
    return slim.prune_channels(nano, 0.5)


def same(one, other):
    """Whether two models have the very same numbers."""
    return all(torch.equal(*pair) for pair in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# a full disk


@contextlib.contextmanager
def full_disk(size):
    """No file may grow beyond ``size`` bytes: the system refuses the rest, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITERS = {
    "small.pt": slim.save_model,
    "small.slim": lambda model, path: slim.save_packed(slim.quantize_integer(model, 8), path),
    "small.onnx": lambda model, path: slim.export_onnx(model, path, image_size=32),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_disk_that_fills_up_while_a_model_is_written_leaves_the_old_file_and_no_half_one(
    small, tmp_path, name, share
):
    WRITERS[name](small, tmp_path / name)
    before = contents(tmp_path)
    with full_disk(int(share * len(before[name]))), pytest.raises((OSError, RuntimeError)):
        WRITERS[name](small, tmp_path / name)
    assert contents(tmp_path) == before


def test_a_disk_that_fills_up_during_training_costs_no_finished_epoch(small, few, tmp_path):
    whole = slim.fit(small, few, **FEW)
    checkpoint = tmp_path / "state.training"
    with contextlib.ExitStack() as disk:

        def fill_disk(epoch, *_):
            disk.enter_context(full_disk(checkpoint.stat().st_size // 2))

        with pytest.raises((OSError, RuntimeError)):
            slim.fit(small, few, **FEW, checkpoint=checkpoint, on_epoch=fill_disk)
    assert list(contents(tmp_path)) == ["state.training"]
    epochs = []
    resumed = slim.fit(small, few, **FEW, checkpoint=checkpoint, on_epoch=lambda epoch, *_: epochs.append(epoch))
    assert epochs == [2]
    assert same(whole, resumed)


# Ctrl-C


@pytest.fixture
def ctrl_c_at_batch(monkeypatch):
    """Press Ctrl-C, once, while the given batch of a training is on its way."""

    def press(wanted):
        batches = []

        def as_floats(images):
            batches.append(len(images))
            if len(batches) == wanted:
                signal.raise_signal(signal.SIGINT)
            return floats(images)

        floats = training.as_floats
        monkeypatch.setattr(training, "as_floats", as_floats)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's jobs in the background ignore it
    yield press
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("batch", "repeated"), [(2, [1, 2]), (5, [2])])
@pytest.mark.parametrize("kind", ["fit", "distill"])
def test_ctrl_c_in_a_training_loses_at_most_the_epoch_it_meets(
    small, nano, few, tmp_path, ctrl_c_at_batch, kind, batch, repeated
):
    def train(**options):
        if kind == "fit":
            return slim.fit(small, few, **FEW, **options)
        return slim.distill(small, nano, few, **FEW, **options)

    before, whole, random_state = slim.load_model("nano"), train(), torch.get_rng_state()
    ctrl_c_at_batch(batch)
    with pytest.raises(KeyboardInterrupt):
        train(checkpoint=tmp_path / "state.training")
    assert torch.equal(torch.get_rng_state(), random_state)  # what is drawn next does not depend on the interruption
    assert same(nano, before)
    epochs = []
    resumed = train(checkpoint=tmp_path / "state.training", on_epoch=lambda epoch, *_: epochs.append(epoch))
    assert epochs == repeated
    assert same(whole, resumed)
    assert list(contents(tmp_path)) == ["state.training"]


SWEEP = """
import json, signal, sys, time
import yolo_slim_lessons as slim

def point(number, seed):
    time.sleep(0.3)
    with open("computed.txt", "a", encoding="utf-8") as log:
        log.write(f"{number}\\n")
    return number**2

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's jobs in the background ignore it
    records = slim.sweep(point, {"number": range(8)}, "points", n_jobs=int(sys.argv[1]), progress=False)
    print(json.dumps([record["result"] for record in records]))
"""


def test_ctrl_c_in_a_sweep_over_two_processes_keeps_what_is_finished(tmp_path):
    (tmp_path / "try.py").write_text(SWEEP, encoding="utf-8")
    points = tmp_path / "points"
    # A terminal, like Jupyter, sends Ctrl-C to all processes of the group.
    with subprocess.Popen(
        [sys.executable, "try.py", "2"],
        cwd=tmp_path,
        start_new_session=True,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as running:
        deadline = time.monotonic() + 120
        while len(list(points.rglob("output.pkl"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGINT)
        assert "KeyboardInterrupt" in running.communicate(timeout=60)[1]
    finished = len(list(points.rglob("output.pkl")))
    assert 3 <= finished < 8
    command = [sys.executable, "try.py", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=120)
    assert json.loads(done.stdout) == [number**2 for number in range(8)], done.stderr
    computed = (tmp_path / "computed.txt").read_text(encoding="utf-8").split()
    assert 8 <= len(computed) <= 8 + 2  # at most the two that ran when it was stopped ran again
    assert len(list(points.rglob("output.pkl"))) == 8
    assert not list(points.glob("attempts-*")), "half files are left"


# other homes, languages, clocks and machines

LESSON = """
import hashlib, json, locale, os, sys, warnings
from pathlib import Path

warnings.filterwarnings("error", category=EncodingWarning, module="yolo_slim_lessons")
# Not LC_MESSAGES: PyTorch cannot read the system's messages in GB18030 when it looks for graphics cards.
for category in (locale.LC_CTYPE, locale.LC_NUMERIC, locale.LC_TIME, locale.LC_COLLATE):
    locale.setlocale(category, "")
import torch
import yolo_slim_lessons as slim
from yolo_slim_lessons.data import ImageData
from ultralytics import YOLO
from yolo_slim_lessons.teaching import environment, plots

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # on its own, PyTorch may take no more than there are cores
threads = torch.get_num_threads()  # YOLO.predict will set another number
folder = Path(sys.argv[1])
data = slim.load_images("fashion-mnist", image_size=32).take(train=32, val=16)
model = slim.fit(slim.prune_channels(slim.load_model("nano"), 0.5), data, 1, batch_size=16, progress=False)
slim.save_model(model, folder / "schlank 瘦.pt")
slim.save_packed(slim.quantize_integer(model, 4), folder / "schlank 瘦.slim")
slim.export_onnx(model, folder / "schlank 瘦.onnx", image_size=32)
digests = {path.suffix: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}

few = data.test.take(20)
if not (folder / "Bilder 图").exists():
    smaller = ImageData(few, few, few, data.class_names, 32)
    slim.write_image_folder(smaller, folder / "Bilder 图")
pictures = slim.load_images(folder / "Bilder 图", image_size=32)
answers = {
    "pt": slim.predict(slim.load_model(folder / "schlank 瘦.pt"), few, progress=False),
    "slim": slim.predict(slim.load_packed(folder / "schlank 瘦.slim"), few, progress=False),
    "onnx": torch.tensor(
        slim.onnx_session(folder / "schlank 瘦.onnx").run(None, {"images": few.images.float().numpy() / 255})[0]
    ).softmax(1),
    "plain": torch.stack(
        [result.probs.data for result in YOLO(folder / "schlank 瘦.pt").predict(
            [str(path) for path in sorted((folder / "Bilder 图" / "test").rglob("*.png"))][:3], imgsz=32)]
    ),
}
figure, axes = plots.new_figure()
axes.plot([0.5, 1.5])
plots.png(figure)
answers = {name: [[round(value, 6) for value in row] for row in rows.tolist()] for name, rows in answers.items()}
print(json.dumps({
    "digests": digests, "answers": answers, "pictures": len(pictures.test), "classes": pictures.class_names,
    "threads": threads, "checked": "\\u2714" in repr(environment.check()),
}))
"""


class Learner:
    """A Python of its own, in a home of its own, that does what a lesson does."""

    def __init__(self, home, environment=None, work=None, **options):
        home.mkdir(exist_ok=True)
        self.work = work or home / "work"
        clean = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH") if name in os.environ}
        clean |= {"HOME": str(home), "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
        clean |= {"PYTHONWARNDEFAULTENCODING": "1"} | (environment or {})
        self.work.mkdir(exist_ok=True)
        script = self.work.with_suffix(".py")
        script.write_text(LESSON, encoding="utf-8")
        command = [sys.executable, script, self.work]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
        self.process = subprocess.Popen(command, env=clean, cwd=options.pop("cwd", home), **streams, **options)

    def results(self):
        output, errors = self.process.communicate(timeout=600)
        assert self.process.returncode == 0, errors
        return json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module")
def at_home(tmp_path_factory):
    """What a lesson gives in plain surroundings: two of them at once, in one home, that write the same files."""
    home = tmp_path_factory.mktemp("home")
    first, second = Learner(home, work=home / "one"), Learner(home, work=home / "other")
    results = first.results()
    assert second.results() == results
    return results


@pytest.mark.slow
def test_two_lessons_at_once_in_one_home_agree(at_home):
    assert set(at_home["digests"]) == {".pt", ".slim", ".onnx"}
    assert at_home["pictures"] == 20


@pytest.mark.slow
def test_a_home_with_spaces_and_letters_of_many_languages(at_home, tmp_path):
    assert Learner(tmp_path / "Jürgens Zuhause 家 дом").results() == at_home


def compiled_locale(name, charmap, folder):
    """``LOCPATH`` of a locale that is made here, so that it need not be installed."""
    if not (shutil.which("localedef") and Path("/usr/share/i18n/locales", name).exists()):
        pytest.skip("the sources of locales are missing: sudo apt-get install locales")
    command = ["localedef", "--quiet", "-i", name, "-f", charmap, folder / f"{name}.{charmap}"]
    subprocess.run(command, check=False, timeout=60)  # it warns, and returns 1 for a warning
    return {"LC_ALL": f"{name}.{charmap}", "LOCPATH": str(folder)}


@pytest.mark.slow
def test_a_german_computer_on_the_clock_of_nepal(at_home, tmp_path):
    environment = compiled_locale("de_DE", "UTF-8", tmp_path) | {"TZ": "Asia/Kathmandu"}
    assert Learner(tmp_path / "Heim", environment).results() == at_home


@pytest.mark.slow
def test_a_chinese_computer_whose_files_are_not_utf_8_and_eight_threads(at_home, tmp_path):
    environment = compiled_locale("zh_CN", "GB18030", tmp_path) | {"OMP_NUM_THREADS": "8"}
    environment["OMP_WAIT_POLICY"] = (
        "passive"  # this machine may have fewer cores, and threads that wait would fill them
    )
    results = Learner(tmp_path / "home", environment).results()
    assert results["threads"] == 8
    assert results["classes"] == at_home["classes"]
    # Eight threads add in another order, so the trained numbers agree to some digits only.
    for name, rows in at_home["answers"].items():
        assert torch.tensor(results["answers"][name]).allclose(torch.tensor(rows), atol=0.02), name


@pytest.mark.slow
def test_a_course_folder_that_nobody_may_write_to(at_home, tmp_path):
    course = tmp_path / "course"
    shutil.copytree(ROOT / "yolo_slim_lessons", course / "yolo_slim_lessons")
    (course / "notebooks").mkdir()
    (course / "data").symlink_to(ROOT / "data")
    folders = [course, *(path for path in course.rglob("*") if path.is_dir() and not path.is_symlink())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        options = {"cwd": course / "notebooks", "preexec_fn": obey_permissions}
        if not refused(course / "notebooks" / "new", **options):
            pytest.skip("this system lets the superuser write anywhere")
        assert Learner(tmp_path / "home", {"PYTHONPATH": str(course)}, **options).results() == at_home
    finally:
        for folder in folders:
            folder.chmod(0o755)


def obey_permissions():
    """Give up root's right to write where the permissions say no; for other users there is nothing to give up."""
    drop_from_bounding_set, override_permissions = 24, 1
    ctypes.CDLL(None).prctl(drop_from_bounding_set, override_permissions, 0, 0, 0)


def refused(path, **options):
    return subprocess.run(["touch", path], stderr=subprocess.DEVNULL, **options).returncode != 0


# no network


@pytest.mark.parametrize(
    "attempt",
    [
        "socket.create_connection(('192.0.2.1', 9), timeout=1)",
        "urllib.request.urlopen('http://example.invalid', timeout=1)",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 9))",
    ],
)
def test_the_guard_of_all_lessons_ends_whoever_asks_the_network(attempt):
    code = f"import contextlib, socket, urllib.request\nwith contextlib.suppress(BaseException):\n    {attempt}"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests" / "no_network")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=60)
    assert done.returncode == 86
    assert b"The network was asked" in done.stderr


def test_the_guard_of_all_lessons_is_on_here_and_lets_this_machine_talk_to_itself(run_python):
    answer = run_python("""
import socket, sys
with socket.create_server(("127.0.0.1", 0)) as server:
    socket.create_connection(server.getsockname()).close()
print("sitecustomize" in sys.modules and hasattr(sys.modules["sitecustomize"], "forbid_network"))
""")
    assert answer.strip() == "True"
