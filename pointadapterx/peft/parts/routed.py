"""What every method with a routed mixture keeps: the routing of its last pass, and the balance loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pointadapterx.models.backbone import Backbone, Features
from pointadapterx.models.frozen import Frozen
from pointadapterx.peft.base import Method
from pointadapterx.peft.parts.mixture import Routing, routing_statistics
from pointadapterx.schema import Section


class RoutedMethod(Method):
    """Base of the methods that route; its options have ``balance_weight``. Stands first among several bases."""

    options: Any

    def __init__(self, options: Section) -> None:
        super().__init__(options)
        self._routings: list[Routing] = []  # in order of use, of the last pass in training mode
        self._passing = self._recording = False

    def attach(self, backbone: Backbone) -> None:
        """Notes the number of patches."""
        super().attach(backbone)
        self.num_patches = backbone.num_patches

    def run(self, backbone: Backbone, inputs: Tensor | Frozen) -> Features:
        """The whole pass; forgets the routing of the pass before."""
        self._routings, self._passing = [], True
        try:
            return super().run(backbone, inputs)
        finally:
            self._passing = False

    def note(self, routing: Routing) -> None:
        """Keeps the routing of one use of a mixture in a pass in training mode, not when it is computed again."""
        if (self.training or self._recording) and self._passing:
            self._routings.append(routing)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keeps the routing of passes in eval mode too; :meth:`routing` has that of the last."""
        self._recording = True
        try:
            yield
        finally:
            self._recording, self._routings = False, []

    def routing(self) -> dict[str, Routing]:
        """Routing of the last pass that kept it, by the name of the use of the mixture, in order."""
        return dict(zip(self.uses(len(self._routings)), self._routings, strict=True))

    def uses(self, count: int) -> list[str]:
        """Names of a pass's ``count`` uses of the mixture; by default one a block."""
        return [f"block {number}" for number in range(1, count + 1)]

    def auxiliary_loss(self, losses: list[Tensor]) -> Tensor | None:
        """α times the mean balance loss, a scalar (Adapter-X, equation 7)."""
        return self.options.balance_weight * torch.stack(losses).mean()

    def statistics(self) -> dict[str, Tensor]:
        """Health of the routing, see :func:`~pointadapterx.peft.parts.mixture.routing_statistics`; a row a use."""
        routings, self._routings = self._routings, []
        return routing_statistics(routings, self.num_patches) if routings else {}
