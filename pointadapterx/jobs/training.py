"""Training from beginning to end: a new run, one that is continued, and the report that both end with."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from pointadapterx import ops
from pointadapterx.adapted_model import AdaptedModel, count_parameters
from pointadapterx.build import build_splits, build_trained
from pointadapterx.checkpoints.adapter_file import AdapterInfo, load_adapter, save_adapter, versions
from pointadapterx.config import LOCATIONS, Config, dump_config, read_config
from pointadapterx.datasets import Scenes
from pointadapterx.datasets.draws import draw_doubts
from pointadapterx.engine.claim import claimed, refuse_if_claimed
from pointadapterx.engine.console import console, log_to_file
from pointadapterx.engine.devices import agreed_folder, hardware, log_device, make_accelerator, peak_memory_mib
from pointadapterx.engine.evaluator import evaluate_hidden
from pointadapterx.engine.optim import learning_rate
from pointadapterx.engine.precision import precision_of
from pointadapterx.engine.protocol import chooses
from pointadapterx.engine.state import Progress
from pointadapterx.engine.trainer import Trainer
from pointadapterx.errors import CheckpointError, ConfigError, PointAdapterXError
from pointadapterx.files import require_utf8, write_json, write_text
from pointadapterx.jobs.pretraining import pretraining_hooks
from pointadapterx.jobs.tables import parameter_table
from pointadapterx.jobs.testing import ANOTHER_OUTPUT, evaluate_and_write
from pointadapterx.run_folder import (
    ADAPTER_FILE,
    CONFIG_FILE,
    LOG_FILE,
    METRICS_FILE,
    STATE_FILE,
    WEIGHTS_FILE,
    can_resume,
    is_finished,
    new_folder,
)

log = logging.getLogger(__name__)

SCHEDULE = ("train.epochs", "train.cosine_epochs", "train.cooldown_epochs")
"""Keys that may change when a run is resumed, as long as what is over stays."""


def train(
    config: Config | Mapping[str, Any],
    name: str,
    output: Path | None,
    accelerator: Accelerator,
    model: AdaptedModel | None = None,
) -> Path:
    """Adapts and tests the best adapter once, or pre-trains where the config says so; returns the run's folder.

    Args:
        config: complete config.
        name: of the config, for the default folder ``runs/<name>/<time>``.
        output: run folder; must not hold a run yet.
        accelerator: from :func:`make_accelerator`.
        model: to go on from, of this config; holds the kept adapter afterwards. By default a new one.

    Raises:
        PointAdapterXError: for wrong data, weights, or a folder that is taken.
        InUseError: if another process is training into it.
    """
    config = Config.of(config)
    folder = agreed_folder(output or new_folder(name))
    require_utf8(folder)
    refuse_if_claimed(folder, ANOTHER_OUTPUT)
    _require_no_run(folder)
    # What is stored names the precision, so a run is resumed and tested as it was trained, whatever the machine.
    config = config.replaced(train={"precision": precision_of(accelerator)})
    trainer = _trainer(config, folder, accelerator, model)
    with claimed(folder, accelerator, ANOTHER_OUTPUT, lambda: _require_no_run(folder)):
        if accelerator.is_main_process:
            write_text(folder / CONFIG_FILE, dump_config(config))
        accelerator.wait_for_everyone()
        return _fit(trainer)


def _require_no_run(folder: Path) -> None:
    if (folder / CONFIG_FILE).exists():
        raise PointAdapterXError(
            f"{folder}: already holds a run; continue it with --resume {folder}, or choose another --output"
        )


def resume(folder: Path, overrides: list[str]) -> Path:
    """Continues a run from its folder and finishes it.

    Args:
        folder: the run's folder (or a file in it).
        overrides: where files lie (:data:`~pointadapterx.config.LOCATIONS`), and the schedule of the epochs to come
            (:data:`SCHEDULE`), which the run's config then has.

    Returns:
        The folder.

    Raises:
        CheckpointError: if there is no state to continue from.
        ConfigError: for an override that would make it another run, or change what is over.
        InUseError: if the run is still running.
    """
    folder = folder.parent if folder.is_file() else folder
    schedule = [text for text in overrides if text.partition("=")[0] in SCHEDULE]
    for text in overrides:
        if text.partition("=")[0] not in (*LOCATIONS, *SCHEDULE):
            raise ConfigError(
                f"{text}: a resumed run keeps its config (only {', '.join((*LOCATIONS, *SCHEDULE))} may change); start "
                "a new run instead"
            )
    if not can_resume(folder):
        raise CheckpointError(f"{folder}: holds no run to resume ({CONFIG_FILE} and {STATE_FILE} are needed)")
    require_utf8(folder)
    config = read_config(folder / CONFIG_FILE, overrides)
    accelerator = make_accelerator(config.train.precision, config.train.device)
    with claimed(folder, accelerator, "wait for it, or stop it first"):
        return _continue(config, folder, accelerator, schedule)


def _continue(config: Config, folder: Path, accelerator: Accelerator, schedule: list[str]) -> Path:
    trainer = _trainer(config, folder, accelerator)
    trainer.resume()
    progress = trainer.progress
    if schedule:
        _require_same_past(config, folder, progress)
    if trainer.task.adapts and progress.best_epoch >= 0 and not (folder / ADAPTER_FILE).is_file():
        raise CheckpointError(
            f"{folder}: {ADAPTER_FILE}, the kept epoch's adapter, is gone and cannot be made again from the state; "
            "restore it, or start a new run"
        )
    if not trainer.task.adapts and trainer.finished and not (folder / WEIGHTS_FILE).is_file():
        raise CheckpointError(f"{folder}: {WEIGHTS_FILE} of the finished run is gone; restore it, or start a new run")
    if is_finished(folder) and trainer.finished:
        log.info("%s: the run is finished, see %s", folder, METRICS_FILE)
        return folder
    if schedule:
        accelerator.wait_for_everyone()  # all have read the file
        if accelerator.is_main_process:
            write_text(folder / CONFIG_FILE, dump_config(read_config(folder / CONFIG_FILE, schedule)))
    return _fit(trainer)


def _require_same_past(config: Config, folder: Path, progress: Progress) -> None:
    """Raises a ConfigError if nothing is to come, or a schedule is another one in the epochs that have begun."""
    before = read_config(folder / CONFIG_FILE)
    begun = progress.epoch + (progress.step > 0)
    over = f"train.epochs={config.train.epochs}: {progress.epoch} of the run's {before.train.epochs} epochs are over"
    if is_finished(folder) or progress.epoch >= before.train.epochs:
        raise ConfigError(f"{over}, and nothing is to come whose schedule could change; start a new run")
    if progress.epoch >= config.train.epochs:
        raise ConfigError(f"{over}; a schedule changes only what is to come, so raise it")
    differ = (
        epoch for epoch in range(begun) if learning_rate(epoch, config.train) != learning_rate(epoch, before.train)
    )
    if (first := next(differ, None)) is not None:
        length = before.train.cosine_epochs or before.train.epochs
        raise ConfigError(
            f"train.epochs={config.train.epochs}: the learning rate of epoch {first + 1}, which is over or has begun, "
            f"would be another; keep the cosine with train.cosine_epochs={length}, and let train.cooldown_epochs begin "
            f"behind epoch {begun}"
        )


def _trainer(config: Config, folder: Path, accelerator: Accelerator, given: AdaptedModel | None = None) -> Trainer:
    with accelerator.main_process_first():  # which may have to build a cache that the others then read
        splits = build_splits(config)
        hooks = None if config.pretrain is None else pretraining_hooks(config)
    model = build_trained(config) if given is None else given
    log_device(accelerator)
    if isinstance(model, AdaptedModel):
        if accelerator.is_main_process:
            console.print(parameter_table(config, count_parameters(model)))
    else:
        log.info("parameters: %s", f"{sum(p.numel() for p in model.parameters()):,}")
    if accelerator.is_main_process and isinstance(splits.train, Scenes):
        for doubt in draw_doubts(splits.train):
            log.warning("%s; %s", doubt.text, doubt.fix)
    sizes = {"training": splits.train, "validation": splits.val, "test": splits.test}
    log.info("data: %s samples", ", ".join(f"{len(part)} {name}" for name, part in sizes.items() if part is not None))
    return Trainer(config, model, splits, folder, accelerator, hooks)


def _fit(trainer: Trainer) -> Path:
    """Trains to the end and writes the run's report."""
    accelerator, folder, history = trainer.accelerator, trainer.folder, trainer.progress.history
    handler = log_to_file(folder / LOG_FILE) if accelerator.is_main_process else None
    try:
        log.info("run folder: %s", folder)
        started = time.perf_counter()
        with ops.unchecked():  # the data sets were checked when they were read
            trainer.fit()
        report: dict[str, Any] = _test_best(trainer) if trainer.task.adapts else {}
        report |= {
            "seed": trainer.settings.seed,
            "epochs": len(history),
            "cached_views": trainer.settings.cached_views,
            "seconds": sum(record["seconds"] for record in history),
            "seconds_per_epoch": sum(record["seconds"] for record in history) / len(history),
            "seconds_this_session": time.perf_counter() - started,
            "peak_memory_mib": peak_memory_mib(accelerator.device),
            "hardware": hardware(accelerator.device),
            "versions": versions(),
        }
        if trainer.settings.early_stopping is not None:
            report["stopped_early"] = trainer.stopped_early
        if not trainer.task.adapts:
            measured = [key for key in history[-1] if key not in ("epoch", "lr", "train_loss", "seconds")]
            report |= {key: history[-1][key] for key in measured}
            log.info("weights: %s (%.2f MB)", *_size(folder / WEIGHTS_FILE))
        if accelerator.is_main_process:
            write_json(folder / METRICS_FILE, report)
    finally:
        if handler is not None:
            logging.getLogger("pointadapterx").removeHandler(handler)
            handler.close()
    return folder


def _test_best(trainer: Trainer) -> dict[str, Any]:
    """Evaluates the chosen adapter on the test set."""
    accelerator, folder, config, test = trainer.accelerator, trainer.folder, trainer.config, trainer.splits.test
    assert test is not None
    info = _fit_facts(trainer, load_adapter(trainer.plain_model, folder / ADAPTER_FILE))
    report = evaluate_and_write(
        trainer.plain_model, test, info.task, config, accelerator, folder, trainer.protocol_words
    )
    if trainer.selection is not None:
        report[f"{trainer.selection_name}_{trainer.task.select}"] = trainer.best
    report |= {
        "best_epoch": trainer.progress.best_epoch + 1,
        "adapter_bytes": (folder / ADAPTER_FILE).stat().st_size,
    }
    kept = f"{'best' if chooses(config) else 'last'} epoch {report['best_epoch']} kept"
    log.info("%s; adapter: %s (%.2f MB)", kept, *_size(folder / ADAPTER_FILE))
    return report


def _fit_facts(trainer: Trainer, info: AdapterInfo) -> AdapterInfo:
    """Has the task fit what it can to the kept adapter's answers, and adds that to the adapter's file.

    Without a part that is used neither for training nor for testing, nothing is fitted and the file is unchanged.
    """
    val, task, accelerator = trainer.splits.val, trainer.task, trainer.accelerator
    if val is None:
        return info
    fitted = task.fit(
        lambda part: evaluate_hidden(trainer.plain_model, part, task, accelerator), trainer.splits.train, val
    )
    if fitted == info.facts:
        return info
    task.facts = fitted
    if accelerator.is_main_process:
        save_adapter(trainer.plain_model, info.path, config=info.config, facts=fitted, metrics=info.metrics)
    accelerator.wait_for_everyone()
    return info._replace(facts=fitted)


def _size(path: Path) -> tuple[Path, float]:
    return path, path.stat().st_size / 1e6
