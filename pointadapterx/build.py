"""The whole wiring on one screen: config -> data sets, model."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.checkpoints.published import load_pretrained
from pointadapterx.config import Config
from pointadapterx.datasets import (
    DATASETS,
    PointClouds,
    Samples,
    build_dataset,
    derive_seed,
    few_shot_task,
    stratified_draw,
    stratified_split,
)
from pointadapterx.errors import ConfigError, DataError
from pointadapterx.malloc_tuning import total_memory
from pointadapterx.models import BACKBONES, Backbone
from pointadapterx.models.point_mae import MaskedAutoencoder, PointMAE
from pointadapterx.peft import METHODS, Method
from pointadapterx.tasks.heads import ClassificationHead

log = logging.getLogger(__name__)


def build_model(config: Config | Mapping[str, Any], *, restored: bool = False) -> AdaptedModel:
    """Pre-trained weights into the plain backbone, then the method, then freezing by ownership.

    Args:
        config: from :func:`~pointadapterx.config.load_config`.
        restored: whether an adapter's file will bring all weights, so that random ones are nothing to warn of.

    Returns:
        The model on the CPU, in training mode. Its initial values depend on ``backbone.init_seed`` and
        ``train.seed`` alone; torch's global random state is left as it was.
    """
    config = Config.of(config)
    backbone = build_backbone(config["backbone"])
    if config["backbone"]["weights"] is None and not restored and not next(backbone.parameters()).is_meta:
        log.warning("backbone.weights is not set: the backbone keeps random weights, results only test the pipeline")
    with seeded(config["train"]["seed"]):
        head = ClassificationHead(backbone.dim, **config["head"])
        model = AdaptedModel(backbone, build_method(config["method"]), head, config["train"]["frozen_bn"])
    model.recipe, model.num_points = model_recipe(config), config["data"]["num_points"]
    return model


def model_recipe(config: Config | Mapping[str, Any]) -> dict[str, Any]:
    """What of a config decides what a trained model computes: ``section.key`` to value."""
    irrelevant = {
        *("backbone.weights", "backbone.init_seed", "backbone.drop_path"),
        *("head.dropout", "method.dropout", "method.scale_bias", "method.search"),
        *("method.soft_balance", "method.xavier"),
    }
    recipe = {
        f"{section}.{key}": config[section][key]
        for section in ("backbone", "method", "head")
        for key in config[section]
    }
    return {key: value for key, value in recipe.items() if key not in irrelevant}


def build_backbone(options: Backbone.Options | Mapping[str, Any]) -> Backbone:
    """The backbone of a config's ``backbone`` section with its pre-trained, or else its initial random, weights.

    Raises:
        ConfigError: if it is larger than this machine's memory.
        CheckpointError: if its weights cannot be loaded.
    """
    kind = BACKBONES[options["name"]]
    _require_memory(options)
    with seeded(options["init_seed"]):
        backbone = kind(kind.Options(**options))
    if options["weights"] is not None:
        log.info(load_pretrained(backbone, options["weights"]).summary())
    return backbone


def _require_memory(options: Backbone.Options | Mapping[str, Any]) -> None:
    """Refuses blocks that could never be held, as the system would end the process without a word."""
    memory = total_memory()
    needed = 4 * 12 * options["depth"] * options["dim"] ** 2  # bytes of attention (4 C²) and FFN (8 C²) in fp32
    if memory is not None and needed > memory and torch.get_default_device().type != "meta":
        raise ConfigError(
            f"backbone.depth={options['depth']} and dim={options['dim']}: the blocks take {needed / 1e9:,.0f} GB, but "
            f"this machine has {memory / 1e9:,.0f} GB of memory; lower them"
        )


def build_autoencoder(config: Config | Mapping[str, Any]) -> MaskedAutoencoder:
    """The masked autoencoder of a pre-training config, on the CPU, in training mode."""
    encoder, options = build_backbone(config["backbone"]), config["pretrain"]
    if not isinstance(encoder, PointMAE):
        raise ConfigError(f"backbone.name={config['backbone']['name']}: only point_mae can be pre-trained")
    with seeded(config["train"]["seed"]):
        return MaskedAutoencoder(
            encoder,
            options["decoder_depth"],
            options["decoder_heads"],
            options["decoder_drop_path"],
            options["chamfer"],
        )


def build_method(options: Mapping[str, Any]) -> Method:
    """The method of a config's ``method`` section, not yet attached."""
    kind = METHODS[options["name"]]
    return kind(kind.Options(**options))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds torch for what is built inside, and restores its random state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


class Splits(NamedTuple):
    """Data of one run.

    Attributes:
        train: to learn from.
        val: None unless the protocol is ``validation``.
        test: the test split.
    """

    train: Samples
    val: Samples | None
    test: Samples

    @property
    def own_validation(self) -> bool:
        """Whether ``val`` is the data set's own validation part, and not drawn from the training set."""
        return self.val is not None and self.val.validation is not None


def build_splits(config: Config | Mapping[str, Any]) -> Splits:
    """Training, validation and test parts.

    The validation part is the one that the data set publishes, as VTAB-1K does. Where it publishes none, it is a
    stratified draw from the training set, which keeps variants of one object together where the data set knows them.

    Raises:
        DataError: if files are missing, damaged or mislabelled.
        ConfigError: if the classes do not match ``head.num_classes``.
    """
    DATASETS[config["data"]["name"]].require_labels(config["data"]["root"])
    return cut_splits(config, _read_split(config, "train"), _read_split(config, "test"))


def cut_splits(config: Config | Mapping[str, Any], train: Samples, test: Samples) -> Splits:
    """The parts that :func:`build_splits` gives, from both published splits.

    Raises:
        ConfigError: if points, classes, few-shot task or validation part do not fit the data.
        DataError: if no validation part can be cut.
    """
    train, test = _task_parts(config, train, test)
    if config["eval"]["protocol"] != "validation":
        return Splits(train, None, test)
    kept, held_out = _validation_split(train, config["eval"])
    return Splits(train.subset(kept), train.subset(held_out), test)


def _validation_split(train: Samples, settings: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the samples to train on and of the validation part, published or drawn."""
    if train.validation is not None:
        return (~train.validation).nonzero().flatten(), train.validation.nonzero().flatten()
    return stratified_split(train.labels, settings["val_fraction"], settings["split_seed"], groups=train.groups)


def build_test_split(config: Config | Mapping[str, Any]) -> Samples:
    """The test split of the config's data set, or its part in a few-shot task, in memory and checked.

    A few-shot task needs the files of both splits, whose numbers of clouds decide on its classes.
    """
    if config["data"]["few_shot"] is not None:
        return _task_parts(config, _read_split(config, "train"), _read_split(config, "test"))[1]
    dataset = _read_split(config, "test")
    _check_points(config, dataset)
    _check_classes(config, dataset)
    return dataset


def _task_parts(config: Config | Mapping[str, Any], train: Samples, test: Samples) -> tuple[Samples, Samples]:
    """Training and test split, or their parts in a few-shot task or with fewer labels, checked."""
    data = config["data"]
    for dataset in (train, test):
        _check_points(config, dataset)
    if data["few_shot"] is not None:
        train, test = few_shot_task(train, test, **data["few_shot"])
    _check_classes(config, train)
    if data["train_size"] is not None:
        train = train.subset(stratified_draw(train.labels, data["train_size"], config["eval"]["split_seed"]))
        train.validation = None  # a published validation part is one of the whole
    return train, test


def _check_classes(config: Config | Mapping[str, Any], dataset: Samples) -> None:
    wanted, available = config["head"]["num_classes"], len(dataset.classes)
    if wanted != available:
        raise ConfigError(
            f"head.num_classes={wanted}, but {config['data']['name']} has {available} classes; set head.num_classes "
            "to that"
        )


def _read_split(config: Config | Mapping[str, Any], split: Literal["train", "test"], **options: Any) -> Samples:
    return build_dataset(config["data"]["name"], split, **reading_options(config["data"]), **options)


def reading_options(data: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a ``data`` section that decide what is read, where they are set."""
    keys = ("root", "variant", "normalize", "cache_dir", "up", "stored_points", "suffixes", "columns", "nan")
    return {key: data[key] for key in keys if data[key] is not None}


def _check_points(config: Config | Mapping[str, Any], dataset: Samples) -> None:
    if not isinstance(dataset, PointClouds):
        return
    wanted, available = config["data"]["num_points"], dataset.points.shape[1]
    if wanted > available:
        raise ConfigError(
            f"data.num_points={wanted} exceeds the {available} points of {dataset.source[0]}'s clouds; lower it"
        )


class PretrainingData(NamedTuple):
    """Clouds of a pre-training run; their labels are not used.

    Attributes:
        train: to learn from.
        val: held out, for the reconstruction loss.
        probe: labelled clouds on which the linear probe is trained and judged, or None.
    """

    train: PointClouds
    val: PointClouds
    probe: tuple[PointClouds, PointClouds] | None


def build_pretraining_data(config: Config | Mapping[str, Any]) -> PretrainingData:
    """Clouds to learn from, held-out ones, and the probe's parts of its data set's training split.

    Variants of one object are on one side where the data set knows them.

    Raises:
        DataError: if files are missing or damaged, or there are too few clouds.
    """
    settings, probe = config["eval"], config["pretrain"]["probe"]
    labels = {"labels": False} if DATASETS[config["data"]["name"]].labels_optional else {}  # unused: read everything
    clouds = _clouds(config, _read_split(config, "train", **labels))
    held_out = _held_out(clouds, settings["val_fraction"], settings["split_seed"])
    if held_out.all():
        raise DataError(
            f"data.root={config['data']['root']}: eval.val_fraction={settings['val_fraction']} of {len(clouds)} clouds "
            "holds all of them out; use more clouds or a smaller fraction"
        )
    parts = build_probe_data(config) if probe["every"] else None
    return PretrainingData(
        clouds.subset((~held_out).nonzero().flatten()), clouds.subset(held_out.nonzero().flatten()), parts
    )


def _clouds(config: Config | Mapping[str, Any], dataset: Samples) -> PointClouds:
    """The data set, if it is of point clouds with enough points."""
    if not isinstance(dataset, PointClouds):
        raise ConfigError("point_mae is pre-trained on point clouds; choose another data set than one of images")
    _check_points(config, dataset)
    return dataset


def _held_out(clouds: PointClouds, fraction: float, seed: int) -> torch.Tensor:
    """``(n,)`` bool: whole groups, drawn until they hold at least ``fraction`` of the clouds."""
    units = torch.arange(len(clouds)) if clouds.groups is None else clouds.groups.unique(return_inverse=True)[1]
    sizes = units.bincount()
    order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(derive_seed(seed, "held out")))
    held = sizes[order].cumsum(0)  # clouds held out with the groups so far
    count = int((held < math.ceil(fraction * len(clouds))).sum()) + 1
    return torch.isin(units, order[:count])


def build_probe_data(config: Config | Mapping[str, Any]) -> tuple[PointClouds, PointClouds]:
    """Training and validation part of the probe's data set, both from its training split."""
    probe = config["pretrain"]["probe"]
    options = {key: probe[key] for key in ("root", "variant") if probe[key] is not None}
    labelled = _clouds(config, build_dataset(probe["name"], "train", **options))
    kept, held_out = stratified_split(
        labelled.labels, probe["val_fraction"], probe["split_seed"], groups=labelled.groups
    )
    return labelled.subset(kept), labelled.subset(held_out)
