"""From a budget to a compressed model: plan, run, measure, and for ``max_drop`` try other sizes.

Leaves out: the plan itself (``budgets.plan_recipe``).
"""

import functools
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import joblib
import numpy as np
import yaml
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.compression.budgets import Budget, Survey, check_packable, plan_recipe, survey_layers
from yolo_slim_lessons.compression.results import Compression, Target
from yolo_slim_lessons.compression.stages import hash_of
from yolo_slim_lessons.data import ImageData
from yolo_slim_lessons.files import fingerprint, write_atomically
from yolo_slim_lessons.measurement import count_parameters
from yolo_slim_lessons.pruning.channels import prune_channels
from yolo_slim_lessons.quantization import quantize_integer

FACTORS = (256, 128, 64, 32, 16, 8, 4)  # times smaller than the FP32 weights
ROUNDS = 8  # of planning for a file, weighing it and correcting
ROOM = 0.99  # of the target: what a training changes may take some bytes


@dataclass(frozen=True)
class TargetFile:
    """What ``target_bytes`` counts where it is not the ``.slim`` file.

    Attributes:
        name: tells it from others, such as ``"onnx"``.
        bits: that such a file can give to the weights of a layer; those that ``survey_layers`` tries are planned with.
        size: from a model to the bytes of its file.
    """

    name: str
    bits: tuple[int, ...]
    size: Callable[[ClassificationModel], int]


def compress_within(
    budget: Budget,
    model: ClassificationModel,
    data: ImageData,
    folder: Path | None,
    progress: bool,
    run: Callable[[dict | Path], Compression],
    target_file: TargetFile | None = None,
) -> Compression:
    """The result of ``run`` with a recipe planned for ``budget``, and what of the budget was met."""
    for name in ("target_bytes", "max_drop"):
        if getattr(budget, name) is not None:
            check_packable(model, name, getattr(budget, name))

    @functools.cache
    def survey() -> Survey:  # made when it is first needed
        return _survey(model, data, folder, progress)

    def plan(budget: Budget) -> dict | Path:
        return _plan(budget, model, data, folder, survey, target_file)

    if budget.max_drop is None or budget.target_bytes is not None:
        return _compared(run(plan(budget)), budget, target_file)
    attempts: list[Compression] = []
    impossible: list[ValueError] = []

    def loses_little(target_bytes: int) -> bool:
        try:
            recipe = plan(replace(budget, target_bytes=target_bytes))
        except ValueError as error:  # nothing is that small
            impossible.append(error)
            return False
        attempts.append(run(recipe))
        return attempts[-1].drop <= budget.max_drop

    sizes = [4 * count_parameters(model) // factor for factor in FACTORS]
    bisect_left(sizes, True, key=loses_little)
    if not attempts:
        raise impossible[-1]
    best = ([made for made in attempts if made.drop <= budget.max_drop] or attempts)[-1]
    best = replace(best, attempts=tuple(made for made in attempts if made is not best))
    return _compared(best, budget, target_file)


def _survey(model: ClassificationModel, data: ImageData, folder: Path | None, progress: bool) -> Survey:
    """The survey of a model on ``data.val``; with a folder, the one that lies there."""
    file = folder and folder / f"survey-{hash_of([fingerprint(model), data.val.fingerprint()])}.joblib"
    if file and file.exists():
        return joblib.load(file)
    made = survey_layers(model, data.val, progress=progress)
    if file:
        write_atomically(file, lambda temporary: joblib.dump(made, temporary))
    return made


def _plan(
    budget: Budget,
    model: ClassificationModel,
    data: ImageData,
    folder: Path | None,
    survey: Callable[[], Survey],
    target_file: TargetFile | None,
) -> dict | Path:
    """A recipe; or, with a folder, the path of its YAML file there, which may have been edited."""
    if folder is None:
        return _recipe(model, survey(), budget, target_file)
    # Of what the plan depends on, so that the same call finds it again although timings differ.
    known = [asdict(budget), fingerprint(model), data.val.fingerprint(), *([target_file.name] if target_file else [])]
    file = folder / f"plan-{hash_of(known)}.yaml"
    if not file.exists():
        text = yaml.safe_dump(_recipe(model, survey(), budget, target_file), sort_keys=False)
        write_atomically(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return file


def _recipe(model: ClassificationModel, survey: Survey, budget: Budget, target_file: TargetFile | None) -> dict:
    """What ``plan_recipe`` plans; for another file than ``.slim``, with fewer and fewer bytes until that file fits."""
    if target_file is None or budget.target_bytes is None:
        return plan_recipe(model, survey, budget)
    survey, target_bytes = _with_bits(survey, target_file.bits), float(budget.target_bytes)
    for _ in range(ROUNDS):
        try:
            recipe = plan_recipe(model, survey, replace(budget, target_bytes=target_bytes))
        except ValueError as error:
            reason = f"its .slim file would have to take {target_bytes:,.0f} bytes ({error})"
            raise ValueError(_too_small(budget, target_file, reason)) from error
        size = target_file.size(_untrained(model, recipe))
        if size <= budget.target_bytes:
            return recipe
        target_bytes *= ROOM * budget.target_bytes / size
    raise ValueError(_too_small(budget, target_file, f"the smallest that was planned takes {size:,} bytes"))


def _too_small(budget: Budget, target_file: TargetFile, reason: str) -> str:
    return f"target_bytes={budget.target_bytes!r}, of a file for {target_file.name}: {reason}; expected more bytes"


def _with_bits(survey: Survey, bits: tuple[int, ...]) -> Survey:
    """``survey`` with those of its numbers of bits only that are in ``bits``."""
    tried = survey.bits
    columns = [column for column, number in enumerate(tried.bits) if number in bits]
    some = tuple(np.take(tried.bits, columns).tolist())
    return replace(survey, bits=replace(tried, bits=some, loss=tried.loss[:, columns], bytes=tried.bytes[:, columns]))


def _untrained(model: ClassificationModel, recipe: dict) -> ClassificationModel:
    """What the stages of a plan make of the layers, without training: as large as the trained one."""
    for stage in recipe["stages"]:
        ((name, settings),) = stage.items()
        if name == "prune_channels":
            model = prune_channels(model, **settings)
        elif "bits" in settings:
            model = quantize_integer(model, settings["bits"], warn=False)
    return model


def _compared(made: Compression, budget: Budget, target_file: TargetFile | None) -> Compression:
    last = made.stages[-1]
    measured = {
        "target_bytes": target_file.size(last.model) if target_file and budget.target_bytes else last.packed_bytes,
        "target_latency": last.latency and last.latency.second.median,
        "max_drop": made.drop,
    }
    allowed = {name: getattr(budget, name) for name in measured}
    targets = [Target(name, limit, measured[name]) for name, limit in allowed.items() if limit is not None]
    return replace(made, targets=tuple(targets))
