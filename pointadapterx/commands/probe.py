"""Print the linear-probe accuracy of pre-trained weights, and of random ones beside it."""

from __future__ import annotations

import argparse
from pathlib import Path

from pointadapterx.commands.options import OVERRIDE, UsageError, add_config, add_device, log_to_terminal, require_config

EXAMPLE = "pretrain/point_mae_tiny"
EXAMPLES = """\
  %(prog)s --config pretrain/point_mae_tiny backbone.weights=point_mae_tiny
  %(prog)s --config pretrain/point_mae_tiny backbone.weights=runs/pretrain/<time>/weights.safetensors
  %(prog)s weights.safetensors point_mae_tiny --data ldraw20 --data home=FOLDER --output probes.md
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See :class:`~pointadapterx.commands.main.Module`."""
    about = "weights to compare, with --data; and config overrides, for example train.precision=bf16"
    add_config(parser, EXAMPLE, given="WEIGHTS|key=value", about=about)
    several = parser.add_argument_group("several weights and data sets")
    several.add_argument(
        "--data",
        metavar="NAME[=FOLDER]",
        action="append",
        default=[],
        help="a data set, or a name for the train.h5 and test.h5 in FOLDER; may be repeated",
    )
    several.add_argument(
        "--test", action="store_true", help="judge on the test splits (default: training splits' parts)"
    )
    several.add_argument("--output", metavar="FILE.md", type=Path, help="also write the table here")
    add_device(several)


def run(options: argparse.Namespace) -> int:
    """Prints a table."""
    weights = [text for text in options.overrides if OVERRIDE.fullmatch(text) is None]
    overrides = [text for text in options.overrides if text not in weights]
    if weights or options.data:
        return _compare(options, weights, overrides)
    if options.test or options.output is not None or options.device is not None:
        raise UsageError("--test, --output and --device belong to WEIGHTS and --data")
    require_config(options, EXAMPLE)
    from pointadapterx import jobs
    from pointadapterx.config import read_config
    from pointadapterx.engine.devices import make_accelerator

    log_to_terminal()
    config = read_config(options.config, overrides)
    jobs.probe(config, make_accelerator(config.train.precision, config.train.device))
    return 0


def _compare(options: argparse.Namespace, weights: list[str], overrides: list[str]) -> int:
    """Prints a table of weights and data sets.

    Raises:
        UsageError: without weights or data sets, or if one is named twice.
    """
    if not weights or not options.data:
        raise UsageError("give weights and --data NAME[=FOLDER], or --config FILE with backbone.weights=FILE")
    labels = [text.partition("=")[0] for text in options.data]
    for named in (weights, labels):
        if len(set(named)) < len(named):
            raise UsageError(f"{next(name for name in named if named.count(name) > 1)} is given twice; remove one")
    from pointadapterx.config import read_config
    from pointadapterx.datasets import DATASETS
    from pointadapterx.engine.console import console
    from pointadapterx.engine.devices import make_accelerator
    from pointadapterx.files import write_text
    from pointadapterx.study.probes import probe_all, render_probes

    log_to_terminal()
    config = read_config(options.config or EXAMPLE, overrides)
    data = {}
    for text in options.data:
        label, equals, root = text.partition("=")
        data[label] = {"name": label if label in DATASETS or not equals else "h5", **({"root": root} if equals else {})}
    accelerator = make_accelerator(config.train.precision, options.device or config.train.device)
    lines = render_probes(probe_all(config, weights, data, accelerator, test=options.test))
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if options.output is not None:
        write_text(options.output, "\n".join(lines) + "\n")
    return 0
