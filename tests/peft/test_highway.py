"""E³VA and E³VA-X: no gradient enters the backbone, and little is kept for the backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.build import build_model
from pointadapterx.counting import count_costs
from pointadapterx.errors import ConfigError
from pointadapterx.models.block import Block
from pointadapterx.peft.parts.low_rank_mixture import LowRankMixture
from tests.conftest import randomise, small_config
from tests.mechanisms import exhaustive

METHODS = ["e3va", "e3va_x"]


def batch(kind: str = "point_mae", size: int = 2) -> Tensor:
    shape = (size, 128, 3) if kind == "point_mae" else (size, 3, 16, 16)
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def branches(model: AdaptedModel, inputs: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Attention, FFN and output of each block of the plain backbone, written out."""
    backbone = model.backbone
    tokens, position, _ = backbone.embed(inputs)
    steps = []
    for block in backbone.blocks:
        assert isinstance(block, Block)
        before = tokens + position if backbone.position == "every_block" or not steps else tokens
        attention = block.attn(block.norm1(before))
        ffn = block.mlp(block.norm2(before + attention))
        tokens = before + attention + ffn
        steps.append((attention, ffn, tokens))
    return steps


@pytest.mark.parametrize("kind", ["point_mae", "vit"])
@pytest.mark.parametrize("blocks", [None, [1]])
def test_the_state_adds_up_both_branches(kind: str, blocks: list[int] | None) -> None:
    model = randomise(build_model(small_config("e3va", kind=kind, method={"blocks": blocks}))).eval()
    steps, inputs = branches(model, batch(kind)), batch(kind)
    state = torch.zeros_like(steps[0][2])
    for place, number in enumerate(blocks or [0, 1]):
        adapters = model.method.adapters[place]
        for branch, values in (("attention", steps[number][0]), ("ffn", steps[number][1])):
            adapter = adapters[branch]
            hidden = F.gelu(
                F.linear(F.linear(values, adapter.down_in.weight), adapter.down_out.weight, adapter.down_out.bias)
            )
            state = state + F.linear(F.linear(hidden, adapter.up_in.weight), adapter.up_out.weight, adapter.up_out.bias)
    wanted = model.backbone.norm(steps[-1][2] + state)
    found = model.method.run(model.backbone, inputs).sequence.tokens
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_the_mixture_serves_both_branches_of_all_blocks() -> None:
    model = randomise(build_model(small_config("e3va_x"))).eval()
    steps = branches(model, batch())
    state = sum(model.method.mixture(values).tokens for step in steps for values in step[:2])
    found = model.method.run(model.backbone, batch()).sequence.tokens
    torch.testing.assert_close(found, model.backbone.norm(steps[-1][2] + state), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["point_mae", "vit"])
@pytest.mark.parametrize("name", METHODS)
def test_no_activation_of_the_backbone_requires_a_gradient(name: str, kind: str) -> None:
    model = randomise(build_model(small_config(name, kind=kind))).train()
    seen = []

    def look(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        seen.append(any(isinstance(value, Tensor) and value.requires_grad for value in outputs))

    for part, module in model.backbone.named_modules():
        if part and part != "norm":  # the final norm is trained: it is where the highway ends
            module.register_forward_hook(look)
    logits, _ = model(batch(kind))
    assert len(seen) > 10
    assert not any(seen)
    logits.sum().backward()
    assert all(p.grad is None for n, p in model.backbone.named_parameters() if not n.startswith("norm."))


def saved_bytes(model: AdaptedModel, inputs: Tensor) -> int:
    """Bytes that autograd saves a sample, see :func:`~pointadapterx.counting.count_costs`."""
    return count_costs(model, inputs).activation_bytes


class LiveStorages(TorchDispatchMode):
    """Every storage that an operation makes, without keeping it alive.

    Saved-tensor hooks do not see what a checkpointed part holds; this sees whatever is left after the forward pass.
    """

    def __init__(self, model: AdaptedModel) -> None:
        super().__init__()
        self.own = {value.untyped_storage().data_ptr() for value in model.state_dict().values()}
        self.made: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                if storage.data_ptr() not in self.own:  # a view of a parameter
                    self.made[StorageWeakRef(storage)] = storage.nbytes()
        return result

    def bytes(self) -> int:
        return sum(size for storage, size in self.made.items() if not storage.expired())


def held_bytes(model: AdaptedModel, inputs: Tensor) -> int:
    """Bytes of everything that lives between forward and backward pass."""
    with LiveStorages(model) as live:
        output = model(inputs)
        found = live.bytes()
    assert output.logits.requires_grad
    return found


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=[exhaustive] * ((name, kind) not in (("e3va", "vit"), ("e3va_x", "point_mae"))))
        for name in METHODS
        for kind in ("point_mae", "vit")
    ],
)
def test_at_most_an_eighth_of_dapts_activations_is_kept(name: str, kind: str) -> None:
    """Half of the published blocks (384 wide, 6 heads, 128 patches; methods as by default)."""
    sizes: dict[str, Any] = {"dim": 384, "num_heads": 6, "depth": 6}
    sizes |= {"num_groups": 128, "encoder_dim": 384} if kind == "point_mae" else {"image_size": 44}
    data = {"num_points": 256} if kind == "point_mae" else {}
    inputs = torch.randn((2, 256, 3) if kind == "point_mae" else (2, 3, 44, 44))
    ours, theirs = (
        build_model(small_config(method, kind=kind, backbone=sizes, method={"rank": 64}, data=data)).train()
        for method in (name, "dapt")
    )
    for measure in (saved_bytes, held_bytes):
        found, wanted = measure(ours, inputs), measure(theirs, inputs)
        assert found <= wanted / 8, f"{measure.__name__}: {found} against DAPT's {wanted}, 1/{wanted / found:.1f}"


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_what_is_computed_again_is_the_same(dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    runs: list[int] = []
    encode = LowRankMixture._encode

    def counted(mixture: LowRankMixture, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        runs[-1] += 1
        return encode(mixture, tokens)

    monkeypatch.setattr(LowRankMixture, "_has_kernel", lambda self, tokens: False)
    monkeypatch.setattr(LowRankMixture, "_encode", counted)
    for again in (True, False):
        model = randomise(build_model(small_config("e3va_x", method={"dropout": dropout}))).train()
        if not again:
            monkeypatch.setattr(
                "pointadapterx.peft.parts.low_rank_mixture.recomputed", lambda part, tokens, draws: part(tokens)
            )
        runs.append(0)
        torch.manual_seed(0)
        logits, auxiliary = model(batch())
        (logits.square().sum() + auxiliary).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
        assert len(model.method.statistics()["routing/load"]) == 4  # two branches of two blocks, once each
    assert runs == [8, 4]  # computed again in one of the two models alone
    assert all(torch.equal(value, gradients[1][name]) for name, value in gradients[0].items())


def test_what_a_highway_cannot_be_is_said() -> None:
    with pytest.raises(
        ConfigError, match=r"method\.blocks: \[2, 5\] are not among the 2 blocks of the backbone, 0 to 1"
    ):
        small_config("e3va", method={"blocks": [0, 2, 5]})
    with pytest.raises(ConfigError, match=r"method\.width: 24 is not backbone\.dim=48"):
        small_config("e3va_x", method={"width": 24})
    with pytest.raises(ConfigError, match=r"method\.num_heads: 5 sub-tokens do not divide"):
        small_config("e3va_x", method={"num_heads": 5})
