"""``pointadapterx train FOLDER``: from files of one's own to an adapter, saying what is done and what is doubtful."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from pointadapterx import jobs
from pointadapterx.config import Config, read_config, read_document
from pointadapterx.config.overrides import flat
from pointadapterx.datasets import Samples, build_dataset
from pointadapterx.datasets.folder import STORED_POINTS
from pointadapterx.engine.devices import make_accelerator
from pointadapterx.errors import ConfigError
from pointadapterx.quickstart.ending import end, say
from pointadapterx.quickstart.fitting import fitting
from pointadapterx.quickstart.own_data import doubtful, read_entries, recognise, stored_points
from pointadapterx.tasks import build_task

CONFIG = "own"
"""Shipped config that it starts from."""
ENOUGH = 4  # training clouds of a class, below which none are set aside to choose an epoch by


def train_on(path: str | Path, overrides: Sequence[str], output: Path | None, name: str | Path = CONFIG) -> Path:
    """Trains on data of one's own and prints what comes out of it.

    Args:
        path: folder, CSV or HDF5.
        overrides: of the config.
        output: folder of the run, by default ``runs/<name of the path>/<time>``.
        name: of the config to start from, for data of one's own.

    Returns:
        The folder of the run.

    Raises:
        PointAdapterXError: for data or overrides that do not fit, in one line.
    """
    section = read_document(name).content.get("data")
    usual = section.get("name") if isinstance(section, Mapping) else None
    if usual not in ("folder", "h5"):
        of = "no data set" if usual is None else f"the data set {usual}"
        raise ConfigError(
            f"--config {name}: is of {of}, not of clouds by class; where {path} holds what it reads, give "
            f"data.root={path} instead"
        )
    own = recognise(path)
    say(own.layout)
    given = [f"data.name={own.name}", f"data.root={json.dumps(str(path))}"]
    start = read_config(name, given)
    if start.data.up is None and not any(text.startswith("data.up=") for text in overrides):
        say("y is taken as up; where z is, add data.up=z")
    fitted = [f"{key}={json.dumps(value)}" for key, value in fitting(start.train, start.eval, overrides).items()]
    for text in fitted if name != CONFIG else ():
        say(f"{text}: what the config has does not fit its epochs")
    config = read_config(name, [*given, *fitted, *overrides])
    entries = read_entries(config.data)
    fewer = None if "data.stored_points" in flat(overrides) else stored_points(config.data, entries)
    if fewer is not None:
        usual = config.data.stored_points or STORED_POINTS
        say(
            f"{fewer:,} points of each file are kept, since some have no more (data.stored_points; {usual:,} otherwise)"
        )
        config = config.replaced(data={"stored_points": fewer})
    for line in doubtful(config, entries):
        say(f"doubtful: {line}")
    config = with_parts(config, overrides)
    accelerator = make_accelerator(config.train.precision, config.train.device)
    folder = jobs.train(config, Path(path).resolve().stem, output, accelerator)
    if accelerator.is_main_process:
        end(folder, pictures=True)
    return folder


def with_parts(config: Config, overrides: Sequence[str]) -> Config:
    """With a validation part that has a cloud of every class, or none where too few would be left to train on."""
    chosen = {text.partition("=")[0] for text in overrides}
    if config.eval.protocol != "validation" or chosen & {"eval.protocol", "eval.val_fraction"}:
        return config
    train: Samples = build_dataset(config.data.name, "train", **config.data.reading_options())
    if train.validation is not None or train.groups is not None:
        return config
    task = build_task(config)
    count, classes = len(train), len(task.strata(train).unique())
    if count < ENOUGH * classes:
        uncalibrated = ", and probabilities are not calibrated" if task.predicts_classes else ""
        say(
            f"{count} training clouds of {classes} classes are too few to set some aside and choose an epoch by them: "
            f"the last one counts{uncalibrated}"
        )
        return config.replaced(eval={"protocol": "last"}, train={"early_stopping": None})
    least = math.ceil(1000 * classes / count) / 1000
    return config if config.eval.val_fraction >= least else config.replaced(eval={"val_fraction": least})
