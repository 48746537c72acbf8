"""Summaries of a study's CSV: one for each cell, over its replicates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

import numpy as np

from pointadapterx.study.comparability import Conditions, check_columns, draws_data
from pointadapterx.study.comparing import Difference, difference_of, intervals_of, missing_words
from pointadapterx.study.pooling import MEANS, Pooled, pool
from pointadapterx.study.records import UNNAMED, Record, task_scores
from pointadapterx.study.schema import PublishedRow, TableContext
from pointadapterx.study.statistics import Interval, Spread, spread
from pointadapterx.tasks.exchange import Score


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

    ``means`` are those of the rows whose columns are all finished, by row, where the context groups the columns;
    ``pooled`` are means over columns with intervals, where the study asks for them.
    """

    name: str
    title: str
    columns: list[Column]
    tuning: list[Record]
    context: TableContext
    means: dict[str, GroupMeans]
    pooled: Pooled | None = None

    @property
    def pooled_column(self) -> Column | None:
        """The mean over columns that decides as if it were a column: costs and parameters are means, too."""
        if self.pooled is None:
            return None
        decides, own = self.pooled.by[0], {row.row: row.estimates[self.pooled.by[0]] for row in self.pooled.rows}
        first, summaries = self.columns[0], []
        for row, estimate in own.items():
            parts = [summary for column in self.columns for summary in column.summaries if summary.row == row]
            key = next(iter(parts[0].scores))
            trainable, without_head = (_average(parts, name) for name in ("trainable", "trainable_without_head"))
            summaries.append(
                replace(
                    parts[0],
                    scores={key: estimate.score},
                    intervals={} if estimate.interval is None else {key: estimate.interval},
                    difference=estimate.difference,
                    trainable=None if trainable is None else round(trainable),
                    trainable_without_head=None if without_head is None else round(without_head),
                    seconds_per_epoch=_average(parts, "seconds_per_epoch"),
                    seconds=_average(parts, "seconds"),
                    peak_memory_mib=_average(parts, "peak_memory_mib"),
                )
            )
        name = f"{self.pooled.label}, {MEANS[decides]}"
        records = [record for column in self.columns for record in column.records]
        return Column(name, first.baseline, first.replicate_key, records, summaries)


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
        pooled = pool(tested, context.groups)
        tables.append(Table(name, here[0].table_title, columns, tuning, context, means, pooled))
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


def _average(parts: Sequence[Summary], key: str) -> float | None:
    known = [value for part in parts if (value := getattr(part, key)) is not None]
    return mean(known) if known else None


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

    missing = missing_words(done)
    return Summary(
        row=first.row,
        label=first.label,
        planned=len(planned),
        finished=len(done),
        scores=_scores(done),
        intervals={} if missing else intervals_of(done),
        missing=missing,
        difference=difference_of(done, baseline),
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
