"""What all writers of files for runtimes do first: check arguments, quantize on the way, and say what the file holds.

Used by ``export_onnx`` and ``export_litert``, in lessons 09 and 12. Leaves out: the files themselves.
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.arguments import check_choice, check_positive_integer
from yolo_slim_lessons.models import as_classifier, class_names_of, image_size_of, input_format
from yolo_slim_lessons.quantization import (
    IntegerGrid,
    QuantizedActivation,
    QuantizedLayer,
    QuantizedModel,
    quantize_integer,
)
from yolo_slim_lessons.quantization.few_bits import correct_biases

FADED = 0.25  # of a step: what an activation function makes of what is cut off
PRECISIONS = ("fp32", "fp16")
FUNCTIONS = nn.ReLU | nn.SiLU | nn.Hardswish | nn.Identity  # activation functions that the writers know


@dataclass(frozen=True)
class Export:
    """What is to be written, when all arguments are checked.

    Attributes:
        model: quantized, if that was asked for.
        path: of the file.
        image_size: pixels a side.
        properties: of the file; those behind ``image_size`` are what Ultralytics reads.
    """

    model: ClassificationModel
    path: Path
    image_size: int
    properties: dict[str, object]


def prepare_export(model, path, image_size, precision, bits, calibration, *, ending: str, kind: str) -> Export:
    """Arguments and errors as of ``export_onnx``; ``kind`` is the file's name in errors, such as ``"ONNX"``."""
    model, path = as_classifier(model), Path(path)
    _check_arguments(model, path, precision, bits, calibration, ending, kind)
    size = image_size_of(model) if image_size is None else image_size
    check_positive_integer("image_size", size)
    names = list(class_names_of(model).values())
    properties = {"class_names": names, "image_size": size}
    properties |= {"names": dict(enumerate(names)), "task": "classify", "imgsz": [size, size], "stride": 1, "batch": 1}
    properties |= {"channels": input_format(model)["channels"]}
    if bits is not None and bits <= 4:
        model = quantize_integer(model, bits)
    elif bits is not None:
        model = correct_biases(quantize_integer(model, bits, 8, calibration), model, calibration)
    return Export(model, path, size, properties)


def check_kernels(model: ClassificationModel, runtime: str) -> None:
    """Raise ``ValueError`` if ``runtime`` has no operator for a part of ``model``, or none for its integers."""
    for name, module in model.named_modules():
        function = module.function if isinstance(module, QuantizedActivation) else module
        if type(function).__module__ == "torch.nn.modules.activation" and not isinstance(function, FUNCTIONS):
            raise ValueError(f"{name} is a {type(function).__name__}: expected ReLU, SiLU or Hardswish")
    for name, module in model.named_modules() if isinstance(model, QuantizedModel) else ():
        problem = None
        if isinstance(module, QuantizedActivation) and module.output_grid.bits > 8:
            problem = f"puts out {module.output_grid.bits} bits", "of up to 8 bits; quantize with activation_bits=8"
        elif isinstance(module, QuantizedLayer) and module.weight_grid.bits > 8:
            problem = f"has weights of {module.weight_grid.bits} bits", "of up to 8 bits; quantize with bits=8"
        elif isinstance(module, QuantizedLayer) and not module.weight_grid.symmetric:
            problem = "has weights with a zero point", "without; quantize with symmetric=True"
        if problem:
            raise ValueError(f"{name} {problem[0]}: {runtime} convolves integers {problem[1]}")


def grid_in_front_of(act: QuantizedActivation) -> IntegerGrid:
    """8 bits for what ``act`` reads: from where its result is next to zero, to the end of its own grid.

    SiLU and Hardswish fade to 0 for negative numbers, and to x for positive ones: further out nothing changes. What
    is cut off lies within ``FADED`` steps of 0 and so is rounded to 0, as by the model. Beyond half a step it would be
    rounded to -1, and since most numbers are cut off, that would add up where a channel is averaged.
    """
    low, high = act.input_grid.range
    step = act.output_grid.scale
    below = torch.linspace(low.item(), 0, 4097, device=step.device)
    matters = act.function(below.clone()).abs() > FADED * step  # a copy: Ultralytics lets functions overwrite
    low = below[matters][0] if matters.any() else -step
    return IntegerGrid.from_range(low, torch.minimum(high, act.output_grid.range[1]), bits=8, signed=False)


def _check_arguments(model, path: Path, precision, bits, calibration, ending: str, kind: str) -> None:
    if path.suffix != ending:
        raise ValueError(f"path={str(path)!r}: expected a name that ends in {ending}")
    check_choice("precision", precision, PRECISIONS)
    if bits is not None and (isinstance(bits, bool) or not isinstance(bits, numbers.Integral) or not 2 <= bits <= 8):
        raise ValueError(f"bits={bits!r}: expected an integer from 2 to 8, or None for a model as it is")
    ranges_are_needed = bits is not None and bits > 4
    if ranges_are_needed and calibration is None:
        raise ValueError(
            f"bits={bits} needs calibration=: some hundred training images, such as data.train.take(512), to find the "
            "activations' ranges with"
        )
    if calibration is not None and not ranges_are_needed:
        raise ValueError(
            f"calibration is not used with bits={bits}, which leaves activations in float: leave it out, or export "
            "slim.quantize_integer(model, bits, activation_bits=8, calibration=…)"
        )
    has_integers = any(isinstance(layer, QuantizedLayer) for layer in model.modules())
    if precision != "fp32" and (bits is not None or has_integers):
        raise ValueError(f"precision={precision!r}: weights are integers here; expected 'fp32'")
    rounded = getattr(model, "float_quantization", None)
    if rounded and rounded["activations"]:
        raise ValueError(
            f"model rounds activations to {rounded['activations']}, which {kind} has no operator for: "
            "use quantize_float with activations=None"
        )
