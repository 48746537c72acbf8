"""Loads pre-trained and published weights, and notices everything that is missing."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.checkpoints.eight_bit import unpacked
from pointadapterx.checkpoints.kinds import Kind, recognise
from pointadapterx.checkpoints.shipped import backbone_sizes, find_weights
from pointadapterx.errors import CheckpointError
from pointadapterx.files import read_npz, read_safetensors, read_torch_file
from pointadapterx.models.backbone import Backbone
from pointadapterx.models.checkpoint_places import averaged_copy, find_state, unwrapped
from pointadapterx.models.features import Head
from pointadapterx.models.point_mae import MaskedAutoencoder

log = logging.getLogger(__name__)

# What only other architectures have, and without which the rest computes something else: layer scale (DeiT III, DINOv2,
# BEiT), norms of queries and keys, relative positions, a qkv bias where this backbone has none, norms elsewhere (CLIP),
# a local branch (Point-FEMAE).
STRANGE = re.compile(
    r"\.ls[12]\.gamma$|\.gamma_[12]$|\.attn\.[qk]_norm\.|relative_position|\.attn\.qkv\.bias$|^(norm_pre|fc_norm)\."
    r"|blocks\.\d+\.cls\.|(^|\.)(reg_token|register_tokens)$"
)

_HEAD_LAYER = re.compile(r"head\.mlp\.(\d+)\.")

STATE_KEYS = ("base_model", "model", "state_dict", "model_state_dict", "module")
"""Where projects keep the state dict."""


class LoadReport(NamedTuple):
    """What loading a checkpoint found.

    Attributes:
        path: the file.
        found: names of the model's tensors that were loaded.
        missing: names that the file does not have; the class token, the method and the head may be among
            them, encoder weights never are.
        unexpected: names in the file that nothing was loaded from (a decoder, a head of another size).
        coverage: fraction of the backbone's values (class token excluded) that were loaded.
        notes: what was chosen or left out, in words.
    """

    path: str
    found: list[str]
    missing: list[str]
    unexpected: list[str]
    coverage: float
    notes: Sequence[str] = ()

    def summary(self) -> str:
        """One line for the log."""
        return (
            f"{self.path}: {len(self.found)} tensors loaded, {len(self.missing)} kept their initial values, "
            f"{len(self.unexpected)} in the file not used; {100 * self.coverage:.1f} % of the encoder's weights"
        )


def load_pretrained(model: nn.Module, path: str | Path, *, averaged: bool = False) -> LoadReport:
    """Loads a published or own checkpoint into a model.

    Args:
        model: a :class:`Backbone`, an :class:`AdaptedModel` (head and DAPT parts are loaded where the file
            has them) or a :class:`MaskedAutoencoder`.
        path: what :func:`~pointadapterx.checkpoints.shipped.find_weights` takes: shipped weights by name, or a path:
            ``.safetensors``, Google's ``.npz`` (ViT), or a ``torch.save`` file (``{'base_model': state_dict}``,
            ``{'model': …}``, ``{'state_dict': …}`` or a bare state dict). Never runs code from the file.
        averaged: take the running average of the trained weights (a teacher, a momentum encoder) in their place.

    Returns:
        The report. Loading is all or nothing: on an error the model keeps its weights.

    Raises:
        CheckpointError: if the file cannot be read, is of another architecture, holds several encoders, lacks an
            encoder weight, or a shape differs.
    """
    path = find_weights(path)
    try:
        return _load(model, path, averaged)
    except CheckpointError as error:
        text = str(error)
        raise CheckpointError(text if text.startswith(f"{path}: ") else f"{path}: {text}") from None


def _load(model: nn.Module, path: Path, averaged: bool) -> LoadReport:
    state, metadata, notes = _read_state(path)
    if averaged:
        state, word = averaged_copy(state)
        notes = [*notes, word]
    sizes = backbone_sizes(path, metadata)
    backbone = _backbone_of(model)
    kind = recognise(state)
    translate = (model if isinstance(model, MaskedAutoencoder) else backbone).translate
    tensors, unexpected, choices, zero = translate(state)
    notes = [*notes, *choices]
    if isinstance(model, Backbone):
        unexpected += sorted(name for name in tensors if not name.startswith("backbone."))
        tensors = {k.removeprefix("backbone."): v for k, v in tensors.items() if k.startswith("backbone.")}
    target = model.state_dict()
    unexpected += sorted(set(tensors) - set(target))
    if isinstance(model, AdaptedModel):
        of_head = _published_head(model.head, {**tensors, **state}, unexpected, target)
        tensors = {**tensors, **dict(of_head.values())}
        unexpected = [name for name in unexpected if name not in of_head]
    prefix = _prefix(model)
    for name in (f"{prefix}{name.removeprefix('backbone.')}" for name in zero):
        if name in target and name not in tensors:
            tensors[name] = torch.zeros_like(target[name])
    sizes_differ = _sizes_problem(tensors, target, prefix, backbone, kind)
    tensors = {
        name: backbone.fit_tensor(name.removeprefix(prefix), tensor)
        for name, tensor in tensors.items()
        if name in target
    }

    optional = _optional_names(model)
    lacking = [name for name in sorted(target) if name not in tensors and name not in optional]
    if lacking or sizes_differ:
        _require_kind(kind, backbone)
    if sizes_differ:
        raise CheckpointError(sizes_differ)
    if lacking:
        what = "It looks like no kind of file that is known here" if kind is None else f"It looks like {kind.words}"
        raise CheckpointError(
            f"{len(lacking)} encoder tensors are missing, first {lacking[0]}; the file's own names look like "
            f"{', '.join(list(state)[:3])}. {what}; give a whole checkpoint of {_name(backbone)}"
        )
    strange = [name for name in unexpected if STRANGE.search(name) and not (kind is not None and kind.explains(name))]
    if strange:
        other = _words(kind) if kind is not None and kind.backbone is None else "another architecture"
        raise CheckpointError(
            f"{strange[0]} ({len(strange)} such) belongs to a layer that this backbone does not have, so it would "
            f"compute something else; the file is of {other}"
        )
    for name, tensor in tensors.items():
        if not name.startswith("head.") and tensor.shape != target[name].shape:
            raise CheckpointError(
                f"{name} has shape {tuple(tensor.shape)}, the model needs {tuple(target[name].shape)}; "
                f"set {', '.join(f'backbone.{key}' for key in backbone.sizes)} to the checkpoint's sizes"
            )
    left_out = _head_left_out(tensors, target, unexpected)
    unexpected += sorted(left_out - set(unexpected))
    tensors = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    if kind is not None and kind.words == "ReCon":
        left = sum("_contrast." in name for name in unexpected)
        notes.append(
            f"ReCon: {left} tensors of its contrast branch are left out, as papers on adapters do: these are its "
            "weights in the architecture of Point-MAE, which is not ReCon itself"
        )
    notes += _unexplained(unexpected, kind)
    _require_finite(path, tensors)
    _compare_sizes(path, sizes, backbone)
    model.load_state_dict(tensors, strict=False)
    if isinstance(model, AdaptedModel):
        model.remember_backbone()
    for note in notes:
        log.warning("%s: %s", path, note)
    return LoadReport(
        str(path),
        sorted(tensors),
        sorted(name for name in target if name not in tensors),
        unexpected,
        _coverage(target, tensors, optional),
        notes,
    )


def _published_head(
    head: Head, state: Mapping[str, Tensor], names: Sequence[str], target: Mapping[str, Tensor]
) -> dict[str, tuple[str, Tensor]]:
    """What the head knows under published names: names among ``names`` to the model's, and the tensors."""
    found = {}
    for name in names:
        own = head.published_name(name.removeprefix("head."))
        if own is None or f"head.{own}" not in target:
            continue
        tensor, wanted = state[name], target[f"head.{own}"]
        if (tensor.ndim, wanted.ndim) in ((3, 2), (2, 3)):  # a 1x1 convolution (out, in, 1) is a linear layer (out, in)
            tensor = tensor.squeeze(-1) if tensor.ndim == 3 else tensor.unsqueeze(-1)
        found[name] = f"head.{own}", tensor
    return found


def _head_left_out(tensors: Mapping[str, Tensor], target: Mapping[str, Tensor], unexpected: list[str]) -> set[str]:
    """Names of a head's tensors that are of no use, and are reported.

    Those of a last layer for other classes; where any other layer does not fit, the whole head's, as trained layers
    behind one with random weights would be worth nothing.
    """
    of_head = {name for name in tensors if name.startswith("head.")}
    others = {name for name in of_head if tensors[name].shape != target[name].shape}
    last = max((int(match[1]) for name in target if (match := _HEAD_LAYER.match(name))), default=None)
    before = any(name.startswith("head.") for name in unexpected) or any(
        not name.startswith(f"head.mlp.{last}.") for name in others
    )
    return of_head if before else others


def _read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """Tensors of a checkpoint, the metadata of a safetensors file, and what there is to say about the choice."""
    if path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)
        return unpacked(unwrapped(tensors)), metadata, []
    if path.suffix == ".npz":
        return read_npz(path), {}, []
    content, notes = read_torch_file(path), []
    found = find_state(content) if isinstance(content, Mapping) else None
    if found is not None:
        content, notes = content[found.prefix], found.notes
    else:
        for key in STATE_KEYS:
            if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
                content = content[key]
                break
    tensors = _tensors_only(content)
    for name, tensor in tensors.items():
        if tensor.layout == torch.strided and tensor.nbytes > tensor.untyped_storage().nbytes():
            raise CheckpointError(
                f"{path}: {name} is said to have the shape {tuple(tensor.shape)}, and fewer values are stored for it; "
                "save it with .contiguous()"
            )
    if not tensors:
        keys = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(
            f"{path}: holds no state dict (found: {keys}); expected {{'base_model': state_dict}} or a state dict"
        )
    return unwrapped(tensors), {}, notes


def _name(backbone: Backbone) -> str:
    return str(type(backbone).Options.model_fields["name"].default)


def _words(kind: Kind) -> str:
    return f"{kind.words}, which needs {kind.needs}; that is not supported" if kind.needs else kind.words


def _unexplained(unexpected: list[str], kind: Kind | None) -> list[str]:
    """A note on names that nothing was loaded from though no layout of such files has them."""
    known = ("head.", "method.")  # whatever does not fit there is in the report
    odd = [n for n in unexpected if not n.startswith(known) and (kind is None or not kind.explains(n))]
    if not odd:
        return []
    listed = ", ".join(odd[:3]) + (", …" if len(odd) > 3 else "")
    return [f"{len(odd)} tensors that are unknown in such a file are not loaded: {listed}"]


def _require_kind(kind: Kind | None, backbone: Backbone) -> None:
    """Refuses files that belong to another architecture."""
    name = _name(backbone)
    if kind is None or kind.backbone == name or backbone.foreign:
        return
    if kind.backbone is None:
        way = kind.way or f"give weights of {name}"
        why = f": it needs {kind.needs}, which is not supported" if kind.needs else ""
        raise CheckpointError(f"this looks like {kind.words}, which backbone.name={name} cannot load{why}; {way}")
    raise CheckpointError(
        f"this looks like {kind.words}, whose weights belong to backbone.name={kind.backbone}, and the backbone is "
        f"{name}, which takes {backbone.modality}; choose that one, or give weights of {name}"
    )


def _sizes_problem(
    tensors: Mapping[str, Tensor], target: Mapping[str, Tensor], prefix: str, backbone: Backbone, kind: Kind | None
) -> str | None:
    """Which sizes and options differ between file and config, judged by names and shapes of tensors."""
    options = type(backbone).Options.model_fields
    stored, own = (backbone.options_in(_of_backbone(part, prefix)) for part in (tensors, target))
    if "depth" in own and "depth" not in stored:  # no blocks: what is missing says more
        return None
    differing = [key for key in stored if stored[key] != own.get(key) and (key in own or key not in options)]
    if not differing:
        return None
    listed = ", ".join(
        f"{key.replace('_', ' ')} {_as_yaml(stored[key])}"
        + (f" (the backbone: {_as_yaml(own[key])})" if key in own else "")
        for key in differing
    )
    what = "this is" if kind is None else f"this looks like {kind.words},"
    if not all(key in options for key in differing):
        needs = f" ({kind.words} needs {kind.needs})" if kind is not None and kind.needs else ""
        return (
            f"{what} of other sizes than the backbone: {listed}; no option changes that{needs}, so give another "
            "checkpoint"
        )
    where = f"as {kind.preset} does, " if kind is not None and kind.preset else ""
    way = " ".join(f"backbone.{key}={_as_yaml(stored[key])}" for key in differing)
    return f"{what} of other sizes or options than the backbone: {listed}; {where}set {way}"


def _of_backbone(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those of the backbone, by its own names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _as_yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _compare_sizes(path: Path, sizes: Mapping[str, Any], backbone: Backbone) -> None:
    """Checks what tensor shapes do not show: heads must agree; other patches than in pre-training give a warning."""
    own = [stage.blocks[0].num_heads for stage in backbone.stages]
    now = own[0] if len(own) == 1 else own
    heads = sizes.get("num_heads", now)
    if heads != now:
        raise CheckpointError(
            f"{path}: was pre-trained with num_heads={heads}, the backbone has {now}; set backbone.num_heads={heads}"
        )
    grouping = getattr(backbone, "grouping", None)
    for key in ("group_size", "skip_origin"):
        found = getattr(grouping, key, None)
        if key in sizes and found != sizes[key]:
            log.warning("%s: was pre-trained with %s=%s, the backbone has %s", path, key, sizes[key], found)


def _backbone_of(model: nn.Module) -> Backbone:
    if isinstance(model, AdaptedModel):
        return model.backbone
    backbone = model.encoder if isinstance(model, MaskedAutoencoder) else model
    assert isinstance(backbone, Backbone)
    return backbone


def _tensors_only(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        return {}
    return {str(name): value.detach() for name, value in content.items() if isinstance(value, Tensor)}


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


def _coverage(target: dict[str, Tensor], tensors: dict[str, Tensor], optional: set[str]) -> float:
    needed = {name: value.numel() for name, value in target.items() if name not in optional}
    return sum(count for name, count in needed.items() if name in tensors) / sum(needed.values())


def _require_finite(path: Path, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: {name} holds NaN or infinite values; the checkpoint is damaged")
