"""Random changes of training images: mirrored, shifted or cropped, recoloured, partly erased, blended with one another.

Chance is drawn by the processor, so that a seed means the same on every device, and anew for every image: the
transforms of torchvision draw once for a whole batch. Leaves out: rotation, changes of hue, and learned policies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch.nn import functional as F
from torchvision.ops import roi_align
from torchvision.transforms import v2

CROPPED_AREAS = (0.5, 1.0)  # share of a photograph that is left; the rest of what tells a flower is often needed
CROPPED_SHAPES = (3 / 4, 4 / 3)  # width : height
RECOLOURED = 0.4  # at most, up or down


def augmented(images: torch.Tensor) -> torch.Tensor:
    """Randomly mirrored, shifted by up to a sixteenth and partly erased copies of uint8 images, N×3×H×W.

    Erasing a rectangle teaches the network not to lean on one detail (Zhong et al., 2020).
    """
    count, _, height, width = images.shape
    reach = height // 16
    padded = F.pad(images, [reach] * 4)
    tops, lefts = torch.randint(2 * reach + 1, (2, count)).tolist()
    shifted = [
        image[:, top : top + height, left : left + width] for image, top, left in zip(padded, tops, lefts, strict=True)
    ]
    return _half_mirrored(_partly_erased(shifted))


def photographed(images: torch.Tensor) -> torch.Tensor:
    """uint8 photographs, N×3×H×W, as if taken from elsewhere, in other light, mirrored and partly hidden.

    Random parts are brought to full size (Szegedy et al., 2015); brightness, saturation and contrast vary.

    Example:
        >>> images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
        >>> photographed(images).shape
        torch.Size([2, 3, 64, 64])
    """
    pixels = _recoloured(_cropped(images.float()))
    return _half_mirrored(_partly_erased(pixels.round_().to(torch.uint8)))


AUGMENTATIONS: dict[bool | str, Callable] = {False: lambda images: images, True: augmented, "photographs": photographed}


def _cropped(images: torch.Tensor) -> torch.Tensor:
    """A random part of each image, scaled to the size of the whole."""
    count, _, height, width = images.shape
    boxes = [v2.RandomResizedCrop.get_params(images, CROPPED_AREAS, CROPPED_SHAPES) for _ in range(count)]
    tops, lefts, heights, widths = torch.tensor(boxes).T
    corners = torch.stack([torch.arange(count), lefts, tops, lefts + widths, tops + heights], 1)
    # What detectors cut their regions with: another part of each image in one call.
    return roi_align(images, corners.to(images), (height, width), sampling_ratio=1, aligned=True)


def _recoloured(images: torch.Tensor) -> torch.Tensor:
    """Brightness, saturation and contrast of pixels in 0…255 multiplied by random factors, as by ``v2.ColorJitter``."""
    factors = 1 + RECOLOURED * (2 * torch.rand(3, len(images), 1, 1, 1) - 1)
    brightness, saturation, contrast = factors.to(images.device)
    images = images * brightness
    grey = v2.functional.rgb_to_grayscale(images)
    images = torch.lerp(grey, images, saturation)
    return torch.lerp(grey.mean((1, 2, 3), keepdim=True), images, contrast).clamp_(0, 255)


def _partly_erased(images: Iterable[torch.Tensor]) -> torch.Tensor:
    """Every fourth image, on average, with a black rectangle."""
    erase = v2.RandomErasing(p=0.25, scale=(0.02, 0.2))
    return torch.stack([erase(image) for image in images])


def _half_mirrored(images: torch.Tensor) -> torch.Tensor:
    """Every second image, on average, left to right; changes ``images``."""
    mirrored = (torch.rand(len(images)) < 0.5).to(images.device)
    images[mirrored] = images[mirrored].flip(-1)
    return images


def blending(mixup: float, cutmix: float, class_count: int) -> Callable | None:
    """What makes of images and labels blended images, and labels as probabilities; ``None`` if nothing does."""
    kinds = [
        kind(alpha=alpha, num_classes=class_count) for kind, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix)) if alpha
    ]
    return v2.RandomChoice(kinds) if len(kinds) > 1 else kinds[0] if kinds else None
