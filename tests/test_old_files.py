"""``.slim`` files that version 0.1.0 wrote: they open, hold the same bits and answer the same."""

import json
from pathlib import Path

import pytest
import torch

import yolo_slim_lessons as slim
from yolo_slim_lessons.files import WEIGHTS_DIR
from yolo_slim_lessons.models import logits

FOLDER = Path(__file__).with_name("files")
ANSWERS = json.loads((FOLDER / "answers.json").read_text())  # of the models that were saved, to 4 images of val


@pytest.mark.parametrize("file", [*FOLDER.glob("*.slim"), *WEIGHTS_DIR.glob("*.slim")], ids=lambda file: file.stem)
def test_old_files_hold_the_same_bits(file, tmp_path):
    again = slim.save_packed(slim.load_packed(file), tmp_path / "again.slim")
    assert again.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("name", ANSWERS)
def test_old_files_answer_the_same(name, data):
    images = data.val.images[:4].float() / 255
    with torch.no_grad():
        answers = logits(slim.load_packed(FOLDER / f"{name}.slim"), images)
    torch.testing.assert_close(answers, torch.tensor(ANSWERS[name]), rtol=1e-3, atol=1e-3)
