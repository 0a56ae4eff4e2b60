"""What a network looks like, in a few words, and the empty network made from these words. Used in lesson 08.

``build`` makes it by the same code as ``new_model``, on PyTorch's meta device, where tensors have shapes and no
memory: a description can ask for nothing but a known architecture with fewer channels. Leaves out: architectures of
one's own.
"""

import functools
import re
from itertools import zip_longest
from pathlib import PureWindowsPath

import torch
from torch import nn
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.graph import trace
from yolo_slim_lessons.models import check_classifier, copy_model, image_size_of, new_model, values_of, weight_layers
from yolo_slim_lessons.packing.integers import describe_integers, quantize_structure
from yolo_slim_lessons.pruning.blocks import ACTIVATIONS, remove_bottlenecks, replace_activations, stacked_blocks
from yolo_slim_lessons.pruning.channels.surgery import note_widths, select_channels
from yolo_slim_lessons.quantization.floats import SCALES, float_format, round_inputs

ARCHITECTURES = re.compile(r"yolo(v8|11|12|26)[nsmlx]-cls")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def describe(model: ClassificationModel) -> dict:
    """The structure of ``model`` in the types of JSON.

    Raises:
        ValueError: ``build`` could not make this network again; the first layer that differs is named.
        TypeError: not a classifier.
    """
    check_classifier(model)
    dtypes = {str(value.dtype).removeprefix("torch.") for value in values_of(model)}
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    description = {
        "architecture": _architecture(model),
        "class_names": [model.names[label] for label in range(len(model.names))],
        "image_size": image_size_of(model),
        "dtype": dtypes.pop() if len(dtypes) == 1 else sorted(dtypes),
        "channels": [count for _, layer in weight_layers(model) for count in layer.weight.shape[:2]],
        "batchnorm": [norms[0].eps, norms[0].momentum] if norms else None,
        "dropout": model.model[-1].drop.p,
        "activation": _activation(model),
        "bottlenecks": [len(block.m) for block in stacked_blocks(model).values()],
        "float_quantization": getattr(model, "float_quantization", None),
        "integers": describe_integers(model),
    }
    if getattr(model, "pruned_layers", None):  # whose zeros stay zero when the model is trained
        description["pruned_layers"] = list(model.pruned_layers)
    try:
        built = build(description)
    except ValueError as error:
        raise ValueError(
            f"model is not built as its architecture {description['architecture']} is ({error}): "
            "expected a classifier as this package loads, prunes, folds or quantizes it"
        ) from error
    for ours, theirs in zip_longest(_outline(built), _outline(model), fillvalue="nothing"):
        if ours != theirs:
            raise ValueError(
                f"model has {theirs!r} where its architecture {description['architecture']} has {ours!r}: "
                "expected a classifier as this package loads, prunes, folds or quantizes it"
            )
    return description


def build(description: dict) -> ClassificationModel:
    """The network of a description, in eval mode and on the meta device: shapes without values.

    Raises:
        ValueError: a field is missing, of a wrong type or out of range, or the layers do not fit each other.
    """
    _check(description)
    names = description["class_names"]
    model = copy_model(_empty_network(description["architecture"], len(names)))
    model.names, model.args["imgsz"] = dict(enumerate(names)), description["image_size"]
    model = replace_activations(model, description["activation"])
    model = remove_bottlenecks(model, _bottlenecks(model, description["bottlenecks"]))
    dtype = DTYPES[description["dtype"]]
    model = model.to(dtype)
    if description["batchnorm"] is None:
        model = model.fuse(verbose=False)
    _narrow(model, description["channels"])
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps, layer.momentum = description["batchnorm"]
    model.model[-1].drop.p = description["dropout"]
    if "pruned_layers" in description:
        model.pruned_layers = description["pruned_layers"]
    try:
        model(torch.empty(1, 3, *[description["image_size"]] * 2, dtype=dtype, device="meta"))
    except RuntimeError as error:
        raise ValueError(f"channels of the layers do not fit each other ({str(error).splitlines()[0]})") from None
    if description["integers"] is not None:
        if description["batchnorm"] is not None:
            raise ValueError("integers: expected a model whose BatchNorm is folded")
        model = quantize_structure(model, description["integers"])
    if settings := description["float_quantization"]:
        model.float_quantization = settings
        if settings["activations"] is not None:
            round_inputs(model, float_format(settings["activations"]), settings["saturate"])
    return model


@functools.lru_cache(maxsize=8)  # for Ultralytics counts operations whenever it builds a network, which takes longest
def _empty_network(architecture: str, classes: int) -> ClassificationModel:
    with torch.device("meta"):
        return new_model(f"{architecture}.yaml", tuple(map(str, range(classes))))


def _outline(model: ClassificationModel) -> list[str]:
    """Every layer as it prints, and every tensor; where an activation puts its result makes no difference."""
    layers = [line.strip() for line in repr(model).replace("inplace=True", "").splitlines()]
    return layers + [f"{name}: {tensor.dtype} {list(tensor.shape)}" for name, tensor in model.state_dict().items()]


def _architecture(model: ClassificationModel) -> str:
    settings = model.yaml if isinstance(model.yaml, dict) else {}
    name = PureWindowsPath(str(settings.get("yaml_file"))).stem  # also splits at /
    if not ARCHITECTURES.fullmatch(name):  # such as yolov8-cls.yaml with the scale apart
        name = name.replace("-cls", f"{settings.get('scale')}-cls")
    if not ARCHITECTURES.fullmatch(name):
        raise ValueError(
            f"model was built from {settings.get('yaml_file')!r}: expected an architecture such as 'yolov8n-cls.yaml', "
            "of the families yolov8, yolo11, yolo12 and yolo26"
        )
    return name


def _activation(model: ClassificationModel) -> str:
    """The name of the function behind the first convolution; a network with several kinds cannot be built again."""
    function = getattr(model.model[0], "act", None)
    function = getattr(function, "function", function)  # of a quantized one
    return next((name for name, kind in ACTIVATIONS.items() if type(function) is kind), "silu")


def _bottlenecks(model: ClassificationModel, counts: list[int]) -> dict[str, int]:
    blocks = stacked_blocks(model)
    if len(counts) != len(blocks):
        expected = f"expected {len(blocks)}, one for each block that has some"
        raise ValueError(f"bottlenecks has {len(counts)} numbers: {expected}")
    return dict(zip(blocks, counts, strict=True))


def _narrow(model: ClassificationModel, channels: list[int]) -> None:
    """Give each layer its (output, input) channels, of at most what the architecture has."""
    layers = list(weight_layers(model))
    if len(channels) != 2 * len(layers):
        raise ValueError(f"channels has {len(channels)} numbers: expected {2 * len(layers)}")
    if channels[-2] != len(model.names):
        raise ValueError(f"channels end in {channels[-2]} outputs for {len(model.names):,} classes")
    graph = None
    for (name, layer), made, read in zip(layers, channels[::2], channels[1::2], strict=True):
        all_made, all_read = layer.weight.shape[:2]
        if not (1 <= made <= all_made and 1 <= read <= all_read):
            raise ValueError(f"channels of {name} are {made} × {read}: expected 1 × 1 to {all_made} × {all_read}")
        if (made, read) == (all_made, all_read):
            continue
        graph = graph or trace(model)
        if getattr(layer, "groups", 1) > 1:
            raise ValueError(f"channels of {name} are {made} × {read}: expected all, as it works in groups")
        select_channels(model, graph, name, torch.arange(all_made) < made, torch.arange(all_read) < read)
    if graph is not None:
        note_widths(model, graph)


def _check(description: dict) -> None:
    for name, (allowed, is_allowed) in _FIELDS.items():
        if name in description and not is_allowed(description[name]):
            raise ValueError(f"{name}={str(description[name])[:80]}: expected {allowed}")
        if name not in description and name not in _OPTIONAL:
            raise ValueError(f"{name} is missing")
    if unknown := description.keys() - _FIELDS.keys():
        raise ValueError(f"{sorted(unknown)[0]!r:.80} is no field of a description")


def _is_list(value: object, of: type, least: int, most: int) -> bool:
    return isinstance(value, list) and least <= len(value) <= most and all(type(item) is of for item in value)


def _is_share(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _is_float_quantization(value: object) -> bool:
    if not isinstance(value, dict) or value.keys() != {"format", "scale", "activations", "saturate"}:
        return value is None
    names = [value["format"]] + [value["activations"]] * (value["activations"] is not None)
    try:
        formats = [float_format(name) for name in names]
    except ValueError:
        return False
    saturates = value["saturate"] is True or all(format.overflow is not None for format in formats)
    return value["scale"] in SCALES and type(value["saturate"]) is bool and saturates


_FIELDS = {
    "architecture": ("a name such as 'yolov8n-cls'", lambda v: isinstance(v, str) and bool(ARCHITECTURES.fullmatch(v))),
    "class_names": ("1 to 100,000 names", lambda v: _is_list(v, str, 1, 100_000)),
    "image_size": ("1 to 8192 pixels", lambda v: type(v) is int and 1 <= v <= 8192),
    "dtype": (f"one of {tuple(DTYPES)}", lambda v: isinstance(v, str) and v in DTYPES),
    "channels": ("two counts for each layer", lambda v: _is_list(v, int, 0, 1000)),
    "batchnorm": (
        "eps and momentum, 0 to 1, or nothing if folded",
        lambda v: v is None or (isinstance(v, list) and len(v) == 2 and all(map(_is_share, v))),
    ),
    "dropout": ("a share, 0 to 1", _is_share),
    "activation": (f"one of {tuple(ACTIVATIONS)}", lambda v: isinstance(v, str) and v in ACTIVATIONS),
    "bottlenecks": ("a count for each stacked block", lambda v: _is_list(v, int, 0, 100)),
    "float_quantization": ("the settings of quantize_float", _is_float_quantization),
    "integers": ("grids of layers", lambda v: v is None or isinstance(v, dict)),
    "pruned_layers": ("names of layers", lambda v: _is_list(v, str, 1, 1000)),
}
_OPTIONAL = {"pruned_layers"}
