"""Choose: which layers can bear it, which results are worth having, and which settings meet a budget.

``sensitivity`` changes one layer at a time, ``sweeps`` tries every combination of settings and keeps each result on
disk, ``pareto`` says which results no other one beats, ``budgets`` turns bytes and milliseconds into a recipe for
``compress``. All of them look at ``val`` alone. Used in lessons 03, 04 and 08. Leaves out: search by training many
candidates at once, such as evolution.
"""

from __future__ import annotations

from yolo_slim_lessons.search.budgets import Budget, Survey, plan_recipe, survey_layers
from yolo_slim_lessons.search.pareto import pareto_front
from yolo_slim_lessons.search.sensitivity import Sensitivity, sensitivity
from yolo_slim_lessons.search.sweeps import sweep

__all__ = ["Budget", "Sensitivity", "Survey", "pareto_front", "plan_recipe", "sensitivity", "survey_layers", "sweep"]
