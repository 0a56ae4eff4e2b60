"""The formulas: how far a student is from its teacher, as numbers that have a gradient.

All take a batch and return the mean over its images. ``scores`` are logits, N×classes; the teacher's carry no gradient.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def soft_target_loss(scores: torch.Tensor, teacher_scores: torch.Tensor, temperature: float) -> torch.Tensor:
    """T² · KL(teacher ‖ student), both softened by the temperature T (Hinton et al., 2015).

    Dividing logits by T makes gradients smaller, roughly by T²; the factor makes up for it, so that ``alpha`` means the
    same at every temperature.

    Example:
        >>> scores = torch.tensor([[2.0, 0.0]])
        >>> soft_target_loss(scores, scores, temperature=4.0).item()
        0.0
    """
    student = F.log_softmax(scores / temperature, 1)
    teacher = F.log_softmax(teacher_scores / temperature, 1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def decoupled_loss(
    scores: torch.Tensor, teacher_scores: torch.Tensor, targets: torch.Tensor, temperature: float, beta: float = 8.0
) -> torch.Tensor:
    """T² · (target part + ``beta`` · other part), the two halves of soft targets (Zhao et al., 2022).

    The first asks how sure both are of the right class, int64 ``targets``, the second how they rank the others. In
    ``soft_target_loss`` the second counts the less, the surer the teacher is; here it counts ``beta``.
    """
    is_target = F.one_hot(targets, scores.shape[1]).bool()

    def halves(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logs = F.log_softmax(logits / temperature, 1)
        others = logs[~is_target].view(len(logs), -1)
        return torch.stack([logs[is_target], others.logsumexp(1)], 1), F.log_softmax(others, 1)

    parts = [
        F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        for student, teacher in zip(halves(scores), halves(teacher_scores), strict=True)
    ]
    return temperature**2 * (parts[0] + beta * parts[1])


def hint_loss(features: torch.Tensor, teacher_features: torch.Tensor) -> torch.Tensor:
    """Squared distance of two feature maps N×C×H×W (Romero et al., 2015), as a share of the teacher's squared size."""
    return F.mse_loss(features, teacher_features) / teacher_features.square().mean().clamp_min(1e-12)


def attention_loss(features: torch.Tensor, teacher_features: torch.Tensor) -> torch.Tensor:
    """Squared distance of two attention maps (Zagoruyko & Komodakis, 2017): where, not what, the networks look at.

    The map of N×C×H×W features is their squared size at each position, scaled to length 1. Channels are summed over, so
    the numbers of channels may differ.
    """
    maps = [F.normalize(each.square().sum(1).flatten(1)) for each in (features, teacher_features)]
    return (maps[0] - maps[1]).square().sum(1).mean()


def known_label_loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, averaged over those images of the batch that have a label; -1 means none. 0 if none has one.

    ``labels`` are N numbers, or N×classes probabilities.
    """
    if labels.ndim == 1:
        known = labels >= 0
        scores, labels = scores[known], labels[known]
    return F.cross_entropy(scores, labels) if len(labels) else scores.sum()


FEATURE_LOSSES = {"hints": hint_loss, "attention": attention_loss}
