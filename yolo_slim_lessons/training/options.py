"""What ``fit`` may be asked for beyond plain training.

Layers that stay as they are, classes that are seen more often than they occur, and first epochs on smaller images.
Leaves out: the loop itself (``training.fit``), and changes of the images (``augmentation``).
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import nn
from ultralytics.nn.tasks import ClassificationModel


def plain(value: object) -> object:
    """A list of what is a sequence, an array or a tensor, as a checkpoint keeps it; anything else as it is."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


# Frozen layers


def frozen_names(model: ClassificationModel, frozen: int | Sequence[str]) -> list[str]:
    """The names of the modules that ``frozen`` asks for: so many of the first blocks, or these.

    Raises:
        ValueError: there are no such modules, or nothing would be left to learn.
        TypeError: ``frozen`` is neither a number nor names.

    Example:
        >>> import yolo_slim_lessons as slim
        >>> frozen_names(slim.load_model("nano"), 2)
        ['model.0', 'model.1']
    """
    known = [name for name, module in model.named_modules() if name and [*module.parameters()]]
    if isinstance(frozen, Integral) and not isinstance(frozen, bool):
        if not 0 <= frozen < len(model.model):
            raise ValueError(f"frozen={frozen!r}: expected 0 to {len(model.model) - 1}, so that the last block learns")
        return [f"model.{number}" for number in range(frozen)]
    if isinstance(frozen, str) or not isinstance(frozen, Sequence):
        raise TypeError(f"frozen={frozen!r}: expected a number of blocks, or names such as ['model.0', 'model.1']")
    for name in frozen:
        if name not in known:
            raise ValueError(f"frozen names {name!r}, which holds no weights: expected some of {known[:12]} …")
    kept = {id(parameter) for name in frozen for parameter in model.get_submodule(name).parameters()}
    if kept == {id(parameter) for parameter in model.parameters()}:
        raise ValueError(f"frozen={frozen!r}: nothing is left that could learn")
    return list(frozen)


def train_mode(model: nn.Module, frozen: Sequence[str]) -> None:
    """Let ``model`` learn, but not its modules ``frozen``: neither their weights nor the statistics of BatchNorm."""
    model.train().requires_grad_(True)
    for name in frozen:
        model.get_submodule(name).eval().requires_grad_(False)


# Classes


def image_shares(labels: torch.Tensor, weights: str | list[float] | None) -> torch.Tensor | None:
    """How often each image is to be seen in an epoch, on average: float64, N, of mean 1; ``None``: each once.

    With ``"balanced"`` all classes are seen equally often. Images without a label, -1, are seen once.

    Example:
        >>> image_shares(torch.tensor([0, 0, 0, 1]), "balanced").tolist()
        [0.6666666666666666, 0.6666666666666666, 0.6666666666666666, 2.0]
    """
    if weights is None:
        return None
    labels = labels.cpu()
    known = labels[labels >= 0]
    of_class = known.bincount().double().reciprocal() if weights == "balanced" else torch.tensor(weights).double()
    shares = torch.ones(len(labels), dtype=torch.float64)
    shares[labels >= 0] = of_class[known] / of_class[known].mean()
    return shares


def random_order(count: int, shares: torch.Tensor | None) -> torch.Tensor:
    """Which image comes when in an epoch of ``count``, by chance: each once, or as often as its share says.

    A share of 2.4 is two or three times, never more or less (systematic resampling), so that few images are missed.
    """
    order = torch.randperm(count)
    if shares is None:
        return order
    ends = shares[order].cumsum(0)
    marks = torch.arange(count, dtype=torch.float64) + torch.rand((), dtype=torch.float64)
    seen = torch.searchsorted(ends, marks).clamp_(max=count - 1)
    return order[seen][torch.randperm(count)]


# Image sizes


def size_in_epoch(sizes: list[int] | None, epoch: int, epochs: int) -> int | None:
    """The image size in ``epoch``, from 0; each has an equal part of all ``epochs``. ``None`` is that of the data.

    Example:
        >>> [size_in_epoch([128, 224], epoch, 5) for epoch in range(5)]
        [128, 128, 128, 224, 224]
    """
    return sizes[epoch * len(sizes) // epochs] if sizes else None
