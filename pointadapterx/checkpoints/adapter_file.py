"""Adapter checkpoints: the whole result of one task in one small safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor, nn

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.checkpoints.foreign_file import ForeignAdapterInfo, load_foreign, save_foreign
from pointadapterx.checkpoints.shipped import shipped_adapter
from pointadapterx.config import Config
from pointadapterx.datasets.preparation import Preparation
from pointadapterx.errors import CheckpointError, ConfigError, shown
from pointadapterx.files import read_safetensors, write_safetensors
from pointadapterx.hub import HUB, Address, fetch
from pointadapterx.peft import Method
from pointadapterx.run_folder import ADAPTER_FILE, METRICS_FILE, STATE_FILE
from pointadapterx.tasks import TASKS, Facts, Task, build_task
from pointadapterx.tasks.heads import HeadConfig

FORMAT = "pointadapterx-adapter-1"
ADAPTERS = "give a run's folder, an adapter file or hf://owner/repository"
OWN = {"format", "config", "metrics", "versions", "backbone_hash"}  # metadata that is not of the task's facts
MOST_POINTS = 2**24  # of a cloud


class AdapterInfo(NamedTuple):
    """The content of an adapter file.

    Attributes:
        path: the file.
        config: the resolved config of the run that made it.
        facts: what the task needs to read its answers, such as names of classes.
        metrics: metrics at the time of saving.
        versions: of this package, torch, and others.
        backbone_hash: SHA-256 of the backbone weights that it belongs to.
        tensors: names to tensors.
    """

    path: Path
    config: Config
    facts: Any  # of the class that the task stores
    metrics: dict[str, Any]
    versions: dict[str, str]
    backbone_hash: str
    tensors: dict[str, Tensor]

    @property
    def method(self) -> Method.Options:
        """The ``method`` section, which the config of every adapter has."""
        assert self.config.method is not None
        return self.config.method

    @property
    def head(self) -> HeadConfig:
        """The ``head`` section, likewise."""
        assert self.config.head is not None
        return self.config.head

    @property
    def classes(self) -> list[str]:
        """Names of what is predicted, in the order of the outputs; empty where that has no names."""
        return self.facts.classes

    @property
    def task(self) -> Task:
        """What was asked of it, with its facts."""
        return build_task(self.config, self.facts)


def save_adapter(
    model: AdaptedModel | nn.Module,
    path: str | Path,
    *,
    config: Config | Mapping[str, Any] | None = None,
    classes: Sequence[str] = (),
    metrics: Mapping[str, Any] | None = None,
    facts: Facts | None = None,
) -> None:
    """Writes what the task added to the backbone: trainable tensors, changed buffers, and how they were obtained.

    Args:
        model: the adapted model; of one that :func:`~pointadapterx.adapting.adapt` has adapted, the active adapter.
        path: file to (atomically) write.
        config: resolved config, of a model that was built from one.
        classes: class names, in the order of the logits.
        metrics: any JSON-able metrics.
        facts: all that the task has to know in addition to the config, in place of ``classes``.

    Raises:
        CheckpointError: if the file cannot be written, or the class names do not match the head.
        ConfigError: if the model is not adapted, or its config is missing.
    """
    if not isinstance(model, AdaptedModel):
        save_foreign(model, path, metrics, versions())
        return
    if config is None:
        raise ConfigError("save_adapter: a model that was built from a config is saved with it; pass config=")
    config = Config.of(config)
    task = build_task(config)
    task.facts = facts if facts is not None else task.stores(list(classes))
    if task.predicts_classes and len(task.facts.classes) != model.head.num_classes:
        raise CheckpointError(
            f"{path}: {len(task.facts.classes)} class names for a head of {model.head.num_classes} classes"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise CheckpointError(
            f"{path}: the model trains nothing, so there is no adapter to write (a merged model has none); save the "
            "model it was merged from"
        )
    values, tensors = task.facts.stored()
    metadata = {
        "format": FORMAT,
        "config": json.dumps(config.dump()),
        **{key: json.dumps(value) for key, value in values.items()},
        "metrics": json.dumps(dict(metrics or {})),
        "versions": json.dumps(versions()),
        "backbone_hash": model.backbone_hash,
    }
    write_safetensors(Path(path), model.adapter_state() | tensors, metadata)


def read_adapter(path: str | Path) -> AdapterInfo:
    """Reads an adapter file without building a model.

    Args:
        path: the file; the folder of a run; the name of a shipped adapter; or ``hf://owner/repository``, optionally
            ``@revision``, which is downloaded once through huggingface_hub.

    Raises:
        CheckpointError: if it is missing, damaged, or not an adapter of this package.
        HubError: if it cannot be fetched.
    """
    path = find_adapter(path)
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: is not an adapter file (format {metadata.get('format')!r}, expected {FORMAT!r}); "
            "pre-trained weights belong in backbone.weights"
        )
    try:
        stored = {key: json.loads(metadata[key]) for key in ("config", "metrics", "versions")}
        for key in ("metrics", "versions"):
            if not isinstance(stored[key], dict):
                raise TypeError(f"{key} is {stored[key]!r}")
        config = Config.of(stored["config"], str(path))
        if not TASKS[config.task.name].adapts:
            raise TypeError(f"its task is {config.task.name}, which has no adapters")
        values = {key: json.loads(text) for key, text in metadata.items() if key not in OWN}
        of_facts = {name: tensors.pop(name) for name in list(tensors) if "/" in name}
        info = AdapterInfo(
            path=path,
            config=config,
            facts=TASKS[config.task.name].stores.restored(config, values, of_facts),
            metrics=stored["metrics"],
            versions=stored["versions"],
            backbone_hash=metadata["backbone_hash"],
            tensors=tensors,
        )
        _require_consistent(info)
    except ConfigError as error:  # which is a ValueError
        raise CheckpointError(str(error)) from None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: its metadata is damaged ({_brief(error)}); copy the file again") from None
    return info


def _brief(error: Exception) -> str:
    text = repr(error)
    return text if len(text) <= 300 else f"{text[:300]}…"


def _require_consistent(info: AdapterInfo) -> None:
    """Raises a ValueError for values that can be parsed but make no sense."""
    prepared = Preparation.stored(info.metrics)
    if prepared is not None and not 1 <= prepared.points <= MOST_POINTS:
        raise ValueError(f"inputs of {shown(prepared.points)} points")


@overload
def load_adapter(  # type: ignore[overload-overlap]
    model: AdaptedModel, adapter: str | Path | AdapterInfo
) -> AdapterInfo: ...


@overload
def load_adapter(model: nn.Module, adapter: str | Path, *, name: str = ...) -> ForeignAdapterInfo: ...


def load_adapter(
    model: AdaptedModel | nn.Module, adapter: str | Path | AdapterInfo, *, name: str = "default"
) -> AdapterInfo | ForeignAdapterInfo:
    """Loads an adapter into a freshly built model, or into any model that it was made for, which it adapts.

    Args:
        model: built from the adapter's config, with the backbone weights that it belongs to; or a model of another
            library, or of yours, with those weights, adapted or not.
        adapter: file, or what :func:`read_adapter` returned.
        name: of the adapter in a model that is not of this package.

    Raises:
        CheckpointError: if the adapter belongs to another backbone (both hashes are shown), to another
            method, or does not fit; the model keeps its weights.
    """
    if not isinstance(model, AdaptedModel):
        return load_foreign(model, adapter.path if isinstance(adapter, AdapterInfo) else adapter, name)
    info = adapter if isinstance(adapter, AdapterInfo) else read_adapter(adapter)
    target = model.state_dict()
    class_token = {f"backbone.{name}" for name in model.backbone.class_parameters()}
    rest = {name for name in target if name.startswith("backbone.")} - class_token
    # A full fine-tuning file brings every backbone tensor, so it needs no particular backbone.
    if not rest <= info.tensors.keys() and info.backbone_hash != model.backbone_hash:
        raise CheckpointError(
            f"{info.path}: belongs to the backbone with hash {info.backbone_hash[:16]}…, but the model's backbone has "
            f"{model.backbone_hash[:16]}…; set backbone.weights (or --weights) to the file the adapter was "
            f"trained on ({info.config.backbone.weights or 'random weights of backbone.init_seed'})"
        )
    _require_same_recipe(info, model)
    needed = set(model.adapter_state())
    buffers = {f"backbone.{name}" for name, _ in model.backbone.named_buffers()}
    missing = sorted(needed - info.tensors.keys() - buffers)
    unexpected = sorted(info.tensors.keys() - needed - buffers)
    if missing or unexpected:
        which = f"lacks {missing[0]}" if missing else f"has {unexpected[0]}, which the model does not train"
        raise CheckpointError(
            f"{info.path}: was made with method '{info.method.name}' and {which}; "
            "build the model from the adapter's own config"
        )
    for name, tensor in info.tensors.items():
        if tensor.shape != target[name].shape:
            raise other_shape(info, name, target[name])
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{info.path}: {name} holds NaN or infinite values; the file is damaged")
    model.load_state_dict(info.tensors, strict=False)
    return info


def other_shape(info: AdapterInfo, name: str, wanted: Tensor) -> CheckpointError:
    """The error for a tensor of another shape than the model's."""
    return CheckpointError(
        f"{info.path}: {name} has shape {tuple(info.tensors[name].shape)}, the model needs {tuple(wanted.shape)}; "
        "build the model from the adapter's own config"
    )


def find_adapter(path: str | Path) -> Path:
    """The file that :func:`read_adapter` reads.

    Raises:
        CheckpointError: if there is no such file.
        HubError: if it cannot be fetched.
    """
    if str(path).startswith(HUB):
        address = Address.parse(str(path))
        return fetch(address._replace(file=address.file or ADAPTER_FILE))
    if (shipped := shipped_adapter(path)) is not None:
        return shipped
    path = Path(path)
    file = path / ADAPTER_FILE if path.is_dir() else path
    if not file.exists():
        raise CheckpointError(_why_no_adapter(path, file.parent))
    return file


def _why_no_adapter(path: Path, folder: Path) -> str:
    """The reason why a path holds no adapter, for the error message."""
    if not (folder / STATE_FILE).is_file():
        what = "holds no adapter" if path.is_dir() else "no such run or file"
        return f"{path}: {what}; {ADAPTERS}"
    if (folder / METRICS_FILE).is_file():
        return f"{folder}: is a run without an adapter; weights of a pre-training run belong in backbone.weights"
    return f"{folder}: the run is not finished and has kept no adapter yet; continue it with --resume {folder}"


def _require_same_recipe(info: AdapterInfo, model: AdaptedModel) -> None:
    """Compares positions, scales and the order of pools, which can differ although all shapes agree."""
    if model.recipe is None:
        return
    trained = model_recipe(info.config)
    differing = sorted(
        key for key in {*trained, *model.recipe} if trained.get(key, None) != model.recipe.get(key, None)
    )
    if differing:
        key = differing[0]
        raise CheckpointError(
            f"{info.path}: was trained with {key}={trained.get(key)}, the model has {model.recipe.get(key)} "
            f"({len(differing)} keys differ: {', '.join(differing)}); build the model from the adapter's own config"
        )


def model_recipe(config: Config) -> dict[str, Any]:
    """The part of a config that determines what a trained model computes: ``section.key`` to value."""
    irrelevant = {
        *("backbone.weights", "backbone.averaged_weights", "backbone.init_seed", "backbone.drop_path"),
        "backbone.label",
        *("head.dropout", "method.dropout", "method.scale_bias", "method.search"),
        *("method.soft_balance", "method.xavier"),
        *(f"task.{key}" for key in TASKS[config.task.name].test_keys),
    }
    sections = {"task": config.task, "backbone": config.backbone, "method": config.method, "head": config.head}
    recipe = {
        f"{name}.{key}": value
        for name, section in sections.items()
        if section is not None
        for key, value in section.model_dump().items()
    }
    return {key: value for key, value in recipe.items() if key not in irrelevant}


def versions() -> dict[str, str]:
    """Versions that a result may depend on."""
    found = {}
    for name in ("pointadapterx", "torch", "accelerate", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
