"""``python -m yolo_slim_lessons``: the command line."""

import sys

from yolo_slim_lessons.command_line import main

if __name__ == "__main__":
    sys.exit(main())
