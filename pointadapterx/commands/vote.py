"""Test a trained adapter, then vote over augmented copies of each sample."""

from __future__ import annotations

import argparse

from pointadapterx.commands import test
from pointadapterx.commands.options import add_adapter

COPIES = 10
EXAMPLES = f"""\
  %(prog)s runs/demo/20260101-120000                       {COPIES} copies
  %(prog)s runs/demo/20260101-120000 20 eval.vote.seeds=[0,1,2]
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See :class:`~pointadapterx.commands.main.Module`."""
    parser.usage = f"%(prog)s RUN_OR_ADAPTER [K] [options] [key=value ...]\n\nK: copies per vote (default {COPIES})"
    add_adapter(parser)
    test.add_arguments_of_votes(parser)


def run(options: argparse.Namespace) -> int:
    """The number of copies is the first of the overrides, if it is a number."""
    given = options.overrides[:1] if options.overrides and options.overrides[0].isdigit() else []
    options.vote, options.overrides = int(given[0]) if given else COPIES, options.overrides[len(given) :]
    return test.run(options)
