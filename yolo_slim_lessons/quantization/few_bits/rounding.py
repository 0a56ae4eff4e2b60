"""Round up or down so that layers err together as little as possible, not each weight for itself.

The nearest integer is best for a single weight, but in what a layer puts out errors add up, and one weight rounded the
wrong way can cancel those of its neighbours. Which of two neighbouring integers each weight gets is learned from
unlabelled images (AdaRound: Nagel et al., 2020), block by block (BRECQ: Li et al., 2021).
Used in lesson 05. Leaves out: changing weights by more than one step, and scales; for those, ``train_quantized``.
"""

from __future__ import annotations

import torch
from torch import nn
from tqdm.auto import tqdm

from yolo_slim_lessons.arguments import check_positive_integer
from yolo_slim_lessons.data import Split
from yolo_slim_lessons.graph import Execution, Graph
from yolo_slim_lessons.models import as_network
from yolo_slim_lessons.quantization import IntegerGrid, QuantizedLayer
from yolo_slim_lessons.quantization.few_bits.pairs import float_original
from yolo_slim_lessons.quantization.few_bits.stored_activations import StoredActivations, stored_images
from yolo_slim_lessons.quantization.few_bits.straight_through import finished, trainable
from yolo_slim_lessons.quantization.simulation import Simulation, graph_of

STRETCH = -0.1, 1.1  # a sigmoid never arrives at 0 or 1; stretched and clipped it does
WARM_UP = 0.2  # share of the steps without pressure to decide
SHARPNESS = 20.0, 2.0  # of that pressure at its beginning and at its end


def learn_rounding(
    quantized: nn.Module,
    model: nn.Module,
    calibration: Split | torch.Tensor,
    *,
    steps: int = 300,
    batch_size: int = 32,
    learning_rate: float = 1e-2,
    pressure: float = 1.0,
    seed: int = 0,
    progress: bool = True,
) -> nn.Module:
    """Choose for each weight whether it is rounded up or down, in a copy of ``quantized``.

    Block by block, from first to last, the output of the quantized block on quantized inputs is brought near that of
    the float block on float inputs. Meanwhile each weight lies anywhere between its two integers; a growing penalty
    makes it decide.

    Args:
        quantized: from ``quantize_integer``, with or without quantized activations; it is left alone. A classifier, or
            another network that ``graph.trace`` understands; what has one number in its name is a block.
        model: the float model it came from.
        calibration: some hundred training images; labels are not looked at. A ``Split``, or a tensor N×3×H×W.
        steps: for each block.
        batch_size: images in a step.
        learning_rate: Adam's.
        pressure: weight of the penalty on being undecided, against the error as a share of the output's variance.
        seed: of the choice of images.
        progress: show a progress bar.

    Returns:
        A new model; its grids and biases are those of ``quantized``.

    Raises:
        ValueError: the models do not belong together, a number is out of range, or there is no image, or NaN in one.
        TypeError: an argument is of another kind.

    Example:
        >>> import yolo_slim_lessons as slim
        >>> calibration = data.train.take(64)
        >>> nearest = slim.quantize_integer(model, bits=4, activation_bits=8, calibration=calibration)
        >>> learned = slim.learn_rounding(nearest, model, calibration, steps=10, progress=False)
    """
    quantized = as_network(quantized, "quantized")
    model = as_network(model)
    check_positive_integer("steps", steps)
    check_positive_integer("batch_size", batch_size)
    for name, value in (("learning_rate", learning_rate), ("pressure", pressure)):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name}={value!r}: expected a number above 0")
    original = float_original(quantized, model)
    learner = trainable(quantized, original, SoftRounding).requires_grad_(False)
    images = stored_images(calibration, original)
    graph = graph_of(quantized, images[:1])
    blocks = list(graph.blocks())
    exact, rounded = _Blocks(Execution(original), graph, images), _Blocks(Simulation(learner), graph, images)
    random = torch.Generator().manual_seed(seed)
    with tqdm(total=steps * len(blocks), desc="learn rounding", disable=not progress, leave=False) as bar:
        for _, nodes in blocks:
            exact.compute(nodes)
            layers = [rounded.walk.modules.get(graph.nodes[position].name) for position in nodes]
            roundings = [layer.rounding for layer in layers if isinstance(layer, QuantizedLayer)]
            if roundings:
                _learn(roundings, rounded, exact, nodes, steps, batch_size, learning_rate, pressure, random, bar)
            bar.update(steps * (not roundings))
            rounded.compute(nodes)
    return finished(learner, quantized)


class _Blocks:
    """A network that is computed block by block, for all images, with what later blocks read kept on the way."""

    def __init__(self, walk: Execution, graph: Graph, images: StoredActivations):
        self.walk, self.graph, self.kept = walk, graph, {0: images}
        self.count, self.batch_size = images.count, images.batch_size

    def outputs(self, nodes: range) -> list[int]:
        """Positions of the nodes of a block that later ones read; of the last block, the logits."""
        readers = self.graph.readers()
        return [node for node in nodes if node == self.graph.output or any(r not in nodes for r in readers[node])]

    def batch(self, nodes: range, images: torch.Tensor | slice) -> dict[int, torch.Tensor]:
        """What a block puts out for these images, from what is kept of the blocks before."""
        values = {position: kept[images] for position, kept in self.kept.items()}
        wanted = [node for node in self.outputs(nodes) if node <= self.graph.output]
        for position in nodes:
            if position <= max(wanted):
                node = self.graph.nodes[position]
                values[position] = self.walk.visit(node, *(values[read] for read in node.inputs))
        return {position: values[position] for position in wanted}

    @torch.no_grad()
    def compute(self, nodes: range) -> None:
        """Keep what a block puts out, and let go what nobody reads any more."""
        made = {position: StoredActivations(self.count, self.batch_size) for position in self.outputs(nodes)}
        for start in range(0, self.count, self.batch_size):
            for position, batch in self.batch(nodes, slice(start, start + self.batch_size)).items():
                made[position].append(batch)
        readers = self.graph.readers()
        self.kept = {
            position: kept
            for position, kept in (self.kept | made).items()
            if position in made or any(reader >= nodes.stop for reader in readers[position])
        }


class SoftRounding(nn.Module):
    """Between the two integers around each weight: 0 is the lower, 1 the upper one.

    A sigmoid of ``logits``, stretched and clipped, is how far each weight is up; at first where it was. ``decided``
    says whether weights lie on integers now.
    """

    def __init__(self, grid: IntegerGrid, weight: torch.Tensor):
        super().__init__()
        self.grid, self.decided = grid, False
        scale = grid.scale.view(-1, *[1] * (weight.dim() - 1))
        scaled = weight.detach() / scale
        self.register_buffer("scale", scale)
        self.register_buffer("floor", scaled.floor())
        low, high = STRETCH
        self.logits = nn.Parameter(torch.logit((scaled - self.floor - low) / (high - low)))

    def up(self) -> torch.Tensor:
        """How far each weight is up, 0…1."""
        if self.decided:
            return (self.logits >= 0).float()
        low, high = STRETCH
        return (self.logits.sigmoid() * (high - low) + low).clamp(0, 1)

    def penalty(self, sharpness: float) -> torch.Tensor:
        """0 if all weights have decided, 1 if none has; the sharper, the more it is for the decided ones alone."""
        return (1 - (2 * self.up() - 1).abs() ** sharpness).mean()

    def forward(self) -> torch.Tensor:
        """The numbers to compute with."""
        shape = self.scale.shape
        low, high = ((end - self.grid.zero_point).view(shape) for end in (self.grid.lowest, self.grid.highest))
        return (self.floor + self.up()).clamp(low, high) * self.scale

    def integers(self, grid: IntegerGrid) -> torch.Tensor:
        """Those that were decided for."""
        integers = self.floor + (self.logits >= 0) + grid.zero_point.view(self.scale.shape)
        return integers.clamp(grid.lowest, grid.highest).to(torch.int32)


def _learn(roundings, rounded, exact, nodes, steps, batch_size, learning_rate, pressure, random, bar) -> None:
    """Decide for every weight of a block, in place."""
    optimizer = torch.optim.Adam([rounding.logits.requires_grad_() for rounding in roundings], learning_rate)
    variances = {position: _variance(exact.kept[position]) for position in rounded.outputs(nodes)}
    sharp, blunt = SHARPNESS
    for step in range(steps):
        chosen = torch.randint(rounded.count, (batch_size,), generator=random)
        made = rounded.batch(nodes, chosen)
        errors = [(out - exact.kept[node][chosen]).square().mean() / variances[node] for node, out in made.items()]
        optimizer.zero_grad()
        sum(errors).backward()
        progress = (step / steps - WARM_UP) / (1 - WARM_UP)
        if progress >= 0:
            sharpness = sharp + (blunt - sharp) * progress
            for rounding in roundings:  # one at a time, for each keeps several times its size for its gradient
                (pressure * rounding.penalty(sharpness) / len(roundings)).backward()
        optimizer.step()
        bar.update()
    for rounding in roundings:  # a gradient takes as much memory as a weight, and a decision a quarter
        rounding.decided = True
        rounding.logits = nn.Parameter(rounding.logits.detach().sign().to(torch.int8), requires_grad=False)


def _variance(outputs: StoredActivations) -> torch.Tensor:
    """How much each number varies over the images, the mean over all numbers."""
    mean = sum(batch.sum(0) for batch in outputs) / len(outputs)
    squares = sum((batch - mean).square().sum() for batch in outputs)
    return (squares / (len(outputs) * mean.numel())).clamp_min(1e-12)
