"""Low-rank updates of linear layers: of a whole layer, of thirds of a joint projection, and DoRA's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pointadapterx.peft.hooks import Change

QKV = ("q", "k", "v")
"""Names of the thirds of a joint projection, in the order of its rows."""

ALL = slice(None)


class LowRank(Change):
    """W x + s · B A x, zero at the start.

    Args:
        width: of the input.
        out: width of the output.
        rank: r.
        scale: s.
        dropout: dropout rate on the input of A.
    """

    def __init__(self, width: int, out: int, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, out, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def product(self, tokens: Tensor, features: slice = ALL) -> Tensor:
        """B A x: (..., width) -> (..., out), or some of its features."""
        hidden = self.down(self.dropout(tokens))
        return self.up(hidden) if features == ALL else F.linear(hidden, self.up.weight[features])

    def forward(self, tokens: Tensor) -> Tensor:
        """s · B A x: (..., width) -> (..., out)."""
        return self.scale * self.product(tokens)

    def change(self, layer: nn.Linear, tokens: Tensor, output: Tensor, features: slice = ALL) -> Tensor:
        """The output (..., out) of a layer, or some of its features, with the update of its input (..., width)."""
        return changed(layer, output, [(0, self, self.product(tokens, features))])

    def merged(self, weight: Tensor) -> Tensor:
        """W + s · B A, (out, width)."""
        return weight + self.scale * self.up.weight @ self.down.weight

    def start(self, weight: Tensor) -> None:
        """Called once with W (out, width), after the update was created."""

    def of_rows(self, output: Tensor, product: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """W x + b (..., out) and B A x (..., out) -> what takes the place of the first."""
        return output + self.scale * product


class WeightDecomposed(LowRank):
    """m ⊙ (W + s · B A) / ‖W + s · B A‖ x, with one norm and one magnitude a row; m = ‖W‖ at the start.

    The norm is a constant in the backward pass (§4.3 of arXiv 2402.09353). Arguments are those of :class:`LowRank`.
    """

    def __init__(self, width: int, out: int, rank: int, scale: float, dropout: float) -> None:
        super().__init__(width, out, rank, scale, dropout)
        self.magnitude = nn.Parameter(torch.empty(out))

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        """m = ‖W‖."""
        self.magnitude.copy_(_row_norms(weight.to(self.magnitude.dtype)))

    def of_rows(self, output: Tensor, product: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """W x + b (..., out) and B A x (..., out) -> g ⊙ (W x + s · B A x) + b with g = m / ‖W + s · B A‖."""
        moved = output + self.scale * product
        unbiased = moved if bias is None else moved - bias.to(moved.dtype)
        return torch.addcmul(moved, unbiased, (self._ratio(weight) - 1.0).to(moved.dtype))  # exact where g = 1

    def merged(self, weight: Tensor) -> Tensor:
        """g ⊙ (W + s · B A), (out, width)."""
        return self._ratio(weight).unsqueeze(1).to(weight.dtype) * super().merged(weight)

    def _ratio(self, weight: Tensor) -> Tensor:
        return self.magnitude / self._norm(weight)

    @torch.no_grad()
    def _norm(self, weight: Tensor) -> Tensor:
        """‖W + s · B A‖ of each row, (out,), in float32 under autocast too."""
        with torch.autocast(weight.device.type, enabled=False):
            up = self.up.weight
            return _row_norms(torch.addmm(weight.to(up.dtype), up, self.down.weight, alpha=self.scale))


def _row_norms(weight: Tensor) -> Tensor:
    return torch.linalg.vector_norm(weight, dim=1)


class LowRankQkv(Change):
    """Low-rank updates of queries, keys or values where one layer computes all three.

    Args:
        parts: by name, in any order.
        dim: width C of each.
    """

    def __init__(self, parts: Mapping[str, LowRank], dim: int) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.dim = dim

    def change(self, layer: nn.Linear, tokens: Tensor, output: Tensor, features: slice = ALL) -> Tensor:
        """The output (B, L, 3 C) of the joint projection, or of one third, with updates of its input (B, L, C)."""
        start, stop, _ = features.indices(3 * self.dim)
        inside = [(first, part) for first, part in self._placed() if start <= first < stop]
        return changed(layer, output, [(first - start, part, part.product(tokens)) for first, part in inside])

    def merged(self, weight: Tensor) -> Tensor:
        """The weight (3 C, C) of the joint projection with the updates; the same for q, k or v without one."""
        merged = weight.clone()
        for first, part in self._placed():
            rows = slice(first, first + self.dim)
            merged[rows] = part.merged(weight[rows])
        return merged

    def start(self, weight: Tensor) -> None:
        """Called once with the weight (3 C, C), after the updates were created."""
        for first, part in self._placed():
            part.start(weight[first : first + self.dim])

    def _placed(self) -> list[tuple[int, LowRank]]:
        """Each update with the first row of its third."""
        return [(QKV.index(name) * self.dim, part) for name, part in self.parts.items() if isinstance(part, LowRank)]


def changed(layer: nn.Linear, output: Tensor, parts: Sequence[tuple[int, LowRank, Tensor]]) -> Tensor:
    """The output of a layer with updates of some of its features.

    Args:
        layer: that computed it.
        output: (..., out).
        parts: first feature, update and its product B A x (..., n), which do not overlap.
    """
    if not parts:
        return output
    parts = sorted(parts, key=lambda part: part[0])
    plain = not any(isinstance(update, WeightDecomposed) for _, update, _ in parts)
    if plain and parts[0][2].shape == output.shape:
        return _sum(output, parts[0][2], parts[0][1].scale)
    if plain and output.dtype == parts[0][2].dtype and not torch.compiler.is_compiling():
        firsts, scales = [first for first, _, _ in parts], [update.scale for _, update, _ in parts]
        return _Added.apply(output, scales, firsts, *(product for _, _, product in parts))
    new, end = [], 0
    for first, update, product in parts:
        rows = slice(first, first + product.shape[-1])
        bias = None if layer.bias is None else layer.bias[rows]
        new += [output[..., end:first], update.of_rows(output[..., rows], product, layer.weight[rows], bias)]
        end = rows.stop
    return _joined([*new, output[..., end:]])


def _joined(parts: Iterable[Tensor]) -> Tensor:
    """Parts (..., n) side by side, without the empty ones."""
    found = [part for part in parts if part.shape[-1]]
    return found[0] if len(found) == 1 else torch.cat(found, dim=-1)


class _Added(torch.autograd.Function):
    """Adds s · product to some of a tensor's columns, in one new tensor and without zeros for the other columns."""

    @staticmethod
    def forward(output: Tensor, scales: list[float], firsts: list[int], *products: Tensor) -> Tensor:
        """(..., out), factors and rising first columns of (..., n) tensors -> (..., out)."""
        result = torch.empty_like(output)
        end = 0
        for first, scale, product in zip(firsts, scales, products, strict=True):
            columns = slice(first, first + product.shape[-1])
            if end < first:
                result[..., end:first] = output[..., end:first]
            target = result[..., columns]
            if scale == 1.0:
                torch.add(output[..., columns], product, out=target)
            else:
                torch.mul(product, scale, out=target).add_(output[..., columns])
            end = columns.stop
        if end < output.shape[-1]:
            result[..., end:] = output[..., end:]
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keeps no tensor."""
        _, ctx.scales, firsts, *products = inputs
        ctx.columns = [slice(first, first + p.shape[-1]) for first, p in zip(firsts, products, strict=True)]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """The gradient itself, and s times its columns."""
        parts = [grad[..., columns] for columns in ctx.columns]
        scaled = [part if scale == 1.0 else part * scale for part, scale in zip(parts, ctx.scales, strict=True)]
        return grad, None, None, *scaled


def _sum(output: Tensor, product: Tensor, scale: float) -> Tensor:
    """output + s · product of one shape, rounded twice: where s · product is exact, in one operation."""
    if math.frexp(scale)[0] == 0.5:  # a power of two
        return torch.add(output, product, alpha=scale)
    return output + scale * product
