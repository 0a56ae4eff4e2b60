"""Search: how sensitive layers are, what each combination of settings gives, which results no other one beats.

Used in lessons 03, 04 and 08. Leaves out: budgets (``compression``), and search by training many candidates at once,
such as evolution.
"""

from yolo_slim_lessons.search.pareto import pareto_front
from yolo_slim_lessons.search.sensitivity import Sensitivity, sensitivity
from yolo_slim_lessons.search.sweeps import sweep

__all__ = ["Sensitivity", "pareto_front", "sensitivity", "sweep"]
