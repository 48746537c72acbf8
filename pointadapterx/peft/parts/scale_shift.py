"""Scale and shift of features, which several methods place behind layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class ScaleShift(nn.Module):
    """y = x ⊙ γ + β with vectors γ, β: DAPT's TFTS, SSF's layer, and the X prompt generator's affine part.

    Args:
        dim: width C.
        std: standard deviation of the initial γ (around ``scale``) and β (around 0).
        scale: mean of the initial γ; 1 with ``std`` 0 is the identity.
    """

    def __init__(self, dim: int, std: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), scale))
        self.beta = nn.Parameter(torch.zeros(dim))
        if std > 0.0:
            nn.init.normal_(self.gamma, mean=scale, std=std)
            nn.init.normal_(self.beta, std=std)

    def forward(self, values: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return scale_and_shift(values, self.gamma, self.beta)

    def third(self, values: Tensor, place: int) -> Tensor:
        """Queries (0), keys (1) or values (2) of a layer for each, (..., C / 3) -> (..., C / 3)."""
        return scale_and_shift(values, self.gamma.chunk(3)[place], self.beta.chunk(3)[place])


def scale_and_shift(values: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """(..., C), (C,), (C,) -> (..., C)."""
    if torch.compiler.is_compiling() or values.device.type != "cpu" or not torch.is_grad_enabled():
        return torch.addcmul(beta, values, gamma)
    return _ScaleShift.apply(values, gamma, beta)


class _ScaleShift(torch.autograd.Function):
    """addcmul on a CPU; its three gradients are computed for a few rows at a time, while these are in the cache."""

    CHUNK = 2**17  # values

    @staticmethod
    def forward(values: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        """(..., C), (C,), (C,) -> (..., C)."""
        return torch.addcmul(beta, values, gamma)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        """Keeps what the gradients are computed from."""
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """γ ⊙ g, and sums over the rows of g ⊙ x and g."""
        values, gamma = ctx.saved_tensors
        of_gamma, of_beta = torch.zeros_like(gamma), torch.zeros_like(gamma)
        needed = ctx.needs_input_grad[0]
        of_values = torch.empty_like(values, memory_format=torch.contiguous_format) if needed else None
        rows = max(_ScaleShift.CHUNK // len(gamma), 1)
        parts = [tensor.reshape(-1, len(gamma)).split(rows) for tensor in (grad, values)]
        targets = of_values.view(-1, len(gamma)).split(rows) if of_values is not None else [None] * len(parts[0])
        for of_output, part, target in zip(*parts, targets, strict=True):
            of_gamma += (of_output * part).sum(dim=0)
            of_beta += of_output.sum(dim=0)
            if target is not None:
                torch.mul(of_output, gamma, out=target)
        return of_values, of_gamma, of_beta
