"""What the report says of means over the columns of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from pointadapterx.study.cells import NONE, difference_cell, interval_cell, spread_cell, table_lines
from pointadapterx.study.pooling import MEANS, Pooled, PooledRow
from pointadapterx.study.schema import PooledBy
from pointadapterx.study.summary import Summary, Table
from pointadapterx.study.tuning_report import edge_warnings
from pointadapterx.text import markdown

COUNTED: Mapping[PooledBy, str] = {
    "columns": "each column counts once, whatever its size, as tasks do in VTAB's mean of tasks",
    "groups": "each group of columns counts once, and within it each column, as in VTAB's printed average",
    "objects": "each test object counts once, so larger columns weigh more",
}


def pooled_cells(table: Table, row: str | None, shown: Callable[[str], str]) -> list[str]:
    """Of the overview: the header for no row, or a row's cells; empty where nothing is pooled."""
    if table.pooled is None:
        return []
    by, compared = table.pooled.by[0], _baseline(table) is not None
    if row is None:
        return [shown(table.pooled.label), *([f"Δ to {shown(_baseline(table) or '')} [95 %]"] if compared else [])]
    found = next((pooled for pooled in table.pooled.rows if pooled.row == row), None)
    if found is None:
        return [NONE] * (1 + compared)
    estimate = found.estimates[by]
    return [spread_cell(estimate.score), *([_difference(table, found, by)] if compared else [])]


def pooled_section(table: Table) -> Iterator[str]:
    """The section of the means over columns; empty where the study asks for none."""
    pooled = table.pooled
    asked = next((r.pooling for column in table.columns for r in column.records if r.pooling is not None), None)
    if pooled is None:
        if asked is not None:
            yield from ("", f"### {markdown(asked.label)}", "")
            yield (
                "The mean over columns is not known: no row has finished runs in every column, their scores are no "
                "means over test objects, or the groups of columns are missing."
            )
        return
    yield from ("", f"### {markdown(pooled.label)}", "")
    yield from (f"- {line}" for line in _facts(table, pooled))
    yield ""
    short, baseline = table.columns[0].score.short, _baseline(table)
    compared = [] if baseline is None else [f"Δ {short} to {markdown(baseline)} [95 %]"]
    header = ["method", "runs a column"]
    for by in pooled.by:
        header += [f"{short}, {MEANS[by]} [95 %]", *compared]
    yield from table_lines([*header, "trainable", "without head", "% of full"], _rows(table, pooled, bool(compared)))


def _rows(table: Table, pooled: Pooled, compared: bool) -> Iterator[list[str]]:
    for row in pooled.rows:
        summaries = _summaries(table, row.row)
        cells = [markdown(summaries[0].label), _counts(summaries)]
        for by in pooled.by:
            estimate = row.estimates[by]
            cells.append(f"{spread_cell(estimate.score)}{interval_cell(estimate.interval)}")
            cells += [_difference(table, row, by)] if compared else []
        yield [
            *cells,
            _range([s.trainable for s in summaries], ",d"),
            _range([s.trainable_without_head for s in summaries], ",d"),
            _range([s.percent for s in summaries], ".2f"),
        ]


def _facts(table: Table, pooled: Pooled) -> Iterator[str]:
    """What a reader needs to judge the means."""
    sizes = ", ".join(f"{name} ({size})" for name, size in pooled.columns.items())
    yield f"Columns, and their test objects: {markdown(sizes)}; {sum(pooled.columns.values()):,} in all"
    decides, *others = pooled.by
    yield f"What decides is the first mean ({MEANS[decides]}), as the study's file says: {COUNTED[decides]}"
    yield from (f"Beside it, {MEANS[by]}: {COUNTED[by]}" for by in others)
    yield (
        "Intervals: test objects, or whole groups of them, are resampled within each column, the same for a method and "
        "the baseline, and replicates within each column and method. They say nothing about other columns"
    )
    for what, key in (("Regime", "regime"), ("Protocol", "protocol"), ("Selection", "selection")):
        yield f"{what}: {markdown(_common(table, key))}"
    yield from _replicates(table, pooled)
    yield from _budgets(table)
    left = [s.label for s in table.columns[0].summaries if s.row not in {row.row for row in pooled.rows}]
    if left:
        yield f"Left out, as not every column has a finished run: {markdown(', '.join(left))}"


def _common(table: Table, key: str) -> str:
    """Values of a field, once where all columns have the same."""
    found = {column.name: "; ".join(column.values(key)) or NONE for column in table.columns}
    if len(set(found.values())) == 1:
        return f"{found[table.columns[0].name]} (all columns)"
    return ", ".join(f"{name}: {value}" for name, value in found.items())


def _replicates(table: Table, pooled: Pooled) -> Iterator[str]:
    """Which replicates of each method are finished."""
    rows: dict[str, list[str]] = {}
    for row in pooled.rows:
        of_columns = {column: ", ".join(values) for column, values in row.replicates.items()}
        alike = len(set(of_columns.values())) == 1
        words = next(iter(of_columns.values())) if alike else ", ".join(f"{c}: {v}" for c, v in of_columns.items())
        rows.setdefault(words, []).append(_summaries(table, row.row)[0].label)
    key = markdown(table.columns[0].replicate_key)
    if len(rows) == 1:
        yield f"Replicates: {key}={markdown(next(iter(rows)))}"
    else:
        words = "; ".join(f"{values} ({', '.join(labels)})" for values, labels in rows.items())
        yield f"Replicates: {key}={markdown(words)}. A difference takes all of both methods, whose runs are independent"


def _budgets(table: Table) -> Iterator[str]:
    """How many candidates were tried for each method so far, and how many choices are at an edge."""
    if not table.tuning:
        yield "Tuning: none here; values are the study's, or of other tables"
        return
    tried: dict[tuple[str, str], dict[str, None]] = {}
    labels: dict[str, str] = {}
    for record in table.tuning:
        values = tried.setdefault((record.row, record.column), {})
        labels[record.row] = record.label
        if record.status in ("finished", "diverged"):
            values[record.tuned] = None
    counts = {row: [len(values) for (of_row, _), values in tried.items() if of_row == row] for row in labels}
    words = ", ".join(f"{labels[row]} {_range(numbers, 'd')}" for row, numbers in counts.items())
    yield f"Candidates tried in tuning, a column: {markdown(words)}"
    untuned = [s.label for s in table.columns[0].summaries if s.row not in counts]
    if untuned:
        yield f"Not tuned here: {markdown(', '.join(untuned))}"
    edges = len(edge_warnings([table]))
    yield f"Choices at the edge of their grids: {f'{edges}, listed under tuning' if edges else 'none'}"


def _difference(table: Table, row: PooledRow, by: PooledBy) -> str:
    return "baseline" if row.row == table.columns[0].baseline else difference_cell(row.estimates[by].difference)


def _baseline(table: Table) -> str | None:
    """The label of the baseline."""
    column = table.columns[0]
    return next((summary.label for summary in column.summaries if summary.row == column.baseline), None)


def _summaries(table: Table, row: str) -> list[Summary]:
    return [summary for column in table.columns for summary in column.summaries if summary.row == row]


def _counts(summaries: Sequence[Summary]) -> str:
    """``3``, or ``3, 2 of 3, 3`` where columns differ."""
    words = [str(s.finished) if s.finished == s.planned else f"{s.finished} of {s.planned}" for s in summaries]
    return words[0] if len(set(words)) == 1 else ", ".join(words)


def _range(values: Sequence[float | None], format_spec: str) -> str:
    """``1.88 to 1.97``, of columns with heads of their own."""
    known = sorted(value for value in values if value is not None)
    return " to ".join(dict.fromkeys(format(value, format_spec) for value in (*known[:1], *known[-1:]))) or NONE
