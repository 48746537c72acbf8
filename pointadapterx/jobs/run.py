"""Whole jobs: train, resume, test, vote. Each leaves a folder that tells its own story."""

from __future__ import annotations

import gc
import logging
import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, broadcast_object_list
from rich.table import Table

from pointadapterx import ops
from pointadapterx.adapted_model import AdaptedModel, ParameterCount, ParameterReport, count_parameters
from pointadapterx.build import (
    build_autoencoder,
    build_backbone,
    build_model,
    build_pretraining_data,
    build_probe_data,
    build_splits,
    build_test_split,
)
from pointadapterx.checkpoints.adapter_file import (
    METRICS_FILE,
    AdapterInfo,
    build_restored,
    load_adapter,
    model_config,
    read_adapter,
    save_adapter,
    versions,
)
from pointadapterx.config import LOCATIONS, dump_config, load_config, without_locations
from pointadapterx.counting import count_model
from pointadapterx.datasets import Samples
from pointadapterx.datasets.inputs import regime
from pointadapterx.engine.claim import claimed, refuse_if_claimed
from pointadapterx.engine.console import console, log_to_file
from pointadapterx.engine.evaluator import evaluate, evaluate_hidden, vote_over_seeds
from pointadapterx.engine.metrics import compute_metrics, metrics_table, write_predictions
from pointadapterx.engine.precision import multiplies_bf16, precision_of
from pointadapterx.engine.state import STATE_FILE
from pointadapterx.engine.trainer import Trainer, hardware, peak_memory_mib
from pointadapterx.errors import CheckpointError, ConfigError, PointAdapterXError
from pointadapterx.files import require_utf8, write_json, write_text
from pointadapterx.hub import HUB, Address
from pointadapterx.jobs.adaptation import ADAPTER_FILE, AdaptationTrainer, chooses
from pointadapterx.jobs.pretraining import WEIGHTS_FILE, PretrainingTrainer
from pointadapterx.jobs.probe import calibrate_batch_norm, probe_accuracy
from pointadapterx.models.point_mae import PointMAE
from pointadapterx.tasks.calibration import fit_temperature, summary
from pointadapterx.tasks.novelty import Novelty

log = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
PREDICTIONS_FILE = "predictions.csv"
PROBE_SEEDS = (0, 1, 2)  # initialisations of the random backbones
ANOTHER_OUTPUT = "choose another --output"
PUBLISHED_VOTES = 299  # the number of test-set votes whose maximum the published tables print


def make_accelerator(precision: str) -> Accelerator:
    """Device, processes and precision: one process, ``torchrun`` or ``accelerate launch``, GPU or CPU (gloo).

    One at a time: a process that makes another with another precision no longer uses the first.

    Args:
        precision: ``train.precision``; ``auto`` is bf16 where the hardware multiplies it, else fp32.

    Raises:
        ConfigError: for fp16 without a CUDA device.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise ConfigError("train.precision=fp16 needs a CUDA device; use bf16 or fp32 on this machine")
    if precision == "auto":
        precision = "bf16" if multiplies_bf16() else "fp32"
    # A head that pools no prompts leaves the last prompt generator without a gradient.
    ddp = DistributedDataParallelKwargs(find_unused_parameters=True)
    # accelerate ignores torchrun's processes where there is no CUDA device, unless it is told to use the CPU.
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several:
        # DistributedDataParallel imports it indirectly (torch 2.13). Its functions have the default group, as it is
        # then, as default arguments: imported later, it would keep the group and its threads to the end of the process.
        with suppress(ImportError):
            from torch.distributed.nn import functional  # noqa: F401
    # Building a data set's cache in the main process may take longer than the default ten minutes.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=2))
    mixed_precision = "no" if precision == "fp32" else precision
    # There is one state a process, which refuses another precision; a notebook's next run may have one.
    if is_initialized() and AcceleratorState().mixed_precision != mixed_precision:
        AcceleratorState._reset_state()
    return Accelerator(
        cpu=several and not torch.cuda.is_available(),
        mixed_precision=mixed_precision,
        kwargs_handlers=[ddp, patience],
    )


def leave_process_group() -> None:
    """Ends the group of :func:`make_accelerator`, if any, and its threads; a process that exits with them may abort.

    They run as long as anything refers to the group, as an accelerator and a trainer do; let go of these before.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()


def train(config: Mapping[str, Any], name: str, output: Path | None, accelerator: Accelerator) -> Path:
    """Adapts and tests the best adapter once, or pre-trains where the config says so; returns the run's folder.

    Args:
        config: complete config.
        name: of the config, for the default folder ``runs/<name>/<time>``.
        output: run folder; must not hold a run yet.
        accelerator: from :func:`make_accelerator`.

    Raises:
        PointAdapterXError: for wrong data, weights, or a folder that is taken.
        InUseError: if another process is training into it.
    """
    folder = _agree(output or Path("runs") / name / time.strftime("%Y%m%d-%H%M%S"))
    require_utf8(folder)
    refuse_if_claimed(folder, ANOTHER_OUTPUT)
    _require_no_run(folder)
    # What is stored names the precision, so a run is resumed and tested as it was trained, whatever the machine.
    config = {**config, "train": {**config["train"], "precision": precision_of(accelerator)}}
    trainer = _trainer(config, folder, accelerator)
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
        overrides: only where files lie may change (:data:`~pointadapterx.config.LOCATIONS`).

    Returns:
        The folder.

    Raises:
        CheckpointError: if there is no state to continue from.
        ConfigError: for an override that would make it another run.
        InUseError: if the run is still running.
    """
    folder = folder.parent if folder.is_file() else folder
    for text in overrides:
        if text.partition("=")[0] not in LOCATIONS:
            raise ConfigError(
                f"{text}: a resumed run keeps its config (only {', '.join(LOCATIONS)} may change); start a new run "
                "instead"
            )
    if not (folder / STATE_FILE).is_file() or not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(f"{folder}: holds no run to resume ({CONFIG_FILE} and {STATE_FILE} are needed)")
    require_utf8(folder)
    config = load_config(folder / CONFIG_FILE, overrides)
    accelerator = make_accelerator(config["train"]["precision"])
    with claimed(folder, accelerator, "wait for it, or stop it first"):
        return _continue(config, folder, accelerator)


def _continue(config: Mapping[str, Any], folder: Path, accelerator: Accelerator) -> Path:
    trainer = _trainer(config, folder, accelerator)
    trainer.resume()
    adapts = isinstance(trainer, AdaptationTrainer)
    if adapts and trainer.progress.best_epoch >= 0 and not (folder / ADAPTER_FILE).is_file():
        raise CheckpointError(
            f"{folder}: {ADAPTER_FILE}, the kept epoch's adapter, is gone and cannot be made again from the state; "
            "restore it, or start a new run"
        )
    if not adapts and trainer.progress.epoch >= config["train"]["epochs"] and not (folder / WEIGHTS_FILE).is_file():
        raise CheckpointError(f"{folder}: {WEIGHTS_FILE} of the finished run is gone; restore it, or start a new run")
    if (folder / METRICS_FILE).is_file() and trainer.progress.epoch >= config["train"]["epochs"]:
        log.info("%s: the run is finished, see %s", folder, METRICS_FILE)
        return folder
    return _fit(trainer)


def test(
    adapter: str | Path, overrides: list[str], copies: int | None, published: bool, output: Path | None
) -> dict[str, Any]:
    """Tests an adapter, and votes if asked.

    Args:
        adapter: what :func:`~pointadapterx.checkpoints.adapter_file.read_adapter` takes. For one of the hub,
            ``data.root`` and ``data.cache_dir`` are null unless an override sets them.
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
        InUseError: if another process is writing into the folder.
    """
    for text in overrides:
        if not text.startswith(("data.", "eval.", "backbone.weights=", "train.precision=")):
            raise ConfigError(
                f"{text}: a test keeps the adapter's model (data.*, eval.*, backbone.weights and train.precision may "
                "change); train another adapter instead"
            )
    info = read_adapter(adapter)
    on_hub = str(adapter).startswith(HUB)  # its file lies in the hub's cache
    if on_hub:  # where the data of whoever trained it lay says nothing here
        info = info._replace(config=without_locations(info.config, ("data.root", "data.cache_dir")))
    config = model_config(info, overrides)
    accelerator = make_accelerator(config["train"]["precision"])
    config["train"]["precision"] = precision_of(accelerator)
    with accelerator.main_process_first():
        dataset = build_test_split(config)
    if info.classes != dataset.classes:
        raise CheckpointError(
            f"{info.path}: was trained on other classes ({', '.join(info.classes[:3])}, …) than the data has "
            f"({', '.join(dataset.classes[:3])}, …)"
        )
    model = build_restored(info, config)
    model.to(accelerator.device)
    _log_device(accelerator)
    if accelerator.is_main_process:
        console.print(_parameter_table(config, count_parameters(model)))
    beside = Path("runs") / Address.parse(str(adapter)).name if on_hub else info.path.parent
    folder = _agree(output or beside / f"test-{time.strftime('%Y%m%d-%H%M%S')}")
    with claimed(folder, accelerator, ANOTHER_OUTPUT):
        report = _evaluate_and_write(model, dataset, config, accelerator, folder, info, info.metrics.get("protocol"))
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
                path = folder / f"vote_{PREDICTIONS_FILE}"
                write_predictions(path, first, dataset.classes, dataset.names, protocol, dataset.groups)
                console.print(_vote_line(votes))
        if accelerator.is_main_process:
            write_json(folder / "test.json", report)
            log.info("written: %s", folder / "test.json")
    return report


def _trainer(config: Mapping[str, Any], folder: Path, accelerator: Accelerator) -> Trainer:
    if "pretrain" in config:
        with accelerator.main_process_first():  # which may have to build a cache that the others then read
            data = build_pretraining_data(config)
        autoencoder = build_autoencoder(config)
        _log_device(accelerator)
        encoder, whole = (sum(p.numel() for p in part.parameters()) for part in (autoencoder.encoder, autoencoder))
        log.info("parameters: encoder %s, with decoder %s", f"{encoder:,}", f"{whole:,}")
        log.info("data: %d training, %d held-out clouds", len(data.train), len(data.val))
        return PretrainingTrainer(config, autoencoder, data, folder, accelerator)
    with accelerator.main_process_first():
        splits = build_splits(config)
    model = build_model(config)
    _log_device(accelerator)
    if accelerator.is_main_process:
        console.print(_parameter_table(config, count_parameters(model)))
    val = f", {len(splits.val)} validation" if splits.val is not None else ""
    log.info("data: %d training%s, %d test samples", len(splits.train), val, len(splits.test))
    return AdaptationTrainer(config, model, splits, folder, accelerator)


def _fit(trainer: Trainer) -> Path:
    """Trains to the end and writes the run's report."""
    accelerator, folder, history = trainer.accelerator, trainer.folder, trainer.progress.history
    handler = log_to_file(folder / "log.txt") if accelerator.is_main_process else None
    try:
        log.info("run folder: %s", folder)
        started = time.perf_counter()
        with ops.unchecked():  # the data sets were checked when they were read
            trainer.fit()
        report: dict[str, Any] = {}
        if isinstance(trainer, AdaptationTrainer):
            report = _test_best(trainer)
        report |= {
            "seed": trainer.settings["seed"],
            "epochs": len(history),
            "cached_views": trainer.settings["cached_views"],
            "seconds": sum(record["seconds"] for record in history),
            "seconds_per_epoch": sum(record["seconds"] for record in history) / len(history),
            "seconds_this_session": time.perf_counter() - started,
            "peak_memory_mib": peak_memory_mib(accelerator.device),
            "hardware": hardware(accelerator.device),
            "versions": versions(),
        }
        if isinstance(trainer, PretrainingTrainer):
            report |= {key: history[-1][key] for key in ("val_loss", "probe_accuracy") if key in history[-1]}
            log.info("weights: %s (%.2f MB)", *_size(folder / WEIGHTS_FILE))
        if accelerator.is_main_process:
            write_json(folder / METRICS_FILE, report)
    finally:
        if handler is not None:
            logging.getLogger("pointadapterx").removeHandler(handler)
            handler.close()
    return folder


def _test_best(trainer: AdaptationTrainer) -> dict[str, Any]:
    """The kept adapter on the test set."""
    accelerator, folder, config = trainer.accelerator, trainer.folder, trainer.config
    info = _calibrate(trainer, load_adapter(trainer.model, folder / ADAPTER_FILE))
    test = trainer.splits.test
    report = _evaluate_and_write(trainer.model, test, config, accelerator, folder, info, trainer.protocol_words)
    if trainer.selection is not None:
        report[f"{trainer.selection_name}_{config['eval']['select']}"] = trainer.progress.best_score
    report |= {
        "best_epoch": trainer.progress.best_epoch + 1,
        "adapter_bytes": (folder / ADAPTER_FILE).stat().st_size,
    }
    kept = f"{'best' if chooses(config) else 'last'} epoch {report['best_epoch']} kept"
    log.info("%s; adapter: %s (%.2f MB)", kept, *_size(folder / ADAPTER_FILE))
    return report


def _calibrate(trainer: AdaptationTrainer, info: AdapterInfo) -> AdapterInfo:
    """Fits temperature and novelty on the validation part, and adds them to the adapter's file.

    Without a part that neither trained nor tests there is nothing to fit on, and the file stays as it is.
    """
    val = trainer.splits.val
    if val is None:
        return info
    model, train, config, accelerator = trainer.model, trainer.splits.train, trainer.config, trainer.accelerator
    hidden, _ = evaluate_hidden(model, train, config, accelerator)
    val_hidden, logits = evaluate_hidden(model, val, config, accelerator)
    info = info._replace(
        calibration=fit_temperature(logits, val.labels),
        novelty=Novelty.fit(hidden, train.labels, val_hidden, logits),
    )
    if info.calibration is not None and info.calibration.reason:
        log.info("temperature 1: %s", info.calibration.reason)
    if accelerator.is_main_process:
        save_adapter(
            model,
            info.path,
            config=info.config,
            classes=info.classes,
            metrics=info.metrics,
            calibration=info.calibration,
            novelty=info.novelty,
        )
    accelerator.wait_for_everyone()
    return info


def _size(path: Path) -> tuple[Path, float]:
    return path, path.stat().st_size / 1e6


def probe(config: Mapping[str, Any], accelerator: Accelerator) -> dict[str, float]:
    """Linear-probe accuracy in % of a config's backbone weights and of random ones, printed as a table.

    Random weights are judged as they are initialised, and with BatchNorm's statistics taken from the training
    clouds; both are means over three initialisations.

    Args:
        config: of a pre-training job; ``backbone.weights`` names the weights.
        accelerator: from :func:`make_accelerator`.

    Returns:
        Accuracy by the name of the weights.

    Raises:
        ConfigError: for an adaptation config, or without weights to judge.
    """
    if "pretrain" not in config:
        raise ConfigError("a probe needs a pre-training config, for example cfgs/pretrain/point_mae_tiny.yaml")
    weights = config["backbone"]["weights"]
    if weights is None:
        raise ConfigError("backbone.weights is not set; add backbone.weights=FILE to the command")
    parts = build_probe_data(config)

    def judge(source: str | None, seed: int, calibrated: bool = False) -> float:
        backbone = build_backbone({**config["backbone"], "weights": source, "init_seed": seed})
        backbone.to(accelerator.device)
        if calibrated and isinstance(backbone, PointMAE):
            calibrate_batch_norm(backbone, parts[0], config)
        return probe_accuracy(backbone, *parts, config, accelerator)

    with ops.unchecked():
        of_weights = judge(weights, config["backbone"]["init_seed"])  # first: weights may not fit
        found = {
            "random": fmean(judge(None, seed) for seed in PROBE_SEEDS),
            "random, BatchNorm calibrated": fmean(judge(None, seed, calibrated=True) for seed in PROBE_SEEDS),
            str(weights): of_weights,
        }
    table = Table(
        title=f"linear SVM on frozen features of {config['pretrain']['probe']['name']}: {len(parts[0])} clouds to "
        f"train on, accuracy on {len(parts[1])} others of the training split",
        title_justify="left",
    )
    table.add_column("weights")
    table.add_column("accuracy %", justify="right")
    table.add_column("standard error", justify="right")
    for name, value in found.items():
        table.add_row(name, f"{value:.2f}", f"{math.sqrt(value * (100 - value) / len(parts[1])):.2f}")
    console.print(table)
    return found


def _evaluate_and_write(
    model: AdaptedModel,
    dataset: Samples,
    config: Mapping[str, Any],
    accelerator: Accelerator,
    folder: Path,
    info: AdapterInfo,
    protocol: str | None,
) -> dict[str, Any]:
    """Tests the model of an adapter on the test split."""
    predictions = evaluate(model, dataset, config, accelerator)
    metrics = compute_metrics(predictions, dataset.classes)
    data, parameters = config["data"], count_parameters(model)
    report = {
        "protocol": protocol,
        "regime": regime(data),
        "data": {
            "name": data["name"],
            "variant": data["variant"],
            "split": "test",
            "few_shot": data["few_shot"],
            "train_size": data["train_size"],
            "checksum": dataset.checksum,
        },
        "method": config["method"]["name"],
        "parameters": parameters._asdict(),
        "versions": versions(),
        "ops": ops.implementation(accelerator.device),
        "test": metrics,
    }
    if info.calibration is not None:
        report["calibration"] = summary(info.calibration, *predictions)
    if accelerator.is_main_process:
        what = " ".join(filter(None, (data["name"], data["variant"])))
        title = f"{config['method']['name']} on {what}, test set\nprotocol {protocol}\nregime {report['regime']}"
        console.print(metrics_table(metrics, title))
        path = folder / PREDICTIONS_FILE
        write_predictions(path, predictions, dataset.classes, dataset.names, protocol, dataset.groups)
    return report


def _log_device(accelerator: Accelerator) -> None:
    log.info(
        "device %s, %d process(es), precision %s, point ops: %s",
        accelerator.device,
        accelerator.num_processes,
        precision_of(accelerator),
        ops.implementation(accelerator.device),
    )


def count(config: Mapping[str, Any]) -> None:
    """Prints what a config's model costs, see :func:`~pointadapterx.counting.count_model`.

    Raises:
        ConfigError: for a pre-training config, which adapts nothing.
    """
    found = count_model(config)
    console.print(_parameter_table(config, found.parameters, found.parts))
    table = Table(title="a training step, per sample", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("multiply-adds, forward", _in_units(found.costs.forward))
    table.add_row("multiply-adds, backward", _in_units(found.costs.backward))
    table.add_row("activations kept, fp32", f"{found.costs.activation_bytes / 2**20:,.2f} MiB")
    console.print(table)


def _parameter_table(
    config: Mapping[str, Any],
    report: ParameterReport,
    parts: Mapping[str, Mapping[str, ParameterCount]] | None = None,
) -> Table:
    table = Table(title=f"parameters of {config['method']['name']}", title_justify="left")
    for column in ("part", "trainable", "total"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for name, component in report.components.items():
        table.add_row(name, f"{component.trainable:,}", f"{component.total:,}")
        for part, size in (parts or {}).get(name, {}).items():
            table.add_row(f"  {part}", f"{size.trainable:,}", f"{size.total:,}", style="dim")
    table.add_section()
    table.add_row("all, head included", f"{report.trainable:,}", f"{report.total:,}")
    table.add_row("  of full fine-tuning", f"{report.percent:.2f} %", f"{report.full:,}")
    backbone = report.components["backbone"].total
    table.add_row(
        "without head", f"{report.trainable_without_head:,}", f"{report.total - report.components['head'].total:,}"
    )
    table.add_row("  of the backbone", f"{report.percent_without_head:.2f} %", f"{backbone:,}")
    return table


def _in_units(count: int) -> str:
    """``4,571,234,567`` as ``4.57 G``."""
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count:,}"


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
