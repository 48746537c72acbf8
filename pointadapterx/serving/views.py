"""An input as the page shows it: its points, and colours of what the model does with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pointadapterx.datasets.base import AXES
from pointadapterx.serving.served import Served
from pointadapterx.tasks.exchange import Answer, Ready
from pointadapterx.tasks.point_labels import PointLabels
from pointadapterx.visualize import introspection
from pointadapterx.visualize.colours import GREY, of_kinds, of_labels, of_signed, rgb
from pointadapterx.visualize.packing import packed

MOST = 60_000  # points that a browser turns smoothly
KINDS = 8  # experts with colours of their own
HEIGHT, PARTS, DEPENDS = "height", "parts", "what the answer depends on"

Legend = list[tuple[str, str]]


@dataclass
class Seen:
    """What was found out about an input while its model was at work.

    Attributes:
        points: (N, 3), as the model was given them.
        patch: (N,) int64, the patch of each point.
        colours: by name, (G, 3) of patches in [0, 1].
        legends: by name, meanings and their colours.
    """

    points: np.ndarray
    patch: np.ndarray
    colours: dict[str, np.ndarray] = field(default_factory=dict)
    legends: dict[str, Legend] = field(default_factory=dict)


def seen(served: Served, ready: Sequence[Ready], saliency: bool) -> Seen | None:
    """Looks into the model; None for a picture, and for a cloud whose points have labels, which say more.

    To be called by the thread that computes.
    """
    if not served.takes_points or served.task.whole:
        return None
    model = served.model  # in memory again, where it had to leave: not in inference mode, whose tensors stay its own
    with torch.inference_mode(), served.computing():
        inputs = served.batch(ready[:1]).inputs
        _, nearest = introspection.nearest_patch(model, inputs)
        found = Seen(inputs[0].float().cpu().numpy(), nearest[0].cpu().numpy())
        if introspection.routes(model):
            _add_experts(found, served, inputs)
        if saliency and served.task.predicts_classes:
            _add_saliency(found, served, inputs)
    return found


def _add_experts(found: Seen, served: Served, inputs: Tensor) -> None:
    """By use of the mixture: the experts that the patches' first sub-tokens chose."""
    patches = served.model.backbone.num_patches
    for use, routing in introspection.routing(served.model, inputs).items():
        experts = routing.gates.shape[-1]
        if experts > KINDS:
            continue
        colours, name = of_kinds(experts), f"expert, {use}"
        found.colours[name] = colours[routing.chosen[0, -patches:, 0, 0].cpu().numpy()]
        found.legends[name] = [(f"expert {number}", _css(colour)) for number, colour in enumerate(colours, 1)]


def _add_saliency(found: Seen, served: Served, inputs: Tensor) -> None:
    values = introspection.saliency(served.model, inputs, served.read)[0].float().numpy()
    swing = float(np.abs(values).max()) or 1.0
    found.colours[DEPENDS] = of_signed(values / swing)
    low, high = of_signed(np.array([-1.0, 1.0]))
    found.legends[DEPENDS] = [
        (f"without it {100 * swing:.1f} points surer", _css(low)),
        ("no difference", GREY),
        (f"without it {100 * swing:.1f} points less sure", _css(high)),
    ]


def shown(served: Served, ready: Sequence[Ready], answer: Answer, found: Seen | None) -> dict[str, Any]:
    """What the page is sent: the answer in words and as ``predict`` has it, and a cloud to turn, where it is one."""
    content = answer.content()
    if isinstance(answer, PointLabels):
        points = int((answer.labels >= 0).sum())
        content |= {"labels": None, "confidence": answer.mean_confidence, "shares": answer.shares(), "points": points}
        cloud, legends = _labelled(answer, served.up)
    elif found is not None:
        cloud, legends = _coloured(found)
    else:
        cloud, legends = None, {}
    about = {"file": answer.name, "text": answer.text(), "answer": content, "cloud": cloud, "legends": legends}
    return {**about, "saliency": served.takes_points and served.task.predicts_classes}


def _labelled(answer: PointLabels, up: str) -> tuple[dict[str, Any], dict[str, Legend]]:
    """All points of the file, or evenly as many as can be turned, in the colours of their labels."""
    kept = np.flatnonzero(answer.labels >= 0)
    kept = kept[:: len(kept) // MOST + 1]
    points = np.roll(answer.points[kept], 1 - AXES.index(up), axis=1)
    points = points - (points.max(axis=0) + points.min(axis=0)) / 2
    colours, labels = of_labels(len(answer.classes)), answer.labels[kept]
    legend = [(name, _css(colours[answer.classes.index(name)])) for name, _ in answer.shares()]
    modes = {PARTS: colours[labels], HEIGHT: _heights(points)}
    return packed(points, np.zeros(len(points), np.int64), modes), {PARTS: legend}


def _coloured(found: Seen) -> tuple[dict[str, Any], dict[str, Legend]]:
    modes = {HEIGHT: _heights(found.points), **found.colours}
    return packed(found.points, found.patch, modes), found.legends


def _heights(points: np.ndarray) -> np.ndarray:
    """Colours (N, 3) of points with y up: they need no matplotlib, as those of reports do."""
    low, reach = points[:, 1].min(), max(float(np.ptp(points[:, 1])), 1e-12)
    share = ((points[:, 1] - low) / reach)[:, None]
    return (1 - share) * rgb("#00429d") + share * rgb("#f4a259")


def _css(colour: np.ndarray) -> str:
    return "#" + "".join(f"{round(255 * float(part)):02x}" for part in colour)
