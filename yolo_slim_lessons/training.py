"""fit(): the one training loop of the course, with a progress bar.

Fine-tuning, recovery after pruning and distillation all run through it; they differ in the loss they pass.
It works on the device of the model. Used in lessons 01, 03, 04 and 07. Leaves out: several devices and logging
services; for those, Ultralytics' own trainer does the work (``ultralytics_trainer.py``).
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

from yolo_slim_lessons.data import ImageData, Split, as_floats
from yolo_slim_lessons.data.splits import batch_places
from yolo_slim_lessons.files import fingerprint, write_atomically
from yolo_slim_lessons.models import copy_model, input_format, logits, weight_layers

WARM_UP_STEPS = 200  # of a learning rate that then stays
# What a checkpoint compares by fingerprints, and what is said if one differs.
FINGERPRINTS = {"start": "other weights at its start", "train": "other training images or labels"}

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

    AdamW (Loshchilov & Hutter, 2019) with a one-cycle learning rate (Smith & Topin, 2018). Weights that
    ``prune_weights`` made zero stay zero. With ``average``, what is validated and returned is a running average of
    the weights, and the learning rate rises and stays: many good places of a plain have their mean in its middle
    (Izmailov et al., 2018).

    Args:
        model: what to start from, in float32, on the device where to train; it is left alone.
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
        ValueError: a number is out of range, ``model`` has another number of classes than ``data`` or is not in
            float32, or ``checkpoint`` is damaged, of an older version or of another training.
    """
    _check_numbers(epochs, batch_size, learning_rate, weight_decay, mixup, cutmix, average)
    _check_model_and_data(model, data, loss)
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
    if checkpoint:
        settings |= {"start": fingerprint(model), "train": data.train.fingerprint()}
    steps = sum(1 for _ in batch_places(len(data.train), batch_size, merge_single=True))
    state = _State(model, settings, steps)
    blend = _blend(mixup, cutmix, len(data.class_names))

    with torch.random.fork_rng(), tqdm(total=epochs * steps, desc="train", disable=not progress, leave=False) as bar:
        torch.manual_seed(seed)
        first_epoch = state.resume(checkpoint) if checkpoint else 0
        bar.update(first_epoch * steps)
        for epoch in range(first_epoch, epochs):
            mean_loss = _train_epoch(state, data.train, loss, blend, bar)
            top1 = top1_accuracy(state.result.eval(), data.val)
            bar.set_postfix(epoch=epoch + 1, loss=f"{mean_loss:.3f}", val=f"{top1:.1%}")
            if checkpoint:
                state.save(checkpoint, epoch + 1)
            if on_epoch:
                on_epoch(epoch + 1, mean_loss, top1, state.result)
    # In PyTorch's usual memory format again, so that its speed compares with that of the model it came from.
    return state.result.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)


class _State:
    """What a training changes, and what a checkpoint of it keeps.

    Attributes:
        model: what learns.
        averaged: the running average of its weights, or ``None``.
        optimizer, schedule: PyTorch's.
        settings: what tells this training from others.
        keep_zeros: sets pruned weights to zero again.
    """

    def __init__(self, model: ClassificationModel, settings: dict, steps: int):
        """Begin at a copy of ``model``; an epoch has ``steps``."""
        self.model = copy_model(model).to(memory_format=torch.channels_last).requires_grad_(True)
        self.settings, rate, average = settings, settings["learning_rate"], settings["average"]
        self.keep_zeros = zero_keeper(self.model)
        self.optimizer = _optimizer(self.model, rate, settings["weight_decay"])
        schedules = torch.optim.lr_scheduler
        if average:
            self.schedule = schedules.LinearLR(
                self.optimizer, start_factor=1 / WARM_UP_STEPS, total_iters=WARM_UP_STEPS
            )
            averaging = get_ema_multi_avg_fn(average)
            self.averaged = AveragedModel(self.model, multi_avg_fn=averaging, use_buffers=True)
        else:
            self.schedule = schedules.OneCycleLR(
                self.optimizer, rate, epochs=settings["epochs"], steps_per_epoch=steps
            )
            self.averaged = None

    @property
    def result(self) -> ClassificationModel:
        """What is validated and returned."""
        return self.averaged.module if self.averaged else self.model

    def step(self, loss: torch.Tensor) -> None:
        """Move the weights a little towards a smaller ``loss``."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.keep_zeros()
        if self.averaged:
            self.averaged.update_parameters(self.model)

    def save(self, checkpoint: str | Path, epoch: int) -> None:
        contents = {name: part.state_dict() for name, part in self._parts().items()}
        contents |= {"settings": self.settings, "epoch": epoch, "rng": torch.get_rng_state()}
        write_atomically(Path(checkpoint), lambda temporary: torch.save(contents, temporary))

    def resume(self, checkpoint: str | Path) -> int:
        """Go to where ``checkpoint`` stopped, if it exists; returns the number of finished epochs."""
        if not Path(checkpoint).exists():
            return 0
        try:
            contents = torch.load(checkpoint, map_location="cpu", weights_only=True)
            stored = contents["settings"]
        except Exception as error:  # bytes that are no checkpoint make pickle raise nearly anything
            raise ValueError(
                f"checkpoint={str(checkpoint)!r} is damaged or no training state: use another file, "
                "or delete this one to start anew"
            ) from error
        _check_same_training(checkpoint, stored, self.settings)
        for name, part in self._parts().items():
            part.load_state_dict(contents[name])
        torch.set_rng_state(contents["rng"])
        return contents["epoch"]

    def _parts(self) -> dict:
        parts = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}
        return parts | ({"averaged": self.averaged} if self.averaged else {})


def _train_epoch(state: _State, train: Split, loss: Loss, blend: Callable | None, bar: tqdm) -> float:
    """See each image of ``train`` once, in random order; returns the mean loss."""
    state.model.train()
    total_loss = 0.0
    settings, what = state.settings, input_format(state.model) | {"dtype": torch.uint8}
    order = torch.randperm(len(train))
    for images, labels in train.batches(settings["batch_size"], order=order, merge_single=True, **what):
        images = as_floats(augmented(images) if settings["augment"] else images)
        if blend:
            images, labels = blend(images, labels)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=settings["bfloat16"]):
            scores = logits(state.model, images)
        batch_loss = loss(scores.float(), labels, images)
        state.step(batch_loss)
        total_loss += batch_loss.item() * len(images)
        bar.update()
    return total_loss / len(train)


def _check_numbers(epochs, batch_size, learning_rate, weight_decay, mixup, cutmix, average) -> None:
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


def _check_model_and_data(model: ClassificationModel, data: ImageData, loss: Loss) -> None:
    if len(model.names) != len(data.class_names):
        raise ValueError(f"model has {len(model.names)} classes, data has {len(data.class_names)}: they must agree")
    dtype = input_format(model)["dtype"]
    if dtype != torch.float32:
        raise ValueError(
            f"model has weights of {dtype}, too coarse to learn in small steps: pass model.float(); "
            "bfloat16=True multiplies in 16 bits even so"
        )
    labels = data.train.labels
    if loss is label_loss and len(labels) and not 0 <= labels.min() <= labels.max() < len(model.names):
        raise ValueError(
            f"data.train has labels from {labels.min()} to {labels.max()}: expected 0 to {len(model.names) - 1}; "
            "distill also learns from images without a label (-1)"
        )


def _check_same_training(checkpoint: str | Path, stored: dict, settings: dict) -> None:
    """Raise ``ValueError`` if a checkpoint with the settings ``stored`` is of another training than ``settings``."""
    other = [
        f"{name}={stored.get(name)!r} (now {now!r})"
        for name, now in settings.items()
        if name not in FINGERPRINTS and stored.get(name) != now
    ]
    if not other and not FINGERPRINTS.keys() <= stored.keys():
        raise ValueError(
            f"checkpoint={str(checkpoint)!r} is from an older version, which did not note what it began from: "
            "delete it to start anew, or use another file"
        )
    other += [words for name, words in FINGERPRINTS.items() if stored.get(name, settings[name]) != settings[name]]
    if other:
        raise ValueError(
            f"checkpoint={str(checkpoint)!r} belongs to a training with {', '.join(other)}: "
            "use the same settings, or another file"
        )


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
    mirrored = (torch.rand(count) < 0.5).to(images.device)  # drawn by the processor: the same on every device
    shifted[mirrored] = shifted[mirrored].flip(-1)
    return shifted


@torch.inference_mode()
def top1_accuracy(model: ClassificationModel, split: Split, batch_size: int = 256) -> float:
    """Share of ``split`` that the model gets right, 0…1. For intervals and more, see ``measurement.evaluate``."""
    batches = split.batches(batch_size, **input_format(model))
    return sum((logits(model, images).argmax(1) == labels).sum().item() for images, labels in batches) / len(split)


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
    """A function that sets the weights of pruned layers that are zero now to zero again.

    ``prune_weights`` writes the names of these layers into ``model.pruned_layers``. Other zeros are chance, or what
    rounding left, and may learn.
    """
    pruned = getattr(model, "pruned_layers", ())
    zeros = [(layer.weight, layer.weight == 0) for name, layer in weight_layers(model) if name in pruned]

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
