"""Integer-quantized layers in a ``.slim`` file: their grids in the description, their integers among the values.

Weights and rounded biases are not stored: a reader computes them from integers, scales and zero points by the same
formulas. Used in lesson 08. Leaves out: what the layers do (``integer_quantization``).
"""

from __future__ import annotations

import torch
from torch import nn
from ultralytics.nn.modules import Bottleneck, Conv
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.models import weight_layers
from yolo_slim_lessons.quantization import IntegerGrid, QuantizedActivation, QuantizedConv2d, QuantizedLinear
from yolo_slim_lessons.quantization.layers import QuantizedBottleneck, QuantizedLayer, same_shape


def describe_integers(model: ClassificationModel) -> dict | None:
    """The grids of a model in the types of JSON, without scales; ``None`` if it has none.

    Each entry stands for a layer, an activation function or a bottleneck, in the order of the network: nothing where it
    is an ordinary one, else a row of bits and flags.

    Raises:
        ValueError: weights that differ from what their integers stand for.
    """
    layers, activations, sums = [], [], []
    for name, layer in weight_layers(model):
        layers.append(None)
        if isinstance(layer, QuantizedLayer):
            if not torch.equal(layer.weight, layer.weight_grid.dequantize(layer.integers)):
                raise ValueError(f"model has weights in {name} that its integers do not stand for: quantize it again")
            weight, given = layer.weight_grid, layer.input_grid
            flags = [given.bits, int(given.signed)] if given else [0, 0]
            layers[-1] = [weight.bits, int(weight.signed), weight.scale.dim(), *flags, int(layer.snaps_input)]
    for block in model.modules():
        if isinstance(block, Conv):
            grids = (block.act.input_grid, block.act.output_grid) if isinstance(block.act, QuantizedActivation) else ()
            activations.append([number for grid in grids for number in (grid.bits, int(grid.signed))] or None)
        elif isinstance(block, Bottleneck):
            grid = block.output_grid if isinstance(block, QuantizedBottleneck) else None
            sums.append([grid.bits, int(grid.signed)] if grid else None)
    if not any(layers + activations + sums):
        return None
    return {"layers": layers, "activations": activations, "sums": sums}


def quantize_structure(model: ClassificationModel, description: dict) -> None:
    """Replace the layers of ``model``, folded and on the meta device, by those that ``describe_integers`` described.

    Raises:
        ValueError: rows of wrong length, type or range, or more or fewer of them than there are layers.
    """
    layers = list(weight_layers(model))
    blocks = [block for block in model.modules() if isinstance(block, Conv)]
    bottlenecks = [(name, block) for name, block in model.named_modules() if isinstance(block, Bottleneck)]
    if not isinstance(description, dict) or description.keys() != {"layers", "activations", "sums"}:
        raise ValueError("integers: expected layers, activations and sums")
    for (name, layer), row in _rows(layers, description["layers"], "layers", 6):
        weight_bits, signed, per_channel, input_bits, input_signed, snaps = row
        _check_flags(name, signed, per_channel, input_signed, snaps)
        new = same_shape(layer, QuantizedConv2d, QuantizedLinear)
        weight_grid = _grid(name, weight_bits, signed, (layer.weight.shape[0],) if per_channel else ())
        new.set_grids(weight_grid, _grid(name, input_bits, input_signed) if input_bits else None, bool(snaps))
        if snaps and not input_bits:
            raise ValueError(f"integers: {name} rounds its input to no grid")
        new.set_integers(torch.empty_like(layer.weight, dtype=torch.int32), layer.bias)
        _replace(model, name, new)
    for block, row in _rows(blocks, description["activations"], "activations", 4):
        _check_flags("activations", row[1], row[3])
        grids = _grid("activations", *row[:2]), _grid("activations", *row[2:])
        block.act = QuantizedActivation(block.act, *grids)
    for (name, block), row in _rows(bottlenecks, description["sums"], "sums", 2):
        _check_flags(name, row[1])
        if not block.add:
            raise ValueError(f"integers: {name} has no sum")
        _replace(model, name, QuantizedBottleneck(block, _grid(name, *row)))


def computed_names(model: ClassificationModel) -> set[str]:
    """Names of tensors that follow from others: weights of integers, and biases of integers."""
    names = set()
    for name, layer in weight_layers(model):
        if isinstance(layer, QuantizedLayer):
            names.add(f"{name}.weight")
            if layer.bias_integers is not None:
                names.add(f"{name}.bias")
    return names


def compute_weights(model: ClassificationModel) -> None:
    """Fill in the tensors of ``computed_names``, in place.

    Raises:
        ValueError: integers outside their grid, or scales that are no positive numbers.
    """
    for name, buffer in model.named_buffers():
        if name.endswith("_grid_scale") and not (buffer.isfinite() & (buffer > 0)).all():
            raise ValueError(f"{name} holds scales that are no positive numbers")
    for name, layer in weight_layers(model):
        if not isinstance(layer, QuantizedLayer):
            continue
        grid, integers = layer.weight_grid, layer.integers
        if integers.min() < grid.lowest or integers.max() > grid.highest:
            raise ValueError(f"{name} holds integers outside {grid.lowest} to {grid.highest}")
        layer.weight = nn.Parameter(grid.dequantize(integers), requires_grad=False)
        if layer.bias_integers is not None:
            bias = (layer.bias_integers * layer.accumulator_scale).to(layer.weight.dtype)
            layer.bias = nn.Parameter(bias, requires_grad=False)


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


def _grid(name: str, bits: int, signed: int, shape: tuple[int, ...] = ()) -> IntegerGrid:
    if not 2 <= bits <= 16:
        raise ValueError(f"integers: {name} has {bits} bits: expected 2 to 16")
    scale = torch.empty(shape, device="meta")
    return IntegerGrid(bits, scale, torch.empty(shape, dtype=torch.int32, device="meta"), bool(signed))


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
