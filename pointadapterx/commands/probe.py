"""Print the linear-probe accuracy of pre-trained weights, and of random ones beside it."""

from __future__ import annotations

import argparse

from pointadapterx.commands.options import add_config, log_to_terminal, require_config

EXAMPLE = "pretrain/point_mae_tiny"
EXAMPLES = """\
  %(prog)s --config pretrain/point_mae_tiny backbone.weights=point_mae_tiny
  %(prog)s --config pretrain/point_mae_tiny backbone.weights=runs/pretrain/<time>/weights.safetensors
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See :class:`~pointadapterx.commands.main.Module`."""
    add_config(parser, EXAMPLE)


def run(options: argparse.Namespace) -> int:
    """Prints a table."""
    require_config(options, EXAMPLE)
    from pointadapterx import jobs
    from pointadapterx.config import read_config
    from pointadapterx.engine.devices import make_accelerator

    log_to_terminal()
    config = read_config(options.config, options.overrides)
    jobs.probe(config, make_accelerator(config.train.precision, config.train.device))
    return 0
