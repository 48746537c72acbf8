"""Write one HTML file of a run, or of several side by side; it opens without a network and without a server."""

from __future__ import annotations

import argparse
from pathlib import Path

from pointadapterx.commands.options import add_runs, log_to_terminal, split_overrides
from pointadapterx.text import printable

EXAMPLES = """\
  %(prog)s runs/demo/<time>                         writes runs/demo/<time>/report.html
  %(prog)s runs/demo_linear/<time> runs/demo/<time> --output comparison.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See :class:`~pointadapterx.commands.main.Module`."""
    add_runs(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: report.html beside the first adapter")


def run(options: argparse.Namespace) -> int:
    """Writes the page."""
    from pointadapterx.report.document import write_report

    log_to_terminal()
    output = write_report(*split_overrides(options.runs), options.output)
    print(printable(f"written: {output} ({output.stat().st_size / 1e6:.1f} MB)"))
    return 0
