"""Make a shipped model again: ``python -m yolo_slim_lessons.compression.recipes NAME``."""

import argparse

from yolo_slim_lessons.compression.recipes import compress_shipped, read_recipe, train
from yolo_slim_lessons.files import RECIPES_DIR

parser = argparse.ArgumentParser(prog="python -m yolo_slim_lessons.compression.recipes", description=__doc__)
parser.add_argument("name", choices=sorted(file.stem for file in RECIPES_DIR.glob("*.yaml")))
name = parser.parse_args().name
print((train if "architecture" in read_recipe(name) else compress_shipped)(name))
