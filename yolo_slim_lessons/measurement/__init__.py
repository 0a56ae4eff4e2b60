"""What a model is worth: right answers, size, arithmetic and time, each with its uncertainty.

``accuracy`` counts right answers, ``size`` bytes and multiplications, ``timing`` milliseconds; ``measure`` puts them on
one scorecard. Used from lesson 02 on. Leaves out: energy and peak memory.
"""

from dataclasses import dataclass

from torch import nn

from yolo_slim_lessons.data import Split
from yolo_slim_lessons.measurement.accuracy import (
    ClassScores,
    PairedDifference,
    Scores,
    evaluate,
    paired_difference,
    predict,
    score,
    wilson_interval,
)
from yolo_slim_lessons.measurement.size import (
    LayerCost,
    checkpoint_bytes,
    count_macs,
    count_parameters,
    layer_costs,
    quantized_bytes,
    weight_bytes,
)
from yolo_slim_lessons.measurement.timing import Comparison, Latency, compare, time_model
from yolo_slim_lessons.models import as_network, image_size_of, layers_of_this_package

__all__ = [
    "ClassScores",
    "Comparison",
    "Latency",
    "LayerCost",
    "PairedDifference",
    "Scorecard",
    "Scores",
    "checkpoint_bytes",
    "compare",
    "count_macs",
    "count_parameters",
    "evaluate",
    "layer_costs",
    "measure",
    "paired_difference",
    "predict",
    "quantized_bytes",
    "score",
    "time_model",
    "weight_bytes",
    "wilson_interval",
]


@dataclass(frozen=True)
class Scorecard:
    """Everything the course reports of a model; renders as a table in a notebook.

    Attributes:
        scores: right and wrong answers, or ``None`` if no split was given.
        parameters, nonzero_parameters: counts.
        macs: multiply-accumulate operations for one image.
        bytes: of the parameters at FP32, 4 each.
        checkpoint_bytes: of the file that ``save_model`` writes at FP16; ``None`` for quantized models that it refuses.
        latency_ms: batch 1, with ``.median`` and ``.p95``.
        image_size: pixels a side that MACs and latency hold for.
        quantized_bytes: of quantized layers' integers at their width, all else at FP32; ``None`` for float models.
    """

    scores: Scores | None
    parameters: int
    nonzero_parameters: int
    macs: int
    bytes: int
    checkpoint_bytes: int | None
    latency_ms: Latency
    image_size: int
    quantized_bytes: int | None = None

    def rows(self) -> list[tuple[str, str]]:
        """The table as (what, value with unit)."""
        rows = {}
        if scores := self.scores:
            low, high = scores.interval
            rows["top-1"] = f"{scores.top1:.2%} (95 % interval {low:.2%} to {high:.2%})"
            rows["macro precision, recall, F1"] = f"{scores.precision:.2%}, {scores.recall:.2%}, {scores.f1:.2%}"
        rows["parameters (not zero)"] = f"{self.parameters:,} ({self.nonzero_parameters:,})"
        rows[f"MACs for one image of {self.image_size} px"] = f"{self.macs:,}"
        sizes = {
            "weights at FP32": self.bytes,
            "checkpoint file at FP16": self.checkpoint_bytes,
            "weights as integers": self.quantized_bytes,
        }
        rows |= {name: f"{size / 1e6:.3f} MB" for name, size in sizes.items() if size is not None}
        return [*rows.items(), ("latency", str(self.latency_ms))]

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {value}" for name, value in self.rows())

    def _repr_html_(self) -> str:
        rows = [f"<tr><th style='text-align:left'>{name}</th><td>{value}</td></tr>" for name, value in self.rows()]
        return f"<table>{''.join(rows)}</table>"


def measure(model: nn.Module, split: Split | None = None, repeats: int = 50, progress: bool = True) -> Scorecard:
    """The scorecard of ``model``: scores on ``split`` if given, counts, bytes, and latency at batch 1.

    MACs and latency hold for the image size that the model was trained for; for that of ``split`` if it does not say.

    Raises:
        ValueError: the model does not say its image size and there is no ``split``, or as of ``evaluate``.
    """
    model = as_network(model)
    size = _image_size(model, split)
    return Scorecard(
        scores=None if split is None else evaluate(model, split, progress=progress),
        parameters=count_parameters(model),
        nonzero_parameters=count_parameters(model, nonzero=True),
        macs=count_macs(model, size),
        bytes=weight_bytes(model),
        checkpoint_bytes=None if layers_of_this_package(model) else checkpoint_bytes(model),
        latency_ms=time_model(model, image_size=size, repeats=repeats),
        image_size=size,
        quantized_bytes=quantized_bytes(model),
    )


def _image_size(model: nn.Module, split: Split | None) -> int:
    try:
        return image_size_of(model)
    except ValueError:
        if split is None:
            raise
        return split.height_width[-1]
