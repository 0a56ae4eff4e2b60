"""fit(): the one training loop of the course, with a progress bar.

Fine-tuning, recovery after pruning and distillation all run through it; they differ in the loss they pass.
Used in lessons 01, 03, 04 and 07. Leaves out: several devices, GPUs, logging services; for those, Ultralytics'
own trainer does the work (``ultralytics_trainer.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms import v2
from tqdm.auto import tqdm
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.data import ImageData, as_floats
from yolo_slim_lessons.files import write_atomically
from yolo_slim_lessons.models import copy_model, logits, weight_layers

WARM_UP_STEPS = 200  # of a learning rate that then stays

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
    learning_rate: float = 2e-3,
    batch_size: int = 128,
    weight_decay: float = 0.05,
    augment: bool = True,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    average: float = 0.0,
    bfloat16: bool = False,
    loss: Loss = label_loss,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    on_epoch: Callable[[int, float, float, ClassificationModel], None] | None = None,
    progress: bool = True,
) -> ClassificationModel:
    """Train a copy of ``model`` on ``data.train`` and return it in eval mode.

    AdamW (Loshchilov & Hutter, 2019) with a one-cycle learning rate (Smith & Topin, 2018). Weights that are exactly
    zero in a layer that was pruned stay zero. With ``average``, what is validated and returned is a running average of
    the weights, and the learning rate rises and stays: many good places of a plain have their mean in its middle
    (Izmailov et al., 2018).

    Args:
        model: what to start from; it is left alone.
        data: its ``train`` is learned, its ``val`` is looked at after every epoch; ``test`` is not touched.
        epochs: how often each training image is seen.
        learning_rate: the highest of the cycle; with ``average``, of all steps but the first ones.
        batch_size: images per step.
        weight_decay: AdamW's, on weights of two and more dimensions only.
        augment: mirror, shift and partly erase training images at random.
        mixup: blend pairs of images and of their labels, in shares drawn from Beta(``mixup``, ``mixup``)
            (Zhang et al., 2018); 0 blends nothing. With it, ``loss`` gets labels as probabilities, N×classes.
        cutmix: paste a rectangle of one image into another, and blend their labels by its area (Yun et al., 2019);
            areas and ``loss`` as for ``mixup``. With both, each batch gets one of the two at random.
        average: share of the old average that stays in each step, such as 0.9995; 0 averages nothing.
        bfloat16: multiply in 16 bits while training, which is faster where the processor knows that format
            (x86 with AVX512-BF16 or AMX) and slower elsewhere. Weights and ``val`` stay at 32 bits.
        loss: called with logits, labels and float images; returns a scalar. A checkpoint knows it by its attribute
            ``settings``, a dictionary, if it has one, else by its name.
        seed: of the order of images and the augmentation.
        checkpoint: a file written after every epoch. If it exists, training goes on from it, and a finished one
            returns at once.
        on_epoch: called after each epoch with its number (from 1), the mean training loss, top-1 on ``val`` and
            the model in eval mode.
        progress: show a progress bar.

    Raises:
        ValueError: a number is out of range, ``model`` has another number of classes than ``data``, or
            ``checkpoint`` is damaged or belongs to another training.
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: expected a positive integer")
    if learning_rate <= 0:
        raise ValueError(f"learning_rate={learning_rate!r}: expected a number above 0")
    for name, value in (("weight_decay", weight_decay), ("mixup", mixup), ("cutmix", cutmix)):
        if value < 0:
            raise ValueError(f"{name}={value!r}: expected 0 or more")
    if not 0 <= average < 1:
        raise ValueError(f"average={average!r}: expected 0 or more, less than 1, such as 0.9995")
    if len(model.names) != len(data.class_names):
        raise ValueError(f"model has {len(model.names)} classes, data has {len(data.class_names)}: they must agree")
    labels = data.train.labels
    if loss is label_loss and len(labels) and not 0 <= labels.min() <= labels.max() < len(model.names):
        raise ValueError(
            f"data.train has labels from {labels.min()} to {labels.max()}: expected 0 to {len(model.names) - 1}; "
            "distill also learns from images without a label (-1)"
        )
    model = copy_model(model).to(memory_format=torch.channels_last).requires_grad_(True)
    keep_zeros = zero_keeper(model)
    settings = {
        "epochs": epochs,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "weight_decay": weight_decay,
        "augment": augment,
        "mixup": mixup,
        "cutmix": cutmix,
        "average": average,
        "bfloat16": bfloat16,
        "seed": seed,
        "loss": _description(loss),
        "images": len(data.train),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    optimizer = _optimizer(model, learning_rate, weight_decay)
    # A single image left over joins the batch before it: BatchNorm cannot learn from one.
    cuts = tuple(range(batch_size, len(data.train) - 1, batch_size))
    steps = len(cuts) + 1
    if average:
        schedule = torch.optim.lr_scheduler.LinearLR(
            optimizer, start_factor=1 / WARM_UP_STEPS, total_iters=WARM_UP_STEPS
        )
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(average), use_buffers=True)
    else:
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, epochs=epochs, steps_per_epoch=steps)
        averaged = None
    blend = _blend(mixup, cutmix, len(data.class_names))
    state = {"model": model, "optimizer": optimizer, "schedule": schedule} | (
        {"averaged": averaged} if averaged else {}
    )
    result = averaged.module if averaged else model

    with torch.random.fork_rng(), tqdm(total=epochs * steps, desc="train", disable=not progress, leave=False) as bar:
        torch.manual_seed(seed)
        first_epoch = _resume(checkpoint, state, settings) if checkpoint else 0
        bar.update(first_epoch * steps)
        for epoch in range(first_epoch, epochs):
            model.train()
            total_loss = 0.0
            for indices in torch.randperm(len(data.train)).tensor_split(cuts):
                batch = data.train[indices]
                images = as_floats(augmented(batch.images) if augment else batch.images)
                images, labels = blend(images, batch.labels) if blend else (images, batch.labels)
                with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                    scores = logits(model, images)
                batch_loss = loss(scores.float(), labels, images)
                optimizer.zero_grad()
                batch_loss.backward()
                optimizer.step()
                schedule.step()
                keep_zeros()
                if averaged:
                    averaged.update_parameters(model)
                total_loss += batch_loss.item() * len(batch)
                bar.update()
            result.eval()
            top1 = top1_accuracy(result, data.val)
            bar.set_postfix(epoch=epoch + 1, loss=f"{total_loss / len(data.train):.3f}", val=f"{top1:.1%}")
            if checkpoint:
                _save_state(checkpoint, state, settings, epoch + 1)
            if on_epoch:
                on_epoch(epoch + 1, total_loss / len(data.train), top1, result)
    # In PyTorch's usual memory format again, so that its speed compares with that of the model it came from.
    return result.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)


def augmented(images: torch.Tensor) -> torch.Tensor:
    """Randomly mirrored, shifted by up to a sixteenth and partly erased copies of uint8 images, N×3×H×W.

    Erasing a rectangle teaches the network not to lean on one detail (Zhong et al., 2020).
    """
    count, _, height, width = images.shape
    reach = height // 16
    padded = F.pad(images, [reach] * 4)
    tops, lefts = torch.randint(2 * reach + 1, (2, count)).tolist()
    erase = v2.RandomErasing(p=0.25, scale=(0.02, 0.2))
    shifted = torch.stack(
        [
            erase(image[:, top : top + height, left : left + width])
            for image, top, left in zip(padded, tops, lefts, strict=True)
        ]
    )
    mirrored = torch.rand(count) < 0.5
    shifted[mirrored] = shifted[mirrored].flip(-1)
    return shifted


@torch.inference_mode()
def top1_accuracy(model: ClassificationModel, split, batch_size: int = 256) -> float:
    """Share of ``split`` that the model gets right, 0…1. For intervals and more, see ``measurement.evaluate``."""
    return sum(
        (logits(model, images).argmax(1) == labels).sum().item() for images, labels in split.batches(batch_size)
    ) / len(split)


def _blend(mixup: float, cutmix: float, class_count: int) -> Callable | None:
    """What makes of images and labels blended images, and labels as probabilities; ``None`` if nothing does."""
    kinds = [
        kind(alpha=alpha, num_classes=class_count) for kind, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix)) if alpha
    ]
    return v2.RandomChoice(kinds) if len(kinds) > 1 else kinds[0] if kinds else None


def _optimizer(model: ClassificationModel, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": weights, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate)


def zero_keeper(model: ClassificationModel) -> Callable[[], None]:
    """A function that sets the weights that are zero now to zero again."""
    zeros = [(layer.weight, layer.weight == 0) for _, layer in weight_layers(model) if (layer.weight == 0).any()]

    @torch.no_grad()
    def keep_zeros() -> None:
        for weight, mask in zeros:
            weight[mask] = 0

    return keep_zeros


def _description(loss: Loss) -> dict | str | None:
    """What a checkpoint knows ``loss`` by; ``None`` for ``label_loss``, which is what one without an entry means."""
    if loss is label_loss:
        return None
    return getattr(loss, "settings", None) or getattr(loss, "__qualname__", type(loss).__qualname__)


def _save_state(checkpoint: str | Path, state: dict, settings: dict, epoch: int) -> None:
    contents = {name: part.state_dict() for name, part in state.items()}
    contents |= {"settings": settings, "epoch": epoch, "rng": torch.get_rng_state()}
    write_atomically(Path(checkpoint), lambda temporary: torch.save(contents, temporary))


def _resume(checkpoint: str | Path, state: dict, settings: dict) -> int:
    """Bring ``state`` to where ``checkpoint`` stopped, if it exists; returns the number of finished epochs."""
    if not Path(checkpoint).exists():
        return 0
    try:
        contents = torch.load(checkpoint, weights_only=True)
        stored = contents["settings"]
    except Exception as error:  # bytes that are no checkpoint make pickle raise nearly anything
        raise ValueError(
            f"checkpoint={str(checkpoint)!r} is damaged or no training state: use another file, "
            "or delete this one to start anew"
        ) from error
    other = [f"{name}={stored.get(name)!r} (now {now!r})" for name, now in settings.items() if stored.get(name) != now]
    if other:
        raise ValueError(
            f"checkpoint={str(checkpoint)!r} belongs to a training with {', '.join(other)}: "
            "use the same settings, or another file"
        )
    for name, part in state.items():
        part.load_state_dict(contents[name])
    torch.set_rng_state(contents["rng"])
    return contents["epoch"]
