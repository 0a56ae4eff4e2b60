"""Make YOLOv8 image classifiers small and fast, and measure it. Start with ``notebooks/00-start-here.ipynb``."""

# First, because it tells Ultralytics to stay offline and quiet before any other module imports it.
import yolo_slim_lessons.models  # noqa: F401
from yolo_slim_lessons.channel_pruning import ChannelGroup, channel_groups, prune_channels, reestimate_batchnorm
from yolo_slim_lessons.data import ImageData, Split, load_images, write_image_folder
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
from yolo_slim_lessons.search import Sensitivity, sensitivity
from yolo_slim_lessons.teaching.source import show
from yolo_slim_lessons.training import fit
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
    "ImageData",
    "Latency",
    "LayerCost",
    "Scorecard",
    "Scores",
    "Sensitivity",
    "SparseSizes",
    "Split",
    "break_even_rate",
    "channel_groups",
    "compare",
    "count_macs",
    "count_parameters",
    "evaluate",
    "fit",
    "gradual_rates",
    "index_bits",
    "layer_costs",
    "load_images",
    "load_model",
    "measure",
    "new_model",
    "predict",
    "prune_channels",
    "prune_gradually",
    "prune_weights",
    "reestimate_batchnorm",
    "save_model",
    "sensitivity",
    "show",
    "sparse_sizes",
    "time_model",
    "weight_layers",
    "wilson_interval",
    "write_image_folder",
]
