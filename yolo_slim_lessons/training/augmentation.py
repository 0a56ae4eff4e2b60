"""Random changes of training images: mirrored, shifted, partly erased, blended with one another.

Chance is drawn by the processor, so that a seed means the same on every device. Leaves out: changes of colour.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F
from torchvision.transforms import v2


def augmented(images: torch.Tensor) -> torch.Tensor:
    """Randomly mirrored, shifted by up to a sixteenth and partly erased copies of uint8 images, N×3×H×W.

    Erasing a rectangle teaches the network not to lean on one detail (Zhong et al., 2020).
    """
    count, _, height, width = images.shape
    reach = height // 16
    padded = F.pad(images, [reach] * 4)
    tops, lefts = torch.randint(2 * reach + 1, (2, count)).tolist()
    erase = v2.RandomErasing(p=0.25, scale=(0.02, 0.2))
    shifted = torch.stack(
        [
            erase(image[:, top : top + height, left : left + width])
            for image, top, left in zip(padded, tops, lefts, strict=True)
        ]
    )
    mirrored = (torch.rand(count) < 0.5).to(images.device)  # drawn by the processor: the same on every device
    shifted[mirrored] = shifted[mirrored].flip(-1)
    return shifted


def blending(mixup: float, cutmix: float, class_count: int) -> Callable | None:
    """What makes of images and labels blended images, and labels as probabilities; ``None`` if nothing does."""
    kinds = [
        kind(alpha=alpha, num_classes=class_count) for kind, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix)) if alpha
    ]
    return v2.RandomChoice(kinds) if len(kinds) > 1 else kinds[0] if kinds else None
