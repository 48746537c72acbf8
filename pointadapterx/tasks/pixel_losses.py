"""The loss of classes of pixels, whose logits are never as large as the pictures for a whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pointadapterx.models.recomputing import recomputed
from pointadapterx.tasks.convolutions import enlarged


class Pixels(NamedTuple):
    """Classes of pixels as a head is given them in training.

    Attributes:
        truth: (B, S, S) int64.
        criterion: logits (b, classes, S, S) and their truth -> a loss, the mean over all pixels.
    """

    truth: Tensor
    criterion: Callable[[Tensor, Tensor], Tensor]

    def losses(self, logits: list[Tensor]) -> Tensor:
        """The loss of each head, and last the number of pixels that the first one is right about.

        Logits are enlarged picture by picture, and again in the backward pass: those of a whole batch may be larger
        than all that a backbone keeps.

        Args:
            logits: (B, classes, h, w) of each head.
        """
        found = []
        for one in logits:
            pictures = zip(one.split(1), self.truth.split(1), strict=True)
            losses, right = zip(*(self._loss_and_right(*pair) for pair in pictures), strict=True)
            found.append((torch.stack(losses).mean(), torch.stack(right).sum()))
        every = [loss for loss, _ in found]
        return torch.stack([*every, found[0][1].to(every[0].dtype)])

    def _loss_and_right(self, logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        def compute(logits: Tensor) -> tuple[Tensor, Tensor]:
            large = enlarged(logits, truth.shape[1:]).float()
            return self.criterion(large, truth), (large.detach().argmax(dim=1) == truth).sum()

        found: tuple[Tensor, Tensor] = recomputed(compute, logits)
        return found
