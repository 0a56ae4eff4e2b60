"""What ``compress`` returns: a scorecard for each stage, and whether the budget was met. Used in lessons 08 to 10.

Leaves out: running the stages.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.measurement import Comparison, Scores

HEAD = ("stage", "top-1 on val", "95 % interval", "parameters", "million MACs", "bytes in .slim", "times smaller")
LATENCY_HEAD = ("ms in ONNX Runtime", "times faster")


@dataclass(frozen=True)
class StageResult:
    """The model that a stage made, and what was measured of it.

    Attributes:
        name: of the stage, a key of ``STAGES``; ``"start"`` for the model that was given.
        settings: what the stage was called with.
        model: what came out.
        scores: on ``data.val``.
        parameters, macs: as ``count_parameters`` and ``count_macs`` count them.
        packed_bytes: of the ``.slim`` file; ``None`` for a network that packing cannot describe.
        seconds: that the stage took, when it was run.
        latency: the first model and this one in ONNX Runtime, in turns, one image at a time; ``None`` if not timed.
    """

    name: str
    settings: Mapping[str, object]
    model: ClassificationModel = field(repr=False)
    scores: Scores = field(repr=False)
    parameters: int
    macs: int
    packed_bytes: int | None
    seconds: float
    latency: Comparison | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Target:
    """One target of a ``Budget``: what was allowed, and what was measured in the end."""

    name: str
    allowed: float
    measured: float

    @property
    def met(self) -> bool:
        return self.measured <= self.allowed

    def __str__(self) -> str:
        form = ",.0f" if self.name == "target_bytes" else ".4g"
        verdict = "met" if self.met else "NOT met"
        return f"{self.name} {verdict}: {self.measured:{form}}, allowed {self.allowed:{form}}"


@dataclass(frozen=True)
class Compression:
    """What ``compress`` returns; renders as a table in a notebook.

    Attributes:
        stages: the start, and one entry for each stage of the recipe.
        recipe: what was run, in the types of YAML: ``{"seed": 0, "stages": [{name: settings}, …]}``.
        targets: those of a ``Budget``, in its order.
        attempts: for ``max_drop``, what else was tried, in that order.
    """

    stages: tuple[StageResult, ...]
    recipe: Mapping[str, object] = field(repr=False)
    targets: tuple[Target, ...] = ()
    attempts: tuple["Compression", ...] = field(default=(), repr=False)

    @property
    def model(self) -> ClassificationModel:
        """What the last stage made."""
        return self.stages[-1].model

    @property
    def drop(self) -> float:
        """Top-1 lost on ``val``, 0…1; negative if it rose."""
        return self.stages[0].scores.top1 - self.stages[-1].scores.top1

    @property
    def factor(self) -> float | None:
        """How many times smaller the ``.slim`` file is than the first model's FP32 weights; ``None`` without a file."""
        return self._times_smaller(self.stages[-1])

    def _times_smaller(self, stage: StageResult) -> float | None:
        return stage.packed_bytes and 4 * self.stages[0].parameters / stage.packed_bytes

    @property
    def met(self) -> bool:
        """Whether every target of the budget was met."""
        return all(target.met for target in self.targets)

    def head(self) -> tuple[str, ...]:
        """What stands above the columns of ``rows``."""
        return HEAD + (LATENCY_HEAD if self.stages[0].latency else ())

    def rows(self) -> list[tuple[str, ...]]:
        """The table below ``head``, a row for each stage; times smaller as in ``factor``."""
        return [self._row(stage) for stage in self.stages]

    def _row(self, stage: StageResult) -> tuple[str, ...]:
        low, high = stage.scores.interval
        row = [stage.name, f"{stage.scores.top1:.2%}", f"{low:.1%} to {high:.1%}"]
        row += [f"{stage.parameters:,}", f"{stage.macs / 1e6:.2f}"]
        if stage.packed_bytes is None:
            row += ["not packable", ""]
        else:
            row += [f"{stage.packed_bytes:,}", f"{self._times_smaller(stage):.1f}"]
        if stage.latency:
            row += [f"{stage.latency.second.median:.2f}", f"{1 / stage.latency.ratio:.2f}"]
        return tuple(row)

    def __repr__(self) -> str:
        lines = ["  ".join(f"{cell:>18}" for cell in row) for row in (self.head(), *self.rows())]
        return "\n".join([*lines, *map(str, self.targets)])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{cell}</th>" for cell in self.head())
        rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in self.rows())
        return f"<table><tr>{head}</tr>{rows}</table>" + "".join(f"<p>{target}</p>" for target in self.targets)
