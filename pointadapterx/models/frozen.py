"""What the frozen part of a model computes from its inputs, which can replace them (see ``engine.features``).

Fields are batches; all but those of :data:`EXACT` may be kept in half precision.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Patches(NamedTuple):
    """Tokens of the patches, before positions and class token.

    Attributes:
        tokens: (B, G, C).
        centers: (B, G, 3), what positions are computed from; (B, G, 0) where they are parameters.
    """

    tokens: Tensor
    centers: Tensor


class RecordedBranches(NamedTuple):
    """What a highway reads of the blocks that feed it, in a backbone of one stage.

    Attributes:
        attention: outputs of their attention, (B, S, 1 + G, C).
        ffn: outputs of their FFN, the same.
        tokens: output of the last block, (B, 1 + G, C).
    """

    attention: Tensor
    ffn: Tensor
    tokens: Tensor


class EarlyBlocks(NamedTuple):
    """What a method that adds to the tokens only from a block K on reads before, in a backbone of one stage.

    Attributes:
        read: what it reads of the blocks before, (B, S, L, C); the method says what the S rows are.
        tokens: on their way into block K, (B, [1 +] G, C).
        centers: of the patches, (B, G, 3); (B, G, 0) where there are none.
    """

    read: Tensor
    tokens: Tensor
    centers: Tensor


class FinalTokens(NamedTuple):
    """Output of a backbone that is frozen as a whole.

    Attributes:
        tokens: normalised, (B, 1 + G, C).
    """

    tokens: Tensor


Frozen = Patches | RecordedBranches | EarlyBlocks | FinalTokens
EXACT = ("centers",)
BRANCHES = ("attention", "ffn")


def restore(kind: type[Frozen], stored: Iterable[Tensor]) -> Frozen:
    """What a model takes, from tensors as they were kept: float32, but outputs of branches that autocast made in bf16.

    Args:
        kind: of the tensors.
        stored: its fields in order.
    """
    fields = zip(kind._fields, stored, strict=True)
    return kind(*(v if name in BRANCHES and v.dtype == torch.bfloat16 else v.float() for name, v in fields))
