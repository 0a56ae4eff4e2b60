"""The rule for threads: how they wait, and when there is one."""

import json
import time

import pytest
import torch

import yolo_slim_lessons as slim
from yolo_slim_lessons import threads
from yolo_slim_lessons.measurement import timing


def test_threads_that_wait_sleep_soon(run_python):
    code = "import os, yolo_slim_lessons; print(os.environ.get('GOMP_SPINCOUNT'))"
    assert run_python(code, environment={}).split() == [threads.SPINS]


@pytest.mark.parametrize("given", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "ACTIVE"}])
def test_what_the_user_has_set_stays(given):
    environment = dict(given)
    threads.sleep_soon(environment)
    assert environment == given


def test_pytorch_is_imported_after_the_rule(run_python):
    code = "import sys, yolo_slim_lessons; print('torch' in sys.modules)"
    assert run_python(code).split() == ["False"]


def test_few_numbers_are_computed_by_one_thread_and_the_others_come_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threads.one_thread(100):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with threads.one_thread(threads.SMALL):
            assert torch.get_num_threads() == 2
        with pytest.raises(KeyError), threads.one_thread():
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("busy", "expected"), [(True, 1), (False, 2)])
def test_one_image_is_timed_with_one_thread_on_a_busy_machine(nano, monkeypatch, busy, expected):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(timing, "cores_are_busy", lambda: busy)
    try:
        assert slim.time_model(nano, repeats=1, warmup=0).threads == expected
        assert slim.time_model(nano, repeats=1, warmup=0, threads=2).threads == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_others_share_is_what_neither_idles_nor_is_ours(monkeypatch):
    looks = iter([(10.0, 100.0, 5.0), (10.5, 100.5, 5.25), (20.0, 0.0, 0.0), (20.05, 0.0, 0.0)])
    monkeypatch.setattr(threads, "_look", lambda: next(looks))
    monkeypatch.setattr(threads, "_seen", None)
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(threads.time, "sleep", lambda seconds: None)
    assert threads.others_share() == pytest.approx(0.25)  # of 1 second on two cores: 0.5 idle, 0.25 ours
    assert threads.others_share() == 1.0  # that look was too long ago, so there is another one


def test_the_look_is_quick():
    threads.others_share()
    start = time.process_time()
    assert 0 <= threads.others_share() <= 1
    assert time.process_time() - start < 0.05
    assert json.dumps(threads.cores_are_busy()) in ("true", "false")
