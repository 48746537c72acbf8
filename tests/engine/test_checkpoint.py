"""Adapter files: what they hold, whom they fit, and that a refusal leaves the model as it was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.build import build_model
from pointadapterx.checkpoints.adapter_file import load_adapter, read_adapter, save_adapter
from pointadapterx.config import read_config
from pointadapterx.errors import CheckpointError
from pointadapterx.files import read_safetensors
from pointadapterx.peft import METHODS
from pointadapterx.tasks.novelty import Novelty
from tests.conftest import randomise, small_config

CLASSES = [f"class {index}" for index in range(20)]


def saved(folder: Path, name: str = "dapt_x", metrics: dict[str, Any] | None = None, **changes: Any) -> Path:
    """The file of a randomised adapter."""
    config = small_config(name, **changes)
    path = folder / f"{name}.safetensors"
    save_adapter(randomise(build_model(config)), path, config=config, classes=CLASSES, metrics=metrics)
    return path


def refused(model: AdaptedModel, path: Path) -> str:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_adapter(model, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert str(error.value).startswith(str(path))
    return str(error.value)


def rewrite(path: Path, tensors: dict[str, Tensor] | None = None, **metadata: str | None) -> None:
    """Replaces tensors or metadata entries of an adapter file; None removes the entry."""
    old, story = read_safetensors(path)
    story |= {key: value for key, value in metadata.items() if value is not None}
    save_file(old if tensors is None else tensors, path, {k: v for k, v in story.items() if metadata.get(k, v) == v})


def test_a_file_tells_its_story(tmp_path: Path) -> None:
    metrics = {"protocol": "validation", "val": {"overall_accuracy": 81.5}}
    info = read_adapter(saved(tmp_path, metrics=metrics))
    assert info.config == small_config()
    assert info.classes == CLASSES
    assert info.metrics == metrics
    assert {"torch", "pointadapterx"} <= info.versions.keys()
    assert info.backbone_hash == build_model(small_config()).backbone_hash
    assert len(info.backbone_hash) == 64


@pytest.mark.parametrize("name", METHODS)
def test_a_file_holds_what_is_trained_and_no_more(name: str, tmp_path: Path) -> None:
    model = build_model(small_config(name))
    tensors = load_file(saved(tmp_path, name))
    trainable = {n for n, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable <= tensors.keys()
    frozen = {n for n, _ in model.named_parameters()} - trainable
    assert tensors.keys() & frozen <= {"backbone.cls_token", "backbone.cls_position"}
    size, needed = (tmp_path / f"{name}.safetensors").stat().st_size, sum(4 * t.numel() for t in tensors.values())
    assert needed <= size < needed + 20_000  # metadata and header


def test_the_published_size_is_under_two_megabytes(tmp_path: Path) -> None:
    config = read_config("scan_obj_bg")
    save_adapter(build_model(config), tmp_path / "a.safetensors", config=config, classes=[str(i) for i in range(15)])
    assert 4 * 415_699 < (tmp_path / "a.safetensors").stat().st_size < 1_800_000


@pytest.mark.parametrize("name", [name for name in METHODS if not METHODS[name].trains_backbone])
def test_another_backbone_is_refused_showing_both_hashes(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path, name)
    other = build_model(small_config(name, backbone={"init_seed": 1}))
    message = refused(other, path)
    assert f"hash {read_adapter(path).backbone_hash[:16]}…" in message
    assert f"{other.backbone_hash[:16]}…" in message
    assert "set backbone.weights" in message


def test_one_changed_weight_is_another_backbone(tmp_path: Path) -> None:
    path = saved(tmp_path)
    config = small_config()
    model = build_model(config)
    state = {n: t.clone() for n, t in model.backbone.state_dict().items()}
    state["blocks.1.mlp.fc2.bias"][0] += 1e-3
    save_file(state, tmp_path / "weights.safetensors")
    other = build_model(small_config(backbone={"weights": str(tmp_path / "weights.safetensors")}))
    assert "belongs to the backbone with hash" in refused(other, path)
    load_adapter(build_model(config), path)


def test_full_fine_tuning_needs_no_particular_backbone(points: Tensor, tmp_path: Path) -> None:
    config = small_config("full")
    model = randomise(build_model(config)).train()
    model(points)  # a training step moves every BatchNorm buffer, so the file brings them all
    model.eval()
    save_adapter(model, tmp_path / "full.safetensors", config=config, classes=CLASSES)
    other = build_model(small_config("full", backbone={"init_seed": 7})).eval()
    load_adapter(other, tmp_path / "full.safetensors")
    assert torch.equal(other(points).logits, model(points).logits)


@pytest.mark.parametrize(("theirs", "mine"), [("dapt_x", "linear"), ("linear", "dapt_x"), ("dapt", "dapt_x")])
def test_another_method_is_refused(theirs: str, mine: str, tmp_path: Path) -> None:
    message = refused(build_model(small_config(mine)), saved(tmp_path, theirs))
    assert "was trained with " in message
    assert "method.name" in message
    assert "build the model from the adapter's own config" in message


def test_another_rank_is_refused(tmp_path: Path) -> None:
    message = refused(build_model(small_config(method={"rank": 5})), saved(tmp_path))
    assert "was trained with method.rank=4, the model has 5" in message


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_non_finite_values_are_refused(value: float, tmp_path: Path) -> None:
    path = saved(tmp_path)
    tensors = load_file(path)
    tensors["head.mlp.0.weight"][1, 2] = value
    rewrite(path, tensors)
    assert "head.mlp.0.weight holds NaN or infinite values" in refused(build_model(small_config()), path)


def test_a_missing_and_a_foreign_tensor_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path)
    tensors = load_file(path)
    rewrite(path, {n: t for n, t in tensors.items() if n != "head.mlp.0.weight"})
    assert "lacks head.mlp.0.weight" in refused(build_model(small_config()), path)
    rewrite(path, tensors | {"head.other": torch.zeros(1)})
    assert "has head.other, which the model does not train" in refused(build_model(small_config()), path)
    rewrite(path, tensors | {"backbone.blocks.0.mlp.fc1.bias": torch.zeros(192)})
    assert "has backbone.blocks.0.mlp.fc1.bias" in refused(build_model(small_config()), path)


@pytest.mark.parametrize("key", ["config", "classes", "metrics", "versions", "backbone_hash"])
def test_missing_metadata(key: str, tmp_path: Path) -> None:
    path = saved(tmp_path)
    rewrite(path, **{key: None})
    with pytest.raises(CheckpointError, match=f"metadata is damaged .*{key}.*copy the file again"):
        read_adapter(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("config", "{"), ("config", "[]"), ("config", "{}"), ("classes", "3"), ("metrics", "[]"), ("versions", "null")],
)
def test_damaged_metadata(key: str, value: str, tmp_path: Path) -> None:
    path = saved(tmp_path)
    rewrite(path, **{key: value})
    with pytest.raises(CheckpointError, match=str(path)):
        read_adapter(path)


INPUTS = {"points": 128, "radius": [1.0, 1.0, 1.0], "offset": 0.0, "extents": [0.3, 0.3, 0.4]}


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"classes": json.dumps(CLASSES[:3])}, "3 classes for a head of 20"),
        ({"classes": json.dumps([*CLASSES[:19], 5])}, "classes are not strings"),
        *(
            ({"calibration": f'{{"temperature": {value}, "samples": 9}}'}, "temperature is ")
            for value in ('"x"', "0", "-1", "1e30", "1e-30", "NaN", "Infinity", "null", "true")
        ),
        ({"calibration": '{"temperature": 1.0}'}, "samples"),
        ({"calibration": '{"temperature": 1.0, "samples": 9, "reason": 3}'}, "calibration is "),
        ({"calibration": "[]"}, "damaged"),
        ({"metrics": json.dumps({"inputs": {**INPUTS, "radius": [1.0, 1.0]}})}, "inputs is "),
        ({"metrics": json.dumps({"inputs": {**INPUTS, "radius": 1.0}})}, "iterable"),
        ({"metrics": json.dumps({"inputs": {**INPUTS, "extents": ["a", "b", "c"]}})}, "inputs is "),
        ({"metrics": json.dumps({"inputs": {"points": 128}})}, "missing 3 required"),
        ({"metrics": '{"inputs": [1]}'}, "damaged"),
        ({"metrics": "[" * 100_000 + "]" * 100_000}, "RecursionError"),
        ({"config": '{"a":' * 100_000 + "1" + "}" * 100_000}, "RecursionError"),
    ],
)
def test_metadata_that_cannot_be_meant(entries: dict[str, str], says: str, tmp_path: Path) -> None:
    path = saved(tmp_path)
    rewrite(path, **entries)
    with pytest.raises(CheckpointError, match=rf"^{path}: its metadata is damaged .*copy the file again$") as error:
        read_adapter(path)
    assert says in str(error.value)


def test_stored_inputs_are_read(tmp_path: Path) -> None:
    path = saved(tmp_path, metrics={"inputs": INPUTS})
    assert read_adapter(path).metrics == {"inputs": INPUTS}


def test_novelty_must_fit(tmp_path: Path) -> None:
    path = saved(tmp_path)
    width = read_adapter(path).config.head.hidden[-1]
    hidden, labels = torch.randn(60, width), torch.arange(60) % 20
    fitted = Novelty.fit(hidden, labels, hidden, torch.randn(60, 20))
    assert fitted is not None
    reference = {f"novelty/{key}": tensor for key, tensor in fitted.tensors().items()}
    tensors = load_file(path)
    rewrite(path, tensors | reference)
    assert read_adapter(path).facts.novelty is not None
    for name, tensor in reference.items():
        rewrite(path, tensors | reference | {name: torch.full_like(tensor, torch.nan)})
        part = name.removeprefix("novelty/")
        with pytest.raises(CheckpointError, match=rf"damaged .*novelty: {part} holds NaN .*copy the file again"):
            read_adapter(path)
    earlier = {"novelty/means": torch.zeros(20, 144), "novelty/scales": torch.ones(144)}
    rewrite(path, tensors | earlier | {"novelty/quantiles": torch.ones(5)})
    assert read_adapter(path).facts.novelty is None


def test_a_stored_config_is_checked_as_a_file_is(tmp_path: Path) -> None:
    path = saved(tmp_path)
    config = json.loads(read_safetensors(path)[1]["config"])
    config["method"]["rang"] = 3
    rewrite(path, config=json.dumps(config))
    with pytest.raises(CheckpointError, match=r"method.rang: unknown key; did you mean 'rank'\?"):
        read_adapter(path)


def test_weights_are_not_an_adapter(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({n: t.clone() for n, t in build_model(small_config()).backbone.state_dict().items()}, path)
    with pytest.raises(CheckpointError, match=r"is not an adapter file .*belong in backbone.weights"):
        read_adapter(path)


def test_class_names_must_match_the_head(tmp_path: Path) -> None:
    config = small_config()
    with pytest.raises(CheckpointError, match="3 class names for a head of 20 classes"):
        save_adapter(build_model(config), tmp_path / "a.safetensors", config=config, classes=["a", "b", "c"])
    assert not (tmp_path / "a.safetensors").exists()


def test_batch_statistics_of_the_frozen_encoder_travel_with_the_adapter(points: Tensor, tmp_path: Path) -> None:
    config = small_config(train={"frozen_bn": "batch"})
    model = build_model(config).train()
    model(points)
    model.eval()
    path = tmp_path / "a.safetensors"
    save_adapter(model, path, config=config, classes=CLASSES)
    fresh = build_model(config).eval()
    fresh_mean = fresh.get_buffer("backbone.patch_encoder.first.1.running_mean").clone()
    load_adapter(fresh, path)
    wanted = dict(model.named_buffers())
    for name, buffer in fresh.named_buffers():
        assert torch.equal(buffer, wanted[name]), name
    assert not torch.equal(fresh.get_buffer("backbone.patch_encoder.first.1.running_mean"), fresh_mean)
    assert torch.equal(fresh(points).logits, model(points).logits)


def test_an_adapter_loads_into_a_model_that_was_already_used(points: Tensor, tmp_path: Path) -> None:
    first, second = saved(tmp_path), tmp_path / "second.safetensors"
    config = small_config()
    save_adapter(randomise(build_model(config), seed=1), second, config=config, classes=CLASSES)
    model = build_model(config).eval()
    outputs = []
    for path in (first, second, first):
        load_adapter(model, path)
        outputs.append(model(points).logits)
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], outputs[1])


def test_a_failed_save_keeps_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*unchanged.*choose another place"):
        saved(tmp_path, train={"seed": 5})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_files_are_refused(share: float, tmp_path: Path) -> None:
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "not a readable safetensors file" in refused(build_model(small_config()), path)
