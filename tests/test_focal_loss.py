"""RetinaNet's loss: the values of its formula, and one tensor for the backward pass."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pointadapterx.tasks.focal_loss import focal_loss
from tests.test_recomputing import kept

LABELS = [torch.tensor([3, 0, 3]), torch.empty(0, dtype=torch.int64)]


def plain(logits: Tensor, matched: list[Tensor]) -> Tensor:
    """§3 of the paper, element by element."""
    total = torch.zeros((), dtype=logits.dtype)
    for one, objects, labels in zip(logits, matched, LABELS, strict=True):
        has = torch.zeros_like(one)
        for anchor, number in enumerate(objects.tolist()):
            if number >= 0:
                has[anchor, labels[number]] = 1
        right = torch.where(has > 0, one.sigmoid(), 1 - one.sigmoid())
        alpha = torch.where(has > 0, 0.25, 0.75)
        loss = -alpha * (1 - right) ** 2 * F.logsigmoid(torch.where(has > 0, one, -one))
        total = total + loss[objects >= -1].sum() / max(1, int((objects >= 0).sum()))
    return total / len(logits)


def of_torchvision(logits: Tensor, matched: list[Tensor]) -> Tensor:
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed here; make test-foreign runs this")
    from torchvision.models.detection.retinanet import RetinaNetClassificationHead

    head: Any = RetinaNetClassificationHead(8, 9, logits.shape[-1])
    found: Tensor = head.compute_loss([{"labels": one} for one in LABELS], {"cls_logits": logits}, matched)
    return found


@pytest.mark.parametrize("other", [plain, pytest.param(of_torchvision, marks=pytest.mark.timm)])
def test_loss_and_gradient_are_those_of_the_formula(other: Callable[[Tensor, list[Tensor]], Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 8 * torch.randn(2, 40, 5, dtype=torch.float64, generator=generator)  # also sure and wrong
    matched = [torch.randint(-2, 3, (40,), generator=generator), torch.full((40,), -1)]
    targets: list[Mapping[str, Tensor]] = [{"labels": one} for one in LABELS]
    found = []
    for compute in (lambda x: focal_loss(targets, {"cls_logits": x}, matched), lambda x: other(x, matched)):
        given = logits.clone().requires_grad_()
        loss = compute(given)
        (3 * loss).backward()
        found.append((loss.detach(), given.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-10)


def test_the_backward_pass_keeps_one_tensor() -> None:
    logits = torch.randn(2, 40, 5, requires_grad=True)
    targets: list[Mapping[str, Tensor]] = [{"labels": one} for one in LABELS]
    matched = [torch.tensor([0, 2] + 38 * [-1]), torch.full((40,), -1)]
    _, count = kept(lambda: focal_loss(targets, {"cls_logits": logits}, matched), torch.nn.Identity())
    assert count == logits.numel()
