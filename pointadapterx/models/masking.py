"""Which groups the masked autoencoder hides (Point-MAE §3.2; block masking as in Point-BERT §3.2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# (centres (B, G, 3), number to hide, generator) -> (B, G) bool, True where hidden
Masking = Callable[[Tensor, int, torch.Generator | None], Tensor]


def random_mask(centers: Tensor, hidden: int, generator: torch.Generator | None = None) -> Tensor:
    """Hides ``hidden`` groups of each cloud, drawn at random: centres (B, G, 3) -> (B, G) bool."""
    keys = torch.rand(centers.shape[:2], generator=generator, device=centers.device)
    return _hide_smallest(keys, hidden)


def block_mask(centers: Tensor, hidden: int, generator: torch.Generator | None = None) -> Tensor:
    """Hides the ``hidden`` groups nearest to a group drawn at random: centres (B, G, 3) -> (B, G) bool."""
    batch, count, _ = centers.shape
    chosen = torch.rand((batch, count), generator=generator, device=centers.device).argmax(dim=1)
    seed = centers[torch.arange(batch, device=centers.device), chosen].unsqueeze(1)  # (B, 1, 3)
    return _hide_smallest((centers - seed).square().sum(dim=-1), hidden)


MASKINGS: dict[str, Masking] = {"random": random_mask, "block": block_mask}
"""By the name used in ``pretrain.mask``."""


def hidden_groups(ratio: float, num_groups: int) -> int:
    """How many of ``num_groups`` a mask ratio hides, as published rounded down."""
    return int(ratio * num_groups)


def _hide_smallest(keys: Tensor, hidden: int) -> Tensor:
    """True at the ``hidden`` smallest keys (B, G) of each row."""
    indices = keys.argsort(dim=1, stable=True)[:, :hidden]
    return torch.zeros_like(keys, dtype=torch.bool).scatter(1, indices, True)
