"""LayerScale, and the ViTs that have it: names of timm and transformers, sites behind the scale, and merging."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pointadapterx.build import build_backbone, build_model
from pointadapterx.checkpoints.published import load_pretrained
from pointadapterx.errors import CheckpointError
from pointadapterx.models.block import Block, FfnUpdate
from pointadapterx.models.vit import ViT
from pointadapterx.peft import METHODS
from tests.conftest import randomise, small_config
from tests.models.test_vit import classifier, saved
from tests.parity.oracle import State, classify_vit, random_vit_state

DIM, DEPTH = 24, 2
SIZES = {"dim": DIM, "depth": DEPTH, "num_heads": 3, "patch_size": 4, "image_size": 16}


def vit(**changes: Any) -> ViT:
    return ViT(ViT.Options(**({"layer_scale": True, **SIZES} | changes)))


@pytest.fixture
def state() -> State:
    generator = torch.Generator().manual_seed(4)
    plain = random_vit_state(1, dim=DIM, depth=DEPTH, classes=5, grid=4, patch=4)
    scales = {
        f"blocks.{i}.ls{part}.gamma": 1 + 0.5 * torch.randn(DIM, generator=generator)
        for i in range(DEPTH)
        for part in (1, 2)
    }
    return plain | scales


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def folded(state: State) -> State:
    """A plain ViT that computes the same: the scale is linear, and what is before it takes it in."""
    state = dict(state)
    for i in range(DEPTH):
        for scale, layer in (("ls1", "attn.proj"), ("ls2", "mlp.fc2")):
            gamma = state.pop(f"blocks.{i}.{scale}.gamma")
            state[f"blocks.{i}.{layer}.weight"] = gamma[:, None] * state[f"blocks.{i}.{layer}.weight"]
            state[f"blocks.{i}.{layer}.bias"] = gamma * state[f"blocks.{i}.{layer}.bias"]
    return state


OUTSIDE = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "head": "classifier",
}
OLD = {
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "ls1": "layer_scale1",
    "ls2": "layer_scale2",
    "norm1": "norm1",
    "norm2": "norm2",
}
OF_VIT = OLD | {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
NEW = OLD | {"attn.proj": "attention.o_proj"}


def as_transformers(state: State, parts: dict[str, str], prefix: str, block: str, qkv: str) -> State:
    """timm's names to those of transformers, queries, keys and values apart."""
    found: State = {}
    for name, tensor in state.items():
        stem, _, leaf = name.rpartition(".")
        if not name.startswith("blocks."):
            outer = OUTSIDE[name] if name in OUTSIDE else f"{OUTSIDE[stem]}.{leaf}"
            found[outer if outer.startswith("classifier") else prefix + outer] = tensor
            continue
        _, number, inner = stem.split(".", 2)
        place = f"{prefix}{block}.{number}."
        if inner == "attn.qkv":
            for word, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                found[f"{place}{qkv.format(word=word, letter=word[0])}.{leaf}"] = third
        else:
            found[f"{place}{parts[inner]}.{'lambda1' if leaf == 'gamma' else leaf}"] = tensor
    return found


NAMINGS: dict[str, Callable[[State], State]] = {
    "timm": lambda state: state | {"mask_token": torch.zeros(1, DIM)},
    "transformers": lambda state: (
        as_transformers(state, OLD, "dinov2.", "encoder.layer", "attention.attention.{word}")
        | {"dinov2.embeddings.mask_token": torch.zeros(1, DIM)}
    ),
    "transformers 5": lambda state: as_transformers(state, NEW, "", "encoder.layer", "attention.{letter}_proj"),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_a_scaled_vit_is_the_plain_one_with_the_scale_in_its_layers(
    naming: str, state: State, images: Tensor, tmp_path: Path
) -> None:
    model = classifier(vit(), 5)
    report = load_pretrained(model, saved(NAMINGS[naming](state), tmp_path))
    assert (report.missing, report.notes) == ([], [])
    torch.testing.assert_close(model(images).logits, classify_vit(folded(state), images, heads=3), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("block", "qkv"), [("encoder.layer", "attention.attention.{word}"), ("layers", "attention.{letter}_proj")]
)
def test_a_plain_vit_of_transformers(block: str, qkv: str, state: State, images: Tensor, tmp_path: Path) -> None:
    plain = folded(state)
    names = as_transformers(
        plain, OF_VIT if "{word}" in qkv else OF_VIT | {"attn.proj": "attention.o_proj"}, "vit.", block, qkv
    )
    path = tmp_path / "model.safetensors"
    save_file(
        {name: tensor.contiguous() for name, tensor in names.items()} | {"vit.pooler.dense.bias": torch.zeros(2)}, path
    )
    model = classifier(vit(layer_scale=None), 5)
    assert load_pretrained(model, path).notes == []
    torch.testing.assert_close(model(images).logits, classify_vit(plain, images, heads=3), atol=1e-5, rtol=0)


def test_transformers_dinov2_itself(images: Tensor, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    sizes = {"hidden_size": DIM, "num_hidden_layers": DEPTH, "num_attention_heads": 3, "mlp_ratio": 4}
    theirs = transformers.Dinov2Model(transformers.Dinov2Config(image_size=16, patch_size=4, **sizes)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    theirs.save_pretrained(tmp_path)
    for path in (tmp_path / "model.safetensors", saved(theirs.state_dict(), tmp_path)):
        model = vit().eval()
        assert load_pretrained(model, path).coverage == 1.0
        wanted = theirs(images).last_hidden_state
        torch.testing.assert_close(model(images).sequence.tokens, wanted, atol=1e-5, rtol=0)


def test_the_option_is_read_from_the_file(state: State, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"DINOv2.*layer scale true \(the backbone: false\); set backbone\.layer_scale=true$"
    ):
        load_pretrained(vit(layer_scale=None), saved(state, tmp_path))
    with pytest.raises(CheckpointError, match=r"set backbone\.layer_scale=false$"):
        load_pretrained(vit(), saved(folded(state), tmp_path))
    with pytest.raises(CheckpointError, match=r"2 encoder tensors are missing, first blocks\.0\.ls1\.gamma"):
        load_pretrained(vit(), saved({n: t for n, t in state.items() if ".ls1." not in n}, tmp_path))


@pytest.mark.parametrize("name", ["reg_token", "register_tokens"])
def test_register_tokens_are_named(name: str, state: State, tmp_path: Path) -> None:
    state[name] = torch.zeros(1, 4, DIM)
    with pytest.raises(
        CheckpointError, match=r"of DINOv2 with registers, which needs register tokens; that is not supp"
    ):
        load_pretrained(vit(), saved(state, tmp_path))


def test_sites_are_behind_the_scale(state: State, images: Tensor, tmp_path: Path) -> None:
    """What attention and FFN put out is what is added to the tokens; an update joins it there, unscaled."""
    backbone = vit().eval()
    load_pretrained(backbone, saved({n: t for n, t in state.items() if not n.startswith("head")}, tmp_path))
    block, tokens = backbone.blocks[0], torch.randn(2, 17, DIM)
    assert isinstance(block, Block)
    seen = {}
    sites = {site.name: site.module for site in block.sites()}
    for name in ("attention", "ffn", "proj", "fc2"):
        sites[name].register_forward_hook(lambda module, given, output, name=name: seen.update({name: output}))
    output, _ = block(tokens)
    torch.testing.assert_close(seen["attention"], block.ls1.gamma * seen["proj"])
    torch.testing.assert_close(seen["ffn"], block.ls2.gamma * seen["fc2"])
    torch.testing.assert_close(tokens + seen["attention"] + seen["ffn"], output)
    given = {}

    def adapt(u: Tensor, out: Tensor) -> FfnUpdate:
        given["ffn"] = out
        return FfnUpdate(torch.ones_like(out))

    torch.testing.assert_close(block(tokens, adapt)[0], output + 1)
    assert torch.equal(given["ffn"], seen["ffn"])
    attention, ffn, again = block.branches(tokens)
    assert torch.equal(attention, seen["attention"])
    assert torch.equal(ffn, seen["ffn"])
    assert torch.equal(again, output)


def test_a_copy_has_scales_of_its_own(images: Tensor) -> None:
    backbone = vit().eval()
    copied = copy.deepcopy(backbone)
    before = backbone(images).sequence.tokens
    with torch.no_grad():
        for block in copied.blocks:
            block.ls1.gamma.fill_(2.0)
    assert torch.equal(backbone(images).sequence.tokens, before)
    assert not torch.allclose(copied(images).sequence.tokens, before)
    moved = torch.func.functional_call(backbone, dict(copied.named_parameters()), (images,))
    assert torch.equal(moved.sequence.tokens, copied(images).sequence.tokens)


@pytest.mark.parametrize("name", METHODS)
def test_methods_adapt_and_merge_it(name: str, images: Tensor) -> None:
    model = build_model(small_config(name, kind="vit", backbone={"layer_scale": True}, data={"name": "digits"}))
    with torch.no_grad():
        for block in model.backbone.blocks:
            block.ls1.gamma.normal_(1.0, 0.3)
            block.ls2.gamma.normal_(1.0, 0.3)
    model = randomise(model).train()
    logits, auxiliary = model(images)
    (logits.sum() if auxiliary is None else logits.sum() + auxiliary).backward()
    model.eval()
    with torch.no_grad():
        kept = model.method.precompute(model.backbone, images)
        torch.testing.assert_close(model(kept).logits, model(images).logits)
    scales = [p for n, p in model.backbone.named_parameters() if n.endswith("gamma")]
    assert len(scales) == 4
    assert {parameter.requires_grad for parameter in scales} == {METHODS[name].trains_backbone}
    if name in ("lora", "ssf", "bitfit"):
        torch.testing.assert_close(model.merge()(images).logits, model(images).logits, atol=1e-5, rtol=0)


def test_without_the_option_nothing_is_there() -> None:
    plain = build_backbone(small_config("linear", kind="vit").backbone)
    assert not any(".ls" in name for name in plain.state_dict())
