"""How much each class counts in the loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pointadapterx.errors import ConfigError


def class_weights(wanted: str | Sequence[float] | None, labels: Tensor, classes: Sequence[str]) -> Tensor | None:
    """Factors of the loss (C,) float32, one a class.

    Args:
        wanted: ``train.class_weights``: ``"balanced"``, which makes every class count alike, with a mean of 1 over the
            samples; C numbers; or None.
        labels: (n,) of the training part.
        classes: C names.

    Raises:
        ConfigError: for another number of weights.
    """
    if wanted is None:
        return None
    if wanted == "balanced":
        counts = labels.bincount(minlength=len(classes)).double()
        present = int((counts > 0).sum())
        return (len(labels) / (present * counts.clamp(min=1))).float()  # without samples the weight is never used
    if len(wanted) != len(classes):
        raise ConfigError(
            f"train.class_weights: {len(wanted)} numbers for {len(classes)} classes; give one a class, in the order "
            f"{', '.join(classes[:5])}{', …' if len(classes) > 5 else ''}"
        )
    return torch.tensor([float(weight) for weight in wanted])
