"""Loading weights: what is found, what is refused, and that a refusal leaves the model as it was."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pointadapterx.adapted_model import hash_backbone
from pointadapterx.build import build_backbone, build_model
from pointadapterx.checkpoints.adapter_file import save_adapter
from pointadapterx.checkpoints.published import load_pretrained
from pointadapterx.errors import CheckpointError
from pointadapterx.models.point_mae import MaskedAutoencoder, PointMAE
from tests.conftest import small_config
from tests.parity.oracle import State, random_state

CLASS_TOKEN = ["cls_position", "cls_token"]


def encoder() -> PointMAE:
    built = build_backbone(small_config("linear").backbone)
    assert isinstance(built, PointMAE)
    return built


def pretraining_state(seed: int = 1, depth: int = 2) -> State:
    """A state dict as pre-training leaves it: ``MAE_encoder.*``, no class token, no head, a decoder."""
    classifier = random_state(seed, dim=48, depth=depth, classes=20, pools=2)
    state = {
        f"MAE_encoder.{name}": tensor
        for name, tensor in classifier.items()
        if not name.startswith(("cls_token", "cls_pos", "cls_head_finetune"))
    }
    generator = torch.Generator().manual_seed(seed)
    state["mask_token"] = torch.randn(1, 1, 48, generator=generator)
    state |= {f"decoder_{name}": tensor for name, tensor in classifier.items() if name.startswith("pos_embed.")}
    state |= {
        f"MAE_decoder.blocks.0.{name.removeprefix('blocks.blocks.0.')}": tensor
        for name, tensor in classifier.items()
        if name.startswith("blocks.blocks.0.")
    }
    state |= {f"MAE_decoder.{name}": tensor for name, tensor in classifier.items() if name.startswith("norm.")}
    state["increase_dim.0.weight"] = torch.randn(24, 48, 1, generator=generator)
    state["increase_dim.0.bias"] = torch.randn(24, generator=generator)
    return state


def save(folder: Path, content: Any) -> Path:
    path = folder / "weights.pth"
    torch.save(content, path)
    return path


def refused(model: nn.Module, path: Path) -> str:
    """The message of the refusal, after checking that every tensor of the model is as it was."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_pretrained(model, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("key", ["base_model", "model", "state_dict", None])
def test_a_pretraining_checkpoint_fills_the_whole_encoder(prefix: str, key: str | None, tmp_path: Path) -> None:
    state = {prefix + name: tensor for name, tensor in pretraining_state().items()}
    model = encoder()
    report = load_pretrained(model, save(tmp_path, state if key is None else {key: state, "epoch": 300}))
    assert report.missing == CLASS_TOKEN
    assert report.coverage == 1.0
    assert set(report.found) == set(model.state_dict()) - set(CLASS_TOKEN)
    assert "mask_token" in report.unexpected
    assert any(name.startswith("MAE_decoder.") for name in report.unexpected)
    assert not any("MAE_encoder" in name for name in report.unexpected)
    loaded = state[f"{prefix}MAE_encoder.encoder.first_conv.0.weight"].squeeze(-1)
    assert torch.equal(model.patch_encoder.first[0].weight, loaded)
    assert "100.0 % of the encoder's weights" in report.summary()


def test_the_autoencoder_takes_the_decoder_too(tmp_path: Path) -> None:
    model = MaskedAutoencoder(encoder(), decoder_depth=1, decoder_heads=3)
    state = pretraining_state()
    report = load_pretrained(model, save(tmp_path, {"base_model": state}))
    assert report.missing == [f"encoder.{name}" for name in CLASS_TOKEN]
    assert report.unexpected == []
    assert torch.equal(model.mask_token, state["mask_token"])
    assert torch.equal(model.predict_points.weight, state["increase_dim.0.weight"].squeeze(-1))


def test_an_autoencoder_needs_its_decoder(tmp_path: Path) -> None:
    state = {name: t for name, t in pretraining_state().items() if not name.startswith("MAE_decoder.blocks.")}
    message = refused(
        MaskedAutoencoder(encoder(), decoder_depth=1, decoder_heads=3), save(tmp_path, {"base_model": state})
    )
    assert "encoder tensors are missing, first decoder_blocks.0." in message


def test_the_hash_follows_the_loaded_weights(tmp_path: Path) -> None:
    model = build_model(small_config("linear"))
    random = model.backbone_hash
    load_pretrained(model, save(tmp_path, pretraining_state()))
    assert model.backbone_hash == hash_backbone(model.backbone) != random


@pytest.mark.parametrize("dropped", ["MAE_encoder.norm.weight", "MAE_encoder.encoder.second_conv.1.running_mean"])
def test_a_missing_encoder_tensor_is_refused(dropped: str, tmp_path: Path) -> None:
    state = pretraining_state()
    del state[dropped]
    message = refused(encoder(), save(tmp_path, {"base_model": state}))
    assert "1 encoder tensors are missing, first " in message
    assert dropped.rsplit(".", 1)[-1] in message.split("first ")[1].split(";")[0]


@pytest.mark.parametrize("build", [encoder, lambda: build_model(small_config("linear"))])
@pytest.mark.parametrize(
    ("depth", "dim", "told", "way"),
    [
        (1, 48, "depth 1 (the backbone: 2)", "set backbone.depth=1"),
        (4, 48, "depth 4 (the backbone: 2)", "set backbone.depth=4"),
        (2, 24, "dim 24 (the backbone: 48), encoder dim 24 (", "set backbone.dim=24 backbone.encoder_dim=24"),
    ],
)
def test_other_sizes_are_told_in_numbers(
    build: Callable[[], nn.Module], depth: int, dim: int, told: str, way: str, tmp_path: Path
) -> None:
    state = random_state(1, dim=dim, depth=depth, classes=20, pools=2)
    message = refused(build(), save(tmp_path, state))
    assert told in message
    assert message.endswith(way)


@pytest.mark.parametrize(
    ("name", "axis", "says"),
    [("encoder.first_conv.0.weight", 1, "numbers of a point 6"), ("pos_embed.0.weight", 1, "position embedding 6")],
)
def test_clouds_with_more_than_coordinates_are_refused(name: str, axis: int, says: str, tmp_path: Path) -> None:
    state = random_state(1, dim=48, depth=2, classes=20, pools=2)
    state[name] = torch.cat([state[name]] * 2, dim=axis)
    message = refused(encoder(), save(tmp_path, state))
    assert says in message
    assert "no option changes that" in message


def test_a_stranger_inside_a_block_is_reported_not_refused(tmp_path: Path) -> None:
    state = pretraining_state()
    state["MAE_encoder.blocks.blocks.1.lora.weight"] = torch.zeros(3)
    for model, name in (
        (encoder(), "blocks.1.lora.weight"),
        (build_model(small_config("linear")), "backbone.blocks.1.lora.weight"),
    ):
        assert name in load_pretrained(model, save(tmp_path, state)).unexpected


def test_a_head_of_another_size_is_reported_and_keeps_its_initial_values(tmp_path: Path) -> None:
    state = random_state(1, dim=48, depth=2, classes=7, pools=2)
    model = build_model(small_config("linear"))
    before = model.head.mlp[-1].weight.detach().clone()
    report = load_pretrained(model, save(tmp_path, {"base_model": state}))
    assert {"head.mlp.8.weight", "head.mlp.8.bias"} <= set(report.unexpected) & set(report.missing)
    assert "head.mlp.0.weight" in report.found
    assert torch.equal(model.head.mlp[-1].weight, before)
    assert report.coverage == 1.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_refused(value: float, tmp_path: Path) -> None:
    state = pretraining_state()
    state["MAE_encoder.norm.bias"][3] = value
    assert "norm.bias holds NaN or infinite values" in refused(encoder(), save(tmp_path, state))


class Malicious:
    """Unpickled by plain ``torch.load(weights_only=False)``, this writes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"echo ran > {self.canary}",)


def test_the_canary_of_the_next_test_can_sing(tmp_path: Path) -> None:
    torch.load(save(tmp_path, {"x": Malicious(tmp_path / "canary")}), weights_only=False)
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_a_malicious_pickle_is_refused_without_running(kind: str, tmp_path: Path) -> None:
    content = {"base_model": pretraining_state(), "metrics": Malicious(tmp_path / "canary")}
    path = tmp_path / "weights.pth"
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"metrics": Malicious(tmp_path / "canary")}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    message = refused(encoder(), path)
    assert "would run code when loaded, so it is refused" in message
    assert "system" in message
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("number", [np.float64(93.2), np.float32(0.5), np.int64(3), 88.5, "epoch 3", None])
def test_plain_metrics_beside_the_tensors_are_fine(number: object, tmp_path: Path) -> None:
    content = {"base_model": pretraining_state(), "best_metrics": {"acc": number}, "epoch": 7}
    assert load_pretrained(encoder(), save(tmp_path, content)).coverage == 1.0


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], torch.zeros(3), {"base_model": {"a": 1}}])
def test_a_file_without_a_state_dict(content: object, tmp_path: Path) -> None:
    assert "holds no state dict" in refused(encoder(), save(tmp_path, content))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"version https://git-lfs.github.com/spec/v1\n"])
def test_damaged_files(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    message = refused(encoder(), path)
    assert "not a readable" in message
    assert "copy it again" in message
    assert "weights_only" not in message  # torch's advice is to run the file's code


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_truncated_files(share: float, tmp_path: Path) -> None:
    path = save(tmp_path, {"base_model": pretraining_state()})
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "not a readable checkpoint" in refused(encoder(), path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "does not exist" in refused(encoder(), tmp_path / "none.pth")
    assert "is a folder, not a file" in refused(encoder(), tmp_path)


def plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous().clone() for name, tensor in state.items()}


def test_own_names_round_trip_between_all_models(tmp_path: Path) -> None:
    """Backbone, masked autoencoder and adapted model read each other's safetensors."""
    source = encoder()
    load_pretrained(source, save(tmp_path, pretraining_state(seed=4)))
    wanted = hash_backbone(source)
    autoencoder = MaskedAutoencoder(source, decoder_depth=1, decoder_heads=3)
    adapted = build_model(small_config("linear"))
    adapted.backbone.load_state_dict(source.state_dict())
    for name, model in (("backbone", source), ("autoencoder", autoencoder), ("adapted", adapted)):
        path = tmp_path / f"{name}.safetensors"
        save_file(plain(model.state_dict()), path)
        fresh, whole = encoder(), build_model(small_config("linear"))
        assert load_pretrained(fresh, path).coverage == 1.0
        assert load_pretrained(whole, path).coverage == 1.0
        assert hash_backbone(fresh) == whole.backbone_hash == wanted
    again = MaskedAutoencoder(encoder(), decoder_depth=1, decoder_heads=3)
    assert load_pretrained(again, tmp_path / "autoencoder.safetensors").missing == []
    assert all(torch.equal(t, autoencoder.state_dict()[name]) for name, t in again.state_dict().items())


def test_an_adapter_is_not_a_backbone(tmp_path: Path) -> None:
    config = small_config("dapt_x")
    path = tmp_path / "adapter.safetensors"
    save_adapter(build_model(config), path, config=config, classes=[str(i) for i in range(20)])
    assert "looks like an adapter of this package" in refused(encoder(), path)


def test_weights_of_the_config_are_loaded_before_the_method(tmp_path: Path) -> None:
    path = save(tmp_path, {"base_model": pretraining_state(seed=9)})
    model = build_model(small_config("dapt_x", backbone={"weights": str(path)}))
    plain_backbone = encoder()
    load_pretrained(plain_backbone, path)
    assert model.backbone_hash == hash_backbone(plain_backbone)
