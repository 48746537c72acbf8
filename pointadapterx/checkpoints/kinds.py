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
    """

    words: str
    backbone: str | None = None
    way: str = ""


_ADAPTER = Kind(
    "an adapter of this package", way="give it to --test or predict, and here the weights it was trained on"
)
_STATE = Kind(
    "the state of an unfinished run", way="continue it with --resume, or give the weights that it started from"
)

# Each with patterns that must all occur at the start of a name, or after a dot in it; the first that fits counts, so
# descendants come before what they descend from.
_KINDS: list[tuple[Kind, tuple[str, ...]]] = [
    (_STATE, (r"model/",)),
    (Kind("an adapter of the peft library"), (r"lora_[AB]\.|modules_to_save\.",)),
    # Point clouds.
    (Kind("PointGPT"), (r"sos_pos$|GPT_Transformer\.|blocks\.layers\.\d+\.ln_1\.",)),
    (Kind("Point-M2AE or I2P-MAE"), (r"h_encoder\.",)),
    (Kind("PointMamba or Mamba3D"), (r"mixer\.(A_log|x_proj|in_proj)",)),
    (Kind("OpenShape's PointBERT"), (r"ppat\.",)),
    (Kind("Uni3D"), (r"encoder2trans\.",)),
    (Kind("Point-FEMAE"), (r"blocks\.blocks\.\d+\.cls\.conv1\.",)),
    (Kind("ReCon", "point_mae"), (r"blocks\.blocks\.\d+\.\w+_contrast\.",)),
    (Kind("PCP-MAE"), (r"mask_pos_token$|pred_pos_proj\.",)),
    (Kind("Point-JEPA or point2vec"), (r"(tokenizer|embedding)\.(\w+\.)*first_conv\.", r"positional_encoding\.")),
    (Kind("torch-pointcloud's Point-MAE or Point-BERT"), (r"encoder\.local_mlp\.lins\.",)),
    (Kind("Point Transformer V3, Sonata or Concerto"), (r"enc\.enc\d+\.block\d+\.",)),
    (Kind("Point-BERT", "point_mae"), (r"encoder\.first_conv\.", r"blocks\.blocks\.\d+\.norm1\.", r"reduce_dim\.")),
    (Kind("ACT", "point_mae"), (r"ACT_encoder\.",)),
    (Kind("Point-MAE", "point_mae"), (r"encoder\.first_conv\.", r"blocks\.blocks\.\d+\.")),
    (Kind("Point-BERT's dVAE, its tokenizer alone"), (r"encoder\.first_conv\.", r"dgcnn_1\.")),
    (Kind("PointNet++"), (r"(sa|SA)_?(modules?|\d)\.",)),
    (Kind("PointNeXt or another model of OpenPoints"), (r"encoder\.encoder\.\d+\.\d+\.(convs|convs1)\.",)),
    (Kind("DGCNN"), (r"conv5\.0\.weight$", r"linear1\.weight$")),
    (Kind("PointNet"), (r"(feat\.)?(stn|fstn)\.|feat\.conv1\.",)),
    (Kind("this package's Point-MAE", "point_mae"), (r"patch_encoder\.(first|second)\.\d",)),
    # Images, and texts.
    (Kind("Google's ViT", "vit"), (r"Transformer/encoderblock_\d+/",)),
    (Kind("CLIP"), (r"visual\.transformer\.resblocks\.|vision_model\.|text_model\.|visual\.trunk\.",)),
    (Kind("a ViT as Hugging Face's transformers names it"), (r"embeddings\.patch_embeddings\.",)),
    (Kind("a ViT as torchvision names it"), (r"encoder\.layers\.encoder_layer_\d+\.",)),
    (Kind("a Swin Transformer"), (r"layers\.\d+\.blocks\.\d+\.attn\.",)),
    (Kind("SAM"), (r"image_encoder\.", r"mask_decoder\.")),
    (
        Kind("DINOv2, or another ViT with layer scale"),
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
