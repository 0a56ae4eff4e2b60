"""Budgets: from bytes and milliseconds to a recipe with a rate for each layer and bits for each layer.

``survey_layers`` tells from some hundred images of ``val`` what narrowing or rounding each layer would cost, and
``plan_recipe`` spends the budget where the answers moved least; nothing is trained. Used in lesson 08. Leaves out:
energy, memory, and the accuracy that training wins back, which ``compress`` measures for ``max_drop``.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from numbers import Real

import numpy as np
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.compression.channel_scan import ChannelScan, narrower_models, scan_channels
from yolo_slim_lessons.data import Split
from yolo_slim_lessons.deployment import onnx_runner
from yolo_slim_lessons.measurement import time_model
from yolo_slim_lessons.models import as_classifier, image_size_of
from yolo_slim_lessons.packing import packed_sizes
from yolo_slim_lessons.pruning.channels import prune_channels
from yolo_slim_lessons.pruning.channels.budget import layer_prices
from yolo_slim_lessons.quantization import quantize_integer
from yolo_slim_lessons.quantization.few_bits import (
    BitSensitivity,
    bit_sensitivity,
    choose_bits,
    integer_bytes,
    round_biases,
)

BITS = (2, 3, 4, 6, 8)
LATENCY_MARGIN = 0.9  # of the target: timings scatter
SIZES = 0.97, 0.99  # of the target: training may add some bytes
STEP = 0.85  # of the parameters, from one model to the next that is looked at
MOST_CODED = 2  # plain integers take at most so many times the bytes of coded ones
ROUNDS = 8  # of planning, predicting the size and correcting
MOST_VERSIONS = 8  # of each image, that the teacher is asked about


@dataclass(frozen=True)
class Budget:
    """What a model may cost; at least one of the three targets.

    Attributes:
        target_bytes: of the ``.slim`` file, or of what ``compress`` is told by ``target_file``, at most.
        target_latency: milliseconds for one image in ONNX Runtime on this machine (the median), at most.
        max_drop: top-1 that may be lost on ``val``, 0…1: 0.01 is one point.
        epochs: how often training may look at each image, in all stages together; 0 for none. With ``max_drop`` but no
            ``target_bytes``, ``compress`` spends them up to three times.

    Example:
        >>> budget = Budget(target_bytes=50_000, max_drop=0.01)
    """

    target_bytes: int | None = None
    target_latency: float | None = None
    max_drop: float | None = None
    epochs: int = 12

    def __post_init__(self):
        if self.target_bytes is None and self.target_latency is None and self.max_drop is None:
            raise ValueError("Budget without a target: expected target_bytes, target_latency or max_drop")
        for name, is_allowed, expected in (
            ("target_bytes", lambda value: 0 < value < math.inf, "a number of bytes above 0, such as 50_000"),
            ("target_latency", lambda value: 0 < value < math.inf, "milliseconds above 0, such as 1.5"),
            ("max_drop", lambda value: 0 <= value < 1, "0 or more, less than 1: 0.01 is one point"),
            ("epochs", lambda value: isinstance(value, int) and value >= 0, "a number of epochs, 0 or more"),
        ):
            value = getattr(self, name)
            if value is None and name != "epochs":
                continue
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"{name}={value!r}: expected {expected}")
            if not is_allowed(value):  # NaN, too
                raise ValueError(f"{name}={value!r}: expected {expected}")


@dataclass(frozen=True)
class Survey:
    """What each layer can bear: fewer channels, and fewer bits. Any number of plans can be made from one."""

    channels: ChannelScan
    bits: BitSensitivity


def survey_layers(
    model: ClassificationModel,
    split: Split,
    *,
    images: int = 256,
    bits: Iterable[int] = BITS,
    exact: bool = False,
    progress: bool = True,
) -> Survey:
    """Narrow each layer alone, round each layer alone, and see how far the answers move (KL divergence, nats).

    Args:
        model: a float classifier, unfused; it is left alone.
        split: ``data.val``; labels are not looked at.
        images: so many of them, stratified, at least 2; more make the plan steadier and this slower.
        bits: what plans may choose from for the weights of a layer, 2 to 16.
        exact: run each changed network, in place of estimating all from one pass; it takes several times as long.
        progress: show a progress bar.

    Raises:
        ValueError: bits or a number of images out of range, or whatever ``channel_groups`` objects to.
        TypeError: ``model`` is no classifier.
    """
    model = as_classifier(model)
    if isinstance(images, bool) or not isinstance(images, int) or min(images, len(split)) < 2:
        raise ValueError(f"images={images!r}, of {len(split)}: expected 2 or more, such as 256")
    some = split.take(min(images, len(split)))
    options = {"exact": exact, "progress": progress}
    return Survey(scan_channels(model, some, **options), bit_sensitivity(model, some, bits, **options))


def plan_recipe(model: ClassificationModel, survey: Survey, budget: Budget) -> dict:
    """A recipe that brings ``model`` within ``target_bytes`` and ``target_latency``, as far as that can be foreseen.

    First channels go until the model is fast enough, those that cost least for the multiplications they save. Then,
    among narrower and narrower models, each with the bits that cost least within the bytes (``choose_bits``), the one
    that costs least in all is taken. The bytes are those of the model packed untrained. The same survey and timings
    give the same recipe.

    Args:
        model: what was surveyed; it is left alone.
        survey: from ``survey_layers``.
        budget: its ``max_drop`` does not count here, for what training wins back is not known before.

    Returns:
        ``{"seed": 0, "stages": […]}``, for ``compress``, or to be kept as YAML and edited: ``prune_channels`` with a
        rate for each layer, training within ``budget.epochs``, and with ``target_bytes`` bits for each layer.

    Raises:
        ValueError: neither target is given, one cannot be met (the least possible is named), or packing cannot
            describe a model that is to fit into so many bytes.
        TypeError: ``budget`` is no ``Budget``.

    Example:
        >>> import yolo_slim_lessons as slim
        >>> nano, data = slim.load_model("nano"), slim.load_images("fashion-mnist")
        >>> survey = survey_layers(nano, data.val, images=10, bits=(2, 8), progress=False)
        >>> recipe = plan_recipe(nano, survey, Budget(target_bytes=100_000))
        >>> [name for stage in recipe["stages"] for name in stage]
        ['prune_channels', 'distill', 'train_quantized', 'round_biases']
    """
    model = as_classifier(model)
    if not isinstance(budget, Budget):
        raise TypeError(f"budget={budget!r}: expected a Budget, such as Budget(target_bytes=50_000)")
    if budget.target_bytes is None and budget.target_latency is None:
        raise ValueError(
            f"budget={budget!r}: only training tells what is lost in the end; expected target_bytes or target_latency, "
            "or give the budget to compress, which trains"
        )
    if budget.target_bytes is not None:
        check_packable(model, "target_bytes", budget.target_bytes)
    fast = None if budget.target_latency is None else _fast_enough(model, survey.channels, budget.target_latency)
    if budget.target_bytes is None:
        rates, bits = survey.channels.rates(fast), None
    else:
        rates, bits = _small_enough(model, survey, fast, budget.target_bytes)
    return {"seed": 0, "stages": _stages(rates, bits, budget.epochs)}


def check_packable(model: ClassificationModel, name: str, target: float) -> None:
    """Raise ``ValueError`` if packing cannot describe ``model``: target ``name`` needs the size of its file."""
    try:
        packed_sizes(model)
    except ValueError as error:
        raise ValueError(
            f"{name}={target!r} needs the size of a .slim file, which cannot be written: {error}"
        ) from error


def _fast_enough(model: ClassificationModel, scan: ChannelScan, target: float) -> np.ndarray:
    """The counts of the first model in the sequence of falling MACs that stays below the target with a margin."""

    def latency(counts: np.ndarray) -> float:
        narrow = _narrowed(model, scan.rates(counts))
        return time_model(onnx_runner(narrow), image_size=image_size_of(model)).median

    models = narrower_models(model, scan, "MACs")
    if (least := latency(models[-1])) > target:
        raise ValueError(f"target_latency={target!r}: the narrowest model takes {least:.3g} ms, expected at least that")
    return models[bisect_left(models[:-1], True, key=lambda counts: latency(counts) <= LATENCY_MARGIN * target)]


def _small_enough(model: ClassificationModel, survey: Survey, start, target: float) -> tuple[dict, dict]:
    """Rates and bits with the least sum of losses whose model, untrained, packs into ``target`` bytes."""
    enough, most = (share * target for share in SIZES)
    candidates = []
    for counts in _may_fit(model, survey, narrower_models(model, survey.channels, "parameters", start), most):
        rates = survey.channels.rates(counts)
        sizes = integer_bytes(_narrowed(model, rates), survey.bits.layers, survey.bits.bits)
        candidates.append((survey.channels.loss(counts), rates, replace(survey.bits, bytes=sizes)))
    # The file needs less than the plain integers, thanks to entropy coding, and more for scales and biases. So their
    # budget is corrected by what the file of the last plan takes.
    allowed, best, best_size, planned = float(most), None, 0, None
    for _ in range(ROUNDS):
        before, planned = planned, _cheapest(candidates, allowed)
        if planned == before:
            break
        rates, bits = planned
        size = packed_sizes(round_biases(quantize_integer(_narrowed(model, rates), bits, warn=False))).file
        if best_size < size <= most:
            best, best_size = planned, size
        if enough <= size <= most:
            break
        allowed *= (enough + most) / 2 / size
    if best is None:
        raise ValueError(
            f"target_bytes={target!r}: the smallest plan takes {size:,} bytes, expected at least 1 % more than that"
        )
    return best


def _may_fit(model: ClassificationModel, survey: Survey, models: list, most: float) -> list[np.ndarray]:
    """Those of ``models`` to plan bits for, in steps of ``STEP``, or the last one.

    The others are too large even at the fewest bits, or smaller than one that fits at the most bits with room to spare.
    """
    price = layer_prices(model, survey.channels.groups, "parameters")
    fewest, most_bits = min(survey.bits.bits), max(survey.bits.bits)
    kept, next_step = [], MOST_CODED * most * 8 / fewest
    for counts in models:
        parameters = price(counts)
        if parameters <= next_step or counts is models[-1]:
            kept.append(counts)
            next_step = STEP * parameters
            if parameters * most_bits / 8 < most / 2:
                break
    return kept


def _cheapest(candidates: list, allowed: float) -> tuple[dict[str, float], dict[str, int]]:
    plans = []
    for number, (loss, rates, bit_scan) in enumerate(candidates, start=1):
        least = bit_scan.bytes.min(1).sum()
        if least > allowed and number < len(candidates):  # the last is the smallest there is: planned in any case
            continue
        bits = choose_bits(bit_scan, max(allowed, least))
        columns = [bit_scan.bits.index(bits[layer]) for layer in bit_scan.layers]
        loss += bit_scan.loss[np.arange(len(columns)), columns].sum()
        plans.append((loss, rates, bits))
    return min(plans, key=lambda plan: plan[0])[1:]


def _narrowed(model: ClassificationModel, rates: Mapping[str, float]) -> ClassificationModel:
    return prune_channels(model, rates) if rates else model


def _stages(rates: dict[str, float], bits: dict[str, int] | None, epochs: int) -> list[dict]:
    """The stages of a plan; three quarters of the epochs train the float model, the rest the rounded one."""
    rounded_epochs = 0 if bits is None else math.ceil(epochs / 4) if rates else epochs
    float_epochs, versions = epochs - rounded_epochs, {"versions": min(epochs, MOST_VERSIONS)}
    stages: list[dict] = []
    if rates:
        training = {"epochs": float_epochs} | versions
        stages.append({"prune_channels": {"prune_rate": rates}})
        stages.append({"distill": training} if float_epochs else {"reestimate_batchnorm": {}})
    if bits:
        training = {"bits": bits, "epochs": rounded_epochs} | versions
        stages.append({"train_quantized": training} if rounded_epochs else {"quantize_integer": {"bits": bits}})
        stages.append({"round_biases": {}})
    return stages
