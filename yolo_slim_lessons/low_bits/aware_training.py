"""Quantization-aware training: let weights and scales learn while they are rounded (Esser et al., 2020).

Every forward pass rounds; gradients pass the rounding (``straight_through``). The network learns to do without the
levels it does not have. What it should answer, the float model says: distillation needs few epochs (Polino et al.,
2018). Used in lesson 05. Leaves out: BatchNorm, which is folded before training, so that what is trained is what will
run; and training in 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.data import ImageData, Split
from yolo_slim_lessons.distillation import distill
from yolo_slim_lessons.integer_quantization import quantize_integer
from yolo_slim_lessons.low_bits.pairs import float_original
from yolo_slim_lessons.low_bits.straight_through import LearnedGrid, finished, trainable

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
        >>> data = slim.load_images("fashion-mnist").take(train=2_000, val=500)
        >>> small = slim.train_quantized(slim.load_model("nano"), data, bits=3, epochs=1)
    """
    if not isinstance(model, ClassificationModel):
        raise TypeError(f"model is a {type(model).__name__}: expected a classifier, such as load_model() returns")
    if fit_options.get("bfloat16"):
        raise ValueError("bfloat16=True would round what is rounded already: expected bfloat16=False")
    if calibration is None and activation_bits is not None:
        calibration = data.train.take(min(CALIBRATION_IMAGES, len(data.train)))
    quantized = quantize_integer(model, bits, activation_bits, calibration, **(quantize_options or {}))
    original = float_original(quantized, model)
    learner = trainable(quantized, original, lambda grid, weight: LearnedGrid(grid))
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
