"""Evaluation and voting: every sample exactly once, whatever the number of processes.

The batches are fixed by the file order and their size; processes take turns at whole batches. A sample's
logits are therefore the same bit for bit on one process and on many, and nothing is padded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.config import Config
from pointadapterx.datasets import (
    EvalBatches,
    Samples,
    build_inputs,
    derive_seed,
)
from pointadapterx.engine.metrics import Predictions, compute_metrics, require_finite

log = logging.getLogger(__name__)

# (indices of a batch, its number) -> the model's inputs on the device
BatchInputs = Callable[[Tensor, int], Any]


def predict(
    model: AdaptedModel,
    dataset: Samples,
    accelerator: Accelerator,
    *,
    batch_size: int,
    inputs: BatchInputs,
) -> Predictions:
    """Logits of every sample of a data set.

    Args:
        model: unwrapped, on the accelerator's device; its mode is restored afterwards.
        dataset: n samples.
        accelerator: gives device, precision and the other processes.
        batch_size: samples per batch.
        inputs: gives a batch's inputs: resampled or resized (and for voting augmented).

    Returns:
        Predictions in file order, the same on every process.

    Raises:
        TrainingError: if logits are not finite.
    """
    rows = collect(
        model,
        dataset,
        accelerator,
        batch_size=batch_size,
        inputs=inputs,
        compute=lambda given: model(given).logits,
        width=model.head.num_classes,
    )
    require_finite(rows, "logits")
    return Predictions(rows, dataset.labels)


def collect(
    model: AdaptedModel,
    dataset: Samples,
    accelerator: Accelerator,
    *,
    batch_size: int,
    inputs: BatchInputs,
    compute: Callable[[Any], Tensor],
    width: int,
) -> Tensor:
    """What ``compute`` makes of every batch's inputs, (b, width): (n, width) float32 in file order, on every process.

    The other arguments are those of :func:`predict`.
    """
    was_training = model.training
    model.eval()
    batches = EvalBatches(
        len(dataset), batch_size, rank=accelerator.process_index, world_size=accelerator.num_processes
    )
    indices: list[Tensor] = [torch.empty(0, dtype=torch.int64)]
    rows: list[Tensor] = [torch.empty(0, width)]
    with torch.inference_mode():
        for batch in batches:
            given = inputs(batch, int(batch[0]) // batch_size)
            with accelerator.autocast():
                output = compute(given)
            indices.append(batch)
            rows.append(output.float().cpu())
    model.train(was_training)
    return _gather_rows(torch.cat(indices), torch.cat(rows), accelerator)


def _gather_rows(indices: Tensor, rows: Tensor, accelerator: Accelerator) -> Tensor:
    """Rows of all processes in the order of their indices."""
    if accelerator.num_processes > 1:
        device = accelerator.device
        padded = accelerator.pad_across_processes(indices.to(device), dim=0, pad_index=-1)
        padded_rows = accelerator.pad_across_processes(rows.to(device), dim=0)
        indices, rows = accelerator.gather(padded).cpu(), accelerator.gather(padded_rows).cpu()
        rows, indices = rows[indices >= 0], indices[indices >= 0]
    return rows[indices.argsort()]


def evaluate(model: AdaptedModel, dataset: Samples, config: Config, accelerator: Accelerator) -> Predictions:
    """One deterministic pass without augmentation; clouds by FPS to ``data.num_points``."""
    size, inputs = config["eval"]["batch_size"], _for_test(dataset, config, accelerator)
    return predict(model, dataset, accelerator, batch_size=size, inputs=inputs)


def _for_test(dataset: Samples, config: Config, accelerator: Accelerator) -> BatchInputs:
    inputs = build_inputs(config)
    fetch = inputs.source(dataset)
    return lambda indices, _: inputs.for_test(fetch(indices).to(accelerator.device))


def evaluate_features(model: AdaptedModel, dataset: Samples, config: Config, accelerator: Accelerator) -> Tensor:
    """What the head reads of every sample, (n, pools · C), prepared as :func:`evaluate` does.

    Raises:
        TrainingError: if any is not finite.
    """
    rows = collect(
        model,
        dataset,
        accelerator,
        batch_size=config["eval"]["batch_size"],
        inputs=_for_test(dataset, config, accelerator),
        compute=model.pooled,
        width=model.head.width,
    )
    require_finite(rows, "features")
    return rows


def evaluate_hidden(
    model: AdaptedModel, dataset: Samples, config: Config, accelerator: Accelerator
) -> tuple[Tensor, Tensor]:
    """What the head's last layer reads of every sample, (n, H), and logits, prepared as :func:`evaluate` does."""
    width = model.head.hidden_width
    rows = collect(
        model,
        dataset,
        accelerator,
        batch_size=config["eval"]["batch_size"],
        inputs=_for_test(dataset, config, accelerator),
        compute=lambda given: torch.cat(model.head.classify(model.pooled(given)), dim=1),
        width=width + model.head.num_classes,
    )
    hidden, logits = rows.split([width, model.head.num_classes], dim=1)
    return hidden, logits


def vote(
    model: AdaptedModel,
    dataset: Samples,
    config: Config,
    accelerator: Accelerator,
    *,
    copies: int,
    seed: int,
) -> Predictions:
    """Mean of the logits of K augmented, resampled copies of every sample.

    Each copy is prepared as in training, clouds resampled, and augmented with ``data.augment``; its random draws
    depend on the seed, the copy and the batch alone.

    Args:
        model: as in :func:`predict`.
        dataset: as in :func:`predict`.
        config: complete config.
        accelerator: as in :func:`predict`.
        copies: K.
        seed: seed of this vote.
    """
    inputs = build_inputs(config)
    fetch, batch_size = inputs.source(dataset), config["eval"]["batch_size"]
    total: Tensor | None = None
    for copy in range(copies):

        def prepared(indices: Tensor, batch: int, copy: int = copy) -> Tensor:
            raw = fetch(indices).to(accelerator.device)
            generator = torch.Generator(raw.device).manual_seed(derive_seed(seed, "vote", copy, batch))
            return inputs.for_training(raw, generator)

        logits = predict(model, dataset, accelerator, batch_size=batch_size, inputs=prepared).logits
        total = logits if total is None else total + logits
    assert total is not None
    return Predictions(total / copies, dataset.labels)


def vote_over_seeds(
    model: AdaptedModel,
    dataset: Samples,
    config: Config,
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
        config: complete config.
        accelerator: as in :func:`predict`.
        copies: K copies per vote.
        seeds: one vote each.
        published: report the maximum over the votes, as the published figures do (299 votes on the test
            set); it is optimistic, and labelled so.

    Returns:
        A JSON-able report (mean, standard deviation, each vote) and the first vote's predictions.
    """
    if dataset.modality == "images" and config["data"]["augment"] in ("none", []):
        log.warning("data.augment=none: the %d copies of an image are equal, and so are the votes", copies)
    votes = [vote(model, dataset, config, accelerator, copies=copies, seed=seed) for seed in seeds]
    report: dict[str, Any] = {"copies": copies, "seeds": list(seeds)}
    for key in ("overall_accuracy", "mean_class_accuracy"):
        values = torch.tensor([compute_metrics(v, dataset.classes)[key] for v in votes], dtype=torch.float64)
        report[key] = {
            "mean": values.mean().item(),
            "std": values.std().item() if len(seeds) > 1 else None,
            "votes": values.tolist(),
        }
        if published:
            report[key]["published_maximum"] = values.max().item()
    if published:
        report["label"] = f"published protocol: maximum of {len(seeds)} votes on the test set, optimistic"
    return report, votes[0]
