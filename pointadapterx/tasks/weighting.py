"""How much each class counts in the loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pointadapterx.errors import ConfigError

EXPONENTS = {"balanced": 1.0, "cube_root": 1 / 3}
"""Of one over the number of labels of a class, by ``train.class_weights``."""


def class_weights(wanted: str | Sequence[float] | None, labels: Tensor, classes: Sequence[str]) -> Tensor | None:
    """Factors of the loss (C,) float32, one a class.

    Args:
        wanted: ``train.class_weights``: ``"balanced"``, which makes every class count alike; ``"cube_root"``, the third
            root of that, as is usual for points of scenes, where classes differ a hundredfold; C numbers; or None.
            Those that are named have a mean of 1 over the labels; a class without any, which label smoothing reaches
            too, has 1.
        labels: (n, …) of the samples of the training part, or of their points, where numbers that are none of the
            classes are left out.
        classes: C names.

    Raises:
        ConfigError: for another number of weights, or if no label is one of the classes.
    """
    return None if wanted is None else weights_of_counts(wanted, counted(labels, len(classes)), classes)


def counted(labels: Tensor, classes: int) -> Tensor:
    """How many of the labels (n, …) are each class, (classes,) int64."""
    return torch.bincount(labels[(labels >= 0) & (labels < classes)].long(), minlength=classes)


def shared(right: Tensor, known: Tensor) -> float:
    """The part of what is known (a number each) that is right; 0 where nothing is known."""
    return (right / known).item() if known else 0.0


def weights_of_counts(wanted: str | Sequence[float], counts: Tensor, classes: Sequence[str]) -> Tensor:
    """The same factors from the number of labels of each class, (C,).

    Raises:
        ConfigError: for another number of weights, or if no label is one of the classes.
    """
    if isinstance(wanted, str):
        counts = counts.double()
        if not counts.any():
            raise ConfigError("train.class_weights: no label of the training part is one of the classes; give numbers")
        weights = counts.clamp(min=1) ** -EXPONENTS[wanted]
        weights *= counts.sum() / (weights * counts).sum()
        return torch.where(counts > 0, weights, 1.0).float()
    if len(wanted) != len(classes):
        raise ConfigError(
            f"train.class_weights: {len(wanted)} numbers for {len(classes)} classes; give one a class, in the order "
            f"{', '.join(classes[:5])}{', …' if len(classes) > 5 else ''}"
        )
    return torch.tensor([float(weight) for weight in wanted])
