"""Files of ViTs that Hugging Face's transformers wrote, with timm's names: ViT and DINOv2, of its versions 4 and 5."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_PATCHES = re.compile(r"^(.*?)embeddings\.patch_embeddings\.projection\.")
_BLOCK = re.compile(r"^(?:encoder\.)?layers?\.(\d+)\.(.+)\.(weight|bias|lambda1)$")
_OUTSIDE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_INSIDE = {
    "norm1": ("norm1", "layernorm_before"),
    "norm2": ("norm2", "layernorm_after"),
    "attn.proj": ("attention.o_proj", "attention.output.dense"),
    "mlp.fc1": ("mlp.fc1", "intermediate.dense"),
    "mlp.fc2": ("mlp.fc2", "output.dense"),
    "ls1": ("layer_scale1",),
    "ls2": ("layer_scale2",),
}
_PARTS = {theirs: ours for ours, both in _INSIDE.items() for theirs in both}
_QKV = {
    **{f"attention.attention.{word}": word[0] for word in ("query", "key", "value")},
    **{f"attention.{letter}_proj": letter for letter in "qkv"},
}


def is_of_transformers(state: Mapping[str, Tensor]) -> bool:
    """Whether names are those of a ViT in transformers."""
    return any(_PATCHES.match(name) for name in state)


def transformers_to_timm(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """timm's names, and the names that none of them belongs to. Queries, keys and values, which are apart, are joined.

    Args:
        state: with the names of :func:`is_of_transformers`, under any prefix.
    """
    prefix = next(match[1] for name in state if (match := _PATCHES.match(name)))
    found: dict[str, Tensor] = {}
    unknown = []
    thirds: dict[str, dict[str, Tensor]] = {}
    names: dict[str, list[str]] = {}
    for name, tensor in state.items():
        inner = name.removeprefix(prefix) if name.startswith(prefix) else ""
        block = _BLOCK.match(inner)
        if inner in _OUTSIDE:
            found[_OUTSIDE[inner]] = tensor
        elif name in ("classifier.weight", "classifier.bias"):
            found[name.replace("classifier", "head")] = tensor
        elif block and block[2] in _QKV:
            place = f"blocks.{block[1]}.attn.qkv.{block[3]}"
            thirds.setdefault(place, {})[_QKV[block[2]]] = tensor
            names.setdefault(place, []).append(name)
        elif block and block[2] in _PARTS:
            leaf = "gamma" if block[3] == "lambda1" else block[3]
            found[f"blocks.{block[1]}.{_PARTS[block[2]]}.{leaf}"] = tensor
        else:
            unknown.append(name)
    for place, parts in thirds.items():
        if len(parts) == len("qkv"):
            found[place] = torch.cat([parts[letter] for letter in "qkv"])
        else:
            unknown += names[place]
    return found, unknown
