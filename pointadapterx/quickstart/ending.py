"""What a training ends with on the terminal: the result, its uncertainty, pictures, and what to do next."""

from __future__ import annotations

import logging
import math
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pointadapterx.checkpoints.adapter_file import read_adapter
from pointadapterx.config import read_config
from pointadapterx.datasets import DATASETS
from pointadapterx.errors import ConfigError
from pointadapterx.optional import missing
from pointadapterx.run_folder import CONFIG_FILE, PREDICTIONS_FILE, WEIGHTS_FILE, read_metrics
from pointadapterx.study.samples import group_numbers, read_samples, run_intervals
from pointadapterx.study.statistics import count_units, score_interval
from pointadapterx.tasks import TASKS, Task
from pointadapterx.tasks.presentation import too_few
from pointadapterx.text import printable

LOGGER = logging.getLogger("pointadapterx")
PICTURES_FOLDER = "pictures"
OWN = ("folder", "h5", "labelled_folder")
"""``data.name`` of data of the user's own."""


def is_main_process() -> bool:
    """Whether this is the first of several processes, before they know each other."""
    return int(os.environ.get("RANK", "0")) == 0


def say(line: str) -> None:
    """Prints a line at once."""
    print(printable(line, keep="\n"), flush=True)


def end(folder: Path, *, pictures: bool | None = None, overrides: Sequence[str] = ()) -> None:
    """Says what a finished run has come to, and what to do next.

    Args:
        folder: of the run.
        pictures: whether to draw those that its task has for a summary; None: if the data are the user's own files.
        overrides: where the run's files lie now.
    """
    report, name = read_metrics(folder), shlex.quote(str(folder))
    if not TASKS[read_config(folder / CONFIG_FILE).task.name].adapts:
        say(f"\nrun: {folder} ({report['epochs']} epochs)")
        say(f"next: adapt the backbone, by a config with backbone.weights={shlex.quote(str(folder / WEIGHTS_FILE))}")
        return
    info = read_adapter(folder)
    sure, missing = _interval(folder, info.task)
    what = "clouds" if DATASETS[info.config.data.name].modality == "points" else "images"
    say(f"\ntest: {info.task.result(report['test'], what, sure)}")
    if missing:
        say(f"no interval: {missing}")
    stopped = ", stopped early" if report.get("stopped_early") else ""
    say(f"run: {folder} (epoch {report['best_epoch']} of {report['epochs']} kept{stopped})")
    if pictures is None:
        pictures = info.config.data.name in OWN
    if pictures and info.task.summary_pictures:
        _say_pictures(folder, info.task, overrides)
    several = len(info.task.categories) > 1  # the only one need not be said
    condition = f" --condition {info.task.condition.upper()}" if several else ""
    predict = f"pointadapterx predict {name} FILES{condition}"
    say(f"next: {predict}, or pointadapterx report {name} for a page with all of it")


def _interval(folder: Path, task: Task) -> tuple[tuple[float, float] | None, str]:
    """The 95 % interval of the first score; or None, and the reason why the run's files give none."""
    if task.predicts_classes:
        scores, names = read_samples(folder / PREDICTIONS_FILE, "correct")
        groups = group_numbers(names)
        missing = "" if groups is None else too_few(count_units(len(scores), groups))
        return None if missing else interval(scores == 1, groups), missing
    first, *_ = task.scores
    found = run_intervals(folder, type(task))
    return found.of.get(first), found.missing


def interval(right: np.ndarray, groups: np.ndarray | None) -> tuple[float, float]:
    """95 % interval of the accuracy in %, by Wilson's score; where samples belong together, by their bootstrap.

    A bootstrap of samples that are all right would be certain of it.

    Args:
        right: (n,) bool.
        groups: (n,) int, or None.
    """
    share, units = float(right.mean()), len(right) if groups is None else len(np.unique(groups))
    if groups is not None and 0 < share < 1:
        return score_interval([right], groups=groups)
    z = 1.96
    centre, spread = share + z * z / (2 * units), z * math.sqrt(share * (1 - share) / units + (z / (2 * units)) ** 2)
    low, high = (100 * (centre + side * spread) / (1 + z * z / units) for side in (-1, 1))
    return max(low, 0.0), min(high, 100.0)


def _say_pictures(folder: Path, task: Task, overrides: Sequence[str]) -> None:
    drawn = _draw(folder, task, overrides)
    if drawn:
        say(f"pictures: {', '.join(map(str, drawn))}")
    elif (reason := missing("matplotlib.figure", "viz")) is not None:
        say(f"pictures: none, as matplotlib {reason}")


def _draw(folder: Path, task: Task, overrides: Sequence[str]) -> list[Path]:
    """The task's pictures, where they can be drawn."""
    if missing("matplotlib.figure", "viz") is not None:
        return []
    from pointadapterx.visualize.drawing import Sheet, paint, save  # slow to import, for a summary without pictures
    from pointadapterx.visualize.loaded_run import Subject
    from pointadapterx.visualize.pictures import PICTURES

    drawn, level = list[Path](), LOGGER.level
    LOGGER.setLevel(logging.ERROR)  # the same weights and data were just read, and said to be
    try:
        subject = Subject(folder, list(overrides))
        for name in task.summary_pictures:
            try:
                made: Any = PICTURES[name].make([subject], None)
            except ConfigError:  # no mistake to show
                continue
            path = folder / PICTURES_FOLDER / f"{name}.png"
            save(paint(made) if isinstance(made, Sheet) else made, path, 120)
            drawn.append(path)
    finally:
        LOGGER.setLevel(level)
    return drawn
