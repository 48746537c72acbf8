"""DAPT-X: Adapter-X on point clouds, with DAPT's dynamic adapters as the experts (arXiv 2406.03051)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from pointadapterx.models.backbone import Backbone
from pointadapterx.models.host import Host
from pointadapterx.peft.base import METHODS
from pointadapterx.peft.parts.bottlenecks import DynamicAdapter
from pointadapterx.peft.parts.scale_shift import ScaleShift
from pointadapterx.peft.parts.shared_mixture import SharedMixtureMethod
from pointadapterx.schema import Distinct, Width

TftsPlace = Literal["patch", "norm1", "qkv", "proj", "norm2", "fc1", "fc2"]
"""After the patch encoder, or after this layer of every block."""


@METHODS.register("dapt_x")
class DaptX(SharedMixtureMethod):
    """One shared mixture of dynamic adapters beside the FFNs; per block a trainable norm2 and a prompt generator.

    Trains what every :class:`~pointadapterx.peft.parts.shared_mixture.SharedMixtureMethod` does, with vectors γ_i and
    β_i, and the final norm: 415,699 parameters for ScanObjectNN with the head, 49,860 without, at rank 24 (table 2 of
    the paper); 564,243 with the head at rank 64 with TFTS everywhere (table 3b).
    """

    class Options(SharedMixtureMethod.Options):
        """``method: {name: dapt_x, ...}``.

        Attributes:
            scale_bias: initial bias of the adapters' token scale; None: drawn by torch. DAPT's code starts it at 0.
            tfts: places that get a TFTS, γ ⊙ x + β, as DAPT has there. It starts as the identity. After norm2 it adds
                no function to a norm2 that is trained, only parameters. None: nowhere, which trains nothing inside the
                attention branch.
        """

        name: Literal["dapt_x"] = "dapt_x"
        rank: Width = 24
        scale_bias: float | None = None
        tfts: Annotated[list[TftsPlace], Field(min_length=1), Distinct] | None = None

        def problems(self, backbone: Backbone.Options) -> Iterator[tuple[str, str]]:
            """Also reports ``scale_bias`` for experts that are not dynamic adapters."""
            yield from super().problems(backbone)
            if self.scale_bias is not None and self.expert not in (None, "dapt"):
                yield "scale_bias", f"belongs to dapt's adapters, but the experts are {self.expert}; remove one"

        @property
        def needs_sites(self) -> tuple[str, ...]:
            """Also the layers that get a TFTS."""
            return (*super().needs_sites, *(name for name in self.tfts or () if name != "patch"))

        def left_without_mixture(self) -> bool:
            """TFTS also remain without the mixture."""
            return super().left_without_mixture() or bool(self.tfts)

    kind = "dapt"
    scalar_prompts = False
    trains_final_norm = True

    def __init__(self, options: DaptX.Options) -> None:
        super().__init__(options)
        self.options: DaptX.Options = options

    def attach(self, backbone: Host) -> None:
        """Creates the mixture, the prompt generators and the TFTS."""
        super().attach(backbone)
        wanted = self.options.tfts or []
        self.patch_tfts = None
        if "patch" in wanted:
            patch = backbone.site("patch")
            self.patch_tfts = ScaleShift(patch.width)
            self.tap(patch, self.patch_tfts)
        self.block_tfts = nn.ModuleList()
        for block in backbone.every_block() if wanted else ():
            sites = [site for site in block.layers() if site.name in wanted]
            of_block = nn.ModuleDict({site.name: ScaleShift(site.width) for site in sites})
            for site in sites:
                self.tap(site, of_block[site.name])
            self.block_tfts.append(of_block)

    def make_expert(self, width: int) -> nn.Module:
        """Builds an expert like every X method; a dynamic adapter also takes ``scale_bias``."""
        if self.options.expert not in (None, self.kind):
            return super().make_expert(width)
        return DynamicAdapter(width, self.options.rank, self.options.dropout, self.options.scale_bias)
