"""SlimTrainer inside Ultralytics: architecture and zeros stay, the teacher is heard, plain YOLO reads the result."""

import csv
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional as F
from ultralytics import YOLO
from ultralytics.data import ClassificationDataset
from ultralytics.utils.dist import generate_ddp_file

import yolo_slim_lessons as slim
from yolo_slim_lessons.distillation import soft_target_loss
from yolo_slim_lessons.models import copy_model, logits

SETTINGS = {
    "imgsz": 32,
    "batch": 32,
    "workers": 0,
    "device": "cpu",
    "amp": False,
    "plots": False,
    "verbose": False,
    "name": "run",
    "deterministic": False,
    "optimizer": "AdamW",
    "warmup_epochs": 0,
    "nbs": 32,
    "lr0": 0.001,
}


@pytest.fixture(scope="module")
def data():
    return slim.load_images("fashion-mnist", image_size=32).take(train=64, val=32)


@pytest.fixture(scope="module")
def images(data, tmp_path_factory):
    return slim.write_image_folder(data, tmp_path_factory.mktemp("data") / "images", test=10)


@pytest.fixture(scope="module")
def pruned(nano):
    """Narrower than nano, and half of the weights that are left are zero."""
    return slim.prune_weights(slim.prune_channels(nano, 0.5), 0.5)


@pytest.fixture(scope="module")
def file(pruned, tmp_path_factory):
    return slim.save_model(pruned, tmp_path_factory.mktemp("model") / "slim.pt")


def train(file, images, folder, epochs=1, **options):
    yolo = YOLO(file)
    options = {"trainer": slim.SlimTrainer, "data": str(images), "project": str(folder)} | SETTINGS | options
    yolo.train(epochs=epochs, **options)
    return yolo


def rows(folder):
    with (folder / "run" / "results.csv").open(encoding="utf-8", newline="") as stream:
        return [{name.strip(): float(value) for name, value in row.items()} for row in csv.DictReader(stream)]


def shapes(model):
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def zeros_are_kept(before, after):
    pairs = zip(slim.weight_layers(before), slim.weight_layers(after), strict=True)
    return all((new.weight[old.weight == 0] == 0).all() for (_, old), (_, new) in pairs)


@pytest.fixture(scope="module")
def distilled(file, images, tmp_path_factory):
    """The folder of one training of three epochs with a teacher."""
    folder = tmp_path_factory.mktemp("distilled")
    train(file, images, folder, epochs=3, teacher="nano", temperature=3.0, alpha=0.5)
    return folder


# what it leaves


def test_architecture_and_zeros_are_kept_while_the_rest_learns(distilled, pruned):
    for name in ("best.pt", "last.pt"):
        trained = slim.load_model(distilled / "run" / "weights" / name)
        assert shapes(trained) == shapes(pruned)
        assert zeros_are_kept(pruned, trained)
        # In 16 bits, as Ultralytics stores it, a few of the smallest weights round to zero.
        assert slim.count_parameters(trained, nonzero=True) > 0.99 * slim.count_parameters(pruned, nonzero=True)
    old, new = dict(slim.weight_layers(pruned)), dict(slim.weight_layers(trained))
    assert all((old[name].weight != new[name].weight).any() for name in old)


@pytest.mark.parametrize("optimizer", ["SGD", "MuSGD"])
def test_zeros_are_kept_by_other_optimizers(file, images, pruned, tmp_path, optimizer):
    try:
        yolo = train(file, images, tmp_path, optimizer=optimizer, lr0=0.01, momentum=0.9)
    except NotImplementedError:
        pytest.skip(f"this release of Ultralytics has no {optimizer}")
    assert zeros_are_kept(pruned, yolo.model)


def test_ultralytics_own_trainer_keeps_neither(file, images, pruned, tmp_path):
    """Why SlimTrainer is needed. If this fails, Ultralytics has learned it, and our class can go."""
    yolo = train(file, images, tmp_path, trainer=None)
    assert shapes(yolo.model) != shapes(pruned)


def test_the_result_works_where_this_package_cannot_be_imported(distilled, images, data, run_python, tmp_path):
    best = distilled / "run" / "weights" / "best.pt"
    last = shutil.copy(distilled / "run" / "weights" / "last.pt", tmp_path / "last.pt")
    code = """
import sys
sys.modules["yolo_slim_lessons"] = None
from ultralytics import YOLO
for path in sys.argv[2:]:
    yolo = YOLO(path)
    result = yolo.val(data=sys.argv[1], imgsz=32, workers=0, plots=False, verbose=False)
    print(path, "top1", result.top1)
"""
    printed = run_python(code, images, best, last, environment={"YOLO_OFFLINE": "true"})
    top1 = float(printed.split("top1 ")[1].split()[0])
    assert top1 == pytest.approx(slim.evaluate(slim.load_model(best), data.val).top1, abs=1 / 32)


def test_a_checkpoint_in_the_middle_of_training_holds_no_class_of_this_package(file, images, tmp_path):
    names = set()

    class Spy(pickle.Unpickler):
        def find_class(self, module, name):
            names.add(module.split(".")[0])
            return super().find_class(module, name)

    spy = type("Spy", (), {"Unpickler": Spy, "load": pickle.load, "__name__": "spy"})
    yolo = YOLO(file)
    yolo.add_callback("on_model_save", lambda trainer: torch.load(trainer.last, pickle_module=spy, weights_only=False))
    yolo.train(trainer=slim.SlimTrainer, data=str(images), project=str(tmp_path), epochs=2, teacher="nano", **SETTINGS)
    assert "ultralytics" in names
    assert "yolo_slim_lessons" not in names


# the loss


def test_the_distillation_loss_is_a_loss_item_of_its_own(distilled):
    found = rows(distilled)
    assert [row["epoch"] for row in found] == [1, 2, 3]
    for name in ("train/loss", "train/distill", "val/loss", "val/distill"):
        assert all(row[name] > 0 for row in found), name
        assert len({row[name] for row in found}) == 3
    assert found[-1]["train/distill"] < found[0]["train/distill"]


def test_the_progress_table_has_a_column_for_it(file, images, tmp_path):
    headers = []
    yolo = YOLO(file)
    yolo.add_callback("on_train_epoch_end", lambda trainer: headers.append(trainer.progress_string().split()))
    yolo.train(trainer=slim.SlimTrainer, data=str(images), project=str(tmp_path), epochs=1, teacher="nano", **SETTINGS)
    assert headers == [["Epoch", "GPU_mem", "loss", "distill", "Instances", "Size"]]


def test_val_losses_are_those_of_the_ema_model_worked_out_by_hand(distilled, images, nano):
    # Of the last epoch: last.pt is the model that was validated, in 16 bits.
    trained = slim.load_model(distilled / "run" / "weights" / "last.pt")
    args = yaml.safe_load((distilled / "run" / "args.yaml").read_text(encoding="utf-8"))
    settings = type("Args", (), args | {"fraction": 1.0, "cache": False})
    samples = [ClassificationDataset(str(images / "val"), settings, augment=False)[index] for index in range(32)]
    batch, labels = torch.stack([s["img"] for s in samples]), torch.tensor([s["cls"] for s in samples])
    with torch.no_grad():
        scores, answers = logits(trained, batch), logits(nano, batch)
    last = rows(distilled)[-1]
    assert last["val/loss"] == pytest.approx(F.cross_entropy(scores, labels).item(), rel=0.02)
    assert last["val/distill"] == pytest.approx(soft_target_loss(scores, answers, 3.0).item(), rel=0.02)


def test_alpha_weighs_the_two(file, images, tmp_path):
    """One step from the same start: the loss that is minimized, and with alpha=1 labels that do not matter."""
    totals = {}
    for alpha in (0.0, 0.25, 1.0):
        yolo = YOLO(file)
        yolo.add_callback(
            "on_train_batch_end",
            lambda trainer, alpha=alpha: totals.setdefault(
                alpha,
                (trainer.loss.item(), *(float(item) for item in trainer.label_loss_items(trainer.loss_items).values())),
            ),
        )
        options = SETTINGS | {"project": str(tmp_path), "name": f"alpha-{alpha}"}
        yolo.train(trainer=slim.SlimTrainer, data=str(images), epochs=1, teacher="nano", alpha=alpha, **options)
    for alpha, (total, label_loss, distance) in totals.items():
        assert total == pytest.approx((1 - alpha) * label_loss + alpha * distance, rel=1e-3)
        assert (label_loss, distance) == pytest.approx(totals[0.0][1:], rel=1e-3)


def test_without_a_teacher_it_fine_tunes(file, images, pruned, tmp_path):
    yolo = train(file, images, tmp_path)
    assert {"train/loss", "val/loss"} <= rows(tmp_path)[0].keys()
    assert not any("distill" in name for name in rows(tmp_path)[0])
    assert shapes(yolo.model) == shapes(pruned)


# starting, going on


def test_resume_goes_on_with_the_same_teacher(file, images, pruned, tmp_path):
    def stop(trainer):
        if trainer.epoch == 1:
            raise KeyboardInterrupt

    yolo = YOLO(file)
    yolo.add_callback("on_model_save", stop)
    options = SETTINGS | {"project": str(tmp_path)}
    with pytest.raises(KeyboardInterrupt):
        yolo.train(
            trainer=slim.SlimTrainer, data=str(images), epochs=3, teacher="nano", temperature=2.5, alpha=0.75, **options
        )
    assert len(rows(tmp_path)) == 2
    resumed = YOLO(tmp_path / "run" / "weights" / "last.pt")
    resumed.train(trainer=slim.SlimTrainer, resume=True)
    args = resumed.trainer.args
    assert (args.teacher, args.temperature, args.alpha) == ("nano", 2.5, 0.75)
    found = rows(tmp_path)
    assert [row["epoch"] for row in found] == [1, 2, 3]
    assert found[2]["val/distill"] < found[0]["val/distill"]
    assert shapes(resumed.model) == shapes(pruned)
    assert zeros_are_kept(pruned, resumed.model)


def test_settings_stand_in_args_yaml(distilled, tmp_path):
    args = yaml.safe_load((distilled / "run" / "args.yaml").read_text(encoding="utf-8"))
    assert (args["teacher"], args["temperature"], args["alpha"]) == ("nano", 3.0, 0.5)


def test_another_class_count_gets_a_new_last_layer(data, pruned, images, tmp_path):
    few_classes = tmp_path / "images"
    for split in ("train", "val"):
        for folder in sorted((images / split).iterdir())[:3]:
            shutil.copytree(folder, few_classes / split / folder.name)
    yolo = train(slim.save_model(pruned, tmp_path / "slim.pt"), few_classes, tmp_path)
    before, after = shapes(pruned), shapes(yolo.model)
    changed = {name: after[name] for name in before if before[name] != after[name]}
    assert changed == {
        "model.9.linear.weight": (3, pruned.model[-1].linear.in_features),
        "model.9.linear.bias": (3,),
    }
    assert len(yolo.names) == yolo.model.yaml["nc"] == 3
    with pytest.raises(ValueError, match="teacher has 10 classes, data has 3: they must agree"):
        train(tmp_path / "slim.pt", few_classes, tmp_path, teacher="nano")


def test_pretrained_false_keeps_the_architecture_and_draws_new_weights(file, images, pruned, tmp_path):
    yolo = YOLO(file)
    start = []
    yolo.add_callback("on_train_start", lambda trainer: start.append(copy_model(trainer.model)))
    yolo.train(
        trainer=slim.SlimTrainer, data=str(images), project=str(tmp_path), epochs=1, pretrained=False, **SETTINGS
    )
    assert shapes(start[0]) == shapes(yolo.model) == shapes(pruned)
    assert slim.count_parameters(start[0], nonzero=True) > 1.5 * slim.count_parameters(pruned, nonzero=True)


def test_from_a_yaml_it_builds_as_ultralytics_does(images, tmp_path):
    yolo = train("yolov8n-cls.yaml", images, tmp_path)
    assert shapes(yolo.model) == shapes(slim.new_model("yolov8n-cls.yaml", tuple(yolo.names.values())))


# several processes


@pytest.fixture
def handed_over(file, images, tmp_path):
    """The script that Ultralytics writes for the processes of several devices, with the state beside it."""
    pytest.importorskip("cloudpickle", reason="Ultralytics needs it to start several processes")
    settings = SETTINGS | {"project": str(tmp_path), "epochs": 2, "data": str(images), "model": str(file)}
    teacher = slim.save_model(slim.load_model("nano"), tmp_path / "teacher.pt")
    trainer = slim.SlimTrainer(overrides=settings | {"teacher": str(teacher), "temperature": 3.0, "alpha": 0.25})
    trainer.model = trainer.get_model(weights=slim.load_model(file))
    script = Path(generate_ddp_file(trainer))
    yield script
    script.unlink()
    script.with_suffix(".pt").unlink(missing_ok=True)


# In place of Ultralytics' choice of CUDA devices: two processes on the CPU, joined by gloo.
GLOO = """
import json, os, torch
from torch import distributed, nn
from ultralytics.engine.trainer import BaseTrainer

class OnCPU(nn.parallel.DistributedDataParallel):
    def __init__(self, module, device_ids, **options):
        super().__init__(module, **options)

def train(self, train=BaseTrainer.train):
    self.world_size = 2
    train(self)
    weights = torch.cat([parameter.detach().flatten() for parameter in self.model.parameters()])
    both = [torch.empty_like(weights) for _ in range(2)]
    distributed.all_gather(both, weights)
    if distributed.get_rank() == 0:
        args = self.args
        print(json.dumps([type(self).__name__, os.path.basename(args.teacher), args.temperature, args.alpha,
                          len(self.train_loader.sampler), torch.equal(*both)]), flush=True)
    distributed.barrier()
    distributed.destroy_process_group()
    # Python's own way out aborts now and then after such a training, with Ultralytics' plain trainer too.
    os._exit(0)

nn.parallel.DistributedDataParallel = OnCPU
BaseTrainer.train = train
BaseTrainer._setup_ddp = lambda self: distributed.init_process_group("gloo")
BaseTrainer.final_eval = lambda self: None  # asks for the current CUDA device
"""


@pytest.mark.skipif(sys.platform == "win32", reason="not tried on Windows")
@pytest.mark.slow
def test_two_processes_train_one_model(handed_over, pruned, tmp_path):
    script = tmp_path / "two_processes.py"
    script.write_text(GLOO + handed_over.read_text(encoding="utf-8"), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=300)
    if "Cannot use ReduceOp.AVG with Gloo" in done.stderr:
        pytest.skip("Ultralytics takes a mean over processes, which Gloo of this PyTorch cannot")
    assert done.returncode == 0, done.stdout + done.stderr
    assert '["SlimTrainer", "teacher.pt", 3.0, 0.25, 32, true]' in done.stdout
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 2]
    assert all(row["train/distill"] > 0 for row in rows(tmp_path))
    trained = slim.load_model(tmp_path / "run" / "weights" / "best.pt")
    assert shapes(trained) == shapes(pruned)
    assert zeros_are_kept(pruned, trained)


# bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": 0}, ValueError, "temperature=0: expected a number above 0"),
        ({"alpha": 1.5}, ValueError, r"alpha=1\.5: expected 0 \(labels only\) to 1 \(teacher only\)"),
        ({"teacher": "nobody.pt"}, FileNotFoundError, r"nobody\.pt.*there is no such file"),
    ],
)
def test_arguments_out_of_range_are_named(file, images, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        train(file, images, tmp_path, **options)


def test_a_teacher_must_be_a_file_and_another_model(file, images, nano, tmp_path):
    with pytest.raises(
        TypeError, match=r"teacher is a ClassificationModel: expected a path; save_model\(\) writes a file"
    ):
        train(file, images, tmp_path, teacher=nano)
    with pytest.raises(ValueError, match="teacher is the student, or has the very same weights"):
        train(file, images, tmp_path, teacher=str(file))


def test_a_teacher_with_its_classes_in_another_order_is_refused(file, images, nano, tmp_path):
    names = sorted(folder.name for folder in (images / "train").iterdir())
    teacher = copy_model(nano)
    teacher.names = dict(enumerate(reversed(names)))
    path = slim.save_model(teacher, tmp_path / "teacher.pt")
    with pytest.raises(ValueError, match="teacher and data know the same classes in another order"):
        train(file, images, tmp_path, teacher=path)


def test_the_last_layer_follows_the_order_of_the_folders(data, nano, tmp_path):
    folder = slim.write_image_folder(data, tmp_path / "images", test=10)
    for path in folder.glob("*/*"):
        path.rename(
            path.with_name(path.name.partition(" ")[2])
        )  # without a number, and so in the order of the alphabet
    yolo = train(slim.save_model(nano, tmp_path / "nano.pt"), folder, tmp_path, lr0=1e-9, optimizer="SGD")
    assert list(yolo.names.values()) == sorted(yolo.names.values())
    before, after = nano.model[-1].linear.weight, yolo.model.model[-1].linear.weight
    order = [
        next(n for n, known in nano.names.items() if known.replace("/", "-") == name) for name in yolo.names.values()
    ]
    torch.testing.assert_close(after.float(), before[order], rtol=0, atol=2e-3)  # FP16 in the file


def test_weights_of_another_file_are_refused(file, images, nano, tmp_path):
    other = slim.save_model(nano, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"pretrained='.*other\.pt': SlimTrainer keeps the architecture of the model"):
        train(file, images, tmp_path, pretrained=str(other))


def test_a_fused_model_is_refused(file, images, tmp_path):
    yolo = YOLO(file)
    yolo.model.fuse(verbose=False)
    with pytest.raises(ValueError, match=r"model is fused, perhaps by predict or val: open its file again"):
        yolo.train(trainer=slim.SlimTrainer, data=str(images), project=str(tmp_path), epochs=1, **SETTINGS)
