"""Search the NOAH supernet of a run for its best architecture within a budget of parameters."""

from __future__ import annotations

import argparse

from pointadapterx.commands.options import add_run, log_to_terminal

EXAMPLES = """\
  %(prog)s runs/noah                                       writes runs/noah/architecture.yaml
  %(prog)s runs/noah method.search.budget=100000
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See :class:`~pointadapterx.commands.main.Module`."""
    what = "overrides of the search, for example method.search.budget=100000"
    add_run(parser, "folder of the run that trained the supernet", what)


def run(options: argparse.Namespace) -> int:
    """Writes into the run's folder."""
    from pointadapterx import jobs

    log_to_terminal()
    jobs.search(options.run, options.overrides)
    return 0
