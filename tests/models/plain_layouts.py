"""Public files of point-cloud transformers by names and shapes, and what they compute, in plain torch.

Nothing here calls the package: each layout is a list of names and shapes, as its public files have them, and
:func:`run` computes the tokens from the names of the file itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
State = dict[str, Tensor]


class Sizes(NamedTuple):
    """Of a transformer; published by default."""

    dim: int = 384
    depth: int = 12
    heads: int = 6
    groups: int = 64
    size: int = 32


class Names(NamedTuple):
    """What the parts of a transformer are called in a file."""

    conv: tuple[str, str, str, str, str, str]  # linear, norm, linear of the first MLP, and of the second
    position: tuple[str, str]
    block: str
    ffn: tuple[str, str]
    norm: str
    reduce: str = ""
    sine: bool = False
    class_token: str = ""


class Layout(NamedTuple):
    """A kind of public file.

    Attributes:
        preset: base config that has its options.
        words: what messages call it.
        shapes: names and shapes for sizes.
        names: of the encoder that is loaded.
        wrapper: key of the file under which the tensors are.
        unused: starts of the names that serve pre-training alone.
    """

    preset: str
    words: str
    shapes: Callable[[Sizes], Shapes]
    names: Names
    wrapper: str | None = "base_model"
    unused: tuple[str, ...] = ()


def linear(name: str, *shape: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": shape} | ({f"{name}.bias": shape[:1]} if bias else {})


def batch_norm(name: str, width: int) -> Shapes:
    keys = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{key}": (width,) for key in keys} | {f"{name}.num_batches_tracked": ()}


def under(prefix: str, *parts: Shapes) -> Shapes:
    return {prefix + name: shape for part in parts for name, shape in part.items()}


def patches(dim: int, *, bias: bool = True) -> Shapes:
    shapes = linear("first_conv.0", 128, 3, 1, bias=bias) | batch_norm("first_conv.1", 128)
    shapes |= linear("first_conv.3", 256, 128, 1)
    shapes |= linear("second_conv.0", 512, 512, 1, bias=bias) | batch_norm("second_conv.1", 512)
    return shapes | linear("second_conv.3", dim, 512, 1)


def block(dim: int, *, qkv_bias: bool = False) -> Shapes:
    shapes = linear("norm1", dim) | linear("norm2", dim) | linear("attn.qkv", 3 * dim, dim, bias=qkv_bias)
    return shapes | linear("attn.proj", dim, dim) | linear("mlp.fc1", 4 * dim, dim) | linear("mlp.fc2", dim, 4 * dim)


def blocks(prefix: str, sizes: Sizes, count: int | None = None, *, qkv_bias: bool = False) -> Shapes:
    numbers = range(sizes.depth if count is None else count)
    return under("", *(under(f"{prefix}{i}.", block(sizes.dim, qkv_bias=qkv_bias)) for i in numbers))


def positions(name: str, dim: int) -> Shapes:
    return linear(f"{name}.0", 128, 3) | linear(f"{name}.2", dim, 128)


def class_token(dim: int) -> Shapes:
    return {"cls_token": (1, 1, dim), "cls_pos": (1, 1, dim)}


def point_mae(sizes: Sizes, encoder: int | None = None) -> Shapes:
    """ "P": the encoder without class token."""
    shapes = under("encoder.", patches(encoder or sizes.dim)) | positions("pos_embed", sizes.dim)
    return shapes | blocks("blocks.blocks.", sizes) | linear("norm", sizes.dim)


def decoder(sizes: Sizes) -> Shapes:
    shapes = {"mask_token": (1, 1, sizes.dim)} | positions("decoder_pos_embed", sizes.dim)
    shapes |= blocks("MAE_decoder.blocks.", sizes, 4) | linear("MAE_decoder.norm", sizes.dim)
    return shapes | linear("increase_dim.0", 3 * sizes.size, sizes.dim, 1)


def act(sizes: Sizes) -> Shapes:
    dim = sizes.dim
    extra = {"mask_token": (1, 1, dim)} | linear("lm_head", 64, dim) | linear("cls_head.0", dim, dim)
    return under("module.ACT_encoder.", point_mae(sizes), class_token(dim), extra)


def point_bert(sizes: Sizes) -> Shapes:
    dim, encoder = sizes.dim, 2 * sizes.dim // 3
    one = point_mae(sizes, encoder) | linear("reduce_dim", dim, encoder) | class_token(dim)
    one |= {"mask_token": (1, 1, dim)} | linear("lm_head", 64, dim) | linear("cls_head.0", dim, dim)
    shapes = under("module.transformer_q.", one) | under("module.transformer_k.", one)
    return shapes | {"module.queue": (dim, 32)} | under("module.dvae.encoder.", patches(encoder))


def recon(sizes: Sizes) -> Shapes:
    dim = sizes.dim
    shapes = point_mae(sizes) | class_token(dim)
    shapes |= {f"{kind}_{part}": (1, 1, dim) for kind in ("img", "text") for part in ("token", "pos")}
    contrast = linear("norm1_contrast", dim) | linear("norm2_contrast", dim)
    contrast |= linear("attn_contrast.q", dim, dim, bias=False) | linear("attn_contrast.kv", 2 * dim, dim, bias=False)
    contrast |= linear("attn_contrast.proj", dim, dim)
    contrast |= linear("mlp_contrast.fc1", 4 * dim, dim) | linear("mlp_contrast.fc2", dim, 4 * dim)
    shapes |= under("", *(under(f"blocks.blocks.{i}.", contrast) for i in range(sizes.depth)))
    return under("module.MAE_encoder.", shapes) | under("module.", decoder(sizes))


def pcp_mae(sizes: Sizes) -> Shapes:
    dim = sizes.dim
    shapes = point_mae(sizes) | linear("pos_embed.0", dim, dim) | linear("pos_embed.2", dim, dim)
    shapes |= {"mask_pos_token": (1, 1, dim)}
    guess = linear("pred_pos_proj.0", dim, dim, 1) | batch_norm("pred_pos_proj.1", dim)
    guess |= linear("pred_pos_proj.3", dim, dim, 1)
    return under("module.MAE_encoder.", shapes) | under("module.", decoder(sizes), guess)


def point_jepa(sizes: Sizes) -> Shapes:
    dim = sizes.dim
    shapes = under("tokenizer.embedding.encoder.", patches(dim, bias=False)) | positions("positional_encoding", dim)
    for copy in ("student.", "teacher.ema_model."):
        shapes |= blocks(f"{copy}blocks.", sizes, qkv_bias=True) | linear(f"{copy}norm", dim)
    narrow = sizes._replace(dim=dim // 2)
    shapes |= {"mask_token": (dim,), "predictor.mask_token": (1, 1, narrow.dim)}
    shapes |= blocks("predictor.predictor.blocks.", narrow, 2, qkv_bias=True)
    return shapes | positions("predictor.positional_encoding", narrow.dim)


def fine_tuned_jepa(sizes: Sizes) -> Shapes:
    dim = sizes.dim
    shapes = under("tokenizer.embedding.encoder.", patches(dim, bias=False)) | positions("positional_encoding", dim)
    shapes |= blocks("encoder.blocks.", sizes, qkv_bias=True) | linear("encoder.norm", dim)
    return shapes | linear("cls_head.0", 256, 2 * dim, bias=False) | linear("cls_head.8", 15, 256)


def torch_pointcloud(sizes: Sizes, encoder: int | None = None) -> Shapes:
    """A fine-tuned classifier of torch-pointcloud."""
    dim = sizes.dim
    shapes = class_token(dim) | linear("norm_f", dim)
    for name, (inner, middle, outer) in {"local": (3, 128, 256), "global": (512, 512, encoder or dim)}.items():
        mlp = f"encoder.{name}_mlp"
        shapes |= linear(f"{mlp}.lins.0", middle, inner) | batch_norm(f"{mlp}.norms.0.module", middle)
        shapes |= linear(f"{mlp}.lins.1", outer, middle)
    shapes |= linear("pos_embed.lins.0", 128, 3) | linear("pos_embed.lins.1", dim, 128)
    for name, shape in blocks("blocks.blocks.", sizes).items():
        shapes[name.replace("mlp.fc1", "mlp.lins.0").replace("mlp.fc2", "mlp.lins.1")] = shape
    for i, (inner, outer) in enumerate(((2 * dim, 256), (256, 256), (256, 15))):
        shapes |= linear(f"head.lins.{i}", outer, inner)
    return shapes | batch_norm("head.norms.0.module", 256) | batch_norm("head.norms.1.module", 256)


def torch_pointcloud_bert(sizes: Sizes) -> Shapes:
    encoder = 2 * sizes.dim // 3
    shapes = torch_pointcloud(sizes, encoder) | linear("reduce_dim", sizes.dim, encoder)
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith("head.")}
    return shapes | linear("head.lins.0", 256, 2 * sizes.dim) | linear("head.lins.1", 15, 256)


def p_names(prefix: str, **changes: object) -> Names:
    convs = [f"{prefix}encoder.{which}_conv.{number}" for which in ("first", "second") for number in (0, 1, 3)]
    names = Names(
        tuple(convs),  # type: ignore[arg-type]
        (f"{prefix}pos_embed.0", f"{prefix}pos_embed.2"),
        f"{prefix}blocks.blocks.",
        ("mlp.fc1", "mlp.fc2"),
        f"{prefix}norm",
        class_token=f"{prefix}cls",
    )
    return names._replace(**changes)  # type: ignore[arg-type]


def jepa_names(trunk: str) -> Names:
    convs = p_names("tokenizer.embedding.").conv
    position = ("positional_encoding.0", "positional_encoding.2")
    return Names(convs, position, f"{trunk}blocks.", ("mlp.fc1", "mlp.fc2"), f"{trunk}norm")


def torch_pointcloud_names(**changes: str) -> Names:
    kinds = ("lins.0", "norms.0.module", "lins.1")
    convs = tuple(f"encoder.{which}_mlp.{kind}" for which in ("local", "global") for kind in kinds)
    position, ffn = ("pos_embed.lins.0", "pos_embed.lins.1"), ("mlp.lins.0", "mlp.lins.1")
    names = Names(convs, position, "blocks.blocks.", ffn, "norm_f", class_token="cls")  # type: ignore[arg-type]
    return names._replace(**changes)  # type: ignore[arg-type]


_BERT = "module.transformer_q."
_PRETRAINED = ("module.mask_token", "module.decoder_pos_embed", "module.MAE_decoder", "module.increase_dim")
LAYOUTS = {
    "act": Layout(
        "act",
        "ACT",
        act,
        p_names("module.ACT_encoder."),
        unused=tuple(f"module.ACT_encoder.{name}" for name in ("mask_token", "lm_head", "cls_head")),
    ),
    "point_bert": Layout(
        "point_bert",
        "Point-BERT",
        point_bert,
        p_names(_BERT, reduce=f"{_BERT}reduce_dim"),
        unused=(
            *(f"{_BERT}{name}" for name in ("mask_token", "lm_head", "cls_head")),
            *("module.transformer_k.", "module.queue", "module.dvae."),
        ),
    ),
    "recon": Layout(
        "recon_as_used",
        "ReCon",
        recon,
        p_names("module.MAE_encoder."),
        unused=(*_PRETRAINED, "module.MAE_encoder.img", "module.MAE_encoder.text", "module.MAE_encoder.blocks"),
    ),
    "pcp_mae": Layout(
        "pcp_mae",
        "PCP-MAE",
        pcp_mae,
        p_names("module.MAE_encoder.", sine=True, class_token=""),
        unused=(*_PRETRAINED, "module.MAE_encoder.mask_pos_token", "module.pred_pos_proj"),
    ),
    "point_jepa": Layout(
        "point_jepa",
        "Point-JEPA",
        point_jepa,
        jepa_names("student."),
        "state_dict",
        ("teacher.", "predictor.", "mask_token"),
    ),
    "fine_tuned_jepa": Layout(
        "point_jepa", "Point-JEPA", fine_tuned_jepa, jepa_names("encoder."), "state_dict", ("cls_head.",)
    ),
    "torch_pointcloud": Layout(
        "point_mae", "torch-pointcloud's Point-MAE", torch_pointcloud, torch_pointcloud_names(), None
    ),
    "torch_pointcloud_bert": Layout(
        "point_bert",
        "torch-pointcloud's Point-BERT",
        torch_pointcloud_bert,
        torch_pointcloud_names(reduce="reduce_dim"),
        None,
    ),
}


def random_state(shapes: Shapes, seed: int = 1) -> State:
    """Values at which every tensor matters to the result."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            values = torch.tensor(3)
        elif name.endswith("running_var"):
            values = values.abs() + 0.5
        elif name.endswith("weight") and len(shape) == 1:
            values = 1 + 0.2 * values
        elif name.endswith("weight"):
            values = values * shape[1] ** -0.5
        else:
            values = 0.2 * values
        state[name] = values
    return state


def run(state: State, points: Tensor, names: Names, sizes: Sizes) -> Tensor:
    """Normalised tokens (L, C) of one cloud (N, 3)."""
    chosen, distance = [0], torch.full((len(points),), torch.inf)
    for _ in range(sizes.groups - 1):
        distance = torch.minimum(distance, (points - points[chosen[-1]]).square().sum(-1))
        chosen.append(int(distance.argmax()))
    centers = points[chosen]
    near = torch.cdist(centers, points).topk(sizes.size, largest=False).indices
    groups = points[near] - centers[:, None]  # (G, k, 3)

    local = _mlp(state, names.conv[:3], groups)
    joint = torch.cat([local.amax(1, keepdim=True).expand_as(local), local], dim=-1)
    tokens = _mlp(state, names.conv[3:], joint).amax(1)
    if names.reduce:
        tokens = _linear(state, names.reduce, tokens)

    code = torch.stack([_sines(center, sizes.dim) for center in centers]) if names.sine else centers
    position = _linear(state, names.position[1], F.gelu(_linear(state, names.position[0], code)))
    if names.class_token:
        tokens = torch.cat([state[f"{names.class_token}_token"][0], tokens])
        position = torch.cat([state[f"{names.class_token}_pos"][0], position])

    for i in range(sizes.depth):
        tokens = tokens + position
        tokens = tokens + _attention(state, f"{names.block}{i}.", tokens, sizes)
        hidden = F.gelu(
            _linear(state, f"{names.block}{i}.{names.ffn[0]}", _norm(state, f"{names.block}{i}.norm2", tokens))
        )
        tokens = tokens + _linear(state, f"{names.block}{i}.{names.ffn[1]}", hidden)
    return _norm(state, names.norm, tokens)


def _sines(center: Tensor, dim: int) -> Tensor:
    count = dim // 6
    omega = torch.tensor([10_000 ** (-j / count) for j in range(count)])
    return torch.cat([part for axis in center for part in ((axis * omega).sin(), (axis * omega).cos())])


def _mlp(state: State, names: tuple[str, ...], values: Tensor) -> Tensor:
    first, norm, last = names
    hidden = _linear(state, first, values)
    hidden = (hidden - state[f"{norm}.running_mean"]) / (state[f"{norm}.running_var"] + 1e-5).sqrt()
    return _linear(state, last, (hidden * state[f"{norm}.weight"] + state[f"{norm}.bias"]).relu())


def _attention(state: State, block: str, tokens: Tensor, sizes: Sizes) -> Tensor:
    qkv = _linear(state, f"{block}attn.qkv", _norm(state, f"{block}norm1", tokens))
    mixed, width = [], sizes.dim // sizes.heads
    for head in range(sizes.heads):
        query, key, value = (third[:, head * width : (head + 1) * width] for third in qkv.chunk(3, dim=-1))
        mixed.append((query @ key.T / width**0.5).softmax(-1) @ value)
    return _linear(state, f"{block}attn.proj", torch.cat(mixed, dim=-1))


def _linear(state: State, name: str, values: Tensor) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.linear(values, weight.reshape(weight.shape[:2]), state.get(f"{name}.bias"))


def _norm(state: State, name: str, values: Tensor) -> Tensor:
    return F.layer_norm(values, values.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])
