"""Adapters in huggingface/peft's format: a folder with ``adapter_config.json`` and ``adapter_model.safetensors``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pointadapterx.adapting import DEFAULT, attach
from pointadapterx.adapting.adapters import adapters_of, base_state
from pointadapterx.errors import CheckpointError, ConfigError, reason_of
from pointadapterx.files import new_folder, read_safetensors, write_json, write_safetensors
from pointadapterx.models.foreign import ForeignHost, Sites
from pointadapterx.peft.lora import Lora
from pointadapterx.peft.parts.low_rank import QKV, LowRank, LowRankQkv

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
PARTS = {"lora_A.weight": "down.weight", "lora_B.weight": "up.weight", "lora_magnitude_vector": "magnitude"}
"""What peft calls the tensors of an update, and what we do."""
KEYS = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "use_dora": "dora", "use_rslora": "rslora"}
"""Keys of peft's config, and of ours."""
PLAIN: dict[str, Any] = {"bias": "none", "lora_bias": False, "fan_in_fan_out": False}
HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying"),
    *("eva_config", "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform"),
    *("loftq_config", "megatron_config", "megatron_core", "modules_to_save", "peft_type", "peft_version"),
    *("qalora_group_size", "revision", "runtime_config", "target_modules", "task_type"),
}
"""Keys of peft's config that do not change what a stored adapter computes, or whose values are checked elsewhere."""


class Place(NamedTuple):
    """A layer that LoRA may change.

    Attributes:
        block: number of its block.
        target: of the method's ``targets``.
        path: of the layer in the model.
    """

    block: int
    target: str
    path: str


def load_peft_adapter(
    model: nn.Module, folder: str | Path, *, sites: Sites | str | None = None, name: str = DEFAULT
) -> nn.Module:
    """Adapts a model in place by a LoRA, rsLoRA or DoRA adapter that peft has saved.

    Args:
        model: the one that the adapter was trained on, with its weights.
        folder: with the two files.
        sites: as in :func:`~pointadapterx.adapting.adapt`.
        name: of the adapter here.

    Returns:
        The same object.

    Raises:
        CheckpointError: if files are missing or damaged, or hold what ``lora`` does not have.
        ConfigError: as for :func:`~pointadapterx.adapting.adapt`.
    """
    folder = Path(folder)
    stored = _read_config(folder / CONFIG)
    tensors = {key.removeprefix(PREFIX): value for key, value in read_safetensors(folder / TENSORS)[0].items()}
    saved = list(stored.get("modules_to_save") or [])
    places = {place.path: place for place in _places(model, sites)}
    changed = {key.removesuffix(f".{part}") for key in tensors for part in PARTS if key.endswith(f".{part}")}
    wrong = sorted(path for path in changed if path not in places)
    if wrong:
        raise CheckpointError(f"{folder}: changes '{wrong[0]}', at which lora does not act in this model")
    targets = {places[path].target for path in changed}
    lacking = sorted(place.path for place in places.values() if place.target in targets and place.path not in changed)
    if lacking:
        raise CheckpointError(f"{folder}: leaves out '{lacking[0]}'; lora changes a target in every block")
    wanted = {**_shapes(model, sorted(changed), stored), **_shapes_of(model, saved)}
    for key in sorted(wanted.keys() | tensors.keys()):
        if key not in wanted or key not in tensors:
            raise CheckpointError(f"{folder}: {'lacks' if key in wanted else 'has'} the tensor '{PREFIX}{key}'")
        if wanted[key] != tensors[key].shape:
            raise CheckpointError(f"{folder}: '{key}' is {list(tensors[key].shape)}, not {list(wanted[key])}")
    options = {ours: stored[theirs] for theirs, ours in KEYS.items() if stored.get(theirs)}
    order = [target for target in (*QKV, "proj", "fc1", "fc2") if target in targets]
    attach(model, "lora", train=saved, sites=sites, name=name, options={**options, "targets": order})
    with torch.no_grad():
        for key, value in {**_tensors(model, name, list(places.values())), **_own(model, name)}.items():
            value.copy_(tensors[key])
    return model


def save_peft_adapter(model: nn.Module, folder: str | Path, name: str = DEFAULT) -> None:
    """Writes a ``lora`` adapter of a model in peft's format, which ``PeftModel.from_pretrained`` reads.

    Args:
        model: adapted by :func:`~pointadapterx.adapting.adapt`.
        folder: a new one.
        name: of the adapter, which must be the active one.

    Raises:
        ConfigError: if it is an adapter of another method, is not active, or changes thirds of a joint projection.
    """
    adapters = adapters_of(model)
    entry = adapters.entry(name)
    method = adapters.methods[name]
    if not isinstance(method, Lora) or adapters.active != name:
        raise ConfigError(f"adapter '{name}' is no active one of lora; peft's format is only written for lora")
    places = list(_places(model, adapters.host))
    tensors = {**_tensors(model, name, places), **_own(model, name)}
    stored: dict[str, Any] = {"peft_type": "LORA", **PLAIN}
    stored |= {theirs: getattr(method.options, ours) for theirs, ours in KEYS.items()}
    stored |= {key: bool(stored[key]) for key in ("use_dora", "use_rslora")}
    stored |= {"lora_alpha": stored["lora_alpha"] or stored["r"], "modules_to_save": entry.train or None}
    stored["target_modules"] = sorted(place.path for place in places if place.target in method.options.targets)
    with new_folder(Path(folder)) as made:
        write_json(made / CONFIG, stored)
        copies = {f"{PREFIX}{key}": value.detach().clone().contiguous() for key, value in tensors.items()}
        write_safetensors(made / TENSORS, copies, {"format": "pt"})


def _read_config(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({reason_of(error)}); give the folder that peft has saved"
        ) from None
    if not isinstance(stored, dict) or stored.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: is no adapter of LoRA")
    for key, value in stored.items():
        if value and value != PLAIN.get(key) and key not in HARMLESS and key not in KEYS:
            raise CheckpointError(f"{path}: has {key}={value!r}, which lora does not have")
    start = stored.get("init_lora_weights", True)
    if isinstance(start, str) and start not in ("gaussian", "orthogonal", "eva"):
        raise CheckpointError(
            f"{path}: init_lora_weights={start!r} has changed the model's own weights; convert it first"
        )
    return stored


def _shapes(model: nn.Module, paths: list[str], stored: Mapping[str, Any]) -> dict[str, torch.Size]:
    """Shapes that the tensors of updates must have."""
    found: dict[str, torch.Size] = {}
    for path in paths:
        layer, rank = model.get_submodule(path), int(stored["r"])
        assert isinstance(layer, nn.Linear)
        sizes = {"lora_A.weight": [rank, layer.in_features], "lora_B.weight": [layer.out_features, rank]}
        if stored.get("use_dora"):
            sizes["lora_magnitude_vector"] = [layer.out_features]
        found |= {f"{path}.{its}": torch.Size(size) for its, size in sizes.items()}
    return found


def _shapes_of(model: nn.Module, saved: list[str]) -> dict[str, torch.Size]:
    """Shapes of the model's own tensors that peft has saved as a whole."""
    inside = tuple(f"{name}." for name in saved)
    return {key: value.shape for key, value in base_state(model).items() if key.startswith(inside)}


def _places(model: nn.Module, sites: ForeignHost | Sites | str | None) -> Iterator[Place]:
    """Where LoRA may act, for layers that are targets of their own."""
    host = sites if isinstance(sites, ForeignHost) else ForeignHost.of(model, sites)
    paths = {id(module): path for path, module in model.named_modules()}
    for block in host.every_block():
        for site in block.layers():
            if site.name == "qkv" and site.parts:
                for target, part in zip(QKV, site.parts, strict=True):
                    yield Place(block.index, target, paths[id(part)])
            elif isinstance(site.module, nn.Linear):
                yield Place(block.index, site.name, paths[id(site.module)])


def _tensors(model: nn.Module, name: str, places: list[Place]) -> dict[str, Tensor]:
    """The tensors of an adapter by peft's names.

    Raises:
        ConfigError: for updates of thirds of a joint projection, which peft cannot have.
    """
    method = adapters_of(model).methods[name]
    assert isinstance(method, Lora)
    found: dict[str, Tensor] = {}
    for place in places:
        updates: Mapping[str, nn.Module] = dict(method.blocks[place.block].named_children())
        joint = updates.get("qkv")
        if place.target == "qkv" and joint is not None:
            raise ConfigError(f"lora changes thirds of the joint projection '{place.path}', which peft cannot")
        thirds = dict(joint.parts.named_children()) if isinstance(joint, LowRankQkv) else {}
        update = thirds.get(place.target) or updates.get(place.target)
        if isinstance(update, LowRank):
            values = dict(update.named_parameters())
            found |= {f"{place.path}.{its}": values[ours] for its, ours in PARTS.items() if ours in values}
    return found


def _own(model: nn.Module, name: str) -> dict[str, Tensor]:
    """The model's own tensors that are trained with an adapter."""
    state = base_state(model)
    return {key: state[key] for key in adapters_of(model).entries[name].owned}
