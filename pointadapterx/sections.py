"""The ``train`` and ``eval`` sections of a config, which every task has, and what can be wrong with each alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from pointadapterx.schema import Points, Rate, Section, Times


class TrainConfig(Section):
    """``train:``: ``batch_size`` is per optimiser step, over all processes and ``accumulate`` parts.

    Optional keys are null by default, so that runs keep their names (see ``study.identity``).

    ``class_weights`` are factors of the loss, one a class in the order of the classes; ``balanced`` makes every class
    count alike, ``cube_root`` is the third root of that. ``sampler: balanced`` draws every class equally often; null
    is ``shuffle``. ``early_stopping`` ends the run after so many evaluations below the best score. ``cosine_epochs`` is
    the length of the learning rate's cosine, null for ``epochs``; in the last ``cooldown_epochs`` it falls in a line.
    """

    epochs: Times = 300
    batch_size: int = Field(32, ge=2, le=2**24)
    accumulate: Points = 1
    lr: float = Field(5e-4, gt=0)
    min_lr: float = Field(1e-6, ge=0)
    warmup_epochs: int = Field(10, ge=0)
    warmup_lr: float = Field(1e-6, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    clip_grad: float | None = Field(10.0, gt=0)
    label_smoothing: Rate = 0.0
    seed: int = Field(0, ge=0, lt=2**63)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    frozen_bn: Literal["eval", "batch"] = "eval"
    save_every: int = Field(1, ge=1)
    compile: bool | None = None
    gradient_checkpointing: bool | None = None
    cached_views: Times | None = None
    cache_folder: str | None = None
    class_weights: Literal["balanced", "cube_root"] | list[Annotated[float, Field(gt=0)]] | None = None
    sampler: Literal["shuffle", "balanced"] | None = None
    early_stopping: Times | None = None
    cosine_epochs: Times | None = None
    cooldown_epochs: Times | None = None
    device: str | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, message) for each impossible combination."""
        if self.device is not None and DEVICE.fullmatch(self.device) is None:
            yield "device", f"{self.device!r} is none of auto, cpu, cuda and cuda:N"
        if self.warmup_epochs >= self.epochs and self.warmup_epochs > 0:
            yield (
                "warmup_epochs",
                f"{self.warmup_epochs} leaves nothing of train.epochs={self.epochs}; lower it, for example with "
                f"train.warmup_epochs={self.epochs // 10}",
            )
        if self.cosine_epochs is not None and self.cosine_epochs < self.epochs:
            yield (
                "cosine_epochs",
                f"{self.cosine_epochs} is less than train.epochs={self.epochs}; raise or remove it",
            )
        if self.cooldown_epochs is not None and self.cooldown_epochs > self.epochs - self.warmup_epochs:
            left = self.epochs - self.warmup_epochs
            yield "cooldown_epochs", f"{self.cooldown_epochs} exceeds the {left} epochs behind the warm-up; lower it"
        for key, rate in (("min_lr", self.min_lr), ("warmup_lr", self.warmup_lr)):
            if rate > self.lr:
                yield key, f"{rate} exceeds train.lr={self.lr}; lower it, for example with train.{key}=0"
        if self.cached_views is not None and self.frozen_bn == "batch":
            yield "cached_views", NOTHING_TO_KEEP.format("train.frozen_bn=batch changes frozen layers")
        if self.compile and self.gradient_checkpointing:
            message = "torch.compile chooses itself what to keep and what to compute again; remove one of the two"
            yield "gradient_checkpointing", message
        if self.batch_size < 2 * self.accumulate:
            yield (
                "accumulate",
                f"{self.accumulate} parts of train.batch_size={self.batch_size} hold fewer than 2 samples, "
                "too few for BatchNorm; lower it",
            )


DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
"""What ``train.device`` may be; null is ``auto``."""

NOTHING_TO_KEEP = "{}, so there is nothing to keep; remove it"
"""Of ``train.cached_views``, with the reason."""


class VoteConfig(Section):
    """``eval.vote:``: K copies per vote, one vote per seed."""

    copies: Times = 10
    seeds: list[int] = Field(default=[0, 1, 2], min_length=1, max_length=10_000)


class EvalConfig(Section):
    """``eval:``: which epoch is kept, and how it is tested.

    ``protocol: validation`` selects on a part of the training set, ``last`` trains on all of it and keeps the
    last epoch, ``published`` selects on the test set. ``select`` is one of the task's scores, its first one if null.
    ``ties`` is which of equally good epochs is kept; null is ``last`` with ``train.early_stopping``, else ``first``.
    """

    unwritten = ("ties",)

    protocol: Literal["validation", "last", "published"] = "validation"
    val_fraction: float = Field(0.1, gt=0, lt=1)
    split_seed: int = Field(0, ge=0)
    every: int = Field(1, ge=1)
    select: str | None = None
    ties: Literal["first", "last"] | None = None
    batch_size: Points = 32
    vote: VoteConfig = Field(default_factory=lambda: VoteConfig.model_validate({}))
