"""From a budget to a compressed model: plan, run, measure, and for ``max_drop`` try other sizes.

Leaves out: the plan itself (``budgets.plan_recipe``).
"""

import functools
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import yaml
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.compression.budgets import Budget, Survey, check_packable, plan_recipe, survey_layers
from yolo_slim_lessons.compression.results import Compression, Target
from yolo_slim_lessons.compression.stages import hash_of
from yolo_slim_lessons.data import ImageData
from yolo_slim_lessons.files import fingerprint, write_atomically
from yolo_slim_lessons.measurement import count_parameters

FACTORS = (256, 128, 64, 32, 16, 8, 4)  # times smaller than the FP32 weights


def compress_within(
    budget: Budget,
    model: ClassificationModel,
    data: ImageData,
    folder: Path | None,
    progress: bool,
    run: Callable[[dict | Path], Compression],
) -> Compression:
    """The result of ``run`` with a recipe planned for ``budget``, and what of the budget was met."""
    for name in ("target_bytes", "max_drop"):
        if getattr(budget, name) is not None:
            check_packable(model, name, getattr(budget, name))

    @functools.cache
    def survey() -> Survey:  # made when it is first needed
        return survey_layers(model, data.val, progress=progress)

    def plan(budget: Budget) -> dict | Path:
        return _plan(budget, model, data, folder, survey)

    if budget.max_drop is None or budget.target_bytes is not None:
        return _compared(run(plan(budget)), budget)
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
    return _compared(replace(best, attempts=tuple(made for made in attempts if made is not best)), budget)


def _plan(budget: Budget, model: ClassificationModel, data: ImageData, folder: Path | None, survey) -> dict | Path:
    """A recipe; or, with a folder, the path of its YAML file there, which may have been edited."""
    if folder is None:
        return plan_recipe(model, survey(), budget)
    # Of what the plan depends on, so that the same call finds it again although timings differ.
    known = [asdict(budget), fingerprint(model), data.val.fingerprint()]
    file = folder / f"plan-{hash_of(known)}.yaml"
    if not file.exists():
        text = yaml.safe_dump(plan_recipe(model, survey(), budget), sort_keys=False)
        write_atomically(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return file


def _compared(made: Compression, budget: Budget) -> Compression:
    last = made.stages[-1]
    measured = {
        "target_bytes": last.packed_bytes,
        "target_latency": last.latency and last.latency.second.median,
        "max_drop": made.drop,
    }
    allowed = {name: getattr(budget, name) for name in measured}
    targets = [Target(name, limit, measured[name]) for name, limit in allowed.items() if limit is not None]
    return replace(made, targets=tuple(targets))
