"""Sweeps that are stopped, that fail in places, and whose workers are killed: nothing that was computed is lost."""

import contextlib
import functools
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import yolo_slim_lessons as slim
from yolo_slim_lessons.search import pareto_front

GRID = {"bits": [2, 4, 8], "rate": [0.0, 0.5]}


def power(bits, rate, seed, base=2):
    return {"levels": base**bits, "kept": 1 - rate, "seen": seed}


# the Pareto front


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), max_size=25))
def test_the_front_is_what_no_record_beats(numbers):
    records = [dict(zip(("top1", "bytes", "ms"), row, strict=True)) for row in numbers]
    expected = []
    for record in records:
        better_ones = [
            other
            for other in records
            if other["top1"] >= record["top1"]
            and other["bytes"] <= record["bytes"]
            and other["ms"] <= record["ms"]
            and other != record
        ]
        expected += [] if better_ones else [record]
    assert pareto_front(records, minimize=("bytes", "ms")) == expected


def test_the_front_of_two_numbers_is_a_staircase():
    random = np.random.default_rng(0)
    records = [{"top1": top1, "bytes": size} for top1, size in random.random((200, 2))]
    front = sorted(pareto_front(records), key=lambda record: record["bytes"])
    assert 1 < len(front) < 30
    assert all(smaller["top1"] < larger["top1"] for smaller, larger in zip(front, front[1:], strict=False))
    assert front[-1]["top1"] == max(record["top1"] for record in records)
    assert front[0]["bytes"] == min(record["bytes"] for record in records)


def test_equal_records_stay_together():
    twins = [{"top1": 0.9, "bytes": 10, "name": name} for name in "ab"]
    worse = {"top1": 0.9, "bytes": 11, "name": "c"}
    assert pareto_front([*twins, worse]) == twins
    assert pareto_front([]) == []


def test_the_front_needs_numbers_to_compare():
    records = [{"top1": 0.5, "bytes": 1}, {"top1": float("nan"), "bytes": 1}]
    with pytest.raises(ValueError, match="record 1 has top1=nan"):
        pareto_front(records)
    with pytest.raises(KeyError, match="record 0 has no 'ms'"):
        pareto_front(records, minimize=["ms"])
    for names in ({"maximize": (), "minimize": ()}, {"maximize": ["bytes"]}):
        with pytest.raises(ValueError, match="expected at least one entry, and each once"):
            pareto_front(records, **names)


# what a sweep returns


def test_every_combination_in_the_order_of_the_grid(tmp_path):
    records = slim.sweep(power, GRID, tmp_path, seeds=[0, 7], progress=False)
    expected = [
        {"bits": bits, "rate": rate, "seed": seed, "levels": 2**bits, "kept": 1 - rate, "seen": seed}
        for bits in (2, 4, 8)
        for rate in (0.0, 0.5)
        for seed in (0, 7)
    ]
    assert records == expected
    assert json.loads(json.dumps(records)) == expected


def test_processes_compute_the_same(tmp_path):
    alone = slim.sweep(power, GRID, tmp_path / "one", progress=False)
    assert slim.sweep(power, GRID, tmp_path / "two", n_jobs=2, progress=False) == alone
    with joblib.parallel_config(backend="threading", n_jobs=2):
        assert slim.sweep(power, GRID, tmp_path / "threads", progress=False) == alone


def test_numbers_of_numpy_are_numbers(tmp_path):
    def function(x, mode, seed):
        return np.float32(x) if mode is None else {"list": np.arange(2), "mean": np.float64(x)}

    records = slim.sweep(function, {"x": np.array([1, 2]), "mode": (None, "more")}, tmp_path, progress=False)
    assert [record["x"] for record in records] == [1, 1, 2, 2]
    assert records[0] == {"x": 1, "mode": None, "seed": 0, "result": 1.0}
    assert records[3] == {"x": 2, "mode": "more", "seed": 0, "list": [0, 1], "mean": 2.0}


def test_progress_is_shown_only_if_asked_for(tmp_path, capsys):
    slim.sweep(power, GRID, tmp_path / "silent", progress=False)
    assert capsys.readouterr() == ("", "")
    slim.sweep(power, GRID, tmp_path / "shown")
    assert "sweep: 100%" in capsys.readouterr().err


# stopping and going on


def counting(calls, stop_at=None):
    def function(bits, rate, seed):
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        calls.append((bits, rate, seed))
        return bits + rate

    return function


def test_a_stopped_sweep_goes_on_where_it_was(tmp_path):
    calls = []
    with pytest.raises(KeyboardInterrupt):
        slim.sweep(counting(calls, stop_at=4), GRID, tmp_path, progress=False)
    assert len(calls) == 4
    records = slim.sweep(counting(calls), GRID, tmp_path, progress=False)
    assert len(calls) == len(set(calls)) == 6
    assert [record["result"] for record in records] == [2, 2.5, 4, 4.5, 8, 8.5]
    slim.sweep(counting(calls), GRID, tmp_path, progress=False)
    assert len(calls) == 6


def test_more_values_and_seeds_compute_only_what_is_new(tmp_path):
    calls = []
    slim.sweep(counting(calls), GRID, tmp_path, progress=False)
    wider = {"bits": [8, 3, 2], "rate": [0.5]}
    records = slim.sweep(counting(calls), wider, tmp_path, seeds=[0, 1], progress=False)
    assert calls[6:] == [(8, 0.5, 1), (3, 0.5, 0), (3, 0.5, 1), (2, 0.5, 1)]
    assert [record["result"] for record in records] == [8.5, 8.5, 3.5, 3.5, 2.5, 2.5]


@pytest.mark.parametrize("damage", [b"", b'{"point": {}}', b"\xff\xfe"])
def test_a_damaged_file_is_computed_anew(tmp_path, damage):
    calls = []
    first = slim.sweep(counting(calls), GRID, tmp_path, progress=False)
    max(tmp_path.rglob("*.pkl")).write_bytes(damage)
    assert slim.sweep(counting(calls), GRID, tmp_path, progress=False) == first
    assert len(calls) == 7


def test_a_point_that_fails_is_named_and_the_others_are_kept(tmp_path):
    broken, calls = [4], []

    def function(bits, rate, seed):
        calls.append(bits)
        if bits in broken:
            raise OSError("disk on fire")
        return bits

    with pytest.raises(RuntimeError, match=r"(?s)2 of 6 points failed.*At bits=4, rate=0.0, seed=0:.*disk on fire"):
        slim.sweep(function, GRID, tmp_path, progress=False)
    assert calls == [2, 2, 4, 4, 8, 8]
    broken.clear()
    assert len(slim.sweep(function, GRID, tmp_path, progress=False)) == 6
    assert calls[6:] == [4, 4]


def test_a_process_that_dies_takes_its_own_points_along(tmp_path):
    folder, died = tmp_path / "sweep", tmp_path / "died"

    def function(x, seed):
        if x == 2 and not died.exists():
            died.touch()
            os._exit(1)
        return x

    with pytest.raises(joblib.externals.loky.process_executor.TerminatedWorkerError):
        slim.sweep(function, {"x": range(4)}, folder, n_jobs=2, progress=False)
    records = slim.sweep(function, {"x": range(4)}, folder, progress=False)
    assert [record["result"] for record in records] == [0, 1, 2, 3]
    assert list(folder.glob("attempts-*")) == []


# which function it is


def test_functions_with_other_texts_or_fixed_arguments_share_a_folder_and_nothing_else(tmp_path):
    def other(bits, rate, seed):
        return {"levels": 1}

    lambdas = [lambda bits, rate, seed: {"levels": 0}, lambda bits, rate, seed: {"levels": -1}]
    functions = [power, functools.partial(power, base=3), other, *lambdas]
    for _ in range(2):  # the second time, each finds its own
        levels = [slim.sweep(function, GRID, tmp_path, progress=False)[0]["levels"] for function in functions]
        assert levels == [4, 9, 1, 0, -1]


class Count:
    """A callable object with a state."""

    def __init__(self, start):
        self.start = start

    def __call__(self, x, seed):
        return self.start + x

    def from_a_method(self, x, seed):
        return self.start - x


def test_objects_and_methods_are_known_by_their_state(tmp_path):
    for function, expected in ((Count(1), 3), (Count(5), 7), (Count(1).from_a_method, -1), (Count(5), 7)):
        assert slim.sweep(function, {"x": [2]}, tmp_path, progress=False)[0]["result"] == expected


def test_a_function_that_was_rewritten_is_computed_anew_and_its_old_points_are_kept(tmp_path, run_python):
    code = """
import sys, yolo_slim_lessons as slim, study
print(slim.sweep(study.f, {"x": [1]}, sys.argv[1], progress=False)[0]["result"], study.calls)
"""
    folder = tmp_path / "fresh-python"  # where run_python works
    folder.mkdir()
    said = []
    for change in ("1", "2", "1"):
        text = f"calls = []\n\ndef f(x, seed):\n    calls.append(x)\n    return x + {change}\n"
        (folder / "study.py").write_text(text, encoding="utf-8")
        said.append(run_python(code, tmp_path / "sweep", environment={"PYTHONDONTWRITEBYTECODE": "1"}).strip())
    assert said == ["2 [1]", "3 [1]", "2 []"]


# wrong arguments


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"grid": {"bits": []}}, ValueError, r"grid\['bits'\]=\[\]: expected at least one value"),
        (
            {"grid": {"bits": [2, 2]}},
            ValueError,
            r"grid\['bits'\]=\[2, 2\]: .*each once",
        ),
        ({"seeds": []}, ValueError, r"seeds=\[\]: expected at least one value"),
        ({"grid": {"seed": [1]}}, ValueError, "grid has a setting 'seed': pass seeds= instead"),
        ({"grid": {"bits": [object()]}}, TypeError, r"bits=\[<object .*expected numbers, texts"),
    ],
)
def test_wrong_grids_are_named(tmp_path, arguments, error, words):
    with pytest.raises(error, match=words):
        slim.sweep(power, **{"grid": GRID, "folder": tmp_path / "new", "progress": False} | arguments)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (None, "returned a NoneType: expected a mapping, or one number"),
        (True, "returned a bool"),
        ({"bits": 1}, r"returned \['bits'\], which are names of settings"),
        ({"model": object()}, "which JSON cannot hold"),
    ],
)
def test_wrong_results_are_named(tmp_path, returned, words):
    with pytest.raises(RuntimeError, match=words):
        slim.sweep(lambda bits, seed: returned, {"bits": [2]}, tmp_path, progress=False)


# a Dask cluster


@contextlib.contextmanager
def dask_cluster(folder):
    """Two worker processes, on which joblib runs what is within."""
    dask, distributed = pytest.importorskip("dask"), pytest.importorskip("dask.distributed")
    # A busy computer may need longer than the usual 30 s to import PyTorch in a worker that is started anew.
    patience = {"distributed.comm.timeouts.tcp": "300s", "distributed.comm.timeouts.connect": "300s"}
    options = {"threads_per_worker": 1, "dashboard_address": ":0", "local_directory": str(folder)}
    with (
        dask.config.set(patience),
        distributed.LocalCluster(n_workers=2, processes=True, **options) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        yield


@pytest.mark.slow
def test_a_killed_worker_of_a_dask_cluster_costs_nothing(tmp_path):
    started = tmp_path / "started"
    started.mkdir()

    def workers():
        return {int(file.name.split("-")[1]) for file in started.iterdir()}

    def slow_square(x, seed):
        (started / f"{x}-{os.getpid()}-{time.monotonic_ns()}").touch()
        while len(workers()) < 2:  # neither does all the work before the other one has come
            time.sleep(0.05)
        time.sleep(0.2)
        return {"square": x * x, "pid": os.getpid()}

    def kill_one():
        """Wait until both workers are at work, and a moment longer, then kill one of them."""
        while len(workers()) < 2:
            time.sleep(0.05)
        time.sleep(0.3)
        victim = min(workers())
        os.kill(victim, signal.SIGKILL)
        return victim

    with dask_cluster(tmp_path), ThreadPoolExecutor(1) as beside:
        killed = beside.submit(kill_one)
        records = slim.sweep(slow_square, {"x": range(20)}, tmp_path / "sweep", progress=False)
        victim = killed.result(10)
    assert [record["square"] for record in records] == [x * x for x in range(20)]
    calls = [int(file.name.split("-")[0]) for file in started.iterdir()]
    assert set(calls) == set(range(20))
    assert len(calls) <= 21  # the one that was being computed once more, and no other
    by_victim = [record for record in records if record["pid"] == victim]
    assert len(by_victim) < 10  # others took over what it had not begun


@pytest.mark.slow
def test_a_point_that_kills_every_worker_is_given_up_and_the_others_are_kept(tmp_path):
    def function(x, seed):
        if x == 1:
            os._exit(1)
        return x

    with dask_cluster(tmp_path), pytest.raises(RuntimeError, match="1 of 3 points failed.*At x=1, seed=0: .*died 3"):
        slim.sweep(function, {"x": range(3)}, tmp_path / "sweep", progress=False)
    assert len(slim.sweep(function, {"x": [0, 2]}, tmp_path / "sweep", progress=False)) == 2
