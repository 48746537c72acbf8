"""Recognises files of weights by the names in them, for messages about files that do not fit."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        words: what it is.
        backbone: ``backbone.name`` of what loads it; None: none does.
        way: what else to do with it.
        needs: what it computes with that no backbone here has.
        unused: patterns of the names, at their start or after a dot, that nothing is loaded from and nothing need be
            said of: what served pre-training alone.
        preset: base config with the options that it needs.
    """

    words: str
    backbone: str | None = None
    way: str = ""
    needs: str = ""
    unused: tuple[str, ...] = ()
    preset: str = ""

    def explains(self, name: str) -> bool:
        """Whether it is known of a name in such a file that nothing is loaded from it."""
        return any(re.search(rf"(?:^|\.)(?:{pattern})", name) for pattern in self.unused)


_ADAPTER = Kind(
    "an adapter of this package", way="give it to --test or predict, and here the weights it was trained on"
)
_STATE = Kind(
    "the state of an unfinished run", way="continue it with --resume, or give the weights that it started from"
)
_DECODER = (r"mask_token$", r"decoder_pos_embed\.", r"MAE_decoder\.", r"increase_dim\.")
_CONTRAST = r"blocks\.\d+\.\w+_contrast\."
_POINT_BERT = (r"mask_token$", r"lm_head\.", r"cls_head\.", r"dvae\.", r"transformer_k\.", r"queue$", r"queue_ptr$")
_POINT_BERT_PRESET = "cfgs/base/point_bert.yaml"
_DINOV3 = Kind("DINOv3", needs="rotary positions (rope) and register tokens")
_REGISTERS = Kind("DINOv2 with registers", needs="register tokens", way="give the DINOv2 without them")
_LOCAL_MLP = r"encoder\.local_mlp\.lins\."

# Each with patterns that must all occur at the start of a name, or after a dot in it; the first that fits counts, so
# descendants come before what they descend from.
_KINDS: list[tuple[Kind, tuple[str, ...]]] = [
    (_STATE, (r"model/",)),
    (Kind("an adapter of the peft library"), (r"lora_[AB]\.|modules_to_save\.",)),
    # Point clouds.
    (
        Kind("PointGPT", needs="causal blocks over ordered groups"),
        (r"sos_pos$|GPT_Transformer\.|blocks\.layers\.\d+\.ln_1\.",),
    ),
    (Kind("Point-M2AE or I2P-MAE", needs="three levels of groups, with attention to near ones"), (r"h_encoder\.",)),
    (
        Kind("PointMamba or Mamba3D", needs="blocks with a selective scan"),
        (r"mixer\.(A_log|x_proj|in_proj)",),
    ),
    (Kind("OpenShape's PointBERT", needs="groups within a radius, and colours"), (r"ppat\.",)),
    (Kind("Uni3D", needs="colours, and the blocks of EVA"), (r"encoder2trans\.",)),
    (
        Kind("Point-FEMAE", needs="a local branch with edge convolutions in every block"),
        (r"blocks\.blocks\.\d+\.cls\.conv1\.",),
    ),
    (
        Kind(
            "ReCon",
            "point_mae",
            unused=(*_DECODER, _CONTRAST, r"(img|text)_(token|pos)$"),
            preset="cfgs/base/recon_as_used.yaml",
        ),
        (_CONTRAST,),
    ),
    (
        Kind(
            "PCP-MAE",
            "point_mae",
            unused=(*_DECODER, r"mask_pos_token$", r"pred_pos_proj\."),
            preset="cfgs/base/pcp_mae.yaml",
        ),
        (r"mask_pos_token$|pred_pos_proj\.",),
    ),
    (
        Kind(
            "Point-JEPA or point2vec",
            "point_mae",
            unused=(r"teacher\.", r"predictor\.", r"mask_token$", r"cls_head\."),
            preset="cfgs/base/point_jepa.yaml",
        ),
        (r"(tokenizer|embedding)\.(\w+\.)*first_conv\.", r"positional_encoding\."),
    ),
    (
        Kind("torch-pointcloud's Point-BERT", "point_mae", unused=_POINT_BERT, preset=_POINT_BERT_PRESET),
        (_LOCAL_MLP, r"reduce_dim\."),
    ),
    (Kind("torch-pointcloud's Point-MAE", "point_mae", unused=_DECODER), (_LOCAL_MLP,)),
    (
        Kind("Point Transformer V3, Sonata or Concerto", needs="sparse convolutions, and windows along a curve"),
        (r"enc\.enc\d+\.block\d+\.",),
    ),
    (
        Kind("ULIP's PointBERT", "point_mae", unused=_POINT_BERT, needs="a colour at each point"),
        (r"pc_projection$|point_encoder\.reduce_dim\.", r"encoder\.first_conv\.", r"blocks\.blocks\.\d+\."),
    ),
    (
        Kind("Point-BERT", "point_mae", unused=_POINT_BERT, preset=_POINT_BERT_PRESET),
        (r"encoder\.first_conv\.", r"blocks\.blocks\.\d+\.norm1\.", r"reduce_dim\."),
    ),
    (
        Kind("ACT", "point_mae", unused=(r"mask_token$", r"lm_head\.", r"cls_head\."), preset="cfgs/base/act.yaml"),
        (r"ACT_encoder\.",),
    ),
    (
        Kind("Point-MAE", "point_mae", unused=_DECODER),
        (r"encoder\.first_conv\.", r"blocks\.blocks\.\d+\."),
    ),
    (Kind("Point-BERT's dVAE, its tokenizer alone"), (r"encoder\.first_conv\.", r"dgcnn_1\.")),
    (Kind("PointNet++"), (r"(sa|SA)_?(modules?|\d)\.",)),
    (Kind("PointNeXt or another model of OpenPoints"), (r"encoder\.encoder\.\d+\.\d+\.(convs|convs1)\.",)),
    (Kind("DGCNN"), (r"conv5\.0\.weight$", r"linear1\.weight$")),
    (Kind("PointNet"), (r"(feat\.)?(stn|fstn)\.|feat\.conv1\.",)),
    (
        Kind(
            "this package's Point-MAE",
            "point_mae",
            unused=(r"mask_token$", r"decoder_(position|blocks|norm)\.", r"predict_points\.", r"method\.", r"head\."),
        ),
        (r"patch_encoder\.(first|second)\.\d",),
    ),
    # Images, and texts.
    (Kind("Google's ViT", "vit"), (r"Transformer/encoderblock_\d+/",)),
    (Kind("CLIP"), (r"visual\.transformer\.resblocks\.|vision_model\.|text_model\.|visual\.trunk\.",)),
    (Kind("a Swin Transformer"), (r"encoder\.layers\.\d+\.blocks\.\d+\.",)),
    (_DINOV3, (r"rope_embed|storage_tokens$|embeddings\.patch_embeddings\.(weight|bias)$",)),
    (_DINOV3, (r"reg_token$", r"blocks\.\d+\.gamma_1$")),
    (_REGISTERS, (r"(reg_token|register_tokens)$", r"(blocks|layer)\.\d+\.")),
    (Kind("BEiT or EVA"), (r"embeddings\.patch_embeddings\.", r"lambda_1$|\w*relative_position")),
    (
        Kind("a ViT as Hugging Face's transformers names it", "vit", unused=(r"embeddings\.mask_token$", r"pooler\.")),
        (r"embeddings\.patch_embeddings\.projection\.",),
    ),
    (Kind("a ViT as Hugging Face's transformers names it"), (r"embeddings\.patch_embeddings\.",)),
    (Kind("a ViT as torchvision names it"), (r"encoder\.layers\.encoder_layer_\d+\.",)),
    (Kind("a Swin Transformer"), (r"layers\.\d+\.blocks\.\d+\.attn\.",)),
    (Kind("SAM"), (r"image_encoder\.", r"mask_decoder\.")),
    (
        Kind("DINOv2, or another ViT with layer scale", "vit", unused=(r"mask_token$",)),
        (r"patch_embed\.proj\.", r"blocks\.(\d+\.)+(ls1\.gamma|gamma_1)$"),
    ),
    (
        Kind("BEiT or EVA"),
        (r"patch_embed\.proj\.", r"(relative_position_bias_table|attn\.q_bias|attn\.q_proj\.weight)$"),
    ),
    (Kind("a ViT as timm names it", "vit"), (r"patch_embed\.proj\.", r"blocks\.\d+\.norm1\.")),
    (
        Kind("a convolutional network of images"),
        (r"(layer1\.0\.conv1|stages\.0\.(blocks\.)?0\.\w*conv\w*)\.|features\.0\.",),
    ),
    (
        Kind("a language model"),
        (r"(bert|roberta|transformer\.h\.\d+|encoder\.layer\.\d+\.attention|layers\.\d+\.self_attn)\.",),
    ),
    (_ADAPTER, (r"method\.|head\.mlp\.",)),
]
_PATTERNS = [(kind, [re.compile(rf"(?:^|\.)(?:{one})") for one in patterns]) for kind, patterns in _KINDS]


def recognise(names: Iterable[str]) -> Kind | None:
    """The kind of file with these tensor names, or None if it is not recognised."""
    names = list(names)
    return next(
        (kind for kind, needed in _PATTERNS if all(any(one.search(name) for name in names) for one in needed)), None
    )
