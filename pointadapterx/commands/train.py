"""Adapt a pre-trained model to data, or pre-train one, as a config says; test it at the end."""

from __future__ import annotations

import argparse
from pathlib import Path

from pointadapterx.commands import resume
from pointadapterx.commands.options import UsageError, add_config, add_output_folder, log_to_terminal, require_config

EXAMPLES = """\
  %(prog)s --config demo                                   the embedded clouds, in minutes on a CPU
  %(prog)s --config demo train.lr=1e-3 train.seed=1        any key of the config can be overridden
  %(prog)s --config folder data.root=scans --output run    your own files, into a folder of your choice
  %(prog)s --resume runs/demo/20260101-120000              the same as the command resume
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See :class:`~pointadapterx.commands.main.Module`."""
    add_config(parser)
    add_output_folder(parser, "runs/<config>/<time>")
    parser.add_argument("--resume", metavar="RUN", type=Path, help="continue the run in this folder instead")


def run(options: argparse.Namespace) -> int:
    """Trains, and leaves a run folder."""
    if options.resume is not None:
        if options.config is not None:
            raise UsageError("choose one of --config and --resume")
        options.run = options.resume
        return resume.run(options)
    require_config(options, " or --resume RUN")
    from pointadapterx import jobs
    from pointadapterx.config import read_config
    from pointadapterx.engine.devices import make_accelerator

    log_to_terminal()
    config = read_config(options.config, options.overrides)
    accelerator = make_accelerator(config.train.precision, config.train.device)
    jobs.train(config, Path(options.config).stem, options.output, accelerator)
    return 0
