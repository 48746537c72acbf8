"""Weights in eight bits: a quarter of their size in a file, and of full precision in memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pointadapterx.errors import CheckpointError

WHOLE, SCALE = ".int8", ".scale"
"""What a name ends with where a tensor is stored as whole numbers and the factors of its rows."""
LEAST = 1024  # values of a tensor that is worth it
LARGEST = 127


def packed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices as whole numbers of eight bits, the largest of a row 127, and a factor for each row; others stay.

    Args:
        tensors: of any shape; of those with two dimensions or more, the first is that of the rows.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or tensor.numel() < LEAST or not tensor.is_floating_point():
            found[name] = tensor
            continue
        rows = tensor.float().flatten(1)
        scale = rows.abs().amax(dim=1) / LARGEST
        whole = (rows / torch.where(scale == 0, 1.0, scale)[:, None]).round().to(torch.int8)
        found |= {f"{name}{WHOLE}": whole.view(tensor.shape), f"{name}{SCALE}": scale}
    return found


def unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What :func:`packed` was given, in float32 and rounded; tensors of other files as they are.

    Raises:
        CheckpointError: where whole numbers and factors do not fit together.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = name.removesuffix(WHOLE)
        if name.endswith(SCALE) and f"{name.removesuffix(SCALE)}{WHOLE}" in tensors:
            continue
        if plain == name or tensor.dtype != torch.int8:
            found[name] = tensor
            continue
        scale = tensors.get(f"{plain}{SCALE}")
        if scale is None or tensor.ndim < 2 or scale.shape != tensor.shape[:1] or not bool(torch.isfinite(scale).all()):
            raise CheckpointError(f"{plain}: its eight-bit numbers and their factors do not fit; copy the file again")
        found[plain] = tensor.float() * scale.float().view(-1, *(1,) * (tensor.ndim - 1))
    return found
