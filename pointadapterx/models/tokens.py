"""The order of tokens in every backbone: CLS (where there is one), then prompts (the newest first), then patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def insert_after_cls(tokens: Tensor, inserted: Tensor) -> Tensor:
    """Inserts (B, P, C) tokens right after CLS of (B, L, C) tokens: (B, L + P, C)."""
    return torch.cat([tokens[:, :1], inserted.to(tokens.dtype), tokens[:, 1:]], dim=1)


def pad_position(position: Tensor, length: int) -> Tensor:
    """Gives prompts the position zero: (B, 1 + G, C) -> (B, length, C), zeros right after CLS."""
    missing = length - position.shape[1]
    if missing == 0:
        return position
    zeros = position.new_zeros(position.shape[0], missing, position.shape[2])
    return insert_after_cls(position, zeros)


class TokenSequence:
    """Named access to a backbone's output tokens.

    Args:
        tokens: (B, [1 +] P + G, C): CLS, P prompts, G patch tokens.
        num_patches: G.
        has_class_token: whether the first token is CLS.
    """

    def __init__(self, tokens: Tensor, num_patches: int, *, has_class_token: bool = True) -> None:
        self.tokens = tokens
        self.num_patches = num_patches
        self.has_class_token = has_class_token

    @property
    def cls(self) -> Tensor:
        """(B, C), of a backbone that has a class token."""
        return self.tokens[:, 0]

    @property
    def prompts(self) -> Tensor:
        """(B, P, C); P may be 0."""
        return self.tokens[:, int(self.has_class_token) : self.tokens.shape[1] - self.num_patches]

    @property
    def patches(self) -> Tensor:
        """The patch tokens, (B, G, C)."""
        return self.tokens[:, self.tokens.shape[1] - self.num_patches :]

    def without_prompts(self) -> Tensor:
        """(B, [1 +] G, C), what a module between two stages reads."""
        if self.tokens.shape[1] == self.num_patches + self.has_class_token:
            return self.tokens
        return torch.cat([self.tokens[:, : int(self.has_class_token)], self.patches], dim=1)


def sum_sequences(last: TokenSequence, sequences: Sequence[TokenSequence]) -> TokenSequence:
    """Class token and patches are sums over ``sequences``; prompts, whose number may differ, are those of ``last``."""
    total = torch.stack([sequence.without_prompts() for sequence in sequences]).sum(dim=0)
    first = int(last.has_class_token)
    tokens = torch.cat([total[:, :first], last.prompts, total[:, first:]], dim=1)
    return TokenSequence(tokens, last.num_patches, has_class_token=last.has_class_token)


POOLS = {
    "cls": lambda sequence: sequence.cls,
    "prompt_mean": lambda sequence: sequence.prompts.mean(dim=1),
    "prompt_max": lambda sequence: sequence.prompts.amax(dim=1),
    "token_mean": lambda sequence: sequence.tokens.mean(dim=1),
    "patch_mean": lambda sequence: sequence.patches.mean(dim=1),
    "patch_max": lambda sequence: sequence.patches.amax(dim=1),
}
"""Pools of the head, by the name used in ``head.pools``: TokenSequence -> (B, C)."""
