"""Adapt a pre-trained model to your own data, or train what a config says; test it at the end."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pointadapterx.commands import resume
from pointadapterx.commands.options import OVERRIDE, UsageError, add_config, add_output_folder, log_to_terminal

EXAMPLES = """\
  %(prog)s scans                                           a folder with a folder for each class
  %(prog)s scans data.up=z --output run                    files with z up; the run's folder
  %(prog)s scans --config best                             your own files by another config than own
  %(prog)s --config labelled_folder data.root=shapes       files with a label for each point
  %(prog)s --config demo                                   the embedded clouds, in minutes on a CPU
  %(prog)s --config demo train.lr=1e-3 train.seed=1        any key of the config can be overridden
  %(prog)s --resume runs/demo/20260101-120000              the same as the command resume
"""
ABOUT = (
    "folder, CSV or HDF5 file of your own clouds or meshes (or a config), and config overrides such as train.lr=1e-3"
)
CONFIGS = (".yaml", ".yml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See :class:`~pointadapterx.commands.main.Module`."""
    add_config(parser, given="FOLDER|key=value", about=ABOUT)
    add_output_folder(parser, "runs/<folder or config>/<time>")
    parser.add_argument("--resume", metavar="RUN", type=Path, help="continue the run in this folder instead")


def run(options: argparse.Namespace) -> int:
    """Trains, and leaves a run folder."""
    flags = [f"--{name}" for name in ("config", "resume") if getattr(options, name) is not None]
    # A word beside a flag is an override that lacks its value, unless it is a path.
    whats = [text for text in options.overrides if Path(text).exists() or not (flags or _is_override(text))]
    overrides = [text for text in options.overrides if text not in whats]
    given = [*whats, *flags]
    data = [text for text in whats if Path(text).suffix.lower() not in CONFIGS]
    both = flags == ["--config"] and len(data) == len(whats) == 1
    if len(given) > 1 and not both:
        raise UsageError(f"choose one of {', '.join(given[:-1])} and {given[-1]}")
    if not given:
        raise UsageError("give FOLDER (your own files), --config FILE (for example --config demo) or --resume RUN")
    if options.resume is not None:
        if options.output is not None:
            raise UsageError("--resume writes into the run's folder; remove --output")
        options.run, options.overrides = options.resume, overrides
        return resume.run(options)
    log_to_terminal()
    if both or (whats and _is_data(whats[0])):
        from pointadapterx.quickstart.folder_run import CONFIG, train_on

        train_on(whats[0], overrides, options.output, options.config or CONFIG)
        return 0
    _train_config(options.config or whats[0], overrides, options.output)
    return 0


def _is_override(text: str) -> bool:
    return "=" in text or OVERRIDE.fullmatch(text) is not None


def _is_data(text: str) -> bool:
    """Whether a path of data is meant, or else a config.

    Raises:
        UsageError: if it can be both.
        DataError: if it is neither.
    """
    from pointadapterx.config.files import find
    from pointadapterx.errors import ConfigError, DataError
    from pointadapterx.quickstart.own_data import FORM

    path = Path(text)
    if path.is_file():
        return path.suffix.lower() not in CONFIGS
    try:
        find(path)
    except ConfigError as error:
        if path.exists():
            return True
        near = str(error).partition(": no such config")[2].partition(" Shipped: ")[0]
        what = "no such folder, file or shipped config"
        raise DataError(f"{text}: {what}{near}" if near != "." else f"{text}: {what}; {FORM}") from None
    if path.exists():
        raise UsageError(f"{text} is a folder here and a shipped config: give ./{text} or --config {text}")
    return False


def _train_config(name: str, overrides: Sequence[str], output: Path | None) -> None:
    from pointadapterx import jobs
    from pointadapterx.config import read_config
    from pointadapterx.engine.devices import make_accelerator
    from pointadapterx.quickstart import ending
    from pointadapterx.quickstart.fitting import shorter_warmup

    warmup = shorter_warmup(name, overrides)
    if warmup is not None:
        overrides = [*overrides, f"train.warmup_epochs={warmup}"]
    config = read_config(name, overrides)
    if warmup is not None and ending.is_main_process():
        ending.say(
            f"train.warmup_epochs={warmup}: the config's own warm-up leaves nothing of {config.train.epochs} epochs"
        )
    accelerator = make_accelerator(config.train.precision, config.train.device)
    folder = jobs.train(config, Path(name).stem, output, accelerator)
    if ending.is_main_process():
        ending.end(folder, pictures=False)
