"""The mini-PointNet that turns each group of points into one token (Point-MAE §3.1, Point-BERT §3.1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchEncoder(nn.Module):
    """Shared MLP, max over the group, shared MLP on point and group features, max over the group.

    3 -> w -> BN -> ReLU -> 2w, the group's maximum concatenated to each point (4w), 4w -> 4w -> BN -> ReLU -> C,
    with w = 128 as published. The published 1x1 convolutions are linear layers here, which is the same
    operation on the layout (points, channels).

    Args:
        dim: output width C.
        width: w.
        bias: whether the layers before BatchNorm have a bias, which BatchNorm takes away again (Point-JEPA: no).
    """

    def __init__(self, dim: int, width: int = 128, *, bias: bool = True) -> None:
        super().__init__()
        self.first = _shared_mlp(3, width, 2 * width, bias)
        self.second = _shared_mlp(4 * width, 4 * width, dim, bias)

    @property
    def projection(self) -> nn.Linear:
        """The last layer, before the maximum over the points."""
        last = self.second[-1]
        assert isinstance(last, nn.Linear)
        return last

    def forward(self, neighborhood: Tensor) -> Tensor:
        """(..., k, 3), relative to the centres -> patch tokens (..., C)."""
        leading = neighborhood.shape[:-2]
        groups = neighborhood.reshape(-1, *neighborhood.shape[-2:])
        inside = [module for module in self.modules() if module is not self]
        plain = any(isinstance(module, nn.BatchNorm1d) and module.training for module in inside)
        plain = plain or any(module._forward_hooks for module in inside)
        return (self._plain(groups) if plain else self._folded(groups)).unflatten(0, leading)

    def _plain(self, groups: Tensor) -> Tensor:
        """(g, k, 3) -> (g, C), layer by layer; of the product with [shared, local], the shared half once a group."""
        size = (-1, groups.shape[1])
        local = self.first(groups.flatten(0, 1)).unflatten(0, size)
        shared = local.amax(dim=1, keepdim=True)  # (g, 1, 2w)
        layer = self.second[0]
        assert isinstance(layer, nn.Linear)
        if layer._forward_hooks:
            joint = layer(torch.cat([shared.expand_as(local), local], dim=-1))
        else:
            of_shared, of_local = layer.weight.split(shared.shape[-1], dim=1)
            joint = F.linear(local, of_local).add_(F.linear(shared, of_shared, layer.bias))
        return self.second[1:](joint.flatten(0, 1)).unflatten(0, size).amax(dim=1)

    def _folded(self, groups: Tensor) -> Tensor:
        """The same with BatchNorm's statistics fixed, in 0.8 times the multiplications.

        BatchNorm is an affine map, which its linear layer takes in. The product with [shared, local] is computed once
        a group for the shared half; between the local half and the layer before it there is no activation, so both are
        one matrix. A bias commutes with the maximum.
        """
        inner, last = self.first[-1], self.projection
        assert isinstance(inner, nn.Linear)
        inwards, outwards = _without_norm(self.first), _without_norm(self.second)
        of_shared, of_local = outwards.weight.split(inner.weight.shape[0], dim=1)
        with torch.autocast(groups.device.type, enabled=False):  # a product of weights is rounded once, not twice
            direct, bias = of_local @ inner.weight, outwards.bias + of_local @ inner.bias
        tokens = []
        for part in [groups] if torch.compiler.is_compiling() else groups.split(_groups_at_once(groups)):
            size = (-1, part.shape[1])
            hidden = F.relu(F.linear(part.flatten(0, 1), *inwards), inplace=True)  # (g k, w)
            shared = F.linear(hidden, inner.weight).unflatten(0, size).amax(dim=1) + inner.bias  # (g, 2w)
            joint = F.linear(hidden, direct).unflatten(0, size)  # (g, k, 4w)
            joint = joint.add_(F.linear(shared, of_shared, bias).unsqueeze(1)).relu_()
            tokens.append(F.linear(joint.flatten(0, 1), last.weight).unflatten(0, size).amax(dim=1) + last.bias)
        return torch.cat(tokens)


def _shared_mlp(inputs: int, hidden: int, outputs: int, bias: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden, bias=bias), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )


class _Affine(NamedTuple):
    weight: Tensor
    bias: Tensor


def _without_norm(layers: nn.Sequential) -> _Affine:
    """The first linear layer of Linear, BatchNorm, … with the norm's fixed statistics in it."""
    linear, norm = layers[0], layers[1]
    assert isinstance(linear, nn.Linear)
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    centre = -norm.running_mean if linear.bias is None else linear.bias - norm.running_mean
    return _Affine(linear.weight * scale.unsqueeze(1), centre * scale + norm.bias)


def _groups_at_once(groups: Tensor) -> int:
    """How many groups (g, k, 3) to encode at once, so that hidden features stay in the cache and memory is bounded."""
    points = 2**12 if groups.device.type == "cpu" else 2**18
    return max(points // groups.shape[1], 1)
