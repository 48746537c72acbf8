"""What a method may ask of the model that it adapts: one of our backbones, or a module of somebody else's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from torch import nn

from pointadapterx.models.sites import BlockSites, Site


class HostStage(Protocol):
    """Blocks of one width in a row; :class:`~pointadapterx.models.sites.Stage` is one."""

    @property
    def number(self) -> int:
        """Of the stage, from 0."""
        ...

    @property
    def first(self) -> int:
        """Number of its first block in the whole model."""
        ...

    @property
    def width(self) -> int:
        """Token width C."""
        ...

    @property
    def num_patches(self) -> int:
        """Patch tokens G; 0 where the model does not fix their number."""
        ...

    @property
    def grid(self) -> int | None:
        """Patches along a side, where they lie on a square grid in rows, else None."""
        ...

    @property
    def blocks(self) -> list[BlockSites]:
        """Its blocks, as methods see them."""
        ...


class Host(Protocol):
    """What methods are attached to and merged into; :class:`~pointadapterx.models.backbone.Backbone` is one.

    Attributes:
        has_class_token: whether the first token is CLS.
        patch_values: numbers in one patch, 3 k coordinates or P² pixels times channels.
        position: ``"every_block"`` where position embeddings are added before every block, ``"input"`` where they are
            added once.
    """

    has_class_token: bool
    patch_values: int
    position: str

    @property
    def title(self) -> str:
        """What messages call it."""
        ...

    @property
    def stages(self) -> Sequence[HostStage]:
        """Its stages in order."""
        ...

    @property
    def norm(self) -> nn.Module:
        """The final norm, behind the last stage."""
        ...

    @property
    def patch_projection(self) -> nn.Module:
        """The last layer of what makes the patch tokens, whose output features are theirs."""
        ...

    @property
    def patch_scale_merges(self) -> bool:
        """Whether patch tokens may be scaled by any number by scaling :attr:`patch_projection`."""
        ...

    @property
    def has_places(self) -> bool:
        """Whether the patches of every stage have centres or lie on a grid."""
        ...

    def position_layers(self) -> list[nn.Module]:
        """The modules that compute position embeddings, where positions are not parameters."""
        ...

    def every_block(self) -> list[BlockSites]:
        """The blocks of all stages, as methods see them."""
        ...

    def site(self, name: str) -> Site:
        """A site outside the blocks: ``patch``, the patch tokens, or ``final norm``."""
        ...

    def class_parameters(self) -> Mapping[str, nn.Parameter]:
        """Class token and its position, where they are learned per task."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Every parameter, for methods that train all."""
        ...
