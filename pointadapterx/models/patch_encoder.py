"""The mini-PointNet that turns each group of points into one token (Point-MAE §3.1, Point-BERT §3.1)."""

from __future__ import annotations

from collections.abc import Callable

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
    """

    def __init__(self, dim: int, width: int = 128) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 2 * width))
        self.second = nn.Sequential(
            nn.Linear(4 * width, 4 * width), nn.BatchNorm1d(4 * width), nn.ReLU(), nn.Linear(4 * width, dim)
        )

    @property
    def projection(self) -> nn.Linear:
        """The last layer, before the maximum over the points."""
        last = self.second[-1]
        assert isinstance(last, nn.Linear)
        return last

    def forward(self, neighborhood: Tensor) -> Tensor:
        """(..., k, 3), relative to the centres -> patch tokens (..., C)."""
        leading, size = neighborhood.shape[:-2], neighborhood.shape[-2]
        points = neighborhood.reshape(-1, 3)
        local = _mlp(self.first, lambda weight, bias: F.linear(points, weight, bias)).unflatten(0, (-1, size))
        shared = local.amax(dim=1, keepdim=True)  # (groups, 1, 2w)

        def joint(weight: Tensor, bias: Tensor) -> Tensor:
            """The layer on [shared, local]: the shared half is the same for all k points, so it is computed once."""
            of_shared, of_local = weight.split(shared.shape[-1], dim=1)
            return F.linear(local, of_local).add_(F.linear(shared, of_shared, bias)).flatten(0, 1)

        encoded = _mlp(self.second, joint).unflatten(0, (-1, size))
        return encoded.amax(dim=1).unflatten(0, leading)


def _mlp(layers: nn.Sequential, first: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Linear, BatchNorm, ReLU, Linear; ``first`` applies a weight and a bias as the first linear layer does.

    BatchNorm in eval mode is an affine map, so it is folded into the layer before it.
    """
    linear, norm, _, last = layers
    assert isinstance(linear, nn.Linear)
    assert isinstance(norm, nn.BatchNorm1d)
    if norm.training:
        return last(F.relu(norm(first(linear.weight, linear.bias))))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    hidden = first(linear.weight * scale.unsqueeze(1), (linear.bias - norm.running_mean) * scale + norm.bias)
    return last(F.relu(hidden, inplace=True))
