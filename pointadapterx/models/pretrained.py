"""Loading pre-trained and published weights: nothing missing goes unnoticed."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pointadapterx.errors import CheckpointError
from pointadapterx.files import read_npz, read_safetensors, read_torch_file
from pointadapterx.models.adapted import AdaptedModel
from pointadapterx.models.backbone import Backbone
from pointadapterx.models.block import Block
from pointadapterx.models.point_mae import MaskedAutoencoder
from pointadapterx.models.weights import backbone_sizes, find_weights

log = logging.getLogger(__name__)

# What other architectures have besides, without which the rest computes something else: layer scale (DeiT III, DINOv2,
# BEiT), norms of queries and keys, relative positions, a qkv bias where there is none here, norms elsewhere (CLIP).
STRANGE = re.compile(
    r"\.ls[12]\.gamma$|\.gamma_[12]$|\.attn\.[qk]_norm\.|relative_position|\.attn\.qkv\.bias$|^(module\.)?(norm_pre|fc_norm)\."
)


class LoadReport(NamedTuple):
    """What loading a checkpoint found.

    Attributes:
        path: the file.
        found: names of the model's tensors that were loaded.
        missing: names that the file does not have; the class token, the method and the head may be among
            them, encoder weights never are.
        unexpected: names in the file that nothing was loaded from (a decoder, a head of another size).
        coverage: fraction of the backbone's values (class token excluded) that were loaded.
    """

    path: str
    found: list[str]
    missing: list[str]
    unexpected: list[str]
    coverage: float

    def summary(self) -> str:
        """One line for the log."""
        return (
            f"{self.path}: {len(self.found)} tensors loaded, {len(self.missing)} kept their initial values, "
            f"{len(self.unexpected)} in the file not used; {100 * self.coverage:.1f} % of the encoder's weights"
        )


def load_pretrained(model: nn.Module, path: str | Path) -> LoadReport:
    """Loads a published or own checkpoint into a model.

    Args:
        model: a :class:`Backbone`, an :class:`AdaptedModel` (head and DAPT parts are loaded where the file
            has them) or a :class:`MaskedAutoencoder`.
        path: what :func:`~pointadapterx.models.weights.find_weights` takes: shipped weights by name, or a path:
            ``.safetensors``, Google's ``.npz`` (ViT), or a ``torch.save`` file (``{'base_model': state_dict}``,
            ``{'model': …}``, ``{'state_dict': …}`` or a bare state dict). Never runs code from the file.

    Returns:
        The report. Loading is all or nothing: on an error the model keeps its weights.

    Raises:
        CheckpointError: if the file cannot be read, an encoder weight is missing, or a shape differs.
    """
    path = find_weights(path)
    state, sizes = _read_state(path)
    backbone = _backbone_of(model)
    tensors, unexpected = (model if isinstance(model, MaskedAutoencoder) else backbone).translate(state)
    if isinstance(model, Backbone):
        unexpected += sorted(name for name in tensors if not name.startswith("backbone."))
        tensors = {k.removeprefix("backbone."): v for k, v in tensors.items() if k.startswith("backbone.")}
    target = model.state_dict()
    unexpected += sorted(set(tensors) - set(target))
    prefix = _prefix(model)
    tensors = {
        name: backbone.fit_tensor(name.removeprefix(prefix), tensor)
        for name, tensor in tensors.items()
        if name in target
    }

    optional = _optional_names(model)
    missing = sorted(name for name in target if name not in tensors)
    lacking = [name for name in missing if name not in optional]
    if lacking:
        raise CheckpointError(
            f"{path}: {len(lacking)} encoder tensors are missing, first {lacking[0]}; "
            f"the file's own names look like {', '.join(list(state)[:3])}. It is not a checkpoint of this backbone, "
            "or backbone.depth is too large for it"
        )
    last_block = max(map(_block_number, target))
    deeper = [name for name in unexpected if _block_number(name) > last_block]
    if deeper:
        raise CheckpointError(f"{path}: has more blocks than the model, for example {deeper[0]}; raise backbone.depth")
    strange = [name for name in unexpected if STRANGE.search(name)]
    if strange:
        raise CheckpointError(
            f"{path}: {strange[0]} ({len(strange)} such) belongs to a layer that this backbone does not have, so it "
            "would compute something else; the file is of another architecture"
        )
    for name in list(tensors):
        if tensors[name].shape == target[name].shape:
            continue
        if name.startswith("head."):  # another task's head: not used, and reported
            unexpected.append(name)
            del tensors[name]
            continue
        raise CheckpointError(
            f"{path}: {name} has shape {tuple(tensors[name].shape)}, the model needs {tuple(target[name].shape)}; "
            f"set {backbone.size_keys} to the checkpoint's sizes"
        )
    _require_finite(path, tensors)
    _compare_sizes(path, sizes, backbone)
    model.load_state_dict(tensors, strict=False)
    if isinstance(model, AdaptedModel):
        model.remember_backbone()
    return LoadReport(
        str(path),
        sorted(tensors),
        sorted(name for name in target if name not in tensors),
        unexpected,
        _coverage(target, tensors, optional),
    )


def _read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a checkpoint, and the sizes that a file of our own pre-training tells."""
    if path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)
        return tensors, backbone_sizes(path, metadata)
    if path.suffix == ".npz":
        return read_npz(path), {}
    content = read_torch_file(path)
    for key in ("base_model", "model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = _tensors_only(content)
    if not tensors:
        keys = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(
            f"{path}: holds no state dict (found: {keys}); expected {{'base_model': state_dict}} or a state dict"
        )
    return tensors, {}


def _compare_sizes(path: Path, sizes: Mapping[str, Any], backbone: Backbone) -> None:
    """What no tensor's shape tells: the heads must agree; other patches than in pre-training are worth a warning."""
    block = backbone.blocks[0]
    assert isinstance(block, Block)
    heads = sizes.get("num_heads", block.attn.num_heads)
    if heads != block.attn.num_heads:
        raise CheckpointError(
            f"{path}: was pre-trained with num_heads={heads}, the backbone has {block.attn.num_heads}; "
            f"set backbone.num_heads={heads}"
        )
    grouping = getattr(backbone, "grouping", None)
    for key in ("group_size", "skip_origin"):
        now = getattr(grouping, key, None)
        if key in sizes and now != sizes[key]:
            log.warning("%s: was pre-trained with %s=%s, the backbone has %s", path, key, sizes[key], now)


def _backbone_of(model: nn.Module) -> Backbone:
    if isinstance(model, AdaptedModel):
        return model.backbone
    backbone = model.encoder if isinstance(model, MaskedAutoencoder) else model
    assert isinstance(backbone, Backbone)
    return backbone


def _tensors_only(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        return {}
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _prefix(model: nn.Module) -> str:
    """What the names of the backbone's tensors begin with in the model's."""
    return "backbone." if isinstance(model, AdaptedModel) else "encoder." * isinstance(model, MaskedAutoencoder)


def _optional_names(model: nn.Module) -> set[str]:
    """Names that a checkpoint may lack: class token, the method's parts, the head, batch counters."""
    prefix, backbone = _prefix(model), _backbone_of(model)
    names = model.state_dict().keys()
    return {
        *(f"{prefix}{name}" for name in backbone.class_parameters()),
        *(name for name in names if name.startswith(("method.", "head."))),
        *(name for name in names if name.endswith("num_batches_tracked")),
    }


def _block_number(name: str) -> int:
    """Index of the encoder block that one of our tensor names belongs to, or -1."""
    match = re.match(r"(?:backbone\.|encoder\.)?blocks\.(\d+)\.", name)
    return int(match.group(1)) if match else -1


def _coverage(target: dict[str, Tensor], tensors: dict[str, Tensor], optional: set[str]) -> float:
    needed = {name: value.numel() for name, value in target.items() if name not in optional}
    return sum(count for name, count in needed.items() if name in tensors) / sum(needed.values())


def _require_finite(path: Path, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: {name} holds NaN or infinite values; the checkpoint is damaged")
