"""A whole study: its runs, then CSV, report and plots."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pointadapterx.errors import ConfigError, Interrupted, PointAdapterXError
from pointadapterx.files import write_text
from pointadapterx.study.context import read_contexts, write_contexts
from pointadapterx.study.outcomes import collect
from pointadapterx.study.plan import read_plan
from pointadapterx.study.plots import draw_plots
from pointadapterx.study.processes import LocalProcesses, Processes
from pointadapterx.study.records import Record, read_known, read_records, write_records
from pointadapterx.study.report import render_overview, render_report
from pointadapterx.study.runner import Outcome, Runner
from pointadapterx.study.schema import TableContext
from pointadapterx.study.summary import summarise
from pointadapterx.study.tuning_report import edge_warnings

log = logging.getLogger(__name__)

CSV_FILE = "results.csv"
REPORT_FILE = "report.md"


class StudyInterrupted(Interrupted):
    """A study was asked to stop.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        name = signal.Signals(number).name
        Exception.__init__(self, f"stopped by {name}: finished runs are kept, the same command continues")
        self.signal_number = number


class Lacking(NamedTuple):
    """What a study that went through lacks.

    Attributes:
        failed: runs that failed.
        missing: results that are missing, as runs failed or diverged.
    """

    failed: int
    missing: int


def run_study(path: str, overrides: Sequence[str], engine: Callable[[int], Processes] = LocalProcesses) -> Lacking:
    """Trains what is missing, then writes CSV, report and plots.

    Args:
        path: YAML of a study, or the name of a shipped one.
        overrides: of its keys, and of every run's config.
        engine: where its runs are started; see :class:`~pointadapterx.study.runner.Runner`.

    Raises:
        StudyInterrupted: after a signal; finished runs are kept.
        PointAdapterXError: for a study, data or runs that are wrong.
    """
    plan = read_plan(path, overrides)
    results = Path(plan.study.results)

    def save(outcome: Outcome) -> list[Record]:
        records = collect(plan, Path(plan.study.runs), outcome.scores, outcome.failures, known)
        write_records(results / CSV_FILE, records)
        return records

    known = read_known(plan.study.known)
    contexts = write_contexts(results, plan.study)
    outcome = Runner(plan, after_run=save, known=known, engine=engine).run()
    records = save(outcome)
    if outcome.signal:
        raise StudyInterrupted(outcome.signal)
    try:
        write_report(records, results, contexts)
    except ConfigError as error:
        raise ConfigError(f"{error}; all results are in {results / CSV_FILE}, there is no report of them") from None
    missing = sum(record.kind == "final" and record.status != "finished" for record in records)
    return Lacking(len(outcome.failures), missing)


def report_again(path: Path) -> None:
    """Writes report and plots beside the CSV of a study.

    Raises:
        PointAdapterXError: if the CSV cannot be read, or mixes what cannot be compared.
    """
    records = read_records(path)
    write_report(records, path.parent, read_contexts(path.parent, records))


def write_report(records: Sequence[Record], folder: Path, contexts: Mapping[str, TableContext]) -> None:
    """Writes report and plots, without matplotlib the report alone, and prints the overview of every table.

    Args:
        records: lines of the CSV.
        folder: to write to.
        contexts: table name to groups of columns and published rows.

    Raises:
        ConfigError: for a column that mixes what cannot be compared.
    """
    tables = summarise(records, contexts)
    try:
        plots = draw_plots(tables, folder)
    except PointAdapterXError as error:
        log.warning("%s", error)
        plots = {}
    write_text(folder / REPORT_FILE, render_report(records, tables, plots))
    for warning in edge_warnings(tables):
        log.warning("%s", warning)
    for table in tables:
        for line in render_overview(table):
            log.info("%s", line)
    log.info("written: %s", folder / REPORT_FILE)
