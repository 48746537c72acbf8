"""The sharing mixture of adapters (SMoA): one router and one bank of experts for all blocks.

Source: Adapter-X (arXiv 2406.03051) §3.2, equations 4 to 6 and algorithm 1; top-1 routing as in Switch
Transformer (arXiv 2101.03961).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from pointadapterx.models.inspected import acts_alone
from pointadapterx.models.sites import StageSize
from pointadapterx.peft.parts.expert_batching import MANY_EXPERTS, run_grouped
from pointadapterx.peft.parts.fused_bottlenecks import can_be_fused, run_fused


class Routing(NamedTuple):
    """Which experts a mixture chose for its sub-tokens.

    Attributes:
        gates: (B, L, h, E) float32, detached; sums to 1 over the experts.
        chosen: (B, L, h, top_k) indices of the chosen experts, best first.
    """

    gates: Tensor
    chosen: Tensor


class MixtureOutput(NamedTuple):
    """Output of :class:`SharedMixture`.

    Attributes:
        tokens: (B, L, C).
        balance_loss: scalar, 1 when the load is perfectly uniform, see :func:`balance_loss`.
        routing: see :class:`Routing`.
    """

    tokens: Tensor
    balance_loss: Tensor
    routing: Routing


class Router(nn.Module):
    """Scores sub-tokens against expert embeddings: g = softmax(W x · e / ‖e‖) (equation 5).

    Args:
        width: sub-token width C / h.
        rank: dimension of the expert embeddings (the adapters' rank).
        num_experts: E.
    """

    def __init__(self, width: int, rank: int, num_experts: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, rank, bias=False)
        self.embeddings = nn.Parameter(torch.randn(num_experts, rank))

    def forward(self, sub_tokens: Tensor) -> Tensor:
        """(T, C / h) -> gates (T, E), float32 (float64 in a model of that), each row sums to 1.

        Float32 even under autocast, as in Switch Transformer: rounding must not decide a sub-token's expert.
        """
        with torch.autocast(sub_tokens.device.type, enabled=False):
            weight, directions = self._float32()
            sub_tokens = sub_tokens.to(weight.dtype)
            # e · (W x) = (e W) · x, whichever is the smaller product. Few experts come first in memory: one after the
            # other along the rows they are too few for the softmax's vectors.
            if len(directions) <= len(weight):
                return F.linear(directions @ weight, sub_tokens).softmax(dim=0).T
            return F.linear(F.linear(sub_tokens, weight), directions).softmax(dim=-1)

    def directions(self) -> Tensor:
        """e W / ‖e‖, (E, C / h), whose products with a sub-token are its scores; float32 as in :meth:`forward`."""
        with torch.autocast(self.embeddings.device.type, enabled=False):
            weight, directions = self._float32()
            return directions @ weight

    def _float32(self) -> tuple[Tensor, Tensor]:
        """W (r, C / h) and e / ‖e‖ (E, r), in float32 at least."""
        weight, dtype = self.project.weight, torch.promote_types(self.project.weight.dtype, torch.float32)
        return weight.to(dtype), F.normalize(self.embeddings.to(dtype), dim=-1)


class SharedMixture(nn.Module):
    """Splits tokens into sub-tokens, applies the chosen expert(s) to each, and merges them again.

    One instance serves every block, which keeps the number of parameters small.

    Args:
        make_expert: builds one expert of the sub-token width, (T, C / h) -> (T, C / h).
        dim: token width C, divisible by ``num_heads``.
        rank: dimension of the router's expert embeddings.
        num_experts: E.
        num_heads: h, sub-tokens per token.
        top_k: experts a sub-token is sent to; 1 as in figure 2, ``num_experts`` is the dense mixture of
            algorithm 1.
        soft_balance: the balance loss on soft loads, see :func:`balance_loss`.
        normalize: whether the chosen gates are divided by their sum, which is taken as a constant: an output is of the
            size of an expert's for every E and any gates, and the router's gradient is that of log g instead of g.

    Attributes:
        sharpness: of training, from 0, where all experts get every sub-token and count by their gates, to 1, where only
            the chosen ones count; between them both are mixed. Evaluation is always at 1.
        compiled: whether the compiled pass may serve, where it is there and takes the experts; it computes the same, in
            another order of sums.
    """

    sharpness = 1.0
    compiled = True

    def __init__(
        self,
        make_expert: Callable[[int], nn.Module],
        dim: int,
        rank: int,
        num_experts: int = 4,
        num_heads: int = 3,
        top_k: int = 1,
        *,
        soft_balance: bool = False,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        if dim % num_heads != 0:
            raise ValueError(f"dim={dim} does not divide into num_heads={num_heads} sub-tokens")
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"top_k={top_k} must be between 1 and num_experts={num_experts}")
        self.width = dim // num_heads
        self.top_k = top_k
        self.soft_balance = soft_balance
        self.normalize = normalize
        self.router = Router(self.width, rank, num_experts)
        self.experts = nn.ModuleList(make_expert(self.width) for _ in range(num_experts))

    def forward(self, tokens: Tensor) -> MixtureOutput:
        """(B, L, C) -> :class:`MixtureOutput`."""
        sub_tokens = tokens.reshape(-1, self.width)  # (B L h, C / h), equation 4
        sharpening = self.training and self.sharpness < 1.0
        if not sharpening and self._can_be_fused(sub_tokens):
            directions = self.router.directions()
            fused = run_fused(list(self.experts), directions, sub_tokens, normalize=self.normalize)
            return self.output(fused.tokens.view(tokens.shape), fused.gates, fused.chosen)
        gates = self.router(sub_tokens)
        weights, chosen = self.choose(gates)
        if sharpening:
            mixed = self.mix_dense(sub_tokens, *self.blend(gates, weights, chosen))
            return self.output(mixed.view(tokens.shape), gates, chosen)
        # Under torch.compile the groups' sizes would be data-dependent shapes, which break the graph.
        dense = self.top_k == len(self.experts) or torch.compiler.is_compiling()
        mixed = self.mix_dense(sub_tokens, weights, chosen) if dense else self.mix(sub_tokens, weights, chosen)
        return self.output(mixed.view(tokens.shape), gates, chosen)

    def _can_be_fused(self, sub_tokens: Tensor) -> bool:
        """Whether the compiled pass is there and takes what this mixture is."""
        own = (type(self).choose, type(self).mix, type(self).run_experts)
        return (
            self.compiled
            and self.top_k == 1
            and len(self.experts) < MANY_EXPERTS
            and own == (SharedMixture.choose, SharedMixture.mix, SharedMixture.run_experts)
            and type(self.router) is Router
            and acts_alone(self.router, self.router.project)
            and self.router.embeddings.dtype == torch.float32
            and can_be_fused(list(self.experts), sub_tokens)
        )

    def choose(self, gates: Tensor) -> tuple[Tensor, Tensor]:
        """Gates (T, E) -> those of the chosen experts and their indices, both (T, top_k), best first."""
        weights, chosen = gates.max(dim=-1, keepdim=True) if self.top_k == 1 else gates.topk(self.top_k, dim=-1)
        if self.normalize:
            weights = weights / weights.sum(dim=-1, keepdim=True).detach()
        return weights, chosen

    def blend(self, gates: Tensor, weights: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Between all gates (T, E) and the chosen ones, as :attr:`sharpness` says: weights and indices, (T, E) each."""
        sharp = torch.zeros_like(gates).scatter(1, chosen, weights)
        every = torch.arange(gates.shape[1], device=gates.device).expand(len(gates), -1)
        return torch.lerp(gates, sharp, self.sharpness), every

    def output(self, tokens: Tensor, gates: Tensor, chosen: Tensor) -> MixtureOutput:
        """Tokens (B, L, …), gates (B L h, E) and the chosen experts (B L h, top_k), put together."""
        split = (*tokens.shape[:-1], -1)
        chosen = chosen.view(len(gates), self.top_k)
        routing = Routing(gates.detach().view(*split, len(self.experts)), chosen.view(*split, self.top_k))
        return MixtureOutput(tokens, balance_loss(gates, chosen, soft=self.soft_balance), routing)

    def mix(self, sub_tokens: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Applies each expert only to the sub-tokens routed to it.

        Args:
            sub_tokens: (T, C / h).
            weights: (T, top_k) gates of the chosen experts.
            chosen: (T, top_k) indices of the chosen experts.

        Returns:
            (T, C / h).
        """
        expert_of = chosen.flatten()
        order = expert_of.argsort(stable=True)  # groups the (sub-token, expert) pairs by expert
        token_of = order // self.top_k
        sizes = group_sizes(expert_of, len(self.experts))
        grouped = at_least_float32_on_cpu(sub_tokens.index_select(0, token_of))
        with float32_on_cpu(sub_tokens):
            outputs = self.run_experts(grouped, expert_of.index_select(0, order), sizes)
        outputs = outputs * weights.flatten().index_select(0, order).unsqueeze(-1).to(outputs.dtype)
        return torch.zeros_like(sub_tokens, dtype=outputs.dtype).index_add(0, token_of, outputs)

    def run_experts(self, tokens: Tensor, expert_of: Tensor, sizes: Sequence[int]) -> Tensor:
        """See :func:`~pointadapterx.peft.parts.expert_batching.run_grouped`."""
        return run_grouped(list(self.experts), tokens, expert_of, sizes)

    def mix_dense(self, sub_tokens: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Applies every expert to every sub-token, weighted by its gate or by zero: the test oracle of :meth:`mix`."""
        gates = weights.new_zeros(len(sub_tokens), len(self.experts)).scatter(1, chosen, weights)
        sub_tokens = at_least_float32_on_cpu(sub_tokens)
        with float32_on_cpu(sub_tokens):
            outputs = [expert(sub_tokens) for expert in self.experts]
        return torch.stack(
            [output * gates[:, index : index + 1].to(output.dtype) for index, output in enumerate(outputs)]
        ).sum(dim=0)


def group_sizes(expert_of: Tensor, num_experts: int) -> list[int]:
    """How often each expert is chosen in ``expert_of`` (any length).

    A model that is only counted has no values to look at, and any sizes cost the same: the experts take equal shares.
    """
    if isinstance(expert_of, FakeTensor):
        return [len(part) for part in torch.arange(len(expert_of)).tensor_split(num_experts)]
    return torch.bincount(expert_of, minlength=num_experts).tolist()


def float32_on_cpu(tokens: Tensor) -> AbstractContextManager[object]:
    """No autocast on a CPU: oneDNN compiles a bf16 product for each new shape, and the groups' sizes never repeat.

    Seven times faster than bf16 for the experts of the shipped backbone; a CUDA device keeps the autocast.
    """
    return torch.autocast("cpu", enabled=False) if tokens.device.type == "cpu" else nullcontext()


def at_least_float32_on_cpu(tokens: Tensor) -> Tensor:
    """Converts bf16 from a layer under autocast to float32, for :func:`float32_on_cpu`."""
    return tokens.float() if tokens.device.type == "cpu" and tokens.itemsize < 4 else tokens


def mixture_problems(
    stages: Sequence[StageSize], num_experts: int, num_heads: int, top_k: int
) -> Iterator[tuple[str, str]]:
    """(key, message) for what cannot be in a config: widths that do not divide, more experts than there are."""
    for dim in dict.fromkeys(stage.width for stage in stages):
        if dim % num_heads != 0:
            yield "num_heads", f"{num_heads} sub-tokens do not divide backbone.dim={dim}; choose a divisor of {dim}"
    if top_k > num_experts:
        yield "top_k", f"{top_k} exceeds num_experts={num_experts}; lower it to {num_experts}"


def balance_loss(gates: Tensor, chosen: Tensor, *, soft: bool = False) -> Tensor:
    """E · Σ_p f_p · ḡ_p (equation 6): 1 when perfectly uniform, up to E when one expert takes all.

    In a dense mixture every expert gets every sub-token, f_p = 1 / E, and this is always 1, with a gradient of 0.

    Args:
        gates: (T, E).
        chosen: (T, top_k) indices.
        soft: f_p is the mean gate ḡ_p itself instead of the share of the sub-tokens sent, E · Σ_p ḡ_p², which has a
            gradient in a dense mixture too.
    """
    num_experts, mean = gates.shape[-1], gates.mean(dim=0)
    return num_experts * ((mean if soft else expert_load(chosen, num_experts)) * mean).sum()


def expert_load(chosen: Tensor, num_experts: int) -> Tensor:
    """Fraction f_p of the assignments ``chosen`` (any shape) that go to expert p: (E,), sums to 1."""
    assigned = chosen.flatten()
    counts = torch.zeros(num_experts, device=chosen.device).index_add(0, assigned, torch.ones_like(assigned).float())
    return counts / len(assigned)


def routing_statistics(
    routings: Sequence[Routing], num_patches: int, *, has_class_token: bool = True
) -> dict[str, Tensor]:
    """Health of the routing of one pass through a stage, as sums over its B samples (each mean times B).

    Args:
        routings: of the blocks in order, each (B, [1 +] P + G, h, ...): CLS, P prompts, G patch tokens.
        num_patches: G.
        has_class_token: whether the first token is CLS.

    Returns:
        ``routing/load`` (blocks, E), share of the assignments per expert; ``routing/entropy`` (blocks,), mean
        entropy of a sub-token's gates in nats, log E when they are uniform; ``routing/switched`` (blocks - 1,),
        share of the sub-tokens of CLS and patch tokens whose best expert is another than in the block before.
    """
    first = int(has_class_token)
    batch, num_experts = len(routings[0].gates), routings[0].gates.shape[-1]
    load = torch.stack([expert_load(routing.chosen, num_experts) for routing in routings])
    entropy = torch.stack([torch.special.entr(routing.gates).sum(dim=-1).mean() for routing in routings])
    best = [routing.chosen[..., 0] for routing in routings]  # (B, [1 +] P + G, h)
    kept = torch.stack([torch.cat([chosen[:, :first], chosen[:, -num_patches:]], dim=1) for chosen in best])
    switched = (kept[1:] != kept[:-1]).float().mean(dim=(1, 2, 3))
    return {"routing/load": batch * load, "routing/entropy": batch * entropy, "routing/switched": batch * switched}
