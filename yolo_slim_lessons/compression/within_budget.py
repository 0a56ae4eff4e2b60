"""From a budget to a compressed model: plan, run, measure, and for ``max_drop`` try again.

Leaves out: the plan itself (``search.plan_recipe``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import yaml
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.compression.budgets import Budget, Survey, plan_recipe, survey_layers
from yolo_slim_lessons.compression.results import Compression, Target
from yolo_slim_lessons.data import ImageData
from yolo_slim_lessons.files import fingerprint, write_atomically
from yolo_slim_lessons.measurement import count_parameters

FACTORS = (256, 128, 64, 32, 16, 8, 4)  # times smaller than the FP32 weights


def stay_within(
    budget: Budget,
    model: ClassificationModel,
    data: ImageData,
    folder: Path | None,
    progress: bool,
    run: Callable[[dict | Path], Compression],
) -> Compression:
    """The result of ``run``, called with recipes planned for ``budget``, and how it compares with the budget."""
    survey: Survey | None = None

    def planned(budget: Budget) -> dict | Path:
        nonlocal survey
        file = None if folder is None else folder / f"plan-{_key(budget, model, data)}.yaml"
        if file is not None and file.exists():
            return file
        survey = survey or survey_layers(model, data.val, progress=progress)
        plan = plan_recipe(model, survey, budget)
        if file is None:
            return plan
        text = yaml.safe_dump(plan, sort_keys=False)
        write_atomically(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        return file

    if budget.max_drop is None or budget.target_bytes is not None:
        return _compared(run(planned(budget)), budget)
    sizes = [4 * count_parameters(model) // factor for factor in FACTORS]
    attempts, best, impossible = [], None, None
    while sizes:
        middle = len(sizes) // 2
        smaller, larger = sizes[:middle], sizes[middle + 1 :]
        try:
            plan = planned(replace(budget, target_bytes=sizes[middle]))
        except ValueError as error:  # nothing is that small
            impossible, sizes = error, larger
            continue
        attempts.append(run(plan))
        little = attempts[-1].drop <= budget.max_drop
        best, sizes = (attempts[-1], smaller) if little else (best, larger)
    if not attempts:
        raise impossible
    best = best or attempts[-1]
    return _compared(replace(best, attempts=tuple(each for each in attempts if each is not best)), budget)


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


def _key(budget: Budget, model: ClassificationModel, data: ImageData) -> str:
    """Of what a plan depends on; the same call finds its plan again, though timings differ."""
    known = [asdict(budget), fingerprint(model), fingerprint(data.val.images)]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:12]
