"""Many small experts at once: sub-tokens sorted by expert, times a stack of the experts' matrices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

MANY_EXPERTS = 16
"""From here on one call for all experts is faster than one for each."""


class Groups(NamedTuple):
    """T sub-tokens sorted by expert.

    Attributes:
        expert_of: (T,) index of each one's expert, ascending.
        ends: (E,) int32, where each expert's group ends.
    """

    expert_of: Tensor
    ends: Tensor

    @classmethod
    def of(cls, expert_of: Tensor, sizes: Sequence[int]) -> Groups:
        """From the sorted experts and how many sub-tokens each has."""
        ends = torch.tensor(sizes, dtype=torch.int32, device=expert_of.device).cumsum(0, dtype=torch.int32)
        return cls(expert_of, ends)


@runtime_checkable
class Groupable(Protocol):
    """An expert whose class can run many experts in a few products."""

    @staticmethod
    def grouped(experts: Sequence[Any], tokens: Tensor, groups: Groups) -> Tensor:
        """Sub-tokens (T, C / h), sorted by expert -> what their experts make of them, (T, C / h)."""
        ...


def run_grouped(experts: Sequence[nn.Module], tokens: Tensor, expert_of: Tensor, sizes: Sequence[int]) -> Tensor:
    """What each expert makes of its group of sub-tokens.

    In a few products for many experts of a :class:`Groupable` class, in float32 on a CPU, where torch has the product;
    expert by expert else, and in a model that is only counted, since counters know products of two matrices.

    Args:
        experts: E of one class.
        tokens: (T, C / h), sorted by expert.
        expert_of: (T,), ascending.
        sizes: E numbers of sub-tokens.

    Returns:
        (T, C / h).
    """
    first = experts[0]
    own = "grouped" in vars(type(first))  # a subclass may have another forward
    if own and isinstance(first, Groupable) and len(experts) >= MANY_EXPERTS and _has_product(tokens):
        return first.grouped(experts, tokens, Groups.of(expert_of, sizes))
    return torch.cat([expert(group) for expert, group in zip(experts, tokens.split(list(sizes)), strict=True)])


def _has_product(tokens: Tensor) -> bool:
    return (
        tokens.device.type == "cpu"
        and tokens.dtype == torch.float32
        and hasattr(F, "grouped_mm")
        and not isinstance(tokens, FakeTensor)
    )


def stacked(parameters: Iterable[Tensor]) -> Tensor:
    """Parameters of the experts, one row each."""
    return torch.stack(list(parameters))


def grouped_linear(tokens: Tensor, weight: Tensor, bias: Tensor, groups: Groups) -> Tensor:
    """Each group times its expert's matrix, plus its bias.

    Args:
        tokens: (T, in) float32.
        weight: (E, out, in).
        bias: (E, out).
        groups: of the tokens.

    Returns:
        (T, out).
    """
    outputs, inputs = weight.shape[1:]
    more = -inputs % 4  # the product asks for rows of whole 16 bytes
    matrices = F.pad(weight, (0, more, 0, -outputs % 4)).mT
    product: Tensor = F.grouped_mm(F.pad(tokens, (0, more)) if more else tokens, matrices, offs=groups.ends)
    return product[:, :outputs] + bias.index_select(0, groups.expert_of)
