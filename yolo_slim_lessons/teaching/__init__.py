"""What only a notebook needs: widgets, plots, exercises that check themselves."""

import warnings

from yolo_slim_lessons.quantization import FidelityWarning

warnings.simplefilter("ignore", FidelityWarning)  # lessons take so few bits on purpose, and show what comes of it
