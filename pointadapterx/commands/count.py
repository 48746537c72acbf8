"""Print parameters, multiply-adds and kept activations of a config or a run.

Needs no weights, and no data where the config says how many classes there are.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pointadapterx.commands.options import ADAPTER, ADAPTER_HELP, OVERRIDE, UsageError, add_config, log_to_terminal

if TYPE_CHECKING:
    from pointadapterx.config import Config

EXAMPLES = """\
  %(prog)s --config scan_pb_t50_rs
  %(prog)s --config scan_pb_t50_rs method.rank=64
  %(prog)s --config labelled_folder 'task.classes=[wheel,body,roof]'
  %(prog)s runs/demo/<time>
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See :class:`~pointadapterx.commands.main.Module`."""
    add_config(parser, given=f"{ADAPTER}|key=value", about=f"{ADAPTER_HELP} (or a config), and config overrides")


def run(options: argparse.Namespace) -> int:
    """Prints two tables, and writes nothing."""
    flags = [] if options.config is None else ["--config"]
    # A word beside a flag is an override that lacks its value, unless it is a path.
    given = [text for text in options.overrides if Path(text).exists() or not (flags or OVERRIDE.fullmatch(text))]
    overrides = [text for text in options.overrides if text not in given]
    whats = [*given, *flags]
    if len(whats) > 1:
        raise UsageError(f"choose one of {', '.join(whats[:-1])} and {whats[-1]}")
    if not whats:
        raise UsageError("give --config FILE (for example --config cfgs/demo.yaml), a run folder or an adapter file")
    from pointadapterx import jobs
    from pointadapterx.config import read_config

    log_to_terminal()
    jobs.count(_stored(given[0], overrides) if given else read_config(options.config, overrides))
    return 0


def _stored(place: str, overrides: Sequence[str]) -> Config:
    """The config of a run, finished or not, or of an adapter, with overrides."""
    from pointadapterx.checkpoints.adapter_file import read_adapter
    from pointadapterx.config import Config, read_config
    from pointadapterx.run_folder import CONFIG_FILE

    if (file := Path(place) / CONFIG_FILE).is_file():
        return read_config(file, overrides)
    info = read_adapter(place)
    return Config.of(info.config, str(info.path), overrides)
