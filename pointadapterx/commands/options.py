"""Options that several commands have in common, each defined once."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

from pointadapterx.errors import ConfigError

ADAPTER = "RUN_OR_ADAPTER"
ADAPTER_HELP = "adapter file, run folder, or hf://owner/repository"
ENGINES = ("local", "ray")
OVERRIDES = "config overrides, for example train.lr=1e-3"
OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_]+)+=.*")


class UsageError(Exception):
    """Arguments that do not go together; printed below the command's usage."""


def add_overrides(parser: argparse.ArgumentParser, about: str = OVERRIDES, given: str = "key=value") -> None:
    """Any number of ``key=value``, between options too."""
    parser.add_argument("overrides", nargs="*", metavar=given, default=[], help=about)  # no default means: required


def add_config(
    parser: argparse.ArgumentParser, example: str = "demo", *, given: str = "key=value", about: str = OVERRIDES
) -> None:
    """``--config``, and overrides of its keys, which a command may take together with something else."""
    parser.add_argument("--config", metavar="FILE", help=f"YAML config, or the name of a shipped one ({example})")
    add_overrides(parser, about, given)


def add_adapter(parser: argparse.ArgumentParser) -> None:
    """The adapter that the command is about."""
    parser.add_argument("adapter", metavar=ADAPTER, help=ADAPTER_HELP)


def add_run(parser: argparse.ArgumentParser, about: str, overrides: str) -> None:
    """The folder of a run that the command goes on with, and what may be overridden."""
    parser.add_argument("run", metavar="RUN", type=Path, help=about)
    add_overrides(parser, overrides)


def add_runs(parser: argparse.ArgumentParser) -> None:
    """Adapters, and overrides of their configs; see :func:`split_overrides`."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders or adapter files, and key=value overrides")


def add_weights(parser: argparse._ActionsContainer) -> None:
    """``--weights``."""
    parser.add_argument("--weights", metavar="FILE", help="where the backbone's weights lie now")


def add_device(parser: argparse._ActionsContainer) -> None:
    """``--device``."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1, … (default: a GPU if there is one)")


def add_engine(parser: argparse._ActionsContainer, what: str) -> None:
    """``--engine`` and ``--address``.

    Args:
        parser: or a group of its options.
        what: the engine does, in words.
    """
    parser.add_argument(
        "--engine", choices=ENGINES, default=ENGINES[0], help=f"what {what}: this machine, or a Ray cluster"
    )
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="of the cluster's head node, or auto; only with --engine ray (default: $RAY_ADDRESS, or a cluster of this "
        "machine alone)",
    )


def on_ray(options: argparse.Namespace) -> bool:
    """Whether :func:`add_engine`'s options choose a cluster.

    Raises:
        UsageError: for an address without one.
    """
    if options.engine == "ray":
        return True
    if options.address is not None:
        raise UsageError("--address belongs to --engine ray")
    return False


def add_output_folder(parser: argparse._ActionsContainer, default: str) -> None:
    """``--output`` of a command that writes several files."""
    parser.add_argument("--output", metavar="DIR", type=Path, help=f"folder to write to (default: {default})")


def add_reading(parser: argparse._ActionsContainer, *, nan: str) -> None:
    """How files of points are read.

    Args:
        parser: or a group of its options.
        nan: the default of ``--nan``, in words.
    """
    parser.add_argument(
        "--columns",
        type=_columns,
        metavar="X,Y,Z",
        help="columns of text files that are x, y and z, names or numbers from 0 (default: as the files name them)",
    )
    parser.add_argument(
        "--nan",
        choices=["drop", "error"],
        help="points with NaN or infinite coordinates: leave them out with a warning, or refuse the file "
        f"(default: {nan})",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that read files, where that takes long (default: all cores)"
    )


def _columns(text: str) -> tuple[str | int, ...]:
    from pointadapterx.datasets.formats.columns import columns_of_text  # slow to import, for --help

    return columns_of_text(text)


def require_positive(options: argparse.Namespace, *names: str, what: str = "") -> None:
    """Refuses numbers below 1; None passes.

    Raises:
        UsageError: naming option and number.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} {value}: at least 1{what}")


def require_config(options: argparse.Namespace, example: str = "demo") -> None:
    """Refuses a command without ``--config``.

    Raises:
        UsageError: if it is missing.
    """
    if options.config is None:
        raise UsageError(f"give --config FILE (for example --config cfgs/{example}.yaml)")


def split_overrides(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Runs, and overrides of their configs.

    Raises:
        ConfigError: if there is no run.
    """
    overrides = [text for text in texts if OVERRIDE.fullmatch(text) and not Path(text).exists()]
    runs = [text for text in texts if text not in overrides]
    if not runs:
        raise ConfigError("give a run's folder or an adapter file")
    return runs, overrides


def log_to_terminal() -> None:
    """Log lines on the terminal, from the first of several processes."""
    from pointadapterx.engine.console import set_up_logging

    set_up_logging(main_process=int(os.environ.get("RANK", "0")) == 0)
