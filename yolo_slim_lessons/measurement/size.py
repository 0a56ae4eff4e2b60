"""How large is it, and how much does it compute: parameters, multiply-accumulate operations, bytes.

Used from lesson 01 on. Leaves out: peak memory and energy.
"""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from yolo_slim_lessons.models import as_network, blank_images, copy_model, save_model, values_of, weight_layers


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


def count_parameters(model: nn.Module, nonzero: bool = False) -> int:
    """Number of weights, biases and BatchNorm factors; with ``nonzero`` only those that are not exactly zero."""
    model = as_network(model, only_measured=True)
    return sum(int(p.count_nonzero()) if nonzero else p.numel() for p in values_of(model))


def layer_costs(model: nn.Module, image_size: int | None = None) -> list[LayerCost]:
    """Parameters and MACs of every convolution and linear layer, found by sending one black image through.

    A convolution multiplies each of its weights once per output position: MACs = weights × height × width.
    BatchNorm folds into the convolution in front of it, and activations and additions are few, so they count nothing.
    """
    model = as_network(model, only_measured=True)
    shapes: dict[str, tuple[int, ...]] = {}
    model = copy_model(model).eval()
    for name, layer in weight_layers(model):
        layer.register_forward_hook(lambda _, __, output, name=name: shapes.__setitem__(name, tuple(output.shape[1:])))
    with torch.inference_mode():
        model(blank_images(model, image_size))
    modules = dict(model.named_modules())
    costs = []
    for name, layer in weight_layers(model):
        norm = modules.get(name.removesuffix("conv") + "bn") if name.endswith(".conv") else None
        parameters = count_parameters(layer) + (count_parameters(norm) if norm else 0)
        positions = math.prod(shapes[name][1:])  # height × width; 1 for a linear layer
        costs.append(LayerCost(name, parameters, layer.weight.numel() * positions, shapes[name]))
    return costs


def count_macs(model: nn.Module, image_size: int | None = None) -> int:
    """Multiply-accumulate operations for one image; ``image_size`` defaults to what the model was trained for."""
    model = as_network(model, only_measured=True)
    return sum(cost.macs for cost in layer_costs(model, image_size))


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the parameters at FP32: 4 each."""
    return 4 * count_parameters(model)


def checkpoint_bytes(model: nn.Module, precision: str = "fp16") -> int:
    """Bytes of the file that ``save_model`` writes, measured by writing it; see ``checkpoint_contents``."""
    return len(checkpoint_contents(model, precision))


def checkpoint_contents(model: nn.Module, precision: str = "fp16") -> bytes:
    """The file that ``save_model`` writes, but for the names of pruned layers: a note for training, no part of the net.

    So a file with zeros is as large as one without, to the byte.
    """
    if getattr(model, "pruned_layers", None):
        model = copy_model(model)
        del model.pruned_layers
    with tempfile.TemporaryDirectory() as folder:
        return save_model(model, Path(folder) / "model.pt", precision).read_bytes()


def quantized_bytes(model: nn.Module) -> int | None:
    """Bytes of a model with quantized layers: its integers at their width, all other numbers at FP32; else ``None``.

    Without entropy coding, which ``packed_sizes`` counts.
    """
    layers = [layer for _, layer in weight_layers(model) if hasattr(layer, "weight_grid")]
    weights = [(layer.weight.numel(), layer.weight_grid) for layer in layers]
    if not weights:
        return None
    floats = count_parameters(model) + sum(grid.scale.numel() - count for count, grid in weights)
    return 4 * floats + sum(math.ceil(count * grid.bits / 8) for count, grid in weights)
