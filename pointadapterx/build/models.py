"""From a config, or a stored adapter, to a model."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.checkpoints.adapter_file import AdapterInfo, load_adapter, model_recipe, other_shape
from pointadapterx.checkpoints.published import load_pretrained
from pointadapterx.checkpoints.shipped import stored_weights
from pointadapterx.config import Config, Overrides
from pointadapterx.errors import CheckpointError, ConfigError
from pointadapterx.models import BACKBONES, Backbone
from pointadapterx.models.trainable import TrainableModel
from pointadapterx.peft import METHODS, Method
from pointadapterx.process_tuning import total_memory
from pointadapterx.tasks import build_task

log = logging.getLogger(__name__)


def build_model(
    config: Config | Mapping[str, Any], *, restored: bool = False, kind: type[AdaptedModel] = AdaptedModel
) -> AdaptedModel:
    """Pre-trained weights into the plain backbone, then the method, then freezing by ownership.

    Args:
        config: from :func:`~pointadapterx.config.load_config`.
        restored: whether an adapter's file will bring all weights, which makes a warning of random ones superfluous.
        kind: of the model.

    Returns:
        The model on the CPU, in training mode. Its initial values depend on ``backbone.init_seed`` and
        ``train.seed`` alone; torch's global random state is left as it was.
    """
    config = Config.of(config)
    backbone = build_backbone(config.backbone)
    if config.backbone.weights is None and not restored and not next(backbone.parameters()).is_meta:
        log.warning("backbone.weights is not set: the backbone keeps random weights, results only test the pipeline")
    return adapt_backbone(backbone, config, kind)


def adapt_backbone(backbone: Backbone, config: Config, kind: type[AdaptedModel] = AdaptedModel) -> AdaptedModel:
    """Method and head of a config on a backbone, which is changed; if they do not fit, it keeps none of their hooks."""
    assert config.method is not None
    with seeded(config.train.seed):
        head = build_task(config).build_head(backbone.feature_info)
        method = build_method(config.method)
        try:
            model = kind(backbone, method, head, config.train.frozen_bn)
        except BaseException:
            for hook in method.hooks:
                hook.remove()
            backbone.left_by(method)
            raise
    model.recipe, model.num_points = model_recipe(config), config.data.num_points
    return model


def build_trained(config: Config | Mapping[str, Any]) -> TrainableModel:
    """What a config trains, on the CPU, in training mode: an adapted model, or what its task makes of a backbone."""
    config = Config.of(config)
    task = build_task(config)
    if task.adapts:
        return build_model(config)
    backbone = build_backbone(config.backbone)
    with seeded(config.train.seed):
        return task.build_whole(backbone)


def build_backbone(options: Backbone.Options) -> Backbone:
    """The backbone of a config's ``backbone`` section with its pre-trained, or else its initial random, weights.

    Raises:
        ConfigError: if it is larger than this machine's memory.
        CheckpointError: if its weights cannot be loaded.
    """
    _require_memory(options)
    with seeded(options.init_seed or 0):
        backbone = BACKBONES[options.name](options)
    if options.weights is not None:
        log.info(load_pretrained(backbone, options.weights, averaged=options.averaged_weights is True).summary())
    return backbone


def _require_memory(options: Backbone.Options) -> None:
    """Refuses a model larger than the memory, since the system would kill the process without a message."""
    memory = total_memory()
    # bytes of attention (4 C²) and FFN (8 C²) in fp32
    needed = sum(4 * 12 * stage.depth * stage.width**2 for stage in options.stages())
    if memory is not None and needed > memory and torch.get_default_device().type != "meta":
        raise ConfigError(
            f"backbone.depth={options.depth} and dim={options.dim}: the blocks take {needed / 1e9:,.0f} GB, but "
            f"this machine has {memory / 1e9:,.0f} GB of memory; lower them"
        )


def build_method(options: Method.Options) -> Method:
    """The method of a config's ``method`` section, not yet attached."""
    return METHODS[options.name](options)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Context manager that seeds torch, and restores its random state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def restore_model(info: AdapterInfo, weights: str | Path | None = None) -> AdaptedModel:
    """The model of an adapter on its backbone, on the CPU, in training mode.

    Args:
        info: from :func:`~pointadapterx.checkpoints.adapter_file.read_adapter`.
        weights: where the backbone's weights lie now, if not where the adapter's config says. Full fine-tuning needs
            none.

    Raises:
        CheckpointError: if these are others, or cannot be read.
    """
    overrides = [] if weights is None else [f"backbone.weights={json.dumps(str(weights))}"]
    return build_restored(info, model_config(info, overrides))


def model_config(info: AdapterInfo, overrides: Overrides = ()) -> Config:
    """The config to build an adapter's model from; full fine-tuning needs no weights apart from its file.

    Args:
        info: from :func:`~pointadapterx.checkpoints.adapter_file.read_adapter`.
        overrides: as in :func:`~pointadapterx.config.load_config`.

    Raises:
        ConfigError: for an override that does not fit.
    """
    config = info.config.replaced(backbone={"weights": None}) if _brings_backbone(info) else info.config
    return Config.of(config, str(info.path), overrides)


def build_restored(info: AdapterInfo, config: Config, kind: type[AdaptedModel] = AdaptedModel) -> AdaptedModel:
    """The model of an adapter, built from what :func:`model_config` returned.

    Raises:
        CheckpointError: if the file does not fit its own config, or its backbone's weights cannot be loaded.
    """
    require_shapes(info, config)
    if config.backbone.weights is not None:
        config = config.replaced(backbone={"weights": stored_weights(config.backbone.weights, info.path)})
    model = build_model(config, restored=_brings_backbone(info), kind=kind)
    load_adapter(model, info)
    return model


def require_shapes(info: AdapterInfo, config: Config) -> None:
    """Compares a file with its config before memory is taken for what the config alone claims."""
    with torch.device("meta"):  # shapes without values
        plan = build_model(config.replaced(backbone={"weights": None}), restored=True)
    target = plan.state_dict()
    lacking = [name for name, part in plan.named_parameters() if part.requires_grad and name not in info.tensors]
    if lacking:
        raise CheckpointError(
            f"{info.path}: its config asks for {lacking[0]} ({len(lacking)} such), which the file does not hold; it is "
            "damaged, copy it again"
        )
    for name, tensor in info.tensors.items():
        if name in target and tensor.shape != target[name].shape:
            raise other_shape(info, name, target[name])


def _brings_backbone(info: AdapterInfo) -> bool:
    assert info.config.method is not None
    return METHODS[info.config.method.name].trains_backbone
