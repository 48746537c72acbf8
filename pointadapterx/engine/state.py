"""The state of an unfinished run: enough to continue bit for bit, in one atomically written file.

There is no random state to store: every random draw of a run is seeded by (seed, purpose, epoch, step).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pointadapterx.errors import CheckpointError, shown
from pointadapterx.files import read_safetensors, write_safetensors

FORMAT = "pointadapterx-state-2"


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: epoch in progress, from 0.
        step: optimiser steps of it already done.
        sums: training totals of the epoch in progress: numbers or nested lists of them.
        seconds: time spent on the epoch in progress.
        best_score, best_epoch: best selection metric so far and its epoch (-1: none yet).
        history: one record per finished epoch.
        identity: what the run must still be when it is resumed (data checksums, backbone hash,
            number of processes).
    """

    epoch: int = 0
    step: int = 0
    sums: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    best_score: float = float("-inf")
    best_epoch: int = -1
    history: list[dict[str, Any]] = field(default_factory=list)
    identity: dict[str, str] = field(default_factory=dict)


def save_state(
    path: Path,
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Writes tensors of the model, optimiser, gradient scaler and progress.

    Args:
        path: file to (atomically) write.
        model: gives its parameters' names.
        tensors: what of the model's state has to be stored.
        optimizer: of that model.
        progress: how far the run has come.
        scaler: gradient scaler under fp16.

    Raises:
        CheckpointError: if it cannot be written; the previous file is unchanged.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    content = {f"model/{name}": tensor for name, tensor in tensors.items()}
    for parameter, slots in optimizer.state.items():
        for slot, value in slots.items():
            content[f"optimizer/{names[id(parameter)]}/{slot}"] = torch.as_tensor(value)
    metadata = {"format": FORMAT, "progress": json.dumps(asdict(progress))}
    if scaler is not None:
        metadata["scaler"] = json.dumps(scaler.state_dict())
    write_safetensors(path, content, metadata)


def load_state(
    path: Path,
    model: nn.Module,
    needed: set[str],
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, str],
    scaler: torch.amp.GradScaler | None = None,
) -> Progress:
    """Restores what :func:`save_state` wrote; on an error nothing is changed.

    Args:
        path: the state file.
        model: as the run built it.
        needed: names of the model's tensors that the file must hold.
        optimizer: of that model.
        identity: what data, backbone and processes are now, compared with the run's.
        scaler: gradient scaler under fp16.

    Raises:
        CheckpointError: if the file is damaged, of another model, or the run's data or backbone have changed.
    """
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is not the state of a run (format {metadata.get('format')!r})")
    try:
        progress = Progress(**json.loads(metadata["progress"]))
        for place in fields(Progress):  # a value of another kind, such as null, would fail far from here
            default = getattr(Progress(), place.name)
            wanted = (int, float) if isinstance(default, float) else type(default)
            if not isinstance(getattr(progress, place.name), wanted):
                raise TypeError(f"{place.name} is {shown(getattr(progress, place.name))}")
        scaler_state = json.loads(metadata["scaler"]) if "scaler" in metadata else None
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its metadata is damaged ({error!r}); start the run again") from None
    _require_same_run(path, progress.identity, identity)
    values = {name.removeprefix("model/"): t for name, t in tensors.items() if name.startswith("model/")}
    own, parameters = model.state_dict(), dict(model.named_parameters())
    fits = needed <= values.keys() and all(
        name in own and own[name].shape == tensor.shape for name, tensor in values.items()
    )
    slots: list[tuple[str, str, Tensor]] = []
    for key, tensor in tensors.items():
        if key.startswith("optimizer/"):
            _, _, rest = key.partition("/")
            name, _, slot = rest.rpartition("/")
            slots.append((name, slot, tensor))
            fits &= name in parameters and (slot == "step" or tensor.shape == parameters[name].shape)
    if not fits:
        raise CheckpointError(f"{path}: belongs to another model; resume with the run's own folder and weights")
    model.load_state_dict(values, strict=False)
    for name, slot, tensor in slots:
        optimizer.state[parameters[name]][slot] = tensor.to(parameters[name].device)
    if scaler is not None and scaler_state is not None:
        scaler.load_state_dict(scaler_state)
    return progress


def _require_same_run(path: Path, then: Mapping[str, str], now: Mapping[str, str]) -> None:
    for what, value in now.items():
        if then.get(what) == value:
            continue
        old = then.get(what, "unknown")
        if what == "processes":
            raise CheckpointError(
                f"{path}: the run used {old} process(es), now there are {value}; its random draws depend on them, "
                f"so resume it with {old}"
            )
        thing = "backbone weights" if what == "backbone" else f"{what} data"
        raise CheckpointError(
            f"{path}: the run's {thing} differ from those found now ({old[:16]}… then, {value[:16]}… now); restore "
            "them, or start a new run"
        )
