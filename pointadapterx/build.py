"""The whole wiring on one screen: config -> data sets, model."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch

from pointadapterx.datasets import PointClouds, build_dataset, stratified_split
from pointadapterx.errors import ConfigError
from pointadapterx.models import BACKBONES, Backbone
from pointadapterx.models.adapted import AdaptedModel
from pointadapterx.models.head import ClassificationHead
from pointadapterx.models.pretrained import load_pretrained
from pointadapterx.peft import METHODS, Method

log = logging.getLogger(__name__)


def build_model(config: Mapping[str, Any]) -> AdaptedModel:
    """Pre-trained weights into the plain backbone, then the method, then freezing by ownership.

    Args:
        config: from :func:`~pointadapterx.config.load_config`.

    Returns:
        The model on the CPU, in training mode. Its initial values depend on ``backbone.init_seed`` and
        ``train.seed`` alone; torch's global random state is left as it was.
    """
    backbone = build_backbone(config["backbone"])
    weights = config["backbone"]["weights"]
    if weights is None:
        log.warning("backbone.weights is not set: the backbone keeps random weights, results only test the pipeline")
    else:
        log.info(load_pretrained(backbone, weights).summary())
    with seeded(config["train"]["seed"]):
        head = ClassificationHead(backbone.dim, **config["head"])
        model = AdaptedModel(backbone, build_method(config["method"]), head, config["train"]["frozen_bn"])
    model.recipe = model_recipe(config)
    return model


def model_recipe(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config decides what a trained model computes: ``section.key`` to value."""
    irrelevant = {"backbone.weights", "backbone.init_seed", "backbone.drop_path", "head.dropout", "method.dropout"}
    recipe = {
        f"{section}.{key}": config[section][key]
        for section in ("backbone", "method", "head")
        for key in config[section]
    }
    return {key: value for key, value in recipe.items() if key not in irrelevant}


def build_backbone(options: Mapping[str, Any]) -> Backbone:
    """The backbone of a config's ``backbone`` section with its initial random weights."""
    kind = BACKBONES[options["name"]]
    with seeded(options["init_seed"]):
        return kind(kind.Options(**options))


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
    """Data of one run; ``val`` is None under ``protocol: published``."""

    train: PointClouds
    val: PointClouds | None
    test: PointClouds


def build_splits(config: Mapping[str, Any]) -> Splits:
    """Training, validation and test parts.

    The validation part is a stratified part of the training set and keeps variants of one object together
    where the data set knows them.

    Raises:
        DataError: if files are missing, damaged or mislabelled.
        ConfigError: if the classes do not match ``head.num_classes``.
    """
    train = build_split(config, "train")
    test = build_split(config, "test")
    if config["eval"]["protocol"] == "published":
        return Splits(train, None, test)
    settings = config["eval"]
    kept, held_out = stratified_split(
        train.labels, settings["val_fraction"], settings["split_seed"], groups=train.groups
    )
    return Splits(train.subset(kept), train.subset(held_out), test)


def build_split(config: Mapping[str, Any], split: Literal["train", "test"]) -> PointClouds:
    """One published split of the config's data set, in memory and checked."""
    data = config["data"]
    options = {key: data[key] for key in ("root", "variant", "normalize", "cache_dir") if data[key] is not None}
    dataset = build_dataset(data["name"], split, **options)
    if len(dataset.classes) != config["head"]["num_classes"]:
        raise ConfigError(
            f"head.num_classes={config['head']['num_classes']}, but {data['name']} has {len(dataset.classes)} "
            "classes; set head.num_classes to that"
        )
    available = dataset.points.shape[1]
    if data["num_points"] > available:
        raise ConfigError(
            f"data.num_points={data['num_points']} exceeds the {available} points of {data['name']}'s clouds; lower it"
        )
    return dataset
