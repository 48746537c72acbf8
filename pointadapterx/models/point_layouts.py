"""Files of point-cloud transformers that name Point-MAE's tensors differently: torch-pointcloud's and Point-JEPA's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

_MARKS = re.compile(r"(^|\.)encoder\.local_mlp\.lins\.")
_MLPS = {"local": "first", "global": "second"}
_TORCH_POINTCLOUD = [
    *(
        (re.compile(rf"(^|\.)encoder\.{mlp}_mlp\.{old}\."), rf"\1encoder.{conv}_conv.{new}.")
        for mlp, conv in _MLPS.items()
        for old, new in ((r"lins\.0", 0), (r"norms\.0\.module", 1), (r"lins\.1", 3))
    ),
    *((re.compile(rf"(^|\.)pos_embed\.lins\.{old}\."), rf"\1pos_embed.{2 * old}.") for old in (0, 1)),
    *((re.compile(rf"(\.blocks\.\d+\.mlp)\.lins\.{old}\."), rf"\1.fc{old + 1}.") for old in (0, 1)),
    (re.compile(r"(^|\.)norm_f\."), r"\1norm."),
    *((re.compile(rf"(^|\.)head\.norms\.{old}\.module\."), rf"\1cls_head_finetune.{4 * old + 1}.") for old in (0, 1)),
    (re.compile(r"(^|\.)(decoder_pos_embed|increase_dim)\.lins\.0\."), r"\1\2.0."),
    (re.compile(r"(^|\.)decoder_pos_embed\.lins\.1\."), r"\1decoder_pos_embed.2."),
]
_JEPA_PATCHES = re.compile(r"^(.*?)tokenizer\.embedding\.(?:encoder\.)?(?:first|second)_conv\.")
_JEPA_COPIES = ("student.", "encoder.", "teacher.ema_model.")
"""Where its transformer is: as pre-training leaves it, as fine-tuning does, and the average of the former."""
_UNBIASED = ("backbone.patch_encoder.first.0.bias", "backbone.patch_encoder.second.0.bias")


class Renamed(NamedTuple):
    """A file with Point-MAE's names.

    Attributes:
        tensors: by these names, others as they were.
        notes: choices that were made, in words.
        zero: our names of what the file lacks because it is zero in that architecture.
    """

    tensors: Mapping[str, Tensor]
    notes: list[str]
    zero: tuple[str, ...] = ()


def as_point_mae(state: Mapping[str, Tensor]) -> Renamed:
    """Point-MAE's names for a file of torch-pointcloud or of Point-JEPA; any other file as it is."""
    if any(_MARKS.search(name) for name in state):
        return Renamed({_renamed(name, _head_layers(state)): tensor for name, tensor in state.items()}, [])
    patches = next((found for name in state if (found := _JEPA_PATCHES.match(name))), None)
    return Renamed(state, []) if patches is None else _from_point_jepa(state, patches[1])


def _renamed(name: str, head_layers: tuple[int, ...]) -> str:
    for pattern, replacement in _TORCH_POINTCLOUD:
        name = pattern.sub(replacement, name)
    head = re.search(r"(^|.*\.)head\.lins\.(\d+)\.(\w+)$", name)
    if head is not None and int(head[2]) < len(head_layers):
        return f"{head[1]}cls_head_finetune.{head_layers[int(head[2])]}.{head[3]}"
    return name


def _head_layers(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Numbers of the linear layers of the head in its published form, which is Point-BERT's where it has no norms."""
    normed = any(re.search(r"(^|\.)head\.norms\.", name) for name in state)
    return (0, 4, 8) if normed else (0, 3)


def _from_point_jepa(state: Mapping[str, Tensor], before: str) -> Renamed:
    """Its tokenizer, positions and one copy of its transformer; the rest keeps its names."""
    copies = [copy for copy in _JEPA_COPIES if any(name.startswith(f"{before}{copy}blocks.") for name in state)]
    if not copies:
        return Renamed(state, [])
    trunk, average = copies[0], _JEPA_COPIES[-1]
    renames = {
        "tokenizer.embedding.encoder.": "encoder.",
        "tokenizer.embedding.": "encoder.",
        "positional_encoding.": "pos_embed.",
        f"{trunk}blocks.": "blocks.blocks.",
        f"{trunk}norm.": "norm.",
    }
    tensors = {}
    for name, tensor in state.items():
        inner = name.removeprefix(before)
        start = next((old for old in renames if name.startswith(before) and inner.startswith(old)), None)
        tensors[name if start is None else f"{before}{renames[start]}{inner.removeprefix(start)}"] = tensor
    notes = []
    if trunk == average:
        notes = [f"holds {average} alone, a copy that follows the trained weights"]
    elif average in copies:
        notes = [f"holds {trunk} and its average {average}; the former is loaded"]
    return Renamed(tensors, notes, _UNBIASED)
