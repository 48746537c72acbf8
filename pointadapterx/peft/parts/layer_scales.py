"""The LayerScale behind an FFN, which what is added there can pass too."""

from __future__ import annotations

from torch import nn

from pointadapterx.errors import ConfigError
from pointadapterx.models.host import Host


def ffn_scales(backbone: Host) -> list[nn.Parameter]:
    """γ (C,) of the LayerScale that the FFN of each block ends with.

    In DINOv2-small the mean of γ rises from 0.14 in the second block to 5.3 in the last: what is added behind it with
    the same size everywhere is large for the first blocks and small for the last.

    Raises:
        ConfigError: if a block has none, or it is not known where.
    """
    found = []
    for block in backbone.every_block():
        scale = block.site("ffn").layer_scale
        if scale is None:
            raise ConfigError(
                f"method.layer_scale: {backbone.title} has no known LayerScale behind the FFN of block {block.index}; "
                "remove the key"
            )
        found.append(scale)
    return found
