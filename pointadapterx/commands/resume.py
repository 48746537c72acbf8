"""Continue an interrupted run from its folder; the result is that of an uninterrupted one."""

from __future__ import annotations

import argparse
from pathlib import Path

from pointadapterx.commands.options import add_run, log_to_terminal

EXAMPLES = """\
  %(prog)s runs/demo/20260101-120000
  %(prog)s runs/demo/20260101-120000 data.root=/mnt/scans     where the files lie now
  %(prog)s runs/demo/20260101-120000 train.cosine_epochs=300 train.epochs=120 train.cooldown_epochs=20
                                                           to end a run of 300 epochs early
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See :class:`~pointadapterx.commands.main.Module`."""
    where = "where files lie now, for example data.root=/mnt/scans, or the schedule of what is to come"
    add_run(parser, "folder of the run", where)


def run(options: argparse.Namespace) -> int:
    """Trains to the end."""
    from pointadapterx import jobs
    from pointadapterx.quickstart import ending
    from pointadapterx.run_folder import METRICS_FILE

    log_to_terminal()
    finished = (Path(options.run) / METRICS_FILE).exists()
    folder = jobs.resume(options.run, options.overrides)
    if ending.is_main_process():
        moved = [text for text in options.overrides if not text.startswith("train.")]  # what pictures have to know
        ending.end(folder, pictures=False if finished else None, overrides=moved)  # a finished one stays
    return 0
