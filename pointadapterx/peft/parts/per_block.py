"""What ``adapter`` and ``adaptformer`` have in common: a separate adapter for every block."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from pointadapterx.models.block import FfnUpdate
from pointadapterx.models.host import Host
from pointadapterx.peft.base import Method
from pointadapterx.peft.parts.bottlenecks import ADAPTERS, without_biases
from pointadapterx.peft.parts.layer_scales import FfnScales
from pointadapterx.schema import Rate, Width


class PerBlockMethod(Method):
    """One adapter per block, parallel to the FFN or after it.

    Trains the adapters, class token and its position where they are not pre-trained, and the head. Extra cost: the
    adapters' two products, 2 · r / (12 · C) of a block's linear layers.

    Attributes:
        kind: which of :data:`~pointadapterx.peft.parts.bottlenecks.ADAPTERS`.
    """

    kind: ClassVar[str]

    class Options(Method.Options):
        """Keys of both methods.

        Attributes:
            rank: bottleneck width r.
            dropout: dropout rate inside the adapter.
            scale: s, factor of its output.
            biases: False for layers without biases, as PETL-ViT's AdaptFormer has them. None: with.
            layer_scale: whether its output passes the LayerScale of the block's FFN, see
                :class:`~pointadapterx.peft.parts.layer_scales.FfnScales`; only beside the FFN.
        """

        unwritten = ("layer_scale",)

        rank: Width = 64
        dropout: Rate = 0.0
        scale: float = 1.0
        biases: bool | None = None
        layer_scale: bool = False

        @property
        def needs_sites(self) -> tuple[str, ...]:
            """The FFN."""
            return ("ffn",)

    def __init__(self, options: PerBlockMethod.Options) -> None:
        super().__init__(options)
        self.options: PerBlockMethod.Options = options

    def require(self, backbone: Host) -> None:
        """Also refuses a backbone without what the options ask of it."""
        super().require(backbone)
        if self.options.layer_scale:
            FfnScales(backbone, serial=ADAPTERS[self.kind].serial)

    def attach(self, backbone: Host) -> None:
        """Creates one adapter for each block, parallel to the FFN or after it."""
        make = ADAPTERS[self.kind].make
        options = self.options
        made = [make(block.width, options.rank, options.dropout) for block in backbone.every_block()]
        self.adapters = nn.ModuleList(made if options.biases is not False else map(without_biases, made))
        self._scaled = FfnScales(backbone, serial=ADAPTERS[self.kind].serial) if options.layer_scale else None

    def adapt_ffn(self, index: int, ffn_input: Tensor, ffn_output: Tensor) -> FfnUpdate:
        """s · adapter(u) beside the FFN, s · adapter(mlp(u)) behind it; times the LayerScale where wanted."""
        source = ffn_output if ADAPTERS[self.kind].serial else ffn_input
        update = self.options.scale * self.adapters[index](source)
        return FfnUpdate(update if self._scaled is None else self._scaled(index, update))
