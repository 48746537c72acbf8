"""Intervals of scores that are no mean over samples, such as a mean IoU of classes: samples are resampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np
import torch
from torch import Tensor

from pointadapterx.study.statistics import (
    CHUNK,
    RESAMPLES,
    Interval,
    percentile_interval,
    require_same_folds,
    require_same_objects,
    t_interval,
)

AT_ONCE = 2**23  # numbers of drawn groups, 64 MiB

ScoresOf = Callable[[Tensor], Mapping[str, Tensor]]
"""Sums of records (..., K) -> each score (...), by name."""

_Values = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Records:
    """What a task keeps of each test object of one run.

    Attributes:
        rows: (n, K) float64, of which those of several objects add up.
        scores: of such a sum, the score that is compared first.
    """

    rows: np.ndarray
    scores: ScoresOf

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def values(self) -> dict[str, float]:
        """The scores of all objects."""
        return {name: float(value) for name, value in _scored(self.scores, self.rows.sum(axis=0)).items()}


def record_intervals(
    runs: Sequence[Records], *, groups: np.ndarray | None = None, same_objects: bool = True
) -> dict[str, Interval]:
    """Interval of each score, of the mean over replicates; see :func:`~pointadapterx.study.statistics.score_interval`.

    Args:
        runs: one a replicate.
        groups: (n,) int, as there.
        same_objects: as there.

    Raises:
        DataError: if replicates or groups are not of the same objects.
    """
    folds = not same_objects and len(runs) > 1
    require_same_objects([runs], None if folds else groups, paired=folds)
    if folds:
        values = [run.values for run in runs]
        return {name: t_interval([of_run[name] for of_run in values]) for name in values[0]}
    drawn = [own for (own,) in _resampled([runs], groups)]
    return {name: percentile_interval(np.concatenate([part[name] for part in drawn])) for name in drawn[0]}


def record_difference(
    ours: Sequence[Records], theirs: Sequence[Records], *, groups: np.ndarray | None = None, same_objects: bool = True
) -> tuple[float, Interval]:
    """First score minus the other method's, and its interval, paired by object.

    Args:
        ours: one a replicate.
        theirs: as of :func:`~pointadapterx.study.statistics.difference_interval`.
        groups: as there.
        same_objects: as there.

    Raises:
        DataError: if both are not of the same objects, or without ``same_objects`` not of the same folds.
    """
    first, *_ = ours[0].values
    of_ours, of_theirs = ([run.values[first] for run in runs] for runs in (ours, theirs))
    if not same_objects and len(ours) > 1:
        require_same_folds(ours, theirs)
        pairs = [a - b for a, b in zip(of_ours, of_theirs, strict=True)]
        return mean(pairs), t_interval(pairs)
    require_same_objects([ours, theirs], groups)
    parts = [own[first] - other[first] for own, other in _resampled([ours, theirs], groups)]
    return mean(of_ours) - mean(of_theirs), percentile_interval(np.concatenate(parts))


def resampled_records(
    methods: Sequence[Sequence[Records]], groups: np.ndarray | None, stream: int = 0
) -> list[np.ndarray]:
    """First scores of methods, as of :func:`~pointadapterx.study.statistics.resampled_scores`."""
    first, *_ = methods[0][0].values
    parts = [[of_method[first] for of_method in part] for part in _resampled(methods, groups, stream)]
    return [np.concatenate(of_method) for of_method in zip(*parts, strict=True)]


def _resampled(
    methods: Sequence[Sequence[Records]], groups: np.ndarray | None, stream: int = 0
) -> Iterator[list[_Values]]:
    """Scores of each method over resampled groups and as many resampled replicates, RESAMPLES in all, in parts."""
    rng = np.random.default_rng(stream)
    rows = [[_by_group(run.rows, groups) for run in runs] for runs in methods]
    count = len(rows[0][0])
    size = max(1, min(CHUNK, AT_ONCE // count))
    for start in range(0, RESAMPLES, size):
        wanted = min(size, RESAMPLES - start)
        times = _times_drawn(rng.integers(count, size=(wanted, count)))
        yield [_means(runs, of_runs, times, rng) for runs, of_runs in zip(methods, rows, strict=True)]


def _means(runs: Sequence[Records], rows: Sequence[np.ndarray], times: np.ndarray, rng: np.random.Generator) -> _Values:
    """(resamples,) means over drawn replicates, for groups that are drawn ``times`` (resamples, G)."""
    weights = rng.multinomial(len(runs), [1 / len(runs)] * len(runs), size=len(times)) / len(runs)
    total: _Values = {}
    for run, of_run, weight in zip(runs, rows, weights.T, strict=True):
        for name, value in _scored(run.scores, times @ of_run).items():
            total[name] = total.get(name, 0.0) + weight * value
    return total


def _times_drawn(drawn: np.ndarray) -> np.ndarray:
    """How often each of G groups is in each row of numbers (resamples, G), float64."""
    resamples, count = drawn.shape
    places = drawn + count * np.arange(resamples)[:, None]
    return np.bincount(places.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)


def _by_group(rows: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Records (n, K) summed over each group, (G, K)."""
    if groups is None:
        return rows
    numbers = np.unique(groups, return_inverse=True)[1]
    sums = np.zeros((int(numbers.max()) + 1, rows.shape[1]))
    np.add.at(sums, numbers, rows)
    return sums


def _scored(scores: ScoresOf, sums: np.ndarray) -> _Values:
    return {name: value.double().numpy() for name, value in scores(torch.from_numpy(sums)).items()}
