"""Adapters of one method as one: every sample of a batch meets the numbers of its own adapter, in a few products.

Layers are products of a batch of matrices, one a sample; the experts of all mixtures are those of a single one, so that
sub-tokens of all samples are sorted by adapter and expert at once. What lies between them is the method's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

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

Layer = Callable[[Tensor], Any]


def form_of(method: Method) -> str | None:
    """Equal for methods on one backbone that :func:`side_by_side` makes one; None for one that it does not take."""
    return f"{method.options!r}" if type(method) in JOINED and _joins(method) else None


def _joins(module: nn.Module) -> bool:
    """Whether all tensors of a module are in layers that are known here."""
    if type(module) in LAYERS:
        return True
    own = any(True for tensors in (module.parameters(False), module.buffers(False)) for _ in tensors)
    return not own and all(map(_joins, module.children()))


def side_by_side(methods: Sequence[Method], which: Sequence[int]) -> Method:
    """One method that does to each sample what its own does, in eval mode and without gradient.

    Args:
        methods: of one :func:`form_of`.
        which: of them each sample has, in the order of the batches that come.
    """
    places: dict[int, Any] = {}
    joined: Method = _joined(methods, which, places)
    joined.hooks = []
    for hook in methods[0].hooks:
        own = _copied(hook)  # acts for whoever calls it; the backbone does not know of it
        own.module = places[id(hook.module)]
        joined.hooks.append(own)
    return joined


def _joined(modules: Sequence[nn.Module], which: Sequence[int], places: dict[int, Any]) -> Any:
    first = modules[0]
    make = LAYERS.get(type(first))
    if make is not None:
        found = make(modules, which)
    else:
        found = _copied(first)
        found._modules = {
            name: _joined([one._modules[name] for one in modules], which, places)  # type: ignore[misc]
            for name in first._modules
        }
    places[id(first)] = found
    return found


def _copied(one: Any) -> Any:
    """A copy with the same attributes, as :func:`copy.copy` makes it, which takes long of a module."""
    found = object.__new__(type(one))
    found.__dict__.update(one.__dict__)
    return found


def _of_samples(tensors: Iterable[Tensor], which: Sequence[int]) -> Tensor:
    """(samples, ...)."""
    found = list(tensors)
    return torch.stack([found[place] for place in which])


def _beside(rows: Tensor, values: Tensor) -> Tensor:
    """(B, C) as what is to be broadcast to (B, ..., C)."""
    return rows.view(len(rows), *[1] * (values.ndim - 2), -1)


def _linear(layers: Sequence[nn.Linear], which: Sequence[int]) -> Layer:
    """A layer a sample, (B, ..., in) -> (B, ..., out)."""
    matrices = _of_samples((layer.weight for layer in layers), which).mT  # (B, in, out)
    has_bias = layers[0].bias is not None
    biases = _of_samples((layer.bias for layer in layers), which).unsqueeze(1) if has_bias else None

    def run(values: Tensor) -> Tensor:
        rows = values.flatten(1, -2)
        found = torch.bmm(rows, matrices) if biases is None else torch.baddbmm(biases, rows, matrices)
        return found.view(*values.shape[:-1], -1)

    return run


def _layer_norm(norms: Sequence[nn.LayerNorm], which: Sequence[int]) -> Layer:
    """A norm a sample, (B, ..., C) -> (B, ..., C)."""
    shape, eps = norms[0].normalized_shape, norms[0].eps
    weights, biases = (_of_samples((getattr(norm, name) for norm in norms), which) for name in ("weight", "bias"))

    def run(values: Tensor) -> Tensor:
        found = F.layer_norm(values, shape, eps=eps)
        return torch.addcmul(_beside(biases, found), found, _beside(weights, found))

    return run


def _scale_shift(layers: Sequence[ScaleShift], which: Sequence[int]) -> Layer:
    """A scale and shift a sample, (B, ..., C) -> (B, ..., C)."""
    gammas, betas = (_of_samples((getattr(layer, name) for layer in layers), which) for name in ("gamma", "beta"))
    return lambda values: torch.addcmul(_beside(betas, values), values, _beside(gammas, values))


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


LAYERS: dict[type[nn.Module], Callable[[Any, Sequence[int]], Layer]] = {
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
    ScaleShift: _scale_shift,
    SharedMixture: _Mixture,
}
