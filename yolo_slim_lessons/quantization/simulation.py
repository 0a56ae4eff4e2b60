"""A classifier whose activations lie on grids: its forward pass follows the graph of the network. Used in lesson 05.

The blocks of Ultralytics add tensors without a module in which a sum could be clamped to its grid. So a quantized model
runs the nodes of its graph, with the very layers of its blocks. Leaves out: arithmetic on integers (``execution``).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.data import as_floats
from yolo_slim_lessons.graph import Execution, Graph, Node, trace
from yolo_slim_lessons.models import copy_model, device_of, weight_layers
from yolo_slim_lessons.quantization.layers import QuantizedLayer
from yolo_slim_lessons.quantization.points import ActivationTensor, activation_tensors


class Simulation(Execution):
    """The computation with rounded numbers: sums are clamped to their grid, where they have one."""

    def sum(self, node: Node, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        clamped = self.modules.get(node.name)
        return first + second if clamped is None else clamped(first, second)


class QuantizedModel(ClassificationModel):
    """What ``quantize_integer`` makes with ``activation_bits``; it answers like any classifier of Ultralytics."""

    graphs: dict[tuple[int, int], Graph]  # by height and width of the images

    @classmethod
    def of(cls, model: ClassificationModel, image_size: tuple[int, int]) -> QuantizedModel:
        """``model`` itself, which already holds quantized layers, as a model of this class."""
        model.__class__ = cls
        model.graphs = {image_size: trace(model, image_size)}
        return model

    @property
    def tensors(self) -> list[ActivationTensor]:
        """What lies on one grid each, the image first."""
        return activation_tensors(next(iter(self.graphs.values())))

    def graph(self, image_size: tuple[int, int]) -> Graph:
        """The graph for images of that height and width."""
        if image_size not in self.graphs:
            self.graphs[image_size] = trace(self, image_size)
        return self.graphs[image_size]

    def predict(self, x: torch.Tensor, *_, **__) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """(probabilities, logits), or in training mode logits alone, of images N×C×H×W."""
        scores = Simulation(self).run(self.graph(tuple(x.shape[-2:])), x)
        return scores if self.training else (scores.softmax(1), scores)


def graph_of(model: nn.Module, images: torch.Tensor) -> Graph:
    """The graph of any network for images N×C×H×W."""
    size = tuple(images.shape[-2:])
    return model.graph(size) if isinstance(model, QuantizedModel) else trace(model, size)


@torch.inference_mode()
def simulated_outputs(
    model: QuantizedModel,
    images: torch.Tensor,
    dtype: torch.dtype = torch.float32,
    follow: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """The same integers as from ``integer_outputs``, read off the simulation.

    Args:
        model: as for ``run_integer``.
        images: likewise.
        dtype: of the floats, ``torch.float32`` or ``torch.float64``.
        follow: the result of ``integer_outputs``. Each layer then reads these instead of what the simulation made one
            layer earlier, so that the outcome shows each layer's own differences and not those of all before it.

    Returns:
        Layer name → integers; of the last layer its sums, float64, for in float32 they are not always whole.
    """
    check_integers(model)
    images = (as_floats(images) if images.dtype == torch.uint8 else images).to(device_of(model), dtype)
    walk = _Reading(copy_model(model).to(dtype), model.graph(tuple(images.shape[-2:])), follow)
    walk.run(walk.graph, images)
    return walk.outputs


class _Reading(Simulation):
    """The simulation; notes what integers each layer puts out, and goes on with those of ``follow``, if given."""

    def __init__(self, model: QuantizedModel, graph: Graph, follow: Mapping[str, torch.Tensor] | None):
        super().__init__(model)
        self.graph, self.follow = graph, follow
        self.outputs: dict[str, torch.Tensor] = {}

    def activation(self, node: Node, x: torch.Tensor) -> torch.Tensor:
        grid, layer = self.modules[node.name].output_grid, self.graph.nodes[node.inputs[0]].name
        result = self.layer(node, x)
        self.outputs[layer] = grid.quantize(result).to(grid.dtype)
        return result if self.follow is None else grid.dequantize(self.follow[layer])

    def linear(self, node: Node, x: torch.Tensor) -> torch.Tensor:
        result = self.layer(node, x)
        self.outputs[node.name] = result.double() / self.modules[node.name].accumulator_scale
        return result


def check_integers(model: nn.Module) -> None:
    """Raise ``ValueError`` unless all layers and activations of ``model`` are quantized."""
    layers = [layer for _, layer in weight_layers(model)] if isinstance(model, QuantizedModel) else [None]
    if not all(isinstance(layer, QuantizedLayer) for layer in layers):
        raise ValueError(
            "model computes with floats: expected one from quantize_integer with activation_bits, all layers quantized"
        )
