"""``pointadapterx train FOLDER``: from files of one's own to an adapter, saying what is done and what is doubtful."""

from __future__ import annotations

import csv
import json
import logging
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pointadapterx import jobs
from pointadapterx.config import Config, read_config
from pointadapterx.datasets import Samples, build_dataset
from pointadapterx.engine.devices import make_accelerator
from pointadapterx.errors import ConfigError
from pointadapterx.optional import missing
from pointadapterx.quickstart.fitting import fitting
from pointadapterx.quickstart.own_data import doubtful, recognise
from pointadapterx.run_folder import PREDICTIONS_FILE, read_metrics
from pointadapterx.study.statistics import score_interval
from pointadapterx.text import printable
from pointadapterx.visualize.drawing import Sheet, paint, save
from pointadapterx.visualize.loaded_run import Subject
from pointadapterx.visualize.pictures import PICTURES

LOGGER = logging.getLogger("pointadapterx")
CONFIG = "own"
"""Shipped config that it starts from."""
ENOUGH = 4  # training clouds a class, below which none are set aside to choose an epoch by
DRAWN = ("confusion", "mistakes")
PICTURES_FOLDER = "pictures"


def train_on(path: str | Path, overrides: Sequence[str], output: Path | None) -> Path:
    """Trains on data of one's own and prints what comes out of it.

    Args:
        path: folder, CSV or HDF5.
        overrides: of the shipped config ``own``.
        output: folder of the run, by default ``runs/<name of the path>/<time>``.

    Returns:
        The folder of the run.

    Raises:
        PointAdapterXError: for data or overrides that do not fit, in one line.
    """
    own = recognise(path)
    _say(own.layout)
    if not any(text.startswith("data.up=") for text in overrides):
        _say("y is taken as up; where z is, add data.up=z")
    given = [f"data.name={own.name}", f"data.root={json.dumps(str(path))}"]
    start = read_config(CONFIG, given)
    fitted = [f"{key}={json.dumps(value)}" for key, value in fitting(start.train, start.eval, overrides).items()]
    config = read_config(CONFIG, [*given, *fitted, *overrides])
    for line in doubtful(config):
        _say(f"doubtful: {line}")
    config = with_parts(config, overrides)
    accelerator = make_accelerator(config.train.precision, config.train.device)
    folder = jobs.train(config, Path(path).resolve().stem, output, accelerator)
    if accelerator.is_main_process:
        _summarise(folder)
    return folder


def with_parts(config: Config, overrides: Sequence[str]) -> Config:
    """With a validation part that has a cloud of every class, or none where too few would be left to train on."""
    chosen = {text.partition("=")[0] for text in overrides}
    if config.eval.protocol != "validation" or chosen & {"eval.protocol", "eval.val_fraction"}:
        return config
    train: Samples = build_dataset(config.data.name, "train", **config.data.reading_options())
    if train.validation is not None or train.groups is not None:
        return config
    count, classes = len(train), len(train.labels.unique())
    if count < ENOUGH * classes:
        _say(
            f"{count} training clouds of {classes} classes are too few to set some aside and choose an epoch by them: "
            "the last one counts, and probabilities are not calibrated"
        )
        return config.replaced(eval={"protocol": "last"}, train={"early_stopping": None})
    least = math.ceil(1000 * classes / count) / 1000
    return config if config.eval.val_fraction >= least else config.replaced(eval={"val_fraction": least})


def _summarise(folder: Path) -> None:
    """The result, its uncertainty, pictures, and what to do next."""
    report = read_metrics(folder)
    right, groups, largest = _answers(folder / PREDICTIONS_FILE)
    low, high = interval(right, groups)
    stopped = ", stopped early" if report.get("stopped_early") else ""
    _say(
        f"\ntest: {100 * right.mean():.1f} % of {len(right)} clouds are right, 95 % interval {low:.0f} to {high:.0f} % "
        f"(always the most frequent class: {100 * largest:.1f} %)"
    )
    _say(f"run: {folder} (epoch {report['best_epoch']} of {report['epochs']} kept{stopped})")
    drawn = _draw(folder)
    if drawn:
        _say(f"pictures: {', '.join(map(str, drawn))}")
    elif (reason := missing("matplotlib.figure", "viz")) is not None:
        _say(f"pictures: none, as matplotlib {reason}")
    name = shlex.quote(str(folder))
    _say(f"next: pointadapterx predict {name} FILES, or pointadapterx report {name} for a page with all of it")


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


def _answers(path: Path) -> tuple[np.ndarray, np.ndarray | None, float]:
    """Which test samples are right (n,) bool, their groups where they have some, and the share of the largest class."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    right = np.array([row["correct"] == "1" for row in rows])
    groups = np.array([int(row["group"]) for row in rows]) if rows[0]["group"] else None
    _, counts = np.unique([row["label"] for row in rows], return_counts=True)
    return right, groups, float(counts.max() / len(rows))


def _draw(folder: Path) -> list[Path]:
    """Confusion and mistakes, where they can be drawn."""
    if missing("matplotlib.figure", "viz") is not None:
        return []
    drawn, level = list[Path](), LOGGER.level
    LOGGER.setLevel(logging.ERROR)  # the same weights and data were just read, and said to be
    try:
        subject = Subject(folder, [])
        for name in DRAWN:
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


def _say(line: str) -> None:
    print(printable(line, keep="\n"), flush=True)
