"""Try every combination of settings, on all cores or many computers, and lose nothing when it is stopped.

``joblib.Memory`` keeps each result on disk as soon as there is one, ``joblib.Parallel`` runs the calls, in processes of
its own or on a Dask cluster. Used in lesson 08. Leaves out: searches that choose the next point by the results so far.
"""

import functools
import itertools
import json
import tempfile
import traceback
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from pathlib import Path

import joblib
import numpy as np
from joblib import Memory, Parallel, delayed
from joblib.func_inspect import get_func_code
from tqdm.auto import tqdm

# Dask hands a point whose worker died to another worker, and after the fourth death reports an error that joblib never
# hears of: the sweep would wait for ever.
MOST_DEATHS = 3


def sweep(
    function: Callable[..., Mapping[str, object] | float],
    grid: Mapping[str, Iterable],
    folder: str | Path,
    *,
    seeds: Iterable[int] = (0,),
    n_jobs: int | None = None,
    progress: bool = True,
) -> list[dict]:
    """Call ``function`` with every combination of settings and seeds, and keep what each call returns in ``folder``.

    The same call goes on where it was stopped, and with more values or seeds computes only what is new. A process
    that dies loses the point that it was at, no other; on a Dask cluster another worker takes it over. A cluster
    without a worker left is waited for, as one may join: stop with Ctrl-C, and call again when there is one.

    Where it runs is said outside: ``with joblib.parallel_config(backend="dask"): sweep(…)`` uses the cluster of the
    ``dask.distributed.Client`` there is; ``folder`` must then be one that all computers share. joblib and Dask both
    divide the cores among their processes; ``joblib.parallel_config("loky", inner_max_num_threads=1)`` and Dask's
    settings say how.

    Args:
        function: called as ``function(bits=4, …, seed=0)``; returns a mapping of numbers, texts and lists, or one
            number. It loads its own model and data, as it may run in another process. It is known by its text and by
            what ``functools.partial`` fixed: after a change all points are computed anew, and the old ones stay in
            ``folder``. What else it reads, such as global variables, is not looked at.
        grid: name of a setting → the values to try: numbers, texts, ``None``, or lists and mappings of them.
        folder: a cache of joblib, which loads it with pickle; it may be new.
        seeds: each point is computed with each of them, as the argument ``seed``.
        n_jobs: processes at a time; ``None`` for one, or for what ``joblib.parallel_config`` says; -1 for all cores.
        progress: show a progress bar.

    Returns:
        A record for each point, in the order of ``grid``, the seed changing fastest: its settings and what the function
        returned (a single number as ``"result"``). ``pandas.DataFrame`` takes the list as it is.

    Raises:
        ValueError: nothing to try, or a value that is there twice.
        TypeError: a value is nothing that JSON can hold.
        RuntimeError: the function failed at some point, or returned what JSON cannot hold. The first such point is
            named; the results of all others are kept.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sweep(lambda x, seed: x**2 + seed, {"x": [1, 2]}, folder, progress=False)
        [{'x': 1, 'seed': 0, 'result': 1}, {'x': 2, 'seed': 0, 'result': 4}]
    """
    points = _points(grid, seeds)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kept = Memory(folder, verbose=0).cache(_result, ignore=["function"])
    identity = _identity(function)
    attempt = functools.partial(_attempt, kept, function, identity)
    # One point a task, or fast points would be handed out by the dozen and a dying process would lose them all.
    parallel = Parallel(n_jobs=n_jobs, batch_size=1, return_as="generator_unordered")
    records, problems = {}, []
    with tempfile.TemporaryDirectory(prefix="attempts-", dir=folder, ignore_cleanup_errors=True) as attempts:
        tasks = [(point, Path(attempts, str(number))) for number, point in enumerate(points)]
        done = [kept.check_call_in_cache(function, identity, point) for point in points]
        found = (attempt(*task) for task in itertools.compress(tasks, done))
        made = parallel(delayed(attempt)(*task) for task, is_done in zip(tasks, done, strict=True) if not is_done)
        outcomes = itertools.chain(found, made)
        for number, result, problem in tqdm(outcomes, "sweep", len(points), disable=not progress):
            if problem:
                problems.append(problem)
            else:
                records[number] = points[number] | result
    if problems:
        raise RuntimeError(
            f"{len(problems)} of {len(points)} points failed, the others are kept in {folder}. {problems[0]}"
        )
    return [records[number] for number in range(len(points))]


def _attempt(kept: Callable, function: Callable, identity: str, point: dict, attempts: Path) -> tuple:
    """The number of a point with its result or with what went wrong; ``attempts`` grows by a byte with each attempt."""
    number, settings = int(attempts.name), ", ".join(f"{name}={value!r}" for name, value in point.items())
    with attempts.open("ab") as file:
        if file.tell() >= MOST_DEATHS:
            return number, None, f"At {settings}: the process died {MOST_DEATHS} times, perhaps for want of memory"
        file.write(b".")
    try:
        return number, kept(function, identity, point), None
    except Exception:  # of the user's function, so of any kind; as text, for not every exception can be sent
        return number, None, f"At {settings}:\n{traceback.format_exc()}"


def _result(function: Callable, identity: str, point: dict) -> dict:
    """What ``function`` returns at ``point``, in the types of JSON."""
    result = function(**point)
    if isinstance(result, Real) and not isinstance(result, bool):
        result = {"result": result}
    if not isinstance(result, Mapping):
        raise TypeError(f"the function returned a {type(result).__name__}: expected a mapping, or one number")
    if both := point.keys() & result.keys():
        raise ValueError(f"the function returned {sorted(both)}, which are names of settings: expected others")
    return _as_json(dict(result))


def _points(grid: Mapping[str, Iterable], seeds: Iterable[int]) -> list[dict]:
    if "seed" in grid:
        raise ValueError("grid has a setting 'seed': pass seeds= instead")
    tried = {}
    for name, values in {**grid, "seed": seeds}.items():
        try:
            tried[name] = [_as_json(value) for value in values]
        except TypeError as error:
            allowed = "numbers, texts, None, or lists and mappings of them"
            raise TypeError(f"{name}={values!r}: expected {allowed}") from error
        if not tried[name] or len(set(map(joblib.hash, tried[name]))) < len(tried[name]):
            argument = "seeds" if name == "seed" else f"grid[{name!r}]"
            raise ValueError(f"{argument}={tried[name]!r}: expected at least one value, and each once")
    return [dict(zip(tried, values, strict=True)) for values in itertools.product(*tried.values())]


def _as_json(value: object) -> object:
    """``value`` as it comes back from JSON, so that a point is the same today and when it is read tomorrow."""

    def plain(part: object) -> object:
        if isinstance(part, np.generic | np.ndarray):
            return part.tolist()
        raise TypeError(f"{part!r:.80} is a {type(part).__name__}, which JSON cannot hold")

    return json.loads(json.dumps(value, default=plain))


def _identity(function: Callable) -> str:
    """The same text for the same function: a hash of its code, of fixed arguments, and of the object it belongs to."""
    known = []
    while isinstance(function, functools.partial):
        known += [function.args, function.keywords]
        function = function.func
    method = function if hasattr(function, "__code__") else function.__call__
    if getattr(method, "__name__", None) == "<lambda>":  # several on one line have the same text
        code = method.__code__
        known += [code.co_code, code.co_names, [value for value in code.co_consts if not hasattr(value, "co_code")]]
    return joblib.hash([*known, getattr(method, "__self__", None), get_func_code(method)[0]])
