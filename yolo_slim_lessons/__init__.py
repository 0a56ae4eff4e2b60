"""Make YOLO image classifiers small and fast, and measure it. Start with ``notebooks/00-start-here.ipynb``."""

import importlib
import os

from yolo_slim_lessons import threads

# Before anything imports Ultralytics, which reads these once: no connectivity probe, no installing of packages on its
# own account, no banner. Without a connection it sends no usage data and asks for no update.
os.environ["YOLO_OFFLINE"] = "true"
os.environ["YOLO_AUTOINSTALL"] = "false"
os.environ.setdefault("YOLO_VERBOSE", "false")
threads.sleep_soon()

# Where each public name lives: at most 45, which lessons and pipelines call; classes of results, formulas and parts
# stay in their modules. A name is imported when it is first used, so that ``import yolo_slim_lessons`` is quick.
_HOMES = {
    "compression": "compress",
    "compression.budgets": "Budget",
    "data": "load_images write_image_folder",
    "deployment": "export_litert export_onnx onnx_session run_onnx",
    "deployment.c": "export_c",
    "distillation": "distill",
    "measurement": (
        "compare count_macs count_parameters evaluate layer_costs measure predict time_model wilson_interval"
    ),
    "models": "adapt load_model new_model save_model weight_layers",
    "packing": "load_packed packed_sizes save_packed",
    "pruning.blocks": "remove_bottlenecks replace_activations",
    "pruning.channels": "channel_groups prune_channels reestimate_batchnorm",
    "pruning.weights": "prune_gradually prune_weights",
    "quantization": "dequantize quantize_integer",
    "quantization.few_bits": "correct_biases learn_rounding train_quantized",
    "quantization.floats": "quantize_float round_to_format",
    "search": "sweep",
    "teaching.source": "show",
    "training": "fit",
    "ultralytics_trainer": "SlimTrainer",
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
