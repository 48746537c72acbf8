"""Methods on a hierarchical backbone: those that can adapt it do, the others refuse in one line."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapterx.adapted_model import AdaptedModel, count_parameters
from pointadapterx.build import build_backbone, build_method, build_model
from pointadapterx.checkpoints.adapter_file import load_adapter, read_adapter, save_adapter
from pointadapterx.config import Config
from pointadapterx.counting import count_costs, count_parts
from pointadapterx.errors import ConfigError
from pointadapterx.models.additions import PLAIN
from pointadapterx.models.backbone import BACKBONES
from pointadapterx.models.sites import LAYERS, SITES, Site
from pointadapterx.peft import METHODS
from pointadapterx.tasks.heads import ClassificationHead, HeadConfig
from tests.conftest import randomise, small_config
from tests.mechanisms import STARTS_ELSEWHERE
from tests.models.pyramid import Pyramid
from tests.peft.test_methods import steps

WIDTHS, DEPTHS = (12, 24, 36, 48), (1, 2, 1, 1)
NOAH = {"architecture": {"prompts": [0] * 5, "lora": [1, 0, 2, 0, 3], "adapter": [0, 2, 0, 1, 4]}}
WITHOUT_PROMPTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name, kind in METHODS.items() if not kind.Options().needs_class_token),
    *((name, {"prompts": False}) for name in ("dapt", "dapt_x", "adapter_x", "adaptformer_x")),
    *[("noah", NOAH), ("dapt_x", {"prompts": False, "shared": False}), ("e3va", {"blocks": [1, 4]})],
    *[("e3va_x", {"blocks": [0, 1]}), ("dapt_x", {"prompts": False, "neighbours": 2})],
    *[("e3va", {"inject_from": 2}), ("e3va_x", {"inject_from": 3}), ("dapt_x", {"prompts": False, "inject_from": 2})],
]
REFUSED = [name for name, kind in METHODS.items() if kind.Options().needs_class_token]
ALL = [
    *((name, method, False) for name, method in WITHOUT_PROMPTS),
    *((name, {}, True) for name in METHODS if name != "noah"),
    *[("vpt", {"deep": False}, True), ("e3va", {"prompts": True, "class_token": True}, True)],
    ("noah", {"architecture": NOAH["architecture"] | {"prompts": [1, 2, 0, 0, 1]}}, True),
    ("e3va", {"inject_from": 1, "prompts": True, "class_token": True}, True),
    ("adapter_x", {"inject_from": 2, "prompts": False}, True),
]


@pytest.fixture(autouse=True)
def _pyramid() -> Iterator[None]:
    """Registered here, so that other tests see the backbones of the package alone."""
    BACKBONES._entries["pyramid"] = Pyramid
    yield
    del BACKBONES._entries["pyramid"]


@pytest.fixture
def points() -> Tensor:
    return torch.randn(6, 128, 3, generator=torch.Generator().manual_seed(3))


def pyramid_config(name: str = "linear", *, class_token: bool = False, **changes: dict[str, Any]) -> Config:
    """A complete config on the hierarchical backbone."""
    fields = METHODS[name].Options.model_fields
    sizes = {"rank": 4} if "rank" in fields else {"widths": [1, 3]} if "widths" in fields else {}
    config: dict[str, Any] = {
        "backbone": {"name": "pyramid", "class_token": class_token, "drop_path": 0.0},
        "method": {"name": name, **sizes},
        "head": {"pools": None, "num_classes": 20},
        "data": {"name": "ldraw20", "num_points": 128, "augment": "rotation"},
        "train": {"epochs": 2, "warmup_epochs": 0, "batch_size": 8, "lr": 1e-3, "precision": "fp32"},
    }
    for section, update in changes.items():
        config[section].update(update)
    return Config.of(config, "test")


@pytest.mark.parametrize(("name", "method", "class_token"), ALL)
def test_every_method_adapts_four_stages(
    name: str, method: dict[str, Any], class_token: bool, points: Tensor, tmp_path: Path
) -> None:
    """A gradient for all it trains, nothing frozen moves, the adapter file brings it back, it can be unloaded."""
    config = pyramid_config(name, class_token=class_token, method=method)
    model = randomise(build_model(config)).train()
    logits, auxiliary = model(points)
    loss = F.cross_entropy(logits, torch.arange(6))
    (loss if auxiliary is None else loss + auxiliary).backward()
    for parameter_name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, parameter_name
    model.zero_grad()
    before = copy.deepcopy(model.state_dict())
    steps(model, points, 2)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    own = {n for n, _ in model.named_buffers() if not n.startswith("backbone.") or METHODS[name].trains_backbone}
    assert {n for n, value in model.state_dict().items() if not torch.equal(before[n], value)} <= trained | own
    path = tmp_path / "adapter.safetensors"
    save_adapter(model, path, config=config, classes=[str(i) for i in range(config.head.num_classes)])
    fresh = build_model(read_adapter(path).config)
    load_adapter(fresh, path)
    assert torch.equal(fresh.eval()(points).logits, model.eval()(points).logits)
    if not METHODS[name].trains_backbone:
        plain = build_backbone(config.backbone).eval().requires_grad_(False)  # which decides on the fused kernel
        assert torch.equal(model.unload()(points).sequence.tokens, plain(points).sequence.tokens)
        with torch.no_grad():
            kept = model.method.precompute(model.backbone, points)
        torch.testing.assert_close(model(kept).logits, model(points).logits)


@pytest.mark.parametrize(("name", "method"), [form for form in WITHOUT_PROMPTS if form[0] not in STARTS_ELSEWHERE])
def test_it_starts_as_the_plain_backbone(name: str, method: dict[str, Any], points: Tensor) -> None:
    model = build_model(pyramid_config(name, method=method)).eval()
    plain = model.backbone(points).sequence.tokens
    assert torch.equal(model.method.run(model.backbone, points).sequence.tokens, plain)


@pytest.mark.parametrize("name", REFUSED)
def test_prompts_need_a_class_token(name: str) -> None:
    message = rf"method\.name: {name} .*class token, which backbone pyramid does not have; "
    with pytest.raises(ConfigError, match=message) as refused:
        pyramid_config(name)
    assert len(str(refused.value).splitlines()) == 2  # the file, and this
    backbone = Pyramid(Pyramid.Options())
    head = ClassificationHead(backbone.feature_info, HeadConfig(num_classes=3, pools=["patch_max"]))
    with pytest.raises(ConfigError, match=rf"^method {name} .*class token, which backbone Pyramid does not have; "):
        AdaptedModel(backbone, build_method(METHODS[name].Options()), head)


def test_a_pool_of_a_class_token_needs_one() -> None:
    assert pyramid_config(head={"pools": None}).head.pools == ["patch_mean", "patch_max"]
    with pytest.raises(ConfigError, match=r"head\.pools: cls needs a class token, which backbone pyramid does not"):
        pyramid_config(head={"pools": ["cls"]})


def test_what_does_not_fit_every_stage_is_said() -> None:
    with pytest.raises(ConfigError, match=r"method\.width: 24 cannot fit all stages of pyramid \(12, 24, 36, 48\)"):
        pyramid_config("e3va", method={"width": 24})
    with pytest.raises(ConfigError, match=r"num_heads: 8 sub-tokens do not divide backbone\.dim=12"):
        pyramid_config("dapt_x", method={"num_heads": 8, "prompts": False})
    with pytest.raises(ConfigError, match=r"method\.blocks: \[5\] are not among the 5 blocks of the backbone, 0 to 4"):
        pyramid_config("e3va", method={"blocks": [0, 5]})
    with pytest.raises(ConfigError, match=r"inject_from: the first stage of pyramid has 1 blocks, and prompts cannot"):
        pyramid_config("dapt_x", class_token=True, method={"inject_from": 1})
    with pytest.raises(ConfigError, match=r"method\.inject_from: 5 is not among the blocks 1 to 4 of the backbone"):
        pyramid_config("e3va", method={"inject_from": 5})
    with pytest.raises(ConfigError, match=r"backbone\.depth: 2 numbers for the 4 stages of backbone\.dim"):
        pyramid_config(backbone={"depth": [1, 1]})


def test_a_missing_site_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = Pyramid(Pyramid.Options())
    block = backbone.levels[1][0]
    left = [site for site in block.sites() if site.name != "qkv"]
    monkeypatch.setattr(block, "sites", lambda: left)
    head = ClassificationHead(backbone.feature_info, HeadConfig(num_classes=3, pools=["patch_max"]))
    with pytest.raises(ConfigError, match="method lora acts at qkv, which block 1 of backbone Pyramid does not have"):
        AdaptedModel(backbone, build_method(METHODS["lora"].Options()), head)
    with pytest.raises(ConfigError, match="block 1 has no site 'qkv', only norm1, attention"):
        backbone.every_block()[1].site("qkv")


def test_what_is_shared_is_shared_within_a_stage(points: Tensor) -> None:
    for name in ("dapt_x", "e3va_x"):
        method = build_model(pyramid_config(name, class_token=True)).method
        assert method.mixture is None
        mixtures = method.stage_mixtures
        mixtures = list(mixtures.values() if isinstance(mixtures, nn.ModuleDict) else mixtures)
        assert [mixture.width * 3 for mixture in mixtures] == list(WIDTHS)
    model = build_model(pyramid_config("dapt_x", class_token=True)).train()
    model(points)
    shapes = {key: tuple(values.shape) for key, values in model.method.statistics().items()}
    assert shapes == {"routing/load": (5, 4), "routing/entropy": (5,), "routing/switched": (1,)}  # within one stage


def test_a_highway_takes_the_same_way_between_stages(points: Tensor) -> None:
    """The state behind a stage moves the next stage's tokens as it would have moved them in the backbone."""
    model = randomise(build_model(pyramid_config("e3va", method={"blocks": [0]}))).eval()
    backbone, method = model.backbone, model.method
    first, *others = backbone.record(points)
    state = method.update(0, first.attention, first.ffn)[0]
    for step in (first, *others):
        if step.lead is not None:
            state = step.lead(step.tokens + state) - step.lead(step.tokens)
    found = method.run(backbone, points).sequence.tokens
    torch.testing.assert_close(found, backbone.norm(others[-1].tokens + state))


@pytest.mark.parametrize("first", [1, 2, 3])  # at the beginning of the second stage, in it, and behind it
@pytest.mark.parametrize("name", ["e3va", "e3va_x"])
def test_a_highway_joins_the_tokens_from_a_block_on(name: str, first: int, points: Tensor) -> None:
    """Its state goes into block K, and what later blocks give it joins the tokens behind them; no gradient before."""
    model = randomise(build_model(pyramid_config(name, method={"inject_from": first}))).train()
    backbone, method = model.backbone, model.method
    watched = [module for module in backbone.every_block() for module in [module.site("norm1").module]]
    seen: list[bool] = []
    for norm in watched:
        norm.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    found = method.run(backbone, points, keep=range(5))
    assert seen == [number >= first for number in range(5)]
    embedded, state = backbone.embed(points), None
    for stage in backbone.stages:
        tokens, position, centers = embedded
        for number, block in enumerate(stage.modules, stage.first):
            attention, ffn, tokens = block.branches(tokens + position)
            update = method.decode(method.update(number, attention, ffn)[0], stage.number)
            state = update if state is None else state + update
            if number + 1 >= first:
                tokens, state = tokens + state, None
            if stage.number < 3:
                kept = tokens if state is None else tokens + state
                torch.testing.assert_close(found.intermediates[number].sequence.tokens, kept)
        if stage.transition is not None:
            joined = None if state is None else stage.transition(tokens + state, centers).tokens
            embedded = stage.transition(tokens, centers)
            state = None if joined is None else joined - embedded.tokens
    torch.testing.assert_close(found.sequence.tokens, backbone.norm(tokens))


def test_features_say_what_heads_need(points: Tensor) -> None:
    model = build_model(pyramid_config("dapt_x", class_token=True)).eval()
    info = model.backbone.feature_info
    assert [(s.width, s.num_patches, len(s.blocks)) for s in info.stages] == list(
        zip(WIDTHS, (16, 8, 4, 2), DEPTHS, strict=True)
    )
    assert (info.width, info.num_patches, info.depth, info.has_class_token, info.coordinates) == (48, 2, 5, True, 3)
    found = model.method.run(model.backbone, points, [1, 4])
    assert list(found.intermediates) == [1, 4]
    early, last = found.intermediates.values()
    assert info.stage_of(1) == info.stages[1]
    assert early.sequence.patches.shape == (6, 8, 24)
    assert early.sequence.prompts.shape[1] == 1  # those of this stage alone
    assert torch.equal(early.centers, model.backbone.grouping(points).centers[:, :8])
    assert torch.equal(last.sequence.tokens, found.sequence.tokens)  # normalised
    assert torch.equal(found.centers, early.centers[:, :2])
    assert torch.equal(found.class_token, found.sequence.cls)
    assert build_model(pyramid_config()).features(points).class_token is None


@pytest.mark.parametrize("name", ["linear", "e3va", "dapt_x"])
@pytest.mark.parametrize("kind", ["point_mae", "vit"])
def test_a_head_gets_the_blocks_that_it_asks_for(name: str, kind: str, points: Tensor) -> None:
    inputs = points if kind == "point_mae" else torch.randn(6, 3, 16, 16)
    model = randomise(build_model(small_config(name, kind=kind, backbone={"drop_path": 0.0}))).eval()
    plain = model(inputs).logits
    seen: list[Any] = []
    model.head.register_forward_pre_hook(lambda head, given: seen.append(given[0]))
    model(inputs)
    model.head.blocks = (0, 1)
    assert torch.equal(model(inputs).logits, plain)
    nothing, asked = seen
    assert nothing.intermediates == {}
    assert torch.equal(asked.intermediates[1].sequence.patches, asked.sequence.patches)
    assert asked.intermediates[0].sequence.patches.shape == (6, 16, 48)
    assert (asked.centers is None) == (kind == "vit")
    with torch.no_grad():
        kept = model.method.precompute(model.backbone, inputs, model.head.blocks)
    torch.testing.assert_close(model(kept).logits, plain)
    torch.testing.assert_close(seen[-1].intermediates[0].sequence.tokens, asked.intermediates[0].sequence.tokens)


def test_parts_and_costs_of_stages_are_counted(points: Tensor) -> None:
    model = build_model(pyramid_config("lora"))
    parts = count_parts(model)["backbone"]
    assert list(parts) == ["patch embedding", "class token and positions", "blocks", "between stages", "final norm"]
    assert sum(part.total for part in parts.values()) == count_parameters(model).components["backbone"].total
    costs = count_costs(model, points)
    assert costs.forward > 0
    assert costs.backward > 0


def test_every_own_block_has_every_site() -> None:
    for kind in ("point_mae", "vit"):
        backbone = build_backbone(small_config("linear", kind=kind).backbone)
        for number, block in enumerate(backbone.every_block()):
            assert (block.index, block.stage, list(block.sites)) == (number, 0, list(SITES))
            assert [site.name for site in block.layers()] == list(LAYERS)
            widths = {name: site.width for name, site in block.sites.items()}
            assert widths == dict.fromkeys(SITES, 48) | {"qkv": 144, "fc1": 192, "act": 192}


def test_a_plain_pass_needs_no_method(points: Tensor) -> None:
    model = build_model(small_config("lora")).eval()
    assert torch.equal(model.backbone(points).sequence.tokens, model.backbone(points, PLAIN).sequence.tokens)
    assert torch.equal(model.unload()(points).sequence.tokens, model.backbone(points).sequence.tokens)
    assert Site("patch", model.backbone.patch_encoder, 48) == model.backbone.site("patch")


def test_features_of_a_model_are_whole_and_by_patch(points: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    model = randomise(build_model(small_config("dapt_x"))).eval()
    found = model.features(points)
    assert torch.equal(found.pooled, model.pooled(points))
    assert torch.equal(model.head.classify(found.pooled)[1], model(points).logits)
    assert found.patches.shape == (6, 16, 48)
    assert torch.equal(found.centers, model.backbone.grouping(points).centers)
    model.print_trainable_parameters()
    report = count_parameters(model)
    line = capsys.readouterr().out
    assert line.startswith(f"trained: {report.trainable:,} ({report.trainable_without_head:,} without the head) of ")
