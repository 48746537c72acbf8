"""Few-shot tasks: a few classes of a data set, a few training samples of each, in fixed folds."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pointadapterx.datasets.base import Samples, SamplesT
from pointadapterx.errors import ConfigError
from pointadapterx.hashing import derive_seed


def few_shot_task(
    train: SamplesT, test: SamplesT, ways: int, shots: int, fold: int, queries: int | None = None
) -> tuple[SamplesT, SamplesT]:
    """Support and query samples of fold ``fold`` of the ``ways``-way ``shots``-shot task.

    Classes are drawn among those with enough samples. Every draw is a function of the arguments and of class names
    and positions in the files: it depends neither on the training seed nor on a library's random numbers.

    Args:
        train: training split, which gives the support.
        test: test split, which gives the queries.
        ways: number of classes.
        shots: support samples of each class; of different ``groups`` as far as there are enough.
        fold: number of the draw, from 0. Classes and samples differ from fold to fold.
        queries: query samples of each class; all by default.

    Returns:
        Support and queries. Labels are ``0 .. ways - 1`` and ``classes`` the chosen ones, in the data set's order;
        positions stay those in the files. A published validation part is not kept: the draw takes no heed of it.

    Raises:
        ConfigError: if fewer classes than ``ways`` have ``shots`` training and ``queries`` (or one) test samples.
    """
    task = f"few-shot {ways}-way {shots}-shot fold {fold}"
    eligible = _at_least(train, shots) & _at_least(test, queries or 1)
    if int(eligible.sum()) < ways:
        raise ConfigError(
            f"data.few_shot.ways={ways}: only {int(eligible.sum())} of {len(train.classes)} classes have {shots} "
            f"training samples (data.few_shot.shots) and {queries or 1} test samples (data.few_shot.queries); lower "
            "one of these keys"
        )
    drawn = _order(range(len(train.classes)), train.classes, task, "classes")
    chosen = sorted([label for label in drawn if eligible[label]][:ways])
    return _part(train, chosen, shots, task), _part(test, chosen, queries, task)


def _at_least(data: Samples, count: int) -> torch.Tensor:
    """``(classes,)`` bool: the classes that have ``count`` samples."""
    return data.labels.bincount(minlength=len(data.classes)) >= count


def _part(data: SamplesT, chosen: Sequence[int], count: int | None, task: str) -> SamplesT:
    """``count`` samples, or all, of each of the ``chosen`` labels, relabelled."""
    parts = [_draw(data, label, count, task) for label in chosen]
    part = data.subset(torch.cat(parts))
    part.labels = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor([len(indices) for indices in parts]))
    part.classes = [data.classes[label] for label in chosen]
    part.validation = None
    return part


def _draw(data: Samples, label: int, count: int | None, task: str) -> torch.Tensor:
    """Sorted indices of ``count`` samples of a class, or of all."""
    indices = (data.labels == label).nonzero().flatten()
    if count is None:
        return indices
    order = _order(indices.tolist(), data.positions[indices].tolist(), task, data.split, data.classes[label])
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
