"""``compress``: a model within a budget, and a folder with all that is given away.

Leaves out: the work itself (``compression``).
"""

import functools
from argparse import Namespace
from pathlib import Path

import yaml
from tqdm.auto import tqdm
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.command_line.formats import FORMATS, bytes_of, file_bytes, writer
from yolo_slim_lessons.command_line.measure import measured
from yolo_slim_lessons.command_line.reading import read_images, read_model
from yolo_slim_lessons.compression import Compression, StageResult, TargetFile, compress
from yolo_slim_lessons.compression.budgets import BITS, Budget
from yolo_slim_lessons.compression.model_cards import model_card
from yolo_slim_lessons.compression.report import write_report
from yolo_slim_lessons.data import ImageData
from yolo_slim_lessons.files import write_atomically
from yolo_slim_lessons.measurement import count_parameters, paired_difference
from yolo_slim_lessons.models import save_model
from yolo_slim_lessons.quantization import dequantize

TO_BE_WRITTEN = "The command that wrote this page does not know; whoever gives the model away should say it here."


def run(settings: Namespace) -> bool:
    """Compress a model as ``settings`` say, and write what was made; returns whether the budget was met."""
    writer(settings.kind)  # now, not after the training
    folder = _output_folder(settings)
    if FORMATS[settings.kind].integers_only:
        raise ValueError(
            f"--for {settings.kind}: it has integers only, and compress leaves activations in float. Compress for "
            f"slim, then: export {folder / _file_stem(folder)}.pt --for {settings.kind} --bits 8 --activations 8 "
            f"--calibrate {settings.images}"
        )
    model = read_model(settings.model, settings)
    goal = settings.recipe or _budget_of(settings, model)
    data = read_images(settings.images, model, settings)
    teacher = read_model(settings.teacher, settings) if settings.teacher else None
    print(
        f"{_goal_in_words(settings, goal)}. It goes into {folder}; after Ctrl-C the same command goes on.", flush=True
    )
    target_file = None
    if settings.kind != "slim":
        size = functools.partial(file_bytes, settings.kind)
        target_file = TargetFile(settings.kind, FORMATS[settings.kind].bits or BITS, size)
    made = compress(
        model, data, goal, teacher=teacher, folder=folder / "work", target_file=target_file, on_stage=_print_stage
    )
    files = _write_files(made, folder, settings.kind)
    _write_pages(made, model, data, folder, files, settings)
    for target in made.targets:
        print(target)
    print("\n".join(f"{path}: {bytes_of(path):,} bytes" for path in files))
    print(f"{folder / 'report.html'} says what was done; {folder / 'work'} is no longer needed")
    return made.met


def _budget_of(settings: Namespace, model: ClassificationModel) -> Budget:
    """The ``Budget`` that the arguments ask for."""
    target_bytes = settings.bytes
    if settings.times_smaller is not None:
        target_bytes = int(4 * count_parameters(model) / settings.times_smaller)
    return Budget(
        target_bytes=target_bytes,
        target_latency=settings.milliseconds,
        max_drop=None if settings.max_drop is None else settings.max_drop / 100,
        epochs=Budget.epochs if settings.epochs is None else settings.epochs,
    )


def _goal_in_words(settings: Namespace, goal: str | Budget) -> str:
    """What is wanted, in one line."""
    if not isinstance(goal, Budget):
        return f"recipe: {goal}"
    wanted = []
    if goal.target_bytes is not None:
        wanted.append(f"at most {goal.target_bytes:,} bytes for {settings.kind}")
    if goal.target_latency is not None:
        wanted.append(f"at most {goal.target_latency:g} ms an image")
    if goal.max_drop is not None:
        wanted.append(f"at most {settings.max_drop:g} points lost on val")
    return f"budget: {', '.join(wanted)}"


def _output_folder(settings: Namespace) -> Path:
    """Where all goes: beside the model, or for one of the course into the folder one is in."""
    source = Path(settings.model)
    folder = Path(settings.output) if settings.output else source.with_name(f"{source.stem}-slim")
    if source.resolve().parent == folder.resolve() and source.stem == _file_stem(folder):
        raise ValueError(f"--output {folder}: the new files would replace {source}; expected another folder")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {folder} is a file: expected a folder, which may be new")
    return folder


def _file_stem(folder: Path) -> str:
    return folder.resolve().name


def _print_stage(stage: StageResult) -> None:
    """A line for a finished stage, above the progress bars; a blank one where another size is tried."""
    if stage.name == "start":
        tqdm.write("")
    low, high = stage.scores.interval
    size = "" if stage.packed_bytes is None else f", {stage.packed_bytes:,} bytes in .slim"
    tqdm.write(
        f"{stage.name:20} top-1 on val {stage.scores.top1:.1%} ({low:.1%} to {high:.1%}), "
        f"{stage.macs / 1e6:,.1f} million MACs{size}"
    )


def _write_files(made: Compression, folder: Path, kind: str) -> list[Path]:
    """The file that was asked for, the checkpoint and the recipe; returns their paths, in this order."""
    deployed = folder / f"{_file_stem(folder)}{FORMATS[kind].ending}"
    folder.mkdir(parents=True, exist_ok=True)
    writer(kind)(made.model, deployed)
    files = [deployed]
    try:
        files.append(save_model(dequantize(made.model), folder / f"{_file_stem(folder)}.pt"))
    except ValueError as error:
        print(f"note: no checkpoint was written: {error}")
    recipe = folder / "recipe.yaml"
    text = yaml.safe_dump(dict(made.recipe), sort_keys=False, allow_unicode=True)
    write_atomically(recipe, lambda file: file.write_text(text, encoding="utf-8"))
    return [*files, recipe]


def _write_pages(
    made: Compression, model: ClassificationModel, data: ImageData, folder: Path, files: list[Path], settings: Namespace
) -> None:
    """The report, with a model card in it; prints how the two models differ on test."""
    name = _file_stem(folder)
    card = model_card(
        made.model,
        data,
        name=name,
        data_description=f"{settings.images}: {', '.join(data.class_names)}.",
        licence=TO_BE_WRITTEN,
        intended_use=TO_BE_WRITTEN,
        made_by=f"Made from `{Path(settings.model).name}` by the recipe below.",
        files=[path for path in files if path.is_file()],
    )
    print("measuring both models on test, for the report", flush=True)
    (before, first), (after, second) = measured(model, data.test), measured(made.model, data.test)
    difference = paired_difference(first, second)
    write_report(
        folder,
        made,
        title=f"{name}: {Path(settings.model).name} made smaller",
        card=card,
        scorecards={"before": before, "after": after},
        notes=[f"Before and after answered the same test images: {difference!r}."],
    )
    print(f"on test, {difference!r}")
