"""Make a shipped model again: ``python -m yolo_slim_lessons.recipes NAME``."""

import argparse

from yolo_slim_lessons.recipes import RECIPES_DIR, read_recipe, train
from yolo_slim_lessons.recipes.compressed import compress_shipped

parser = argparse.ArgumentParser(prog="python -m yolo_slim_lessons.recipes", description=__doc__)
parser.add_argument("name", choices=sorted(file.stem for file in RECIPES_DIR.glob("*.yaml")))
name = parser.parse_args().name
print((train if "architecture" in read_recipe(name) else compress_shipped)(name))
