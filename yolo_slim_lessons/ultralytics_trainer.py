"""Fine-tune and distil inside Ultralytics' own trainer, with its augmentation, mixed precision, EMA, devices, loggers.

``YOLO("slim.pt").train(trainer=SlimTrainer, teacher="teacher.pt", data=…)``. Used in lesson 07. Leaves out: other
tasks than classification, and every way to learn from a teacher but soft targets.

For several devices, Ultralytics' ``device=[0, 1]``, it starts processes that make the trainer again, from its class and
its arguments; teacher, temperature and alpha are such arguments. Tested are the hand-over, in a fresh process, and two
CPU processes joined by gloo, with Ultralytics' choice of CUDA devices replaced; not tested is a machine with two GPUs.
"""

import functools
from pathlib import Path

import torch
from torch import nn
from ultralytics.models.yolo.classify import ClassificationTrainer
from ultralytics.nn.tasks import ClassificationModel
from ultralytics.utils import DEFAULT_CFG, RANK, YAML
from ultralytics.utils.torch_utils import unwrap_model

from yolo_slim_lessons.agreement import class_places
from yolo_slim_lessons.distillation import soft_target_loss
from yolo_slim_lessons.distillation.checks import check_class_names, check_numbers, check_teacher
from yolo_slim_lessons.models import copy_model, load_model, logits
from yolo_slim_lessons.training.state import zero_keeper

DEFAULTS = {"teacher": None, "temperature": 4.0, "alpha": 0.9}


class SlimTrainer(ClassificationTrainer):
    """Ultralytics' trainer for classifiers, for pruned models and for distillation.

    It trains the very architecture that it is given, where Ultralytics would build the unpruned one from its YAML;
    weights that ``prune_weights`` made zero stay zero, in the EMA as well; and with a teacher the loss
    is (1 - alpha) · ``loss`` + alpha · ``distill``, both of which stand in the progress table and in results.csv:
    cross-entropy with the labels, and ``soft_target_loss``. The checkpoints hold nothing of this package.

    Three more arguments of ``YOLO(…).train``:

    - teacher: the path of a classifier, ``"teacher"`` or another shipped name, or ``None`` to learn from labels alone.
    - temperature: of the soft targets, above 0; 4.0 unless told.
    - alpha: share of the teacher, 0…1; 0.9 unless told.

    The classes of model and data are joined by name: where they stand in another order, the last layer follows the
    data. A new class count gets a new last layer, as with Ultralytics. ``pretrained=False`` keeps the architecture and
    draws new weights. ``resume=True`` finds all three in the checkpoint; pass ``trainer=SlimTrainer`` again.

    Raises:
        ValueError: a number is out of range; teacher and data differ in their classes; the teacher is the student;
            ``pretrained`` is another file; the model is fused.
        TypeError: ``teacher`` is no path or name.

    Example:
        >>> import yolo_slim_lessons as slim
        >>> from ultralytics import YOLO
        >>> student, images = slim.save_model(model, "slim.pt"), slim.write_image_folder(data, "images")
        >>> settings = {"data": str(images), "epochs": 1, "imgsz": 64, "plots": False, "workers": 0}
        >>> results = YOLO(student).train(trainer=SlimTrainer, teacher="teacher", **settings)
    """

    def __init__(self, cfg=DEFAULT_CFG, overrides: dict | None = None, _callbacks=None):
        # Ultralytics refuses arguments that it does not know; they are put back where it keeps its own, from where they
        # get into checkpoints and into the processes of other devices.
        overrides = dict(overrides or {})
        given = {name: overrides.pop(name) for name in DEFAULTS if name in overrides}
        super().__init__(cfg, overrides, _callbacks)
        for name, default in DEFAULTS.items():
            setattr(self.args, name, given.get(name, getattr(self.args, name, default)))
        if isinstance(self.args.pretrained, str | Path) and not self.resume:
            raise ValueError(
                f"pretrained={str(self.args.pretrained)!r}: SlimTrainer keeps the architecture of the model it trains; "
                "expected True or False, or open that file with YOLO(…) instead"
            )
        self.teacher = self._load_teacher()
        if RANK in (-1, 0):
            YAML.save(self.save_dir / "args.yaml", vars(self.args))

    def get_model(self, cfg=None, weights: nn.Module | None = None, verbose: bool = True) -> nn.Module:
        """A copy of ``weights``, ready for training; built from ``cfg`` only if there is no model yet."""
        if weights is None and str(self.args.model).endswith(".pt"):  # pretrained=False
            weights = load_model(self.args.model)
        if weights is None:
            return super().get_model(cfg, weights, verbose)
        if not isinstance(weights, ClassificationModel):
            raise TypeError(f"model is a {type(weights).__name__}: expected an image classifier, such as a -cls model")
        if weights.is_fused():
            raise ValueError(
                "model is fused, perhaps by predict or val: open its file again with YOLO(path) to train it"
            )
        model = copy_model(weights).float()
        _bring_into_order(model, tuple(self.data["names"].values()))
        ClassificationModel.reshape_outputs(model, self.data["nc"])
        model.yaml["nc"] = self.data["nc"]
        for module in model.modules():
            if self.args.pretrained is False and not self.resume and hasattr(module, "reset_parameters"):
                module.reset_parameters()
            if isinstance(module, nn.Dropout) and self.args.dropout:
                module.p = self.args.dropout
        return model.requires_grad_(True)

    def get_validator(self):
        whole = self.args
        # The validator has arguments of its own, made of these, and refuses what Ultralytics does not know.
        self.args = type(whole)(**{name: value for name, value in vars(whole).items() if name not in DEFAULTS})
        try:
            return super().get_validator()
        finally:
            self.args = whole

    def validate(self):
        # Only while it is needed: whatever hangs on the EMA model would be written into the checkpoint.
        ema = self.ema.ema
        before, ema.criterion = getattr(ema, "criterion", None), self._criterion(ema)
        try:
            return super().validate()
        finally:
            ema.criterion = before

    def _setup_train(self, *args):
        super()._setup_train(*args)
        model = unwrap_model(self.model)
        if self.teacher:
            if not self.resume:
                check_teacher(model, self.teacher)
            self.teacher.to(self.device)
        # After the EMA is copied from the model, for the same reason as in validate().
        model.criterion = self._criterion(model)
        keep_zeros = zero_keeper(model)
        # Right after the step, so that the EMA, which follows, averages zeros too.
        self.optimizer.register_step_post_hook(lambda *_: keep_zeros())

    def _criterion(self, model: ClassificationModel):
        criterion = model.init_criterion()
        if self.teacher is None:
            return criterion
        return functools.partial(_loss, criterion, self.teacher, self.args.temperature, self.args.alpha)

    def _load_teacher(self) -> ClassificationModel | None:
        check_numbers(temperature=self.args.temperature, alpha=self.args.alpha)
        source = self.args.teacher
        if source is None:
            return None
        if not isinstance(source, str | Path):
            raise TypeError(f"teacher is a {type(source).__name__}: expected a path; save_model() writes a file")
        # Absolute, because processes of other devices and a later resume may work in another folder.
        self.args.teacher = str(Path(source).resolve()) if Path(source).is_file() else str(source)
        teacher = load_model(self.args.teacher).requires_grad_(False)
        check_class_names(tuple(teacher.names.values()), tuple(self.data["names"].values()), "data")
        return teacher


def _bring_into_order(model: ClassificationModel, names: tuple[str, ...]) -> None:
    """Let the outputs of ``model``, in place, follow ``names``, the classes of the data, if both have the same."""
    try:
        places = class_places(names, tuple(model.names.values()))
    except ValueError:  # other classes, which get a new last layer or learn this one anew
        return
    last = model.model[-1].linear
    last.weight.data, last.bias.data = last.weight.data[places], last.bias.data[places]


def _loss(criterion, teacher: ClassificationModel, temperature: float, alpha: float, preds, batch: dict):
    """Ultralytics' loss, and the distance from the teacher as a second loss item."""
    label_loss, items = criterion(preds, batch)
    scores = preds[1] if isinstance(preds, list | tuple) else preds
    with torch.no_grad():
        answers = logits(teacher, batch["img"].to(next(teacher.parameters()).dtype))
    distance = soft_target_loss(scores.float(), answers.float(), temperature)
    return (1 - alpha) * label_loss + alpha * distance, {**items, "distill": distance.detach()}
