"""Adapter files of models that keep their own class: what an adapter adds and trains, and how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pointadapterx.adapting import adapters_of, attach, is_adapted
from pointadapterx.adapting.adapters import base_hash, base_state
from pointadapterx.errors import CheckpointError, ConfigError
from pointadapterx.files import read_safetensors, write_safetensors
from pointadapterx.models.foreign import ForeignHost, Sites
from pointadapterx.peft import Method

FORMAT = "pointadapterx-foreign-adapter-1"
METHOD, MODEL = "method.", "model."
"""Prefixes of the names of tensors: of the method, and of the model's own that are trained with it."""


class ForeignAdapterInfo(NamedTuple):
    """The content of an adapter file of a model of another library, or of a user.

    Attributes:
        path: the file.
        method: options of the method, with its ``name``.
        train: what of the model is trained too.
        sites: as :func:`~pointadapterx.adapting.adapt` takes them.
        title: of the model that it was made for.
        metrics: whatever was stored with it.
        base_hash: of the weights that it belongs to.
        tensors: names to tensors.
    """

    path: Path
    method: dict[str, Any]
    train: list[str]
    sites: Sites | str | None
    title: str
    metrics: dict[str, Any]
    base_hash: str
    tensors: dict[str, Tensor]


def save_foreign(
    model: nn.Module, path: str | Path, metrics: Mapping[str, Any] | None, versions: dict[str, str]
) -> None:
    """Writes the active adapter of a model, atomically.

    Raises:
        ConfigError: if no adapter is active.
        CheckpointError: if the file cannot be written.
    """
    adapters = adapters_of(model)
    entry = adapters.entry()
    state = base_state(model)
    tensors = {f"{METHOD}{key}": value for key, value in entry.driver.method.state_dict().items()}
    tensors |= {f"{MODEL}{key}": state[key] for key in entry.owned}
    options = entry.driver.method.options
    given = adapters.given
    metadata = {
        "format": FORMAT,
        "method": json.dumps(options.model_dump(exclude_unset=False)),
        "train": json.dumps(entry.train),
        "sites": json.dumps(given.model_dump(exclude_none=True) if isinstance(given, Sites) else given),
        "model": adapters.host.title,
        "metrics": json.dumps(dict(metrics or {})),
        "versions": json.dumps(versions),
        "base_hash": entry.base_hash,
    }
    write_safetensors(Path(path), {key: value.clone() for key, value in tensors.items()}, metadata)


def read_foreign(path: str | Path) -> ForeignAdapterInfo:
    """Reads an adapter file without a model.

    Raises:
        CheckpointError: if it is missing, damaged, or of another kind.
    """
    path = Path(path)
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: is not an adapter of a model like this (format {metadata.get('format')!r}, expected {FORMAT!r}); "
            "an adapter of this package's own models is loaded into one of those"
        )
    try:
        method, train, sites, metrics = (json.loads(metadata[key]) for key in ("method", "train", "sites", "metrics"))
        return ForeignAdapterInfo(
            path=path,
            method={**method},
            train=[str(name) for name in train],
            sites=Sites.model_validate(sites) if isinstance(sites, dict) else sites,
            title=metadata["model"],
            metrics={**metrics},
            base_hash=metadata["base_hash"],
            tensors=tensors,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its metadata is damaged ({str(error)[:200]!r}); copy the file again") from None


def load_foreign(model: nn.Module, path: str | Path, name: str) -> ForeignAdapterInfo:
    """Adapts a model as a file says, and loads the file's values; the adapter is then the active one.

    Args:
        model: with the weights that the adapter belongs to, adapted or not.
        path: the file.
        name: of the adapter; one that is there already takes the values.

    Raises:
        CheckpointError: if the file does not fit the model, which is then left as it was.
    """
    info = read_foreign(path)
    _check_kind(info, model)
    _check_own(info, model)
    active = adapters_of(model).active if is_adapted(model) else None
    there = is_adapted(model) and name in adapters_of(model).entries
    if not there:
        options = {key: value for key, value in info.method.items() if key != "name"}
        sites = None if is_adapted(model) else info.sites
        try:
            attach(model, str(info.method.get("name")), train=info.train, sites=sites, name=name, options=options)
        except ConfigError as error:
            raise CheckpointError(f"{info.path}: {error}") from None
    try:
        _fill(info, model, name)
    except CheckpointError:
        if not there:
            adapters = adapters_of(model)
            adapters.discard(model, name)
            if active is not None:
                adapters.set(model, active)
        raise
    return info


def _check_kind(info: ForeignAdapterInfo, model: nn.Module) -> None:
    """Whether the model is of the known family that the adapter was made for; a class of a user's may be renamed."""
    try:
        host = adapters_of(model).host if is_adapted(model) else ForeignHost.of(model, info.sites)
    except ConfigError:
        return  # said later, with what the file lacks of the model
    if host.family is not None and not info.title.endswith(f"({host.family.title})"):
        raise CheckpointError(
            f"{info.path}: belongs to {info.title}, but this {type(model).__name__} is {host.title}; load it into a "
            "model of that kind"
        )


def _check_own(info: ForeignAdapterInfo, model: nn.Module) -> None:
    """Whether the model is the one that the adapter was made for."""
    state = base_state(model)
    own = {key.removeprefix(MODEL): value for key, value in info.tensors.items() if key.startswith(MODEL)}
    for key, value in own.items():
        if key not in state:
            raise CheckpointError(
                f"{info.path}: trains '{key}', which {type(model).__name__} does not have; it was made for {info.title}"
            )
        if state[key].shape != value.shape:
            raise CheckpointError(
                f"{info.path}: {key} has shape {tuple(value.shape)}, the model needs {tuple(state[key].shape)}; build "
                "it as it was when the adapter was trained"
            )
    for key, value in info.tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{info.path}: {key} holds NaN or infinite values; the file is damaged")
    if own.keys() >= state.keys():
        return  # the whole model
    found = base_hash(model, info.train)
    if found != info.base_hash:
        raise CheckpointError(
            f"{info.path}: belongs to weights of {info.title} with hash {info.base_hash[:16]}…, but this "
            f"{type(model).__name__} has {found[:16]}…; load the weights that the adapter was trained on"
        )


def _options(info: ForeignAdapterInfo, method: Method) -> dict[str, Any] | None:
    """Those of a file in full, as it may be older than some keys; None where they are not of that method."""
    try:
        return type(method.options).model_validate(info.method).model_dump()
    except ValidationError:
        return None


def _fill(info: ForeignAdapterInfo, model: nn.Module, name: str) -> None:
    adapters = adapters_of(model)
    entry = adapters.entry(name)
    if _options(info, entry.driver.method) != entry.driver.method.options.model_dump():
        raise CheckpointError(
            f"{info.path}: adapter '{name}' of the model has other options than the file's {info.method.get('name')}; "
            "load it under another name"
        )
    target = entry.driver.method.state_dict()
    values = {key.removeprefix(METHOD): value for key, value in info.tensors.items() if key.startswith(METHOD)}
    wrong = sorted(target.keys() ^ values.keys()) or sorted(
        key for key in target if target[key].shape != values[key].shape
    )
    own = {key.removeprefix(MODEL): value for key, value in info.tensors.items() if key.startswith(MODEL)}
    wrong = wrong or sorted(own.keys() ^ set(entry.owned))
    if wrong:
        raise CheckpointError(
            f"{info.path}: '{wrong[0]}' does not fit {adapters.host.title} ({len(wrong)} tensors differ); it was made "
            f"for {info.title}"
        )
    entry.driver.method.load_state_dict(values)
    adapters.set(model, name)
    state = base_state(model)
    with torch.no_grad():
        for key, value in own.items():
            state[key].copy_(value)
