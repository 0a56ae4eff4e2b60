"""A classifier whose activations lie on grids: its forward pass follows the graph of the network. Used in lesson 05.

The blocks of Ultralytics add tensors without a module in which a sum could be clamped to its grid. So a quantized model
runs the nodes of its graph, with the very layers that its blocks hold. Leaves out: arithmetic on the integers
themselves (``execution.py``).
"""

from __future__ import annotations

import torch
from torch import nn
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.graph import Execution, Graph, Node, trace
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
