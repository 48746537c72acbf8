"""Point-MAE's segmentation network written straight from its published equations and parameter names.

It shares no code with the package: every layer is computed at every point, as published, one cloud after the other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.parity.oracle import State, _batch_norm, _block, _linear, _norm, _patch_tokens, group


def published_shapes(
    dim: int = 384, depth: int = 12, parts: int = 50, kept: int = 3, *, category: bool = True
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published ``part_seg`` checkpoint, or, without a category, of one for scenes."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, out: int, width: int, *, bias: bool = True, conv: bool = False) -> None:
        shapes[f"{name}.weight"] = (out, width, 1) if conv else (out, width)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    def norm(name: str, width: int, *, batch: bool = False) -> None:
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})
        if batch:
            shapes.update({f"{name}.running_mean": (width,), f"{name}.running_var": (width,)})
            shapes[f"{name}.num_batches_tracked"] = ()

    linear("encoder.first_conv.0", 128, 3, conv=True)
    norm("encoder.first_conv.1", 128, batch=True)
    linear("encoder.first_conv.3", 256, 128, conv=True)
    linear("encoder.second_conv.0", 512, 512, conv=True)
    norm("encoder.second_conv.1", 512, batch=True)
    linear("encoder.second_conv.3", dim, 512, conv=True)
    linear("pos_embed.0", 128, 3)
    linear("pos_embed.2", dim, 128)
    for index in range(depth):
        name = f"blocks.blocks.{index}"
        norm(f"{name}.norm1", dim)
        norm(f"{name}.norm2", dim)
        linear(f"{name}.mlp.fc1", 4 * dim, dim)
        linear(f"{name}.mlp.fc2", dim, 4 * dim)
        linear(f"{name}.attn.qkv", 3 * dim, dim, bias=False)
        linear(f"{name}.attn.proj", dim, dim)
    norm("norm", dim)
    if category:
        linear("label_conv.0", 64, 16, bias=False, conv=True)
        norm("label_conv.1", 64, batch=True)
    for number, (width, out) in enumerate([(kept * dim + 3, 4 * dim), (4 * dim, 1024)]):
        linear(f"propagation_0.mlp_convs.{number}", out, width, conv=True)
        norm(f"propagation_0.mlp_bns.{number}", out, batch=True)
    linear("convs1", 512, 1024 + 2 * kept * dim + 64 * category, conv=True)
    linear("convs2", 256, 512, conv=True)
    linear("convs3", parts, 256, conv=True)
    norm("bns1", 512, batch=True)
    norm("bns2", 256, batch=True)
    return shapes


def random_segmentor(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> State:
    """A checkpoint with these shapes and random values of plausible sizes."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(3)
            continue
        values = torch.randn(shape, generator=generator)
        if name.endswith("running_var"):
            state[name] = values.abs() + 0.5
        elif len(shape) == 1:
            state[name] = 0.2 * values + (name.endswith("weight"))
        else:
            state[name] = values * shape[1] ** -0.5
    return state


def segment(
    state: State, points: Tensor, category: Tensor, *, heads: int, groups: int, size: int, kept: list[int]
) -> Tensor:
    """Log-probabilities (B, N, parts) of points (B, N, 3) of objects of these categories (B,), in eval mode."""
    pairs = zip(points, category, strict=True)
    return torch.stack([_segment_one(state, cloud, int(one), heads, groups, size, kept) for cloud, one in pairs])


def _segment_one(
    state: State, points: Tensor, category: int, heads: int, groups: int, size: int, kept: list[int]
) -> Tensor:
    neighborhood, centers = group(points, groups, size)
    tokens = _patch_tokens(state, neighborhood)
    position = _linear(state, "pos_embed.2", F.gelu(_linear(state, "pos_embed.0", centers)))
    features = []
    for index in range(len({name.split(".")[2] for name in state if name.startswith("blocks.blocks.")})):
        tokens = _block(state, f"blocks.blocks.{index}", tokens + position, heads, dapt=False)
        if index in kept:
            features.append(_norm(state, "norm", tokens))
    joint = torch.cat(features, dim=1)  # (G, kept · C)
    same = torch.cat([joint.amax(dim=0), joint.mean(dim=0)])
    if "label_conv.0.weight" in state:
        one_hot = F.one_hot(torch.tensor(category), 16).float()
        label = F.leaky_relu(_batch_norm(state, "label_conv.1", _linear(state, "label_conv.0", one_hot[None])), 0.2)[0]
        same = torch.cat([same, label])

    squared = ((points[:, None] - centers[None]) ** 2).sum(dim=-1)
    nearest, index_of = squared.sort(dim=1)
    weight = 1 / (nearest[:, :3] + 1e-8)
    weight = weight / weight.sum(dim=1, keepdim=True)
    carried = (joint[index_of[:, :3]] * weight[..., None]).sum(dim=1)
    values = torch.cat([points, carried], dim=1)
    for number in range(2):
        sums = _linear(state, f"propagation_0.mlp_convs.{number}", values)
        values = F.relu(_batch_norm(state, f"propagation_0.mlp_bns.{number}", sums))
    values = torch.cat([values, same.expand(len(points), -1)], dim=1)
    for number in (1, 2):
        values = F.relu(_batch_norm(state, f"bns{number}", _linear(state, f"convs{number}", values)))
    return _linear(state, "convs3", values).log_softmax(dim=1)
