"""Images on disk are the images in memory: same pixels, same answers, read once, safe in a crash, little memory."""

import copy
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import yolo_slim_lessons as slim
from yolo_slim_lessons.data import Split, unread
from yolo_slim_lessons.data.stored import MappedImages
from yolo_slim_lessons.distillation import cache_teacher, with_unlabelled
from yolo_slim_lessons.training import top1_accuracy


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """120 noisy JPEG of three classes: bright, dark and in between, so that there is something to learn."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for label, name in enumerate(("ant", "bee", "cat")):
        (folder / "train" / name).mkdir(parents=True)
        for number in range(40):
            pixels = random.integers(80 * label, 80 * label + 90, (70, 50 + number, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "train" / name / f"{number:02d}.jpg", quality=90)
    return folder


def on_disk(source, cache, **options):
    return slim.load_images(source, 32, memory_limit=0, cache_folder=cache, **options)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def both(photos, cache):
    """The same data in memory and on disk."""
    return slim.load_images(photos, 32), on_disk(photos, cache)


def cached_files(cache):
    return {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}


def all_of(split, **options):
    return torch.cat([images for images, _ in split.batches(50, **options)])


# the same images


def test_every_split_is_the_same(both):
    memory, disk = both
    assert disk.class_names == memory.class_names
    for name in ("train", "val", "test"):
        ours, theirs = getattr(disk, name), getattr(memory, name)
        assert isinstance(ours.images, MappedImages)
        assert ours.labels.equal(theirs.labels)
        assert all_of(ours).equal(all_of(theirs))
        assert all_of(ours, dtype=torch.uint8).equal(theirs.images)


@pytest.mark.parametrize(
    "part", [slice(3, 20, 4), torch.tensor([7, 7, 0]), lambda split: split.labels == 2, lambda split: split.take(9)]
)
def test_every_part_is_the_same(both, part):
    ours, theirs = (part(each.train) if callable(part) else part for each in both)
    ours, theirs = (
        each if isinstance(each, Split) else data.train[each]
        for each, data in zip((theirs, ours), (both[1], both[0]), strict=True)
    )
    assert ours.labels.equal(theirs.labels)
    assert all_of(ours).equal(all_of(theirs))


def test_some_are_looked_at_as_in_a_tensor(both):
    memory, disk = both[0].val.images, both[1].val.images
    assert (disk.shape, disk.dtype, len(disk)) == (memory.shape, memory.dtype, len(memory))
    for index in (0, -1, slice(2, 6), torch.tensor([4, 1]), (slice(0, 3), 0), (2, 1), (slice(None), 0, slice(4), 5)):
        assert disk[index].equal(memory[index]), index
    assert all(ours.equal(theirs) for ours, theirs in zip(disk, memory, strict=True))
    assert "10 images of 3×32×32 on disk" in repr(disk)
    with pytest.raises(IndexError):
        disk[len(memory)]


@pytest.mark.parametrize("merge_single", [False, True])
def test_batches_in_any_order_and_number(both, merge_single):
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))[:33]
    ours, theirs = (
        list(each.train.batches(16, order=order, merge_single=merge_single, dtype=torch.uint8)) for each in both
    )
    assert [len(labels) for _, labels in ours] == ([16, 17] if merge_single else [16, 16, 1])
    for (images, labels), (expected, expected_labels) in zip(ours, theirs, strict=True):
        assert images.equal(expected)
        assert labels.equal(expected_labels)


def test_grey_images_take_one_channel_on_disk_and_are_the_same(cache, capsys):
    memory, disk = slim.load_images(image_size=32), on_disk("fashion-mnist", cache)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert "0.1 GB of images are more than 0.0 GB: they are kept on disk, in" in printed
    assert sum(path.stat().st_size for path in cache.iterdir()) == pytest.approx(70_000 * 32 * 32, rel=1e-3)
    for split in ("val", "test"):
        assert all_of(getattr(disk, split).take(600)).equal(all_of(getattr(memory, split).take(600)))


def test_what_is_made_of_them_is_the_same(both, tmp_path, nano):
    model = slim.new_model("yolov8n-cls.yaml", both[0].class_names, 32)
    results = []
    for data in both:
        trained = slim.fit(model, data, 2, batch_size=33, progress=False)
        teacher = slim.new_model("yolov8n-cls.yaml", data.class_names, 32, seed=1)
        more = with_unlabelled(data, data.val.images)
        cache = cache_teacher(teacher, more.train, versions=2, progress=False)
        learned = slim.distill(trained, teacher, more, epochs=1, cache=cache, batch_size=50, progress=False)
        again = slim.load_images(slim.write_image_folder(data, tmp_path / str(len(results))), 32)
        results.append((slim.predict(learned, data.test), top1_accuracy(trained, data.val), again.train.images))
    for ours, theirs in zip(*results, strict=True):
        assert torch.as_tensor(ours).equal(torch.as_tensor(theirs))


def test_unlabelled_images_are_joined_wherever_they_are(both, cache):
    memory, disk = both
    expected = with_unlabelled(memory, memory.val.images).train
    grey = on_disk("fashion-mnist", cache).val.take(20)
    for data, images in ((disk, disk.val.images), (disk, memory.val.images), (memory, disk.val.images)):
        joined = with_unlabelled(data, images).train
        assert joined.labels.equal(expected.labels)
        assert all_of(joined).equal(all_of(expected))
        assert all_of(joined[torch.tensor([0, 105])]).equal(all_of(expected[torch.tensor([0, 105])]))
    mixed = with_unlabelled(disk, grey.images).train
    assert all_of(mixed[-20:]).equal(all_of(grey))
    assert all_of(mixed[:-20]).equal(all_of(memory.train))


def test_a_cache_of_a_teacher_knows_its_images(both):
    memory, disk = both
    teacher, student = (slim.new_model("yolov8n-cls.yaml", memory.class_names, 32, seed) for seed in (1, 2))
    cache = cache_teacher(teacher, disk.train, versions=1, progress=False)
    options = {"epochs": 1, "cache": cache, "batch_size": 50, "progress": False}
    slim.distill(student, teacher, memory, **options)
    turned = replace(disk, train=disk.train[torch.arange(100, -1, -1)])
    with pytest.raises(ValueError, match="cache was made of 101 images that are not the 101 of data.train"):
        slim.distill(student, teacher, turned, **options)


def test_a_checkpoint_knows_images_on_disk(both, tmp_path):
    disk = both[1]
    model = slim.new_model("yolov8n-cls.yaml", disk.class_names, 32)
    options = {"epochs": 1, "batch_size": 50, "progress": False, "checkpoint": tmp_path / "c"}
    slim.fit(model, disk, **options)
    slim.fit(model, disk, **options)
    with pytest.raises(ValueError, match="other training images or labels"):
        slim.fit(model, replace(disk, train=disk.train[torch.arange(100, -1, -1)]), **options)


def test_copies_for_other_processes_hold_no_pixels(both):
    split = both[1].train
    assert len(pickle.dumps(split)) < 10_000
    for again in (pickle.loads(pickle.dumps(split)), copy.deepcopy(split)):
        assert all_of(again).equal(all_of(split))


# when which


def test_the_limit_decides(photos, cache, capsys):
    bytes_of_all = 120 * 3 * 32 * 32
    for limit, mapped in ((0, True), (bytes_of_all - 1, True), (bytes_of_all, False), (math.inf, False)):
        images = slim.load_images(photos, 32, memory_limit=limit, cache_folder=cache).train.images
        assert isinstance(images, MappedImages) == mapped
        assert capsys.readouterr().out.count("\n") == mapped
    with pytest.raises(ValueError, match="memory_limit=-1: expected bytes, 0 or more"):
        slim.load_images(photos, 32, memory_limit=-1)


def test_the_limit_is_a_quarter_of_memory_unless_told(photos, cache, monkeypatch, capsys):
    machine = type("Memory", (), {"total": 4 * 120 * 3 * 32 * 32})
    monkeypatch.setattr(unread.psutil, "virtual_memory", lambda: machine)
    assert isinstance(slim.load_images(photos, 32, cache_folder=cache).train.images, torch.Tensor)
    machine.total -= 4
    assert isinstance(slim.load_images(photos, 32, cache_folder=cache).train.images, MappedImages)


def test_a_container_has_less_than_its_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(unread, "CONTAINER_LIMIT", tmp_path / "memory.max")
    whole = unread.default_memory_limit()
    (tmp_path / "memory.max").write_text("max\n", encoding="utf-8")
    assert unread.default_memory_limit() == whole
    (tmp_path / "memory.max").write_text("4000000\n", encoding="utf-8")
    assert unread.default_memory_limit() == 1_000_000


def test_the_system_has_a_place_for_them(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(unread.platformdirs, "user_cache_path", lambda name, **_: tmp_path / name)
    slim.load_images(photos, 32, memory_limit=0)
    assert len(list((tmp_path / "yolo-slim-lessons").glob("*.npy"))) == 1


# written once


def test_they_are_written_once_and_again_when_something_changed(photos, cache, tmp_path):
    folder = tmp_path / "photos"
    for path in photos.rglob("*.jpg"):
        (folder / path.relative_to(photos).parent).mkdir(parents=True, exist_ok=True)
        (folder / path.relative_to(photos)).write_bytes(path.read_bytes())
    on_disk(folder, cache)
    first = cached_files(cache)
    on_disk(folder, cache, seed=1)
    assert cached_files(cache) == first
    slim.load_images(folder, 64, memory_limit=0, cache_folder=cache)
    assert len(cached_files(cache)) == 2  # one for each size

    path = folder / "train" / "ant" / "00.jpg"
    for change in (
        lambda: path.write_bytes((folder / "train" / "cat" / "00.jpg").read_bytes()),
        lambda: os.utime(path, (1, 1)),
        lambda: path.rename(path.with_name("new.jpg")),
        lambda: (folder / "train" / "ant" / "01.jpg").unlink(),
    ):
        before = cached_files(cache)
        change()
        images = all_of(on_disk(folder, cache).train)
        assert len(cached_files(cache).keys() - before.keys()) == 1
        assert len(cached_files(cache)) == 2  # the old one is gone
        assert images.equal(all_of(slim.load_images(folder, 32).train))


def test_another_reader_reads_anew(photos, cache, monkeypatch):
    on_disk(photos, cache)
    before = cached_files(cache)
    monkeypatch.setattr("yolo_slim_lessons.data.folder_reading.READER_VERSION", 0)
    on_disk(photos, cache)
    assert not before.keys() & cached_files(cache).keys()


@pytest.mark.parametrize("damage", [lambda whole: whole[:-1000], lambda whole: b"", lambda whole: b"no array"])
def test_a_damaged_file_is_written_anew(photos, cache, damage):
    expected = all_of(on_disk(photos, cache).val)
    [file] = cache.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert all_of(on_disk(photos, cache).val).equal(expected)


def test_a_crash_in_the_middle_leaves_nothing_that_is_taken_for_images(photos, cache, run_python):
    code = """
import os, signal, sys
import yolo_slim_lessons as slim
from yolo_slim_lessons.data import folder_reading
original, calls = folder_reading._read_pictures, []
def killed(*arguments):
    calls.append(arguments)
    if len(calls) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)
folder_reading._read_pictures = killed
slim.load_images(sys.argv[1], 32, memory_limit=0, cache_folder=sys.argv[2])
"""
    done = subprocess.run([sys.executable, "-c", code, photos, cache], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert not list(cache.glob("*.npy"))
    [left] = cache.iterdir()
    assert all_of(on_disk(photos, cache).train).equal(all_of(slim.load_images(photos, 32).train))
    assert left.exists()  # its writer might be alive
    os.utime(left, (time.time() - 7200,) * 2)
    for file in cache.glob("*.npy"):
        file.unlink()
    on_disk(photos, cache)
    assert [path.suffix for path in cache.iterdir()] == [".npy"]


def test_two_processes_at_once_do_no_harm(photos, cache):
    code = """
import sys
import yolo_slim_lessons as slim
data = slim.load_images(sys.argv[1], 32, memory_limit=0, cache_folder=sys.argv[2])
print(data.train.images[:].float().mean().item())
"""
    command = [sys.executable, "-c", code, photos, cache]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") for _ in range(2)]
    answers = [process.communicate(timeout=120)[0].splitlines()[-1] for process in processes]
    expected = slim.load_images(photos, 32).train.images.float().mean().item()
    assert [float(answer) for answer in answers] == [expected, expected]
    assert len(list(cache.iterdir())) == 1


def test_a_full_disk_is_named_with_the_way_out(photos, cache, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(unread.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="cannot be written to .*0.0 GB are needed.*name another folder by cache_folder="):
        on_disk(photos, cache)
    assert not list(cache.iterdir())


def test_a_folder_that_cannot_be_made_is_named(photos, tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(OSError, match=r"images cannot be written to .*file.cache .*name another folder"):
        on_disk(photos, tmp_path / "file" / "cache")


def test_a_broken_picture_is_named_and_leaves_no_file(photos, cache, tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / "broken" / "train" / name).mkdir(parents=True)
        for number in range(6):
            (tmp_path / "broken" / "train" / name / f"{number}.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"12 of 12 pictures in .*\n  train/ant/0\.jpg: a text file"):
        on_disk(tmp_path / "broken", cache)
    assert not list(cache.iterdir())


# memory


def test_a_large_folder_is_loaded_learned_and_evaluated_in_little_memory(tmp_path, run_python):
    """1,200 pictures of 224 px are 180 MB: less than that is needed, whatever is done with them."""
    if not Path("/proc/self/status").exists():
        pytest.skip("anonymous memory of a process is read from Linux's /proc")
    random = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / "photos" / "train" / name).mkdir(parents=True)
        picture = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((260, 240))
        for number in range(600):
            picture.save(tmp_path / "photos" / "train" / name / f"{number:03d}.jpg")
    answer = run_python(
        """
import json, re, sys, threading, time
from dataclasses import replace
from pathlib import Path
import torch
import yolo_slim_lessons as slim
torch.set_num_threads(1)

def megabytes():
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1000

peaks = {}
def watched(name, work):
    done, peak = threading.Event(), [0]
    def watch():
        while not done.is_set():
            peak[0] = max(peak[0], megabytes())
            time.sleep(0.01)
    thread = threading.Thread(target=watch)
    thread.start()
    result = work()
    done.set()
    thread.join()
    peaks[name] = peak[0]
    return result

model = slim.prune_channels(slim.new_model("yolov8n-cls.yaml", ("ant", "bee"), 224), 0.8)
def train_and_evaluate(data):
    slim.evaluate(slim.fit(model, data, 1, batch_size=8, progress=False), data.val, batch_size=8, progress=False)

before = megabytes()
load = lambda: slim.load_images(sys.argv[1], 224, memory_limit=0, cache_folder=sys.argv[2])
data = watched("load", load)
watched("few", lambda: train_and_evaluate(data.take(33, 24)))  # what computing needs in any case
watched("all", lambda: train_and_evaluate(replace(data.take(81), val=data.train)))
print(json.dumps({"before": before} | peaks))
""",
        tmp_path / "photos",
        tmp_path / "cache",
        # The C library gives memory back at once, so that what is counted is what is held, and not what it keeps.
        environment={"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
    )
    peaks = json.loads(answer.splitlines()[-1])
    assert peaks["load"] < peaks["before"] + 100, peaks
    assert peaks["all"] < peaks["few"] + 100, peaks
