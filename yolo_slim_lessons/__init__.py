"""Make YOLOv8 image classifiers small and fast, and measure it. Start with ``notebooks/00-start-here.ipynb``."""

# First, because it tells Ultralytics to stay offline and quiet before any other module imports it.
import yolo_slim_lessons.models  # noqa: F401
from yolo_slim_lessons.channel_pruning import ChannelGroup, channel_groups, prune_channels, reestimate_batchnorm
from yolo_slim_lessons.data import ImageData, Split, load_images, write_image_folder
from yolo_slim_lessons.distillation import (
    TeacherCache,
    attention_loss,
    cache_teacher,
    decoupled_loss,
    distill,
    hide_labels,
    hint_loss,
    soft_target_loss,
    with_unlabelled,
)
from yolo_slim_lessons.float_quantization import FloatFormat, float_format, format_fit, quantize_float, round_to_format
from yolo_slim_lessons.measurement import (
    Comparison,
    Latency,
    LayerCost,
    Scorecard,
    Scores,
    compare,
    count_macs,
    count_parameters,
    evaluate,
    layer_costs,
    measure,
    predict,
    time_model,
    wilson_interval,
)
from yolo_slim_lessons.models import load_model, new_model, save_model, weight_layers
from yolo_slim_lessons.packing import PackedSizes, entropy_bits, load_packed, packed_sizes, save_packed
from yolo_slim_lessons.search import Sensitivity, sensitivity
from yolo_slim_lessons.teaching.source import show
from yolo_slim_lessons.training import fit
from yolo_slim_lessons.ultralytics_trainer import SlimTrainer
from yolo_slim_lessons.weight_pruning import (
    SparseSizes,
    break_even_rate,
    gradual_rates,
    index_bits,
    prune_gradually,
    prune_weights,
    sparse_sizes,
)

__all__ = [
    "ChannelGroup",
    "Comparison",
    "FloatFormat",
    "ImageData",
    "Latency",
    "LayerCost",
    "PackedSizes",
    "Scorecard",
    "Scores",
    "Sensitivity",
    "SlimTrainer",
    "SparseSizes",
    "Split",
    "TeacherCache",
    "attention_loss",
    "break_even_rate",
    "cache_teacher",
    "channel_groups",
    "compare",
    "count_macs",
    "count_parameters",
    "decoupled_loss",
    "distill",
    "entropy_bits",
    "evaluate",
    "fit",
    "float_format",
    "format_fit",
    "gradual_rates",
    "hide_labels",
    "hint_loss",
    "index_bits",
    "layer_costs",
    "load_images",
    "load_model",
    "load_packed",
    "measure",
    "new_model",
    "packed_sizes",
    "predict",
    "prune_channels",
    "prune_gradually",
    "prune_weights",
    "quantize_float",
    "reestimate_batchnorm",
    "round_to_format",
    "save_model",
    "save_packed",
    "sensitivity",
    "show",
    "soft_target_loss",
    "sparse_sizes",
    "time_model",
    "weight_layers",
    "wilson_interval",
    "with_unlabelled",
    "write_image_folder",
]
