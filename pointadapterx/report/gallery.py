"""Clouds of a report: quantised, with colours to choose from, and a still picture for where nothing can turn them."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from torch import Tensor

from pointadapterx.arrays import as_array
from pointadapterx.visualize import lens
from pointadapterx.visualize.colours import height_colours, of_amounts, of_kinds
from pointadapterx.visualize.subject import Subject

HEIGHT = "height"  # what the points are coloured by first
LARGEST = 32767  # of the 16-bit integers that coordinates become


def pack_clouds(subject: Subject, clouds: Tensor) -> list[dict[str, Any]]:
    """What the viewer reads of clouds, (B, N, 3).

    Returns:
        For each: ``points`` (N, 3) int16, of which :data:`LARGEST` is the farthest point's distance; ``patches`` (N,)
        uint16, the number of each point's patch; ``modes``, names to uint8 colours of points or patches. All base64.
    """
    _, nearest = lens.nearest_patch(subject.model, clouds)
    attention = subject.class_attention(clouds)[-1]  # (B, G)
    saliency = subject.saliency(clouds).clamp_min(0)
    experts = _experts(subject, clouds)
    packed = []
    for row, cloud in enumerate(clouds.cpu()):
        points = cloud.numpy()
        modes = {
            HEIGHT: height_colours(points),
            "patches": of_kinds(8)[np.arange(subject.model.backbone.num_patches) % 8],
            "attention of the class token, last block": _amounts(attention[row]),
            "what the answer loses without the patch": _amounts(saliency[row]),
            **{name: colours[row] for name, colours in experts.items()},
        }
        reach = float(cloud.norm(dim=1).max()) or 1.0
        packed.append(
            {
                "points": _text(np.round(points / reach * LARGEST).astype("<i2")),
                "patches": _text(nearest[row].cpu().numpy().astype("<u2")),
                "modes": {name: _text(np.round(255 * colours).astype(np.uint8)) for name, colours in modes.items()},
            }
        )
    return packed


def _experts(subject: Subject, clouds: Tensor) -> dict[str, np.ndarray]:
    """By use of the mixture: colours (B, G, 3) of the experts that the patches' first sub-tokens chose."""
    if not lens.routes(subject.model):
        return {}
    uses = subject.routing(clouds)
    patches = subject.model.backbone.num_patches
    return {
        f"expert of sub-token 1, {use}": of_kinds(found.gates.shape[-1])[found.chosen[:, -patches:, 0, 0].cpu().numpy()]
        for use, found in uses.items()
    }


def _amounts(values: Tensor) -> np.ndarray:
    return of_amounts(as_array(values / values.max().clamp_min(1e-12)))


def _text(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
