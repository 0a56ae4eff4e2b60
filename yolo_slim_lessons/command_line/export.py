"""``export``: a file for a device, on request rounded to integers first.

Leaves out: the writing (``formats`` names who does it) and training while rounded, which ``compress`` does.
"""

from argparse import Namespace
from pathlib import Path

from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.command_line.formats import FORMATS, bytes_of, writer
from yolo_slim_lessons.command_line.reading import read_images, read_model
from yolo_slim_lessons.data import ImageData
from yolo_slim_lessons.measurement import predict
from yolo_slim_lessons.quantization import quantize_integer
from yolo_slim_lessons.quantization.few_bits import correct_biases, learn_rounding

FEW_BITS = 4  # up to here rounding is learned; above, corrected biases are enough
CALIBRATION_IMAGES = 512
ROUNDING_IMAGES = 128  # to learn rounding from
COMPARED_IMAGES = 256


def run(settings: Namespace) -> bool:
    """Write what ``settings`` ask for; returns true, as there is nothing to be missed."""
    write = writer(settings.kind)  # before anything is computed
    path = _output_path(settings)
    model = read_model(settings.model, settings)
    if settings.bits is not None:
        model = _quantized(model, settings)
    write(model, path)
    print(f"{path}: {bytes_of(path):,} bytes")
    return True


def _output_path(settings: Namespace) -> Path:
    source, ending = Path(settings.model), FORMATS[settings.kind].ending
    path = Path(settings.output) if settings.output else source.with_name(f"{source.stem}{ending}")
    if path.exists() and source.exists() and path.samefile(source):
        raise ValueError(f"{path} would replace the model itself: expected another --output")
    return path


def _quantized(model: ClassificationModel, settings: Namespace) -> ClassificationModel:
    """``model`` on integers; with ``--calibrate``, repaired, and compared with what it was."""
    if settings.calibrate is None:
        if settings.bits <= FEW_BITS:
            print(
                f"note: {settings.bits} bits, each weight to its nearest: --calibrate would let it learn its rounding"
            )
        return quantize_integer(model, settings.bits)
    data = read_images(settings.calibrate, model, settings)
    calibration = data.train.take(min(CALIBRATION_IMAGES, len(data.train)))
    ranges = None if settings.activations is None else calibration
    rounded = quantize_integer(model, settings.bits, settings.activations, ranges)
    if settings.bits <= FEW_BITS:
        repaired = learn_rounding(rounded, model, calibration.take(min(ROUNDING_IMAGES, len(calibration))))
    else:
        repaired = correct_biases(rounded, model, calibration)
    _print_agreement(model, repaired, data)
    return repaired


def _print_agreement(model: ClassificationModel, quantized: ClassificationModel, data: ImageData) -> None:
    split = data.val.take(min(COMPARED_IMAGES, len(data.val)))
    before, after = (predict(each, split).argmax(1) for each in (model, quantized))
    print(f"{(before == after).sum():,} of {len(split):,} images of val get the same answer as from the float model")
