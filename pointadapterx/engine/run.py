"""Whole jobs: train, resume, test, vote. Each leaves a folder that tells its own story."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, broadcast_object_list
from rich.table import Table

from pointadapterx import ops
from pointadapterx.build import build_model, build_split, build_splits
from pointadapterx.config import check_config, dump_config, load_config
from pointadapterx.datasets import PointClouds, augment_label
from pointadapterx.engine.checkpoint import load_adapter, read_adapter, versions
from pointadapterx.engine.console import console, log_to_file
from pointadapterx.engine.evaluator import evaluate, vote_over_seeds
from pointadapterx.engine.metrics import compute_metrics, metrics_table, write_predictions
from pointadapterx.engine.trainer import ADAPTER_FILE, STATE_FILE, Trainer, peak_memory_mib, protocol_label
from pointadapterx.errors import CheckpointError, ConfigError, PointAdapterXError
from pointadapterx.files import write_json, write_text
from pointadapterx.models.adapted import AdaptedModel, count_parameters

log = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.json"
PREDICTIONS_FILE = "predictions.csv"
PUBLISHED_VOTES = 299  # the number of test-set votes whose maximum the published tables print


def make_accelerator(precision: str) -> Accelerator:
    """Device, processes and precision: one process, ``torchrun`` or ``accelerate launch``, GPU or CPU (gloo).

    Raises:
        ConfigError: for fp16 without a CUDA device.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError("train.precision=fp16 needs a CUDA device; use bf16 or fp32 on this machine")
    # A head that pools no prompts leaves the last prompt generator without a gradient.
    ddp = DistributedDataParallelKwargs(find_unused_parameters=True)
    # accelerate ignores torchrun's processes where there is no CUDA device, unless it is told to use the CPU.
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    # Building a data set's cache in the main process may take longer than the default ten minutes.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=2))
    return Accelerator(
        cpu=several and not torch.cuda.is_available(),
        mixed_precision="no" if precision == "fp32" else precision,
        kwargs_handlers=[ddp, patience],
    )


def train(config: Mapping[str, Any], name: str, output: Path | None, accelerator: Accelerator) -> Path:
    """Trains, tests the best adapter once, and returns the run's folder.

    Args:
        config: complete config.
        name: of the config, for the default folder ``runs/<name>/<time>``.
        output: run folder; must not hold a run yet.
        accelerator: from :func:`make_accelerator`.

    Raises:
        PointAdapterXError: for wrong data, weights, or a folder that is taken.
    """
    folder = _agree(output or Path("runs") / name / time.strftime("%Y%m%d-%H%M%S"))
    if (folder / CONFIG_FILE).exists():
        raise PointAdapterXError(
            f"{folder}: already holds a run; continue it with --resume {folder}, or choose another --output"
        )
    trainer = _trainer(config, folder, accelerator)
    if accelerator.is_main_process:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PointAdapterXError(
                f"{folder}: cannot be created ({error.strerror}); choose another --output"
            ) from None
        write_text(folder / CONFIG_FILE, dump_config(config))
    accelerator.wait_for_everyone()
    return _fit_and_test(trainer)


def resume(folder: Path, overrides: list[str]) -> Path:
    """Continues a run from its folder and finishes it.

    Args:
        folder: the run's folder (or a file in it).
        overrides: only where files lie may change: ``data.root``, ``data.cache_dir``, ``backbone.weights``.

    Returns:
        The folder.

    Raises:
        CheckpointError: if there is no state to continue from.
        ConfigError: for an override that would make it another run.
    """
    folder = folder.parent if folder.is_file() else folder
    for text in overrides:
        if text.partition("=")[0] not in ("data.root", "data.cache_dir", "backbone.weights"):
            raise ConfigError(
                f"{text}: a resumed run keeps its config (only data.root, data.cache_dir and backbone.weights may "
                "change); start a new run instead"
            )
    if not (folder / STATE_FILE).is_file() or not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(f"{folder}: holds no run to resume ({CONFIG_FILE} and {STATE_FILE} are needed)")
    config = load_config(folder / CONFIG_FILE, overrides)
    accelerator = make_accelerator(config["train"]["precision"])
    trainer = _trainer(config, folder, accelerator)
    trainer.resume()
    if trainer.progress.best_epoch >= 0 and not (folder / ADAPTER_FILE).is_file():
        raise CheckpointError(
            f"{folder}: {ADAPTER_FILE}, the best epoch's adapter, is gone and cannot be made again from the state; "
            "restore it, or start a new run"
        )
    if (folder / METRICS_FILE).is_file() and trainer.progress.epoch >= config["train"]["epochs"]:
        log.info("%s: the run is finished, see %s", folder, METRICS_FILE)
        return folder
    return _fit_and_test(trainer)


def test(
    adapter: Path, overrides: list[str], copies: int | None, published: bool, output: Path | None
) -> dict[str, Any]:
    """Tests an adapter, and votes if asked.

    Args:
        adapter: adapter file, or a run's folder.
        overrides: of the adapter's stored config, as long as they leave the model what it is: ``data.…``,
            ``eval.…``, ``backbone.weights``, ``train.precision``.
        copies: K copies per vote, or None for no vote.
        published: votes as the published figures do: maximum of 299 votes.
        output: folder for ``test.json`` and predictions; default: ``test-<time>`` beside the adapter.

    Returns:
        The metrics that were written.

    Raises:
        ConfigError: for an override that would make it another model.
        CheckpointError: if the adapter does not fit backbone or data.
    """
    for text in overrides:
        if not text.startswith(("data.", "eval.", "backbone.weights=", "train.precision=")):
            raise ConfigError(
                f"{text}: a test keeps the adapter's model (data.*, eval.*, backbone.weights and train.precision may "
                "change); train another adapter instead"
            )
    info = read_adapter(adapter / ADAPTER_FILE if adapter.is_dir() else adapter)
    config = check_config(info.config, str(info.path), overrides)
    accelerator = make_accelerator(config["train"]["precision"])
    with accelerator.main_process_first():
        dataset = build_split(config, "test")
    if info.classes != dataset.classes:
        raise CheckpointError(
            f"{info.path}: was trained on other classes ({', '.join(info.classes[:3])}, …) than the data has "
            f"({', '.join(dataset.classes[:3])}, …)"
        )
    model = build_model(config)
    load_adapter(model, info)
    model.to(accelerator.device)
    _log_setup(config, model, accelerator)
    folder = _agree(output or info.path.parent / f"test-{time.strftime('%Y%m%d-%H%M%S')}")
    report = _evaluate_and_write(model, dataset, config, accelerator, folder, "test", info.metrics.get("protocol"))
    report |= {"adapter": str(info.path), "config": config, "overrides": overrides}
    if copies is not None or published:
        seeds = list(range(PUBLISHED_VOTES)) if published else config["eval"]["vote"]["seeds"]
        votes, first = vote_over_seeds(
            model,
            dataset,
            config,
            accelerator,
            copies=copies or config["eval"]["vote"]["copies"],
            seeds=seeds,
            published=published,
        )
        report["vote"] = votes | {"first_vote": compute_metrics(first, dataset.classes)}
        if accelerator.is_main_process:
            protocol = votes.get("label", info.metrics.get("protocol"))
            write_predictions(folder / f"vote_{PREDICTIONS_FILE}", first, dataset.classes, dataset.names, protocol)
            console.print(_vote_line(votes))
    if accelerator.is_main_process:
        write_json(folder / "test.json", report)
        log.info("written: %s", folder / "test.json")
    return report


def _trainer(config: Mapping[str, Any], folder: Path, accelerator: Accelerator) -> Trainer:
    with accelerator.main_process_first():  # which may have to build a cache that the others then read
        splits = build_splits(config)
    model = build_model(config)
    _log_setup(config, model, accelerator)
    val = f", {len(splits.val)} validation" if splits.val is not None else ""
    log.info("data: %d training%s, %d test clouds", len(splits.train), val, len(splits.test))
    return Trainer(config, model, splits, folder, accelerator)


def _fit_and_test(trainer: Trainer) -> Path:
    accelerator, folder, config = trainer.accelerator, trainer.folder, trainer.config
    handler = log_to_file(folder / "log.txt") if accelerator.is_main_process else None
    try:
        log.info("run folder: %s", folder)
        started = time.perf_counter()
        with ops.unchecked():  # the data sets were checked when they were read
            trainer.fit()
        seconds = time.perf_counter() - started
        load_adapter(trainer.model, folder / ADAPTER_FILE)
        protocol = protocol_label(config["eval"]["protocol"])
        test_set = trainer.splits.test
        report = _evaluate_and_write(trainer.model, test_set, config, accelerator, folder, "test", protocol)
        history = trainer.progress.history
        report |= {
            "best_epoch": trainer.progress.best_epoch + 1,
            f"{trainer.selection_name}_{config['eval']['select']}": trainer.progress.best_score,
            "seed": config["train"]["seed"],
            "seconds_per_epoch": sum(record["seconds"] for record in history) / len(history),
            "seconds_this_session": seconds,
            "peak_memory_mib": peak_memory_mib(accelerator.device),
            "adapter_bytes": (folder / ADAPTER_FILE).stat().st_size,
        }
        if accelerator.is_main_process:
            write_json(folder / METRICS_FILE, report)
            log.info(
                "best epoch %d; adapter: %s (%.2f MB)",
                report["best_epoch"],
                folder / ADAPTER_FILE,
                report["adapter_bytes"] / 1e6,
            )
    finally:
        if handler is not None:
            logging.getLogger("pointadapterx").removeHandler(handler)
            handler.close()
    return folder


def _evaluate_and_write(
    model: AdaptedModel,
    dataset: PointClouds,
    config: Mapping[str, Any],
    accelerator: Accelerator,
    folder: Path,
    split: str,
    protocol: str | None,
) -> dict[str, Any]:
    predictions = evaluate(model, dataset, config, accelerator)
    metrics = compute_metrics(predictions, dataset.classes)
    data, parameters = config["data"], count_parameters(model)
    report = {
        "protocol": protocol,
        "regime": augment_label(data["augment"]),
        "data": {
            "name": data["name"],
            "variant": data["variant"],
            "split": split,
            "checksum": dataset.checksum,
        },
        "method": config["method"]["name"],
        "parameters": parameters._asdict(),
        "versions": versions(),
        "ops": ops.implementation(accelerator.device),
        split: metrics,
    }
    if accelerator.is_main_process:
        what = " ".join(filter(None, (data["name"], data["variant"])))
        title = f"{config['method']['name']} on {what}, {split} set\nprotocol {protocol}\nregime {report['regime']}"
        console.print(metrics_table(metrics, title))
        write_predictions(folder / PREDICTIONS_FILE, predictions, dataset.classes, dataset.names, protocol)
    return report


def _log_setup(config: Mapping[str, Any], model: AdaptedModel, accelerator: Accelerator) -> None:
    if not accelerator.is_main_process:
        return
    log.info(
        "device %s, %d process(es), precision %s, point ops: %s",
        accelerator.device,
        accelerator.num_processes,
        config["train"]["precision"],
        ops.implementation(accelerator.device),
    )
    _print_parameters(config, model)


def count(config: Mapping[str, Any]) -> None:
    """Prints the parameters of a config's model by component; needs no data and no weights."""
    _print_parameters(config, build_model({**config, "backbone": {**config["backbone"], "weights": None}}))


def _print_parameters(config: Mapping[str, Any], model: AdaptedModel) -> None:
    report = count_parameters(model)
    table = Table(title=f"parameters of {config['method']['name']}", title_justify="left")
    for column in ("part", "trainable", "total"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for name, part in report.components.items():
        table.add_row(name, f"{part.trainable:,}", f"{part.total:,}")
    table.add_section()
    table.add_row("all", f"{report.trainable:,}", f"{report.total:,}")
    table.add_row("without head", f"{report.trainable_without_head:,}", "")
    table.add_row("of full fine-tuning", f"{report.percent:.2f} %", f"{report.full:,}")
    console.print(table)


def _vote_line(votes: Mapping[str, Any]) -> str:
    entry = votes["overall_accuracy"]
    spread = f" ± {entry['std']:.2f} over {len(votes['seeds'])} vote seeds" if entry["std"] is not None else ""
    line = f"vote of {votes['copies']} copies: OA {entry['mean']:.2f}{spread}"
    if "published_maximum" in entry:
        line += f"; {votes['label']}: {entry['published_maximum']:.2f}"
    return line


def _agree(folder: Path) -> Path:
    """The main process's folder, on every process (their clocks may differ by a second)."""
    holder = [str(folder)]
    broadcast_object_list(holder)
    return Path(holder[0])
