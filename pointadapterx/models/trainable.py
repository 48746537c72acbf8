"""What a job trains, whatever it is."""

from __future__ import annotations

from torch import nn


class TrainableModel(nn.Module):
    """A whole model with an optimiser of its own: an adapted one, or one that a task builds around a backbone."""

    def undecayed_parameters(self) -> list[nn.Parameter]:
        """Tokens: parameters that take no weight decay though they are not 1-D."""
        return []

    def learning_rates(self) -> dict[int, float]:
        """Factors of the learning rate by ``id(parameter)``, of those whose factor is not 1."""
        return {}

    def begin_epoch(self, epoch: int) -> None:
        """Called before each epoch of training, numbered from 0, also of a resumed run."""
