"""What a network says of itself: its image size, its device, its layers and their values.

Used by every room that measures or changes a network. Leaves out: how its layers are connected (``graph``).
"""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral

import torch
from torch import nn
from ultralytics import YOLO


def image_size_of(model: nn.Module, default: int | None = None) -> int:
    """Pixels a side that ``model`` was trained for, as its checkpoint says; ``default``, if given, where it does not.

    Raises:
        ValueError: the model does not say, or names a height and a width that differ, and there is no ``default``.
    """
    args = getattr(model, "args", None)
    size = args.get("imgsz") if isinstance(args, dict) else getattr(args, "imgsz", None)
    if isinstance(size, list | tuple) and len(set(size)) == 1:
        size = size[0]
    if not isinstance(size, Integral):
        if default is not None:
            return default
        raise ValueError(
            f"the model's image size is {size!r}: expected the pixels a side that it was trained for. Say so with "
            'model.args = {"imgsz": 64}, or whatever it was; models for other shapes than squares are not understood'
        )
    return int(size)


def device_of(model: nn.Module) -> torch.device:
    """Where the weights of ``model`` are; the processor if it has none."""
    return next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))


def input_format(model: nn.Module) -> dict[str, object]:
    """What images ``model`` reads, as keywords of ``Split.batches``: ``device``, ``dtype`` and ``channels``."""
    first = next((layer for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)
    floats = (tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point())
    return {
        "device": device_of(model),
        "dtype": next(floats, torch.float32),
        "channels": 3 if first is None else first.in_channels,
    }


def blank_images(model: nn.Module, image_size: int | None = None, count: int = 1) -> torch.Tensor:
    """Black images that ``model`` can read: of its channels, number type and device.

    Args:
        model: any network; its first convolution reads the image.
        image_size: pixels a side; ``None`` takes what the model was trained for.
        count: N.

    Returns:
        Zeros, N×C×H×W.
    """
    what = input_format(model)
    size = image_size_of(model) if image_size is None else image_size
    if isinstance(size, bool) or not isinstance(size, Integral) or size < 1:
        raise ValueError(f"image_size={size!r}: expected pixels a side, such as 64; images are squares")
    return torch.zeros(count, what["channels"], size, size, dtype=what["dtype"], device=what["device"])


def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Unnormalized class scores, N×classes, from float images N×3×H×W in 0…1.

    In eval mode Ultralytics' head answers with (probabilities, logits), in training mode with logits alone.
    """
    output = model(images)
    return output[1] if isinstance(output, tuple) else output


def weight_layers(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d | nn.Linear]]:
    """Every layer that multiplies by weights, as (name, layer): convolutions and linear layers, in order.

    Example:
        >>> name, layer = next(weight_layers(slim.load_model("nano")))
        >>> name, tuple(layer.weight.shape)
        ('model.0.conv', (16, 3, 3, 3))
    """
    for name, layer in (model.model if isinstance(model, YOLO) else model).named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            yield name, layer


def values_of(model: nn.Module) -> Iterator[torch.Tensor]:
    """Every weight, bias and BatchNorm factor; of quantized layers, the numbers that their integers stand for."""
    for module in model.modules():
        computed = ("weight", "bias") if hasattr(module, "weight_grid") else ()
        for name in dict.fromkeys((*module._parameters, *computed)):
            value = getattr(module, name)
            if value is not None:
                yield value


def layers_of_this_package(model: nn.Module) -> list[str]:
    """Names of the layers whose class or hook is defined in this package, such as quantized layers."""
    package = __name__.partition(".")[0]
    return [
        name
        for name, layer in model.named_modules()
        if name  # not the model as a whole
        and any(
            getattr(part, "func", part).__module__.partition(".")[0] == package  # the function of a functools.partial
            for part in (layer, *layer._forward_pre_hooks.values(), *layer._forward_hooks.values())
        )
    ]
