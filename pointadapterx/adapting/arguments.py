"""Tokens and masks among the arguments of a module of another library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Inputs = tuple[Any, ...]
Named = dict[str, Any]


def flat(tokens: Tensor) -> Tensor:
    """Tokens (B, H, W, C), or (L, C) of one packed batch, as (B, L, C); others as they are."""
    if tokens.ndim == 2:
        return tokens.unsqueeze(0)
    return tokens.flatten(1, 2) if tokens.ndim == 4 else tokens


def put(inputs: Inputs, named: Named, tokens: Tensor) -> tuple[Inputs, Named]:
    """Arguments with other tokens."""
    for place, value in enumerate(inputs):
        if isinstance(value, Tensor):
            return (*inputs[:place], tokens, *inputs[place + 1 :]), named
    key = next(key for key, value in named.items() if isinstance(value, Tensor))
    return inputs, {**named, key: tokens}


def with_wide_masks(inputs: Inputs, named: Named, length: int) -> tuple[Inputs, Named]:
    """Arguments with masks of attention for L + P tokens, in place of those for L; what was inserted is attended to.

    transformers makes a mask that hides nothing where a model is traced.

    Args:
        inputs: of a block, its tokens the first tensor.
        named: likewise.
        length: L + P.
    """

    def wide(value: Any) -> Any:
        square = isinstance(value, Tensor) and value.ndim == 4 and value.shape[-1] == value.shape[-2]
        return _widened(value, length) if square and 1 < value.shape[-1] < length else value

    return tuple(map(wide, inputs)), {key: wide(value) for key, value in named.items()}


def _widened(mask: Tensor, length: int) -> Tensor:
    """A mask (B, heads, L, L), true or 0 where tokens are attended to, with rows and columns behind the class token."""
    for dim in (-2, -1):
        shape = list(mask.shape)
        shape[dim] = length - shape[dim]
        value = 1 if mask.dtype == torch.bool else 0
        parts = mask.narrow(dim, 0, 1), mask.new_full(shape, value), mask.narrow(dim, 1, mask.shape[dim] - 1)
        mask = torch.cat(parts, dim=dim)
    return mask
