"""Many small experts at once: sub-tokens sorted by expert, multiplied by the stacked matrices of the experts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

MANY_EXPERTS = 32
"""From here on all experts at once are faster than one after the other: fewer calls, whose time is not the data's."""

KNOWN = (nn.Linear, nn.LayerNorm)


class ExpertGroups(NamedTuple):
    """T sub-tokens sorted by expert.

    Attributes:
        expert_of: (T,) index of each one's expert, ascending.
        ends: (E,) int32, where each expert's group ends.
    """

    expert_of: Tensor
    ends: Tensor

    @classmethod
    def of(cls, expert_of: Tensor, sizes: Sequence[int]) -> ExpertGroups:
        """From the sorted experts and how many sub-tokens each has."""
        ends = torch.tensor(sizes, dtype=torch.int32, device=expert_of.device).cumsum(0, dtype=torch.int32)
        return cls(expert_of, ends)


Grouped = Callable[[Tensor, ExpertGroups], Tensor]
"""Sub-tokens (T, C / h), sorted by expert -> outputs of their experts, (T, C / h)."""


class Groupable(Protocol):
    """An expert whose class can run many experts in a few products."""

    @staticmethod
    def grouped(experts: Sequence[Any]) -> Grouped:
        """Stacks the matrices of the experts, and says how they run."""
        ...


def run_grouped(experts: Sequence[nn.Module], tokens: Tensor, expert_of: Tensor, sizes: Sequence[int]) -> Tensor:
    """Applies each expert to its group of sub-tokens.

    In a few products for many experts in float32 on a CPU, if their class has ``grouped`` as :class:`Groupable` does,
    and torch the product (2.10 and newer); hooks on experts are not called then. Expert by expert else, and in a model
    that is only counted, since counters know products of two matrices.

    Args:
        experts: E of one class.
        tokens: (T, C / h), sorted by expert.
        expert_of: (T,), ascending.
        sizes: E numbers of sub-tokens.

    Returns:
        (T, C / h).
    """
    if len(experts) >= MANY_EXPERTS and can_be_grouped(experts, tokens):
        return grouped(experts)(tokens, ExpertGroups.of(expert_of, sizes))
    return torch.cat([expert(group) for expert, group in zip(experts, tokens.split(list(sizes)), strict=True)])


def can_be_grouped(experts: Sequence[nn.Module], tokens: Tensor) -> bool:
    """Whether :func:`grouped` takes the experts, for such sub-tokens (T, C / h)."""
    return _has_product(tokens) and _groupable(experts)


def grouped(experts: Sequence[nn.Module]) -> Grouped:
    """Runs each expert on its group; made once for as long as the experts stay what they are."""
    return cast(Groupable, type(experts[0])).grouped(experts)


def _groupable(experts: Sequence[nn.Module]) -> bool:
    """Whether all are of one class that has ``grouped`` itself, with nothing trained in them but layers it knows.

    A derived class may have another forward; an activation may have parameters.
    """
    kind = type(experts[0])
    return "grouped" in vars(kind) and all(
        type(expert) is kind
        and all(type(module) in KNOWN for module in expert.modules() if any(True for _ in module.parameters(False)))
        for expert in experts
    )


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


def grouped_linear(tokens: Tensor, weight: Tensor, bias: Tensor, groups: ExpertGroups) -> Tensor:
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
    more, under = -inputs % 4, -outputs % 4  # the product asks for rows of whole 16 bytes
    if more:
        tokens = F.pad(tokens, (0, more))
    if more or under:
        weight = F.pad(weight, (0, more, 0, under))
    product: Tensor = F.grouped_mm(tokens, weight.mT, offs=groups.ends)
    return product[:, :outputs] + bias.index_select(0, groups.expert_of)
