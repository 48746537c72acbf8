"""The command line of studies: ``python tools/compare.py`` and ``pointadapterx compare``."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pointadapterx.endings import ends_in_one_line
from pointadapterx.engine.console import set_up_logging
from pointadapterx.errors import ConfigError, PointAdapterXError
from pointadapterx.files import write_text
from pointadapterx.study.context import read_contexts, write_contexts
from pointadapterx.study.plan import read_plan
from pointadapterx.study.plots import draw_plots
from pointadapterx.study.records import Record, collect, read_known, read_records, write_records
from pointadapterx.study.report import edge_warnings, render_overview, render_report
from pointadapterx.study.runner import Outcome, Runner
from pointadapterx.study.schema import TableContext
from pointadapterx.study.summary import summarise

log = logging.getLogger(__name__)

CSV_FILE = "results.csv"
REPORT_FILE = "report.md"
EPILOG = """examples:
  %(prog)s --config cfgs/study/quick.yaml                      run a study; the same command continues it
  %(prog)s --config cfgs/study/quick.yaml train.epochs=2 processes=2
  %(prog)s --report runs/study/quick/results/results.csv       write report and plots again, without the runs
"""


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The parser of both entry points."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Compare methods × seeds × data sets: train what is missing, then write CSV, report and plots.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="train.epochs=2 for every run; processes, runs, results, known, title",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", metavar="FILE", help="YAML of a study, or the name of a shipped one (study/quick)")
    what.add_argument("--report", metavar="CSV", type=Path, help="write report and plots beside this CSV and exit")
    return parser


@ends_in_one_line
def main(argv: Sequence[str] | None = None, prog: str = "pointadapterx compare") -> int:
    """Runs a study, or writes its report.

    Returns:
        Exit status: 0, 1 if runs failed, 2 for wrong input, 128 + n after stopping cleanly on signal n.
    """
    parser = build_parser(prog)
    options = parser.parse_intermixed_args(sys.argv[1:] if argv is None else list(argv))
    if options.report is not None and options.overrides:
        parser.error(f"--report reads a CSV as it is; leave out {options.overrides[0]}")
    set_up_logging(main_process=True)
    try:
        if options.report is not None:
            records, folder = read_records(options.report), options.report.parent
            write_report(records, folder, read_contexts(folder, records))
            return 0
        return _run(options.config, options.overrides)
    except KeyboardInterrupt:
        print("stopped at once: runs in progress save their state on their own", file=sys.stderr)
        return 128 + signal.SIGINT
    except PointAdapterXError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


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


def _run(path: str, overrides: Sequence[str]) -> int:
    plan = read_plan(path, overrides)
    results = Path(plan.study.results)

    def save(outcome: Outcome) -> list[Record]:
        records = collect(plan, Path(plan.study.runs), outcome.scores, outcome.failures, known)
        write_records(results / CSV_FILE, records)
        return records

    known = read_known(plan.study.known)
    contexts = write_contexts(results, plan.study)
    outcome = Runner(plan, after_run=save, known=known).run()
    records = save(outcome)
    if outcome.signal:
        name = signal.Signals(outcome.signal).name
        print(f"stopped by {name}: finished runs are kept, the same command continues", file=sys.stderr)
        return 128 + outcome.signal
    try:
        write_report(records, results, contexts)
    except ConfigError as error:
        raise ConfigError(f"{error}; all results are in {results / CSV_FILE}, there is no report of them") from None
    missing = sum(record.kind == "final" and record.status != "finished" for record in records)
    if outcome.failures:
        print(f"error: {len(outcome.failures)} runs failed; the same command tries them again", file=sys.stderr)
    elif missing:
        print(f"error: {missing} results are missing, as runs diverged; the report tells which", file=sys.stderr)
    return 1 if outcome.failures or missing else 0
