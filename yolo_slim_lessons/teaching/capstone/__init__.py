"""The capstone of lesson 10: find the rare class that must not be missed, with a model that is small enough.

``tasks`` brings the images, ``sealing`` keeps the test images for the end, ``detection`` counts what is found and
missed, and at what cost, ``workplace`` is where the files go. Leaves out: the stages (``compression``) and the report
(``report.py``).
"""

from __future__ import annotations

from yolo_slim_lessons.models import adapt
from yolo_slim_lessons.teaching.capstone.detection import (
    Detection,
    best_threshold,
    detect,
    f1_gain_interval,
    f1_interval,
    weighted_loss,
)
from yolo_slim_lessons.teaching.capstone.sealing import SealedSplit, TestLookWarning, open_test, seal_test
from yolo_slim_lessons.teaching.capstone.tasks import Task, load_task
from yolo_slim_lessons.teaching.capstone.workplace import make_folder

__all__ = [
    "Detection",
    "SealedSplit",
    "Task",
    "TestLookWarning",
    "adapt",
    "best_threshold",
    "detect",
    "f1_gain_interval",
    "f1_interval",
    "load_task",
    "make_folder",
    "open_test",
    "seal_test",
    "weighted_loss",
]
