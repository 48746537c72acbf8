"""Means over the columns of a table, with the interval of the difference to the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np

from pointadapterx.study.comparability import draws_data
from pointadapterx.study.comparing import Difference, groups_of, missing_words, outcomes_of
from pointadapterx.study.records import Record
from pointadapterx.study.resampling import Records, resampled_records
from pointadapterx.study.schema import PooledBy
from pointadapterx.study.statistics import Interval, Spread, percentile_interval, resampled_scores, spread

MEANS: Mapping[PooledBy, str] = {
    "columns": "mean of columns",
    "groups": "mean of groups",
    "objects": "all test objects",
}
"""What a mean is called, by what counts alike in it."""

Weights = dict[str, float]
"""Share of each column in a mean; they add up to 1."""


@dataclass(frozen=True)
class Estimate:
    """A mean over columns; no interval where a column has none, and no difference of the baseline itself."""

    score: Spread
    interval: Interval | None
    difference: Difference | None


@dataclass(frozen=True)
class PooledRow:
    """A row whose columns all have finished runs.

    Attributes:
        row: its name.
        estimates: its mean, by what counts alike in it.
        replicates: of its finished runs in each column.
    """

    row: str
    estimates: dict[PooledBy, Estimate]
    replicates: dict[str, list[str]]


@dataclass(frozen=True)
class Pooled:
    """The means of a table.

    Attributes:
        label: what they are called.
        by: what counts alike, that which decides first.
        columns: of which the means are, to the number of their test objects.
        rows: those of which all columns have finished runs.
    """

    label: str
    by: list[PooledBy]
    columns: dict[str, int]
    rows: list[PooledRow]


def pool(records: Sequence[Record], groups: Mapping[str, Sequence[str]]) -> Pooled | None:
    """The means that a table asks for; None where it asks for none, or they cannot be had.

    Objects are resampled within each column, the same for a row and the baseline, and replicates within each column and
    row, as for one column; columns are independent of each other, and are not resampled: the means are of these.

    Args:
        records: final lines of the table.
        groups: of its columns.
    """
    pooled = next((record.pooling for record in records if record.pooling is not None), None)
    columns = list(dict.fromkeys(record.column for record in records))
    cells = {
        row: {name: [r for r in records if (r.row, r.column, r.status) == (row, name, "finished")] for name in columns}
        for row in dict.fromkeys(record.row for record in records)
    }
    whole = {row: of_row for row, of_row in cells.items() if all(of_row.values())}
    if pooled is None or not whole or not _fit(records):
        return None
    first = next(iter(whole.values()))
    sizes = {column: done[0].test_objects or 0 for column, done in first.items()}
    of_objects = all(outcomes_of(done, np.ndarray) is not None for done in first.values())
    ways: list[PooledBy] = [pooled.by, "columns", "objects"]
    known = [name for name in ways if of_objects or name != "objects"]
    by = {name: weights for name in known if (weights := _weights(name, sizes, groups))}
    if pooled.by not in by:
        return None
    baseline = whole.get(records[0].baseline or "")
    rows = [_row(row, of_row, None if of_row is baseline else baseline, by) for row, of_row in whole.items()]
    return Pooled(pooled.label, list(by), sizes, rows)


def _fit(records: Sequence[Record]) -> bool:
    """Whether all are of one task, and of test objects that replicates share."""
    tasks = {record.task for record in records if record.status == "finished"}
    return len(tasks) == 1 and not any(draws_data(record.replicate_key) for record in records)


def _weights(by: PooledBy, sizes: Mapping[str, int], groups: Mapping[str, Sequence[str]]) -> Weights:
    """Empty where the groups are not known."""
    if by == "objects":
        return {column: size / sum(sizes.values()) for column, size in sizes.items()}
    if by == "columns":
        return dict.fromkeys(sizes, 1 / len(sizes))
    return {column: 1 / (len(groups) * len(members)) for members in groups.values() for column in members}


def _row(
    row: str,
    cells: Mapping[str, list[Record]],
    baseline: Mapping[str, list[Record]] | None,
    by: Mapping[PooledBy, Weights],
) -> PooledRow:
    drawn = [
        _resampled(done, [] if baseline is None else baseline[column], stream)
        for stream, (column, done) in enumerate(cells.items(), 1)
    ]
    kinds = list(zip(*drawn, strict=True)) if all(drawn) else []  # scores of each column, and differences
    scores = {column: {record.replicate: _score(record) for record in done} for column, done in cells.items()}
    estimates: dict[PooledBy, Estimate] = {}
    for name, weights in by.items():
        shares = [weights[column] for column in cells]
        intervals = [percentile_interval(np.average(parts, axis=0, weights=shares)) for parts in kinds]
        score = _spread(scores, weights)
        difference = None
        if baseline is not None:
            theirs = sum(weights[column] * mean(map(_score, done)) for column, done in baseline.items())
            difference = Difference(score.mean - theirs, intervals[1] if intervals else None, None)
        estimates[name] = Estimate(score, intervals[0] if intervals else None, difference)
    return PooledRow(row, estimates, {column: list(of_column) for column, of_column in scores.items()})


def _score(record: Record) -> float:
    return next(iter(record.score_values.values()))


def _spread(scores: Mapping[str, Mapping[str, float]], weights: Weights) -> Spread:
    """Mean over columns, replicate by replicate where all columns have the same ones."""
    replicates = next(iter(scores.values())).keys()
    if all(of_column.keys() == replicates for of_column in scores.values()):
        return spread([sum(weights[c] * of_column[r] for c, of_column in scores.items()) for r in replicates])
    return Spread(sum(weights[column] * mean(of_column.values()) for column, of_column in scores.items()), None)


def _resampled(done: list[Record], baseline: list[Record], stream: int) -> list[np.ndarray]:
    """(RESAMPLES,) scores of a cell and, with a baseline, differences to it; empty where no interval can be had."""
    both = [done, *([baseline] if baseline else [])]
    if any(missing_words(of_one) for of_one in both):
        return []
    groups = groups_of([record for of_one in both for record in of_one])
    arrays = [found for of_one in both if (found := outcomes_of(of_one, np.ndarray)) is not None]
    records = [kept for of_one in both if (kept := outcomes_of(of_one, Records)) is not None]
    if len(arrays) == len(both):
        drawn = resampled_scores(arrays, groups, stream)
    elif len(records) == len(both):
        drawn = resampled_records(records, groups, stream)
    else:
        return []
    return [drawn[0], *(drawn[0] - other for other in drawn[1:])]
