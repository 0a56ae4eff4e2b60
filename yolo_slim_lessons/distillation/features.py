"""Look inside: which layers of student and teacher belong together, and what they put out.

Two layers belong together if their feature maps have the same height and width; the number of channels may differ.
Leaves out: feature maps of different sizes, and layers that put out anything but one feature map.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.models import blank_images, copy_model, device_of

ADAPTER = "hint_adapter"
STAGES = 4  # with 64 px: 16×16 to 2×2; what comes before is edges and colours


def feature_shapes(model: ClassificationModel, image_size: int) -> dict[str, tuple[int, int, int]]:
    """Channels, height and width of every layer that puts out a feature map, by name, in the order they are run."""
    model, outputs = copy_model(model).eval(), {}
    # A sequence would run an adapter as a part of itself.
    record(model, [name for name, layer in model.named_modules() if not isinstance(layer, nn.Sequential)], outputs)
    with torch.inference_mode():
        model(blank_images(model, image_size))
    return {
        name: tuple(output.shape[1:])
        for name, output in outputs.items()
        if isinstance(output, torch.Tensor) and output.ndim == 4
    }


def match_layers(
    student: ClassificationModel,
    teacher: ClassificationModel,
    layers: Iterable[str] | Mapping[str, str] | None,
    image_size: int,
) -> dict[str, str]:
    """Student layer → teacher layer, from ``layers`` as ``distill`` takes them; both see ``image_size`` pixels a side.

    A stage is all blocks whose maps have one size. ``None`` takes the last block of each of the last four stages.

    Raises:
        ValueError: a name that is no layer with a feature map, heights or widths that differ, or nothing to match.
    """
    shapes = {"student": feature_shapes(student, image_size), "teacher": feature_shapes(teacher, image_size)}
    if layers is None:
        last = {who: _last_of_each_stage(shapes[who]) for who in shapes}
        pairs = {name: last["teacher"][size] for size, name in last["student"].items() if size in last["teacher"]}
        pairs = dict(list(pairs.items())[-STAGES:])
    elif isinstance(layers, str):
        raise ValueError(f"layers={layers!r}: expected several names, such as [{layers!r}]")
    else:
        pairs = dict(layers) if isinstance(layers, Mapping) else {name: name for name in layers}
    if not pairs:
        raise ValueError(f"layers={layers!r}: student and teacher have no stage in common, or no layer was named")
    for pair in pairs.items():
        for who, name in zip(shapes, pair, strict=True):
            if name not in shapes[who]:
                raise ValueError(
                    f"layers: {name!r} is no layer of the {who} that puts out one feature map; "
                    f"its blocks are {[each for each in shapes[who] if re.fullmatch(r'model.[0-9]+', each)]}"
                )
        sizes = [shapes[who][name][1:] for who, name in zip(shapes, pair, strict=True)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"layers: the student's {pair[0]!r} puts out maps of {sizes[0]}, the teacher's {pair[1]!r} of "
                f"{sizes[1]}: expected the same height and width, as with layers=None"
            )
    return pairs


def record(model: nn.Module, names: Iterable[str], features: dict[str, torch.Tensor]) -> None:
    """Make each forward pass of ``model``, and of its copies, write what the layers put out into ``features``.

    If the layer has an adapter, what that makes of it is written.
    """
    for name in names:

        def hook(layer, inputs, output, name=name):
            features[name] = getattr(layer, ADAPTER)(output) if hasattr(layer, ADAPTER) else output

        model.get_submodule(name).register_forward_hook(hook)


def add_adapters(
    student: ClassificationModel, teacher: ClassificationModel, pairs: Mapping[str, str], image_size: int, seed: int
) -> None:
    """Give each layer of ``pairs`` a 1×1 convolution from its channels to the teacher's, learned along the way."""
    widths, teacher_widths = feature_shapes(student, image_size), feature_shapes(teacher, image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, teacher_name in pairs.items():
            adapter = nn.Conv2d(widths[name][0], teacher_widths[teacher_name][0], kernel_size=1)
            student.get_submodule(name).add_module(ADAPTER, adapter.to(device_of(student)))


def without_extras(trained: ClassificationModel, student: ClassificationModel) -> ClassificationModel:
    """``student`` with the weights of ``trained``, which may have recorders and adapters on top."""
    plain = copy_model(student).eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
    weights = trained.state_dict()
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    return plain


def _last_of_each_stage(shapes: dict[str, tuple[int, int, int]]) -> dict[tuple[int, int], str]:
    return {shape[1:]: name for name, shape in shapes.items() if re.fullmatch(r"model\.\d+", name)}
