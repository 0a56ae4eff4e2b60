"""Remove whole channels: smaller layers, fewer multiplications, a smaller file.

Four steps, one module each: ``groups`` writes down which channels hang together, ``criteria`` scores them,
``budget`` decides how many each layer keeps, ``surgery`` cuts the others out of a copy. The result consists of
Ultralytics' own layers, only narrower, so that ``save_model`` writes a file for plain ``YOLO(path)``. Used in lesson
04. Leaves out: fine-tuning (``training.fit``), layers as a whole, and models other than classifiers.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real

import torch
from torch.optim.swa_utils import update_bn
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.agreement import check_image_size, check_split
from yolo_slim_lessons.arguments import check_choice, check_positive_integer, check_rate
from yolo_slim_lessons.data import Split
from yolo_slim_lessons.graph import trace
from yolo_slim_lessons.models import as_classifier, as_network, copy_model, input_format
from yolo_slim_lessons.pruning.channels.budget import Counts, rated_counts, searched_counts
from yolo_slim_lessons.pruning.channels.criteria import Importance, importance
from yolo_slim_lessons.pruning.channels.groups import ChannelGroup, Part, channel_groups, check_prunable
from yolo_slim_lessons.pruning.channels.surgery import remove_channels
from yolo_slim_lessons.pruning.weights import SCOPES

__all__ = ["ChannelGroup", "Part", "channel_groups", "prune_channels", "reestimate_batchnorm"]


@torch.no_grad()
def prune_channels(
    model: ClassificationModel,
    prune_rate: float | Mapping[str, float] | None = None,
    prune_type: str = "magnitude",
    *,
    target_macs: float | None = None,
    target_parameters: float | None = None,
    scope: str = "layer",
    round_to: int = 8,
    calibration: Split | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> ClassificationModel:
    """Remove the least important channels, in a copy, from every layer that can spare some.

    How many go is said in one of three ways: ``prune_rate``, ``target_macs`` or ``target_parameters``. Channels that
    are tied (see ``channel_groups``) go together. The accuracy drops; ``reestimate_batchnorm`` and ``fit`` bring most
    of it back.

    Args:
        model: an unfused classifier of the families yolov8-cls, yolo11-cls or yolo26-cls, or of your own YAML file
            with the same parts; it is left alone.
        prune_rate: share of its channels that each layer loses, 0 ≤ rate < 1; or a mapping from layer names to rates;
            layers that it does not name, and that are not tied to one of those, keep all.
        prune_type: ``"magnitude"`` removes the channels that move their readers least: the spread that BatchNorm
            and the activation give a channel, times the norm of the weights that read it, BatchNorm folded in (after
            Li et al., 2017, who take the norm of the weights that make it); ``"bn_scale"`` those with the smallest
            BatchNorm factor (Liu et al., 2017); ``"taylor"`` those whose removal changes the loss least, to first
            order (Molchanov et al., 2019); ``"random"`` any.
        target_macs: share of the multiply-accumulate operations that is left, 0 < share ≤ 1: 0.5 keeps half of them,
            or a little less, as channel counts are rounded.
        target_parameters: the same for the number of parameters.
        scope: ``"layer"`` takes the same share from each layer; ``"global"`` takes from all layers together what
            gives up least importance for what it saves.
        round_to: layers keep a multiple of this many channels, at least one multiple; 1 for any number.
        calibration: labelled images for ``"taylor"``, of ``train``; some hundreds do.
        image_size: pixels a side that ``target_macs`` holds for; ``None`` takes what the model was trained for.
        seed: of ``"random"``.

    Returns:
        A new ``ClassificationModel`` with narrower layers, in eval mode.

    Raises:
        ValueError: a rate or target outside its range, not exactly one of the three given, a target that cannot be
            met (the smallest possible one is named), a name that is no layer, an unknown choice, a fused or quantized
            model.
        TypeError: ``model`` is no classifier or has a layer that is not understood (named), or a rate is no number.

    Example:
        >>> import yolo_slim_lessons as slim
        >>> nano = slim.load_model("nano")
        >>> slim.count_parameters(prune_channels(nano, 0.5)) < 0.4 * slim.count_parameters(nano)
        True
    """
    model = as_classifier(model)
    check_prunable(model)
    graph = trace(model)
    groups = channel_groups(model, graph)
    target, value = _checked_target(prune_rate, target_macs, target_parameters, scope, round_to)
    scores = importance(model, groups, prune_type, calibration, seed, graph)
    if prune_rate is not None and scope == "layer":
        counts = rated_counts(groups, prune_rate, round_to)
    else:
        counts = searched_counts(model, groups, scores, target, value, scope, round_to, image_size)
    return remove_channels(model, groups, highest(groups, scores, counts), graph).eval()


def highest(groups: list[ChannelGroup], scores: Importance, counts: Counts) -> dict[str, torch.Tensor]:
    """The channels that stay: name of a group → bool, with ``counts``, one for each group, of the highest scores."""
    keep = {}
    for group, count in zip(groups, counts, strict=True):
        if group.prunable:
            keep[group.name] = torch.zeros(group.size, dtype=torch.bool)
            keep[group.name][scores[group.name].argsort(descending=True, stable=True)[: int(count)]] = True
    return keep


def reestimate_batchnorm(model: ClassificationModel, split: Split, batch_size: int = 128) -> ClassificationModel:
    """Measure anew the means and variances by which BatchNorm normalizes, on a copy.

    With fewer channels in front, sums have other means and variances than those that were measured; a few hundred
    training images tell them, without any training (Li et al., 2020, EagleEye).

    Args:
        model: unfused; it is left alone.
        split: images to measure on, of ``train``; labels are not looked at.
        batch_size: images at a time; the statistics are averages over the batches.

    Raises:
        ValueError: the split is empty, or the model has no BatchNorm.
    """
    model = as_network(model)
    check_split(split)
    if len(split) == 0:
        raise ValueError("split is empty: expected some hundred training images")
    check_image_size(model, split.height_width)
    if not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in model.modules()):
        raise ValueError("model has no BatchNorm layers, perhaps because it is fused: expected an unfused one")
    model = copy_model(model)
    update_bn(split.batches(batch_size, merge_single=True, **input_format(model)), model)
    return model.eval()


def _checked_target(prune_rate, target_macs, target_parameters, scope, round_to) -> tuple[str, float | Mapping]:
    """Name and value of the one of the first three that is given."""
    given = {"prune_rate": prune_rate, "target_macs": target_macs, "target_parameters": target_parameters}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) != 1:
        raise ValueError(f"expected one of prune_rate, target_macs and target_parameters, got {given or 'none'}")
    ((name, value),) = given.items()
    if isinstance(value, Mapping) and name == "prune_rate":
        for layer, rate in value.items():
            check_rate(f"{name}[{layer!r}]", rate)
    elif name == "prune_rate":
        check_rate(name, value)
    elif isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r}: expected a number, 0 < share <= 1")
    elif not 0 < value <= 1:  # false for NaN, too
        raise ValueError(f"{name}={value!r}: expected 0 < share <= 1, such as 0.5 to keep half")
    check_choice("scope", scope, SCOPES)
    if scope == "global" and isinstance(value, Mapping):
        raise ValueError("scope='global' shares one rate among all layers: leave a mapping to scope='layer'")
    check_positive_integer("round_to", round_to)
    return name, value
