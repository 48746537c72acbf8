"""Common part of methods with a routed mixture: the routing of the last pass, and the balance loss."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pointadapterx.models.backbone import Backbone
from pointadapterx.models.features import Features
from pointadapterx.models.frozen import EarlyBlocks, Frozen
from pointadapterx.models.host import Host
from pointadapterx.peft.base import Method
from pointadapterx.peft.parts.mixture import Routing, routing_statistics
from pointadapterx.schema import Section


class RoutedMethod(Method):
    """Base of the methods that route; its options have ``balance_weight``. It must be the first of several bases."""

    options: Any

    def __init__(self, options: Section) -> None:
        super().__init__(options)
        self._routings: list[tuple[int, Routing]] = []  # stage and routing by use, of the last pass in training mode
        self._passing = self._recording = False

    def attach(self, backbone: Host) -> None:
        """Notes the sizes of the stages."""
        super().attach(backbone)
        self.num_patches = [stage.num_patches for stage in backbone.stages]
        self.stage_of = [block.stage for block in backbone.every_block()]
        self.has_class_token = backbone.has_class_token

    def run(self, backbone: Backbone, inputs: Tensor | Frozen, keep: Collection[int] = ()) -> Features:
        """Runs the backbone; clears the routing of the previous pass."""
        self.begin()
        try:
            if isinstance(inputs, EarlyBlocks):
                return self.resume(backbone, inputs, keep)
            return super().run(backbone, inputs, keep)
        finally:
            self.end()

    def begin(self) -> None:
        """Clears the routing of the previous pass."""
        self._routings, self._passing = [], True

    def end(self) -> None:
        """What follows is computed again for the backward pass."""
        self._passing = False

    def resume(self, backbone: Backbone, kept: EarlyBlocks, keep: Collection[int]) -> Features:
        """The pass from what :meth:`precompute` kept of the first blocks, where the method keeps that."""
        raise NotImplementedError(f"{type(self).__name__} keeps nothing of the first blocks")

    @property
    def routes(self) -> bool:
        """Whether a mixture is in use."""
        return True

    def note(self, routing: Routing, stage: int) -> None:
        """Records the routing of one use of the mixture in training mode, but not when it is recomputed."""
        if (self.training or self._recording) and self._passing:
            self._routings.append((stage, routing))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Also records the routing in eval mode; :meth:`routing` returns that of the last pass."""
        self._recording = True
        try:
            yield
        finally:
            self._recording, self._routings = False, []

    def routing(self) -> dict[str, Routing]:
        """Routing of the last pass that kept it, by the name of the use of the mixture, in order."""
        return dict(zip(self.uses(len(self._routings)), (routing for _, routing in self._routings), strict=True))

    def uses(self, count: int) -> list[str]:
        """Names of a pass's ``count`` uses of the mixture; by default one a block."""
        return [f"block {number}" for number in range(1, count + 1)]

    def auxiliary_loss(self, losses: list[Tensor]) -> Tensor | None:
        """α times the mean balance loss, a scalar (Adapter-X, equation 7)."""
        return self.options.balance_weight * torch.stack(losses).mean()

    def statistics(self) -> dict[str, Tensor]:
        """Health of the routing, see :func:`~pointadapterx.peft.parts.mixture.routing_statistics`; a row a use.

        Between two stages no sub-token is compared.
        """
        noted, self._routings = self._routings, []
        parts = [
            routing_statistics(
                [routing for stage, routing in noted if stage == number], count, has_class_token=self.has_class_token
            )
            for number, count in enumerate(self.num_patches)
            if any(stage == number for stage, _ in noted)
        ]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]} if parts else {}
