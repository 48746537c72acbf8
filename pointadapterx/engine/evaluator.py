"""Evaluation and voting: every sample exactly once, whatever the number of processes.

The batches are fixed by the file order and their size; processes take turns at whole batches. A sample's
outputs are therefore the same bit for bit on one process and on many, and nothing is padded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.datasets import EvalBatches, Samples, build_inputs, derive_seed
from pointadapterx.datasets.inputs import Batch, Batches
from pointadapterx.models.packing import packed
from pointadapterx.tasks import Task
from pointadapterx.tasks.exchange import Predictions, require_finite

log = logging.getLogger(__name__)

Copies = Callable[[Tensor, int], Iterable[Batch]]
"""Indices of a batch and its number -> one or several copies of it as the model takes them, on its device."""


def predict(
    model: nn.Module, dataset: Samples, task: Task, accelerator: Accelerator, *, copies: Copies | None = None
) -> Predictions:
    """What a model says of every sample of a data set.

    Args:
        model: unwrapped, on the accelerator's device; its mode is restored afterwards.
        dataset: n samples.
        task: of the model; ``eval.batch_size`` of its config is the number of samples at a time.
        accelerator: gives device, precision and the other processes.
        copies: gives the batches; by default a single, deterministic copy without augmentation, clouds by FPS to
            ``data.num_points``.

    Returns:
        Predictions in file order, the same on every process.

    Raises:
        TrainingError: if outputs are not finite.
    """

    given = copies or _plain_copy(dataset, task, accelerator)

    def compute(indices: Tensor, number: int) -> Tensor:
        batches: list[Batch] = []
        outputs: list[Tensor] = []
        for batch in given(indices, number):
            batches.append(batch)
            with accelerator.autocast():  # and not where the batch is drawn
                outputs.append(task.outputs(model, batch).float())
        return task.rows(task.combine(outputs, batches), batches[0])

    rows = _collect(model, dataset, task, accelerator, compute)
    require_finite(rows, "logits")
    return Predictions(rows, task.targets(dataset), dataset.groups)


def _collect(
    model: nn.Module,
    dataset: Samples,
    task: Task,
    accelerator: Accelerator,
    compute: Callable[[Tensor, int], Tensor],
    size: int | None = None,
) -> Tensor:
    """What ``compute`` makes of the indices and the number of every batch, (b, …).

    Returns:
        (n, …) on the CPU in file order, on every process.
    """
    size, was_training = size or task.config.eval.batch_size, model.training
    model.eval()
    batches = EvalBatches(len(dataset), size, rank=accelerator.process_index, world_size=accelerator.num_processes)
    indices: list[Tensor] = [torch.empty(0, dtype=torch.int64)]
    rows: list[Tensor] = []
    with torch.inference_mode(), packed(model):
        for batch in batches:
            indices.append(batch)
            rows.append(compute(batch, int(batch[0]) // size).cpu())
    model.train(was_training)
    return _gather_rows(torch.cat(indices), torch.cat(rows) if rows else torch.empty(0), accelerator)


def _gather_rows(indices: Tensor, rows: Tensor, accelerator: Accelerator) -> Tensor:
    """Rows of all processes in the order of their indices; a process may have none, and then of no shape."""
    if accelerator.num_processes > 1:
        parts: list[tuple[Tensor, Tensor]] = gather_object([(indices, rows)])
        indices, rows = (torch.cat([part[k] for part in parts if len(part[0])]) for k in (0, 1))
    return rows[indices.argsort()]


def evaluate(model: nn.Module, dataset: Samples, task: Task, accelerator: Accelerator) -> Predictions:
    """What a test counts: by default one deterministic pass without augmentation, see :func:`predict`.

    Where a task tests wholes, the predictions are of these, see :meth:`~pointadapterx.tasks.base.Task.judged`.

    Args:
        model: as in :func:`predict`.
        dataset: n samples.
        task: as in :func:`predict`.
        accelerator: as in :func:`predict`.
    """
    if not task.tests_wholes:
        return predict(model, dataset, task, accelerator)
    wholes = task.judged(dataset)

    def ask(batch: Batch) -> Tensor:
        with accelerator.autocast():
            return task.outputs(model, batch).float()

    def compute(indices: Tensor, number: int) -> Tensor:
        return torch.stack([task.whole_row(wholes, int(index), ask, accelerator.device) for index in indices])

    rows = _collect(model, wholes, task, accelerator, compute, size=1)
    require_finite(rows, "logits")
    return Predictions(rows, task.targets(wholes), wholes.groups)


def _plain_copy(dataset: Samples, task: Task, accelerator: Accelerator) -> Copies:
    batches = Batches(build_inputs(task.config), dataset, task.targets(dataset), accelerator.device)
    return lambda indices, number: [batches.test(indices, number)]


def evaluate_features(model: AdaptedModel, dataset: Samples, task: Task, accelerator: Accelerator) -> Tensor:
    """What the head reads of every sample, (n, pools · C), prepared as :func:`evaluate` does.

    Raises:
        TrainingError: if any is not finite.
    """

    given = _plain_copy(dataset, task, accelerator)

    def compute(indices: Tensor, number: int) -> Tensor:
        (batch,) = given(indices, number)
        with accelerator.autocast():
            return model.pooled(batch.inputs).float()

    rows = _collect(model, dataset, task, accelerator, compute)
    require_finite(rows, "features")
    return rows


def evaluate_hidden(
    model: AdaptedModel, dataset: Samples, task: Task, accelerator: Accelerator
) -> tuple[Tensor, Tensor]:
    """What the head's last layer reads of every sample, (n, H), and its outputs, prepared as :func:`evaluate` does."""
    width = model.head.hidden_width

    given = _plain_copy(dataset, task, accelerator)

    def compute(indices: Tensor, number: int) -> Tensor:
        (batch,) = given(indices, number)
        with accelerator.autocast():
            return torch.cat(model.head.classify(model.pooled(batch.inputs)), dim=1).float()

    rows = _collect(model, dataset, task, accelerator, compute)
    hidden, outputs = rows.split([width, rows.shape[1] - width], dim=1)
    return hidden, outputs


def vote(
    model: nn.Module, dataset: Samples, task: Task, accelerator: Accelerator, *, copies: int, seed: int
) -> Predictions:
    """What a model says of K augmented, resampled copies of every sample together; for most tasks their mean.

    Each copy is prepared as in training, clouds resampled, and augmented with ``data.augment``; its random draws
    depend on the seed, the copy and the batch alone. Where pixels have labels, the first copy is as in a test, and the
    others are brought back to where its pixels lie.

    Args:
        model: as in :func:`predict`.
        dataset: as in :func:`predict`.
        task: as in :func:`predict`.
        accelerator: as in :func:`predict`.
        copies: K.
        seed: seed of this vote.
    """
    batches = Batches(build_inputs(task.config), dataset, task.targets(dataset), accelerator.device)

    def drawn(indices: Tensor, number: int) -> Iterator[Batch]:
        for copy in range(copies):
            if copy == 0 and batches.of_pixels:  # answers and truth are of its pixels
                yield batches.test(indices, number)
                continue
            generator = torch.Generator(accelerator.device).manual_seed(derive_seed(seed, "vote", copy, number))
            yield batches.training(indices, generator)

    return predict(model, dataset, task, accelerator, copies=drawn)


def vote_over_seeds(
    model: nn.Module,
    dataset: Samples,
    task: Task,
    accelerator: Accelerator,
    *,
    copies: int,
    seeds: Sequence[int],
    published: bool = False,
) -> tuple[dict[str, Any], Predictions]:
    """Votes with several seeds.

    Args:
        model: as in :func:`predict`.
        dataset: as in :func:`predict`.
        task: as in :func:`predict`.
        accelerator: as in :func:`predict`.
        copies: K copies per vote.
        seeds: one vote each.
        published: report the maximum over the votes, as the published figures do (299 votes on the test
            set); it is optimistic, and labelled so.

    Returns:
        A JSON-able report (mean, standard deviation, each vote of every score) and the first vote's predictions.
    """
    if dataset.modality == "images" and task.config.data.augment in ("none", []):
        log.warning("data.augment=none: the %d copies of an image are equal, and so are the votes", copies)
    votes = [vote(model, dataset, task, accelerator, copies=copies, seed=seed) for seed in seeds]
    metrics = [task.metrics(found) for found in votes]
    report: dict[str, Any] = {"copies": copies, "seeds": list(seeds)}
    for key, score in task.scores.items():
        values = torch.tensor([found[key] for found in metrics], dtype=torch.float64)
        report[key] = {
            "mean": values.mean().item(),
            "std": values.std().item() if len(seeds) > 1 else None,
            "votes": values.tolist(),
        }
        if published:
            best = values.max() if score.higher_is_better else values.min()
            report[key]["published_maximum"] = best.item()
    if published:
        report["label"] = f"published protocol: maximum of {len(seeds)} votes on the test set, optimistic"
    return report, votes[0]
