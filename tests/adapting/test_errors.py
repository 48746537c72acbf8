"""What cannot be adapted is refused in one line that names module and site, and the model stays as it was."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pointadapterx as pax
from pointadapterx import Sites
from pointadapterx.errors import ConfigError
from tests.adapting.models import DEPTH, HEADS, WIDTH, Encoder, PointTransformer, need


class Plain(nn.Module):
    """A user's transformer, whose attention runs no layer of its own: torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, WIDTH)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, HEADS, batch_first=True) for _ in range(DEPTH))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, points: Tensor) -> Tensor:
        tokens = self.embed(points)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(tokens.mean(dim=1))


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Plain()


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = PointTransformer(), PointTransformer()


class Skipping(PointTransformer):
    """Uses the weights of a layer, not the layer."""

    def __init__(self) -> None:
        super().__init__()
        for block in self.blocks.blocks:
            block.mlp.forward = lambda x, mlp=block.mlp: nn.functional.linear(x, mlp.fc2.weight @ mlp.fc1.weight)


class Taken(PointTransformer):
    pointadapterx = "mine"


def hf(name: str, **options: Any) -> nn.Module:
    import transformers

    from tests.adapting import models

    need("transformers")
    assert transformers is not None
    return getattr(models, name)(**options)


LAYERS = {"blocks": "layers", "norm1": "norm1", "norm2": "norm2"}
POINTS = torch.zeros(2, 16, 3)
CASES: list[tuple[str, Callable[[], Any], dict[str, Any], str]] = [
    ("not a module", lambda: {"weights": 1}, {}, r"needs a torch.nn.Module, not \{'weights': 1\}"),
    ("scripted", lambda: torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), {}, "scripted module"),
    ("no blocks", lambda: nn.Linear(2, 2), {}, "no module of Linear is known .*sites=Sites\\(blocks="),
    ("unknown class", Plain, {}, "no module of Plain is known .*blocks='layers'"),
    ("two models", Both, {}, r"Both holds 2 known models: 'student' \(PointTransformer\), 'teacher'"),
    ("wrong path of a model", Both, {"sites": "studnt"}, "Both has no module 'studnt'; did you mean 'student'"),
    ("of this package", lambda: pax.create_model("point_mae_tiny", num_classes=3), {}, "is a model of this package"),
    ("taken attribute", Taken, {}, "already has an attribute 'pointadapterx'"),
    ("unknown method", PointTransformer, {"method": "adaptfromer"}, "unknown method 'adaptfromer'; did you mean"),
    ("unknown option", PointTransformer, {"rnk": 4}, "lora: unknown option 'rnk'; did you mean 'rank'"),
    ("wrong option", PointTransformer, {"rank": "4"}, "lora: rank: .*integer, not '4'"),
    ("unknown name to train", PointTransformer, {"train": ["cls_head"]}, "train: 'cls_head' is neither .*did you mean"),
    ("nothing to train in it", PointTransformer, {"train": ["blocks.blocks.0.mlp.act"]}, "'.*act' has no parameters"),
    ("nothing at all", PointTransformer, {"method": "linear"}, "linear trains nothing of PointTransformer"),
    ("no such block list", Plain, {"sites": Sites(blocks="leyers")}, "sites.blocks: Plain has no module 'leyers'; did"),
    ("no list", Plain, {"sites": Sites(blocks="embed")}, "'embed' of Plain is a Linear, not a list of blocks"),
    (
        "no such site",
        Plain,
        {"sites": Sites(**LAYERS, proj="self_attn.proj")},
        r"sites.proj: Plain block 0 \('layers.0', a TransformerEncoderLayer\) has no module 'self_attn.proj'; did you",
    ),
    (
        "site left out",
        Plain,
        {"sites": Sites(**LAYERS)},
        "lora acts at qkv, which block 0 of backbone Plain does not have",
    ),
    ("no width", Plain, {"sites": Sites(blocks="layers")}, "its width cannot be found; give it in sites.width"),
    (
        "no final norm",
        Plain,
        {"method": "e3va", "sites": Sites(**LAYERS, attention="self_attn", ffn="linear1 -> linear2")},
        "Plain has no site 'final norm'",
    ),
    (
        "no class token",
        Plain,
        {"method": "vpt", "sites": Sites(**LAYERS)},
        "behind a class token, which the model does not",
    ),
    (
        "fixed positions",
        PointTransformer,
        {"method": "dapt"},
        "adds positions .* before every block; pass prompts=False",
    ),
    ("windows", lambda: hf("hf_swin"), {"method": "vpt"}, "inserts prompt tokens, but its attention works in windows"),
    ("gated FFN", lambda: hf("hf_dinov2", use_swiglu_ffn=True), {"method": "ssf"}, "ssf acts at fc1, which block 0 of"),
    (
        "widths",
        PointTransformer,
        {"method": "adaptformer_x", "prompts": False, "num_heads": 5},
        "num_heads: 5 sub-tokens",
    ),
    ("supernet", PointTransformer, {"method": "noah"}, "without architecture it is a supernet"),
    (
        "beside a highway",
        PointTransformer,
        {"method": "e3va", "train": ["blocks.blocks.1.mlp"]},
        "before the final norm, and e3va",
    ),
    (
        "patches on a highway",
        lambda: hf("hf_vit"),
        {"method": "e3va", "train": ["vit.embeddings"]},
        "'vit.embeddings.patch_embeddings.projection.bias' lies before the final norm",
    ),
    (
        "way between stages of a highway",
        lambda: hf("hf_swin"),
        {"method": "e3va_x", "train": ["swin.encoder.layers.0.downsample"]},
        "downsample.norm.bias' lies before the final norm, and e3va_x sends no gradient",
    ),
    ("no text", PointTransformer, {"train": [3]}, r"train: \[3\] is no list of paths .*such as \['classifier'\]"),
    ("a module to train", PointTransformer, {"train": nn.Linear(2, 2)}, "train: a Linear is no list of paths"),
    ("no name", PointTransformer, {"name": 3}, "method and name are text, not 'lora' and 3"),
    ("no sites", PointTransformer, {"sites": 3}, r"sites: 3 is neither Sites\(...\) nor the path"),
    ("sites as a mapping", Plain, {"sites": {"blocks": "leyers"}}, "sites.blocks: Plain has no module 'leyers'; did"),
    ("unknown field", Plain, {"sites": {"blocks": "layers", "mlp": "x"}}, "sites: unknown field 'mlp'.* Known: blocks"),
    ("no blocks said", Plain, {"sites": {"norm": "norm"}}, "sites: field 'blocks' is required"),
    ("path of blocks", Nested, {"sites": "inner.layers"}, r"no module of ModuleList .*Sites\(blocks='inner.layers'"),
    (
        "targets that there are",
        Plain,
        {"sites": Sites(**LAYERS, fc1="linear1", fc2="linear2")},
        r"choose another method, or name sites.qkv, or sites.q, sites.k and .*, or pass targets=\['fc1', 'fc2'\]$",
    ),
    ("wrapped", lambda: nn.DataParallel(PointTransformer()), {}, "PointTransformer is compiled, or wrapped .*before"),
    ("prompts on a highway", lambda: hf("hf_vit"), {"method": "e3va", "prompts": True}, "need a prompt pool"),
]


def state_of(model: Any) -> list[Any]:
    """Which parameters are trained, and the hooks of every module."""
    if not isinstance(model, nn.Module):
        return []
    hooks = [[*module._forward_hooks, *module._forward_pre_hooks] for module in model.modules()]
    return [[parameter.requires_grad for parameter in model.parameters()], hooks]


@pytest.mark.parametrize(("make", "options", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_refused_in_one_line(make: Callable[[], Any], options: dict[str, Any], message: str) -> None:
    model = make()
    before = state_of(model)
    with pytest.raises(ConfigError, match=message) as caught:
        pax.adapt(model, **{"method": "lora", **options})
    assert "\n" not in str(caught.value)
    assert state_of(model) == before


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Skipping, {"method": "lora", "targets": ["fc1"]}, r"has not run 'blocks.blocks.0.mlp.fc1' \(site fc1\)"),
        (
            Plain,
            {"method": "lora", "targets": ["proj"], "sites": Sites(**LAYERS, proj="self_attn.out_proj")},
            r"has not run 'layers.0.self_attn.out_proj' \(site proj\)",
        ),
    ],
)
def test_what_never_runs_is_reported_in_the_first_pass(
    make: Callable[[], nn.Module], options: dict[str, Any], message: str
) -> None:
    """A layer whose weights are used without running it looks like any other, until it is run."""
    model = pax.adapt(make().train(), **options)
    with pytest.raises(ConfigError, match=message):
        model(POINTS)


def test_a_highway_finds_what_is_trained_before_it() -> None:
    model = pax.adapt(PointTransformer(), "e3va", train=["cls_token"])
    with torch.no_grad():
        model(POINTS)
    with pytest.raises(ConfigError, match="train: 'cls_token' lies before the final norm, and e3va sends no gradient"):
        model(POINTS)


@pytest.mark.parametrize("side", [8, 32])
@pytest.mark.parametrize(("name", "options"), [("stag", {}), ("adaptformer_x", {"neighbours": 8}), ("idpt", {})])
def test_images_of_another_size(name: str, options: dict[str, Any], side: int) -> None:
    """Patches beyond those that the model was built for would be taken for register tokens."""
    model = pax.adapt(hf("hf_dinov3"), name, **options)
    with pytest.raises(ConfigError, match="tokens, of which 3 are no patches, but its adapter is made for 16 patches"):
        model(torch.zeros(2, 3, side, side))


def test_several_adapters_are_told_apart() -> None:
    model = pax.adapt(PointTransformer(), "lora")
    for change, message in (
        (lambda: pax.adapt(model, "lora"), "already has an adapter 'default'"),
        (lambda: pax.adapt(model, "lora", name="a b"), "cannot name an adapter"),
        (lambda: pax.adapt(model, "lora", name="b", sites="blocks"), "those of the first adapter"),
        (lambda: pax.adapt(nn.Sequential(model), "lora"), "'0' inside Sequential is already adapted"),
        (lambda: pax.set_adapter(model, "defualt"), "no adapter 'defualt'; did you mean 'default'"),
        (lambda: pax.auxiliary_loss(PointTransformer()), "has no adapters; adapt it first"),
    ):
        with pytest.raises(ConfigError, match=message):
            change()


def test_sites_are_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^sites: unknown field 'mlp'[^\n]*$"):
        Sites(blocks="layers", mlp="x")


def test_a_head_that_stays_frozen_is_named() -> None:
    sites = Sites(**LAYERS, ffn="linear1 -> linear2")
    with pytest.warns(UserWarning, match=r"'head' of Plain stays frozen, .*pass train=\['head'\]") as said:
        pax.adapt(Plain(), "adapter", sites=sites)
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pax.adapt(Plain(), "adapter", sites=sites, train=["head"])
        pax.adapt(Plain(), "full", sites=sites)
        pax.adapt(Encoder(WIDTH, DEPTH, HEADS), "adapter")


def test_blocks_by_themselves_can_be_adapted() -> None:
    """A list of blocks without anything around it has no norm, which not every method needs."""
    encoder = pax.adapt(Encoder(WIDTH, DEPTH, HEADS), "adapter")
    assert encoder(torch.zeros(1, 4, WIDTH), torch.zeros(1, 4, WIDTH)).shape == (1, 4, WIDTH)
