"""Quantize to integers: weights of 2 to 16 bits, and activations likewise.

``grids`` round numbers, ``calibration`` finds their ranges, ``layers`` compute with them, ``points`` says which tensors
share a grid, ``simulation`` is the classifier that computes on grids throughout, ``execution`` repeats its forward pass
in integer arithmetic, and ``fidelity`` tells how much was lost, in dB. ``floats`` rounds to floats of few bits, and
``few_bits`` repairs what few bits break. Used in lessons 05 and 06. Leaves out: kernels that are fast because of
integers (``deployment``).
"""

from yolo_slim_lessons.quantization.execution import integer_outputs, run_integer
from yolo_slim_lessons.quantization.fidelity import FidelityWarning, layer_errors, signal_to_noise
from yolo_slim_lessons.quantization.folding import fold_batchnorm
from yolo_slim_lessons.quantization.grids import IntegerGrid
from yolo_slim_lessons.quantization.integers import dequantize, quantize_integer
from yolo_slim_lessons.quantization.layers import (
    QuantizedActivation,
    QuantizedConv2d,
    QuantizedLayer,
    QuantizedLinear,
    QuantizedSum,
)
from yolo_slim_lessons.quantization.points import ActivationTensor, activation_tensors
from yolo_slim_lessons.quantization.simulation import QuantizedModel, simulated_outputs

__all__ = [
    "ActivationTensor",
    "FidelityWarning",
    "IntegerGrid",
    "QuantizedActivation",
    "QuantizedConv2d",
    "QuantizedLayer",
    "QuantizedLinear",
    "QuantizedModel",
    "QuantizedSum",
    "activation_tensors",
    "dequantize",
    "fold_batchnorm",
    "integer_outputs",
    "layer_errors",
    "quantize_integer",
    "run_integer",
    "signal_to_noise",
    "simulated_outputs",
]
