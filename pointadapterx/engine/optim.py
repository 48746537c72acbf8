"""Optimiser and learning-rate schedule of the published recipes."""

from __future__ import annotations

import math

import torch
from torch import nn

from pointadapterx.models.trainable import TrainableModel
from pointadapterx.sections import TrainConfig


def build_optimizer(model: TrainableModel, train: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; no decay on 1-D tensors, biases and tokens.

    Args:
        model: an adapted one frozen by ownership already, not yet wrapped for distribution.
        train: the ``train`` section.
    """
    tokens = {id(parameter) for parameter in model.undecayed_parameters()}
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim <= 1 or name.endswith(".bias") or id(parameter) in tokens
            (undecayed if plain else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": train.weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=train.lr, fused=True)


def learning_rate(epoch: int, train: TrainConfig) -> float:
    """Linear warm-up from ``warmup_lr``, then a cosine to ``min_lr``, constant within an epoch.

    As in the published recipes the cosine spans all epochs, warm-up included.

    Args:
        epoch: from 0.
        train: the ``train`` section.
    """
    peak, warmup = train.lr, train.warmup_epochs
    if epoch < warmup:
        return train.warmup_lr + (peak - train.warmup_lr) * epoch / warmup
    cosine = 0.5 * (1.0 + math.cos(math.pi * epoch / train.epochs))
    return train.min_lr + (peak - train.min_lr) * cosine
