"""Tensors as arrays of numpy's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def as_array(tensor: Tensor) -> np.ndarray:
    """A tensor's values as an array, from any device and in any precision.

    numpy has no bfloat16, in which a model computes under ``train.precision=bf16``; all floating-point types below
    float32 become float32.

    Args:
        tensor: of any device; its gradient is left behind.

    Returns:
        An array of the same shape, which shares the memory of a float32, float64 or integer tensor on the CPU.
    """
    values = tensor.detach().cpu()
    if values.is_floating_point() and values.dtype not in (torch.float32, torch.float64):
        values = values.float()
    return values.numpy()
