"""Pictures of what a run does."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from pointadapterx.files import replacing
from pointadapterx.models.grouping import Groups

log = logging.getLogger(__name__)

GREY, BLUE, ORANGE = "#8c8c8c", "#0072b2", "#d55e00"  # Okabe and Ito: told apart by everyone


def draw_reconstructions(
    path: Path, groups: Groups, mask: Tensor, predicted: Tensor, names: Sequence[str] | None = None
) -> None:
    """Draws one row a cloud: the visible groups, these with the predicted ones, and the truth.

    Without matplotlib (the ``viz`` extra) nothing is drawn, and the log says so.

    Args:
        path: PNG to write.
        groups: of B clouds, on the CPU.
        mask: (B, G) bool, True where a group was hidden.
        predicted: (hidden groups of the batch, k, 3), relative to their centres.
        names: B titles.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        log.warning("no reconstructions are drawn: pip install 'pointadapterx[viz]', or set pretrain.draw=0")
        return
    rows = len(mask)
    reach = float(groups.centers.abs().max())
    points = groups.neighborhood + groups.centers.unsqueeze(2)  # (B, G, k, 3)
    restored = points.clone()
    restored[mask] = predicted + groups.centers[mask].unsqueeze(1)
    figure = Figure(figsize=(9, 3 * rows), layout="constrained")
    for row in range(rows):
        hidden = mask[row]
        columns = (
            ("visible", points, [(~hidden, GREY)]),
            ("predicted", restored, [(~hidden, GREY), (hidden, ORANGE)]),
            ("truth", points, [(~hidden, GREY), (hidden, BLUE)]),
        )
        for column, (title, cloud, parts) in enumerate(columns):
            axes = figure.add_subplot(rows, 3, 3 * row + column + 1, projection="3d")
            for chosen, colour in parts:
                x, y, z = cloud[row][chosen].flatten(0, 1).unbind(dim=-1)
                axes.scatter(x, -z, y, s=2, c=colour, linewidths=0)  # y is up
            name = f"{names[row]}: " if names is not None and column == 0 else ""
            axes.set_title(f"{name}{title}", fontsize=9)
            axes.set_axis_off()
            axes.set_box_aspect((1, 1, 1), zoom=1.5)
            for limit in (axes.set_xlim, axes.set_ylim, axes.set_zlim):
                limit(-reach, reach)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getvalue())
