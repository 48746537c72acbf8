"""Means, intervals and paired tests of scores, from which test objects each run got right, or their scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Sized
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest, t

from pointadapterx.errors import DataError

RESAMPLES = 10_000
CHUNK = 500  # resamples at a time: (CHUNK, G) floats of G groups are held at once
MANY_GROUPS = 1000  # of more groups, those that are alike are drawn together, which takes seconds instead of minutes
LEVEL = 0.95

Runs = Sequence[np.ndarray]
"""One (n,) bool a replicate, which objects are right, for percentages; or (n,) float64, the objects' scores."""


class _Units(NamedTuple):
    """What is resampled: U groups of objects, or of many groups the U kinds that differ in what is known of them.

    Attributes:
        right: right objects, or sums of scores, (R, U) for the R replicates of each method.
        sizes: (U,) objects of a group.
        counts: (U,) groups of each kind; None: each unit is a group by itself.
        scale: by which means are multiplied.
    """

    right: list[np.ndarray]
    sizes: np.ndarray
    counts: np.ndarray | None
    scale: float


class Spread(NamedTuple):
    """Mean over replicates and sample standard deviation, which a single replicate does not have."""

    mean: float
    std: float | None


class Interval(NamedTuple):
    """Bounds of a 95 % interval."""

    low: float
    high: float


def require_same_objects(
    methods: Sequence[Sequence[Sized]], groups: np.ndarray | None, *, paired: bool = False
) -> None:
    """Refuses what cannot be of the same test objects: NumPy would repeat a single one, or fail in words of its own.

    Args:
        methods: outcomes of each one's runs.
        groups: one number an object, or None.
        paired: whether runs are folds, of objects of their own.

    Raises:
        DataError: naming both numbers.
    """
    if not all(len(runs) for runs in methods):
        raise DataError("an interval of no run; give at least one")
    numbers = [len(run) for runs in methods for run in runs]
    if min(numbers) < 1:
        raise DataError("a run without test objects has no accuracy; test it again")
    if not paired and min(numbers) != max(numbers):
        raise DataError(
            f"runs of {min(numbers)} and of {max(numbers)} test objects are not of one test set; compare those that are"
        )
    if groups is not None and {len(groups)} != set(numbers):
        raise DataError(f"{len(groups)} groups for runs of {numbers[0]} test objects; give one number an object")


def require_same_folds(ours: Sequence[Sized], theirs: Sequence[Sized]) -> None:
    """Refuses folds that cannot be paired.

    Raises:
        DataError: naming both numbers.
    """
    if len(ours) != len(theirs):
        raise DataError(f"{len(ours)} and {len(theirs)} folds cannot be paired; compare the same folds")
    for a, b in zip(ours, theirs, strict=True):
        require_same_objects([[a], [b]], None)


def count_units(objects: int, groups: np.ndarray | None) -> int:
    """How many are drawn independently: groups, or else objects."""
    return objects if groups is None else len(np.unique(groups))


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation (n - 1 degrees of freedom) of at least one value."""
    return Spread(mean(values), stdev(values) if len(values) > 1 else None)


def mean_score(run: np.ndarray) -> float:
    """Accuracy in percent of (n,) bool, or the mean of (n,) scores."""
    return _scale(run) * float(run.mean())


def mean_difference(ours: Runs, theirs: Runs) -> float:
    """The first's mean score minus the other's, of accuracies in percentage points."""
    return _scale(ours[0]) * (mean(run.mean() for run in ours) - mean(run.mean() for run in theirs))


def _scale(run: np.ndarray) -> float:
    return 100.0 if run.dtype == bool else 1.0


def score_interval(runs: Runs, *, groups: np.ndarray | None = None, same_objects: bool = True) -> Interval:
    """Interval of the mean score: of accuracies in percent, of other scores in their unit.

    Objects and replicates are resampled independently, a pigeonhole bootstrap (Owen 2007), which is conservative:
    it counts what seeds and objects have in common more than once.

    Args:
        runs: one a replicate.
        groups: (n,) int; objects of one number are not independent and are drawn together (cluster bootstrap,
            Davison and Hinkley 1997, section 3.8). None: every object is on its own.
        same_objects: all replicates were tested on the same objects, as seeds are. Otherwise, as in few-shot
            folds, the interval is Student's t over the replicates, whose scores are taken as independent.

    Raises:
        DataError: if replicates or groups are not of the same objects.
    """
    several = not same_objects and len(runs) > 1
    require_same_objects([runs], None if several else groups, paired=several)
    if several:
        low, high = t_interval([mean_score(run) for run in runs])
        return Interval(max(0.0, low), min(100.0, high)) if runs[0].dtype == bool else Interval(low, high)
    return percentile_interval(resampled_scores([runs], groups)[0])


def resampled_scores(methods: Sequence[Runs], groups: np.ndarray | None, stream: int = 0) -> list[np.ndarray]:
    """Mean scores of one or two methods over the same resampled objects and replicates of each, (RESAMPLES,) each.

    Args:
        methods: runs of each, all of the same objects.
        groups: as in :func:`score_interval`.
        stream: of random numbers; resamples of other streams are independent.
    """
    rng = np.random.default_rng(stream)
    units = _units(methods, groups)
    parts = [[_resampled_means(i, units, drawn, rng) for i in range(len(methods))] for drawn in _draws(units, rng)]
    return [np.concatenate(of_method) for of_method in zip(*parts, strict=True)]


def difference_interval(
    ours: Runs, theirs: Runs, *, groups: np.ndarray | None = None, same_objects: bool = True
) -> Interval:
    """Interval of the difference of two mean scores on the same objects, of accuracies in percentage points.

    Each resample takes the same objects for both, and replicates of each on their own: a seed of one method has
    nothing in common with that seed of another. Folds stay paired.

    Args:
        ours: one a replicate.
        theirs: the other method's; without ``same_objects`` the same folds in the same order.
        groups: as in :func:`score_interval`.
        same_objects: as in :func:`score_interval`.

    Raises:
        DataError: if both are not of the same objects, or without ``same_objects`` not of as many folds.
    """
    if not same_objects and len(ours) > 1:
        require_same_folds(ours, theirs)
        differences = [_scale(a) * float(a.mean() - b.mean()) for a, b in zip(ours, theirs, strict=True)]
        return t_interval(differences)
    require_same_objects([ours, theirs], groups)
    of_ours, of_theirs = resampled_scores([ours, theirs], groups)
    return percentile_interval(of_ours - of_theirs)


def mcnemar(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Two-sided p of the exact McNemar test that two runs are right equally often (Psychometrika 12, 1947).

    The objects must be independent of each other.

    Args:
        ours: (n,) bool, right or wrong on each object.
        theirs: (n,) bool on the same objects.

    Raises:
        DataError: if there are not as many of both.
    """
    require_same_objects([[ours], [theirs]], None)
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    if only_ours + only_theirs == 0:
        return 1.0
    return float(binomtest(only_ours, only_ours + only_theirs, 0.5).pvalue)


def _units(methods: Sequence[Runs], groups: np.ndarray | None) -> _Units:
    """The groups with the outcomes of each method's runs, or their kinds where there are many."""
    parts = [_by_group(runs, groups) for runs in methods]
    right, sizes, scale = [part for part, _ in parts], parts[0][1], _scale(methods[0][0])
    if len(sizes) <= MANY_GROUPS:
        return _Units(right, sizes, None, scale)
    kinds, counts = np.unique(np.vstack([*right, sizes]), axis=1, return_counts=True)
    ends = np.cumsum([len(part) for part in right])
    return _Units(np.split(kinds[:-1], ends[:-1]), kinds[-1], counts, scale)


def _by_group(runs: Runs, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Right objects or sums of scores of each group, (R, G) for R replicates, and the groups' sizes, (G,)."""
    right = np.stack(runs).astype(np.float64)
    if groups is None:
        return right, np.ones(right.shape[1])
    numbers = np.unique(groups, return_inverse=True)[1]
    return np.stack([np.bincount(numbers, weights=run) for run in right]), np.bincount(numbers).astype(np.float64)


def _draws(units: _Units, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """RESAMPLES rows in all: indices (CHUNK, G) of resampled groups, or how often each kind was drawn, (CHUNK, U)."""
    for _ in range(RESAMPLES // CHUNK):
        if units.counts is None:
            yield rng.integers(len(units.sizes), size=(CHUNK, len(units.sizes)))
        else:
            total = units.counts.sum()
            yield rng.multinomial(total, units.counts / total, size=CHUNK)


def _resampled_means(method: int, units: _Units, drawn: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(CHUNK,) mean scores over the drawn groups and as many drawn replicates."""
    right, replicates = units.right[method], len(units.right[method])
    weights = rng.multinomial(replicates, [1 / replicates] * replicates, size=len(drawn)) / replicates
    per_unit = weights @ right  # (CHUNK, U)
    if units.counts is not None:
        return units.scale * (drawn * per_unit).sum(axis=1) / (drawn @ units.sizes)
    return units.scale * np.take_along_axis(per_unit, drawn, axis=1).sum(axis=1) / units.sizes[drawn].sum(axis=1)


def mean_class_interval(right: np.ndarray, labels: np.ndarray) -> Interval:
    """95 % interval of mAcc: bootstrap over the samples of each class.

    Args:
        right: (n,) bool.
        labels: (n,).
    """
    rng = np.random.default_rng(0)
    of_classes = [right[labels == label] for label in np.unique(labels)]
    means = [rng.binomial(len(one), one.mean(), RESAMPLES) / len(one) for one in of_classes]  # what the draws count
    low, high = np.quantile(100 * np.mean(means, axis=0), [0.025, 0.975])
    return Interval(float(low), float(high))


def t_interval(values: Sequence[float]) -> Interval:
    """Student's t of the mean of at least two values."""
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return Interval(mean(values) - half, mean(values) + half)


def percentile_interval(resampled: np.ndarray) -> Interval:
    """Of a score's values in all resamples."""
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))
