"""Integer-quantized layers in a ``.slim`` file: their grids in the description, their integers among the values.

Weights and rounded biases are not stored: they follow from integers, scales and zero points. Used in lesson 08. Leaves
out: what the layers do (``quantization``).
"""

from collections.abc import Iterator

import torch
from torch import nn
from ultralytics.nn.modules import Conv
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.graph import replace_module, trace
from yolo_slim_lessons.models import image_size_of, weight_layers
from yolo_slim_lessons.quantization import (
    IntegerGrid,
    QuantizedActivation,
    QuantizedLayer,
    QuantizedModel,
    QuantizedSum,
    activation_tensors,
)
from yolo_slim_lessons.quantization.layers import quantized_layer
from yolo_slim_lessons.quantization.points import place_grid, placed_grid

GRIDS = ("weight_grid", "input_grid", "output_grid")  # as attributes of a module, in the order of the file


def describe_integers(model: ClassificationModel) -> dict | None:
    """The grids of a model in the types of JSON, without scales; ``None`` if it has none.

    For each layer, activation function and sum, in the order of the network: bits and flags, ``None`` without a grid.
    """
    layers: list[list[int] | None] = []
    for _, layer in weight_layers(model):
        layers.append(None)
        if isinstance(layer, QuantizedLayer):
            per_channel = layer.weight_grid.scale.dim()
            read = _numbers(layer.input_grid) if layer.input_grid else [0, 0]
            layers[-1] = [*_numbers(layer.weight_grid), per_channel, *read, int(layer.snaps_input)]
    if not any(layers):
        return None
    activations, sums = [None] * len(_activations(model)), [None] * _count_shortcuts(model)
    if isinstance(model, QuantizedModel):
        functions = [model.get_submodule(name) for name in _activations(model)]
        activations = [_numbers(act.input_grid) + _numbers(act.output_grid) for act in functions]
        sums = [_numbers(model.get_submodule(name).output_grid) for name in _sums(model)]
    return {"layers": layers, "activations": activations, "sums": sums}


def quantize_structure(model: ClassificationModel, description: dict) -> ClassificationModel:
    """Replace the layers of ``model``, folded and on the meta device, by those that ``describe_integers`` described.

    Raises:
        ValueError: rows of wrong length, type or range, or more or fewer of them than there are layers.
    """
    layers = list(weight_layers(model))
    if not isinstance(description, dict) or description.keys() != {"layers", "activations", "sums"}:
        raise ValueError("integers: expected layers, activations and sums")
    for (name, layer), row in _rows(layers, description["layers"], "layers", 6):
        weight_bits, signed, per_channel, input_bits, input_signed, snaps = row
        _check_flags(name, signed, per_channel, input_signed, snaps)
        if snaps and not input_bits:
            raise ValueError(f"integers: {name} rounds its input to no grid")
        weight_grid = _grid(name, weight_bits, signed, layer.weight.shape[:1] if per_channel else ())
        input_grid = _grid(name, input_bits, input_signed) if input_bits else None
        new = quantized_layer(layer, weight_grid, input_grid, bool(snaps))
        new.set_integers(torch.empty_like(layer.weight, dtype=torch.int32), layer.bias)
        replace_module(model, name, new)
    functions = list(_rows(_activations(model), description["activations"], "activations", 4))
    named_sums = _sums(model) if functions else [None] * _count_shortcuts(model)
    sums = list(_rows(named_sums, description["sums"], "sums", 2))
    if not functions and not sums:
        return model
    for name, row in (*functions, *sums):
        _check_flags(name, *row[1::2])
    if (len(functions), len(sums)) != (len(_activations(model)), len(_sums(model))):
        raise ValueError("integers: some activation functions or sums have no grid: expected all or none")
    tensors = activation_tensors(trace(model))
    for name, row in functions:
        grids = _grid(name, *row[:2]), _grid(name, *row[2:])
        replace_module(model, name, QuantizedActivation(model.get_submodule(name), *grids))
    for tensor in tensors:
        for name, computed in tensor.sums.items():
            replace_module(model, name, QuantizedSum(_grid(name, *dict(sums)[name]), computed))
    size = image_size_of(model)
    return QuantizedModel.of(model, (size, size))


def stored_tensors(model: nn.Module) -> Iterator[tuple[str, str, torch.Tensor]]:
    """All tensors of a model in the order of the file, as (name of the part, name in ``state_dict``, tensor)."""
    for path, module in model.named_modules():
        if isinstance(module, IntegerGrid | QuantizedSum):
            continue
        sums = {name: child for name, child in module.named_children() if isinstance(child, QuantizedSum)}
        grids = {name: getattr(module, name, None) for name in GRIDS}
        grids |= {f"{name}.output_grid": child.output_grid for name, child in sums.items()}
        own = list(module.named_parameters(recurse=False))
        for place, grid in grids.items():
            own += [(f"{place}.{name}", tensor) for name, tensor in grid.named_buffers()] if grid else []
        own += module.named_buffers(recurse=False)
        for name, tensor in own:
            name = f"{path}.{name}".removeprefix(".")
            yield _part(name, tensor), name, tensor


def _part(name: str, tensor: torch.Tensor) -> str:
    """A kernel or matrix is a part of its own; vectors of one kind share one."""
    words = name.split(".")
    if tensor.dim() > 1:
        return name
    if words[-2:-1] and words[-2] in GRIDS:
        return "_".join(words[-2:])
    return ".".join(words[-2:] if words[-1] in ("weight", "bias") else words[-1:])


def join_grids(model: ClassificationModel) -> None:
    """Let all that make and read a tensor share one grid again, in place, and check what was read from a file.

    Raises:
        ValueError: integers outside their grid, or scales that are no positive numbers.
    """
    for name, buffer in model.named_buffers():
        if name.endswith("_grid.scale") and not (buffer.isfinite() & (buffer > 0)).all():
            raise ValueError(f"{name} holds scales that are no positive numbers")
    for name, layer in weight_layers(model):
        if isinstance(layer, QuantizedLayer):
            grid, integers = layer.weight_grid, layer.integers
            if integers.min() < grid.lowest or integers.max() > grid.highest:
                raise ValueError(f"{name} holds integers outside {grid.lowest} to {grid.highest}")
    for tensor in model.tensors if isinstance(model, QuantizedModel) else ():
        if (grid := placed_grid(model, tensor)) is not None:
            place_grid(model, tensor, grid)


def _activations(model: ClassificationModel) -> list[str]:
    """Names of the activation functions, in the order of ``named_modules``."""
    return [f"{name}.act" for name, block in model.named_modules() if isinstance(block, Conv)]


def _sums(model: ClassificationModel) -> list[str]:
    """Names of the sums, in the order in which they are computed."""
    return [node.name for node in trace(model).nodes if node.kind == "sum"]


def _count_shortcuts(model: ClassificationModel) -> int:
    """How many blocks can add their input to what two convolutions make of it: files without sums count these."""
    return sum(all(hasattr(block, name) for name in ("cv1", "cv2", "add")) for block in model.modules())


def _rows(modules: list, rows: object, kind: str, length: int):
    if not isinstance(rows, list) or len(rows) != len(modules):
        raise ValueError(f"integers: expected a list of {len(modules)} {kind}")
    for module, row in zip(modules, rows, strict=True):
        if row is None:
            continue
        if not isinstance(row, list) or len(row) != length or any(type(number) is not int for number in row):
            raise ValueError(f"integers: {kind} has {row!r:.80} where {length} integers are expected")
        yield module, row


def _check_flags(name: str, *flags: int) -> None:
    if not all(flag in (0, 1) for flag in flags):
        raise ValueError(f"integers: {name} has flags {flags}: expected 0 or 1")


def _numbers(grid: IntegerGrid) -> list[int]:
    return [grid.bits, int(grid.signed)]


def _grid(name: str, bits: int, signed: int, shape: tuple[int, ...] = ()) -> IntegerGrid:
    if not 2 <= bits <= 16:
        raise ValueError(f"integers: {name} has {bits} bits: expected 2 to 16")
    scale = torch.empty(shape, device="meta")
    return IntegerGrid(bits, scale, torch.empty(shape, dtype=torch.int32, device="meta"), bool(signed))
