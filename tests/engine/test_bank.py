"""A bank of adapters gives what separate models give, and holds the backbone once."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.build import build_backbone, build_model, restore_model
from pointadapterx.checkpoints.adapter_file import load_adapter, read_adapter, save_adapter
from pointadapterx.checkpoints.shipped import save_backbone
from pointadapterx.engine.bank import AdapterBank, average_adapters, compare_adapters
from pointadapterx.errors import CheckpointError
from tests.conftest import randomise, small_config

Made = dict[str, tuple[Path, AdaptedModel]]


def make(
    folder: Path, name: str, method: str, seed: int, kind: str = "point_mae", /, **changes: Any
) -> tuple[Path, Any]:
    config = small_config(method, kind=kind, **changes)
    model = randomise(build_model(config), seed).eval()
    classes = [f"{name} {i}" for i in range(config.head.num_classes)]
    save_adapter(model, folder / f"{name}.safetensors", config=config, classes=classes)
    return folder / f"{name}.safetensors", model


def three(folder: Path, kind: str) -> Made:
    """Methods that change the backbone in different ways, of two head sizes where the data allow it."""
    return {
        "norms": make(folder, "norms", "dapt_x", 1, kind),
        "hooks": make(folder, "hooks", "ssf", 2, kind),
        "dora": make(folder, "dora", "lora", 4, kind, method={"dora": True}),
        "biases": make(folder, "biases", "bitfit", 3, kind),
    }


def batch(kind: str) -> Tensor:
    shape = (6, 128, 3) if kind == "point_mae" else (6, 3, 16, 16)
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("kind", ["point_mae", "vit"])
def test_switching_gives_what_separate_models_give(kind: str, tmp_path: Path) -> None:
    made, inputs = three(tmp_path, kind), batch(kind)
    bank = AdapterBank({name: path for name, (path, _) in made.items()})
    assert bank.names == list(made)
    for name in ["norms", "hooks", "biases", "hooks", "norms"]:
        found = bank(inputs, name)
        assert torch.equal(found, made[name][1](inputs).logits), name
        assert bank.classes(name)[0] == f"{name} 0"
        assert torch.equal(bank(inputs), found)


@pytest.mark.parametrize("kind", ["point_mae", "vit"])
def test_one_batch_with_an_adapter_for_each_sample(kind: str, tmp_path: Path) -> None:
    made, inputs = three(tmp_path, kind), batch(kind)
    bank = AdapterBank({name: path for name, (path, _) in made.items()})
    names = ["biases", "norms", "dora", "hooks", "dora", "hooks"]
    rows = bank(inputs, names)
    for name, (_, model) in made.items():
        places = [i for i, other in enumerate(names) if other == name]
        for place, wanted in zip(places, model(inputs[places]).logits, strict=True):
            assert torch.equal(rows[place], wanted)


def test_memory_is_one_backbone_and_its_adapters(tmp_path: Path) -> None:
    made = three(tmp_path, "point_mae")
    bank = AdapterBank({name: path for name, (path, _) in made.items()})
    one = made["norms"][1].backbone
    plain = sum(value.numel() for value in one.state_dict().values())
    parts = sum(
        value.numel()
        for _, model in made.values()
        for part in (model.method, model.head)
        for value in part.state_dict().values()
    )
    assert sum(value.numel() for value in bank.state_dict().values()) == plain + parts
    changed = sum(
        tensor.numel()
        for path, _ in made.values()
        for name, tensor in read_adapter(path).tensors.items()
        if name.startswith("backbone.")
    )
    del made
    assert (
        sum(reachable(bank).values()) <= 4 * (plain + parts + 2 * changed) + 4096
    )  # each adapter's, and the plain ones


def reachable(bank: AdapterBank) -> dict[int, int]:
    """Address and bytes of every storage that the bank keeps alive, found from its attributes."""
    seen: set[int] = set()
    queue: list[Any] = [bank]
    found = {}
    while queue:
        item = queue.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            found[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
        elif isinstance(item, dict):
            queue += item.values()
        elif isinstance(item, (list, tuple, set)):
            queue += item
        elif hasattr(item, "__dict__") and not isinstance(item, type):
            queue += vars(item).values()
    return found


def test_moved_converted_and_asked_to_train_it_stays_the_same(tmp_path: Path) -> None:
    """Also with BatchNorm statistics of its own in one adapter."""
    made = three(tmp_path, "point_mae")
    made["statistics"] = make(tmp_path, "statistics", "dapt_x", 5, train={"frozen_bn": "batch"})
    path, model = made["statistics"]
    model.train()(batch("point_mae"))  # moves the statistics
    config = small_config("dapt_x", train={"frozen_bn": "batch"})
    save_adapter(model.eval(), path, config=config, classes=[str(i) for i in range(20)])
    bank, inputs = AdapterBank({name: path for name, (path, _) in made.items()}), batch("point_mae")
    for name in made:
        bank.train()
        assert not bank.training
        assert torch.equal(bank(inputs, name), made[name][1](inputs).logits), name
    assert not any(parameter.is_inference() for parameter in bank.parameters())
    double = copy.deepcopy(bank).double()
    for name in made:
        wanted = copy.deepcopy(made[name][1]).double()(inputs.double()).logits
        torch.testing.assert_close(double(inputs.double(), name), wanted, atol=1e-9, rtol=0)
        assert torch.equal(bank(inputs, name), made[name][1](inputs).logits), name
    with pytest.raises(CheckpointError, match="build it from its adapter files"):
        bank.load_state_dict(bank.state_dict())


def test_weights_may_have_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = small_config().backbone
    save_backbone(build_backbone(options), tmp_path / "w.safetensors", options, {})
    path, model = make(tmp_path, "a", "lora", 1, backbone={"weights": str(tmp_path / "w.safetensors")})
    (tmp_path / "w.safetensors").rename(tmp_path / "moved.safetensors")
    for use in (lambda: AdapterBank({"a": path}), lambda: restore_model(read_adapter(path))):
        with pytest.raises(
            CheckpointError, match=r"w\.safetensors: does not exist.*--weights FILE .* backbone\.weights="
        ):
            use()
    inputs = batch("point_mae")
    assert torch.equal(AdapterBank({"a": path}, tmp_path / "moved.safetensors")(inputs), model(inputs).logits)

    monkeypatch.chdir(tmp_path)  # where a run was started that names them by a relative path
    path, model = make(tmp_path, "b", "lora", 1, backbone={"weights": "moved.safetensors"})
    (tmp_path / "runs" / "b").mkdir(parents=True)
    path = path.rename(tmp_path / "runs" / "b" / path.name)
    monkeypatch.chdir(tmp_path / "runs")
    assert torch.equal(AdapterBank({"b": path})(inputs), model(inputs).logits)
    assert restore_model(read_adapter(path)).backbone_hash == model.backbone_hash


def test_positions_may_differ(tmp_path: Path) -> None:
    once = make(tmp_path, "once", "dapt_x", 1, backbone={"position": "input"})
    every = make(tmp_path, "every", "lora", 2)
    bank, inputs = AdapterBank({"once": once[0], "every": every[0]}), batch("point_mae")
    for name, (_, model) in {"once": once, "every": every}.items():
        assert torch.equal(bank(inputs, name), model(inputs).logits)


def test_what_a_bank_refuses(tmp_path: Path) -> None:
    good = make(tmp_path, "good", "lora", 1)[0]
    with pytest.raises(CheckpointError, match="at least one adapter"):
        AdapterBank({})
    with pytest.raises(CheckpointError, match="is of full fine-tuning, a backbone of its own"):
        AdapterBank({"good": good, "full": make(tmp_path, "full", "full", 1)[0]})
    other = make(tmp_path, "other", "lora", 1, backbone={"init_seed": 5})[0]
    with pytest.raises(CheckpointError, match=r"other\.safetensors: belongs to the backbone with hash"):
        AdapterBank({"good": good, "other": other})
    wider = make(tmp_path, "wider", "lora", 1, backbone={"num_groups": 8})[0]
    with pytest.raises(CheckpointError, match=r"wider\.safetensors: was trained with backbone\.num_groups=8"):
        AdapterBank({"good": good, "wider": wider})
    bank = AdapterBank({"good": good})
    with pytest.raises(KeyError, match="no adapter 'bad' in the bank; it has good"):
        bank.switch("bad")
    with pytest.raises(ValueError, match="2 names of adapters for 6 samples"):
        bank(batch("point_mae"), ["good", "good"])


def test_averages_and_likeness(tmp_path: Path) -> None:
    infos = [read_adapter(make(tmp_path, f"a{seed}", "dapt_x", seed)[0]) for seed in (1, 2)]
    infos[1] = infos[1]._replace(facts=infos[0].facts)
    mean = average_adapters(infos, [1, 3])
    for name, tensor in mean.tensors.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, 0.25 * infos[0].tensors[name] + 0.75 * infos[1].tensors[name])
    model = build_model(infos[0].config)
    load_adapter(model, mean)
    assert torch.isfinite(model.eval()(batch("point_mae")).logits).all()
    alike, apart = compare_adapters(infos[0], infos[0]), compare_adapters(*infos)
    assert set(alike.values()) == {(1.0, 0.0)}
    assert max(distance for _, distance in apart.values()) > 0.5
    with pytest.raises(CheckpointError, match=r"differs from .* in its recipe and classes and tensors"):
        average_adapters([infos[0], read_adapter(make(tmp_path, "lora", "lora", 1)[0])])
    with pytest.raises(CheckpointError, match=r"weights \[1\] do not fit 2 adapters"):
        average_adapters(infos, [1])
