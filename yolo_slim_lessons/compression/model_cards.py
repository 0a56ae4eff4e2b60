"""A model card: one page that tells whoever meets a model what it is, how good it is, and where it fails.

After Mitchell et al. (2019). Used in lessons 09 and 10. Leaves out: speed, which belongs to a machine and not to a
model (``measurement.compare``).
"""

import datetime
import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from ultralytics.nn.tasks import ClassificationModel

from yolo_slim_lessons.data import ImageData, Split
from yolo_slim_lessons.measurement import Scores, count_macs, count_parameters, evaluate, predict
from yolo_slim_lessons.models import as_classifier, image_size_of

SURE = 0.9  # a probability from which on a reader takes an answer for certain
NOISE_IMAGES = 200
CONFUSIONS = 3


def model_card(
    model: ClassificationModel,
    data: ImageData,
    *,
    name: str,
    data_description: str,
    licence: str,
    intended_use: str,
    made_by: str = "",
    files: Iterable[str | Path] = (),
    seed: int = 0,
) -> str:
    """The card of ``model`` as Markdown, with scores on ``data.test``.

    Args:
        model: any classifier of this package.
        data: its ``test`` is what the scores are from; make the card last, for nothing may be chosen by it any more.
        name: the title.
        data_description: what the images are, and where they come from.
        licence: of the model and its data.
        intended_use: what it is for, and what not.
        made_by: the recipe or the steps.
        files: what is given away; the card lists bytes and sha256.
        seed: of the noise images, to which a model must not be sure of its answer.

    Raises:
        ValueError: a text that is needed is empty, or ``data.test`` has no image.
        TypeError: ``model`` is no classifier.
        FileNotFoundError: one of ``files`` does not exist.
    """
    model = as_classifier(model)
    needed = {"name": name, "data_description": data_description, "licence": licence, "intended_use": intended_use}
    for argument, text in needed.items():
        if not text.strip():
            raise ValueError(f"{argument}={text!r}: expected a sentence, which readers of the card need")
    scores = evaluate(model, data.test, progress=False)
    size = image_size_of(model)
    sections = {
        "What it is": [
            f"A classifier of {len(model.names)} classes ({', '.join(model.names.values())}) for images of "
            f"{size} × {size} pixels: {count_parameters(model):,} parameters, "
            f"{count_macs(model) / 1e6:.2f} million multiplications an image.",
            *([made_by] if made_by else []),
        ],
        "What it is for": [intended_use],
        "Data": [
            data_description,
            f"{len(data.train):,} images to learn from, {len(data.val):,} to choose by (val), {len(data.test):,} for "
            "the scores below (test).",
        ],
        "How good it is": _scores(scores),
        "Limits": _limits(model, scores, size, seed),
        "Files": _files(files),
        "Licence": [licence],
    }
    lines = [f"# {name}", "", f"Measured on {datetime.date.today():%d %B %Y}, with PyTorch {torch.__version__}."]
    for title, paragraphs in sections.items():
        if paragraphs:
            lines += ["", f"## {title}", "", "\n\n".join(paragraphs)]
    return "\n".join(lines) + "\n"


def _scores(scores: Scores) -> list[str]:
    low, high = scores.interval
    rows = [
        f"| {row.name} | {row.precision:.1%} | {row.recall:.1%} | {row.f1:.1%} | {row.images:,} |"
        for row in scores.per_class
    ]
    return [
        f"Top-1 accuracy {scores.top1:.2%} (95 % interval {low:.2%} to {high:.2%}); macro F1 {scores.f1:.2%}.",
        "\n".join(["| class | precision | recall | F1 | images |", "|---|---|---|---|---|", *rows]),
    ]


def _limits(model: ClassificationModel, scores: Scores, size: int, seed: int) -> list[str]:
    names = [row.name for row in scores.per_class]
    weakest = min((row for row in scores.per_class if row.images), key=lambda row: row.recall)
    wrong = scores.confusion.copy()
    np.fill_diagonal(wrong, 0)
    worst = [divmod(int(place), len(names)) for place in np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]]
    confusions = [
        f"{names[true]} taken for {names[said]} ({wrong[true, said]:,})" for true, said in worst if wrong[true, said]
    ]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(256, (NOISE_IMAGES, 3, size, size), dtype=torch.uint8, generator=generator)
    answers = predict(model, Split(noise, torch.zeros(NOISE_IMAGES, dtype=torch.int64)), progress=False)
    sure = (answers.amax(1) >= SURE).float().mean().item()
    return [
        f"It finds {weakest.recall:.1%} of *{weakest.name}*, the lowest recall of all classes. Its most frequent "
        f"errors on the {int(scores.confusion.sum()):,} test images: {'; '.join(confusions) or 'none at all'}.",
        "It knows no other classes, and answers with one of these to any picture. "
        f"To pure noise it answered with a probability of {SURE:.0%} or more in {sure:.0%} of {NOISE_IMAGES} cases.",
        "Other cameras, light, backgrounds and makers than those of the test images were not tried.",
    ]


def _files(files: Iterable[str | Path]) -> list[str]:
    rows = []
    for path in map(Path, files):
        if not path.is_file():
            raise FileNotFoundError(f"files: {str(path)!r} does not exist; expected files that are given away")
        contents = path.read_bytes()
        rows.append(f"| `{path.name}` | {len(contents):,} | `{hashlib.sha256(contents).hexdigest()}` |")
    return ["\n".join(["| file | bytes | sha256 |", "|---|---|---|", *rows])] if rows else []
