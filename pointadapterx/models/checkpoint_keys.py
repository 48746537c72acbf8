"""Names of published checkpoints translated to ours, one map per source."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# The encoder sits under one of these in the checkpoints of Point-MAE, its descendants, Point-BERT and others.
ENCODER_PREFIXES = ("MAE_encoder.", "ACT_encoder.", "transformer_k.", "base_model.")

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


def translate_published(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Keys of a Point-MAE or DAPT checkpoint, or of one of ours, to the names of an adapted model.

    Args:
        state: published names, with or without ``module.`` and an encoder prefix.

    Returns:
        The translated tensors (``backbone.*``, ``method.*``, ``head.*``), and the names that no rule knows.
        When an encoder prefix is present, everything outside it (decoder, momentum encoder) is unknown.
    """
    for own in ("backbone.", "encoder.", ""):  # an adapted model, a masked autoencoder, a backbone
        if any(name.startswith(f"{own}patch_encoder.") for name in state):
            if own == "backbone.":
                return dict(state), []
            inside = {f"backbone.{n.removeprefix(own)}": t for n, t in state.items() if n.startswith(own)}
            return inside, [name for name in state if not name.startswith(own)]
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    prefix = next((p for p in ENCODER_PREFIXES if any(name.startswith(p) for name in plain)), "")
    return _apply(plain, prefix, _ENCODER_RULES)


def translate_autoencoder(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Keys of a Point-MAE pre-training checkpoint to :class:`~pointadapterx.models.point_mae.MaskedAutoencoder`."""
    if any(name.startswith("encoder.patch_encoder.") for name in state):
        return dict(state), []
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    decoder, unknown = _apply(plain, "", _AUTOENCODER_RULES)
    encoder, outside = translate_published(state)
    translated = {f"encoder.{name.removeprefix('backbone.')}": tensor for name, tensor in encoder.items()}
    return {**translated, **decoder}, sorted(set(unknown) & set(outside))


def translate_vit(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Keys of timm's or Google's ViT checkpoint, or of one of ours, to the names of an adapted model.

    Args:
        state: timm's names (also ours, for a backbone), with or without ``module.``; Google's (of an ``.npz``); or
            those of an adapted model.

    Returns:
        See :func:`translate_published`. A classifier becomes a head without hidden layers.
    """
    if any(name.startswith("backbone.patch_embed.") for name in state):
        return dict(state), []
    if "embedding/kernel" in state:
        state, unknown = _google_to_timm(state)
    else:
        unknown = []
    translated = {}
    for name, tensor in state.items():
        plain = name.removeprefix("module.")
        if _TIMM_VIT.match(plain):
            translated[f"backbone.{plain}"] = tensor
        elif plain in ("head.weight", "head.bias"):
            translated[f"head.mlp.0.{plain.removeprefix('head.')}"] = tensor
        else:
            unknown.append(name)
    return translated, unknown


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
