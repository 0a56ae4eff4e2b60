"""Try every combination of settings, on all cores or many computers, and lose nothing when it is stopped.

Each finished point is a small JSON file, written at once by the process that computed it. joblib does the running: its
processes by default, a Dask cluster within ``joblib.parallel_config(backend="dask")``. Used in lesson 08. Leaves out:
searches that choose the next point by the results so far.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import itertools
import json
import textwrap
import traceback
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from tqdm.auto import tqdm

from yolo_slim_lessons.files import write_atomically

# A point that kills its process again and again is given up. Dask would try a fourth time and then report an error that
# joblib never hears of: the sweep would wait for ever.
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
    that dies takes the points with it that it was at, no others; on a Dask cluster another worker takes these over. A
    cluster without a worker left is waited for, as one may join: stop with Ctrl-C, and call again when there is one.

    Where it runs is said outside: ``with joblib.parallel_config(backend="dask"): sweep(…)`` uses the cluster of the
    ``dask.distributed.Client`` there is. ``folder`` must then be one that all computers share. joblib and Dask both
    divide the cores among their processes, so that PyTorch's threads do not get in each other's way;
    ``joblib.parallel_config("loky", inner_max_num_threads=1)`` and Dask's settings say how.

    Args:
        function: called as ``function(bits=4, …, seed=0)``; returns a mapping of numbers, texts and lists, or one
            number. It loads its own model and data, as it may run in another process.
        grid: name of a setting → the values to try: numbers, texts, ``None``, or lists and mappings of them.
        folder: of this sweep alone; it may be new.
        seeds: each point is computed with each of them, as the argument ``seed``.
        n_jobs: processes at a time; ``None`` for one, or for what ``joblib.parallel_config`` says; -1 for all cores.
        progress: show a progress bar.

    Returns:
        A record for each point, in the order of ``grid``, the seed changing fastest: its settings and what the function
        returned (a single number as ``"result"``). ``pandas.DataFrame`` takes the list as it is.

    Raises:
        ValueError: nothing to try, a value that is there twice, or a folder of another sweep: of other settings,
            another function, or one whose text has been changed since (comments do not count).
        TypeError: a value, or what the function returned, is nothing that JSON can hold.
        RuntimeError: the function failed at some point. The first such point is named; all others are kept.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sweep(lambda x, seed: x**2 + seed, {"x": [1, 2]}, folder, progress=False)
        [{'x': 1, 'seed': 0, 'result': 1}, {'x': 2, 'seed': 0, 'result': 4}]
    """
    folder = Path(folder)
    points = _points(grid, seeds)
    _claim(folder, function, tuple(points[0]))
    files = [folder / f"{_key(point)}.json" for point in points]
    missing = [(point, file) for point, file in zip(points, files, strict=True) if _finished(file) is None]
    for _, file in missing:
        _begun(file).unlink(missing_ok=True)
    calls = [delayed(_compute)(function, point, file) for point, file in missing]
    # One point a task, or fast points would be handed out by the dozen and a dying process would lose them all.
    parallel = Parallel(n_jobs=n_jobs, batch_size=1, return_as="generator_unordered")
    failures = []
    with tqdm(total=len(points), initial=len(points) - len(calls), desc="sweep", disable=not progress) as bar:
        for failure in parallel(calls):
            failures += [failure] if failure else []
            bar.update()
    if failures:
        raise RuntimeError(
            f"{len(failures)} of {len(points)} points failed, the others are kept in {folder}. {failures[0]}"
        )
    return [point | _finished(file) for point, file in zip(points, files, strict=True)]


def _compute(function: Callable, point: dict, file: Path) -> str | None:
    """Compute a point and write its file; returns what went wrong, if anything did."""
    settings = ", ".join(f"{name}={value!r}" for name, value in point.items())
    if _finished(file) is not None:  # by a worker that was lost after it had written
        return None
    with _begun(file).open("ab") as stream:
        if stream.tell() >= MOST_DEATHS:
            return f"At {settings}: the process died {MOST_DEATHS} times, perhaps for want of memory"
        stream.write(b".")
    try:
        result = function(**point)
        if isinstance(result, Real) and not isinstance(result, bool):
            result = {"result": result}
        if not isinstance(result, Mapping):
            raise TypeError(f"the function returned a {type(result).__name__}: expected a mapping, or one number")
        if both := point.keys() & result.keys():
            raise ValueError(f"the function returned {sorted(both)}, which are names of settings: expected others")
        text = json.dumps({"point": point, "result": dict(result)}, indent=1, default=_plain)
        write_atomically(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    except Exception:  # of the user's function, so of any kind; as text, for not every exception can be sent
        return f"At {settings}:\n{traceback.format_exc()}"
    finally:
        _begun(file).unlink(missing_ok=True)
    return None


def _begun(file: Path) -> Path:
    """Holds a dot for each time that the point of ``file`` was begun; it stays if the process dies."""
    return file.with_suffix(".begun")


def _finished(file: Path) -> dict | None:
    """What is in the file of a finished point; ``None`` if there is none, or if it is damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))["result"]
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _points(grid: Mapping[str, Iterable], seeds: Iterable[int]) -> list[dict]:
    if "seed" in grid:
        raise ValueError("grid has a setting 'seed': pass seeds= instead")
    # As JSON holds them, so that a point is the same today and when it is read tomorrow.
    tried = {name: [_as_json(name, value) for value in values] for name, values in {**grid, "seed": seeds}.items()}
    for name, values in tried.items():
        if not values or len({json.dumps(value, sort_keys=True) for value in values}) < len(values):
            name = "seeds" if name == "seed" else f"grid[{name!r}]"
            raise ValueError(f"{name}={values!r}: expected at least one value, and each once")
    return [dict(zip(tried, values, strict=True)) for values in itertools.product(*tried.values())]


def _as_json(name: str, value: object) -> object:
    try:
        return json.loads(json.dumps(value, default=_plain))
    except TypeError:
        raise TypeError(f"{name}={value!r}: expected a number, text, None, or lists and mappings of them") from None


def _plain(value: object) -> object:
    """A number of NumPy, or an array, as JSON knows it."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{value!r:.80} is a {type(value).__name__}, which JSON cannot hold")


def _key(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _claim(folder: Path, function: Callable, names: tuple[str, ...]) -> None:
    """Write into ``folder`` whose points it holds, or see that they are this function's."""
    file = folder / "sweep.json"
    owner = {"settings": list(names)} | _identity(function)
    if not file.exists():
        text = json.dumps(owner, indent=1)
        write_atomically(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    if different := [
        f"{name} {before.get(name)!r} (now {now!r})" for name, now in owner.items() if before.get(name) != now
    ]:
        raise ValueError(
            f"folder={str(folder)!r} holds the points of another sweep, of {', '.join(different)}: "
            "use another folder, or delete this one to compute all points anew"
        )


def _identity(function: Callable) -> dict[str, object]:
    """A function's name, the arguments that ``functools.partial`` fixed, and a number for its text."""
    fixed = {}
    while isinstance(function, functools.partial):
        names = [str(number) for number in range(len(function.args))]
        fixed = dict(zip(names, function.args, strict=True)) | function.keywords | fixed
        function = function.func
    try:
        source = ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(function))))
    except (OSError, TypeError, SyntaxError):  # typed at a prompt, a callable object, a lambda amid a call
        source = None
    return {
        "function": getattr(function, "__qualname__", type(function).__qualname__),
        "fixed": _as_json("fixed arguments", fixed),
        "source": source and _key(source),
    }
