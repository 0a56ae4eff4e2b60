"""fit(): the one training loop of the course, with a progress bar.

Fine-tuning, recovery after pruning and distillation all run through it; they differ in the loss they pass.
It works on the device of the model. Used in lessons 01, 03, 04 and 07. Leaves out: several devices and logging
services; for those, Ultralytics' own trainer does the work (``ultralytics_trainer.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.nn import functional as F
from torchvision.transforms import v2
from tqdm.auto import tqdm
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.agreement import check_image_size, join_data
from yolo_slim_lessons.data import ImageData, Split, as_floats
from yolo_slim_lessons.data.splits import batch_places
from yolo_slim_lessons.files import fingerprint
from yolo_slim_lessons.models import as_classifier, input_format, logits, not_finite
from yolo_slim_lessons.training.augmentation import AUGMENTATIONS, blending
from yolo_slim_lessons.training.checks import (
    check_class_weights,
    check_image_sizes,
    check_model_and_data,
    check_numbers,
)
from yolo_slim_lessons.training.options import (
    frozen_names,
    image_shares,
    plain,
    random_order,
    size_in_epoch,
    train_mode,
)
from yolo_slim_lessons.training.state import TrainingState

VALIDATED_AT_ONCE = 256  # images of up to 64 px
VALIDATED_PIXELS = VALIDATED_AT_ONCE * 64**2  # of larger ones fewer, as their features would take gigabytes

# Small pictures, of which there are many, and photographs, of which there are few and a network that knows others.
PICTURES = {"learning_rate": 2e-3, "batch_size": 128}
PHOTOGRAPHS = {"learning_rate": 5e-4, "batch_size": 32}

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def label_loss(scores: torch.Tensor, labels: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Cross-entropy between logits (N×classes) and labels (N, or N×classes).

    ``images`` (N×3×H×W) is what other losses look at.
    """
    return F.cross_entropy(scores, labels)


def fit(
    model: ClassificationModel,
    data: ImageData,
    epochs: int,
    *,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    weight_decay: float = 0.05,
    augment: bool | str = True,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    average: float = 0.0,
    class_weights: str | Sequence[float] | None = None,
    frozen: int | Sequence[str] = 0,
    image_sizes: Sequence[int] | None = None,
    bfloat16: bool = False,
    loss: Loss = label_loss,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    on_epoch: Callable[[int, float, float, ClassificationModel], None] | None = None,
    progress: bool = True,
) -> ClassificationModel:
    """Train a copy of ``model`` on ``data.train`` and return it in eval mode.

    AdamW (Loshchilov & Hutter, 2019) with a one-cycle learning rate (Smith & Topin, 2018). Weights that
    ``prune_weights`` made zero stay zero. With ``average``, what is validated and returned is a running average of
    the weights, and the learning rate rises and stays: many good places of a plain have their mean in its middle
    (Izmailov et al., 2018).

    Args:
        model: what to start from, in float32, on the device where to train; it is left alone. What is returned says
            that it was trained for the image size of ``data``.
        data: its ``train`` is learned, its ``val`` is looked at after every epoch; ``test`` is not touched. Its classes
            are those of ``model``, in any order.
        epochs: how often each training image is seen.
        learning_rate: the highest of the cycle; with ``average``, of all steps but the first ones. ``None`` takes
            0.002, or 0.0005 with ``augment="photographs"``: what starts from pretrained weights has much to forget.
        batch_size: images per step; ``None`` takes 128, or 32 with ``augment="photographs"``, which are larger.
        weight_decay: AdamW's, on weights of two and more dimensions only.
        augment: ``True``: mirror, shift and partly erase training images at random. ``"photographs"``: mirror, scale a
            part of at least half their area to full size, change brightness, saturation and contrast, and partly erase
            them. ``False``: leave them as they are.
        mixup: blend pairs of images and of their labels, in shares drawn from Beta(``mixup``, ``mixup``)
            (Zhang et al., 2018); 0 blends nothing. With it, ``loss`` gets labels as probabilities, N×classes.
        cutmix: paste a rectangle of one image into another, and blend their labels by its area (Yun et al., 2019);
            areas and ``loss`` as for ``mixup``. With both, each batch gets one of the two at random.
        average: share of the old average that stays in each step, such as 0.9995; 0 averages nothing.
        class_weights: for classes of unequal size: how often images of each are seen beside the others, one number for
            each class of ``model``. ``"balanced"`` shows all classes equally often, an image of a rare one several
            times in an epoch (Buda et al., 2018); ``None`` shows each image once. Serves every loss.
        frozen: what stays as it is: a number of blocks, counted from the image, or names of modules. Their BatchNorm
            keeps its statistics, too. Below the first layer that learns, no gradients are computed, which is quicker.
        image_sizes: pixels a side, each for an equal part of the epochs, such as ``(128, 176, 224)``: smaller images
            at the beginning take less time (Tan & Le, 2021). ``None`` is the size of ``data`` throughout, which is the
            one that ``val`` is looked at with anyway.
        bfloat16: mixed precision: multiply in 16 bits while training, which is faster on graphics cards and processors
            that know that format (x86 with AVX512-BF16 or AMX) and slower elsewhere. Weights and ``val`` stay at
            32 bits.
        loss: called with logits, labels and float images; returns a scalar. A checkpoint knows it by its attribute
            ``settings``, a dictionary, if it has one, else by its name.
        seed: of the order of images and the augmentation.
        checkpoint: a file written after every epoch. If it exists, training goes on from it, and a finished one
            returns at once. It knows the weights, images and labels that it began with.
        on_epoch: called after each epoch with its number (from 1), the mean training loss, top-1 on ``val`` and
            the model in eval mode.
        progress: show a progress bar.

    Raises:
        ValueError: a number is out of range, ``model`` has other classes than ``data`` or is not in float32,
            ``checkpoint`` is damaged, of an older version or of another training, or the loss or a weight became NaN or
            infinite (with the epoch; the checkpoint of the epoch before stays).
        TypeError: ``model`` is no classifier, or ``frozen`` neither a number nor names.

    Example:
        >>> import yolo_slim_lessons as slim
        >>> data = slim.load_images("fashion-mnist").take(train=200, val=100)
        >>> start = slim.load_model("nano")
        >>> tuned = slim.fit(start, data, 1, augment="photographs", class_weights="balanced", frozen=8, progress=False)
        >>> tuned.model[7].conv.weight.equal(start.model[7].conv.weight)
        True
    """
    model = as_classifier(model)
    defaults = PHOTOGRAPHS if augment == "photographs" else PICTURES
    learning_rate = defaults["learning_rate"] if learning_rate is None else learning_rate
    batch_size = defaults["batch_size"] if batch_size is None else batch_size
    settings = {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "weight_decay": weight_decay,
        "augment": augment,
        "mixup": mixup,
        "cutmix": cutmix,
        "average": average,
        "class_weights": plain(class_weights),
        "frozen": frozen_names(model, frozen) or None,
        "image_sizes": plain(image_sizes),
        "bfloat16": bfloat16,
        "seed": seed,
        "loss": _description(loss),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    check_numbers(settings)
    check_class_weights(settings["class_weights"], len(model.names))
    data = join_data(model, data)
    check_model_and_data(model, data, all_labelled=loss is label_loss)
    check_image_size(model, data.train.height_width, "data", "the trained model will be one for these")
    check_image_sizes(settings["image_sizes"], data.image_size, epochs)
    settings["images"] = len(data.train)
    if checkpoint:
        settings |= {"start": fingerprint(model), "train": data.train.fingerprint()}
    steps = sum(1 for _ in batch_places(len(data.train), batch_size, merge_single=True))
    state = TrainingState(model, settings, steps)
    state.note_image_size(data.image_size)
    validation_batch = max(1, min(VALIDATED_AT_ONCE, VALIDATED_PIXELS // data.image_size**2))
    blend = blending(mixup, cutmix, len(data.class_names))
    shares = image_shares(data.train.labels, settings["class_weights"])

    with torch.random.fork_rng(), tqdm(total=epochs * steps, desc="train", disable=not progress, leave=False) as bar:
        torch.manual_seed(seed)
        first_epoch = state.resume(checkpoint) if checkpoint else 0
        bar.update(first_epoch * steps)
        for epoch in range(first_epoch, epochs):
            order, size = random_order(len(data.train), shares), size_in_epoch(settings["image_sizes"], epoch, epochs)
            mean_loss = _train_epoch(state, data.train, order, size, loss, blend, bar)
            if not math.isfinite(mean_loss) or not_finite(state.result):
                raise ValueError(
                    f"loss or weights became NaN or infinite in epoch {epoch + 1} of {epochs} at "
                    f"learning_rate={learning_rate!r}: the steps were too large, so try a tenth of it"
                )
            top1 = top1_accuracy(state.result.eval(), data.val, validation_batch)
            bar.set_postfix(epoch=epoch + 1, loss=f"{mean_loss:.3f}", val=f"{top1:.1%}")
            if checkpoint:
                state.save(checkpoint, epoch + 1)
            if on_epoch:
                on_epoch(epoch + 1, mean_loss, top1, state.result)
    # In PyTorch's usual memory format again, so that its speed compares with that of the model it came from.
    return state.result.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)


def _train_epoch(
    state: TrainingState,
    train: Split,
    order: torch.Tensor,
    size: int | None,
    loss: Loss,
    blend: Callable | None,
    bar: tqdm,
) -> float:
    """See the images of ``train`` in this ``order``, at this ``size`` or their own; returns the mean loss."""
    train_mode(state.model, state.frozen)
    total_loss = 0.0
    settings, what = state.settings, input_format(state.model) | {"dtype": torch.uint8}
    augment = AUGMENTATIONS[settings["augment"]]
    for images, labels in train.batches(settings["batch_size"], order=order, merge_single=True, **what):
        images = images if size is None else v2.functional.resize(images, size)
        images = as_floats(augment(images))
        if blend:
            images, labels = blend(images, labels)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=settings["bfloat16"]):
            scores = logits(state.model, images)
        batch_loss = loss(scores.float(), labels, images)
        state.step(batch_loss)
        total_loss += batch_loss.item() * len(images)
        if not math.isfinite(total_loss):
            break
        bar.update()
    return total_loss / len(train)


@torch.inference_mode()
def top1_accuracy(model: ClassificationModel, split: Split, batch_size: int = VALIDATED_AT_ONCE) -> float:
    """Share of ``split`` that the model gets right, 0…1. For intervals and more, see ``measurement.evaluate``."""
    batches = split.batches(batch_size, **input_format(model))
    return sum((logits(model, images).argmax(1) == labels).sum().item() for images, labels in batches) / len(split)


def _description(loss: Loss) -> dict | str | None:
    """What a checkpoint knows ``loss`` by; ``None`` for ``label_loss``, which is what one without an entry means."""
    if loss is label_loss:
        return None
    return getattr(loss, "settings", None) or getattr(loss, "__qualname__", type(loss).__qualname__)
