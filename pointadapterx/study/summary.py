"""Summaries of a study's CSV: one for each cell, over its replicates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TypeVar

import numpy as np

from pointadapterx.study.comparability import Conditions, check_columns, draws_data
from pointadapterx.study.records import UNNAMED, Record, task_scores
from pointadapterx.study.resampling import Records, record_difference, record_intervals
from pointadapterx.study.schema import PublishedRow, TableContext
from pointadapterx.study.statistics import (
    Interval,
    Spread,
    count_units,
    difference_interval,
    mcnemar,
    mean_difference,
    score_interval,
    spread,
)
from pointadapterx.tasks.exchange import Score
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


@dataclass(frozen=True)
class Summary:
    """A cell over its finished replicates; costs, fit and routing are means over them.

    ``scores`` are those of the task, in its order; ``intervals`` are of those of them that the outcomes of single test
    objects give, and ``difference`` is of the first. ``missing`` says why they have none, where these are too few.
    ``tuned_by`` names the cell that the tuned values were taken from, if it is another.
    """

    row: str
    label: str
    planned: int
    finished: int
    scores: dict[str, Spread]
    intervals: dict[str, Interval]
    missing: str
    difference: Difference | None
    tuned: dict[str, object]
    tuned_by: str | None
    trainable: int | None
    trainable_without_head: int | None
    percent: float | None
    seconds_per_epoch: float | None
    seconds: float | None
    peak_memory_mib: float | None
    checkpoint_bytes: int | None
    train_accuracy: float | None
    best_val: float | None
    routing_min_load: float | None
    routing_entropy: float | None
    routing_switched: float | None

    @property
    def first_score(self) -> Spread | None:
        """The score that is compared; None where no run is finished."""
        return next(iter(self.scores.values()), None)

    @property
    def interval(self) -> Interval | None:
        """Of :attr:`first_score`; None where it has none."""
        return self.intervals.get(next(iter(self.scores), ""))


@dataclass(frozen=True)
class Column:
    """One column of a table: results that can be compared with each other."""

    name: str
    baseline: str | None
    replicate_key: str
    records: list[Record]
    summaries: list[Summary]

    @property
    def task(self) -> str | None:
        """As the CSV names it; all runs of a column are of one task."""
        return next((record.task for record in self.records if record.task is not None), None)

    @property
    def score(self) -> Score:
        """What is compared."""
        return next(iter(task_scores(self.task).values()))

    def values(self, key: str) -> list[str]:
        """The different values of a field of its finished runs, in order."""
        found = dict.fromkeys(getattr(record, key) for record in self.records if record.status == "finished")
        return [str(value) for value in found if value is not None]

    @property
    def test_sets(self) -> list[str]:
        """The different sizes of its finished runs' test sets in words, with their groups."""
        done = [record for record in self.records if record.status == "finished"]
        return list(dict.fromkeys(_size_words(record) for record in done))


@dataclass(frozen=True)
class GroupMeans:
    """Means of a row's first scores over the columns of each group, and the mean of these means."""

    groups: list[Spread]
    overall: Spread


@dataclass(frozen=True)
class Table:
    """A table of a study with its tuning runs.

    ``means`` are those of the rows whose columns are all finished, by row, where the context groups the columns.
    """

    name: str
    title: str
    columns: list[Column]
    tuning: list[Record]
    context: TableContext
    means: dict[str, GroupMeans]


def summarise(records: Sequence[Record], contexts: Mapping[str, TableContext] | None = None) -> list[Table]:
    """The tables of a CSV, in its order.

    Args:
        records: its lines.
        contexts: table name to groups of columns and published rows, where it has any.

    Raises:
        ConfigError: for a column that mixes regimes, protocols or test sets.
    """
    finals = [record for record in records if record.kind == "final"]
    check_columns(_conditions(record) for record in finals if record.status == "finished")
    tables = []
    for name in dict.fromkeys(record.table for record in records):
        here = [record for record in records if record.table == name]
        tested = [record for record in here if record.kind == "final"]
        names = dict.fromkeys(record.column for record in tested)
        columns = [_column([record for record in tested if record.column == column]) for column in names]
        context = (contexts or {}).get(name) or TableContext()
        means = {
            row: of_row for row in dict.fromkeys(r.row for r in tested) if (of_row := _means(tested, row, context))
        }
        tuning = [record for record in here if record.kind == "tune"]
        tables.append(Table(name, here[0].table_title, columns, tuning, context, means))
    return tables


def plain_name(score: Score) -> str:
    """``overall accuracy``, without the abbreviation behind it."""
    return score.long.removesuffix(f" ({score.short})")


def published_means(row: PublishedRow, groups: Mapping[str, Sequence[str]]) -> tuple[list[float | None], float | None]:
    """Mean of each group, from the row's values or else as printed, and the mean of these; None where not known."""
    means = [
        mean(row.values[name] for name in members)
        if all(name in row.values for name in members)
        else row.groups.get(group)
        for group, members in groups.items()
    ]
    known = [value for value in means if value is not None]
    return means, mean(known) if known and len(known) == len(means) else None


def _means(tested: Sequence[Record], row: str, context: TableContext) -> GroupMeans | None:
    """Over groups of columns, replicate by replicate; None unless all are finished with the same replicates."""
    own = [record for record in tested if record.row == row]
    if any(record.status != "finished" for record in own) or len({record.task for record in own}) > 1:
        return None
    scores: dict[str, dict[str, float]] = {}  # of each column, by replicate
    for record in own:
        scores.setdefault(record.column, {})[record.replicate] = next(iter(record.score_values.values()))
    replicates = next(iter(scores.values()))
    columns = {name for members in context.groups.values() for name in members}
    if not columns or any(scores.get(name, {}).keys() != replicates.keys() for name in columns):
        return None
    groups = [
        [mean(scores[name][replicate] for name in members) for replicate in replicates]
        for members in context.groups.values()
    ]
    return GroupMeans(
        [spread(values) for values in groups], spread([mean(of_all) for of_all in zip(*groups, strict=True)])
    )


def _conditions(record: Record) -> Conditions:
    return Conditions(
        table=record.table,
        column=record.column,
        row=record.row,
        replicate=record.replicate if draws_data(record.replicate_key) else "",
        regime=record.regime or "not told",
        protocol=(record.protocol or "not told").partition(":")[0],  # ``selection`` says which epochs it chose from
        selection=record.selection or "not told",
        test_set=f"{record.data} {(record.test_checksum or '')[:12]}",
        task=record.task or UNNAMED,
    )


def _size_words(record: Record) -> str:
    groups = record.object_groups
    return f"{record.test_objects}" + ("" if groups is None else f" in {len(np.unique(groups))} groups")


def _groups(records: list[Record]) -> np.ndarray | None:
    """Of records with the same test objects, some of which may be of a version that did not write them."""
    return next((groups for record in records if (groups := record.object_groups) is not None), None)


def _column(records: list[Record]) -> Column:
    first = records[0]
    rows = {row: [r for r in records if r.row == row] for row in dict.fromkeys(r.row for r in records)}
    baseline = [r for r in rows.get(first.baseline or "", []) if r.status == "finished"]
    summaries = [_summary(of_row, [] if row == first.baseline else baseline) for row, of_row in rows.items()]
    return Column(first.column, first.baseline, first.replicate_key, records, summaries)


def _summary(planned: list[Record], baseline: list[Record]) -> Summary:
    first = planned[0]
    done = [record for record in planned if record.status == "finished"]

    def average(key: str) -> float | None:
        known = [value for record in done if (value := getattr(record, key)) is not None]
        return mean(known) if known else None

    missing = _missing(done)
    return Summary(
        row=first.row,
        label=first.label,
        planned=len(planned),
        finished=len(done),
        scores=_scores(done),
        intervals={} if missing else _intervals(done),
        missing=missing,
        difference=_difference(done, baseline),
        tuned=first.tuned_values,
        tuned_by=first.tuned_by,
        trainable=done[0].trainable if done else None,
        trainable_without_head=done[0].trainable_without_head if done else None,
        percent=done[0].percent if done else None,
        seconds_per_epoch=average("seconds_per_epoch"),
        seconds=average("seconds"),
        peak_memory_mib=average("peak_memory_mib"),
        checkpoint_bytes=done[0].checkpoint_bytes if done else None,
        train_accuracy=average("train_accuracy"),
        best_val=average("best_val"),
        routing_min_load=average("routing_min_load"),
        routing_entropy=average("routing_entropy"),
        routing_switched=average("routing_switched"),
    )


def _scores(done: list[Record]) -> dict[str, Spread]:
    values = [record.score_values for record in done]
    return {key: spread([of_run[key] for of_run in values]) for key in (done[0].task_scores if done else ())}


def _of_all(done: list[Record], kind: type[Outcomes]) -> list[Outcomes] | None:
    """The outcomes of each run's test objects; None unless all have them, and in this form."""
    found = [outcomes for record in done if isinstance(outcomes := record.outcomes, kind)]
    return found if found and len(found) == len(done) else None


def _missing(done: list[Record]) -> str:
    """Why scores have no intervals, where these would be over too few test objects."""
    arrays, records = _of_all(done, np.ndarray), _of_all(done, Records)
    found = [*(arrays or ()), *(records or ())]
    if not found or (len(done) > 1 and draws_data(done[0].replicate_key)):  # intervals are over folds then
        return ""
    return too_few(count_units(len(found[0]), _groups(done)))


def _intervals(done: list[Record]) -> dict[str, Interval]:
    arrays, records = _of_all(done, np.ndarray), _of_all(done, Records)
    if arrays is None and records is None:
        return {}
    groups, crossed = _groups(done), not draws_data(done[0].replicate_key)
    if records is not None:
        return record_intervals(records, groups=groups, same_objects=crossed)
    assert arrays is not None
    return {next(iter(done[0].task_scores)): score_interval(arrays, groups=groups, same_objects=crossed)}


def _difference(done: list[Record], baseline: list[Record]) -> Difference | None:
    if not done or not baseline:
        return None
    crossed = not draws_data(done[0].replicate_key)
    if not crossed:  # folds have objects of their own, so only common ones can be compared
        common = {record.replicate for record in done} & {record.replicate for record in baseline}
        done = sorted((r for r in done if r.replicate in common), key=lambda r: r.replicate)
        baseline = sorted((r for r in baseline if r.replicate in common), key=lambda r: r.replicate)
        if not common:
            return None
    groups = _groups([*done, *baseline])
    our_records, their_records = _of_all(done, Records), _of_all(baseline, Records)
    if our_records is not None and their_records is not None:
        value, interval = record_difference(our_records, their_records, groups=groups, same_objects=crossed)
        return Difference(value, None if _missing(done) else interval, p=None)
    ours, theirs = _of_all(done, np.ndarray), _of_all(baseline, np.ndarray)
    if ours is None or theirs is None:
        return None
    tested = groups is None and len(ours) == len(theirs) == 1 and ours[0].dtype == bool
    return Difference(
        mean=mean_difference(ours, theirs),
        interval=None if _missing(done) else difference_interval(ours, theirs, groups=groups, same_objects=crossed),
        p=mcnemar(ours[0], theirs[0]) if tested else None,
    )
