"""How far changes of single layers would move a network's answers: all of them estimated in one pass.

To try L layers in R ways, a scan runs the network L×R times. Here a change is computed exactly as far as the output of
its own layer, through norm and activation; what becomes of it behind that, derivatives of the logits tell (first order,
as in LeCun et al., 1989). Used by ``compression.budgets``. Leaves out: changes of several layers that help or hurt each
other, and what large errors do to the layers behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from yolo_slim_lessons.graph import Execution, Graph, Node
from yolo_slim_lessons.models import weight_layers

AT_ONCE = 32  # images: their activations are held, with as many derivatives as classes are followed
TINY = 1e-12  # variance of a channel that no longer says anything
CLASSES = 5  # of each image, the likeliest ones: their logits are followed


@dataclass(frozen=True)
class Change:
    """What one change adds to the outputs of layers, convolutions or linear ones.

    Attributes:
        errors: name of a layer → function from its input to what is added to its output, both N×C×H×W (or N×C).
        gone: name of a layer → its output channels whose error counts at their readers, because they are removed.
    """

    errors: Mapping[str, Callable[[torch.Tensor], torch.Tensor]]
    gone: Mapping[str, Sequence[int]] = field(default_factory=dict)


def through(layer: nn.Module, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What a convolution or linear ``layer`` makes of ``x`` with another ``weight`` and without its bias."""
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    return F.linear(x, weight)


def estimate_divergences(
    model: nn.Module,
    graph: Graph,
    batches: Iterable[torch.Tensor],
    changes: Sequence[Change],
    progress: bool = True,
) -> np.ndarray:
    """KL(as it is ‖ changed) of the answers, nats, the mean over all images, for each change alone.

    The logits of an image's ``CLASSES`` likeliest classes are followed; the others are taken as unmoved.

    Args:
        model: in eval mode. BatchNorm right behind a changed layer is taken to have its statistics measured anew.
        graph: ``trace(model)``, at the size of the images.
        batches: float images, as the model reads them, ``AT_ONCE`` or so at a time.
        changes: of any number.
        progress: show a progress bar.
    """
    layers = dict(weight_layers(model))
    changed = [name for name in layers if any(name in change.errors for change in changes)]
    watched = _Watched(model, graph, changed)
    total, images = np.zeros(len(changes)), 0
    for batch in tqdm(batches, "survey", disable=not progress, leave=False):
        with torch.enable_grad():
            scores = watched.run(graph, batch)
            likeliest = scores.detach().topk(min(CLASSES, scores.shape[1])).indices
            ends = [watched.ends[name] for name in changed]
            slopes = [
                torch.autograd.grad(scores.gather(1, one).sum(), ends, retain_graph=True)
                for one in likeliest.split(1, dim=1)
            ]
        slopes_of = dict(zip(changed, zip(*slopes, strict=True), strict=True))
        before = scores.detach().log_softmax(1)
        with torch.no_grad():
            for row, change in enumerate(changes):
                moved = torch.zeros_like(before)
                for name, error_of in change.errors.items():
                    error = watched.error_at_end(name, error_of(watched.inputs[name]))
                    error[:, list(change.gone.get(name, ()))] = 0
                    moved_here = [(slope * error).flatten(1).sum(1) for slope in slopes_of[name]]
                    moved.scatter_add_(1, likeliest, torch.stack(moved_here, 1))
                after = (scores.detach() + moved).log_softmax(1)
                total[row] += F.kl_div(after, before, reduction="sum", log_target=True).item()
        images += len(batch)
    return total / images


class _Watched(Execution):
    """The computation, which keeps of some layers the input, the output, and the end: behind norm and activation."""

    def __init__(self, model: nn.Module, graph: Graph, layers: Iterable[str]):
        super().__init__(model)
        self.behind = {name: graph.behind(name) for name in layers}
        self.end_of = {activation or norm or name: name for name, (norm, activation) in self.behind.items()}
        self.inputs: dict[str, torch.Tensor] = {}
        self.outputs: dict[str, torch.Tensor] = {}
        self.ends: dict[str, torch.Tensor] = {}

    def visit(self, node: Node, *values: torch.Tensor) -> torch.Tensor:
        if node.kind == "activation":
            values = [value.clone() for value in values]  # activations may overwrite what they read
        result = super().visit(node, *values)
        if node.name in self.behind:
            self.inputs[node.name], self.outputs[node.name] = values[0].detach(), result.detach()
        if node.name in self.end_of:
            if not result.requires_grad:  # nothing in front of it is asked for derivatives
                result = result.detach().requires_grad_()
            self.ends[self.end_of[node.name]] = result
        return result

    def error_at_end(self, layer: str, error: torch.Tensor) -> torch.Tensor:
        """What an error of a layer's output has become behind its norm and activation."""
        norm, activation = self.behind[layer]
        before = self.outputs[layer]
        after = before + error
        if norm:
            after = self.modules[norm](_with_statistics_of(before, after))
        if activation:
            after = self.modules[activation](after)
        return after - self.ends[layer].detach()


def _with_statistics_of(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """``second``, N×C×H×W, with the mean and variance of each channel that ``first`` has."""
    (variance, mean), (changed_variance, changed_mean) = (
        torch.var_mean(x, (0, 2, 3), keepdim=True) for x in (first, second)
    )
    return (second - changed_mean) * (variance / changed_variance.clamp(min=TINY)).sqrt() + mean
