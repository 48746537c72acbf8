"""Point-MAE, DAPT and ViT classifiers written straight from their published equations and parameter names.

They share no code with the package: plain functions over a published state dict, one cloud after the other
where that is simpler. Slow, and only for comparison.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def random_state(seed: int, dim: int, depth: int, classes: int, pools: int, rank: int | None = None) -> State:
    """A published-looking checkpoint with random values; ``rank`` adds DAPT's parameters."""
    generator = torch.Generator().manual_seed(seed)

    def make(*shape: int, scale: float = 0.2, shift: float = 0.0) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale + shift

    def norm(name: str, width: int, batch: bool = False) -> State:
        state = {f"{name}.weight": make(width, shift=1.0), f"{name}.bias": make(width)}
        if batch:
            state |= {f"{name}.running_mean": make(width), f"{name}.running_var": make(width).abs() + 0.5}
            state[f"{name}.num_batches_tracked"] = torch.tensor(3)
        return state

    def linear(name: str, out: int, width: int, *, bias: bool = True, conv: bool = False) -> State:
        weight = make(out, width, scale=width**-0.5)
        state = {f"{name}.weight": weight[..., None] if conv else weight}
        return state | ({f"{name}.bias": make(out)} if bias else {})

    def tfts(name: str, number: int, width: int) -> State:
        return {f"{name}tfts_gamma_{number}": make(width, shift=1.0), f"{name}tfts_beta_{number}": make(width)}

    state = {"cls_token": make(1, 1, dim), "cls_pos": make(1, 1, dim)}
    state |= linear("encoder.first_conv.0", 128, 3, conv=True) | norm("encoder.first_conv.1", 128, batch=True)
    state |= linear("encoder.first_conv.3", 256, 128, conv=True)
    state |= linear("encoder.second_conv.0", 512, 512, conv=True) | norm("encoder.second_conv.1", 512, batch=True)
    state |= linear("encoder.second_conv.3", dim, 512, conv=True)
    state |= linear("pos_embed.0", 128, 3) | linear("pos_embed.2", dim, 128) | norm("norm", dim)
    for index in range(depth):
        name = f"blocks.blocks.{index}"
        state |= norm(f"{name}.norm1", dim) | norm(f"{name}.norm2", dim)
        state |= linear(f"{name}.attn.qkv", 3 * dim, dim, bias=False) | linear(f"{name}.attn.proj", dim, dim)
        state |= linear(f"{name}.mlp.fc1", 4 * dim, dim) | linear(f"{name}.mlp.fc2", dim, 4 * dim)
        if rank is not None:
            for number in (1, 2, 3):
                state |= tfts(f"{name}.", number, dim)
            state |= tfts(f"{name}.attn.", 1, 3 * dim) | tfts(f"{name}.attn.", 2, dim)
            state |= tfts(f"{name}.mlp.", 1, 4 * dim) | tfts(f"{name}.mlp.", 2, dim)
            adapter = f"{name}.Adapter_MLP"
            state |= norm(f"{adapter}.adapter_layer_norm_before", dim) | linear(f"{adapter}.scale", 1, dim)
            state |= linear(f"{adapter}.down_proj", rank, dim) | linear(f"{adapter}.up_proj", dim, rank)
    if rank is not None:
        state |= tfts("", 1, dim) | tfts("", 2, dim)
    state |= linear("cls_head_finetune.0", 256, pools * dim) | norm("cls_head_finetune.1", 256, batch=True)
    state |= linear("cls_head_finetune.4", 256, 256) | norm("cls_head_finetune.5", 256, batch=True)
    return state | linear("cls_head_finetune.8", classes, 256)


def group(points: Tensor, num_groups: int, size: int) -> tuple[Tensor, Tensor]:
    """One cloud (N, 3) -> groups (G, k, 3) about their centres (G, 3), by FPS that skips the origin."""
    allowed = (points**2).sum(-1) > 1e-3
    distance, chosen = torch.full((len(points),), 1e10), [0]
    for _ in range(num_groups - 1):
        distance = torch.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(-1))
        chosen.append(int(torch.where(allowed, distance, torch.tensor(-1.0)).argmax()))
    centers = points[chosen]
    nearest = ((centers[:, None] - points[None]) ** 2).sum(-1).argsort(dim=1)[:, :size]
    return points[nearest] - centers[:, None], centers


def classify(state: State, points: Tensor, *, heads: int, num_groups: int, size: int, pools: list[str]) -> Tensor:
    """Logits (B, classes) of a Point-MAE checkpoint, or of a DAPT one if it has DAPT's parameters."""
    return torch.stack([_classify_one(state, cloud, heads, num_groups, size, pools) for cloud in points])


def _classify_one(state: State, points: Tensor, heads: int, num_groups: int, size: int, pools: list[str]) -> Tensor:
    dapt = "tfts_gamma_1" in state
    neighborhood, centers = group(points, num_groups, size)
    patches = _tfts(state, "", 1, _patch_tokens(state, neighborhood))
    hidden = F.gelu(_linear(state, "pos_embed.0", centers))
    position = torch.cat([state["cls_pos"][0], _linear(state, "pos_embed.2", hidden)])
    tokens = torch.cat([state["cls_token"][0], patches])
    if dapt:
        tokens = tokens + position
    depth = len({name.split(".")[2] for name in state if name.startswith("blocks.blocks.")})
    for index in range(depth):
        tokens = _block(state, f"blocks.blocks.{index}", tokens if dapt else tokens + position, heads, dapt)
    tokens = _tfts(state, "", 2, _norm(state, "norm", tokens))
    prompts, last = tokens[1 : len(tokens) - num_groups], tokens[len(tokens) - num_groups :]
    values = {"cls": lambda: tokens[0], "prompt_mean": lambda: prompts.mean(0), "patch_max": lambda: last.amax(0)}
    pooled = torch.cat([values[name]() for name in pools])[None]
    for first in (0, 4):
        pooled = F.relu(
            _batch_norm(state, f"cls_head_finetune.{first + 1}", _linear(state, f"cls_head_finetune.{first}", pooled))
        )
    return _linear(state, "cls_head_finetune.8", pooled)[0]


def _patch_tokens(state: State, neighborhood: Tensor) -> Tensor:
    tokens = []
    for points in neighborhood:  # (k, 3)
        local = F.relu(_batch_norm(state, "encoder.first_conv.1", _linear(state, "encoder.first_conv.0", points)))
        local = _linear(state, "encoder.first_conv.3", local)
        joint = torch.cat([local.amax(0, keepdim=True).expand_as(local), local], dim=-1)
        joint = F.relu(_batch_norm(state, "encoder.second_conv.1", _linear(state, "encoder.second_conv.0", joint)))
        tokens.append(_linear(state, "encoder.second_conv.3", joint).amax(0))
    return torch.stack(tokens)


def _block(state: State, name: str, tokens: Tensor, heads: int, dapt: bool) -> Tensor:
    dim = tokens.shape[-1]
    normed = _tfts(state, f"{name}.", 1, _norm(state, f"{name}.norm1", tokens))
    qkv = _tfts(state, f"{name}.attn.", 1, _linear(state, f"{name}.attn.qkv", normed))
    mixed = []
    for head in range(heads):
        part = slice(head * dim // heads, (head + 1) * dim // heads)
        query, key, value = (piece[:, part] for piece in qkv.split(dim, dim=-1))
        mixed.append((query @ key.T / (dim // heads) ** 0.5).softmax(-1) @ value)
    attended = _linear(state, f"{name}.attn.proj", torch.cat(mixed, dim=-1))
    tokens = tokens + _tfts(state, f"{name}.attn.", 2, attended)
    normed = _tfts(state, f"{name}.", 2, _norm(state, f"{name}.norm2", tokens))
    hidden = F.gelu(_tfts(state, f"{name}.mlp.", 1, _linear(state, f"{name}.mlp.fc1", normed)))
    output = tokens + _tfts(state, f"{name}.mlp.", 2, _linear(state, f"{name}.mlp.fc2", hidden))
    if not dapt:
        return output
    inner = _norm(state, f"{name}.Adapter_MLP.adapter_layer_norm_before", normed)
    scale = F.relu(_linear(state, f"{name}.Adapter_MLP.scale", inner))
    hidden = F.gelu(_linear(state, f"{name}.Adapter_MLP.down_proj", inner))
    adapted = _linear(state, f"{name}.Adapter_MLP.up_proj", hidden) * scale
    prompt = _tfts(state, f"{name}.", 3, F.gelu(adapted).mean(0, keepdim=True))
    output = output + adapted
    return torch.cat([output[:1], prompt, output[1:]])


def _linear(state: State, name: str, values: Tensor) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.linear(values, weight.squeeze(-1) if weight.ndim == 3 else weight, state.get(f"{name}.bias"))


def _norm(state: State, name: str, values: Tensor, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(values, values.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def _batch_norm(state: State, name: str, values: Tensor) -> Tensor:
    normed = (values - state[f"{name}.running_mean"]) / torch.sqrt(state[f"{name}.running_var"] + 1e-5)
    return normed * state[f"{name}.weight"] + state[f"{name}.bias"]


def _tfts(state: State, name: str, number: int, values: Tensor) -> Tensor:
    gamma = state.get(f"{name}tfts_gamma_{number}")
    return values if gamma is None else values * gamma + state[f"{name}tfts_beta_{number}"]


def random_vit_state(seed: int, dim: int, depth: int, classes: int, grid: int, patch: int) -> State:
    """A checkpoint with timm's names and random values, of square images of ``grid * patch`` pixels a side."""
    generator = torch.Generator().manual_seed(seed)

    def make(*shape: int, scale: float = 0.2, shift: float = 0.0) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale + shift

    state = {"cls_token": make(1, 1, dim), "pos_embed": make(1, 1 + grid**2, dim)}
    state |= {"patch_embed.proj.weight": make(dim, 3, patch, patch), "patch_embed.proj.bias": make(dim)}
    widths = {"attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim), "mlp.fc1": (4 * dim, dim), "mlp.fc2": (dim, 4 * dim)}
    for index in range(depth):
        for name in ("norm1", "norm2"):
            state[f"blocks.{index}.{name}.weight"] = make(dim, shift=1.0)
            state[f"blocks.{index}.{name}.bias"] = make(dim)
        for name, (out, width) in widths.items():
            state[f"blocks.{index}.{name}.weight"] = make(out, width, scale=width**-0.5)
            state[f"blocks.{index}.{name}.bias"] = make(out)
    state |= {"norm.weight": make(dim, shift=1.0), "norm.bias": make(dim)}
    return state | {"head.weight": make(classes, dim), "head.bias": make(classes)}


def classify_vit(state: State, images: Tensor, heads: int) -> Tensor:
    """Logits (B, classes) of a ViT checkpoint for images (B, 3, S, S)."""
    return torch.stack([_classify_image(state, image, heads) for image in images])


def _classify_image(state: State, image: Tensor, heads: int) -> Tensor:
    kernel = state["patch_embed.proj.weight"]
    size, rows = kernel.shape[-1], []
    for top in range(0, image.shape[1], size):
        for left in range(0, image.shape[2], size):
            square = image[:, top : top + size, left : left + size]
            rows.append((kernel * square).sum(dim=(1, 2, 3)) + state["patch_embed.proj.bias"])
    tokens = torch.cat([state["cls_token"][0], torch.stack(rows)]) + state["pos_embed"][0]
    dim = tokens.shape[-1]
    for index in range(len({name.split(".")[1] for name in state if name.startswith("blocks.")})):
        name = f"blocks.{index}"
        qkv = _linear(state, f"{name}.attn.qkv", _norm(state, f"{name}.norm1", tokens, 1e-6))
        mixed = []
        for head in range(heads):
            part = slice(head * dim // heads, (head + 1) * dim // heads)
            query, key, value = (piece[:, part] for piece in qkv.split(dim, dim=-1))
            mixed.append((query @ key.T / (dim // heads) ** 0.5).softmax(-1) @ value)
        tokens = tokens + _linear(state, f"{name}.attn.proj", torch.cat(mixed, dim=-1))
        hidden = F.gelu(_linear(state, f"{name}.mlp.fc1", _norm(state, f"{name}.norm2", tokens, 1e-6)))
        tokens = tokens + _linear(state, f"{name}.mlp.fc2", hidden)
    return _linear(state, "head", _norm(state, "norm", tokens, 1e-6)[:1])[0]
