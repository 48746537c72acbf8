"""Swin in dense use, where a head reads the outputs of all stages: every method that can, and little is kept.

``python -m tests.adapting.test_dense`` writes the table of docs/methods/families.md where both libraries are.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.adapting.backbone import ForeignBackbone
from pointadapterx.adapting.highways import Way
from pointadapterx.build import build_backbone, build_method
from pointadapterx.errors import ConfigError
from pointadapterx.models.additions import Recorded
from pointadapterx.models.features import FeatureInfo, Features, Head
from pointadapterx.peft import METHODS
from pointadapterx.peft.e3va import Highway
from pointadapterx.tasks.upernet import Affine, Levels, levels_of
from tests.adapting import models
from tests.adapting.test_backbone import config_of
from tests.adapting.test_families import PAGE, SIGNS, options_of, table
from tests.conftest import randomise

START, END = "<!-- written by tests/adapting/test_dense.py -->\n", "<!-- end of dense -->\n"
SIDE, DEPTH = 32, 5
SWIN: dict[str, Any] = {"embed_dim": 12, "depths": [1, 1, 2, 1], "num_heads": [2, 2, 4, 4], "window_size": 2}
TIMM = {"name": "timm", "model": "swin_tiny_patch4_window7_224", "image_size": SIDE, "weights": None}
FAMILIES: dict[str, dict[str, Any]] = {
    "transformers Swin": {"name": "hf", "architecture": {**SWIN, "patch_size": 2, "model_type": "swin"}},
    "transformers Swin v2": {"name": "hf", "architecture": {**SWIN, "patch_size": 2, "model_type": "swinv2"}},
    "timm SwinTransformer": {**TIMM, "architecture": {**SWIN, "patch_size": 2}},
}
LIBRARIES = [
    pytest.param(title, marks=[pytest.mark.timm] if "timm" in title else [], id=title.replace(" ", "-"))
    for title in FAMILIES
]
HIGHWAYS = [name for name, kind in METHODS.items() if issubclass(kind, Highway)]


class StageHead(Head):
    """Reads every stage through the norms that the heads of segmentation and detection have."""

    num_classes = 3

    def __init__(self, info: FeatureInfo) -> None:
        super().__init__()
        levels = levels_of(info)
        self.blocks = tuple(level.block for level in levels)
        self.levels = Levels(levels)
        self.layers = nn.ModuleList(nn.Linear(level.width, self.num_classes) for level in levels)

    def forward(self, features: Features) -> Tensor:
        parts = zip(self.layers, self.levels.maps(features), strict=True)
        return torch.stack([layer(one.mean(dim=(2, 3))) for layer, one in parts]).sum(dim=0)


def dense_model(title: str, name: str, **options: Any) -> AdaptedModel:
    """A tiny random Swin of four stages under that head."""
    section = {"image_size": SIDE, **FAMILIES[title]}
    config = config_of(name, backbone=section, method=options)
    backbone, chosen = build_backbone(config.backbone), config.method
    assert chosen is not None
    return randomise(AdaptedModel(backbone, build_method(chosen), StageHead(backbone.feature_info)))


def images() -> Tensor:
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))


def tried(title: str, name: str) -> str:
    """What the table says of a method on a family: whether it is trained through the outputs of all stages."""
    for prompts in (True, False):
        try:
            model = dense_model(title, name, **options_of(name, DEPTH, prompts))
        except ConfigError as error:
            if len(str(error).splitlines()) > 2:  # the config, and this
                raise
            continue
        plain = model.backbone(images(), keep=model.head.blocks)
        acts = next(model.method.parameters(), None) is not None
        adapted = model.method.run(model.backbone, images(), model.head.blocks)
        for block, stage in zip(model.head.blocks, model.backbone.feature_info.stages, strict=True):
            found, before = (features.intermediates[block].sequence.patches for features in (adapted, plain))
            assert found.shape == (2, stage.num_patches, stage.width)
            assert not (acts and torch.allclose(found, before, atol=1e-4))
        logits, auxiliary = model.train()(images())
        (logits.square().sum() if auxiliary is None else logits.square().sum() + auxiliary).backward()
        for key, parameter in model.named_parameters():
            unused = key.endswith("mask_token")
            assert (parameter.grad is not None) == (parameter.requires_grad and not unused), key
        return SIGNS["" if prompts else "prompts"]
    return "–"


def test_every_stage_has_one_norm_that_is_trained() -> None:
    """A norm of the head, but in the last stage the final norm, behind which the head only scales and shifts."""
    models.need("transformers")
    model = dense_model("transformers Swin", "e3va")
    assert [type(norm) for norm in model.head.levels] == [nn.LayerNorm] * 3 + [Affine]
    assert all(p.requires_grad for norm in (*model.head.levels, model.backbone.norm) for p in norm.parameters())
    found = model.method.run(model.backbone, images(), model.head.blocks)
    maps = model.head.levels.maps(found)
    for norm, one, block in zip(model.head.levels, maps, model.head.blocks, strict=True):
        tokens = found.intermediates[block].sequence.patches
        assert torch.equal(norm(tokens), one.flatten(2).transpose(1, 2))
    assert torch.equal(found.intermediates[DEPTH - 1].sequence.tokens, found.sequence.tokens)


def row(title: str) -> str:
    return f"| {title} | " + " | ".join(tried(title, name) for name in sorted(METHODS)) + " |"


@pytest.mark.parametrize("title", LIBRARIES)
def test_methods_adapt_all_stages_as_the_page_says(title: str) -> None:
    models.need(title.split()[0])
    assert row(title) in PAGE.read_text(encoding="utf-8").partition(START)[2].splitlines()


@contextmanager
def kept_storages(seen: set[int]) -> Iterator[None]:
    """Notes the storages of what autograd saves."""

    def note(tensor: Tensor) -> Tensor:
        seen.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield


@pytest.mark.parametrize("title", LIBRARIES)
@pytest.mark.parametrize("name", HIGHWAYS)
def test_no_activation_of_a_frozen_block_is_saved(name: str, title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what the modules of the blocks compute, only what the highway reads, and nothing with a gradient."""
    models.need(title.split()[0])
    model = dense_model(title, name).train()
    made: list[Tensor] = []
    read: list[Tensor] = []

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        made.extend(one for one in (output if isinstance(output, tuple) else (output,)) if isinstance(one, Tensor))

    assert isinstance(model.method, Highway)
    update = model.method.update

    def note(place: int, attention: Tensor, ffn: Tensor) -> tuple[Tensor, list[Tensor]]:
        read.extend((attention, ffn))
        return update(place, attention, ffn)

    monkeypatch.setattr(model.method, "update", note)
    for stage in model.backbone.stages:
        for block in stage.modules:
            for module in block.modules():
                module.register_forward_hook(look)
    saved: set[int] = set()
    with kept_storages(saved):
        logits, _ = model(images())
    assert len(made) > 10 * DEPTH
    inner = made[:-1]  # behind the last block the tokens are handed on with the state
    assert not any(one.requires_grad for one in inner)
    inside, seen = ({one.untyped_storage().data_ptr() for one in tensors} for tensors in (inner, read))
    assert not (inside - seen) & saved
    assert name != "e3va" or seen <= saved  # whoever counts what is saved sees it (a mixture may checkpoint its own)
    logits.sum().backward()
    assert all(p.grad is None for n, p in model.backbone.named_parameters() if not p.requires_grad)


@pytest.mark.parametrize("first", [None, 2])
@pytest.mark.parametrize("name", HIGHWAYS)
def test_each_stage_gives_tokens_plus_state(name: str, first: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written out from what the blocks compute; from block K on, the tokens have the state already."""
    models.need("transformers")
    model = dense_model("transformers Swin", name, inject_from=first).eval()
    backbone, method = model.backbone, model.method
    assert isinstance(backbone, ForeignBackbone)
    assert isinstance(method, Highway)
    driver = backbone.drivers[-1]
    steps: list[Recorded] = []
    driver.steps = steps
    found = method.run(backbone, images(), model.head.blocks)
    driver.steps = None
    state: Tensor | None = None
    for number, step in enumerate(steps):
        stage = method.stage_of[number]
        added = method.decode(method.update(number, step.attention, step.ffn)[0], stage)
        state = added if state is None else state + added
        joined = step.tokens + state
        if number in model.head.blocks and stage < 3:
            torch.testing.assert_close(found.intermediates[number].sequence.tokens, joined)
        if first is not None and number + 1 >= first:
            state = None
        elif step.lead is not None:
            assert isinstance(step.lead, Way)
            assert step.lead.plain is not None  # which the model has computed
            torch.testing.assert_close(step.lead.plain, step.lead(step.tokens), rtol=0, atol=0)
            state = step.lead(joined) - step.lead(step.tokens)
    torch.testing.assert_close(found.sequence.tokens, backbone.norm(joined))
    assert torch.equal(found.intermediates[DEPTH - 1].sequence.tokens, found.sequence.tokens)
    assert torch.equal(method.run(backbone, images()).sequence.tokens, found.sequence.tokens)


def test_what_waits_goes_from_stage_to_stage() -> None:
    """Late injection of a mixture behind a stage in which it only reads."""
    models.need("transformers")
    model = dense_model("transformers Swin", "dapt_x", prompts=False, inject_from=2).train()
    seen: list[bool] = []
    for block in model.backbone.every_block():
        block.site("fc1").module.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    logits, auxiliary = model(images())
    assert seen == [False, False, True, True, True]
    assert auxiliary is not None
    (logits.sum() + auxiliary).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


if __name__ == "__main__":
    missing = [name for name in ("transformers", "timm") if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"the page needs {', '.join(missing)}")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    written = "\n".join(table([row(title) for title in FAMILIES]))
    PAGE.write_text(f"{before}{START}{written}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
