"""What a model is worth: right answers, size, arithmetic and time, each with its uncertainty.

Four questions, four answers that disagree with each other: ``evaluate`` (how often right), ``layer_costs`` (how many
parameters and multiplications), ``weight_bytes`` and ``checkpoint_bytes`` (how large), ``time_model`` and ``compare``
(how fast). ``measure`` puts them on one scorecard. Used from lesson 02 on. Leaves out: energy, peak memory, and
every processor but the one it runs on.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import nn
from tqdm.auto import tqdm

from yolo_slim_lessons.data import Split
from yolo_slim_lessons.models import copy_model, image_size_of, logits, save_model, weight_layers


@dataclass(frozen=True)
class ClassScores:
    """How one class fares: three fractions 0…1 and the number of its images."""

    name: str
    precision: float
    recall: float
    f1: float
    images: int


@dataclass(frozen=True)
class Scores:
    """Right and wrong answers on a split.

    Attributes:
        top1: share of images whose highest score is the right class, 0…1.
        interval: Wilson's 95 % interval of ``top1`` (Wilson, 1927): what other images of the same kind could give.
        precision, recall, f1: means over the classes, each class counting the same (macro).
        per_class: one ``ClassScores`` a class, in the order of the labels.
        confusion: counts, int64 array classes×classes; row is the true class, column the predicted one.
    """

    top1: float
    interval: tuple[float, float]
    precision: float
    recall: float
    f1: float
    per_class: tuple[ClassScores, ...]
    confusion: np.ndarray

    def __repr__(self) -> str:
        low, high = self.interval
        return f"top-1 {self.top1:.1%} (95 % interval {low:.1%} to {high:.1%}), macro F1 {self.f1:.1%}"


@dataclass(frozen=True)
class LayerCost:
    """What one convolution or linear layer costs for one image.

    Attributes:
        name: as in ``model.named_modules()``.
        parameters: weights and biases, and those of the BatchNorm right behind it.
        macs: multiply-accumulate operations.
        output_shape: channels, height, width (or features) of the result.
    """

    name: str
    parameters: int
    macs: int
    output_shape: tuple[int, ...]


@dataclass(frozen=True)
class Latency:
    """Repeated timings of one model in milliseconds a batch."""

    milliseconds: np.ndarray
    batch_size: int
    threads: int

    @property
    def median(self) -> float:
        return float(np.median(self.milliseconds))

    @property
    def p95(self) -> float:
        """95 of 100 runs took at most this long."""
        return float(np.percentile(self.milliseconds, 95))

    def __repr__(self) -> str:
        return (
            f"{self.median:.2f} ms (p95 {self.p95:.2f} ms; batch {self.batch_size}, "
            f"{self.threads} thread{'s' if self.threads > 1 else ''}, {len(self.milliseconds)} runs)"
        )


@dataclass(frozen=True)
class Comparison:
    """Two models timed in turns, so that whatever else the machine does falls on both alike.

    Attributes:
        first, second: their ``Latency``.
        ratio: median over the rounds of second's time by first's; below 1 the second is faster.
        spread: the middle half of the rounds' ratios (25th and 75th percentile).
    """

    first: Latency
    second: Latency
    ratio: float
    spread: tuple[float, float]

    def __repr__(self) -> str:
        low, high = self.spread
        return (
            f"first {self.first}\nsecond {self.second}\n"
            f"second / first: {self.ratio:.2f} (middle half of the rounds: {low:.2f} to {high:.2f})"
        )


@dataclass(frozen=True)
class Scorecard:
    """Everything the course reports of a model; renders as a table in a notebook.

    Attributes:
        scores: right and wrong answers, or ``None`` if no split was given.
        parameters, nonzero_parameters: counts.
        macs: multiply-accumulate operations for one image.
        bytes: of the parameters at FP32, 4 each.
        checkpoint_bytes: of the file that ``save_model`` writes at FP16.
        latency_ms: batch 1, with ``.median`` and ``.p95``.
        image_size: pixels a side that MACs and latency hold for.
    """

    scores: Scores | None
    parameters: int
    nonzero_parameters: int
    macs: int
    bytes: int
    checkpoint_bytes: int
    latency_ms: Latency
    image_size: int

    def rows(self) -> list[tuple[str, str]]:
        """The table as (what, value with unit)."""
        rows = []
        if self.scores:
            low, high = self.scores.interval
            rows += [
                ("top-1", f"{self.scores.top1:.2%} (95 % interval {low:.2%} to {high:.2%})"),
                (
                    "macro precision, recall, F1",
                    f"{self.scores.precision:.2%}, {self.scores.recall:.2%}, {self.scores.f1:.2%}",
                ),
            ]
        return rows + [
            ("parameters (not zero)", f"{self.parameters:,} ({self.nonzero_parameters:,})"),
            (f"MACs for one image of {self.image_size} px", f"{self.macs:,}"),
            ("weights at FP32", f"{self.bytes / 1e6:.3f} MB"),
            ("checkpoint file at FP16", f"{self.checkpoint_bytes / 1e6:.3f} MB"),
            ("latency", str(self.latency_ms)),
        ]

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {value}" for name, value in self.rows())

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th style='text-align:left'>{name}</th><td>{value}</td></tr>" for name, value in self.rows()
        )
        return f"<table>{cells}</table>"


def wilson_interval(correct: int, images: int) -> tuple[float, float]:
    """95 % interval of a share of right answers (Wilson, 1927); it stays inside 0…1 even for few images.

    Raises:
        ValueError: not 0 ≤ ``correct`` ≤ ``images``, or no image.

    Example:
        >>> low, high = wilson_interval(90, 100)
        >>> f"{low:.3f} {high:.3f}"
        '0.826 0.945'
    """
    if images < 1 or not 0 <= correct <= images:
        raise ValueError(f"correct={correct!r}, images={images!r}: expected 0 ≤ correct ≤ images and images ≥ 1")
    interval = binomtest(correct, images).proportion_ci(method="wilson")
    return interval.low, interval.high


def predict(model: nn.Module, split: Split, batch_size: int = 128, progress: bool = True) -> torch.Tensor:
    """Class probabilities for every image of ``split``: float32 tensor N×classes, rows summing to 1."""
    # Convolutions on a CPU are faster with the channels innermost, and without BatchNorm, which folds into them.
    fast = copy_model(model).eval().to(memory_format=torch.contiguous_format)  # which older fuse() insists on
    fast = fast.fuse(verbose=False) if hasattr(fast, "fuse") else fast
    fast = fast.to(memory_format=torch.channels_last)
    with (
        torch.inference_mode(),
        tqdm(total=len(split), desc="predict", delay=2, leave=False, disable=not progress) as bar,
    ):
        answers = []
        for images, _ in split.batches(batch_size):
            answers.append(logits(fast, images).softmax(1))
            bar.update(len(images))
    return torch.cat(answers)


def evaluate(model: nn.Module, split: Split, batch_size: int = 128, progress: bool = True) -> Scores:
    """Count right and wrong answers of ``model`` on every image of ``split``.

    Raises:
        ValueError: the split is empty, or holds labels that the model does not know.
    """
    class_count = len(model.names)
    if len(split) == 0:
        raise ValueError("split is empty: expected at least one image")
    unknown = split.labels[(split.labels < 0) | (split.labels >= class_count)]
    if len(unknown):
        raise ValueError(f"split has label {unknown[0]}, but the model knows the labels 0 to {class_count - 1}")
    predicted = predict(model, split, batch_size, progress).argmax(1).numpy()
    return score(split.labels.numpy(), predicted, tuple(model.names.values()))


def score(labels: np.ndarray, predicted: np.ndarray, class_names: tuple[str, ...]) -> Scores:
    """``Scores`` from true and predicted labels, both int arrays of N."""
    indices = range(len(class_names))
    # A class that is never predicted has precision 0 here, without a warning.
    precision, recall, f1, images = precision_recall_fscore_support(labels, predicted, labels=indices, zero_division=0)
    correct = int((labels == predicted).sum())
    per_class = zip(class_names, precision.tolist(), recall.tolist(), f1.tolist(), images.tolist(), strict=True)
    return Scores(
        top1=correct / len(labels),
        interval=wilson_interval(correct, len(labels)),
        precision=precision.mean().item(),
        recall=recall.mean().item(),
        f1=f1.mean().item(),
        per_class=tuple(ClassScores(*row) for row in per_class),
        confusion=confusion_matrix(labels, predicted, labels=indices),
    )


def count_parameters(model: nn.Module, nonzero: bool = False) -> int:
    """Number of weights, biases and BatchNorm factors; with ``nonzero`` only those that are not exactly zero."""
    return sum(int(p.count_nonzero()) if nonzero else p.numel() for p in model.parameters())


def layer_costs(model: nn.Module, image_size: int | None = None) -> list[LayerCost]:
    """Parameters and MACs of every convolution and linear layer, found by sending one black image through.

    A convolution multiplies each of its weights once per output position: MACs = weights × height × width.
    BatchNorm folds into the convolution in front of it, and activations and additions are few, so they count nothing.
    """
    image_size = image_size_of(model) if image_size is None else image_size
    shapes: dict[str, tuple[int, ...]] = {}
    model = copy_model(model).eval()
    for name, layer in weight_layers(model):
        layer.register_forward_hook(lambda _, __, output, name=name: shapes.__setitem__(name, tuple(output.shape[1:])))
    with torch.inference_mode():
        model(torch.zeros(1, 3, image_size, image_size))
    modules = dict(model.named_modules())
    costs = []
    for name, layer in weight_layers(model):
        norm = modules.get(name.removesuffix("conv") + "bn") if name.endswith(".conv") else None
        parameters = count_parameters(layer) + (count_parameters(norm) if norm else 0)
        positions = int(np.prod(shapes[name][1:]))  # height × width; 1 for a linear layer
        costs.append(LayerCost(name, parameters, layer.weight.numel() * positions, shapes[name]))
    return costs


def count_macs(model: nn.Module, image_size: int | None = None) -> int:
    """Multiply-accumulate operations for one image; ``image_size`` defaults to what the model was trained for."""
    return sum(cost.macs for cost in layer_costs(model, image_size))


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the parameters at FP32: 4 each."""
    return 4 * count_parameters(model)


def checkpoint_bytes(model: nn.Module, precision: str = "fp16") -> int:
    """Bytes of the file that ``save_model`` writes, measured by writing it."""
    with tempfile.TemporaryDirectory() as folder:
        return save_model(model, Path(folder) / "model.pt", precision).stat().st_size


def time_model(
    model,
    batch_size: int = 1,
    image_size: int | None = None,
    repeats: int = 50,
    warmup: int = 5,
    threads: int | None = None,
) -> Latency:
    """Time ``model`` on random images: ``warmup`` runs that do not count, then ``repeats`` that do.

    Args:
        model: a classifier, or anything that is called with float images N×3×H×W.
        batch_size: images per run.
        image_size: pixels a side; needed if ``model`` is not a classifier of this package.
        repeats: runs that count.
        warmup: runs before them.
        threads: for PyTorch; ``None`` leaves them as they are.

    Raises:
        ValueError: a number is too small, or ``image_size`` is needed.
    """
    return _time_in_turns([model], batch_size, image_size, repeats, warmup, threads)[0]


def compare(
    first,
    second,
    batch_size: int = 1,
    image_size: int | None = None,
    repeats: int = 50,
    warmup: int = 5,
    threads: int | None = None,
) -> Comparison:
    """Time two models in one run, in turns, on the same images; arguments as for ``time_model``."""
    latencies = _time_in_turns([first, second], batch_size, image_size, repeats, warmup, threads)
    ratios = latencies[1].milliseconds / latencies[0].milliseconds
    low, middle, high = np.percentile(ratios, [25, 50, 75]).tolist()
    return Comparison(*latencies, ratio=middle, spread=(low, high))


def measure(model: nn.Module, split: Split | None = None, repeats: int = 50, progress: bool = True) -> Scorecard:
    """The scorecard of ``model``: scores on ``split`` if given, counts, bytes, and latency at batch 1."""
    return Scorecard(
        scores=None if split is None else evaluate(model, split, progress=progress),
        parameters=count_parameters(model),
        nonzero_parameters=count_parameters(model, nonzero=True),
        macs=count_macs(model),
        bytes=weight_bytes(model),
        checkpoint_bytes=checkpoint_bytes(model),
        latency_ms=time_model(model, repeats=repeats),
        image_size=image_size_of(model),
    )


def _time_in_turns(models, batch_size, image_size, repeats, warmup, threads) -> list[Latency]:
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("image_size", image_size, 1),
        ("repeats", repeats, 1),
        ("warmup", warmup, 0),
        ("threads", threads, 1),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name}={value!r}: expected {least} or more")
    image_size = image_size_of(models[0]) if image_size is None else image_size
    # In training mode a forward pass changes BatchNorm's statistics: such a model is timed as a copy in eval mode.
    models = [copy_model(model).eval() if getattr(model, "training", False) else model for model in models]
    images = torch.rand(batch_size, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    milliseconds = np.empty((len(models), repeats))
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads or threads_before)
    try:
        with torch.inference_mode():
            for turn in range(-warmup, repeats):
                for row, model in enumerate(models):
                    start = time.perf_counter_ns()
                    model(images)
                    if turn >= 0:
                        milliseconds[row, turn] = (time.perf_counter_ns() - start) / 1e6
        return [Latency(row, batch_size, torch.get_num_threads()) for row in milliseconds]
    finally:
        torch.set_num_threads(threads_before)
