"""The state of an unfinished run: enough to continue bit for bit, in one atomically written file.

There is no random state to store: every random draw of a run is seeded by (seed, purpose, epoch, step).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pointadapterx.errors import CheckpointError
from pointadapterx.files import read_safetensors, write_safetensors
from pointadapterx.models.adapted import AdaptedModel

FORMAT = "pointadapterx-state-1"


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        epoch: epoch in progress, from 0.
        step: optimiser steps of it already done.
        loss_sum, correct, seen: training totals of the epoch in progress.
        seconds: time spent on the epoch in progress.
        best_score, best_epoch: best selection metric so far and its epoch (-1: none yet).
        history: one record per finished epoch.
        identity: what the run must still be when it is resumed (data checksums, backbone hash).
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    seconds: float = 0.0
    best_score: float = float("-inf")
    best_epoch: int = -1
    history: list[dict[str, Any]] = field(default_factory=list)
    identity: dict[str, str] = field(default_factory=dict)


def save_state(
    path: Path,
    model: AdaptedModel,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Writes model, optimiser, gradient scaler and progress.

    Raises:
        CheckpointError: if it cannot be written; the previous file is unchanged.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors = {f"model/{name}": tensor for name, tensor in model.adapter_state().items()}
    for parameter, slots in optimizer.state.items():
        for slot, value in slots.items():
            tensors[f"optimizer/{names[id(parameter)]}/{slot}"] = torch.as_tensor(value)
    metadata = {"format": FORMAT, "progress": json.dumps(asdict(progress))}
    if scaler is not None:
        metadata["scaler"] = json.dumps(scaler.state_dict())
    write_safetensors(path, tensors, metadata)


def load_state(
    path: Path,
    model: AdaptedModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None = None,
) -> Progress:
    """Restores what :func:`save_state` wrote.

    Raises:
        CheckpointError: if the file is damaged or of another model.
    """
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is not the state of a run (format {metadata.get('format')!r})")
    values = {name.removeprefix("model/"): t for name, t in tensors.items() if name.startswith("model/")}
    own = model.state_dict()
    needed = set(model.adapter_state())
    if not needed <= values.keys() or any(name not in own or own[name].shape != values[name].shape for name in values):
        raise CheckpointError(f"{path}: belongs to another model; resume with the run's own folder and weights")
    model.load_state_dict(values, strict=False)
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, parameter, slot = name.split("/")
            optimizer.state[parameters[parameter]][slot] = _on_device(tensor, parameters[parameter], slot)
    if scaler is not None and "scaler" in metadata:
        scaler.load_state_dict(json.loads(metadata["scaler"]))
    return Progress(**json.loads(metadata["progress"]))


def _on_device(tensor: Tensor, parameter: Tensor, slot: str) -> Tensor:
    # torch keeps the step counter on the CPU unless the optimiser is fused or capturable.
    return tensor if slot == "step" else tensor.to(parameter.device)
