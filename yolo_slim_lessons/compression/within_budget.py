"""From a budget to a compressed model: plan, run, measure, and for ``max_drop`` try other sizes.

Leaves out: the plan itself (``budgets.plan_recipe``).
"""

from __future__ import annotations

import functools
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
    planner = _Planner(model, data, folder, progress)
    if budget.max_drop is None or budget.target_bytes is not None:
        return _compared(run(planner.plan(budget)), budget)
    sizes = [4 * count_parameters(model) // factor for factor in FACTORS]
    attempts, best, impossible = [], None, None
    while sizes:
        middle = len(sizes) // 2
        smaller, larger = sizes[:middle], sizes[middle + 1 :]
        try:
            plan = planner.plan(replace(budget, target_bytes=sizes[middle]))
        except ValueError as error:  # nothing is that small
            impossible, sizes = error, larger
            continue
        attempts.append(run(plan))
        if attempts[-1].drop <= budget.max_drop:
            best, sizes = attempts[-1], smaller
        else:
            sizes = larger
    if not attempts:
        raise impossible
    best = best or attempts[-1]
    return _compared(replace(best, attempts=tuple(each for each in attempts if each is not best)), budget)


class _Planner:
    """Plans recipes for one model, from one survey, which is made when it is first needed."""

    def __init__(self, model: ClassificationModel, data: ImageData, folder: Path | None, progress: bool):
        self.model, self.data, self.folder, self.progress = model, data, folder, progress

    @functools.cached_property
    def survey(self) -> Survey:
        return survey_layers(self.model, self.data.val, progress=self.progress)

    def plan(self, budget: Budget) -> dict | Path:
        """A recipe; or, with a folder, the path of its YAML file there, which may have been edited."""
        if self.folder is None:
            return plan_recipe(self.model, self.survey, budget)
        # Of what the plan depends on, so that the same call finds it again although timings differ.
        known = [asdict(budget), fingerprint(self.model), self.data.val.fingerprint()]
        file = self.folder / f"plan-{hash_of(known)}.yaml"
        if not file.exists():
            text = yaml.safe_dump(plan_recipe(self.model, self.survey, budget), sort_keys=False)
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
