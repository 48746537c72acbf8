"""Training: set-up, epochs, clean-up."""

from __future__ import annotations

import logging
import math
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from pointadapterx.build import Splits
from pointadapterx.datasets import (
    PointClouds,
    augment_label,
    build_augment,
    derive_seed,
    even_batches,
    resample_train,
)
from pointadapterx.engine.checkpoint import save_adapter
from pointadapterx.engine.console import progress_bar
from pointadapterx.engine.evaluator import evaluate
from pointadapterx.engine.metrics import compute_metrics
from pointadapterx.engine.optim import build_optimizer, learning_rate
from pointadapterx.engine.state import Progress, load_state, save_state
from pointadapterx.errors import Interrupted, TrainingError
from pointadapterx.files import write_json
from pointadapterx.models.adapted import AdaptedModel

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

STATE_FILE = "state.safetensors"
ADAPTER_FILE = "adapter.safetensors"
HISTORY_FILE = "history.json"


class Trainer:
    """Fits the trainable part of a model and keeps the best adapter by the selection metric.

    Args:
        config: complete config.
        model: built and frozen, on the CPU.
        splits: data; selection uses ``val``, or ``test`` under ``protocol: published``.
        folder: run folder, which receives state, best adapter, history and TensorBoard events.
        accelerator: device, precision, processes.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        model: AdaptedModel,
        splits: Splits,
        folder: Path,
        accelerator: Accelerator,
    ) -> None:
        self.config = config
        self.settings = config["train"]
        self.accelerator = accelerator
        self.splits = splits
        self.selection: PointClouds = splits.val if splits.val is not None else splits.test
        self.folder = folder
        self.augment = build_augment(config["data"]["augment"])
        self.model = model
        optimizer = build_optimizer(model, self.settings)
        self.wrapped: nn.Module
        self.wrapped, self.optimizer = accelerator.prepare(model, optimizer)
        even_batches(len(splits.train), **self._batching(0))  # an impossible cut is found before anything is written
        self.progress = Progress(
            identity={
                "processes": str(accelerator.num_processes),
                "backbone": model.backbone_hash,
                "train": splits.train.checksum,
                "selection": self.selection.checksum,
                "test": splits.test.checksum,
            }
        )

    def resume(self) -> None:
        """Continues from the folder's state.

        Raises:
            CheckpointError: if there is none, or data or backbone are not those of the run.
        """
        path = self.folder / STATE_FILE
        self.progress = load_state(
            path, self.model, self._plain_optimizer, self.progress.identity, self.accelerator.scaler
        )
        if self.accelerator.is_main_process:
            for leftover in self.folder.glob(".*.tmp"):  # of a save that was killed
                leftover.unlink(missing_ok=True)
        log.info("resuming at epoch %d, step %d", self.progress.epoch + 1, self.progress.step)

    def fit(self) -> None:
        """Trains to the last epoch.

        Raises:
            Interrupted: after saving the state, when a signal asked to stop.
            TrainingError: at the first non-finite loss, before the weights are touched.
        """
        progress = self.progress
        if progress.epoch == 0 and progress.step == 0:
            self._save_state()
        with _stop_requests() as requests, self._tensorboard() as board:
            while progress.epoch < self.settings["epochs"]:
                self._train_epoch(requests)
                record = self._finish_epoch()
                if board is not None:
                    _to_tensorboard(board, record)
                stop = self._agreed(requests)
                if stop:
                    self._save_state()
                    raise Interrupted(stop, self.folder)

    def _train_epoch(self, requests: list[int]) -> None:
        """The steps of one epoch from ``progress.step`` on; every draw is a function of (seed, epoch, step)."""
        progress, settings, accelerator = self.progress, self.settings, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(progress.epoch, settings)
        self.wrapped.train()
        steps = even_batches(len(self.splits.train), **self._batching(progress.epoch))
        title = f"epoch {progress.epoch + 1}/{settings['epochs']}"
        with progress_bar(title, len(steps), progress.step, accelerator.is_main_process) as advance:
            for step in range(progress.step, len(steps)):
                started = time.perf_counter()
                size = len(self.splits.train) // len(steps) + (step < len(self.splits.train) % len(steps))
                loss_sum, correct, seen = self._train_step(step, steps[step], size)
                progress.loss_sum += loss_sum
                progress.correct += correct
                progress.seen += seen
                progress.step = step + 1
                progress.seconds += time.perf_counter() - started
                advance()
                stop = self._agreed(requests)
                if stop:
                    self._save_state()
                    raise Interrupted(stop, self.folder)

    def _train_step(self, step: int, parts: list[Tensor], size: int) -> tuple[float, int, int]:
        """One optimiser step.

        Args:
            step: number of the step in its epoch.
            parts: this process's micro-batches, (b,) int64 indices each.
            size: samples of the whole step, over all processes.

        Returns:
            Sum of the task loss, correct predictions and samples over all processes.
        """
        accelerator, device, settings = self.accelerator, self.accelerator.device, self.settings
        world, epoch = accelerator.num_processes, self.progress.epoch
        count, skip_origin = self.config["data"]["num_points"], self.config["backbone"]["skip_origin"]
        totals = torch.zeros(4, dtype=torch.float64)  # task loss, correct, samples, micro-batches that are not finite
        broken: list[Tensor] = []
        self.optimizer.zero_grad(set_to_none=True)
        for number, part in enumerate(parts):
            # The draws of a shard are the same whether it is a process's or an accumulated one.
            shard = accelerator.process_index * len(parts) + number
            torch.manual_seed(derive_seed(settings["seed"], "dropout", epoch, step, shard))
            seed = derive_seed(settings["seed"], "augment", epoch, step, shard)
            generator = torch.Generator(device).manual_seed(seed)
            points = self.splits.train.points[part].to(device)
            labels = self.splits.train.labels[part].to(device)
            points = self.augment(resample_train(points, count, generator, skip_origin=skip_origin), generator)
            last = number == len(parts) - 1
            with nullcontext() if last else accelerator.no_sync(self.wrapped):
                logits, auxiliary = self.wrapped(points)
                task = F.cross_entropy(logits.float(), labels, label_smoothing=settings["label_smoothing"])
                loss = task if auxiliary is None else task + auxiliary
                # Mean over the whole step, though parts may differ by one sample; DDP averages over processes.
                accelerator.backward(loss * (len(part) * world / size))
            found = torch.stack(
                [task.detach(), (logits.argmax(dim=-1) == labels).sum(), ~torch.isfinite(loss.detach())]
            )
            values = found.double().cpu() if device.type != "mps" else found.cpu().double()  # MPS has no float64
            totals += torch.stack([values[0] * len(part), values[1], torch.tensor(len(part)).double(), values[2]])
            if values[2]:
                broken.append(part)
        if world > 1:
            totals = accelerator.reduce(totals.to(device)).cpu()
        if totals[3]:
            self._refuse_step(step, "loss", broken)
        limit = settings["clip_grad"] if settings["clip_grad"] is not None else float("inf")
        norm = accelerator.clip_grad_norm_(self.wrapped.parameters(), limit)
        # Under fp16 the gradient scaler skips such a step and lowers its scale.
        if settings["precision"] != "fp16" and norm is not None and not bool(torch.isfinite(norm)):
            self._refuse_step(step, "gradient", parts)
        self.optimizer.step()
        loss_sum, correct, seen, _ = totals.tolist()
        return loss_sum, int(correct), int(seen)

    def _refuse_step(self, step: int, what: str, parts: list[Tensor]) -> None:
        data = self.splits.train
        chosen = torch.cat(parts).sort().values if parts else torch.empty(0, dtype=torch.int64)
        where = (
            f"samples {data.positions[chosen].tolist()} of the training file" if parts else "another process's samples"
        )
        raise TrainingError(
            f"the {what} of epoch {self.progress.epoch + 1}, step {step + 1} is not finite: {where}. The weights were "
            "not updated. Lower train.lr or train.clip_grad, or use train.precision=fp32"
        )

    def _batching(self, epoch: int) -> dict[str, Any]:
        """Arguments of :func:`even_batches` after the number of samples."""
        return {
            "batch_size": self.settings["batch_size"],
            "seed": self.settings["seed"],
            "epoch": epoch,
            "rank": self.accelerator.process_index,
            "world_size": self.accelerator.num_processes,
            "accumulate": self.settings["accumulate"],
        }

    def _agreed(self, requests: list[int]) -> int:
        """The signal to stop for, the same on every process, or 0."""
        if self.accelerator.num_processes == 1:
            return max(requests, default=0)
        received = torch.tensor([float(bool(requests))], device=self.accelerator.device)
        return int(signal.SIGTERM) if float(self.accelerator.reduce(received)) > 0 else 0

    def _finish_epoch(self) -> dict[str, Any]:
        """Selects, records, saves, and moves on to the next epoch."""
        progress, config = self.progress, self.config
        record: dict[str, Any] = {
            "epoch": progress.epoch + 1,
            "lr": learning_rate(progress.epoch, self.settings),
            "train_loss": progress.loss_sum / progress.seen,
            "train_accuracy": 100.0 * progress.correct / progress.seen,
            "seconds": progress.seconds,
            "protocol": protocol_label(config["eval"]["protocol"]),
        }
        if self.accelerator.num_processes > 1:
            # DDP copies buffers before a forward only, so the last step left each process its own BatchNorm statistics.
            for buffer in self.model.buffers():
                broadcast(buffer, from_process=0)
        last = progress.epoch + 1 == self.settings["epochs"]
        if last or (progress.epoch + 1) % config["eval"]["every"] == 0:
            predictions = evaluate(self.model, self.selection, config, self.accelerator)
            metrics = compute_metrics(predictions, self.selection.classes)
            for key in ("overall_accuracy", "mean_class_accuracy"):
                record[f"{self.selection_name}_{key}"] = metrics[key]
            score = metrics[config["eval"]["select"]]
            if score > progress.best_score:
                progress.best_score, progress.best_epoch = score, progress.epoch
                self._save_best(metrics)
        progress.history.append(record)
        self._log(record)
        progress.epoch, progress.step, progress.seconds = progress.epoch + 1, 0, 0.0
        progress.loss_sum, progress.correct, progress.seen = 0.0, 0, 0
        if last or progress.epoch % self.settings["save_every"] == 0:
            self._save_state()
        return record

    @property
    def selection_name(self) -> str:
        """``"val"``, or ``"test"`` under the published protocol."""
        return "val" if self.splits.val is not None else "test"

    @property
    def _plain_optimizer(self) -> torch.optim.Optimizer:
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def _save_best(self, metrics: Mapping[str, Any]) -> None:
        if self.accelerator.is_main_process:
            protocol = self.config["eval"]["protocol"]
            regime = augment_label(self.config["data"]["augment"])
            story = {
                "protocol": protocol_label(protocol),
                "regime": regime,
                "epoch": self.progress.epoch + 1,
                self.selection_name: dict(metrics),
            }
            save_adapter(
                self.model,
                self.folder / ADAPTER_FILE,
                config=self.config,
                classes=self.selection.classes,
                metrics=story,
            )

    def _save_state(self) -> None:
        if self.accelerator.is_main_process:
            path = self.folder / STATE_FILE
            save_state(path, self.model, self._plain_optimizer, self.progress, self.accelerator.scaler)
            write_json(self.folder / HISTORY_FILE, self.progress.history)
        self.accelerator.wait_for_everyone()

    def _log(self, record: Mapping[str, Any]) -> None:
        name = self.selection_name
        line = (
            f"epoch {record['epoch']}/{self.settings['epochs']}  lr {record['lr']:.2e}"
            f"  loss {record['train_loss']:.4f}  train OA {record['train_accuracy']:.2f}"
        )
        if f"{name}_overall_accuracy" in record:
            line += (
                f"  {name} OA {record[f'{name}_overall_accuracy']:.2f}"
                f" mAcc {record[f'{name}_mean_class_accuracy']:.2f}"
                f"{' (selects on TEST)' if name == 'test' else ''}"
                f"  best {self.progress.best_score:.2f} (epoch {self.progress.best_epoch + 1})"
            )
        log.info("%s  %.1f s", line, record["seconds"])

    @contextmanager
    def _tensorboard(self) -> Iterator[SummaryWriter | None]:
        if not self.accelerator.is_main_process:
            yield None
            return
        # Events of epochs that are trained again after a kill are hidden.
        with SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.progress.epoch + 1) as board:
            yield board


def protocol_label(protocol: str) -> str:
    """How the best epoch was chosen, in words that stand beside every figure."""
    if protocol == "published":
        return "published: best epoch selected on the TEST set, optimistic"
    return "validation: best epoch selected on a part of the training set, test set used once"


def peak_memory_mib(device: torch.device) -> float | None:
    """Peak memory of this process in MiB: allocated on a CUDA device, resident otherwise (not known on Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, KiB elsewhere


def _to_tensorboard(board: SummaryWriter, record: Mapping[str, Any]) -> None:
    for key, value in record.items():
        if key == "protocol":
            board.add_text(key, value, record["epoch"])
        elif key != "epoch" and math.isfinite(value):
            board.add_scalar(key, value, record["epoch"])
    board.flush()


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying; a second ctrl-C is not waited for."""
    received: list[int] = []

    def request(number: int, frame: FrameType | None) -> None:
        if number in received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        log.warning("%s: finishing this step, then saving", signal.Signals(number).name)

    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
