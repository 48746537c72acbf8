"""What the report says of tuning: every value tried, and choices at the edge of their grid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pointadapterx.study.cells import spread_cell, table_lines
from pointadapterx.study.grids import is_number
from pointadapterx.study.plan import format_values
from pointadapterx.study.records import Record
from pointadapterx.study.statistics import spread
from pointadapterx.study.summary import Table
from pointadapterx.text import markdown


def edge_warnings(tables: Sequence[Table]) -> list[str]:
    """One line for each chosen value that is the lowest or the highest of its grid: the best may lie beyond.

    A grid of two values has nothing but edges and is passed over.
    """
    warnings = []
    for table in tables:
        for candidates in _by(table.tuning, "row", "column"):
            chosen = next((record for record in candidates if record.chosen), None)
            if chosen is None:
                continue
            for key, value in chosen.tuned_values.items():
                tried = sorted({v for r in candidates if is_number(v := r.tuned_values[key])})
                if is_number(value) and len(tried) > 2 and value in (tried[0], tried[-1]):
                    warnings.append(
                        f"{table.name} · {chosen.label} · {chosen.column}: {key}={value} is at the edge of its grid "
                        f"({', '.join(map(str, tried))}); the best value may lie beyond it"
                    )
    return warnings


def tuning_section(table: Table) -> Iterator[str]:
    """The section of a table's tuning; empty without any."""
    if not table.tuning:
        return
    yield from ("", "### Tuning", "")
    replicates = ", ".join(dict.fromkeys(record.replicate for record in table.tuning))
    yield (
        "Every value tried, with the score on the validation part that chose it; the test set took no part. "
        f"{table.tuning[0].replicate_key}={replicates}"
        f"{'; scores are mean ± standard deviation' if ',' in replicates else ''}."
        f"{_open_words(table)}{_other_protocol(table)}"
    )
    yield ""
    unit = next(iter(table.tuning[0].task_scores.values())).unit
    rows = []
    for cell in _by(table.tuning, "row", "column"):
        candidates = _by(cell, "tuned")
        for runs in candidates:
            first = runs[0]
            mark = "chosen" if first.chosen and len(candidates) > 1 else ""
            words = map(markdown, (first.label, first.column, format_values(first.tuned_values)))
            rows.append([*words, _score(runs), mark])
    yield from table_lines(["method", "column", "value", f"validation {unit}".rstrip(), ""], rows)
    for warning in edge_warnings([table]):
        yield from ("", f"**Note:** {markdown(warning)}.")


def _open_words(table: Table) -> str:
    """A sentence on open grids."""
    most = {record.label: record.most for record in table.tuning if record.most is not None}
    if not most:
        return ""
    alike = len(set(most.values())) == 1
    words = str(next(iter(most.values()))) if alike else ", ".join(f"{number} ({row})" for row, number in most.items())
    return (
        " Grids are open: where the best value was the lowest or the highest, the next one was tried as well, up to "
        f"{markdown(words)} candidates a row and column."
    )


def _other_protocol(table: Table) -> str:
    """A sentence where what tuned selected in another way than what was tested."""

    def found(records: Iterable[Record]) -> dict[str, None]:
        done = (record for record in records if record.status == "finished" and record.protocol is not None)
        return dict.fromkeys(f"{record.protocol} ({record.selection})" for record in done)

    tuned, tested = found(table.tuning), found(record for column in table.columns for record in column.records)
    other = [words for words in tuned if words not in tested] if tested else []
    return f" Unlike the tested runs, these are of the protocol {'; '.join(other)}." if other else ""


def _score(runs: Sequence[Record]) -> str:
    """Validation score of a candidate's runs, or the reason for its absence."""
    statuses = {record.status for record in runs}
    if statuses == {"finished"}:
        return spread_cell(spread([record.best_val or 0.0 for record in runs]))
    return next(status for status in ("diverged", "failed", "missing") if status in statuses)


def _by(records: Sequence[Record], *keys: str) -> list[list[Record]]:
    """Records that share the values of ``keys``, in the order of the first of each."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(getattr(record, key) for key in keys), []).append(record)
    return list(groups.values())
