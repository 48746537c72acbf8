"""STAG and late injection, against their equations written out block by block; no gradient enters earlier blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.build import build_model
from pointadapterx.counting import count_costs
from pointadapterx.errors import ConfigError
from pointadapterx.models.backbone import Backbone
from tests.conftest import randomise, small_config

DEPTH = {"depth": 4, "drop_path": 0.0}


def batch(kind: str = "point_mae", size: int = 2) -> Tensor:
    shape = (size, 128, 3) if kind == "point_mae" else (size, 3, 16, 16)
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def adapted(name: str, kind: str = "point_mae", method: dict[str, Any] | None = None, **more: Any) -> AdaptedModel:
    """A model of four blocks, away from its start."""
    backbone = DEPTH | more.pop("backbone", {})
    return randomise(build_model(small_config(name, kind=kind, backbone=backbone, method=method or {}, **more)))


def near(model: AdaptedModel, centers: Tensor | None, count: int) -> list[list[list[int]]]:
    """Neighbours of each patch, itself included: of centres by distance, else on a grid of 4 x 4."""
    if centers is not None:
        squared = (centers[:, :, None] - centers[:, None]).square().sum(dim=-1)
        return squared.argsort(dim=-1, stable=True)[..., :count].tolist()
    grid = []
    for place in range(16):
        row, column = divmod(place, 4)
        rows = [r for r in (row - 1, row, row + 1) if 0 <= r < 4]
        grid.append([4 * r + c for r in rows for c in (column - 1, column, column + 1) if 0 <= c < 4])
    return [grid] * 2


def edge_maximum(values: Tensor, neighbours: list[list[list[int]]], own: nn.Linear, other: nn.Linear) -> Tensor:
    """max_j (A x_i + B x_j), patch by patch."""
    clouds = []
    for cloud, lists in zip(values, neighbours, strict=True):
        rows = [
            torch.stack([own(cloud[i]) + other(cloud[j]) for j in each]).amax(dim=0) for i, each in enumerate(lists)
        ]
        clouds.append(torch.stack(rows))
    return torch.stack(clouds)


def stag_written_out(model: AdaptedModel, inputs: Tensor, late: int, share: int) -> Tensor:
    """Tokens behind the last block, by the equations."""
    backbone, method = model.backbone, model.method
    tokens, position, centers = backbone.embed(inputs)
    graph, every = near(model, centers, 8), backbone.position == "every_block"
    state, tokens = torch.zeros(()), tokens if every else tokens + position
    for index, block in enumerate(backbone.blocks):
        state = state + method.downs[index // share](tokens[:, 1:])
        if method.late_class is not None and index >= late:
            shift = method.late_class.position + (method.late_class.token if index == late else 0.0)
            tokens = torch.cat([tokens[:, :1] + shift, tokens[:, 1:]], dim=1)
        tokens = tokens + position if every else tokens
        tokens = tokens + block.attn(block.norm1(tokens))
        tokens = tokens + block.mlp(block.norm2(tokens))
        if index >= late:
            layer = method.convolutions[(index - late) // share]
            state = layer.joint(edge_maximum(state, graph, layer.edges.own, layer.edges.other))
            moved = F.relu(layer.up(state))
            tokens = tokens + torch.cat([moved.mean(dim=1, keepdim=True), moved], dim=1)
    return tokens


@pytest.mark.parametrize(
    ("kind", "variant", "late", "share"), [("point_mae", "std", 2, 4), ("point_mae", "sl", 1, 1), ("vit", "std", 2, 4)]
)
def test_stag_is_that_of_its_equations(kind: str, variant: str, late: int, share: int) -> None:
    """Tokens, and the gradient of every trained parameter."""
    model = adapted(
        "stag", kind, {"variant": variant, "width": 12, "final_norm": False}, head={"pools": ["token_mean"]}
    )
    model.eval()
    inputs, trained = batch(kind), [p for p in model.parameters() if p.requires_grad]
    found = model.method.run(model.backbone, inputs).sequence.tokens
    wanted = stag_written_out(model, inputs, late, share)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model(inputs).logits, model.head.mlp(wanted.mean(dim=1)), atol=1e-5, rtol=1e-4)
    gradients = torch.autograd.grad(model(inputs).logits.cos().sum(), trained)
    others = torch.autograd.grad(model.head.mlp(wanted.mean(dim=1)).cos().sum(), trained)
    torch.testing.assert_close(gradients, others, atol=1e-5, rtol=1e-3)
    model.method.options = model.method.options.model_copy(update={"final_norm": True})
    normed = model.method.run(model.backbone, inputs).sequence.tokens
    torch.testing.assert_close(normed, model.backbone.norm(wanted), atol=1e-5, rtol=1e-4)


def dapt_x_written_out(model: AdaptedModel, inputs: Tensor, late: int, neighbours: int | None) -> Tensor:
    """Normalised tokens of a mixture whose outputs wait for block ``late``."""
    backbone, method = model.backbone, model.method
    tokens, position, centers = backbone.embed(inputs)
    graph = near(model, centers, neighbours or 1)
    waiting, prompts = torch.zeros_like(tokens), []
    for index, block in enumerate(backbone.blocks):
        if index == late:
            tokens = tokens + waiting
            if method.late_class is not None:
                added = method.late_class.token + method.late_class.position
                tokens = torch.cat([tokens[:, :1] + added, tokens[:, 1:]], dim=1)
            tokens = torch.cat([tokens[:, :1], *prompts[::-1], tokens[:, 1:]], dim=1)
        elif index > late and method.late_class is not None:
            tokens = torch.cat([tokens[:, :1] + method.late_class.position, tokens[:, 1:]], dim=1)
        if index == 0 or backbone.position == "every_block":
            padded = torch.zeros_like(tokens)
            padded[:, :1], padded[:, -16:] = position[:, :1], position[:, 1:]
            tokens = tokens + padded
        hidden = tokens + block.attn(block.norm1(tokens))
        read = block.norm2(hidden)
        ffn = block.mlp(read)
        mixed = method.mixture(ffn if method.serial else read).tokens
        if neighbours is not None:
            branch, source = method.neighbour_branches[0], ffn if method.serial else read
            low = branch.down(source[:, -16:])
            low = branch.up(F.gelu(edge_maximum(low, graph, branch.edges.own, branch.edges.other)))
            mixed = torch.cat([mixed[:, :-16], mixed[:, -16:] + low], dim=1)
        prompt = method.prompt_generators[index](mixed.mean(dim=1, keepdim=True))
        tokens = hidden + ffn
        if index < late:
            waiting = waiting + method.options.scale * mixed
            prompts.append(prompt)
        else:
            tokens = tokens + method.options.scale * mixed
            tokens = torch.cat([tokens[:, :1], prompt, tokens[:, 1:]], dim=1)
    return backbone.norm(tokens)


LATE: list[tuple[str, str, dict[str, Any]]] = [
    ("dapt_x", "point_mae", {"inject_from": 2}),
    ("adapter_x", "point_mae", {"inject_from": 3, "neighbours": 8}),
    ("adaptformer_x", "vit", {"inject_from": 2, "neighbours": 8}),
    ("dapt_x", "point_mae", {"neighbours": 8}),
]


@pytest.mark.parametrize(("name", "kind", "method"), LATE)
def test_late_injection_and_neighbours_are_those_of_their_equations(
    name: str, kind: str, method: dict[str, Any]
) -> None:
    model = adapted(name, kind, method).eval()
    found = model.method.run(model.backbone, batch(kind)).sequence.tokens
    late, neighbours = method.get("inject_from", 0), method.get("neighbours")
    wanted = dapt_x_written_out(model, batch(kind), late, neighbours)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_nothing_of_an_option_is_there_when_it_is_off() -> None:
    """And with it, what is computed at the start is the same."""
    plain = build_model(small_config("dapt_x", backbone=DEPTH)).eval()
    near_too = build_model(small_config("dapt_x", backbone=DEPTH, method={"neighbours": 8})).eval()
    near_too.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(near_too(batch()).logits, plain(batch()).logits)
    stored = small_config("dapt_x").dump()["method"]
    assert not stored.keys() & {"inject_from", "neighbours", "train_position"}
    assert small_config("dapt_x", method={"inject_from": 1}).dump()["method"]["inject_from"] == 1


@contextmanager
def watched(model: AdaptedModel) -> Iterator[list[tuple[str, bool]]]:
    """For each module of the blocks that runs: its name, and whether its output has a gradient."""
    seen: list[tuple[str, bool]] = []
    handles = []

    def look(name: str) -> Any:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            outputs = output if isinstance(output, tuple) else (output,)
            seen.append((name, any(isinstance(value, Tensor) and value.requires_grad for value in outputs)))

        return note

    for number, block in enumerate(model.backbone.blocks):
        handles += [module.register_forward_hook(look(f"{number}")) for module in block.modules()]
    yield seen
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("kind", ["point_mae", "vit"])
@pytest.mark.parametrize(
    ("name", "method"),
    [
        *[("stag", {}), ("dapt_x", {"inject_from": 2, "neighbours": 4}), ("adapter_x", {"inject_from": 2})],
        *[("e3va", {"inject_from": 2}), ("e3va_x", {"inject_from": 2, "class_token": True})],
    ],
)
def test_no_gradient_enters_the_blocks_before(name: str, method: dict[str, Any], kind: str) -> None:
    model = adapted(name, kind, method).train()
    with watched(model) as seen:
        logits, auxiliary = model(batch(kind))
    moved_behind = name == "stag" and kind == "vit"  # and no class token is trained on the way into block K
    assert {number for number, has in seen if has} == ({"3"} if moved_behind else {"2", "3"})
    (logits.sum() if auxiliary is None else logits.sum() + auxiliary).backward()
    trained = {n for n, p in model.backbone.named_parameters() if p.grad is not None}
    assert not any(n.startswith(("blocks.0", "blocks.1", "cls", "pos", "patch")) for n in trained)


def test_the_first_half_holds_no_activations() -> None:
    """More blocks before the first that is moved cost nothing in the backward pass, but those behind it do."""
    kept = {}
    for depth, late in ((2, 0), (4, 2), (4, 0)):
        model = adapted("stag", method={"inject_from": late}, backbone={"depth": depth})
        kept[depth, late] = count_costs(model, batch()).activation_bytes
    assert kept[4, 2] == kept[2, 0]
    assert kept[4, 0] > 1.5 * kept[2, 0]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "stag",
            {"method": {"inject_from": 4}},
            r"method\.inject_from: 4 is not among the blocks 0 to 3 of the backbone",
        ),
        ("dapt_x", {"method": {"inject_from": 4}}, r"method\.inject_from: 4 is not among the blocks 1 to 3"),
        ("dapt_x", {"method": {"inject_from": 0}}, r"method\.inject_from: 0 is not among the blocks 1 to 3"),
        ("dapt_x", {"method": {"mixture": False, "neighbours": 4}}, r"method\.neighbours: belongs to the mixture"),
        ("dapt_x", {"method": {"inject_from": 2, "train_position": True}}, r"method\.train_position: puts a gradient"),
        ("dapt_x", {"method": {"inject_from": 2, "tfts": ["patch"]}}, r"method\.tfts: patch lies before the blocks"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        small_config(name, backbone=DEPTH, **changes)
    assert len(str(refused.value).splitlines()) == 2


def test_what_a_backbone_lacks_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"^method\.train_position: backbone ViT has no layers that make positions"):
        build_model(small_config("dapt_x", "vit", method={"train_position": True}))
    stages = Backbone.stages.fget  # type: ignore[attr-defined]
    without_grid = property(lambda backbone: tuple(stage._replace(grid=None) for stage in stages(backbone)))
    monkeypatch.setattr(Backbone, "stages", without_grid)
    for name, method in (("stag", {}), ("dapt_x", {"neighbours": 4})):
        with pytest.raises(ConfigError, match="looks for neighbours of each patch, but the patches of backbone ViT"):
            build_model(small_config(name, "vit", method=method))


def test_the_position_embedding_is_trained_by_ownership() -> None:
    model = adapted("adapter_x", method={"train_position": True}).train()
    trained = {n for n, p in model.backbone.named_parameters() if p.requires_grad}
    assert {n for n in trained if n.startswith("position")} == {
        f"position_embed.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")
    }
    model(batch())[0].sum().backward()
    assert all(p.grad is not None for p in model.backbone.position_embed.parameters())
