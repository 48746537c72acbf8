"""Intervals of scores and of differences, from the lines of runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pointadapterx.study.comparability import draws_data
from pointadapterx.study.records import Record
from pointadapterx.study.resampling import Records, record_difference, record_intervals
from pointadapterx.study.statistics import (
    Interval,
    count_units,
    difference_interval,
    mcnemar,
    mean_difference,
    score_interval,
)
from pointadapterx.tasks.presentation import too_few

Outcomes = TypeVar("Outcomes", np.ndarray, Records)


@dataclass(frozen=True)
class Difference:
    """The first score minus the baseline's on the same test objects.

    ``p`` is that of McNemar's test, where there is one run of each, and objects are right or wrong and independent.
    """

    mean: float
    interval: Interval | None
    p: float | None


def groups_of(records: list[Record]) -> np.ndarray | None:
    """Of records with the same test objects, some of which may be of a version that did not write them."""
    return next((groups for record in records if (groups := record.object_groups) is not None), None)


def outcomes_of(done: list[Record], kind: type[Outcomes]) -> list[Outcomes] | None:
    """The outcomes of each run's test objects; None unless all have them, and in this form."""
    found = [outcomes for record in done if isinstance(outcomes := record.outcomes, kind)]
    return found if found and len(found) == len(done) else None


def missing_words(done: list[Record]) -> str:
    """Why scores have no intervals, where these would be over too few test objects."""
    arrays, records = outcomes_of(done, np.ndarray), outcomes_of(done, Records)
    found = [*(arrays or ()), *(records or ())]
    if not found or (len(done) > 1 and draws_data(done[0].replicate_key)):  # intervals are over folds then
        return ""
    return too_few(count_units(len(found[0]), groups_of(done)))


def intervals_of(done: list[Record]) -> dict[str, Interval]:
    """Intervals of those scores of a cell's runs that outcomes of single test objects give."""
    arrays, records = outcomes_of(done, np.ndarray), outcomes_of(done, Records)
    if arrays is None and records is None:
        return {}
    groups, crossed = groups_of(done), not draws_data(done[0].replicate_key)
    if records is not None:
        return record_intervals(records, groups=groups, same_objects=crossed)
    assert arrays is not None
    return {next(iter(done[0].task_scores)): score_interval(arrays, groups=groups, same_objects=crossed)}


def difference_of(done: list[Record], baseline: list[Record]) -> Difference | None:
    """Of the runs of a cell to those of the baseline; None where either has none, or they have nothing in common."""
    if not done or not baseline:
        return None
    crossed = not draws_data(done[0].replicate_key)
    if not crossed:  # folds have objects of their own, so only common ones can be compared
        common = {record.replicate for record in done} & {record.replicate for record in baseline}
        done = sorted((r for r in done if r.replicate in common), key=lambda r: r.replicate)
        baseline = sorted((r for r in baseline if r.replicate in common), key=lambda r: r.replicate)
        if not common:
            return None
    groups = groups_of([*done, *baseline])
    our_records, their_records = outcomes_of(done, Records), outcomes_of(baseline, Records)
    if our_records is not None and their_records is not None:
        value, interval = record_difference(our_records, their_records, groups=groups, same_objects=crossed)
        return Difference(value, None if missing_words(done) else interval, p=None)
    ours, theirs = outcomes_of(done, np.ndarray), outcomes_of(baseline, np.ndarray)
    if ours is None or theirs is None:
        return None
    tested = groups is None and len(ours) == len(theirs) == 1 and ours[0].dtype == bool
    return Difference(
        mean=mean_difference(ours, theirs),
        interval=None
        if missing_words(done)
        else difference_interval(ours, theirs, groups=groups, same_objects=crossed),
        p=mcnemar(ours[0], theirs[0]) if tested else None,
    )
