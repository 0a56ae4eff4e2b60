"""Quantization-aware training: let weights and scales learn while they are rounded (Esser et al., 2020).

Every forward pass rounds; gradients pass the rounding (``straight_through``). What the network should answer, the float
model says: distillation needs few epochs (Polino et al., 2018). Used in lesson 05. Leaves out: BatchNorm, which is
folded before training, so that what is trained is what will run; and training in 16 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real

import torch
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.agreement import join_data
from yolo_slim_lessons.data import ImageData, Split
from yolo_slim_lessons.distillation import distill
from yolo_slim_lessons.models import as_classifier, weight_layers
from yolo_slim_lessons.quantization import QuantizedLayer, quantize_integer
from yolo_slim_lessons.quantization.few_bits.pairs import float_original
from yolo_slim_lessons.quantization.few_bits.straight_through import RoundedWeight, finished, trainable

CALIBRATION_IMAGES = 512


def train_quantized(
    model: ClassificationModel,
    data: ImageData,
    bits: int | Mapping[str, int],
    activation_bits: int | None = None,
    epochs: int = 2,
    *,
    teacher: ClassificationModel | None = None,
    temperature: float = 4.0,
    alpha: float = 0.9,
    learning_rate: float = 5e-4,
    weight_decay: float = 0.0,
    bit_price: float = 0.0,
    widen: float = 1.0,
    calibration: Split | torch.Tensor | None = None,
    quantize_options: Mapping[str, object] | None = None,
    on_epoch: Callable[[int, float, float, ClassificationModel], None] | None = None,
    **fit_options,
) -> ClassificationModel:
    """Quantize ``model`` to few bits, train it in that state, and return an ordinary quantized model.

    Weights are kept as floats and rounded anew in each step. The scales of weights and activations are learned along,
    from those that ``quantize_integer`` finds; zero points stay.

    Args:
        model: a float classifier; it is left alone.
        data: what ``fit`` learns from.
        bits: of the weights, as for ``quantize_integer``.
        activation_bits: of the activations, likewise; ``None`` leaves them in float.
        epochs: how often each training image is seen.
        teacher: what to distil from; ``None`` takes ``model`` itself. Larger ones do, too.
        temperature: as for ``distill``.
        alpha: share of the teacher's answers in the loss; the rest are the labels.
        learning_rate: the highest of the cycle; lower than for training from random weights.
        weight_decay: AdamW's.
        bit_price: what each bit of the entropy-coded weights adds to the loss, such as 1e-7. Weights then gather at
            zero and scales widen, so that a ``.slim`` file needs fewer bits than ``bits`` (after Oktay et al., 2020).
        widen: what the weights' scales are multiplied by at the start. With 2.0 most weights share three marks, and the
            few large ones are not cut off: entropy-coded, 3 bits then take the bytes of 2 and lose less.
        calibration: images for the first ranges; ``None`` takes 512 of ``data.train``.
        quantize_options: whatever else ``quantize_integer`` takes, such as ``{"granularity": "tensor"}``.
        on_epoch: called after each epoch with its number, the mean loss, top-1 on ``val`` and the quantized model.
        **fit_options: whatever else ``fit`` takes, such as ``batch_size``, ``seed`` and ``checkpoint``.

    Returns:
        A new model in eval mode, as if from ``quantize_integer``: ``run_integer`` and ``save_packed`` take it.

    Raises:
        ValueError: what ``quantize_integer``, ``distill`` or ``fit`` objects to, or ``bfloat16=True``.
        TypeError: ``model`` is no classifier.

    Example:
        >>> import yolo_slim_lessons as slim
        >>> data = slim.load_images("fashion-mnist").take(train=200, val=100)
        >>> small = slim.train_quantized(slim.load_model("nano"), data, bits=3, epochs=1, progress=False)
    """
    model = as_classifier(model)
    data = join_data(model, data)
    if fit_options.get("bfloat16"):
        raise ValueError("bfloat16=True would round what is rounded already: expected bfloat16=False")
    if isinstance(bit_price, bool) or not isinstance(bit_price, Real) or not 0 <= bit_price < math.inf:
        raise ValueError(f"bit_price={bit_price!r}: expected 0 or more, such as 1e-7")
    if isinstance(widen, bool) or not isinstance(widen, Real) or not 0 < widen < math.inf:
        raise ValueError(f"widen={widen!r}: expected a number above 0, such as 2.0")
    if calibration is None and activation_bits is not None:
        calibration = data.train.take(min(CALIBRATION_IMAGES, len(data.train)))
    quantized = quantize_integer(model, bits, activation_bits, calibration, warn=False, **(quantize_options or {}))
    original = float_original(quantized, model)
    _widen(quantized, original, widen)
    learner = trainable(quantized, original, lambda grid, weight: RoundedWeight(grid, weight, bit_price))
    report = None
    if on_epoch:

        def report(epoch, mean_loss, top1, trained):
            on_epoch(epoch, mean_loss, top1, finished(trained, quantized))

    trained = distill(
        learner,
        original if teacher is None else teacher,
        data,
        temperature,
        alpha,
        epochs,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        on_epoch=report,
        **fit_options,
    )
    return finished(trained, quantized)


def _widen(quantized: ClassificationModel, original: ClassificationModel, factor: float) -> None:
    """Multiply the scales of all quantized weights, in place, and round the float weights to them anew."""
    weights = {name: layer.weight for name, layer in weight_layers(original)}
    for name, layer in weight_layers(quantized):
        if isinstance(layer, QuantizedLayer):
            layer.weight_grid = layer.weight_grid.with_scale((factor * layer.weight_grid.scale).bfloat16().float())
            layer.set_integers(layer.weight_grid.quantize(weights[name]), layer.bias)
