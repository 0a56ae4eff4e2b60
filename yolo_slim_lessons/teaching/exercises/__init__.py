"""Exercises that check themselves: ``exercises.check_…(answer)``, one module a lesson."""

from yolo_slim_lessons.teaching.exercises.lesson00 import *  # noqa: F403
from yolo_slim_lessons.teaching.exercises.lesson01 import *  # noqa: F403
from yolo_slim_lessons.teaching.exercises.lesson02 import *  # noqa: F403
from yolo_slim_lessons.teaching.exercises.lesson03 import *  # noqa: F403
from yolo_slim_lessons.teaching.exercises.lesson04 import *  # noqa: F403
from yolo_slim_lessons.teaching.exercises.lesson05 import *  # noqa: F403
from yolo_slim_lessons.teaching.exercises.lesson06 import *  # noqa: F403
from yolo_slim_lessons.teaching.exercises.lesson07 import *  # noqa: F403
from yolo_slim_lessons.teaching.exercises.lesson08 import *  # noqa: F403
from yolo_slim_lessons.teaching.exercises.lesson09 import *  # noqa: F403
from yolo_slim_lessons.teaching.exercises.lesson10 import *  # noqa: F403
