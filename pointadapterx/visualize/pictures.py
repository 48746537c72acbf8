"""The pictures by name: each looks at one adapter, or several side by side, and gives a sheet or a figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pointadapterx.datasets import build_inputs
from pointadapterx.errors import ConfigError
from pointadapterx.registry import Registry
from pointadapterx.text import printable
from pointadapterx.visualize import introspection, objects, plots
from pointadapterx.visualize.colours import GREY, height_colours, of_amounts, of_kinds, of_signed, rgb
from pointadapterx.visualize.drawing import Scale, Sheet, View
from pointadapterx.visualize.groups import COUNTS, OF_COUNTS, group_colours
from pointadapterx.visualize.labels import labelled
from pointadapterx.visualize.loaded_run import Chosen, Subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWS = 4  # augmented copies of a sample


@dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
        make: subjects and samples of the first -> a sheet of clouds or images, or a figure.
        about: what it shows, for the command's help.
        samples: how many single samples it shows by default; 0 for a picture of the whole test split.
        points_only: whether it is of clouds alone.
        routed: whether the method must route.
        own_blocks: whether it reads the blocks of this package's own backbones.
        patchwise: whether each patch has a colour.
    """

    make: Callable[[Sequence[Subject], Chosen | None], Sheet | Figure]
    about: str
    samples: int = 0
    points_only: bool = False
    routed: bool = False
    own_blocks: bool = False
    patchwise: bool = False

    def suits(self, subject: Subject) -> str | None:
        """Why this picture cannot be drawn for an adapter, or None if it can."""
        if self.points_only and not subject.is_points:
            return "is of point clouds"
        if self.routed and not introspection.routes(subject.model):
            return f"shows routing, and {subject.name} routes nothing"
        backbone = subject.model.backbone
        if self.own_blocks and backbone.foreign:
            return f"reads the blocks of this package's own backbones, and {backbone.title} has others"
        if self.patchwise and not subject.is_points and (backbone.grid is None or len(backbone.stages) > 1):
            return f"colours patches on one square grid, which {backbone.title} does not have"
        return None


PICTURES: Registry[Picture] = Registry("picture")


def unsuited(name: str, subject: Subject) -> str | None:
    """Why a picture cannot be drawn for an adapter, or None if it can."""
    shown = [picture for picture in PICTURES if picture in subject.task.pictures]
    if name not in shown:
        return f"shows nothing of the task {subject.config.task.name}; choose from {', '.join(shown)}"
    return PICTURES[name].suits(subject)


def groups(subjects: Sequence[Subject], chosen: Chosen | None) -> Sheet:
    """Cloud, FPS centres, and groups: a point has the colour of the nearest of its groups; in how many groups it is."""
    assert chosen is not None
    rows = []
    found = group_colours(subjects[0].model, chosen.inputs)
    for name, cloud, own in zip(chosen.names, chosen.inputs, found, strict=True):
        points, count = cloud.cpu().numpy(), len(own.centers)
        plain = np.tile(rgb(GREY), (len(points), 1))
        overlap = f"{100 * own.none:.1f} % of points in none,\n{100 * own.several:.1f} % in several"
        rows.append(
            [
                View(f"{name}:\n{len(points)} points", points, plain),
                View(f"{count} centres (FPS)", points, plain, marked=own.centers),
                View(f"the {own.size} points\nnearest to each centre", points, own.nearest),
                View(overlap, points, own.counts),
            ]
        )
    return Sheet("Groups that become tokens", rows, legend=list(zip(COUNTS, OF_COUNTS, strict=True)))


def augmentation(subjects: Sequence[Subject], chosen: Chosen | None) -> Sheet:
    """Samples as a test sees them, and drawn several times as training does."""
    assert chosen is not None
    subject = subjects[0]
    config, device = subject.config, subject.device
    inputs = build_inputs(config)
    generator = torch.Generator(device).manual_seed(config.train.seed)
    copies = [_augmented(inputs.augment, chosen.inputs, subject, generator) for _ in range(DRAWS)]
    rows = []
    for row, name in enumerate(chosen.names):
        versions = [("before", chosen.inputs[row]), *((f"draw {i}", copy[row]) for i, copy in enumerate(copies, 1))]
        rows.append([plain_view(subject, title, value) for title, value in versions])
        rows[-1][0] = rows[-1][0]._replace(title=f"{name}: before")
        if subject.is_points:
            first = chosen.inputs[row].cpu().numpy()
            rows[-1] = [view._replace(box=np.stack([first.min(axis=0), first.max(axis=0)])) for view in rows[-1]]
    title = f"Augmentation: {inputs.augment.label}"
    if not subject.is_points:
        return Sheet(title, rows)
    length = _round_length(float(chosen.inputs.norm(dim=-1).max()))
    title += f"\ndashed: box of the cloud before; axes: from the origin, {length:g} long"
    return Sheet(title, rows, axes=length)


def _round_length(largest: float) -> float:
    """1, 2 or 5 times a power of ten, not above ``largest`` by more than rounding."""
    power = 10.0 ** np.floor(np.log10(max(1.01 * largest, 1e-12)))
    return float(max(step * power for step in (1, 2, 5) if step * power <= 1.01 * largest or step == 1))


def attention(subjects: Sequence[Subject], chosen: Chosen | None) -> Sheet:
    """How much the class token attends to each patch, block by block."""
    assert chosen is not None
    subject = subjects[0]
    weights = subject.class_attention(chosen.inputs).float()  # (blocks, B, G)
    most = float(weights.max())
    rows = [
        [
            _patch_view(subject, f"block {block}", value, of_amounts(of[row].numpy() / most))
            for block, of in enumerate(weights, 1)
        ]
        for row, value in enumerate(chosen.inputs)
    ]
    scale = Scale("% of the class token's attention that a patch gets", 0.0, 100 * most)
    return Sheet("Where the class token looks", rows, _answers(subject, chosen), scale=scale)


def saliency(subjects: Sequence[Subject], chosen: Chosen | None) -> Sheet:
    """How much the probability of the answer falls without a patch, or rises."""
    assert chosen is not None
    subject = subjects[0]
    falls = subject.saliency(chosen.inputs).float()  # (B, G)
    most = float(falls.abs().max()) or 1.0
    views = []
    for row, (answer, value) in enumerate(zip(_answers(subject, chosen), chosen.inputs, strict=True)):
        low, high = 100 * float(falls[row].min()), 100 * float(falls[row].max())
        title = f"{answer}\n" + f"{low:+.1f} to {high:+.1f} points".replace("-", "−")
        views.append(_patch_view(subject, title, value, of_signed(falls[row].numpy() / most)))
    wide = 4
    empty = [View("")] * (-len(views) % wide if len(views) > wide else 0)
    rows = [[*views, *empty][start : start + wide] for start in range(0, len(views), wide)]
    label = "points of probability that the answer loses without the patch; below 0 it gains"
    return Sheet("Which patches the answer depends on", rows, scale=Scale(label, -100 * most, 100 * most, signed=True))


def routing(subjects: Sequence[Subject], chosen: Chosen | None) -> Sheet:
    """The expert that each patch's sub-tokens chose, block by block."""
    assert chosen is not None
    subject = subjects[0]
    uses = subject.routing(chosen.inputs)
    experts = next(iter(uses.values())).gates.shape[-1]
    heads = next(iter(uses.values())).gates.shape[-2]
    colours = of_kinds(experts)
    rows, names = [], []
    for row, (name, value) in enumerate(zip(chosen.names, chosen.inputs, strict=True)):
        for head in range(heads):
            names.append(f"{name}\nsub-token {head + 1}")
            rows.append(
                [
                    _kind_view(subject, use, value, _of_patches(subject, found.chosen[row, :, head, 0]), colours)
                    for use, found in uses.items()
                ]
            )
    legend = [(f"expert {number + 1}", colour) for number, colour in enumerate(colours)]
    return Sheet(f"Expert that each patch's sub-token is sent to, {subject.name}", rows, names, legend)


def experts(subjects: Sequence[Subject], chosen: Chosen | None) -> Figure:
    """Load of every expert in every block over the test split, and gates of one token through the blocks (figure 4)."""
    return plots.experts(subjects[0])


def tsne(subjects: Sequence[Subject], chosen: Chosen | None) -> Figure:
    """t-SNE of what the head reads, several adapters side by side (figures 3 and 5)."""
    return plots.embedding(subjects, "t-SNE")


def umap(subjects: Sequence[Subject], chosen: Chosen | None) -> Figure:
    """The same with UMAP, which is an extra."""
    return plots.embedding(subjects, "UMAP")


def confusion(subjects: Sequence[Subject], chosen: Chosen | None) -> Figure:
    """The confusion matrix of one or several adapters."""
    return plots.confusion(subjects)


def mistakes(subjects: Sequence[Subject], chosen: Chosen | None) -> Sheet:
    """The wrong answers with the highest probability."""
    subject = subjects[0]
    found = surest_mistakes(subject, 12)
    if not found:
        raise ConfigError(f"{subject.path}: makes no mistake on its test split, so there is nothing to show")
    samples = subject.choose([index for index, _, _ in found])
    views = []
    for (index, answer, sure), value in zip(found, samples.inputs, strict=True):
        label = printable(subject.classes[int(subject.test.labels[index])])
        views.append(plain_view(subject, f"{label}\nas {answer}, {100 * sure:.0f} %", value))
    wide = min(6, len(views))
    views += [View("")] * (-len(views) % wide)
    rows = [views[start : start + wide] for start in range(0, len(views), wide)]
    return Sheet(f"Surest mistakes of {subject.name}: what it is, and what it was taken for", rows)


def surest_mistakes(subject: Subject, count: int) -> list[tuple[int, str, float]]:
    """Index, answer and probability of the wrong answers on the test split, the most certain first."""
    best = subject.probabilities.max(dim=-1)
    wrong = (best.indices != subject.predictions.labels).nonzero().flatten()
    order = wrong[best.values[wrong].argsort(descending=True)][:count]
    return [(i, printable(subject.classes[int(best.indices[i])]), float(best.values[i])) for i in order.tolist()]


def point_labels(subjects: Sequence[Subject], chosen: Chosen | None) -> Sheet:
    """Samples with each point coloured by what it is, by what it was taken for, and by whether that is wrong."""
    assert chosen is not None
    if chosen.indices is None:
        raise ConfigError(
            "picture point_labels: shows test samples, of whose points the labels are known; give no files"
        )
    found = labelled(subjects[0], chosen.indices)
    coloured = found.coloured()
    rows = [
        [View(name, cloud.numpy(), colours[row]) for name, colours in coloured.items()]
        for row, cloud in enumerate(found.clouds)
    ]
    legend = [*found.legend(), *found.legend_of_errors()[:2]]
    return Sheet(f"Labels of points by {subjects[0].name}", rows, chosen.names, legend)


def found_objects(subjects: Sequence[Subject], chosen: Chosen | None) -> Sheet:
    """Test pictures with their objects, and with what was found."""
    assert chosen is not None
    if chosen.indices is None:
        raise ConfigError("picture objects: shows test samples, whose objects are known; predict --each draws files")
    rows = [
        [View(f"{pair.counts[0]} objects", image=pair.truth), View(f"{pair.counts[1]} found", image=pair.found)]
        for pair in objects.pairs(subjects[0], chosen.indices)
    ]
    return Sheet(f"Objects, and what {subjects[0].name} finds", rows, chosen.names)


def _answers(subject: Subject, chosen: Chosen) -> list[str]:
    return [f"{name}\n{said}" for name, said in zip(chosen.names, subject.answers(chosen), strict=True)]


def _augmented(augment: Callable[..., Tensor], values: Tensor, subject: Subject, generator: torch.Generator) -> Tensor:
    if subject.is_points:
        return augment(values, generator)
    shown = _shown(values, subject)
    return _hidden(augment(shown, generator), subject)


def _shown(images: Tensor, subject: Subject) -> Tensor:
    """Normalised images (B, channels, S, S) -> in [0, 1]."""
    mean, std = _statistics(subject, images)
    return images * std + mean


def _hidden(images: Tensor, subject: Subject) -> Tensor:
    mean, std = _statistics(subject, images)
    return (images - mean) / std


def _statistics(subject: Subject, like: Tensor) -> list[Tensor]:
    found = subject.config.data.statistics(like.shape[-3])
    return [torch.tensor(values, device=like.device).view(-1, 1, 1) for values in found]


def _picture(subject: Subject, value: Tensor) -> np.ndarray:
    """An image (channels, S, S) as the model takes it -> (S, S, 3) in [0, 1]."""
    image = _shown(value[None], subject)[0].clamp(0, 1).cpu()
    return image.expand(3, -1, -1).permute(1, 2, 0).numpy()


def plain_view(subject: Subject, title: str, value: Tensor) -> View:
    """An input as it is; a cloud coloured by height."""
    if not subject.is_points:
        return View(title, image=_picture(subject, value))
    points = value.cpu().numpy()
    return View(title, points, height_colours(points))


def _kind_view(subject: Subject, title: str, value: Tensor, kinds: Tensor, colours: np.ndarray) -> View:
    """Patches (G,) coloured by kind."""
    return _patch_view(subject, title, value, colours[kinds.cpu().numpy()])


def _patch_view(subject: Subject, title: str, value: Tensor, colours: np.ndarray) -> View:
    """One sample with the colours (G, 3) of its patches."""
    if subject.is_points:
        _, nearest = introspection.nearest_patch(subject.model, value[None])
        return View(title, value.cpu().numpy(), colours[nearest[0].cpu().numpy()])
    grid = subject.model.backbone.grid
    assert grid is not None
    image = _picture(subject, value)
    side = image.shape[0] // grid
    over = colours.reshape(grid, grid, 3).repeat(side, axis=0).repeat(side, axis=1)
    return View(title, image=0.35 * image + 0.65 * over)


def _of_patches(subject: Subject, tokens: Tensor) -> Tensor:
    """Those of the patches, (G,), of a value for every token (L,)."""
    return tokens[-subject.model.backbone.num_patches :]


PICTURES.register("groups")(Picture(groups, "cloud, FPS centres, groups", samples=3, points_only=True))
PICTURES.register("augmentation")(Picture(augmentation, "samples before and after augmentation", samples=3))
PICTURES.register("attention")(
    Picture(attention, "attention of the class token, block by block", samples=3, own_blocks=True)
)
PICTURES.register("saliency")(Picture(saliency, "what the answer loses without a patch", samples=8, patchwise=True))
PICTURES.register("routing")(
    Picture(routing, "expert of each sub-token, block by block", samples=1, routed=True, patchwise=True)
)
PICTURES.register("experts")(Picture(experts, "load of the experts; gates of a token through the blocks", routed=True))
PICTURES.register("tsne")(Picture(tsne, "t-SNE of the features, adapters side by side"))
PICTURES.register("umap")(Picture(umap, "UMAP of the features (extra), adapters side by side"))
PICTURES.register("confusion")(Picture(confusion, "which class is taken for which, adapters side by side"))
PICTURES.register("point_labels")(
    Picture(point_labels, "truth, prediction and errors of single points", samples=4, points_only=True)
)
PICTURES.register("objects")(Picture(found_objects, "objects of pictures, and what was found", samples=4))
PICTURES.register("mistakes")(Picture(mistakes, "the surest mistakes"))
