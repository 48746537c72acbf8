"""Optimiser and learning-rate schedule of the published recipes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pointadapterx.datasets import Samples
from pointadapterx.errors import TrainingError
from pointadapterx.models.trainable import TrainableModel
from pointadapterx.sections import TrainConfig

FACTOR = "lr_factor"
"""Of the learning rate, in a group of the optimiser that has one."""


def build_optimizer(model: TrainableModel, train: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; no decay on 1-D tensors, biases and tokens.

    Groups of their own for parameters whose learning rate has a factor, see :meth:`TrainableModel.learning_rates`.

    Args:
        model: an adapted one frozen by ownership already, not yet wrapped for distribution.
        train: the ``train`` section.
    """
    tokens = {id(parameter) for parameter in model.undecayed_parameters()}
    factors = model.learning_rates()
    found: dict[float, tuple[list[nn.Parameter], list[nn.Parameter]]] = {1.0: ([], [])}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim <= 1 or name.endswith(".bias") or id(parameter) in tokens
            decayed, undecayed = found.setdefault(factors.get(id(parameter), 1.0), ([], []))
            (undecayed if plain else decayed).append(parameter)
    groups = [
        {
            "params": parameters,
            "weight_decay": decay,
            "lr": factor * train.lr,
            **({} if factor == 1.0 else {FACTOR: factor}),
        }
        for factor, parts in found.items()
        for parameters, decay in zip(parts, (train.weight_decay, 0.0), strict=True)
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=train.lr, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of every group, times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(FACTOR, 1.0)


def learning_rate(epoch: int, train: TrainConfig) -> float:
    """Linear warm-up from ``warmup_lr``, then a cosine to ``min_lr``, constant within an epoch.

    As in the published recipes the cosine spans all epochs, warm-up included, or ``cosine_epochs``. The last
    ``cooldown_epochs`` fall in a line to ``min_lr`` from where the cosine is then.

    Args:
        epoch: from 0.
        train: the ``train`` section.
    """
    peak, warmup = train.lr, train.warmup_epochs
    if epoch < warmup:
        return train.warmup_lr + (peak - train.warmup_lr) * epoch / warmup
    last = train.cooldown_epochs or 0
    begin = train.epochs - last
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(epoch, begin) / (train.cosine_epochs or train.epochs)))
    left = (train.epochs - epoch) / last if epoch > begin else 1.0
    return train.min_lr + (peak - train.min_lr) * cosine * left


def refused_step(data: Samples, epoch: int, step: int, what: str, parts: Sequence[Tensor]) -> TrainingError:
    """The error for a step whose loss or gradient is not finite.

    Args:
        data: training samples.
        epoch: from 0.
        step: of the epoch, from 0.
        what: is not finite.
        parts: indices (b,) of the samples that it comes from; none where another process has them.
    """
    chosen = torch.cat(list(parts)).sort().values if parts else torch.empty(0, dtype=torch.int64)
    where = f"samples {data.positions[chosen].tolist()} of the training file" if parts else "another process's samples"
    return TrainingError(
        f"the {what} of epoch {epoch + 1}, step {step + 1} is not finite: {where}. The weights were not updated. Lower "
        "train.lr or train.clip_grad, or use train.precision=fp32"
    )
