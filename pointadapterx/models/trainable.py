"""What a job trains, whatever it is."""

from __future__ import annotations

from torch import nn


class TrainableModel(nn.Module):
    """A whole model with an optimiser of its own: an adapted one, or one that a task builds around a backbone."""

    def undecayed_parameters(self) -> list[nn.Parameter]:
        """Tokens: parameters that take no weight decay though they are not 1-D."""
        return []
