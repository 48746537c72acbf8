"""Names of published checkpoints translated to ours, one map per source."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pointadapterx.models.checkpoint_places import OWN, PUBLISHED, VIT, decoder_place, find_encoder
from pointadapterx.models.image_layouts import is_of_transformers, transformers_to_timm
from pointadapterx.models.point_layouts import as_point_mae

_POINT_MAE = [
    (r"^encoder\.first_conv\.", "backbone.patch_encoder.first."),
    (r"^encoder\.second_conv\.", "backbone.patch_encoder.second."),
    (r"^reduce_dim\.", "backbone.reduce_dim."),
    (r"^pos_embed\.", "backbone.position_embed."),
    (r"^cls_token$", "backbone.cls_token"),
    (r"^cls_pos$", "backbone.cls_position"),
    (r"^norm\.", "backbone.norm."),
    (r"^cls_head_finetune\.", "head.mlp."),
]
_DAPT = [
    (r"^tfts_(gamma|beta)_1$", r"method.patch_tfts.\1"),
    (r"^tfts_(gamma|beta)_2$", r"method.norm_tfts.\1"),
    (r"^blocks\.blocks\.(\d+)\.tfts_(gamma|beta)_1$", r"method.blocks.\1.tfts.norm1.\2"),
    (r"^blocks\.blocks\.(\d+)\.tfts_(gamma|beta)_2$", r"method.blocks.\1.tfts.norm2.\2"),
    (r"^blocks\.blocks\.(\d+)\.tfts_(gamma|beta)_3$", r"method.blocks.\1.tfts.prompt.\2"),
    (r"^blocks\.blocks\.(\d+)\.attn\.tfts_(gamma|beta)_1$", r"method.blocks.\1.tfts.qkv.\2"),
    (r"^blocks\.blocks\.(\d+)\.attn\.tfts_(gamma|beta)_2$", r"method.blocks.\1.tfts.proj.\2"),
    (r"^blocks\.blocks\.(\d+)\.mlp\.tfts_(gamma|beta)_1$", r"method.blocks.\1.tfts.fc1.\2"),
    (r"^blocks\.blocks\.(\d+)\.mlp\.tfts_(gamma|beta)_2$", r"method.blocks.\1.tfts.fc2.\2"),
    (
        r"^blocks\.blocks\.(\d+)\.Adapter_MLP\.adapter_layer_norm_before\.",
        r"method.blocks.\1.adapter.norm.",
    ),
    (r"^blocks\.blocks\.(\d+)\.Adapter_MLP\.scale\.", r"method.blocks.\1.adapter.token_scale."),
    (r"^blocks\.blocks\.(\d+)\.Adapter_MLP\.down_proj\.", r"method.blocks.\1.adapter.down."),
    (r"^blocks\.blocks\.(\d+)\.Adapter_MLP\.up_proj\.", r"method.blocks.\1.adapter.up."),
]
# Blocks come last: what of "blocks.blocks" is not DAPT's is the plain block's.
_BLOCKS = [(r"^blocks\.blocks\.(\d+)\.", r"backbone.blocks.\1.")]
_ENCODER_RULES = [(re.compile(p), r) for p, r in [*_POINT_MAE, *_DAPT, *_BLOCKS]]

_AUTOENCODER_RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"^mask_token$", "mask_token"),
        (r"^decoder_pos_embed\.", "decoder_position."),
        (r"^MAE_decoder\.blocks\.(\d+)\.", r"decoder_blocks.\1."),
        (r"^MAE_decoder\.norm\.", "decoder_norm."),
        (r"^increase_dim\.0\.", "predict_points."),
    ]
]


_TIMM_VIT = re.compile(r"^(cls_token|pos_embed|patch_embed\.proj\.\w+|norm\.\w+|blocks\.\d+\..+)$")
_GOOGLE_BLOCK = re.compile(r"^Transformer/encoderblock_(\d+)/(.+)$")
_GOOGLE_PARTS = {"LayerNorm_0": "norm1", "LayerNorm_2": "norm2", "MlpBlock_3/Dense_0": "mlp.fc1"}
_GOOGLE_PARTS |= {"MlpBlock_3/Dense_1": "mlp.fc2", "MultiHeadDotProductAttention_1/out": "attn.proj"}
AXES = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
"""Google's axes in our order, by number of dimensions: the patches' (P, P, in, out), a kernel (in, out), a bias."""
_GOOGLE_QKV = tuple(f"MultiHeadDotProductAttention_1/{part}" for part in ("query", "key", "value"))


class Translated(NamedTuple):
    """A checkpoint with its tensors renamed to our names.

    Attributes:
        tensors: named as in an adapted model (``backbone.*``, ``method.*``, ``head.*``), or as the model's own.
        unknown: names that no rule knows, and all outside the encoder (decoder, momentum copy).
        notes: choices that were made, in words.
        zero: names that the file lacks because they are zero in its architecture.
    """

    tensors: dict[str, Tensor]
    unknown: list[str]
    notes: list[str]
    zero: tuple[str, ...] = ()


def translate_published(state: Mapping[str, Tensor]) -> Translated:
    """Keys of Point-MAE's checkpoints, of its descendants' or of ours to the names of an adapted model.

    Descendants are what shares its architecture: Point-BERT, ACT, PCP-MAE, Point-JEPA, DAPT, and what torch-pointcloud
    has of them.

    Args:
        state: published names, under whatever prefixes a project or a wrapper put before them.

    Raises:
        CheckpointError: if it holds several encoders and none is the published choice.
    """
    own = find_encoder(state, OWN)
    if own is not None:
        return Translated(*_take_own(state, own.prefix), own.notes)
    state, notes, zero = as_point_mae(state)
    place = find_encoder(state, PUBLISHED)
    prefix, more = ("", []) if place is None else place
    return Translated(*_apply(state, prefix, _ENCODER_RULES), [*notes, *more], zero)


def translate_autoencoder(state: Mapping[str, Tensor]) -> Translated:
    """Keys of a Point-MAE pre-training checkpoint to :class:`~pointadapterx.models.point_mae.MaskedAutoencoder`."""
    if any(name.startswith("encoder.patch_encoder.") for name in state):
        return Translated(dict(state), [], [])
    state = as_point_mae(state).tensors
    encoder = translate_published(state)
    place = find_encoder(state, PUBLISHED)
    decoder, unknown = _apply(state, "" if place is None else decoder_place(place.prefix), _AUTOENCODER_RULES)
    tensors = {f"encoder.{name.removeprefix('backbone.')}": tensor for name, tensor in encoder.tensors.items()}
    return Translated({**tensors, **decoder}, sorted(set(unknown) & set(encoder.unknown)), encoder.notes)


def translate_vit(state: Mapping[str, Tensor]) -> Translated:
    """Keys of a ViT or DINOv2 of timm, transformers or Google, or of one of ours, to the names of an adapted model.

    Args:
        state: timm's names (also ours, for a backbone) or transformers', under any prefix; Google's (of an ``.npz``);
            or those of an adapted model.

    Returns:
        See :class:`Translated`. A classifier becomes a head without hidden layers.

    Raises:
        CheckpointError: if it holds several encoders.
    """
    if "embedding/kernel" in state:
        state, unknown = _google_to_timm(state)
    elif is_of_transformers(state):
        state, unknown = transformers_to_timm(state)
    else:
        unknown = []
    place = find_encoder(state, VIT)
    prefix, notes = ("", []) if place is None else place
    if prefix.endswith("backbone."):
        return Translated(*_take_own(state, prefix), notes)
    translated = {}
    for name, tensor in state.items():
        plain = name.removeprefix(prefix) if name.startswith(prefix) else ""
        if _TIMM_VIT.match(plain):
            translated[f"backbone.{plain}"] = tensor
        elif plain in ("head.weight", "head.bias"):
            translated[f"head.mlp.0.{plain.removeprefix('head.')}"] = tensor
        else:
            unknown.append(name)
    return Translated(translated, unknown, notes)


def _take_own(state: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], list[str]]:
    """An adapted model, where the encoder's prefix ends in ``backbone.``; else its encoder alone."""
    outer = prefix.removesuffix("backbone.") if prefix.endswith("backbone.") else prefix
    before = "" if prefix.endswith("backbone.") else "backbone."
    inside = {f"{before}{n.removeprefix(outer)}": t for n, t in state.items() if n.startswith(outer)}
    return inside, [name for name in state if not name.startswith(outer)]


def _google_to_timm(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Kernels are (in, out) there, with the heads split off in the attention's; queries, keys and values are apart."""
    found: dict[str, Tensor] = {}
    unknown = []
    parts: dict[str, dict[str, Tensor]] = {}
    outside = {"embedding": "patch_embed.proj", "Transformer/encoder_norm": "norm", "head": "head"}
    for name, tensor in state.items():
        place, _, leaf = name.rpartition("/")
        block = _GOOGLE_BLOCK.match(name)
        inner = block[2].rpartition("/")[0] if block else ""
        kind = "bias" if leaf == "bias" else "weight"
        if name == "cls":
            found["cls_token"] = tensor
        elif name == "Transformer/posembed_input/pos_embedding":
            found["pos_embed"] = tensor
        elif place in outside and tensor.ndim in AXES:
            found[f"{outside[place]}.{kind}"] = tensor.permute(AXES[tensor.ndim])
        elif block and inner in _GOOGLE_PARTS:
            flat = tensor.reshape(-1, tensor.shape[-1]) if leaf == "kernel" else tensor
            found[f"blocks.{block[1]}.{_GOOGLE_PARTS[inner]}.{kind}"] = flat.T if leaf == "kernel" else flat
        elif block and inner in _GOOGLE_QKV:
            rows = tensor.flatten(-2)  # (C, heads, d) -> (C, C), bias (heads, d) -> (C,)
            parts.setdefault(f"blocks.{block[1]}.attn.qkv.{kind}", {})[inner] = rows.T if leaf == "kernel" else rows
        else:
            unknown.append(name)
    for name, tensors in parts.items():
        if len(tensors) == len(_GOOGLE_QKV):
            found[name] = torch.cat([tensors[part] for part in _GOOGLE_QKV])
    return {name: tensor.contiguous() for name, tensor in found.items()}, unknown


def _apply(
    plain: Mapping[str, Tensor], prefix: str, rules: list[tuple[re.Pattern[str], str]]
) -> tuple[dict[str, Tensor], list[str]]:
    translated: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in plain.items():
        inner = name[len(prefix) :] if name.startswith(prefix) else None
        rule = next((r for r in rules if inner is not None and r[0].search(inner)), None)
        if rule is None or inner is None:
            unknown.append(name)
            continue
        target = rule[0].sub(rule[1], inner)
        # A 1x1 convolution (out, in, 1) is a linear layer (out, in) here.
        is_convolution = tensor.ndim == 3 and name.endswith("weight")
        translated[target] = tensor.squeeze(-1) if is_convolution else tensor
    return translated, unknown
