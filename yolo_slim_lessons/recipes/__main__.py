"""Make a shipped model again: ``python -m yolo_slim_lessons.recipes NAME``."""

import argparse

from yolo_slim_lessons.recipes import train

parser = argparse.ArgumentParser(prog="python -m yolo_slim_lessons.recipes", description=__doc__)
parser.add_argument("name", help="nano or teacher")
print(train(parser.parse_args().name))
