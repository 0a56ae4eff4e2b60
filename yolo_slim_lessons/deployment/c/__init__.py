"""Leave every runtime: a quantized model as one file of C. Used in lesson 13.

``operations`` finds what is to be done, ``memory`` where the tensors lie, ``weights`` and ``rescaling`` make the
constants, and ``writing`` puts them behind the loops of the ``.c`` files here. Leaves out: compiling it.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.agreement import check_image_size
from yolo_slim_lessons.arguments import check_positive_integer
from yolo_slim_lessons.data import Split
from yolo_slim_lessons.deployment.c.memory import MemoryPlan, PlannedTensor, plan_arena
from yolo_slim_lessons.deployment.c.operations import Operation, operations_of
from yolo_slim_lessons.deployment.c.writing import CText
from yolo_slim_lessons.files import write_atomically
from yolo_slim_lessons.models import as_classifier, class_names_of, image_size_of
from yolo_slim_lessons.quantization import QuantizedModel, quantize_integer
from yolo_slim_lessons.quantization.few_bits import correct_biases
from yolo_slim_lessons.quantization.simulation import check_integers

__all__ = ["MemoryPlan", "PlannedTensor", "export_c", "memory_plan"]


def export_c(
    model: ClassificationModel,
    folder: str | Path,
    name: str = "model",
    *,
    image_size: int | None = None,
    bits: int | None = None,
    calibration: Split | torch.Tensor | None = None,
) -> Path:
    """Write ``model`` as C99 that needs no library and no allocation: ``folder/name.c`` and ``folder/name.h``.

    Its one function, ``int name_run(const uint8_t *image, int64_t *logits)``, answers with the number of a class. All
    of it is integer arithmetic, with the same result as ``run_integer`` has, to the bit. The memory for what lies
    between the layers is static, and planned by ``memory_plan``. Compilers pick kernels for AVX-512 VNNI, AVX2 or
    NEON where the processor that they compile for has it. Weights of up to 4 bits lie two in a byte.

    Args:
        model: a classifier from ``quantize_integer`` with ``activation_bits``, both up to 8, weights symmetric; or a
            float one, which ``bits`` and ``calibration`` quantize. It is left alone.
        folder: made if it is not there; older files stay whole until the new ones are complete.
        name: of the files, and what functions and macros begin with.
        image_size: pixels a side; ``None`` takes what the model was trained for.
        bits: of the weights, 2 to 8, to quantize a float model first: activations to 8, biases corrected.
        calibration: for ``bits``, some hundred training images; labels are not looked at.

    Returns:
        The path of the C file.

    Raises:
        TypeError: ``model`` is no classifier, or has a part that is not understood (named, with its place): attention,
            as YOLO11 and YOLO26 have it, for one.
        ValueError: ``name`` is no name in C, only one of ``bits`` and ``calibration`` is given, the model is not
            quantized or has more than 8 bits, or a sum could leave 32 bits.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = export_c(slim.load_model("fast"), folder, bits=8, calibration=data.train)
        ...     sorted(path.name for path in file.parent.iterdir())
        ['model.c', 'model.h']
    """
    model = as_classifier(model)
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
        raise ValueError(f"name={name!r}: expected letters, digits and _, a letter first, as functions in C begin so")
    size = _checked_size(model, image_size)
    text = CText(name, _operations(_quantized(model, bits, calibration), size), list(class_names_of(model).values()))
    folder = Path(folder)
    for ending, lines in (("h", text.header()), ("c", text.source())):
        write_atomically(
            folder / f"{name}.{ending}", lambda file, lines=lines: file.write_text(lines, encoding="utf-8")
        )
    return folder / f"{name}.c"


def memory_plan(model: QuantizedModel, image_size: int | None = None) -> MemoryPlan:
    """Where ``export_c`` puts the tensors between the layers; arguments and errors as there.

    Example:
        >>> plan = memory_plan(slim.quantize_integer(slim.load_model("fast"), 8, 8, data.train))
        >>> plan.bytes < plan.bytes_without_sharing
        True
    """
    model = as_classifier(model)
    return plan_arena(_operations(model, _checked_size(model, image_size)))[0]


def _quantized(model, bits: int | None, calibration) -> QuantizedModel:
    if bits is None and calibration is None:
        return model
    if bits is None or calibration is None:
        raise ValueError(
            f"bits={bits!r} with{'out' if calibration is None else ''} calibration=: give both, to quantize a float "
            "model on the way, or neither"
        )
    return correct_biases(quantize_integer(model, bits, 8, calibration), model, calibration)


def _checked_size(model: ClassificationModel, image_size: int | None) -> int:
    size = image_size_of(model) if image_size is None else image_size
    check_positive_integer("image_size", size)
    check_image_size(model, (size, size), "image_size")
    return size


def _operations(model: ClassificationModel, size: int) -> list[Operation]:
    check_integers(model)
    return operations_of(model, model.graph((size, size)))
