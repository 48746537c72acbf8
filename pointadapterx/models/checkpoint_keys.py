"""Names of published checkpoints translated to ours, one map per source."""

from __future__ import annotations

import re
from collections.abc import Mapping

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


def translate_published(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Keys of a Point-MAE or DAPT checkpoint to the names of an adapted model.

    Args:
        state: published names, with or without ``module.`` and an encoder prefix.

    Returns:
        The translated tensors (``backbone.*``, ``method.*``, ``head.*``), and the names that no rule knows.
        When an encoder prefix is present, everything outside it (decoder, momentum encoder) is unknown.
    """
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    prefix = next((p for p in ENCODER_PREFIXES if any(name.startswith(p) for name in plain)), "")
    return _apply(plain, prefix, _ENCODER_RULES)


def translate_autoencoder(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Keys of a Point-MAE pre-training checkpoint to :class:`~pointadapterx.models.point_mae.MaskedAutoencoder`."""
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    decoder, unknown = _apply(plain, "", _AUTOENCODER_RULES)
    encoder, outside = translate_published(state)
    translated = {f"encoder.{name.removeprefix('backbone.')}": tensor for name, tensor in encoder.items()}
    return {**translated, **decoder}, sorted(set(unknown) & set(outside))


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
