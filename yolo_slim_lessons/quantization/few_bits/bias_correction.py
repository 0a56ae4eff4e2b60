"""Rounding shifts the mean of what a layer puts out; its bias can take that back (Nagel et al., 2019).

The error of a weight is fixed once it is rounded. Times inputs that are positive on average, as those behind an
activation function are, it does not average out: every channel is off by a constant. So it is with rounded
activations where much of an image is one colour. It can also do harm. On the shipped model it helped with 8 bits for
weights and activations, and with one scale for a whole layer; it hurt at 3 and 4 bits. So measure on ``val``.

Used in lesson 05. Leaves out: cross-layer equalization of the same paper, which SiLU does not allow.
"""

from __future__ import annotations

import torch
from torch import nn

from yolo_slim_lessons.data import Split
from yolo_slim_lessons.graph import Execution, Node
from yolo_slim_lessons.models import as_network, copy_model
from yolo_slim_lessons.quantization import QuantizedLayer
from yolo_slim_lessons.quantization.few_bits.pairs import float_original
from yolo_slim_lessons.quantization.few_bits.stored_activations import StoredActivations, stored_images
from yolo_slim_lessons.quantization.simulation import Simulation, graph_of


@torch.no_grad()
def correct_biases(quantized: nn.Module, model: nn.Module, calibration: Split | torch.Tensor) -> nn.Module:
    """Shift biases so that on ``calibration`` every channel of every layer has its float mean again, in a copy.

    Layers are corrected from first to last, and each sees the inputs that the corrected ones before it make: so the
    mean error of activations, too, is taken back. A bias that was missing is added.

    Args:
        quantized: from ``quantize_integer``; it is left alone.
        model: the float model it came from.
        calibration: some hundred training images; labels are not looked at. A ``Split``, or a tensor N×C×H×W.

    Returns:
        A new model; its integers are those of ``quantized``.

    Raises:
        ValueError: the models do not belong together, or there is no image, or NaN in one.
        TypeError: an argument is of another kind.

    Example:
        >>> import yolo_slim_lessons as slim
        >>> rounded = slim.quantize_integer(model, bits=4, granularity="tensor")
        >>> corrected = slim.correct_biases(rounded, model, data.train.take(64))
    """
    quantized = as_network(quantized, "quantized")
    model = as_network(model)
    original = float_original(quantized, model)
    images = stored_images(calibration, original)
    means, graph = _ChannelMeans(original), graph_of(original, images[:1])
    for batch in images:
        means.run(graph, batch)
    corrected = copy_model(quantized).eval()
    _Correction(corrected, means.of_all(), images).run(graph_of(corrected, images[:1]), images)
    return corrected


def channel_sums(out: torch.Tensor) -> tuple[torch.Tensor, int]:
    """(Sum over images and positions of each channel, float64, C; how many numbers each is the sum of)."""
    return out.sum([0, *range(2, out.dim())], dtype=torch.float64), out[:, 0].numel()


class _ChannelMeans(Execution):
    """The computation itself; adds up what convolutions and linear layers put out."""

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.sums: dict[str, tuple[torch.Tensor, int]] = {}

    def conv(self, node: Node, x: torch.Tensor) -> torch.Tensor:
        out = self.layer(node, x)
        before, count = self.sums.get(node.name, (0, 0))
        sums, new = channel_sums(out)
        self.sums[node.name] = before + sums, count + new
        return out

    linear = conv

    def of_all(self) -> dict[str, torch.Tensor]:
        """Mean of each channel of each layer, float64, over all images so far."""
        return {name: sums / count for name, (sums, count) in self.sums.items()}


class _Correction(Simulation):
    """The quantized model, node by node for all images; each layer is corrected, in place, before the next reads it."""

    def __init__(self, model: nn.Module, means: dict[str, torch.Tensor], images: StoredActivations):
        super().__init__(model)
        self.means, self.count, self.batch_size = means, images.count, images.batch_size

    def visit(self, node: Node, *values: StoredActivations) -> StoredActivations:
        made = StoredActivations(self.count, self.batch_size)
        for batches in zip(*values, strict=True):
            made.append(super().visit(node, *batches))
        layer = self.modules.get(node.name)
        if not isinstance(layer, QuantizedLayer):
            return made
        sums, counts = zip(*map(channel_sums, made), strict=True)
        shift = (self.means[node.name] - sum(sums) / sum(counts)).to(layer.weight_grid.scale.dtype)
        before = torch.zeros_like(shift) if layer.bias is None else layer.bias.clone()
        layer.set_integers(layer.integers, before + shift)
        change = (layer.bias - before).view(-1, *[1] * (made[:1].dim() - 2))
        return StoredActivations.of((batch + change for batch in made), self.count, self.batch_size)
