"""Several adapters in one pass of their backbone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pointadapterx.build import build_model
from pointadapterx.checkpoints.adapter_file import AdapterInfo, read_adapter
from pointadapterx.engine.bank import AdapterBank
from pointadapterx.models.packing import pack_frozen, packed_precisions, unpack
from pointadapterx.peft import METHODS
from pointadapterx.peft.base import Method
from pointadapterx.peft.side_by_side import form_of, side_by_side
from tests.conftest import ROOT, randomise, small_config

BEFORE = ROOT / "tests" / "files_of_before" / "adapters"
ALONE = {"e3va", "e3va_x", "full", "stag"}
"""Methods that replace the pass, or the backbone."""
TOGETHER = [name for name in METHODS if name not in ALONE and (BEFORE / f"{name}.safetensors").is_file()]


def other(info: AdapterInfo, seed: int) -> AdapterInfo:
    """The same adapter with other values, those of the norms and class tokens too."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: tensor + 0.1 * torch.rand(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in info.tensors.items()
    }
    return info._replace(tensors=tensors)


@pytest.fixture(scope="module")
def bank() -> Iterator[AdapterBank]:
    """Two adapters of each method, one of which is as it was stored."""
    threads = torch.get_num_threads()
    infos = {}
    for seed, path in enumerate(sorted(BEFORE.glob("*.safetensors"))):
        if path.stem == "full" or path.stem.endswith("on_images"):
            continue
        info = read_adapter(path)
        infos |= {path.stem: info, f"{path.stem} 2": other(info, seed)}
    torch.set_num_threads(1)
    yield AdapterBank(infos)
    torch.set_num_threads(threads)


def clouds(count: int) -> torch.Tensor:
    return torch.randn(count, 48, 3, generator=torch.Generator().manual_seed(count))


def kinds(bank: AdapterBank) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in bank.names:
        if (kind := bank.kind(name)) is not None:
            found.setdefault(kind, []).append(name)
    return found


def test_every_method_is_known_to_share_passes_or_not(bank: AdapterBank) -> None:
    """And those without prompts share them with each other."""
    shared = [name for names in kinds(bank).values() for name in names]
    assert {name for name in bank.names if name not in shared} == {"e3va", "e3va 2", "e3va_x", "e3va_x 2"}
    (plain,) = [names for names in kinds(bank).values() if "lora" in names]
    assert {"adapter", "adaptformer", "bitfit", "linear", "lora", "ssf"} <= set(plain)


AS_ONE = {"adapter", "adapter_x", "adaptformer", "adaptformer_x", "dapt", "dapt_x", "lora", "ssf"}


def test_adapters_of_one_method_act_as_one(bank: AdapterBank, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no others: what has other tensors than those of known layers, such as DoRA's, acts adapter by adapter."""
    assert {name for name in bank.names if bank._get(name).form is not None} == AS_ONE | {f"{one} 2" for one in AS_ONE}
    dora = build_model(small_config("lora", method={"dora": True}))
    late = build_model(small_config("dapt_x", method={"inject_from": 1, "prompts": False}))
    assert [form_of(model.method) for model in (dora, late)] == [None, None]
    found: list[list[str]] = []

    def noted(methods: list[Method], which: list[int]) -> Method:
        found.append([type(method).__name__ for method in methods])
        assert which == [0, 1, 1]
        return side_by_side(methods, which)

    monkeypatch.setattr("pointadapterx.engine.mixing.side_by_side", noted)
    counts = {"ssf": 1, "bitfit": 1, "lora": 1, "ssf 2": 2, "lora 2": 2, "adapter": 1}  # samples in any order
    with torch.inference_mode(), bank.together(clouds(8), counts):
        pass
    assert found == [["Ssf", "Ssf"], ["Lora", "Lora"]]


def test_adapters_act_as_one_under_autocast(bank: AdapterBank) -> None:
    """As each does alone, in bf16 too, but for its rounding."""
    counts = {"dapt": 1, "dapt 2": 2}
    inputs = clouds(3)
    parts = dict(zip(counts, inputs.split([*counts.values()]), strict=True))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        alone = {name: bank(part, name) for name, part in parts.items()}
        with bank.together(inputs, counts):
            for name, part in parts.items():
                found = bank.model(name)(part).logits
                assert found.dtype == alone[name].dtype
                size = float(alone[name].abs().max())
                torch.testing.assert_close(found, alone[name], rtol=0, atol=0.05 * size)


@pytest.mark.skipif(
    torch.bfloat16 not in packed_precisions(), reason="this processor or torch has no packed bf16 products"
)
def test_packed_layers_stay_packed_behind_a_shared_pass(bank: AdapterBank, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter's own biases take a layer's place for a while; who answers alone then has the digits of before."""
    monkeypatch.setattr("pointadapterx.models.packing.LEAST_WEIGHTS", 1)
    layers = pack_frozen(bank.backbone)
    assert len(layers) > 4
    forwards = [vars(layer)["forward"] for layer in layers]
    counts, inputs = {"bitfit": 1, "ssf": 1, "lora": 1}, clouds(3)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        before = bank(inputs, "lora")
        with bank.together(inputs, counts):
            pass
        assert [vars(layer)["forward"] for layer in layers] == forwards
        assert torch.equal(bank(inputs, "lora"), before)
    unpack(layers)


@pytest.mark.parametrize("method", TOGETHER)
def test_one_pass_gives_each_adapter_its_logits(bank: AdapterBank, method: str) -> None:
    names = next(names for names in kinds(bank).values() if method in names)
    counts = {name: 1 + place % 3 for place, name in enumerate(names)}
    inputs = clouds(sum(counts.values()))
    parts = dict(zip(names, inputs.split(list(counts.values())), strict=True))
    alone = {name: bank(part, name) for name, part in parts.items()}
    active = bank.active
    with torch.inference_mode(), bank.together(inputs, counts):
        for name, part in parts.items():
            torch.testing.assert_close(bank.model(name)(part).logits, alone[name], rtol=0, atol=1e-5)
    assert bank.active == active
    assert all(torch.equal(bank(part, name), alone[name]) for name, part in parts.items())  # nothing is left behind


def placed(method: str, position: str, **options: object) -> AdapterInfo:
    """An adapter of a backbone that adds positions there."""
    config = small_config(method, backbone={"position": position, "depth": 3}, method=options)
    model = randomise(build_model(config, restored=True))
    info = read_adapter(BEFORE / "lora.safetensors")
    return info._replace(config=config, tensors=model.adapter_state(), backbone_hash=model.backbone_hash)


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("positions", [("every_block", "input"), ("input", "every_block")])
def test_adapters_of_different_positions(positions: tuple[str, str], added: bool) -> None:
    """Each is built, sorted and computed for its own position, whichever adapter is in use."""
    late = {"prompts": False, "inject_from": 1}  # has a class token of its own, added where positions are
    methods: dict[str, dict[str, object]] = {"lora": {}, "bitfit": {}, "dapt_x": late, "e3va": {}}
    infos = {
        f"{name} {position}": placed(name, position, **methods[name]) for position in positions for name in methods
    }
    inputs = torch.randn(2, 128, 3, generator=torch.Generator().manual_seed(0))
    alone = {name: AdapterBank({name: info})(inputs) for name, info in infos.items()}
    assert not torch.equal(*(alone[f"lora {position}"] for position in positions))
    bank = AdapterBank(dict([*infos.items()][:1]) if added else infos)
    for name, info in infos.items():
        if name not in bank.names:
            bank.add(name, info)
    groups = list(kinds(bank).values())
    assert groups == [[f"{method} {position}" for method in [*methods][:3]] for position in positions]
    for active in (names[0] for names in groups):
        for names in groups:
            bank.switch(active)
            with torch.inference_mode(), bank.together(inputs.repeat(3, 1, 1), dict.fromkeys(names, 2)):
                for name in names:
                    torch.testing.assert_close(bank.model(name)(inputs).logits, alone[name], rtol=0, atol=1e-5)
            assert torch.equal(bank(inputs), alone[active])
    assert all(torch.equal(bank(inputs, name), logits) for name, logits in alone.items())


@pytest.mark.parametrize(
    "options",
    [
        {"neighbours": 4, "top_k": 2, "gate": "normalized"},
        {"shared": False, "expert": "adapter", "tfts": ["patch", "qkv"]},
        {"mixture": False, "prompt_gelu": True},
    ],
)
@pytest.mark.parametrize("grouped", [True, False])
def test_mixtures_of_any_options_act_as_one(
    options: dict[str, object], grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where torch has no product of groups, and experts run one by one."""
    if not grouped:
        monkeypatch.setattr("pointadapterx.peft.side_by_side.can_be_grouped", lambda *_: False)
    first = placed("dapt_x", "every_block", **options)
    bank = AdapterBank({"a": first, "b": other(first, 1), "c": other(first, 2)})
    assert len({bank._get(name).form for name in bank.names} - {None}) == 1
    inputs = torch.randn(4, 128, 3, generator=torch.Generator().manual_seed(0))
    counts = {"b": 1, "a": 2, "c": 1}
    parts = dict(zip(counts, inputs.split([*counts.values()]), strict=True))
    alone = {name: bank(part, name) for name, part in parts.items()}
    with torch.inference_mode(), bank.together(inputs, counts):
        for name, part in parts.items():
            torch.testing.assert_close(bank.model(name)(part).logits, alone[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("failing", ["bank.load_adapter", "bank.kind_of", "bank.AdaptedModel.remember_backbone"])
def test_an_adapter_that_does_not_fit_leaves_nothing_behind(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one that can leave anything of the backbone to be trained."""
    bank, inputs = AdapterBank({"ssf": placed("ssf", "every_block")}), torch.randn(2, 128, 3)
    lora, wanted, size = placed("lora", "input"), bank(inputs), bank.nbytes()

    def hooks() -> int:
        return sum(len(module._forward_hooks) for module in bank.backbone.modules())

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    before = hooks()
    monkeypatch.setattr("pointadapterx.engine.bank.require_shapes", lambda *_: None)  # it builds a model, too
    monkeypatch.setattr(f"pointadapterx.engine.{failing}", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        bank.add("lora", lora)
    monkeypatch.undo()
    assert (hooks(), bank.names, bank.nbytes()) == (before, ["ssf"], size)
    assert not any(parameter.requires_grad for parameter in bank.parameters())
    bank.add("lora", lora)
    assert hooks() > before
    assert not any(parameter.requires_grad for parameter in bank.parameters())
    assert torch.equal(bank(inputs), wanted)


def test_a_pass_that_fails_leaves_nothing_behind(bank: AdapterBank, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = clouds(2)
    alone = bank(inputs, "ssf")

    def fail(*_: object) -> None:
        raise TypeError

    monkeypatch.setattr(bank.backbone, "run_blocks", fail)
    with pytest.raises(TypeError), bank.together(inputs, {"ssf": 1, "bitfit": 1}):
        pass
    monkeypatch.undo()
    assert torch.equal(bank(inputs, "ssf"), alone)


def test_adapters_come_and_go(bank: AdapterBank, tmp_path: Path) -> None:
    inputs = clouds(2)
    before = {name: bank(inputs, name) for name in ("dapt_x", "ssf")}
    sizes = bank.nbytes(), bank.nbytes("ssf")
    bank.add("new", BEFORE / "ssf.safetensors")
    assert torch.equal(bank(inputs, "new"), before["ssf"])
    assert (bank.nbytes(), bank.nbytes("new")) == sizes
    with pytest.raises(ValueError, match="the bank has an adapter 'new' already"):
        bank.add("new", BEFORE / "ssf.safetensors")
    hooks = sum(len(module._forward_hooks) for module in bank.backbone.modules())
    info = read_adapter(BEFORE / "ssf.safetensors")
    odd = info._replace(tensors={**info.tensors, "method.odd": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"has method\.odd, which the model does not train"):
        bank.add("odd", odd)
    assert sum(len(module._forward_hooks) for module in bank.backbone.modules()) == hooks
    assert "odd" not in bank.names
    bank.switch("new")
    bank.remove("new")
    assert all(torch.equal(bank(inputs, name), wanted) for name, wanted in before.items())
    with pytest.raises(KeyError):
        bank(inputs, "new")
