"""Few-shot tasks: a few classes of a data set, a few training clouds of each, in fixed folds."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pointadapterx.datasets.base import PointClouds
from pointadapterx.datasets.hashing import derive_seed
from pointadapterx.errors import ConfigError


def few_shot_task(
    train: PointClouds, test: PointClouds, ways: int, shots: int, fold: int, queries: int | None = None
) -> tuple[PointClouds, PointClouds]:
    """Support and query clouds of one task; see :func:`few_shot_split`.

    Raises:
        ConfigError: as :func:`few_shot_split`.
    """
    return few_shot_split(train, ways, shots, fold, queries), few_shot_split(test, ways, shots, fold, queries)


def few_shot_split(data: PointClouds, ways: int, shots: int, fold: int, queries: int | None = None) -> PointClouds:
    """The part of one split that belongs to fold ``fold`` of the ``ways``-way ``shots``-shot task.

    Every draw is a function of the arguments and of class names and positions in the files: it needs no other
    split and depends neither on the training seed nor on a library's random numbers.

    Args:
        data: split ``"train"``, of which ``shots`` clouds a class are the support, or ``"test"``, the queries.
        ways: number of classes.
        shots: support clouds of each class; of different ``groups`` as far as there are enough.
        fold: number of the draw, from 0. Classes and clouds differ from fold to fold.
        queries: query clouds of each class; all by default.

    Returns:
        Labels are ``0 .. ways - 1`` and ``classes`` the chosen ones, in the data set's order; positions stay those
        in the files.

    Raises:
        ConfigError: if there are fewer classes than ``ways``, or a chosen class has too few clouds.
    """
    task = f"few-shot {ways}-way {shots}-shot fold {fold}"
    if ways > len(data.classes):
        raise ConfigError(f"data.few_shot.ways={ways} exceeds the {len(data.classes)} classes of the data; lower it")
    chosen = sorted(_order(range(len(data.classes)), data.classes, task, "classes")[:ways])
    key, wanted = ("shots", shots) if data.split == "train" else ("queries", queries)
    parts = [_draw(data, label, wanted, key, task) for label in chosen]
    part = data.subset(torch.cat(parts))
    part.labels = torch.repeat_interleave(torch.arange(ways), torch.tensor([len(indices) for indices in parts]))
    part.classes = [data.classes[label] for label in chosen]
    return part


def _draw(data: PointClouds, label: int, count: int | None, key: str, task: str) -> torch.Tensor:
    """Sorted indices of ``count`` clouds of a class, or of all."""
    indices = (data.labels == label).nonzero().flatten()
    name, needed = data.classes[label], count or 1
    if len(indices) < needed:
        lower = "" if count is None else f"lower data.few_shot.{key}={count}, or "
        raise ConfigError(
            f"{task}: class '{name}' has {len(indices)} {data.split} clouds and {needed} are needed; {lower}take "
            "another data.few_shot.fold"
        )
    if count is None:
        return indices
    order = _order(indices.tolist(), data.positions[indices].tolist(), task, data.split, name)
    if data.groups is not None:
        order = _distinct_first(order, data.groups)
    return torch.tensor(sorted(order[:count]))


def _order(items: Sequence[int], keys: Sequence[int | str], *parts: str) -> list[int]:
    """``items`` in an order drawn by the hashes of their ``keys``."""
    ranks = {item: derive_seed(*parts, key) for item, key in zip(items, keys, strict=True)}
    return sorted(items, key=ranks.__getitem__)


def _distinct_first(order: Sequence[int], groups: torch.Tensor) -> list[int]:
    """One of each group before all others, else in the same order."""
    first: dict[int, int] = {}
    for i in order:
        first.setdefault(int(groups[i]), i)
    return list(dict.fromkeys([*first.values(), *order]))
