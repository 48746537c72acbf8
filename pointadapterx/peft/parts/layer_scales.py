"""The LayerScale behind an FFN, which what is added beside the FFN can pass too."""

from __future__ import annotations

from torch import Tensor, nn

from pointadapterx.errors import ConfigError
from pointadapterx.models.host import Host


class FfnScales:
    """The LayerScale that the FFN of each block ends with; no part of what refers to it.

    In DINOv2-small the mean of its γ rises from 0.14 in the second block to 5.3 in the last: what is added behind it
    with the same size everywhere is large for the first blocks and small for the last.

    Args:
        backbone: whose blocks are looked at.
        serial: whether what is added has read the FFN's output, which has passed the scale.

    Raises:
        ConfigError: if it has, a block has no LayerScale, or it is not known where.
    """

    def __init__(self, backbone: Host, *, serial: bool) -> None:
        if serial:
            raise ConfigError(
                "method.layer_scale: these adapters read what has passed the FFN's LayerScale; remove the key, or take "
                "adapters beside the FFN"
            )
        self._scales: list[nn.Module] = []
        for block in backbone.every_block():
            scale = block.site("ffn").layer_scale
            if scale is None:
                raise ConfigError(
                    f"method.layer_scale: {backbone.title} has no known LayerScale behind the FFN of block "
                    f"{block.index}; remove the key"
                )
            self._scales.append(scale)

    def __call__(self, index: int, update: Tensor) -> Tensor:
        """(B, L, C) of a block -> (B, L, C), times γ; the module itself may have hooks."""
        (gamma,) = self._scales[index].parameters()
        return update * gamma
