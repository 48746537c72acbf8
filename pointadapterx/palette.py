"""Colours of classes: the same in pictures, in reports and in the files of labelled points."""

from __future__ import annotations

import numpy as np

KINDS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000")
"""Okabe and Ito's, which everyone can distinguish."""
MANY = (
    *("#1f77b4", "#aec7e8", "#ff7f0e", "#ffbb78", "#2ca02c", "#98df8a", "#d62728", "#ff9896", "#9467bd", "#c5b0d5"),
    *("#8c564b", "#c49c94", "#e377c2", "#f7b6d2", "#7f7f7f", "#c7c7c7", "#bcbd22", "#dbdb8d", "#17becf", "#9edae5"),
)
"""Those of tab20."""
GREY = "#8c8c8c"
"""Of what has no class."""


def label_colours(count: int) -> np.ndarray:
    """(count, 3) uint8 of classes of points: :data:`KINDS`; more than 8 take :data:`MANY`, again and again after 20."""
    table = KINDS if count <= len(KINDS) else MANY
    return np.stack([rgb(colour) for colour in table])[np.arange(count) % len(table)]


def rgb(colour: str) -> np.ndarray:
    """``#rrggbb`` -> (3,) uint8."""
    return np.frombuffer(bytes.fromhex(colour[1:]), np.uint8)
