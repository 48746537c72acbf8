"""Compare methods × seeds × data sets: train what is missing, then write CSV, report and plots."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pointadapterx.commands.options import UsageError, add_engine, add_overrides, log_to_terminal, on_ray

EXAMPLES = """\
  %(prog)s --config study/quick                                run a study; the same command continues it
  %(prog)s --config study/quick train.epochs=2 processes=2
  %(prog)s --config study/quick --engine ray processes=8      on a Ray cluster
  %(prog)s --report runs/study/quick/results/results.csv       report and plots again
"""
INCOMPLETE = 1  # exit status where runs failed, or results are missing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See :class:`~pointadapterx.commands.main.Module`."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--config", metavar="FILE", help="YAML of a study, or the name of a shipped one (study/quick)")
    what.add_argument("--report", metavar="CSV", type=Path, help="write report and plots beside this CSV and exit")
    add_engine(parser, "trains the runs")
    add_overrides(parser, "train.epochs=2 for every run; processes, runs, results, known, title")


def run(options: argparse.Namespace) -> int:
    """Runs a study, or writes its report.

    Returns:
        0, or 1 if runs failed or results are missing.
    """
    if options.config is None and options.report is None:
        runs = [text for text in options.overrides if Path(text).exists()]
        hint = f"; of finished runs, 'pointadapterx report {' '.join(runs)}' makes one page" if runs else ""
        raise UsageError(f"give --config FILE, a study, or --report CSV, its results{hint}")
    if options.report is not None and options.overrides:
        raise UsageError(f"--report reads a CSV as it is; leave out {options.overrides[0]}")
    cluster = on_ray(options)
    if options.report is not None and cluster:
        raise UsageError("--report trains nothing; leave out --engine")
    from pointadapterx.study.session import report_again, run_study

    log_to_terminal()
    if options.report is not None:
        report_again(options.report)
        return 0
    if cluster:
        from pointadapterx.cluster.connection import connected
        from pointadapterx.cluster.runs import RayProcesses

        with connected(options.address):
            failed, missing = run_study(options.config, options.overrides, RayProcesses)
    else:
        failed, missing = run_study(options.config, options.overrides)
    if failed:
        print(f"error: {failed} runs failed; the same command tries them again", file=sys.stderr)
    elif missing:
        print(f"error: {missing} results are missing, as runs diverged; the report says which", file=sys.stderr)
    return INCOMPLETE if failed or missing else 0
