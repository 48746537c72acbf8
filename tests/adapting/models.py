"""Small random instances of the models that people have, and our own ViT with the weights of theirs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

WIDTH, DEPTH, HEADS, SIDE, PATCH = 24, 3, 4, 16, 4
IMAGES = (2, 3, SIDE, SIDE)


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter random, norms and LayerScale too, so that no site can hide behind an identity."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            one = parameter.ndim == 1 and name.endswith(("weight", "gamma", "lambda1"))
            parameter.copy_(1 + 0.2 * noise if one else 0.2 * noise)
    return model.eval()


def hf_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        image_size=SIDE,
        patch_size=PATCH,
        num_labels=5,
        layer_norm_eps=1e-6,
    )
    return ViTForImageClassification(config)


def hf_dinov2(**options: Any) -> nn.Module:
    from transformers import Dinov2Config, Dinov2ForImageClassification

    config = Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        mlp_ratio=4,
        image_size=SIDE,
        patch_size=PATCH,
        num_labels=5,
        **options,
    )
    return Dinov2ForImageClassification(config)


def hf_dinov3() -> nn.Module:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    config = DINOv3ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=2,
        intermediate_size=4 * WIDTH,
        image_size=SIDE,
        patch_size=PATCH,
        num_register_tokens=2,
    )
    return DINOv3ViTModel(config)


def hf_beit() -> nn.Module:
    from transformers import BeitConfig, BeitForImageClassification

    config = BeitConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        image_size=SIDE,
        patch_size=PATCH,
        num_labels=5,
        use_relative_position_bias=True,
        layer_scale_init_value=0.5,
    )
    return BeitForImageClassification(config)


def _hf_swin(config_class: Any, model_class: Any) -> nn.Module:
    config = config_class(
        embed_dim=12,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        image_size=32,
        patch_size=PATCH,
        num_labels=5,
        drop_path_rate=0.0,
    )
    return model_class(config)


def hf_swin() -> nn.Module:
    from transformers import SwinConfig, SwinForImageClassification

    return _hf_swin(SwinConfig, SwinForImageClassification)


def hf_swinv2() -> nn.Module:
    from transformers import Swinv2Config, Swinv2ForImageClassification

    return _hf_swin(Swinv2Config, Swinv2ForImageClassification)


def timm_vit(**options: Any) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=SIDE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, num_classes=5, **options
    )


def timm_swin() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    sizes = {"img_size": 32, "patch_size": PATCH, "embed_dim": 12, "depths": (2, 2), "num_heads": (2, 4)}
    return SwinTransformer(**sizes, window_size=4, num_classes=5, drop_path_rate=0.0)


def timm_eva(**options: Any) -> nn.Module:
    from timm.models.eva import Eva

    return Eva(img_size=SIDE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, num_classes=5, **options)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        x = ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """The block of the Point-MAE code family, by the names of its attributes."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)
        self.drop_path = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Encoder(nn.Module):
    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x + pos)
        return x


class PointTransformer(nn.Module):
    """A classifier laid out as those of the Point-MAE code family, on tokens that are already grouped."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, WIDTH)
        self.pos_embed = nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, WIDTH))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.cls_pos = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.blocks = Encoder(WIDTH, DEPTH, HEADS)
        self.norm = nn.LayerNorm(WIDTH)
        self.cls_head_finetune = nn.Linear(2 * WIDTH, 5)

    def forward(self, points: Tensor) -> Tensor:
        x, pos = self.encoder(points), self.pos_embed(points)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        pos = torch.cat([self.cls_pos.expand(len(x), -1, -1), pos], dim=1)
        x = self.norm(self.blocks(x, pos))
        return self.cls_head_finetune(torch.cat([x[:, 0], x[:, 1:].max(1)[0]], dim=-1))


def need(package: str) -> None:
    """Skips a test where a package is missing; timm has an environment of its own, since it comes with torchvision."""
    if package == "timm" and importlib.util.find_spec(package) is None:
        pytest.skip("timm is not installed here; make test-foreign runs this")
    pytest.importorskip(package)


def method_of(model: nn.Module, name: str = "default") -> nn.Module:
    """The modules of an adapter."""
    return model.pointadapterx.methods[name]


def answer(output: Any) -> Tensor:
    """Logits, or tokens of a model without a head."""
    for name in ("logits", "last_hidden_state"):
        if hasattr(output, name):
            return getattr(output, name)
    return output


def head_of(model: nn.Module) -> str:
    """A module behind the blocks."""
    names = [name for name, _ in model.named_children()]
    return next(name for name in ("classifier", "cls_head_finetune", "head", "norm", "layernorm") if name in names)


class Library(NamedTuple):
    """A family of models, and how to make a small one.

    Attributes:
        title: of the family.
        package: that has it.
        make: a small random instance.
        side: of its images; 0 where it takes points.
    """

    title: str
    package: str
    make: Callable[[], nn.Module]
    side: int = SIDE

    @property
    def marks(self) -> list[pytest.MarkDecorator]:
        """Of tests that need it."""
        return [pytest.mark.timm] if self.package == "timm" else []

    def need(self) -> None:
        """Skips a test where the package is missing."""
        need(self.package)

    def inputs(self, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        shape = (2, 3, self.side, self.side) if self.side else (2, 16, 3)
        return torch.randn(shape, generator=generator)


FAMILIES = [
    Library("transformers ViT", "transformers", hf_vit),
    Library("transformers DINOv2", "transformers", hf_dinov2),
    Library("transformers DINOv3", "transformers", hf_dinov3),
    Library("transformers BEiT", "transformers", hf_beit),
    Library("transformers Swin", "transformers", hf_swin, 32),
    Library("transformers Swin v2", "transformers", hf_swinv2, 32),
    Library("timm VisionTransformer", "timm", timm_vit),
    Library("timm SwinTransformer", "timm", timm_swin, 32),
    Library("timm Eva", "timm", timm_eva),
    Library("Point-MAE family", "torch", PointTransformer, 0),
]
