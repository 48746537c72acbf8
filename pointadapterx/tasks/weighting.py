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
            labels; C numbers; or None.
        labels: (n, …) of the samples of the training part, or of their points, where numbers that are none of the
            classes are left out.
        classes: C names.

    Raises:
        ConfigError: for another number of weights, or if no label is one of the classes.
    """
    if wanted is None:
        return None
    counts = torch.stack([(labels == number).sum() for number in range(len(classes))])
    return weights_of_counts(wanted, counts, classes)


def weights_of_counts(wanted: str | Sequence[float], counts: Tensor | None, classes: Sequence[str]) -> Tensor:
    """The same factors from the number of labels of each class, (C,), which only ``"balanced"`` reads.

    Raises:
        ConfigError: for another number of weights, or if no label is one of the classes.
    """
    if wanted == "balanced":
        assert counts is not None
        counts = counts.double()
        present = int((counts > 0).sum())
        if not present:
            raise ConfigError("train.class_weights: no label of the training part is one of the classes; give numbers")
        return (counts.sum() / (present * counts.clamp(min=1))).float()  # without samples the weight is never used
    if len(wanted) != len(classes):
        raise ConfigError(
            f"train.class_weights: {len(wanted)} numbers for {len(classes)} classes; give one a class, in the order "
            f"{', '.join(classes[:5])}{', …' if len(classes) > 5 else ''}"
        )
    return torch.tensor([float(weight) for weight in wanted])
