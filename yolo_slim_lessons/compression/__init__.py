"""compress(): the stages of a recipe, one after the other, each with its scorecard.

A stage is a function of this package with its settings: nothing that a learner could not type cell by cell. ``stages``
runs them, ``results`` shows what came of them, ``budgets`` plans a recipe for so many bytes or milliseconds, and
``within_budget`` tries plans out. Used in lessons 08 to 10. Leaves out: trying many recipes (``search.sweep``).
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.agreement import check_image_size, join_data
from yolo_slim_lessons.compression.budgets import Budget
from yolo_slim_lessons.compression.results import Compression, StageResult, Target
from yolo_slim_lessons.compression.stage_bar import StageBar
from yolo_slim_lessons.compression.stages import STAGES, RecipeRun, packed_bytes, read_stages
from yolo_slim_lessons.compression.within_budget import TargetFile, compress_within
from yolo_slim_lessons.data import ImageData
from yolo_slim_lessons.deployment import onnx_runner
from yolo_slim_lessons.distillation import check_teacher
from yolo_slim_lessons.measurement import compare, count_macs, count_parameters, evaluate
from yolo_slim_lessons.models import as_classifier, image_size_of

__all__ = ["STAGES", "Compression", "StageResult", "Target", "TargetFile", "compress", "read_stages"]


def compress(
    model: ClassificationModel,
    data: ImageData,
    recipe: str | Path | Mapping[str, object] | Budget,
    *,
    teacher: ClassificationModel | None = None,
    folder: str | Path | None = None,
    latency: bool = False,
    target_file: TargetFile | None = None,
    on_stage: Callable[[StageResult], None] | None = None,
    progress: bool = True,
) -> Compression:
    """Take ``model`` through the stages of ``recipe``, or of one that is planned to stay within a budget.

    Only ``data.train`` is learned from and only ``data.val`` is looked at; ``data.test`` stays for the report.

    With a ``Budget``, ``plan_recipe`` makes the recipe, and the result says of each target whether it was met. How much
    accuracy is lost only training tells: for ``max_drop`` without ``target_bytes``, sizes of 1/256 to 1/4 of the FP32
    weights, each half as large as the next, are tried by bisection, three of the seven with ``epochs`` each, and the
    smallest is kept that lost no more, or the last that was tried if all did.

    Args:
        model: a float classifier; it is left alone.
        data: what to train on and to choose by.
        recipe: the name of a shipped one (``"slim"``, which made ``nano.slim``, ``"lossless"`` or ``"fast"``; only
            seed and stages count here), the path of a YAML file, what stands in one, such as ``{"seed": 0, "stages":
            [{"prune_channels": {"target_parameters": 0.2}}, …]}``, with names from ``STAGES``, or a ``Budget``.
        teacher: for ``distill`` and ``train_quantized``; ``None`` takes ``model`` itself.
        folder: keeps what each stage made, the state of trainings, surveys and planned recipes, so that the same call
            goes on there after it was stopped. ``None`` keeps nothing.
        latency: time each stage's model in ONNX Runtime, in turns with the first. ``target_latency`` always does.
        target_file: what ``target_bytes`` of a ``Budget`` counts; ``None`` is the ``.slim`` file.
        on_stage: called with the result of each stage as soon as there is one, first with that of the start; nothing is
            timed yet.
        progress: show a progress bar, with an estimate of the time that the other stages take.

    Raises:
        ValueError: no list of stages, an unknown one, a target that cannot be met, a target of bytes for a network that
            packing cannot describe, or whatever a stage objects to.
        TypeError: ``model`` is no classifier.
        FileNotFoundError: there is no such recipe.

    Example:
        >>> import yolo_slim_lessons as slim
        >>> data = slim.load_images("fashion-mnist").take(train=500, val=200)
        >>> recipe = {"stages": [{"prune_channels": {"prune_rate": 0.5}}, {"quantize_integer": {"bits": 4}}]}
        >>> slim.compress(slim.load_model("nano"), data, recipe, progress=False).factor > 20
        True
    """
    model = as_classifier(model)
    data = join_data(model, data)
    check_image_size(model, data.val.height_width, "data")
    if teacher is not None:
        check_teacher(model, teacher)
    folder = None if folder is None else Path(folder)
    timed = latency or (isinstance(recipe, Budget) and recipe.target_latency is not None)
    run = functools.partial(_run, model, data, teacher or model, folder, timed, progress, on_stage)
    if isinstance(recipe, Budget):
        return compress_within(recipe, model, data, folder, progress, run, target_file)
    return run(recipe)


def _run(model, data, teacher, folder, latency, progress, on_stage, recipe) -> Compression:
    recipe = read_stages(recipe)
    stages: list[StageResult] = []

    def finish(*stage) -> None:
        stages.append(_measured(*stage, data))
        if on_stage:
            on_stage(stages[-1])

    finish("start", {}, model, 0.0)
    with StageBar([(name, STAGES[name][0], settings) for name, settings in recipe["stages"]], progress) as bar:
        run = RecipeRun(model, teacher, data, recipe["seed"], folder, progress, bar)
        for name, settings in recipe["stages"]:
            made, seconds = run.stage(stages[-1].model, name, settings)
            finish(name, settings, made, seconds)
    if latency:
        first, size = onnx_runner(model), image_size_of(model)
        stages = [replace(stage, latency=compare(first, onnx_runner(stage.model), image_size=size)) for stage in stages]
    plain = {"seed": recipe["seed"], "stages": [{name: settings} for name, settings in recipe["stages"]]}
    return Compression(tuple(stages), plain)


def _measured(name: str, settings: Mapping, model: ClassificationModel, seconds: float, data: ImageData) -> StageResult:
    scores = evaluate(model, data.val, progress=False)
    counts = count_parameters(model), count_macs(model)
    return StageResult(name, settings, model, scores, *counts, packed_bytes(model), seconds)
