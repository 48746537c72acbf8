"""RetinaNet's focal loss (arXiv 1708.02002), of which the backward pass keeps one tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

ALPHA = 0.25
"""Weight of the classes that an anchor has; the others have 1 - α. The exponent γ is 2."""


def focal_loss(targets: Sequence[Mapping[str, Tensor]], outputs: Mapping[str, Tensor], matched: list[Tensor]) -> Tensor:
    """Mean over the pictures of the sum over anchors and classes, divided by the number of anchors on objects.

    The same as torchvision's ``RetinaNetClassificationHead.compute_loss``, whose elementwise operations keep about ten
    tensors as large as the logits.

    Args:
        targets: with the ``labels`` (k,) of each picture's objects.
        outputs: with ``cls_logits`` (B, anchors, classes).
        matched: for each picture (anchors,), number of an anchor's object, -1 for none, less where it does not count.

    Returns:
        A scalar.
    """
    logits = outputs["cls_logits"]
    found: tuple[Tensor, Tensor] = _FocalLoss.apply(logits, matched, [one["labels"] for one in targets])
    return found[0]


class _FocalLoss(torch.autograd.Function):
    """Logits (B, anchors, classes), the object of each anchor and the objects' labels -> a scalar, and its gradient.

    The gradient is made in the forward pass, which has everything that it needs.
    """

    @staticmethod
    def forward(logits: Tensor, matched: list[Tensor], labels: list[Tensor]) -> tuple[Tensor, Tensor]:
        slopes = torch.empty_like(logits)
        losses = [_of_picture(*picture) for picture in zip(logits, matched, labels, slopes, strict=True)]
        return torch.stack(losses).mean(), slopes.div_(len(losses))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keeps the gradient."""
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, _: None) -> tuple[Tensor | None, None, None]:
        """The gradient of the logits."""
        (slopes,) = ctx.saved_tensors
        return None if gradient is None else gradient * slopes, None, None


def _of_picture(logits: Tensor, matched: Tensor, labels: Tensor, slopes: Tensor) -> Tensor:
    """The loss of one picture; its gradient is written to ``slopes`` (anchors, classes).

    With z = x for a class that an anchor does not have, and z = -x for the one that it has, the loss of a logit x is
    (1 - α) σ(z)² log(1 + e^z), or α times the same.
    """
    inside = torch.where(matched >= 0)[0]
    classes = labels[matched[inside]]
    z = logits.clone()
    z[inside, classes] *= -1
    p, cross = z.sigmoid(), F.softplus(z, threshold=60.0)
    weight = p.square()
    weight *= ((matched >= -1).to(z.dtype) * ((1 - ALPHA) / max(1, len(inside)))).unsqueeze(1)
    weight[inside, classes] *= ALPHA / (1 - ALPHA)
    # d/dz σ² log(1 + e^z) = σ² (2 (1 - σ) log(1 + e^z) + σ)
    torch.addcmul(p, 1 - p, cross, value=2, out=slopes)
    slopes *= weight
    slopes[inside, classes] *= -1
    return weight.mul_(cross).sum()
