"""Round up or down so that layers err together as little as possible, not each weight for itself.

To the nearest integer is best for every single weight, but not for what a layer puts out, where errors add up:
rounding one weight the wrong way can cancel the errors of its neighbours. Which of the two neighbouring integers each
weight gets is learned from unlabelled images (AdaRound: Nagel et al., 2020), block by block (BRECQ: Li et al., 2021).
Used in lesson 05. Leaves out: changing weights by more than one step, and scales; for those, ``train_quantized``.
"""

from __future__ import annotations

import torch
from torch import nn
from tqdm.auto import tqdm
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.data import Split
from yolo_slim_lessons.quantization import IntegerGrid
from yolo_slim_lessons.quantization.few_bits.pairs import all_images, float_original
from yolo_slim_lessons.quantization.few_bits.straight_through import TrainableLayer, finished, trainable

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
            an ``nn.Sequential``, whose members are the blocks.
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
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: expected a positive integer")
    for name, value in (("learning_rate", learning_rate), ("pressure", pressure)):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name}={value!r}: expected a number above 0")
    original = float_original(quantized, model)
    if not isinstance(quantized, ClassificationModel | nn.Sequential):
        raise TypeError(f"quantized is a {type(quantized).__name__}: expected a classifier or an nn.Sequential")
    learner = trainable(quantized, original, SoftRounding).requires_grad_(False)
    blocks = list(zip(*(_blocks(each) for each in (learner, original)), strict=True))
    rounded = exact = all_images(calibration)
    random = torch.Generator().manual_seed(seed)
    with tqdm(total=steps * len(blocks), desc="learn rounding", disable=not progress, leave=False) as bar:
        for block, original_block in blocks:
            exact = _outputs(original_block, exact)
            _learn_block(block, rounded, exact, steps, batch_size, learning_rate, pressure, random, bar)
            rounded = _outputs(block, rounded)
    return finished(learner, quantized)


class SoftRounding(nn.Module):
    """Between the two integers around each weight: 0 is the lower, 1 the upper one.

    Attributes:
        logits: a sigmoid of them, stretched and clipped, is how far each weight is up; at first where it was.
        decided: whether weights lie on integers now.
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

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The numbers to compute with; ``weight`` itself was looked at in the beginning."""
        shape = self.scale.shape
        low, high = ((end - self.grid.zero_point).view(shape) for end in (self.grid.lowest, self.grid.highest))
        return (self.floor + self.up()).clamp(low, high) * self.scale

    def integers(self, weight: torch.Tensor, grid: IntegerGrid) -> torch.Tensor:
        """Those that were decided for."""
        integers = self.floor + (self.logits >= 0) + grid.zero_point.view(self.scale.shape)
        return integers.clamp(grid.lowest, grid.highest).to(torch.int32)


def _learn_block(block, inputs, targets, steps, batch_size, learning_rate, pressure, random, bar) -> None:
    """Decide for every weight of ``block``, in place."""
    roundings = [module.rounding for module in block.modules() if isinstance(module, TrainableLayer)]
    if not roundings:
        bar.update(steps)
        return
    parameters = [rounding.logits.requires_grad_() for rounding in roundings]
    optimizer = torch.optim.Adam(parameters, learning_rate)
    variance = (targets - targets.mean(0)).square().mean().clamp_min(1e-12)
    sharp, blunt = SHARPNESS
    for step in range(steps):
        chosen = torch.randint(len(inputs), (batch_size,), generator=random)
        loss = (_answer(block(inputs[chosen])) - targets[chosen]).square().mean() / variance
        progress = (step / steps - WARM_UP) / (1 - WARM_UP)
        if progress >= 0:
            sharpness = sharp + (blunt - sharp) * progress
            loss = loss + pressure * sum(rounding.penalty(sharpness) for rounding in roundings) / len(roundings)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.update()
    for rounding in roundings:
        rounding.decided = True
        rounding.logits.requires_grad_(False)


def _blocks(model: nn.Module) -> list[nn.Module]:
    return list(model.model if isinstance(model, ClassificationModel) else model)


def _answer(output: torch.Tensor | tuple) -> torch.Tensor:
    """The head of a classifier answers with probabilities and logits; the latter count."""
    return output[1] if isinstance(output, tuple) else output


@torch.no_grad()
def _outputs(block: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([_answer(block(batch)) for batch in images.split(128)])
