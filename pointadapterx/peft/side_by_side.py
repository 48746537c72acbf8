"""Adapters of one method as one: every sample of a batch meets the numbers of its own adapter, in a few products.

Layers are products of a batch of matrices, one a sample; the experts of all mixtures are those of a single one, so that
sub-tokens of all samples are sorted by adapter and expert at once. What lies between them is the method's own code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapterx.peft.adapter import Adapter
from pointadapterx.peft.adapter_x import AdapterX
from pointadapterx.peft.adaptformer import AdaptFormer
from pointadapterx.peft.adaptformer_x import AdaptFormerX
from pointadapterx.peft.base import Method
from pointadapterx.peft.dapt import Dapt
from pointadapterx.peft.dapt_x import DaptX
from pointadapterx.peft.lora import Lora
from pointadapterx.peft.parts.expert_batching import ExpertGroups, Grouped, can_be_grouped, grouped, run_grouped
from pointadapterx.peft.parts.mixture import MixtureOutput, Routing, SharedMixture
from pointadapterx.peft.parts.scale_shift import ScaleShift
from pointadapterx.peft.ssf import Ssf

JOINED = (Adapter, AdaptFormer, Lora, Ssf, Dapt, AdapterX, AdaptFormerX, DaptX)
"""Methods, not what is derived from them, whose code does the same to each sample, and calls its layers as modules."""

Kind = TypeVar("Kind", bound=nn.Module)


def alike(one: Method, other: Method) -> bool:
    """Whether :func:`side_by_side` takes both together; then both are attached to one backbone."""
    return type(one) is type(other) and type(one) in JOINED and one.options == other.options and _joins(one)


def _joins(module: nn.Module) -> bool:
    """Whether all tensors of a module are in layers that are known here."""
    if type(module) in LAYERS:
        return True
    own = any(True for tensors in (module.parameters(False), module.buffers(False)) for _ in tensors)
    return not own and all(map(_joins, module.children()))


def side_by_side(methods: Sequence[Method], which: Sequence[int]) -> Method:
    """One method that does to each sample what its own does, in eval mode and without gradient.

    Args:
        methods: that are all :func:`alike`.
        which: of them each sample has, in the order of the batches that come.
    """
    places: dict[int, nn.Module] = {}
    joined = _joined(methods, which, places)
    joined.hooks = []
    for hook in methods[0].hooks:
        own = copy.copy(hook)  # acts for whoever calls it; the backbone does not know of it
        own.module = places[id(hook.module)]
        joined.hooks.append(own)
    return joined


def _joined(modules: Sequence[Kind], which: Sequence[int], places: dict[int, nn.Module]) -> Kind:
    first = modules[0]
    make = LAYERS.get(type(first))
    if make is not None:
        found = make(modules, which)
    else:
        found = copy.copy(first)
        found._modules = {
            name: None if child is None else _joined([one._modules[name] for one in modules], which, places)
            for name, child in first._modules.items()
        }
    places[id(first)] = found
    return found  # type: ignore[no-any-return]


def _of_samples(tensors: Iterable[Tensor], which: Sequence[int]) -> Tensor:
    """(samples, ...)."""
    found = list(tensors)
    return torch.stack([found[place] for place in which])


def _beside(rows: Tensor, values: Tensor) -> Tensor:
    """(B, C) as what is to be broadcast to (B, ..., C)."""
    return rows.view(len(rows), *[1] * (values.ndim - 2), -1)


class _Linear(nn.Module):
    """A layer a sample."""

    def __init__(self, layers: Sequence[nn.Linear], which: Sequence[int]) -> None:
        super().__init__()
        self.matrices = _of_samples((layer.weight for layer in layers), which).mT  # (B, in, out)
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self.biases = _of_samples(biases, which).unsqueeze(1) if biases else None

    def forward(self, values: Tensor) -> Tensor:
        """(B, ..., in) -> (B, ..., out)."""
        rows = values.flatten(1, -2)
        found = rows @ self.matrices if self.biases is None else torch.baddbmm(self.biases, rows, self.matrices)
        return found.view(*values.shape[:-1], -1)


class _LayerNorm(nn.Module):
    """A norm a sample."""

    def __init__(self, norms: Sequence[nn.LayerNorm], which: Sequence[int]) -> None:
        super().__init__()
        self.shape, self.eps = norms[0].normalized_shape, norms[0].eps
        self.weights = _of_samples((norm.weight for norm in norms), which)
        self.biases = _of_samples((norm.bias for norm in norms), which)

    def forward(self, values: Tensor) -> Tensor:
        """(B, ..., C) -> (B, ..., C)."""
        found = F.layer_norm(values, self.shape, eps=self.eps)
        return torch.addcmul(_beside(self.biases, found), found, _beside(self.weights, found))


class _ScaleShift(nn.Module):
    """A scale and shift a sample."""

    def __init__(self, layers: Sequence[ScaleShift], which: Sequence[int]) -> None:
        super().__init__()
        self.gammas = _of_samples((layer.gamma for layer in layers), which)
        self.betas = _of_samples((layer.beta for layer in layers), which)

    def forward(self, values: Tensor) -> Tensor:
        """(B, ..., C) -> (B, ..., C)."""
        return torch.addcmul(_beside(self.betas, values), values, _beside(self.gammas, values))


class _Mixture(SharedMixture):
    """A mixture a sample; their experts, one mixture's after the other's, are those of this one."""

    def __init__(self, mixtures: Sequence[SharedMixture], which: Sequence[int]) -> None:
        nn.Module.__init__(self)
        first = mixtures[0]
        self.width, self.top_k, self.normalize = first.width, first.top_k, first.normalize
        self.count = len(first.experts)
        self.directions = _of_samples((mixture.router.directions() for mixture in mixtures), which)  # (B, E, C / h)
        self.firsts = self.count * torch.tensor(which, device=self.directions.device)
        self.experts = nn.ModuleList(expert for mixture in mixtures for expert in mixture.experts)
        self._grouped: Grouped | None = None

    def forward(self, tokens: Tensor) -> MixtureOutput:
        """(B, L, C) -> the same as each sample's own gives; what it says of the balance is of no use and zero."""
        sub_tokens = tokens.reshape(len(tokens), -1, self.width)
        with torch.autocast(tokens.device.type, enabled=False):  # as that of a router
            scores = torch.bmm(self.directions, sub_tokens.to(self.directions.dtype).mT)  # (B, E, L h)
        gates = scores.softmax(dim=1).mT.flatten(0, 1)
        weights, chosen = self.choose(gates)
        firsts = self.firsts.repeat_interleave(sub_tokens.shape[1]).unsqueeze(1)
        mixed = self.mix(sub_tokens.flatten(0, 1), weights, chosen + firsts)
        routing = Routing(
            gates.view(*tokens.shape[:-1], -1, self.count), chosen.view(*tokens.shape[:-1], -1, self.top_k)
        )
        return MixtureOutput(mixed.view(tokens.shape), mixed.new_zeros(()), routing)

    def run_experts(self, tokens: Tensor, expert_of: Tensor, sizes: Sequence[int]) -> Tensor:
        """All at once where that can be; one mixture serves several blocks, so it keeps the stacked matrices."""
        experts = list(self.experts)
        if self._grouped is None and can_be_grouped(experts, tokens):
            self._grouped = grouped(experts)
        if self._grouped is None:
            return run_grouped(experts, tokens, expert_of, sizes)
        return self._grouped(tokens, ExpertGroups.of(expert_of, sizes))


LAYERS: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.Linear: _Linear,
    nn.LayerNorm: _LayerNorm,
    ScaleShift: _ScaleShift,
    SharedMixture: _Mixture,
}
