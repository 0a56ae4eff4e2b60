"""Make YOLO image classifiers small and fast, and measure it. Start with ``notebooks/00-start-here.ipynb``."""

import importlib
import os

# Before anything imports Ultralytics, which reads these once: no connectivity probe, no installing of packages on its
# own account, no banner. Without a connection it sends no usage data and asks for no update.
os.environ["YOLO_OFFLINE"] = "true"
os.environ["YOLO_AUTOINSTALL"] = "false"
os.environ.setdefault("YOLO_VERBOSE", "false")

# Where each public name lives. It is imported when it is first used, so that ``import yolo_slim_lessons`` is quick.
_HOMES = {
    "compression": "Compression StageResult Target compress",
    "compression.budgets": "Budget Survey plan_recipe survey_layers",
    "compression.model_cards": "model_card",
    "compression.report": "write_report",
    "data": "ImageData Split load_images write_image_folder",
    "deployment": "export_onnx onnx_session run_onnx",
    "distillation": (
        "TeacherCache attention_loss cache_teacher decoupled_loss distill hide_labels hint_loss soft_target_loss "
        "with_unlabelled"
    ),
    "measurement": (
        "Comparison Latency LayerCost Scorecard Scores compare count_macs count_parameters evaluate layer_costs "
        "measure predict time_model wilson_interval"
    ),
    "models": "load_model new_model save_model weight_layers",
    "packing": "PackedSizes entropy_bits load_packed packed_sizes save_packed",
    "pruning.blocks": "remove_bottlenecks replace_activations",
    "pruning.channels": "ChannelGroup channel_groups prune_channels reestimate_batchnorm",
    "pruning.weights": (
        "SparseSizes break_even_rate gradual_rates index_bits prune_gradually prune_weights sparse_sizes"
    ),
    "quantization": (
        "IntegerGrid QuantizedConv2d QuantizedLinear activation_tensors dequantize fold_batchnorm integer_outputs "
        "layer_errors quantize_integer run_integer signal_to_noise simulated_outputs"
    ),
    "quantization.calibration": "Histogram choose_grid observe_inputs",
    "quantization.few_bits": (
        "BitSensitivity bit_sensitivity choose_bits correct_biases integer_bytes learn_rounding round_biases "
        "train_quantized"
    ),
    "quantization.floats": "FloatFormat float_format format_fit quantize_float round_to_format",
    "search": "Sensitivity pareto_front sensitivity sweep",
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
