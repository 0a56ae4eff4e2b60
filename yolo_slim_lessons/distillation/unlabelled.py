"""Images without a label: where a label would stand, they carry -1.

``distill`` learns from them what the teacher says; everything else refuses them.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from yolo_slim_lessons.data import ImageData, Split
from yolo_slim_lessons.data.stored import Images

NO_LABEL = -1


def with_unlabelled(data: ImageData, images: Images) -> ImageData:
    """``data`` with more training images, of which nobody knows what they show.

    Args:
        data: ``val`` and ``test`` stay as they are.
        images: uint8, N×3×H×W, of the size of those in ``data``; ``load_images(folder).train.images``, for one.

    Raises:
        ValueError: other numbers or sizes than in ``data``.

    Example:
        >>> import yolo_slim_lessons as slim
        >>> data = slim.load_images("fashion-mnist", image_size=32)
        >>> with_unlabelled(data.take(train=1_000), data.train.images[-500:]).train.labels[-3:]
        tensor([-1, -1, -1])
    """
    train = data.train
    if images.dtype != torch.uint8 or images.shape[1:] != train.images.shape[1:]:
        raise ValueError(
            f"images are {images.dtype} {tuple(images.shape)}: expected torch.uint8 with the shape "
            f"N×{'×'.join(map(str, train.images.shape[1:]))} of data.train.images"
        )
    unlabelled = Split(images, torch.full((len(images),), NO_LABEL))
    return replace(data, train=train.joined(unlabelled))


def hide_labels(data: ImageData, keep: int) -> ImageData:
    """``data`` as if only the ``keep`` training images of ``data.train.take(keep)`` had been labelled.

    For experiments: the same images in the same order, most of them with the label -1.

    Raises:
        ValueError: ``keep`` is not between 0 and the number of training images.
    """
    if isinstance(keep, bool) or not isinstance(keep, int) or not 0 <= keep <= len(data.train):
        raise ValueError(f"keep={keep!r}: expected 0 to {len(data.train)}, the number of training images")
    labels = torch.full_like(data.train.labels, NO_LABEL)
    if keep:
        kept = data.train.places_of(keep)
        labels[kept] = data.train.labels[kept]
    return replace(data, train=data.train.relabelled(labels, data.train.class_names))
