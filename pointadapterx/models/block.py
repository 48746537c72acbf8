"""The one transformer block of every backbone: pre-norm attention and FFN, with sites for methods.

Sources: ViT (arXiv 2010.11929); Point-MAE (arXiv 2203.06604) uses the same block without a qkv bias.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pointadapterx.models.packing import linear_gelu
from pointadapterx.models.sites import Site
from pointadapterx.models.tokens import insert_after_cls


class FfnUpdate(NamedTuple):
    """What a method adds to one block: a branch at its site ``ffn``, and a prompt at its site ``block``.

    Attributes:
        update: (B, L, C), added to the FFN's output, behind LayerScale and before drop path.
        prompt: (B, P, C) tokens inserted right after CLS in the block's output, or None.
        loss: scalar auxiliary loss of this block (the mixture's balance loss), or None.
    """

    update: Tensor
    prompt: Tensor | None = None
    loss: Tensor | None = None


# (FFN input u = norm2(h), FFN output mlp(u)), both (B, L, C) -> what to add
AdaptFfn = Callable[[Tensor, Tensor], FfnUpdate | None]


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch for whole samples while training (arXiv 1603.09382).

    Args:
        rate: probability in [0, 1) of dropping the branch; what remains is scaled by 1 / (1 - rate).
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        if not self.training or self.rate == 0.0:
            return branch
        # One product and one rounding: the factor itself is not rounded to bf16.
        wide = torch.promote_types(branch.dtype, torch.float32)
        keep = branch.new_empty((branch.shape[0], 1, 1), dtype=wide).bernoulli_(1.0 - self.rate)
        return (branch * (keep / (1.0 - self.rate))).to(branch.dtype)

    def extra_repr(self) -> str:
        """Shows the rate in ``print(model)``."""
        return f"rate={self.rate:.3f}"


class LayerScale(nn.Module):
    """Scales each feature of a residual branch (arXiv 2103.17239), as DINOv2 and DeiT III do.

    Args:
        dim: token width C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 1e-5))

    def forward(self, branch: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        return branch * self.gamma


class Branch(nn.Module):
    """A residual branch: what it returns is added to the tokens, so LayerScale, where there is one, is its last step.

    The scale belongs to the block, which names it as checkpoints do, and not to the branch.
    """

    _scales: tuple[LayerScale, ...] = ()

    def end_with(self, scale: LayerScale) -> None:
        """Makes ``scale`` the last step; a tuple does not register it as a part of this module."""
        self._scales = (scale,)

    @property
    def closing_scale(self) -> LayerScale | None:
        """The last step, if there is one."""
        return self._scales[0] if self._scales else None

    def scaled(self, output: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        for scale in self._scales:
            output = scale(output)
        return output


class Attention(Branch):
    """Multi-head self-attention.

    Args:
        dim: token width C, divisible by ``num_heads``.
        num_heads: number of attention heads.
        qkv_bias: whether the joint query-key-value projection has a bias (ViT: yes, Point-MAE: no).
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        batch, length, dim = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, length, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, L, C / heads)
        mixed = _attend(query, key, value)
        return self.scaled(self.proj(mixed.transpose(1, 2).reshape(batch, length, dim)))


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) v over (B, heads, L, d)."""
    half = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    if query.device.type == "cpu" and half == torch.bfloat16:
        # The fused kernel's backward is slow there; at the lengths of these models the plain form is much faster.
        return (query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)).softmax(dim=-1) @ value
    return F.scaled_dot_product_attention(query, key, value)


class Mlp(Branch):
    """The FFN: Linear, GELU, Linear.

    Args:
        dim: token width C.
        hidden_dim: inner width, 4 C in both backbones.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        return self.scaled(self.fc2(linear_gelu(self.fc1, self.act, tokens)))


class Block(nn.Module):
    """Pre-norm transformer block: ``h = x + attn(norm1(x)); y = h + mlp(norm2(h))``.

    Args:
        dim: token width C.
        num_heads: attention heads.
        mlp_ratio: FFN width over C.
        qkv_bias: see :class:`Attention`.
        drop_path: stochastic-depth rate of both residual branches.
        norm_eps: epsilon of the layer norms (Point-MAE 1e-5, ViT 1e-6).
        layer_scale: whether attention and FFN end with a :class:`LayerScale`.

    Attributes:
        recomputed: whether activations are recomputed in the backward pass instead of being kept.
    """

    recomputed = False

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
        layer_scale: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)
        if layer_scale:
            self.ls1, self.ls2 = LayerScale(dim), LayerScale(dim)
            self.attn.end_with(self.ls1)
            self.mlp.end_with(self.ls2)

    @property
    def num_heads(self) -> int:
        """Of its attention."""
        return self.attn.num_heads

    def sites(self) -> list[Site]:
        """All of :data:`~pointadapterx.models.sites.SITES`."""
        dim, hidden = self.attn.proj.out_features, self.mlp.fc1.out_features
        return [
            Site("norm1", self.norm1, dim),
            Site("qkv", self.attn.qkv, 3 * dim),
            Site("attention", self.attn, dim),
            Site("proj", self.attn.proj, dim),
            Site("norm2", self.norm2, dim),
            Site("ffn", self.mlp, dim),
            Site("fc1", self.mlp.fc1, hidden),
            Site("act", self.mlp.act, hidden),
            Site("fc2", self.mlp.fc2, dim),
            Site("block", self, dim),
        ]

    def forward(self, tokens: Tensor, adapt: AdaptFfn | None = None) -> tuple[Tensor, Tensor | None]:
        """Runs the block.

        Args:
            tokens: (B, L, C), CLS first.
            adapt: what a method adds to the FFN, see :data:`AdaptFfn`.

        Returns:
            Tokens (B, L + P, C), where P prompt tokens may have been inserted after CLS, and the
            method's auxiliary loss (scalar) or None.
        """
        if self.recomputed and torch.is_grad_enabled():
            return checkpoint(self._run, tokens, adapt, use_reentrant=False)
        return self._run(tokens, adapt)

    def _run(self, tokens: Tensor, adapt: AdaptFfn | None) -> tuple[Tensor, Tensor | None]:
        hidden = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        ffn_input = self.norm2(hidden)
        ffn = self.mlp(ffn_input)
        added = adapt(ffn_input, ffn) if adapt is not None else None
        if added is None:
            return hidden + self.drop_path(ffn), None
        output = hidden + self.drop_path(ffn + added.update)
        if added.prompt is not None:
            output = insert_after_cls(output, added.prompt)
        return output, added.loss

    def branches(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L, C) -> outputs of attention and FFN, and of the block, (B, L, C) each, without drop path.

        For methods beside the frozen backbone, which read it.
        """
        if self.recomputed and torch.is_grad_enabled():
            found: tuple[Tensor, Tensor, Tensor] = checkpoint(self._branches, tokens, use_reentrant=False)
            return found
        return self._branches(tokens)

    def _branches(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attention = self.attn(self.norm1(tokens))
        hidden = tokens + attention
        ffn = self.mlp(self.norm2(hidden))
        return attention, ffn, hidden + ffn


def drop_path_schedule(rate: float, depth: int) -> list[float]:
    """Drop-path rates that rise linearly from 0 at the first block to ``rate`` at the last."""
    return [rate * index / max(depth - 1, 1) for index in range(depth)]


def recompute_activations(model: nn.Module, wanted: bool) -> None:
    """Makes every block of a model compute its activations again in the backward pass, or keep them.

    What has blocks of another kind has an attribute of the same name.
    """
    for module in model.modules():
        if hasattr(type(module), "recomputed"):
            setattr(module, "recomputed", wanted)  # noqa: B010
