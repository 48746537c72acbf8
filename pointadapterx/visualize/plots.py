"""Figures of a whole test split: load of the experts, embedded features, confusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pointadapterx.arrays import as_array
from pointadapterx.datasets import build_inputs
from pointadapterx.errors import ConfigError
from pointadapterx.optional import need
from pointadapterx.peft.parts.mixture import expert_load
from pointadapterx.tasks.classification import compute_metrics
from pointadapterx.tasks.exchange import Score
from pointadapterx.text import printable
from pointadapterx.visualize.colours import AMOUNTS, KINDS, MARKERS, drawing, of_kinds
from pointadapterx.visualize.loaded_run import Subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEWEST = 5  # samples that t-SNE and UMAP need


@drawing()
def experts(subject: Subject) -> Figure:
    """Adapter-X's figure 4: load per expert and block over the test split; one token's gates through the blocks.

    The token is the last patch of the first test sample, its first sub-token.
    """
    loads, gates = _routing_of_split(subject)
    figure = _figure(11, 4)
    left, right = figure.subplots(1, 2)
    names = list(loads)
    table = 100 * np.stack([as_array(load) for load in loads.values()])  # (uses, E)
    image = left.imshow(table.T, aspect="auto", cmap=AMOUNTS, vmin=0, vmax=max(100 / table.shape[1], table.max()))
    left.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
    left.set_yticks(range(table.shape[1]), [f"expert {i + 1}" for i in range(table.shape[1])], fontsize=8)
    left.set_title(f"share of the sub-tokens of {len(subject.test)} test samples, %", fontsize=9)
    if table.size <= 200:
        for use, row in enumerate(table):
            for expert, value in enumerate(row):
                shade = "white" if value < 0.6 * table.max() else "black"
                left.text(use, expert, f"{value:.0f}", ha="center", va="center", fontsize=6, color=shade)
    uniform = 1 / table.shape[1]
    bar = figure.colorbar(image, ax=left)
    bar.ax.axhline(100 * uniform, color="white", linewidth=2.5)
    bar.ax.axhline(100 * uniform, color="black", linestyle="--", linewidth=1.2)
    bar.set_label(f"dashed: each as much, {100 * uniform:.3g} %", fontsize=8)
    through = np.stack([as_array(gate) for gate in gates.values()])  # (uses, E)
    for expert, colour in enumerate(of_kinds(through.shape[1])):
        marker = MARKERS[expert % len(MARKERS)]
        right.plot(through[:, expert], marker=marker, color=tuple(colour), label=f"expert {expert + 1}")
    right.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
    right.axhline(uniform, color="black", linestyle="--", linewidth=1, label=f"each as much, {uniform:.3g}")
    right.set(ylim=(0, 1), ylabel="gate")
    right.set_title("gates of one sub-token through the blocks", fontsize=9)
    right.legend(fontsize=8 if through.shape[1] <= len(KINDS) else 5, frameon=False, ncols=1 + through.shape[1] // 17)
    figure.suptitle(f"Routing of {subject.name}", fontsize=10)
    return figure


def _routing_of_split(subject: Subject) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Load (E,) of every use over the test split, and gates (E,) of one sub-token."""
    inputs = build_inputs(subject.config)
    fetch, device = inputs.source(subject.test), subject.device
    sums: dict[str, Tensor] = {}
    gates: dict[str, Tensor] = {}
    for rows in torch.arange(len(subject.test)).split(subject.config.eval.batch_size):
        uses = subject.routing(inputs.for_test(fetch(rows).to(device)))
        for name, found in uses.items():
            load = expert_load(found.chosen, found.gates.shape[-1]).cpu() * len(rows)
            sums[name] = sums[name] + load if name in sums else load
            gates.setdefault(name, found.gates[0, -1, 0].float().cpu())
    return {name: load / len(subject.test) for name, load in sums.items()}, gates


@drawing()
def embedding(subjects: Sequence[Subject], kind: str) -> Figure:
    """Features of the test split in two dimensions, a panel an adapter; seeded.

    Args:
        subjects: on data with the same classes.
        kind: ``"t-SNE"`` or ``"UMAP"``.

    Raises:
        ConfigError: if classes differ, samples are too few, or UMAP is not installed.
    """
    require_same_classes(subjects)
    classes = subjects[0].classes
    figure = _figure(5 * len(subjects), 5 + 0.25 * (len(classes) // 4 + 1))
    colours, marks = of_kinds(len(KINDS)), len(KINDS)
    handles: list[Any] = []
    for number, subject in enumerate(subjects):
        axes = figure.add_subplot(1, len(subjects), number + 1)
        places = _embedded(subject, kind)
        labels = subject.test.labels.numpy()
        handles = []
        for label in range(len(classes)):
            x, y = places[labels == label].T
            colour, marker = tuple(colours[label % marks]), MARKERS[label // marks % len(MARKERS)]
            handles.append(axes.scatter(x, y, s=14, color=colour, marker=marker, linewidths=0))
        accuracy = compute_metrics(subject.predictions, classes)["overall_accuracy"]
        axes.set_title(f"{subject.name}, test OA {accuracy:.2f} %", fontsize=9)
        axes.set(xticks=[], yticks=[])
    columns = max(2, int(figure.get_size_inches()[0]))
    names = [f" {printable(name)}" for name in classes]  # matplotlib leaves labels out that begin with _
    figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=7, frameon=False, markerscale=1.5)
    figure.suptitle(f"{kind} of what the head reads", fontsize=10)
    return figure


def _embedded(subject: Subject, kind: str) -> np.ndarray:
    """Features of the test split, (n, width) -> (n, 2)."""
    values = as_array(subject.features)
    if len(values) < FEWEST:
        raise ConfigError(f"{kind} of {len(values)} test samples shows nothing; it needs {FEWEST}")
    if not np.isfinite(values).all() or not np.ptp(values, axis=0).any():
        raise ConfigError(f"{subject.path}: features are all the same or not finite, so {kind} shows nothing")
    neighbours = min(30, (len(values) - 1) // 3)
    if kind == "t-SNE":
        from sklearn.manifold import TSNE

        return TSNE(perplexity=max(neighbours, 1), init="pca", random_state=0).fit_transform(values)
    umap_package = need("umap", "the picture needs UMAP", "umap", ConfigError)
    reducer: Any = umap_package.UMAP(n_neighbors=max(min(15, len(values) - 1), 2), random_state=0)
    return np.asarray(reducer.fit_transform(values))


@drawing()
def confusion(subjects: Sequence[Subject]) -> Figure:
    """Rows are what samples are, columns what they were taken for; the colour is the share of the row.

    Raises:
        ConfigError: if classes differ.
    """
    require_same_classes(subjects)
    classes = subjects[0].classes
    names = [printable(name) for name in classes]
    side = 2.0 + 0.24 * len(classes)
    figure = _figure(side * len(subjects) + 2.0, side + 1.4)
    panels = figure.subplots(1, len(subjects), squeeze=False)[0]
    for axes, subject in zip(panels, subjects, strict=True):
        metrics = compute_metrics(subject.predictions, classes)
        counts = np.array(metrics["confusion_matrix"], dtype=float)
        shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        image = axes.imshow(shares, cmap=AMOUNTS, vmin=0, vmax=100)
        for row, column in zip(*counts.nonzero(), strict=True):
            shade = "white" if shares[row, column] < 60 else "black"
            axes.text(column, row, f"{counts[row, column]:.0f}", ha="center", va="center", fontsize=6, color=shade)
        axes.set_xticks(range(len(classes)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(classes)), names if axes is panels[0] else [""] * len(names), fontsize=7)
        axes.set_xlabel("taken for", fontsize=8)
        axes.set_title(f"{subject.name}, test OA {metrics['overall_accuracy']:.2f} %", fontsize=9)
    panels[0].set_ylabel("is", fontsize=8)
    figure.colorbar(image, ax=list(panels), shrink=0.6).set_label("% of the class", fontsize=8)
    return figure


def require_same_classes(subjects: Sequence[Subject]) -> None:
    """Makes sure that adapters can be compared side by side.

    Raises:
        ConfigError: if they are of different tasks, or know different classes.
    """
    for subject in subjects[1:]:
        task, first = subject.config.task.name, subjects[0].config.task.name
        if task != first:
            raise ConfigError(f"{subject.path}: is of the task {task}, not {first}; show them one by one")
        if subject.classes != subjects[0].classes:
            raise ConfigError(f"{subject.path}: knows other classes than {subjects[0].path}; show them one by one")


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


@drawing()
def curves(histories: Sequence[tuple[str, Sequence[dict[str, Any]]]], scores: Mapping[str, Score]) -> Figure:
    """Loss and the first of a task's scores by epoch, of runs by name; what was selected on is dashed."""
    key, shown = next(iter(scores.items()))
    figure = _figure(10, 3.5)
    loss, accuracy = figure.subplots(1, 2)
    for number, (name, history) in enumerate(histories):
        colour, epochs = KINDS[number % len(KINDS)], [record["epoch"] for record in history]
        loss.plot(epochs, [record["train_loss"] for record in history], color=colour, label=name)
        if any("train_accuracy" in record for record in history):
            trained = [record.get("train_accuracy", float("nan")) for record in history]
            accuracy.plot(epochs, trained, color=colour, label=f"{name}, training")
        for part, words in (("val", "validation"), ("test", "test")):
            judged = [(r["epoch"], r[f"{part}_{key}"]) for r in history if f"{part}_{key}" in r]
            if judged:
                label = f"{name}, {words}"
                accuracy.plot(*zip(*judged, strict=True), color=colour, linestyle="--", label=label)
    loss.set(xlabel="epoch", ylabel="training loss")
    accuracy.set(xlabel="epoch", ylabel=f"{shown.long} {shown.unit}")
    for axes in (loss, accuracy):
        axes.legend(fontsize=7, frameon=False)
    return figure
