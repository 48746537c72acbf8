"""The training loop of every job: epochs, steps, signals, state. What is trained and why, the task says."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.build import Splits
from pointadapterx.config import Config
from pointadapterx.datasets import Samples, build_inputs, derive_seed, even_batches
from pointadapterx.datasets.inputs import Batches
from pointadapterx.engine.console import progress_bar
from pointadapterx.engine.devices import require_compiler
from pointadapterx.engine.evaluator import predict
from pointadapterx.engine.events import tensorboard_events
from pointadapterx.engine.features import StoredBatches, open_features
from pointadapterx.engine.health import routing_line, routing_record, starved_experts
from pointadapterx.engine.hooks import Hook, KeepAdapter
from pointadapterx.engine.optim import build_optimizer, learning_rate, refused_step, set_learning_rate
from pointadapterx.engine.protocol import chooses, keeps_last_tie, protocol_words, stops_early
from pointadapterx.engine.signals import agreed, stop_requests
from pointadapterx.engine.state import Progress, load_state, save_state
from pointadapterx.errors import Interrupted, TrainingError
from pointadapterx.files import write_json
from pointadapterx.models.block import recompute_activations
from pointadapterx.models.packing import packed
from pointadapterx.models.trainable import TrainableModel
from pointadapterx.run_folder import EVENTS_FOLDER, HISTORY_FILE, STATE_FILE
from pointadapterx.tasks import build_task
from pointadapterx.tasks.exchange import Predictions

log = logging.getLogger(__name__)


class Trainer:
    """Runs the steps of a job, saves and restores its state, and chooses the epoch to keep.

    Args:
        config: complete config.
        model: what is trained, on the CPU.
        splits: data. An adaptation selects on ``val``, or ``test`` under ``protocol: published``, or nothing under
            ``protocol: last``.
        folder: run folder, which receives state, history and TensorBoard events.
        accelerator: device, precision, processes.
        hooks: what else is done after an epoch; by default an adaptation keeps its best adapter.

    Attributes:
        task: of the config, with what it learnt from the training part.
        selection: the part that epochs are judged on, or None.
        selection_name: ``"val"``, or ``"test"`` under the published protocol.
        protocol_words: how the kept epoch is chosen.
    """

    batches: Batches | StoredBatches
    selection_batches: StoredBatches | None = None

    def __init__(
        self,
        config: Config,
        model: TrainableModel,
        splits: Splits,
        folder: Path,
        accelerator: Accelerator,
        hooks: Sequence[Hook] | None = None,
    ) -> None:
        self.config = config
        self.settings = config.train
        self.accelerator = accelerator
        self.splits = splits
        self.dataset = splits.train
        self.folder = folder
        self.task = build_task(config)
        self.task.facts = self.task.learn(splits.train)
        self.hooks = hooks if hooks is not None else [KeepAdapter()] if self.task.adapts else []
        self.protocol_words = protocol_words(config, splits.own_validation)
        protocol = config.eval.protocol if self.task.adapts else "validation"
        self.selection = {"validation": splits.val, "published": splits.test, "last": None}[protocol]
        self.selection_name = "test" if protocol == "published" else "val"
        if self.settings.cached_views is not None:
            assert isinstance(model, AdaptedModel)
            model.method.frozen_state(model.backbone)  # refuses before anything is written
        if self.settings.compile:
            require_compiler(accelerator.device)
            model.compile()
        recompute_activations(model, bool(self.settings.gradient_checkpointing))
        self._statistics = model.method.statistics if isinstance(model, AdaptedModel) else dict
        self.progress = Progress(identity=self._identity(model))
        optimizer = build_optimizer(model, self.settings)
        self.wrapped: nn.Module
        self.wrapped, self.optimizer = accelerator.prepare(model, optimizer)
        even_batches(len(self.dataset), **self._batching(0))  # an impossible cut is found before anything is written

    def _identity(self, model: TrainableModel) -> dict[str, str]:
        """What must be the same when the run is resumed, by name."""
        parts = {"train": self.dataset, "test": self.splits.test, "selection": self.selection}
        found = {name: part.checksum for name, part in parts.items() if part is not None}
        found["processes"] = str(self.accelerator.num_processes)
        return found | ({"backbone": model.backbone_hash} if isinstance(model, AdaptedModel) else {})

    @property
    def plain_model(self) -> Any:
        """The model without the wrapper for several processes."""
        return self.accelerator.unwrap_model(self.wrapped)

    def prepare(self) -> None:
        """Hook for work to be done once before the first step."""
        views, device = self.settings.cached_views, self.accelerator.device
        if views is None:
            inputs, targets = build_inputs(self.config), self.task.targets(self.dataset)
            self.batches = Batches(inputs, self.dataset, targets, device, staged=True)
            return
        self.batches = self._stored(self.dataset, views)
        if self.selection is not None:
            self.selection_batches = self._stored(self.selection, None)

    def _stored(self, dataset: Samples, views: int | None) -> StoredBatches:
        features = open_features(self.plain_model, dataset, self.config, self.accelerator, views=views)
        return StoredBatches(features, self.task.targets(dataset), self.accelerator.device)

    def assess(self, record: dict[str, Any], means: Mapping[str, Tensor], last: bool) -> None:
        """Ends an epoch: completes its record, validates, keeps what is best.

        Args:
            record: of the history; holds epoch, learning rate, loss and seconds.
            means: over the epoch of the sums that the task's loss reported.
            last: whether this was the last epoch.
        """
        record |= self.task.progress(means)
        if self.task.adapts:
            record["protocol"] = self.protocol_words
            record |= routing_record(means)
            for warning in starved_experts([*self.progress.history, record]):
                log.warning(warning)
        if self.selection is not None and (last or (self.progress.epoch + 1) % self.config.eval.every == 0):
            self._select(record, self.task.metrics(self._predict(self.selection)))
        elif self.selection is None and last:
            self._keep({})
        for hook in self.hooks:
            hook.assessed(self, record, last)

    def _select(self, record: dict[str, Any], metrics: Mapping[str, Any]) -> None:
        """Records the metrics of the selection part, and keeps the epoch if it is the best so far."""
        for key in (*self.task.scores, *self.task.recorded):
            record[f"{self.selection_name}_{key}"] = metrics[key]
        if not self.task.scores:
            return
        score = self.task.scores[self.task.select].goodness(metrics[self.task.select])
        tied = score == self.progress.best_score and keeps_last_tie(self.config)
        if score > self.progress.best_score or tied:
            self.progress.best_score = score
            self._keep({self.selection_name: metrics})

    def _keep(self, selected: Mapping[str, Any]) -> None:
        self.progress.best_epoch = self.progress.epoch
        for hook in self.hooks:
            hook.best(self, selected)

    @property
    def best(self) -> float:
        """That score of the best epoch so far."""
        return self.task.scores[self.task.select].goodness(self.progress.best_score)

    def _predict(self, dataset: Samples) -> Predictions:
        stored = self.selection_batches
        copies = None if stored is None else lambda indices, number: [stored.test(indices, number)]
        return predict(self.plain_model, dataset, self.task, self.accelerator, copies=copies)

    def state_tensors(self) -> dict[str, Tensor]:
        """Tensors of the model that a resumed run needs; of an adaptation only what its backbone's file has not."""
        model = self.plain_model
        return model.adapter_state() if self.task.adapts else model.state_dict()

    def line(self, record: Mapping[str, Any]) -> str:
        """The part of an epoch's log line after number, learning rate and loss."""
        name, parts = self.selection_name, [self.task.progress_text(record)]
        if any(f"{name}_{key}" in record for key in (*self.task.scores, *self.task.recorded)):
            optimistic = " (selects on TEST)" if name == "test" and chooses(self.config) else ""
            parts.append(f"{self.task.record_text(record, name)}{optimistic}")
            if self.task.scores and chooses(self.config):
                parts.append(f"best {self.best:.2f} (epoch {self.progress.best_epoch + 1})")
        parts += [*(hook.text(record) for hook in self.hooks), routing_line(record)]
        return "".join(f"  {part}" for part in parts if part)

    def resume(self) -> None:
        """Continues from the folder's state.

        Raises:
            CheckpointError: if there is no state, or data or backbone differ from those of the run.
        """
        path = self.folder / STATE_FILE
        self.progress = load_state(
            path,
            self.plain_model,
            set(self.state_tensors()),
            self._plain_optimizer,
            self.progress.identity,
            self.accelerator.scaler,
        )
        if self.accelerator.is_main_process:
            for leftover in self.folder.glob(".*.tmp"):  # of a save that was killed
                leftover.unlink(missing_ok=True)
        log.info("resuming at epoch %d, step %d", self.progress.epoch + 1, self.progress.step)

    def fit(self) -> None:
        """Trains to the last epoch, or until ``train.early_stopping`` ends it.

        Raises:
            Interrupted: after saving the state, when a signal asked to stop.
            TrainingError: at the first non-finite loss, before the weights are touched.
        """
        progress = self.progress
        if progress.epoch == 0 and progress.step == 0:
            self._save_state()
        with nullcontext() if self.settings.compile else packed(self.plain_model):
            self._fit()

    def _fit(self) -> None:
        self.prepare()
        with stop_requests("finishing this step, then saving") as requests, self._events() as write:
            while not self.finished:
                self._train_epoch(requests)
                write(self._finish_epoch())
                stop = agreed(requests, self.accelerator)
                if stop:
                    self._save_state()
                    raise Interrupted(stop, self.folder)

    @property
    def stopped_early(self) -> bool:
        """Whether ``train.early_stopping`` has ended the run before its last epoch."""
        return stops_early(self.config, self.progress.history, self.progress.best_epoch)

    @property
    def finished(self) -> bool:
        """Whether no epoch is left to train."""
        return self.progress.epoch >= self.settings.epochs or self.stopped_early

    def _train_epoch(self, requests: list[int]) -> None:
        """The steps of one epoch from ``progress.step`` on; every draw is a function of (seed, epoch, step)."""
        progress, settings, accelerator = self.progress, self.settings, self.accelerator
        set_learning_rate(self.optimizer, learning_rate(progress.epoch, settings))
        self.plain_model.begin_epoch(progress.epoch)
        self.wrapped.train()
        self.batches.begin_epoch(settings.seed, progress.epoch)
        batching = self._batching(progress.epoch)
        steps = even_batches(len(self.dataset), **batching)
        self._repeats = even_batches(len(self.dataset), **batching, repeats=True)
        title = f"epoch {progress.epoch + 1}/{settings.epochs}"
        with progress_bar(title, len(steps), progress.step, accelerator.is_main_process) as advance:
            for step in range(progress.step, len(steps)):
                started = time.perf_counter()
                size = len(self.dataset) // len(steps) + (step < len(self.dataset) % len(steps))
                for name, values in self._train_step(step, steps[step], size).items():
                    before = torch.tensor(progress.sums.get(name, 0.0), dtype=torch.float64)
                    progress.sums[name] = (before + values).tolist()
                progress.step = step + 1
                progress.seconds += time.perf_counter() - started
                advance()
                stop = agreed(requests, accelerator)
                if stop:
                    self._save_state()
                    raise Interrupted(stop, self.folder)

    def _train_step(self, step: int, parts: list[Tensor], size: int) -> dict[str, Tensor]:
        """One optimiser step.

        Args:
            step: number of the step in its epoch.
            parts: this process's micro-batches, (b,) int64 indices each.
            size: samples of the whole step, over all processes.

        Returns:
            ``samples`` and the sums of what the task's loss reports, over all processes; float64, on the CPU.
        """
        accelerator, device, settings = self.accelerator, self.accelerator.device, self.settings
        world, epoch = accelerator.num_processes, self.progress.epoch
        totals: dict[str, Tensor] = {}
        broken: list[Tensor] = []
        self.optimizer.zero_grad(set_to_none=True)
        for number, part in enumerate(parts):
            # The draws of a shard are the same whether it is a process's or an accumulated one.
            shard = accelerator.process_index * len(parts) + number
            torch.manual_seed(derive_seed(settings.seed, "dropout", epoch, step, shard))
            seed = derive_seed(settings.seed, "augment", epoch, step, shard)
            generator = torch.Generator(device).manual_seed(seed)
            batch = self.batches.training(part, generator, self._repeats[step][number])
            last = number == len(parts) - 1
            with nullcontext() if last else accelerator.no_sync(self.wrapped):
                loss, sums = self.task.loss(self.wrapped, batch, generator)
                # Mean over the whole step, though parts may differ by one sample; DDP averages over processes.
                accelerator.backward(loss * (len(part) * world / size))
            sums |= self._statistics() | {"samples": torch.tensor(len(part)), "broken": ~torch.isfinite(loss.detach())}
            for name, values in sums.items():
                values = values.detach().cpu().double()
                totals[name] = totals[name] + values if name in totals else values
            if not torch.isfinite(loss):
                broken.append(part)
        if world > 1:
            totals = {name: accelerator.reduce(values.to(device)).cpu() for name, values in totals.items()}
        if totals.pop("broken"):
            raise refused_step(self.dataset, epoch, step, "loss", broken)
        limit = settings.clip_grad if settings.clip_grad is not None else float("inf")
        norm = accelerator.clip_grad_norm_(self.wrapped.parameters(), limit)
        # Under fp16 the gradient scaler skips such a step and lowers its scale.
        if settings.precision != "fp16" and norm is not None and not bool(torch.isfinite(norm)):
            raise refused_step(self.dataset, epoch, step, "gradient", parts)
        self.optimizer.step()
        return totals

    def _batching(self, epoch: int) -> dict[str, Any]:
        """Arguments of :func:`even_batches` after the number of samples."""
        return {
            "batch_size": self.settings.batch_size,
            "seed": self.settings.seed,
            "epoch": epoch,
            "rank": self.accelerator.process_index,
            "world_size": self.accelerator.num_processes,
            "accumulate": self.settings.accumulate,
            "strata": self.task.strata(self.dataset) if self.settings.sampler == "balanced" else None,
        }

    def _finish_epoch(self) -> dict[str, Any]:
        """Assesses, records, saves, and moves on to the next epoch."""
        progress = self.progress
        sums = {name: torch.tensor(values, dtype=torch.float64) for name, values in progress.sums.items()}
        samples = sums.pop("samples")
        means = {name: values / samples for name, values in sums.items()}
        record: dict[str, Any] = {
            "epoch": progress.epoch + 1,
            "lr": learning_rate(progress.epoch, self.settings),
            "train_loss": means["loss"].item(),
            "seconds": progress.seconds,
        }
        if self.accelerator.num_processes > 1:
            # DDP copies buffers before a forward only, so the last step left each process its own BatchNorm statistics.
            for buffer in self.plain_model.buffers():
                broadcast(buffer, from_process=0)
        if self.accelerator.is_main_process and not self.folder.is_dir():
            raise TrainingError(f"{self.folder}: was removed while the run wrote to it; start a new run")
        last = progress.epoch + 1 == self.settings.epochs
        self.assess(record, means, last)
        progress.history.append(record)
        log.info(
            "epoch %d/%d  lr %.2e  loss %.5g%s  %.1f s",
            *(record["epoch"], self.settings.epochs, record["lr"], record["train_loss"], self.line(record)),
            record["seconds"],
        )
        progress.epoch, progress.step, progress.seconds, progress.sums = progress.epoch + 1, 0, 0.0, {}
        if self.stopped_early:
            log.info("stopped early: no better %s since epoch %d", self.task.select, progress.best_epoch + 1)
        if self.finished or progress.epoch % self.settings.save_every == 0:
            self._save_state()
        return record

    @property
    def _plain_optimizer(self) -> torch.optim.Optimizer:
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def _save_state(self) -> None:
        if self.accelerator.is_main_process:
            path = self.folder / STATE_FILE
            model, tensors = self.plain_model, self.state_tensors()
            save_state(path, model, tensors, self._plain_optimizer, self.progress, self.accelerator.scaler)
            write_json(self.folder / HISTORY_FILE, self.progress.history)
        self.accelerator.wait_for_everyone()

    def _events(self) -> AbstractContextManager[Callable[[Mapping[str, Any]], None]]:
        if not self.accelerator.is_main_process:
            return nullcontext(lambda record: None)
        # Events of epochs that are trained again after a kill are hidden.
        return tensorboard_events(self.folder / EVENTS_FOLDER, self.progress.epoch + 1)
