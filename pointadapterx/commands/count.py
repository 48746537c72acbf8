"""Print parameters, multiply-adds and kept activations of a config; needs neither data nor weights."""

from __future__ import annotations

import argparse

from pointadapterx.commands.options import add_config, log_to_terminal, require_config

EXAMPLES = """\
  %(prog)s --config scan_pb_t50_rs
  %(prog)s --config scan_pb_t50_rs method.rank=64
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See :class:`~pointadapterx.commands.main.Module`."""
    add_config(parser)


def run(options: argparse.Namespace) -> int:
    """Prints two tables, and writes nothing."""
    require_config(options)
    from pointadapterx import jobs
    from pointadapterx.config import read_config

    log_to_terminal()
    jobs.count(read_config(options.config, options.overrides))
    return 0
