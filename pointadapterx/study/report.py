"""A study's report in Markdown, from its CSV and the groups and published rows beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from pointadapterx.datasets import DATASETS
from pointadapterx.study.cells import NONE, difference_cell, interval_cell, number_cell, spread_cell, table_lines
from pointadapterx.study.plan import format_values
from pointadapterx.study.pooled_report import pooled_cells, pooled_section
from pointadapterx.study.records import Record, task_scores
from pointadapterx.study.schema import PublishedConfig
from pointadapterx.study.statistics import RESAMPLES
from pointadapterx.study.summary import Column, Summary, Table, plain_name, published_means
from pointadapterx.study.tuning_report import tuning_section
from pointadapterx.text import markdown, printable

FIT = {
    "train_accuracy": "training OA",
    "best_val": "validation score",
    "routing_min_load": "least used expert %",
    "routing_entropy": "gate entropy %",
    "routing_switched": "switched %",
}
"""Fields of a summary and their names in the report."""


def render_report(records: Sequence[Record], tables: Sequence[Table], plots: Mapping[str, Sequence[str]]) -> str:
    """The whole report; equal records give equal text.

    Args:
        records: of the CSV.
        tables: of :func:`~pointadapterx.study.summary.summarise`.
        plots: table name to the image files to show, relative to the report.
    """
    lines = [f"# {markdown(records[0].study)}", "", _legend(records)]
    for table in tables:
        lines += ["", f"## {markdown(table.title)}", *_overview(table)]
        for column in table.columns:
            lines += ["", *_column(column)]
        lines += pooled_section(table)
        for plot in plots.get(table.name, ()):
            lines += ["", f"![{plot}]({plot})"]
        lines += tuning_section(table)
    lines += _failures(records)
    return "\n".join(lines) + "\n"


def _legend(records: Sequence[Record]) -> str:
    tasks = list(dict.fromkeys(record.task for record in records if record.run is not None)) or [None]
    firsts = [next(iter(task_scores(task).values())) for task in tasks]
    names = ", ".join(f"Δ {score.short}" for score in firsts)
    classifies = None in tasks
    points = ", in percentage points," if all(score.unit == "%" for score in firsts) else ", in the unit of the score,"
    p = "; where there is one run of each, p is that of the exact McNemar test" if classifies else ""
    no_p = ", and there is no p: the test takes objects as independent" if classifies else ""
    return (
        f"{'; '.join(map(_scores_words, tasks))}: mean ± standard deviation over the "
        "replicates, each tested once. In brackets: 95 % bootstrap percentile interval "
        f"({RESAMPLES:,} resamples of test objects and replicates, which is conservative; of a single run, it is of "
        "the test objects alone). "
        f"{names} is the difference to the baseline on the same test objects{points} with its paired "
        f"interval{p}. Where test objects "
        f"come in groups, such as variants of one part, whole groups are resampled{no_p}. "
        "Where replicates are few-shot folds, the intervals are Student's t over the folds; "
        "folds draw from the same classes and objects, so they say nothing about other classes. Trainable "
        "parameters are given with and without the head, and in percent of full fine-tuning. Seconds and memory are "
        "means over the runs; on a CPU memory is the peak of the whole process, libraries and data included."
    )


def _scores_words(task: str | None) -> str:
    """``OA is overall accuracy, mAcc mean-class accuracy, in percent``."""
    scores = list(task_scores(task).values())
    words = [f"{score.short}{'' if number else ' is'} {plain_name(score)}" for number, score in enumerate(scores)]
    units = dict.fromkeys(score.unit for score in scores)
    unit = ", in percent" if list(units) == ["%"] else f", in {', '.join(filter(None, units))}" if any(units) else ""
    lower = "" if scores[0].higher_is_better else ", of which the lower is the better"
    return f"{', '.join(words)}{unit}{lower}"


def render_overview(table: Table) -> list[str]:
    """Title and table of methods × columns for a terminal; empty where there is no result."""
    header, rows = _overview_cells(table, printable)
    if not rows:
        return []
    widths = [max(map(len, cells)) for cells in zip(header, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    return [printable(table.title), *(line.rstrip() for line in lines)]


def _overview(table: Table) -> Iterator[str]:
    if len(table.columns) < 2 and not table.context.given:  # its own table says the same
        return
    header, rows = _overview_cells(table, markdown)
    yield ""
    yield from table_lines(header, rows)
    groups, published = table.context.groups, table.context.published
    if groups:
        sizes = markdown(", ".join(f"{name} of {len(members)}" for name, members in groups.items()))
        yield ""
        yield (
            f"Groups of columns: {sizes}. Their means are taken replicate by replicate, of rows whose columns are all "
            "finished; the mean of groups counts each group once."
        )
    if published is not None:
        sources = "; ".join(f"[{number}] {source}" for source, number in published.sources.items())
        yield ""
        yield (
            f"**Rows marked as published are not results of this study.** {published.conditions.rstrip('.')}. "
            "Accuracies of columns, and means of groups without them, are as printed; all other means are computed "
            f"from these, beside the average that was printed. Source: {sources}."
        )
    if table.context.given:
        yield ""
        yield "Trainable parameters are in million: this study's without the head, published ones as printed."


def _overview_cells(table: Table, shown: Callable[[str], str]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of methods × columns, means of groups and published rows.

    Args:
        table: of the study.
        shown: how its names are shown.
    """
    context = table.context
    scores = dict.fromkeys(f"{column.score.short} {column.score.unit}".rstrip() for column in table.columns)
    header = [
        ", ".join(scores) or "method",
        *(["trainable, M"] if context.given else []),
        *(shown(column.name) for column in table.columns),
        *pooled_cells(table, None, shown),
        *([*map(shown, context.groups), "mean of groups"] if context.groups else []),
        *(["printed average"] if context.published is not None else []),
    ]
    names = dict.fromkeys(summary.row for column in table.columns for summary in column.summaries)
    rows = [_own_cells(table, name, shown) for name in names]
    if context.published is not None:
        rows += [_published_cells(table, context.published, label, shown) for label in context.published.rows]
    return header, [[*cells, *[NONE] * (len(header) - len(cells))] for cells in rows]


def _own_cells(table: Table, row: str, shown: Callable[[str], str]) -> list[str]:
    summaries = [summary for column in table.columns for summary in column.summaries if summary.row == row]
    means = table.means.get(row)
    return [
        shown(summaries[0].label),
        *([_millions(summaries)] if table.context.given else []),
        *(spread_cell(summary.first_score) for summary in summaries),
        *pooled_cells(table, row, shown),
        *([] if means is None else map(spread_cell, (*means.groups, means.overall))),
    ]


def _published_cells(table: Table, published: PublishedConfig, label: str, shown: Callable[[str], str]) -> list[str]:
    row, groups = published.rows[label], table.context.groups
    means, overall = published_means(row, groups)
    return [
        f"{shown(label)}, published [{published.sources[row.source]}]",
        number_cell(row.trainable, ".2f"),
        *(number_cell(row.values.get(column.name), "") for column in table.columns),
        *(NONE for _ in pooled_cells(table, None, shown)),
        *([number_cell(mean, ".2f") for mean in (*means, overall)] if groups else []),
        number_cell(row.average, ""),
    ]


def _millions(summaries: Sequence[Summary]) -> str:
    """Trainable parameters of a row without the head, which a method may make depend on the column."""
    counts = sorted(s.trainable_without_head for s in summaries if s.trainable_without_head is not None)
    return " to ".join(dict.fromkeys(f"{count / 1e6:.2f}" for count in (*counts[:1], *counts[-1:]))) or NONE


def _column(column: Column) -> Iterator[str]:
    yield f"### {markdown(column.name)}"
    yield ""
    facts = {
        "Regime": column.values("regime"),
        "Protocol": column.values("protocol"),
        "Selection": column.values("selection"),
        "Data": column.values("data"),
        "Test objects": column.test_sets,
        "Hardware": column.values("hardware"),
        "torch": column.values("torch"),
    }
    for name, values in facts.items():
        if values:
            yield f"- {name}: {markdown('; '.join(values))}"
    if len(facts["Hardware"]) > 1:
        yield "- Runs of different hardware: their times and memory are not comparable."
    yield ""
    baseline = next((markdown(s.label) for s in column.summaries if s.row == column.baseline), None)
    scores = task_scores(column.task)
    known = {key for summary in column.summaries for key in summary.intervals}
    if column.task is None:  # also where no run is finished
        known.add(next(iter(scores)))
    first = next(iter(scores.values())).short
    header = [
        *("method", f"runs ({column.replicate_key})"),
        *(f"{score.short}{' [95 %]' if key in known else ''}" for key, score in scores.items()),
        *([f"Δ {first} to {baseline} [95 %]"] if baseline is not None else []),
        *("trainable", "without head", "% of full", "s/epoch", "peak MiB", "checkpoint kB", "tuned"),
    ]
    yield from table_lines(header, [_row(s, column, baseline is not None) for s in column.summaries])
    if missing := next((summary.missing for summary in column.summaries if summary.missing), ""):
        yield from ("", f"The scores have no interval: {missing}.")
    yield from _fit(column)


def _fit(column: Column) -> Iterator[str]:
    """Fit to the training set and health of the routing, where the runs tell."""
    told = [s for s in column.summaries if s.train_accuracy is not None or (s.finished and column.task is not None)]
    if not told:
        return
    shown = {key: name for key, name in FIT.items() if any(getattr(summary, key) is not None for summary in told)}
    if not shown:
        return
    words = []
    if "train_accuracy" in shown:
        words.append(f"OA in training is the last epoch's, on {_training_samples(column)} and with dropout.")
    if "best_val" in shown:
        words.append("The validation score is that of the epoch it selected.")
    if "routing_min_load" in shown:
        words.append(
            "Routing in the last epoch, averaged over blocks: share of the least used expert, entropy of the gates in "
            "percent of uniform gates', sub-tokens that take another expert than in the block before."
        )
    yield from ("", " ".join(words), "")
    header = ["method", *shown.values()]
    rows = [
        [markdown(summary.label), *(number_cell(getattr(summary, key), ".1f") for key in shown)] for summary in told
    ]
    yield from table_lines(header, rows)


def _training_samples(column: Column) -> str:
    """``augmented clouds``, or what else its runs saw in training."""
    names = {data.split()[0] for data in column.values("data")}
    images = any(name in DATASETS and DATASETS[name].modality == "images" for name in names)
    return f"{'' if column.values('regime') == ['none'] else 'augmented '}{'images' if images else 'clouds'}"


def _row(summary: Summary, column: Column, compared: bool) -> list[str]:
    difference = "baseline" if summary.row == column.baseline else difference_cell(summary.difference)
    size = summary.checkpoint_bytes
    return [
        markdown(summary.label),
        str(summary.finished) if summary.finished == summary.planned else f"{summary.finished} of {summary.planned}",
        *(
            f"{spread_cell(summary.scores.get(key))}{interval_cell(summary.intervals.get(key))}"
            for key in task_scores(column.task)
        ),
        *([difference] if compared else []),
        number_cell(summary.trainable, ",d"),
        number_cell(summary.trainable_without_head, ",d"),
        number_cell(summary.percent, ".2f"),
        number_cell(summary.seconds_per_epoch, ".2f"),
        number_cell(summary.peak_memory_mib, ".0f"),
        number_cell(None if size is None else size / 1000, ",.0f"),
        _tuned(summary),
    ]


def _tuned(summary: Summary) -> str:
    if not summary.tuned:
        return NONE
    source = "" if summary.tuned_by is None else f" (of {summary.tuned_by})"
    return markdown(f"{format_values(summary.tuned)}{source}")


def _failures(records: Sequence[Record]) -> Iterator[str]:
    failed = {
        record.run: record
        for record in records
        if record.status == "failed" or (record.status == "diverged" and record.kind == "final")
    }
    if not failed:
        return
    yield from ("", "## Failed runs", "")
    rows = [
        [run or NONE, markdown(r.label), markdown(r.column), r.kind, r.status, markdown(r.error or NONE)]
        for run, r in failed.items()
    ]
    yield from table_lines(["run", "method", "column", "kind", "status", "error"], rows)
