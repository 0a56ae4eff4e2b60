"""What a training changes from step to step, and its checkpoint: save after an epoch, go on where it stopped.

Leaves out: the loop (``training.fit``).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.files import write_atomically
from yolo_slim_lessons.models import copy_model, weight_layers
from yolo_slim_lessons.training.options import train_mode

WARM_UP_STEPS = 200  # of a learning rate that then stays
# What a checkpoint compares by fingerprints, and what is said if one differs.
FINGERPRINTS = {"start": "other weights at its start", "train": "other training images or labels"}


class TrainingState:
    """What a training changes, and what a checkpoint of it keeps.

    Attributes:
        model: what learns.
        averaged: the running average of its weights, or ``None``.
        frozen: names of its modules that do not.
        optimizer, schedule: PyTorch's.
        settings: what tells this training from others.
        keep_zeros: sets pruned weights to zero again.
    """

    def __init__(self, model: ClassificationModel, settings: dict, steps: int):
        """Begin at a copy of ``model``; an epoch has ``steps``."""
        self.model = copy_model(model).to(memory_format=torch.channels_last)
        self.settings, rate, average = settings, settings["learning_rate"], settings["average"]
        self.frozen = settings["frozen"] or ()
        train_mode(self.model, self.frozen)
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
            self.schedule = schedules.OneCycleLR(self.optimizer, rate, epochs=settings["epochs"], steps_per_epoch=steps)
            self.averaged = None

    @property
    def result(self) -> ClassificationModel:
        """What is validated and returned."""
        return self.averaged.module if self.averaged else self.model

    def note_image_size(self, image_size: int) -> None:
        """Let the model say that ``image_size``, in pixels a side, is what it was trained for."""
        for model in (self.model, self.result):
            model.args = {**getattr(model, "args", {}), "imgsz": image_size}

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


def zero_keeper(model: ClassificationModel) -> Callable[[], None]:
    """A function that sets the weights of pruned layers that are zero now to zero again.

    ``prune_weights`` writes the names of these layers into ``model.pruned_layers``. Other zeros are chance, or what
    rounding left, and may learn.
    """
    pruned = getattr(model, "pruned_layers", ())
    learned = [_learned_weight(layer) for name, layer in weight_layers(model) if name in pruned]
    zeros = [(weight, weight == 0) for weight in learned]

    @torch.no_grad()
    def keep_zeros() -> None:
        for weight, mask in zeros:
            weight[mask] = 0

    return keep_zeros


def _learned_weight(layer: nn.Module) -> nn.Parameter:
    """The parameter behind the weight of a layer, which may be rounded anew in every forward pass."""
    rounding = getattr(layer, "rounding", None)
    return layer.weight if rounding is None else rounding.weight


def _optimizer(model: ClassificationModel, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = [parameter for parameter in learned if parameter.ndim > 1]
    others = [parameter for parameter in learned if parameter.ndim <= 1]
    groups = [{"params": weights, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate)


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
