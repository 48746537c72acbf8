"""Sites of the models that people have, by the names of their classes; no library is imported for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn

from pointadapterx.models.foreign.sites import Sites, follow

Facts = Callable[[nn.Module], Mapping[str, Any]]


def _nothing(module: nn.Module) -> str:
    return ""


class Family(NamedTuple):
    """What is known of a class of models.

    Attributes:
        title: what docs and messages call it.
        sites: with several paths where versions or options differ.
        facts: keys of :class:`Sites` that depend on the module.
        no_prompts: why its blocks take no further tokens, given the module; empty where they do.
        switches: ``{attribute: value}`` to set on every module inside a block that has the attribute, so that its
            layers are run as modules; the function stays the same.
        untapped: why nothing can be done to the output of the joint projection of a block's attention, or empty.
    """

    title: str
    sites: Sites
    facts: Facts
    no_prompts: Callable[[nn.Module], str] = _nothing
    switches: Mapping[str, object] = {}
    untapped: Callable[[nn.Module], str] = _nothing


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _of_config(module: nn.Module) -> dict[str, Any]:
    """Patches of a transformers model of images, from its config."""
    config: Any = module.config
    (height, width), (down, right) = _pair(config.image_size), _pair(config.patch_size)
    found: dict[str, Any] = {"num_patches": (height // down) * (width // right)}
    found["grid"] = height // down if height // down == width // right else None
    found["patch_values"] = down * right * config.num_channels
    return found


def _hf_class_token(module: nn.Module) -> dict[str, Any]:
    return {"class_token": True, **_of_config(module)}


def _dinov3(module: nn.Module) -> dict[str, Any]:
    config: Any = module.config
    gated = {"fc1": None, "act": None} if config.use_gated_mlp else {}
    return {**_hf_class_token(module), "registers": config.num_register_tokens, **gated}


def _of_patch_embed(module: nn.Module) -> dict[str, Any]:
    """Patches of a timm model, from its patch embedding."""
    embedding: Any = module.patch_embed
    found: dict[str, Any] = {"num_patches": embedding.num_patches, "grid": None}
    if (size := getattr(embedding, "grid_size", None)) is not None and size[0] == size[1]:
        found["grid"] = size[0]
    projection = getattr(embedding, "proj", None)
    if isinstance(projection, nn.Conv2d):
        found["patch_values"] = math.prod(projection.kernel_size) * projection.in_channels
    return found


def _timm_vit(module: nn.Module) -> dict[str, Any]:
    token = getattr(module, "cls_token", None) is not None
    others = int(getattr(module, "num_prefix_tokens", token)) - token
    return {"class_token": token, "registers": others, **_of_patch_embed(module)}


def _beit_bias(module: nn.Module) -> str:
    config: Any = module.config
    biased = config.use_relative_position_bias or config.use_shared_relative_position_bias
    return "its relative position bias has a fixed number of tokens" if biased else ""


def _eva_rope(module: nn.Module) -> str:
    return "" if getattr(module, "rope", None) is None else "its rotary positions count the tokens from the front"


def _eva_bias(block: nn.Module) -> str:
    biased = getattr(getattr(block, "attn", None), "q_bias", None) is not None
    return "EvaAttention adds q_bias and v_bias behind attn.qkv" if biased else ""


def _class_token(module: nn.Module) -> dict[str, Any]:
    return {"class_token": isinstance(getattr(module, "cls_token", None), nn.Parameter)}


def _positions(module: nn.Module) -> str:
    return "it adds positions of a fixed number of tokens before every block"


def _windows(module: nn.Module) -> str:
    return "its attention works in windows of a fixed size"


HF_QKV: dict[str, Any] = {
    "q": "attention.q_proj",
    "k": "attention.k_proj",
    "v": "attention.v_proj",
    "proj": "attention.o_proj",
}
HF_MLP: dict[str, Any] = {"fc1": "mlp.fc1", "act": "mlp.activation_fn", "fc2": "mlp.fc2 | mlp.down_proj"}
HF_SWIN: dict[str, Any] = {"blocks": "encoder.layers.*.blocks", "transition": "downsample", "norm": "layernorm"}
HF_PATCH: dict[str, Any] = {
    "patch": "embeddings.patch_embeddings",
    "projection": "embeddings.patch_embeddings.projection",
}
TIMM_MLP: dict[str, Any] = {"fc1": "mlp.fc1", "act": "mlp.act", "fc2": "mlp.fc2"}

VIT = Sites(
    blocks="layers",
    norm="layernorm",
    norm1="layernorm_before",
    attention="attention -> dropout",
    norm2="layernorm_after",
    ffn="mlp -> dropout",
    **HF_PATCH,
    **HF_QKV,
    **HF_MLP,
)
DINOV2 = Sites(
    blocks="encoder.layer",
    norm="layernorm",
    norm1="norm1",
    attention="attention -> layer_scale1",
    norm2="norm2",
    ffn="mlp -> layer_scale2",
    **HF_PATCH,
    **HF_QKV,
    **HF_MLP,
)
DINOV3 = Sites(
    blocks="model.layer",
    norm="norm",
    patch="embeddings.patch_embeddings",
    projection="embeddings.patch_embeddings",
    norm1="norm1",
    attention="attention -> layer_scale1",
    norm2="norm2",
    ffn="mlp -> layer_scale2",
    fc1="mlp.up_proj",
    act="mlp.act_fn",
    fc2="mlp.down_proj",
    **HF_QKV,
)
BEIT = Sites(
    blocks="layers",
    norm="layernorm | pooler.layernorm",
    norm1="layernorm_before",
    attention="attention -> into drop_path",
    norm2="layernorm_after",
    ffn="mlp -> into drop_path",
    **HF_PATCH,
    **HF_QKV,
    **HF_MLP,
)
SWIN = Sites(
    norm1="layernorm_before",
    attention="attention -> into drop_path",
    norm2="layernorm_after",
    ffn="mlp -> dropout",
    **HF_SWIN,
    **HF_PATCH,
    **HF_QKV,
    **HF_MLP,
)
SWINV2 = Sites(
    norm1="layernorm_before",
    q="attention.self.query",
    k="attention.self.key",
    v="attention.self.value",
    proj="attention.output.dense",
    attention="attention -> layernorm_before",
    norm2="layernorm_after",
    ffn="intermediate -> layernorm_after",
    fc1="intermediate.dense",
    act="intermediate.intermediate_act_fn",
    fc2="output.dense",
    **HF_SWIN,
    **HF_PATCH,
)
TIMM_VIT = Sites(
    blocks="blocks",
    norm="norm | fc_norm",
    patch="patch_embed",
    projection="patch_embed.proj",
    norm1="norm1",
    qkv="attn.qkv",
    attention="attn -> ls1",
    proj="attn.proj",
    norm2="norm2",
    ffn="mlp -> ls2",
    **TIMM_MLP,
)
TIMM_SWIN = Sites(
    blocks="layers.*.blocks",
    norm="norm",
    patch="patch_embed",
    projection="patch_embed.norm | patch_embed.proj",
    transition="downsample",
    norm1="norm1",
    qkv="attn.qkv",
    attention="attn -> into drop_path1",
    proj="attn.proj",
    norm2="norm2",
    ffn="mlp",
    **TIMM_MLP,
)
TIMM_EVA = Sites(
    blocks="blocks",
    norm="norm | fc_norm",
    patch="patch_embed",
    projection="patch_embed.proj",
    norm1="norm1",
    qkv="attn.qkv",
    q="attn.q_proj",
    k="attn.k_proj",
    v="attn.v_proj",
    attention="attn -> into drop_path1",
    proj="attn.proj",
    norm2="norm2",
    ffn="mlp -> into drop_path2",
    **TIMM_MLP,
)
POINT_MAE = Sites(
    blocks="blocks.blocks | blocks",
    norm="norm_f | norm",
    norm1="norm1",
    qkv="attn.qkv",
    attention="attn -> ls1 | attn",
    proj="attn.proj",
    norm2="norm2",
    ffn="mlp -> ls2 | mlp",
    fc1="mlp.fc1 | mlp.lins.0",
    act="mlp.act",
    fc2="mlp.fc2 | mlp.lins.1",
)
POINT_GPT = Sites(
    blocks="layers",
    norm="ln_f",
    norm1="ln_1",
    attention="attn",
    norm2="ln_2",
    ffn="mlp",
    fc1="mlp.lins.0",
    act="mlp.act",
    fc2="mlp.lins.1",
    batch_first=False,
)
PTV3 = Sites(
    blocks="blocks.*.blocks",
    norm1="norm1",
    qkv="attn.qkv",
    attention="attn",
    proj="attn.proj",
    norm2="norm2",
    ffn="mlp",
    fc1="mlp.0",
    act="mlp.1",
    fc2="mlp.3",
)
FAMILIES: dict[tuple[str, str], Family] = {
    ("transformers", "ViTModel"): Family("transformers ViT", VIT, _hf_class_token),
    ("transformers", "Dinov2Model"): Family("transformers DINOv2", DINOV2, _hf_class_token),
    ("transformers", "DINOv3ViTModel"): Family("transformers DINOv3", DINOV3, _dinov3),
    ("transformers", "BeitModel"): Family("transformers BEiT", BEIT, _hf_class_token, _beit_bias),
    ("transformers", "SwinModel"): Family("transformers Swin", SWIN, _of_config, _windows),
    ("transformers", "Swinv2Model"): Family("transformers Swin v2", SWINV2, _of_config, _windows),
    ("timm", "VisionTransformer"): Family("timm VisionTransformer", TIMM_VIT, _timm_vit),
    ("timm", "SwinTransformer"): Family("timm SwinTransformer", TIMM_SWIN, _of_patch_embed, _windows),
    ("timm", "Eva"): Family(
        "timm Eva", TIMM_EVA, _timm_vit, _eva_rope, switches={"qkv_bias_separate": True}, untapped=_eva_bias
    ),
    ("torch_pointcloud", "PointMAEClassification"): Family(
        "torch-pointcloud Point-MAE", POINT_MAE, _class_token, _positions
    ),
    ("torch_pointcloud", "PointMAEPartSegmentation"): Family(
        "torch-pointcloud Point-MAE", POINT_MAE, _class_token, _positions
    ),
    ("torch_pointcloud", "PointBERTEncoder"): Family(
        "torch-pointcloud Point-BERT", POINT_MAE, _class_token, _positions
    ),
    ("torch_pointcloud", "PointGPTExtractor"): Family("torch-pointcloud PointGPT", POINT_GPT, _class_token, _positions),
    ("torch_pointcloud", "PointTransformerV3Encoder"): Family("torch-pointcloud PTv3", PTV3, _class_token, _windows),
}
"""Families by the package and the name of the class of the model that holds the transformer."""


def family_of(module: nn.Module) -> Family | None:
    """The family of a module, by its class or a class that this is derived from."""
    for kind in type(module).__mro__:
        found = FAMILIES.get((kind.__module__.split(".")[0], kind.__name__))
        if found is not None:
            return found
    return None


def known_within(model: nn.Module) -> Iterator[tuple[str, nn.Module, Family]]:
    """Path, module and family of the outermost modules of a model that are known.

    Where no class is known, those that hold a list of blocks laid out as in the Point-MAE code family.
    """
    inside: list[str] = []
    for path, module in model.named_modules():
        if any(path.startswith(outer) for outer in inside):
            continue
        family = family_of(module)
        if family is not None:
            inside.append(f"{path}." if path else "")
            yield path, module, family
    if not inside:
        yield from _like_point_mae(model)


LAYOUT = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.act", "mlp.fc2")
"""Modules of a block of the Point-MAE code family, which many repositories have copied from MAE and DINO."""


def _like_point_mae(model: nn.Module) -> Iterator[tuple[str, nn.Module, Family]]:
    """The modules that a list of such blocks is a part of, with a final norm where they have one."""
    modules = dict(model.named_modules())
    for path, module in modules.items():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or not len(module):
            continue
        if not all(follow(block, name) is not None for block in module for name in LAYOUT):
            continue
        parts = path.split(".")
        owners = [".".join(parts[:length]) for length in range(len(parts) - 1, -1, -1)]
        owner = next(
            (name for name in owners if isinstance(getattr(modules[name], "norm", None), nn.Module)), owners[-1]
        )
        norm = "norm" if isinstance(getattr(modules[owner], "norm", None), nn.Module) else None
        blocks = path.removeprefix(owner).strip(".")
        patches = (name for name in ("encoder", "patch_embed") if _makes_patches(modules[owner], name, module))
        sites = POINT_MAE.model_copy(update={"blocks": blocks, "norm": norm, "patch": next(patches, None)})
        yield owner, modules[owner], Family("Point-MAE family", sites, _class_token, _positions)


def _makes_patches(owner: nn.Module, name: str, blocks: nn.Module) -> bool:
    """Whether a module of that name can be what makes the patch tokens: it does not hold the blocks."""
    found = getattr(owner, name, None)
    return isinstance(found, nn.Module) and not any(inner is blocks for inner in found.modules())
