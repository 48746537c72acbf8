"""Clouds of a report: quantised, with a choice of colours, and a still picture for browsers without WebGL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from torch import Tensor

from pointadapterx.report import page
from pointadapterx.visualize import introspection, objects
from pointadapterx.visualize.colours import GREY, HIGHEST, height_colours, of_amounts, of_kinds, of_signed, rgb
from pointadapterx.visualize.drawing import Sheet, View, paint
from pointadapterx.visualize.groups import group_colours
from pointadapterx.visualize.labels import Labelled
from pointadapterx.visualize.loaded_run import Subject
from pointadapterx.visualize.packing import packed
from pointadapterx.visualize.pictures import pixel_rows, unsuited

HEIGHT = "height"  # what the points are coloured by first
OBJECTS_DPI = 110  # of pictures with boxes


class Mode(NamedTuple):
    """One way to colour the clouds of a gallery.

    Attributes:
        colours: (B, N, 3) of points, or (B, G, 3) of the points whose nearest centre is that of a patch; in [0, 1].
        legend: HTML that says what they mean.
    """

    colours: np.ndarray
    legend: Markup


def pack_clouds(
    subject: Subject, clouds: Tensor, modes: Mapping[str, Mode]
) -> tuple[list[dict[str, Any]], dict[str, Markup]]:
    """What the viewer reads of clouds, (B, N, 3), and the legends of its colours by their names.

    Args:
        subject: that they are shown of.
        clouds: as the model takes them.
        modes: ways to colour them, the first of which is shown first.

    Returns:
        Each cloud as :func:`~pointadapterx.visualize.packing.packed`. Amounts have one scale for all of them.
    """
    _, nearest = introspection.nearest_patch(subject.model, clouds)
    packed_clouds = []
    for row, cloud in enumerate(clouds.cpu()):
        colours = {name: mode.colours[row] for name, mode in modes.items()}
        packed_clouds.append(packed(cloud.numpy(), nearest[row].cpu().numpy(), colours))
    return packed_clouds, {name: mode.legend for name, mode in modes.items()}


def modes_of(subject: Subject, clouds: Tensor) -> dict[str, Mode]:
    """Ways to colour clouds (B, N, 3) that suit the adapter and its task."""
    heights = np.stack([height_colours(cloud.numpy()) for cloud in clouds.cpu()])
    groups = group_colours(subject.model, clouds)
    none, several = (100 * float(np.mean([getattr(own, share) for own in groups])) for share in ("none", "several"))
    kinds = [(f"in no group ({none:.1f} % of points; {several:.1f} % are in several)", rgb(GREY))]
    return {
        HEIGHT: Mode(heights, page.scale("lowest", of_amounts(np.linspace(0, HIGHEST, 9)), "highest")),
        "groups": Mode(np.stack([own.nearest for own in groups]), page.kinds(kinds)),
        **(_attention(subject, clouds) if unsuited("attention", subject) is None else {}),
        **(_saliency(subject, clouds) if unsuited("saliency", subject) is None else {}),
        **_experts(subject, clouds),
    }


def modes_of_labels(found: Labelled) -> dict[str, Mode]:
    """Ways to colour clouds by the labels of their points."""
    named, errors = page.kinds(found.legend()), page.kinds(found.legend_of_errors())
    return {name: Mode(colours, errors if name == "errors" else named) for name, colours in found.coloured().items()}


def objects_of(subject: Subject, indices: Sequence[int]) -> Markup:
    """Test pictures with their objects on the left, and what was found on the right."""
    items = []
    for index, pair in zip(indices, objects.pairs(subject, indices), strict=True):
        still = page.data_url(paint(Sheet("", [[View("", image=pair.truth), View("", image=pair.found)]])), OBJECTS_DPI)
        there, found = pair.counts
        items.append((None, still, f"{subject.title(index)}: {there} objects, {found} found"))
    return page.gallery(items)


def pixel_gallery(subject: Subject, items: Sequence[tuple[int, str]]) -> Markup:
    """Test pictures by number, with captions: as they are, true labels, what was found, errors."""
    rows, legend = pixel_rows(subject, [index for index, _ in items])
    stills = [page.data_url(paint(Sheet("", [row])), 60) for row in rows]
    captions = [caption for _, caption in items]
    return page.kinds(legend) + page.gallery(zip([None] * len(items), stills, captions, strict=True))


def _attention(subject: Subject, clouds: Tensor) -> dict[str, Mode]:
    attention = subject.class_attention(clouds)[-1].float().numpy()  # (B, G)
    most = float(attention.max()) or 1.0
    legend = page.scale("0 %", of_amounts(np.linspace(0, 1, 9)), f"{100 * most:.1f} % of the attention")
    return {"attention of the class token, last block": Mode(of_amounts(attention / most), legend)}


def _saliency(subject: Subject, clouds: Tensor) -> dict[str, Mode]:
    saliency = subject.saliency(clouds).float().numpy()
    swing = float(np.abs(saliency).max()) or 1.0
    low, high = f"gains {100 * swing:.1f} points of probability", f"loses {100 * swing:.1f}"
    legend = page.scale(low, of_signed(np.linspace(-1, 1, 9)), high)
    return {"what the answer loses without the patch": Mode(of_signed(saliency / swing), legend)}


def _experts(subject: Subject, clouds: Tensor) -> dict[str, Mode]:
    """By use of the mixture: the experts that the patches' first sub-tokens chose."""
    if not introspection.routes(subject.model):
        return {}
    patches = subject.model.backbone.num_patches
    modes = {}
    for use, found in subject.routing(clouds).items():
        colours = of_kinds(found.gates.shape[-1])
        legend = page.kinds([(f"expert {number}", colour) for number, colour in enumerate(colours, 1)])
        chosen = found.chosen[:, -patches:, 0, 0].cpu().numpy()
        modes[f"expert of sub-token 1, {use}"] = Mode(colours[chosen], legend)
    return modes
