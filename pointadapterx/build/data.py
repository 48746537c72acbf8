"""From a config to the parts of its data set."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from torch import Tensor

from pointadapterx.config import Config
from pointadapterx.datasets import (
    DATASETS,
    PointClouds,
    Samples,
    build_dataset,
    few_shot_task,
    stratified_draw,
    stratified_split,
)
from pointadapterx.datasets.images import Images, copies
from pointadapterx.errors import ConfigError, DataError
from pointadapterx.tasks import Task, build_task
from pointadapterx.tasks.reconstruction import PretrainConfig
from pointadapterx.text import counted

log = logging.getLogger(__name__)


class Splits(NamedTuple):
    """Data of one run.

    Attributes:
        train: to learn from.
        val: None unless something is held out of the training set.
        test: the test split; None for a task that ends without a test.
    """

    train: Samples
    val: Samples | None
    test: Samples | None

    @property
    def own_validation(self) -> bool:
        """Whether ``val`` is the data set's own validation part, and not drawn from the training set."""
        return self.val is not None and self.val.validation is not None


def build_splits(config: Config | Mapping[str, Any]) -> Splits:
    """Training, validation and test parts.

    The validation part is the one that the data set publishes, as VTAB-1K does. Where it publishes none, the task draws
    one from the training set, which keeps variants of one object together where the data set knows them.

    Raises:
        DataError: if files are missing, damaged or mislabelled.
        ConfigError: if the data do not fit the task.
    """
    config = Config.of(config)
    task = build_task(config)
    if task.needs_labels:
        DATASETS[config.data.name].require_labels(config.data.root)
    train = _read_split(config, task, "train")
    splits = cut_splits(config, train, _read_split(config, task, "test") if task.adapts else None)
    _warn_of_copies(splits)
    return splits


def _warn_of_copies(splits: Splits) -> None:
    """Says that the same pictures are to learn from and to be judged by."""
    parts = [part for part in splits if isinstance(part, Images) and not isinstance(part.pixels, Tensor)]
    found = copies([cast(Sequence[Path], part.pixels) for part in parts])
    if found:
        one, other = found[0]
        log.warning(
            "%s in several parts of the data, first %s, the same as %s: figures come out too good; keep each in one",
            "1 picture is" if len(found) == 1 else f"{len(found)} pictures are",
            one,
            other,
        )


def cut_splits(config: Config, train: Samples, test: Samples | None) -> Splits:
    """The parts that :func:`build_splits` gives, from the published splits.

    Raises:
        ConfigError: if points, classes, few-shot task or validation part do not fit the data.
        DataError: if no validation part can be cut.
    """
    task = build_task(config)
    train, test = _parts(config, task, train, test)
    if task.adapts and config.eval.protocol != "validation":
        return Splits(train, None, test)
    kept, held_out = _validation_split(task, train)
    return Splits(train.subset(kept), train.subset(held_out), test)


def _validation_split(task: Task, train: Samples) -> tuple[Tensor, Tensor]:
    """Indices of the samples to train on and of the validation part, published or drawn."""
    if train.validation is not None and task.adapts:
        return (~train.validation).nonzero().flatten(), train.validation.nonzero().flatten()
    return task.split(train, task.config.eval.val_fraction, task.config.eval.split_seed)


def build_test_split(config: Config | Mapping[str, Any]) -> Samples:
    """The test split of the config's data set, or its part in a few-shot task, in memory and checked.

    A few-shot task needs the files of both splits, whose numbers of clouds decide on its classes.
    """
    config = Config.of(config)
    task = build_task(config)
    dataset = _read_split(config, task, "test")
    if config.data.few_shot is not None:
        _, part = _parts(config, task, _read_split(config, task, "train"), dataset)
        assert part is not None
        return part
    check_points(config, dataset)
    task.check(dataset)
    return dataset


def _parts(config: Config, task: Task, train: Samples, test: Samples | None) -> tuple[Samples, Samples | None]:
    """Training and test split, or their parts in a few-shot task or with fewer labels, checked."""
    data = config.data
    for dataset in (train, test):
        if dataset is not None:
            check_points(config, dataset)
    if data.few_shot is not None and test is not None:
        train, test = few_shot_task(train, test, **data.few_shot.model_dump())
    task.check(train)
    if data.train_size is not None:
        train = train.subset(stratified_draw(task.strata(train), data.train_size, config.eval.split_seed))
        train.validation = None  # a published validation part is one of the whole
    return train, test


def _read_split(config: Config, task: Task, split: Literal["train", "test"]) -> Samples:
    options = config.data.reading_options()
    if not task.needs_labels and DATASETS[config.data.name].labels_optional:
        options["labels"] = False
    return build_dataset(config.data.name, split, **options)


def check_points(config: Config, dataset: Samples) -> None:
    """Whether the clouds of a data set have as many points as are wanted, and each enough for the model's groups.

    Raises:
        ConfigError: if not as many as are wanted.
        DataError: if a cloud has fewer different points than :class:`~pointadapterx.engine.predictor.Predictor` takes.
    """
    if not isinstance(dataset, PointClouds):
        return
    wanted, available, least = config.data.num_points or 0, dataset.size, config.backbone.least_points
    if wanted > available:
        raise ConfigError(
            f"data.num_points={wanted} exceeds the {available} points of {dataset.source[0]}'s clouds; lower it"
        )
    found = next(dataset.sparse(least), None)
    if found is not None:
        name, points = found
        raise DataError(f"{name}: {counted(points, 'different point')}; the model's groups need {least}: remove it")


def build_probe_data(config: Config | Mapping[str, Any], *, test: bool = False) -> tuple[PointClouds, PointClouds]:
    """Training and validation part of the probe's data set, both from its training split.

    Args:
        config: of a pre-training job.
        test: return the whole training split and the test split instead.
    """
    config = Config.of(config)
    assert isinstance(config.pretrain, PretrainConfig)
    probe = config.pretrain.probe
    options = {key: value for key in ("root", "variant") if (value := getattr(probe, key)) is not None}
    labelled, *others = (build_dataset(probe.name, split, **options) for split in ("train", "test")[: 1 + test])
    assert isinstance(labelled, PointClouds)  # the config was checked
    for part in (labelled, *others):
        check_points(config, part)
    if others:
        assert isinstance(others[0], PointClouds)
        return labelled, others[0]
    kept, held_out = stratified_split(labelled.labels, probe.val_fraction, probe.split_seed, groups=labelled.groups)
    return labelled.subset(kept), labelled.subset(held_out)
