"""Point clouds in a drawing: each point a dot, farther ones paler."""

from __future__ import annotations

import numpy as np
from drawing import Drawing

from pointadapterx.visualize.drawing import projected

LEVELS = 5  # steps of distance: points of one step and colour share an SVG path, which keeps the file small


def draw_cloud(
    drawing: Drawing, left: float, middle: float, side: float, points: np.ndarray, colours: np.ndarray, dot: float
) -> None:
    """A cloud in a square.

    Args:
        drawing: to draw into.
        left: edge of the square, in pixels.
        middle: height of its centre, in pixels.
        side: of the square, in pixels.
        points: (N, 3), y up.
        colours: (N,), of SVG, such as ``"#0072b2"``.
        dot: diameter of a point, in pixels.
    """
    seen = projected(points)
    low, high = seen.min(axis=0), seen.max(axis=0)
    scale = side / max(float((high - low)[:2].max()), 1e-12)
    x = left + side / 2 + scale * (seen[:, 0] - (low + high)[0] / 2)
    y = middle - scale * (seen[:, 1] - (low + high)[1] / 2)
    depth = np.floor(LEVELS * (seen[:, 2] - low[2]) / max(float((high - low)[2]), 1e-12)).clip(0, LEVELS - 1)
    for far in np.unique(depth):  # the nearest last, above the others
        opacity = 0.5 + 0.5 * far / (LEVELS - 1)
        for colour in dict.fromkeys(colours):
            chosen = np.flatnonzero((depth == far) & (colours == colour))
            way = "".join(f"M{x[i]:.1f} {y[i]:.1f}h0" for i in chosen)
            if way:
                drawing.elements.append(
                    f"<path d='{way}' stroke='{colour}' stroke-width='{dot:g}' stroke-linecap='round' "
                    f"stroke-opacity='{opacity:.2f}'/>"
                )
