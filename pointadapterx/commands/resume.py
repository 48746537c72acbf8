"""Continue an interrupted run from its folder; the result is that of an uninterrupted one."""

from __future__ import annotations

import argparse

from pointadapterx.commands.options import add_run, log_to_terminal

EXAMPLES = """\
  %(prog)s runs/demo/20260101-120000
  %(prog)s runs/demo/20260101-120000 data.root=/mnt/scans     where the files lie now
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See :class:`~pointadapterx.commands.main.Module`."""
    where = "where files lie now; all else stays as the run began, for example data.root=/mnt/scans"
    add_run(parser, "folder of the run", where)


def run(options: argparse.Namespace) -> int:
    """Trains to the end."""
    from pointadapterx import jobs
    from pointadapterx.config import read_config
    from pointadapterx.quickstart.ending import OWN, end, is_main_process
    from pointadapterx.run_folder import CONFIG_FILE

    log_to_terminal()
    folder = jobs.resume(options.run, options.overrides)
    if is_main_process():
        own = read_config(folder / CONFIG_FILE).data.name in OWN
        end(folder, pictures=own, overrides=options.overrides)
    return 0
