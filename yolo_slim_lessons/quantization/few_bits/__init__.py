"""Few bits, and yet right: four ways to win back what rounding to 4 bits and below costs.

In the order of what they need: ``bias_correction`` some images and a moment, ``rounding`` the same images and minutes,
``aware_training`` all images; ``mixed_precision`` gives each layer as many bits as it needs. ``bias_rounding`` shortens
what is left at 32 bits. Used in lesson 05. Leaves out: quantization itself (``quantize_integer``).
"""

from yolo_slim_lessons.quantization.few_bits.aware_training import train_quantized
from yolo_slim_lessons.quantization.few_bits.bias_correction import correct_biases
from yolo_slim_lessons.quantization.few_bits.bias_rounding import round_biases
from yolo_slim_lessons.quantization.few_bits.mixed_precision import (
    BitSensitivity,
    bit_sensitivity,
    choose_bits,
    integer_bytes,
)
from yolo_slim_lessons.quantization.few_bits.rounding import learn_rounding

__all__ = [
    "BitSensitivity",
    "bit_sensitivity",
    "choose_bits",
    "correct_biases",
    "integer_bytes",
    "learn_rounding",
    "round_biases",
    "train_quantized",
]
