"""What a network computes while calibration images pass through: extremes first, then histograms between them.

Used in lesson 05. Leaves out: what follows from it (``calibration``).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import nn

from yolo_slim_lessons.agreement import check_image_size, check_square
from yolo_slim_lessons.data import Split
from yolo_slim_lessons.data.splits import check_pixels
from yolo_slim_lessons.graph import Execution, Graph, Node
from yolo_slim_lessons.models import input_format
from yolo_slim_lessons.quantization.calibration import Histogram

Look = Callable[[str, torch.Tensor], None]  # called with a name and the numbers that were seen there


@torch.inference_mode()
def observe_inputs(
    model: nn.Module, names: Iterable[str], images: Split | torch.Tensor, histograms: bool = True
) -> dict[str, Histogram | tuple[float, float]]:
    """What the named modules of ``model`` read while ``images`` pass through.

    Args:
        model: in eval mode.
        names: of modules, as in ``model.named_modules()``; each must be called once in a forward pass.
        images: a ``Split``, whose labels are not looked at, or a tensor N×3×H×W, uint8 or float 0…1.
        histograms: ``False`` to spare the second pass and return only the extremes (smallest, largest).

    Raises:
        As of ``image_batches``.
    """
    names = list(names)

    def send(look: Look) -> None:
        with contextlib.ExitStack() as hooks:
            for name in names:
                hook = functools.partial(lambda name, _, inputs: look(name, inputs[0]), name)
                hooks.enter_context(model.get_submodule(name).register_forward_pre_hook(hook))
            for batch in image_batches(images, model=model):
                model(batch)

    extremes = _extremes(send, names)
    return _histograms(send, extremes, {name: name for name in names}) if histograms else extremes


@torch.inference_mode()
def observe_nodes(
    model: nn.Module,
    graph: Graph,
    groups: Mapping[str, Iterable[str]],
    images: Split | torch.Tensor,
    extremes_only: Iterable[str] = (),
) -> tuple[dict[str, Histogram], dict[str, tuple[float, float]]]:
    """What nodes of ``graph`` put out while ``images`` pass through; the rest as for ``observe_inputs``.

    Returns:
        Name of a group → one histogram of what all its nodes put out; name of a node, of a group or one of
        ``extremes_only``, → smallest and largest number.
    """
    group_of = {node: group for group, nodes in groups.items() for node in nodes}

    def send(look: Look) -> None:
        walk = _Observation(model, look)
        for batch in image_batches(images, model=model):
            walk.run(graph, batch)

    extremes = _extremes(send, {*group_of, *extremes_only})
    of_groups = {group: functools.reduce(_union, (extremes[node] for node in nodes)) for group, nodes in groups.items()}
    return _histograms(send, of_groups, group_of), extremes


class _Observation(Execution):
    """The computation itself, with a look at each result, before an activation function overwrites it."""

    def __init__(self, model: nn.Module, look: Look):
        super().__init__(model)
        self.look = look

    def visit(self, node: Node, *values: torch.Tensor) -> torch.Tensor:
        result = super().visit(node, *values)
        self.look(node.name, result)
        return result


def _extremes(send: Callable[[Look], None], names: Collection[str]) -> dict[str, tuple[float, float]]:
    """Smallest and largest number that is seen under each of ``names``, when ``send`` sends all images through."""
    extremes = dict.fromkeys(names, (float("inf"), float("-inf")))

    def look(name: str, values: torch.Tensor) -> None:
        if name in extremes:
            extremes[name] = _union(extremes[name], [end.item() for end in torch.aminmax(values)])

    send(look)
    return extremes


def _histograms(
    send: Callable[[Look], None], extremes: Mapping[str, tuple[float, float]], group_of: Mapping[str, str]
) -> dict[str, Histogram]:
    """One histogram for each group, of what is seen under the names that belong to it."""
    counted: dict[str, Histogram] = {}

    def look(name: str, values: torch.Tensor) -> None:
        if name in group_of:
            group = group_of[name]
            part = Histogram.of(values, *extremes[group])
            before = counted[group].counts if group in counted else 0
            counted[group] = Histogram(part.points, part.counts + before)

    send(look)
    return counted


def _union(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    """The range that covers two."""
    return min(first[0], second[0]), max(first[1], second[1])


def image_batches(
    images: Split | torch.Tensor, batch_size: int = 128, model: nn.Module | None = None
) -> Iterator[torch.Tensor]:
    """Float images 0…1, ``batch_size`` at a time, as ``model`` reads them.

    Without a ``model`` they are float32 with three channels, in the machine's memory.

    Raises:
        TypeError: neither a ``Split`` nor a tensor.
        ValueError: no image, no square ones, another shape than N×3×H×W, or numbers that are not in 0…1.
    """
    what = {} if model is None else input_format(model)
    check_calibration(images, what.get("channels", 3))
    if model is not None:
        size = images.height_width if isinstance(images, Split) else images.shape[-2:]
        check_image_size(model, size, "calibration", "ranges that are measured on it hold for that size")
    if isinstance(images, Split) or images.dtype == torch.uint8:
        split = images if isinstance(images, Split) else Split(images, torch.zeros(len(images), dtype=torch.int64))
        return (batch for batch, _ in split.batches(batch_size, **what))
    return (
        batch.to(device=what.get("device"), dtype=what.get("dtype")).contiguous(memory_format=torch.channels_last)
        for batch in images.split(batch_size)
    )


def check_calibration(images: object, channels: int = 3) -> None:
    """Raise an error unless ``images``, the value of an argument ``calibration``, are as ``image_batches`` says."""
    if isinstance(images, np.ndarray):
        raise TypeError(
            "calibration is a NumPy array: expected a Split or a tensor N×3×H×W; torch.from_numpy(array) makes one"
        )
    if not isinstance(images, Split | torch.Tensor):
        raise TypeError(f"calibration is a {type(images).__name__}: expected a Split or a tensor of images N×3×H×W")
    if len(images) == 0:
        raise ValueError("calibration is empty: expected some hundred training images")
    if isinstance(images, Split):
        check_square(images.height_width, "calibration")
        return
    if images.is_floating_point():
        _check_floats(images, channels)
    else:
        check_pixels(images, "calibration")
    check_square(images.shape[-2:], "calibration")


def _check_floats(images: torch.Tensor, channels: int) -> None:
    shape = tuple(images.shape)
    if len(shape) == 3:
        raise ValueError(f"calibration has shape {shape}: calibration[None] is a batch of one image")
    if len(shape) != 4 or shape[1] != channels:
        raise ValueError(f"calibration has shape {shape}: expected N×{channels}×H×W, which the model reads")
    if not images.isfinite().all():
        raise ValueError("calibration holds NaN or infinity: expected images with numbers 0 to 1")
    if not 0 <= images.min() <= images.max() <= 1:
        raise ValueError(
            f"calibration holds numbers from {images.min():.4g} to {images.max():.4g}: expected 0 to 1, as the model "
            "reads them. Bytes may stay uint8, or be divided by 255; what else was done must be undone"
        )
