"""What can be typed, with its help, and which arguments go together.

Leaves out: whether files, folders and values are right, which the functions say.
"""

import argparse
from collections.abc import Sequence

from yolo_slim_lessons.command_line.formats import FORMATS
from yolo_slim_lessons.command_line.numbers import file_size, number_above_0, points, whole_number

PROGRAM = "python -m yolo_slim_lessons"
TARGETS = ("bytes", "times_smaller", "milliseconds", "max_drop")
MOST_MODELS = 2

DESCRIPTION = "Make a YOLO image classifier small and fast, measure it, and write it as a file for a device."
ABOUT_IMAGES = (
    "a folder of photographs: train/, val/ and test/, each with one folder a class, as Ultralytics reads it. What is "
    "missing is split off train/. 'fashion-mnist' names the images of the course"
)
ABOUT_MODEL = (
    "an Ultralytics checkpoint (best.pt of YOLOv8-, YOLO11- or YOLO26-cls), or a model of the course: nano, teacher, "
    "slim, fast"
)

COMPRESS = f"""\
Prune, distil and quantize a model until it keeps a budget.

examples:
  {PROGRAM} compress best.pt photographs/ --bytes 100kB
  {PROGRAM} compress best.pt photographs/ --times-smaller 50 --for onnx
  {PROGRAM} compress best.pt photographs/ --milliseconds 2 --max-drop 0.5
  {PROGRAM} compress best.pt photographs/ --recipe best-slim/recipe.yaml

It learns from train, chooses by val, and looks at test once, for the report. Ctrl-C stops it; the same command goes on
where it was stopped, and within a training after the last whole epoch.

what it writes, beside the model or into --output:
  best-slim/best-slim.slim   the file that was asked for by --for
  best-slim/best-slim.pt     a checkpoint that YOLO("best-slim.pt") opens, with weights of 32 bits
  best-slim/report.html      what was done, what it cost and where the model fails; also as report.md
  best-slim/recipe.yaml      the stages, to be changed and run again with --recipe
  best-slim/work/            what an interrupted call goes on from; may be deleted

exit status: 0; 1 if all was written and the budget is not met; 2 for wrong input; 130 after Ctrl-C
"""
MEASURE = f"""\
How good, how large and how fast is a model? Two models are compared on the same images, and timed in turns.

examples:
  {PROGRAM} measure best.pt photographs/
  {PROGRAM} measure best.pt best-slim/best-slim.slim photographs/ --split test

Accuracies come with their 95 % interval. Milliseconds are for one image on this machine, in PyTorch, or in ONNX Runtime
for a .onnx file, whose bytes are those of the file.
"""
EXPORT = f"""\
Write a model as a file for a device, as it is or rounded to integers.

examples:
  {PROGRAM} export best.pt --for onnx
  {PROGRAM} export best.pt --for onnx --bits 8 --activations 8 --calibrate photographs/
  {PROGRAM} export best.pt --for slim --bits 4 --calibrate photographs/

With --calibrate, what rounding breaks is repaired: up to 4 bits each weight learns whether it is rounded up or down,
with more bits the biases are corrected. Without it, weights are rounded to nearest, which few bits seldom survive.
"""


def read_arguments(typed: Sequence[str]) -> argparse.Namespace:
    """What was typed; for what cannot be meant the program ends with status 2, and with a sentence."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="compress | measure | export")
    _add_compress(commands)
    _add_measure(commands)
    _add_export(commands)
    settings = parser.parse_args(typed)
    check = {"compress": _wrong_goal, "measure": _wrong_models, "export": _wrong_rounding}[settings.command]
    if wrong := check(settings):
        commands.choices[settings.command].error(wrong)
    return settings


def _wrong_goal(settings: argparse.Namespace) -> str | None:
    targets = [f"--{name.replace('_', '-')}" for name in TARGETS if getattr(settings, name) is not None]
    if settings.recipe is None and not targets:
        return "no budget: expected --bytes, --times-smaller, --milliseconds or --max-drop, or a --recipe"
    if settings.recipe is not None and (targets or settings.epochs is not None):
        return f"a recipe says itself what is done: expected no {(targets or ['--epochs'])[0]} beside --recipe"
    return None


def _wrong_models(settings: argparse.Namespace) -> str | None:
    if len(settings.models) <= MOST_MODELS:
        return None
    return f"{len(settings.models)} models, {', '.join(settings.models)}: expected one or two, and behind them images"


def _wrong_rounding(settings: argparse.Namespace) -> str | None:
    if settings.activations is not None and (settings.bits is None or settings.calibrate is None):
        return "--activations needs --bits for the weights and --calibrate with training images"
    if settings.calibrate is not None and settings.bits is None:
        return "--calibrate is used with --bits only, such as --bits 8"
    return None


def _add_compress(commands) -> None:
    usage = "MODEL IMAGES (--bytes SIZE | --times-smaller N | --milliseconds MS | --max-drop POINTS) [options]"
    command = _command(commands, "compress", usage, "bring a model within a budget", COMPRESS)
    command.add_argument("model", help=ABOUT_MODEL)
    command.add_argument("images", help=ABOUT_IMAGES)
    goal = command.add_argument_group("the budget: one or several of these, or a recipe")
    size = goal.add_mutually_exclusive_group()
    size.add_argument("--bytes", type=file_size, metavar="SIZE", help="of the file, at most: 100000, 100kB, 1.5MB")
    size.add_argument(
        "--times-smaller",
        type=number_above_0,
        metavar="N",
        help="the file takes at most 1/N of the bytes of the weights at FP32 (4 each, twice a checkpoint of FP16)",
    )
    goal.add_argument(
        "--milliseconds", type=number_above_0, metavar="MS", help="for one image, in ONNX Runtime on this machine"
    )
    goal.add_argument(
        "--max-drop",
        type=points,
        metavar="POINTS",
        help="top-1 that may be lost on val: 0.5 is from 90.0 to 89.5 %%. Without --bytes, three sizes are tried",
    )
    goal.add_argument("--recipe", metavar="FILE", help="run the stages of this YAML file instead")
    command.add_argument(
        "--for", dest="kind", choices=FORMATS, default="slim", help="the file to write, which --bytes is about (slim)"
    )
    command.add_argument(
        "--epochs", type=whole_number, metavar="N", help="how often training looks at each image (12); 0 for never"
    )
    command.add_argument("--teacher", metavar="MODEL", help="a better model of these classes to learn from (the model)")
    command.add_argument("--output", metavar="FOLDER", help="where to write (best-slim/ beside best.pt)")
    _add_reading(command)


def _add_measure(commands) -> None:
    usage = "MODEL [MODEL] IMAGES [options]"
    command = _command(commands, "measure", usage, "how good, how large and how fast it is", MEASURE)
    command.add_argument(
        "models", nargs="+", metavar="model", help=f"one or two: .slim or .onnx files, or {ABOUT_MODEL}"
    )
    command.add_argument("images", help=ABOUT_IMAGES)
    command.add_argument("--split", choices=("train", "val", "test"), default="test", help="which images (test)")
    _add_reading(command)


def _add_export(commands) -> None:
    usage = f"MODEL --for {{{','.join(FORMATS)}}} [options]"
    command = _command(commands, "export", usage, "write a file for a device", EXPORT)
    command.add_argument("model", help=f"a .slim file, or {ABOUT_MODEL}")
    command.add_argument("--for", dest="kind", choices=FORMATS, required=True, help="the file to write")
    command.add_argument("--bits", type=whole_number, metavar="N", help="of the weights, 2 to 16 (as they are)")
    command.add_argument(
        "--activations", type=whole_number, metavar="N", help="bits of what lies between the layers (floats)"
    )
    command.add_argument("--calibrate", metavar="IMAGES", help=f"needed for --activations: {ABOUT_IMAGES}")
    command.add_argument("--output", metavar="FILE", help="where to write (best.onnx beside best.pt)")
    _add_reading(command)


def _command(commands, name: str, usage: str, short: str, long: str) -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    usage = f"{PROGRAM} {name} {usage}"
    return commands.add_parser(name, usage=usage, help=short, description=long, formatter_class=formatter)


def _add_reading(command: argparse.ArgumentParser) -> None:
    reading = command.add_argument_group("how model and images are read")
    reading.add_argument(
        "--image-size", type=whole_number, metavar="PIXELS", help="a side (what the model was trained for)"
    )
    reading.add_argument(
        "--broken", choices=("refuse", "skip"), default="refuse", help="what to do with pictures that cannot be read"
    )
    reading.add_argument("--device", metavar="NAME", help="where PyTorch computes, such as cuda (cpu)")
    reading.add_argument(
        "--trust", action="store_true", help="let the checkpoint run code that it brings; only if it is your own"
    )
