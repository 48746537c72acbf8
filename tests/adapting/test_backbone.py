"""Models of transformers and timm as backbones of a config: the same numbers, and everything that a backbone does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import pointadapterx as pax
from pointadapterx import jobs
from pointadapterx.adapting import adapt, adapters_of
from pointadapterx.adapting.hf_backbone import HfBackbone
from pointadapterx.build import build_backbone, build_model, restore_model
from pointadapterx.checkpoints.adapter_file import read_adapter, save_adapter
from pointadapterx.config import Config, read_config
from pointadapterx.counting import count_model
from pointadapterx.engine import devices
from pointadapterx.engine.bank import AdapterBank
from pointadapterx.engine.input_form import Failure
from pointadapterx.errors import CheckpointError, ConfigError
from pointadapterx.export import export_adapter
from pointadapterx.models.frozen import Patches
from pointadapterx.peft import METHODS
from pointadapterx.visualize.introspection import class_attention
from tests.adapting import models
from tests.adapting.models import IMAGES, PATCH, SIDE, WIDTH, randomised
from tests.conftest import ROOT, randomise
from tests.docs.pages import blocks
from tests.resuming import assert_resumes_bit_identical, assert_same_tensors

pytest.importorskip("transformers")

PREPROCESSOR = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "size": {"height": SIDE, "width": SIDE}}
VIT: dict[str, Any] = {
    "model_type": "vit",
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 4 * WIDTH,
    "patch_size": PATCH,
}
SWIN = {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": PATCH}
DINOV3 = {**VIT, "model_type": "dinov3_vit", "num_attention_heads": 2, "num_register_tokens": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "dinov2": {"name": "hf", "architecture": {**VIT, "model_type": "dinov2"}, "image_size": SIDE},
    "dinov3": {"name": "hf", "architecture": DINOV3, "image_size": SIDE},
    "beit": {"name": "hf", "architecture": {**VIT, "model_type": "beit"}, "image_size": SIDE},
    "swin": {"name": "hf", "architecture": {**SWIN, "model_type": "swin"}, "image_size": 32},
    "swinv2": {"name": "hf", "architecture": {**SWIN, "model_type": "swinv2"}, "image_size": 32},
    "timm vit": {
        "name": "timm",
        "model": "vit_tiny_patch16_224",
        "architecture": {"embed_dim": WIDTH, "depth": 2, "num_heads": 4, "patch_size": PATCH},
        "image_size": SIDE,
        "weights": None,
    },
    "timm swin": {
        "name": "timm",
        "model": "swin_tiny_patch4_window7_224",
        "architecture": {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        "image_size": 32,
        "weights": None,
    },
    "timm eva": {
        "name": "timm",
        "model": "eva02_tiny_patch14_224",
        "architecture": {"embed_dim": WIDTH, "depth": 2, "num_heads": 3, "patch_size": PATCH},
        "image_size": SIDE,
        "weights": None,
    },
}


def config_of(method: str = "lora", /, **sections: Any) -> Config:
    options = METHODS[method].Options
    small = {"rank": 4, "num_heads": 3, "widths": [1, 3]}
    chosen = {key: value for key, value in small.items() if key in options.model_fields}
    config: dict[str, Any] = {
        "backbone": {"name": "hf", "architecture": VIT, "image_size": SIDE},
        "method": {"name": method, **chosen},
        "head": {"hidden": []},
        "data": {"name": "digits", "augment": "shift", "train_size": 60},
        "train": {"epochs": 2, "warmup_epochs": 0, "batch_size": 8, "lr": 1e-3, "precision": "fp32"},
        "eval": {"protocol": "last", "batch_size": 100},
    }
    for section, update in sections.items():
        config[section] = update if section == "backbone" else {**config[section], **update}
    return Config.of(config, "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT for classification as transformers stores it."""
    folder = tmp_path_factory.mktemp("models") / "my_vit"
    model: Any = randomised(models.hf_vit())
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return folder


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(IMAGES, generator=torch.Generator().manual_seed(1))


def of_folder(method: str, folder: Path, **sections: Any) -> Config:
    return config_of(method, backbone={"name": "hf", "model": str(folder)}, **sections)


def as_ours(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a ViT of transformers by the names of our own."""
    renamed, parts = {}, {}
    names = {"layernorm_before": "norm1", "layernorm_after": "norm2", "attention.o_proj": "attn.proj"}
    for name, value in state.items():
        name = name.replace("embeddings.patch_embeddings.projection", "patch_embed.proj").replace("layers.", "blocks.")
        name = name.replace("embeddings.cls_token", "cls_token").replace("embeddings.position_embeddings", "pos_embed")
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        if "_proj" in name:
            parts[name] = value
        else:
            renamed[name.replace("layernorm", "norm")] = value
    for name in [name for name in parts if "q_proj" in name]:
        three = [parts[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
        renamed[name.replace("attention.q_proj", "attn.qkv")] = torch.cat(three)
    return renamed


@pytest.mark.parametrize("name", METHODS)
def test_it_computes_what_our_own_vit_computes(name: str, folder: Path, images: torch.Tensor) -> None:
    foreign = build_model(of_folder(name, folder))
    own_backbone = {"name": "vit", "dim": WIDTH, "depth": models.DEPTH, "num_heads": 4, "patch_size": PATCH}
    own = build_model(config_of(name, backbone={**own_backbone, "image_size": SIDE, "drop_path": 0.0}))
    theirs = foreign.backbone.model.state_dict()  # type: ignore[operator,union-attr]
    own.backbone.load_state_dict(as_ours(theirs))
    randomise(own)
    ours, found = own.state_dict(), {}
    for part in ("method.", "head."):
        found |= {key: value for key, value in ours.items() if key.startswith(part)}
    missing, unexpected = foreign.load_state_dict(found, strict=False)
    assert unexpected == []
    assert all(key.startswith("backbone.") for key in missing)
    own.backbone.load_state_dict(as_ours(theirs))
    for model in (own, foreign):
        model.eval()
    with torch.no_grad():
        torch.testing.assert_close(foreign(images).logits, own(images).logits, atol=1e-5, rtol=1e-5)
        kept = foreign.method.precompute(foreign.backbone, images)
        torch.testing.assert_close(foreign(kept).logits, own(images).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "late"), [("adaptformer_x", {}), ("lora", {}), ("ssf", {}), ("e3va", {}), ("e3va", {"inject_from": 1})]
)
def test_it_computes_what_adapt_computes(name: str, late: dict[str, Any], folder: Path, images: torch.Tensor) -> None:
    from transformers import ViTModel

    config = of_folder(name, folder).replaced(method=late)
    backbone = randomise(build_model(config)).eval()
    model = ViTModel.from_pretrained(folder, add_pooling_layer=False)
    assert config.method is not None
    options = {key: value for key, value in config.method.model_dump().items() if key != "name"}
    adapt(model, name, **options)
    adapters_of(model).entry().driver.method.load_state_dict(backbone.method.state_dict())
    for key, value in backbone.backbone.model.state_dict().items():  # type: ignore[operator,union-attr]
        model.state_dict()[key].copy_(value)  # the final norm, where it is trained
    with torch.no_grad():
        wanted = model.eval()(images).last_hidden_state
        found = backbone.read(images).sequence.without_prompts()
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.timm] if "timm" in name else []) for name in FAMILIES]
)
def test_every_family(family: str, tmp_path: Path) -> None:
    section = FAMILIES[family]
    models.need("timm" if section["name"] == "timm" else "transformers")
    takes_prompts = not ("swin" in family or "eva" in family)
    config = config_of("adaptformer_x" if takes_prompts else "adaptformer", backbone=section)
    model = randomise(build_model(config))
    info = model.backbone.feature_info
    assert [stage.width for stage in info.stages] == ([12, 24] if "swin" in family else [WIDTH])
    images = torch.randn(2, *config.backbone.input_shape(None))
    features = model.method.run(model.backbone, images, keep=(0, 1))
    assert features.sequence.without_prompts().shape == (2, info.num_patches + info.has_class_token, info.width)
    assert features.intermediates[0].sequence.patches.shape[1:] == (info.stages[0].num_patches, info.stages[0].width)
    output = model(images)
    output.logits.sum().backward()
    assert all(p.grad is not None for p in model.method.parameters())
    model.eval()
    with torch.no_grad():
        kept = model.backbone.patches(images)
        assert isinstance(kept, Patches)
        torch.testing.assert_close(model(kept).logits, model(images).logits)
        plain = model.unload()(images).sequence.tokens
        assert not torch.allclose(plain, model.read(images).sequence.without_prompts())
    counted = count_model(config)
    assert counted.parameters.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counted.costs.forward > 0
    save_adapter(model, tmp_path / "a.safetensors", config=config, classes=[str(i) for i in range(10)])
    again = restore_model(read_adapter(tmp_path / "a.safetensors")).eval()
    with torch.no_grad():
        assert torch.equal(again(images).logits, model(images).logits)


@pytest.mark.parametrize("name", ["lora", "ssf", "bitfit"])
def test_merging(name: str, folder: Path, images: torch.Tensor) -> None:
    model = randomise(build_model(of_folder(name, folder))).eval()
    with torch.no_grad():
        torch.testing.assert_close(model.merge()(images).logits, model(images).logits, atol=1e-5, rtol=1e-4)


def test_the_models_own_preprocessing(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = of_folder("linear", folder)
    assert config.data.mean == PREPROCESSOR["image_mean"]
    assert config.backbone.input_shape(None) == (3, SIDE, SIDE)
    assert of_folder("linear", folder, data={"mean": [0.5] * 3}).data.mean == [0.5] * 3
    assert Config.of(config.dump()) == config
    assert config.dump()["backbone"]["label"] == "my_vit"


def test_another_image_size(folder: Path) -> None:
    section = {"name": "hf", "model": str(folder), "image_size": 32}
    backbone = build_backbone(config_of("linear", backbone=section).backbone)
    assert backbone.feature_info.num_patches == 64
    model: Any = backbone.model
    original = load_file(folder / "model.safetensors")["vit.embeddings.position_embeddings"]
    from transformers import ViTModel

    whole = ViTModel.from_pretrained(folder)
    wanted = whole.embeddings.interpolate_pos_encoding(torch.zeros(1, 65, WIDTH), 32, 32)
    torch.testing.assert_close(model.embeddings.position_embeddings, wanted)
    assert original.shape[1] == 17


def test_a_run_is_stopped_resumed_tested_exported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_resumes_bit_identical(of_folder("adaptformer_x", folder), tmp_path, monkeypatch)
    found = export_adapter(tmp_path / "whole", tmp_path / "model.pt2")
    assert found.metadata["input"]["mean"] == PREPROCESSOR["image_mean"]
    picture = tmp_path / "digit.png"
    Image.fromarray(np.tile(np.arange(0, 256, 32, dtype=np.uint8), (8, 1))).save(picture)
    (prediction,) = pax.Predictor(tmp_path / "whole")(picture)
    assert not isinstance(prediction, Failure), prediction
    assert set(prediction.classes) <= {str(digit) for digit in range(10)}
    assert 0 < sum(prediction.probabilities) <= 1 + 1e-5


@pytest.mark.parametrize("name", ["linear", "e3va", "dapt_x"])
def test_from_kept_features(name: str, folder: Path, tmp_path: Path) -> None:
    train = {"cached_views": 1, "cache_folder": str(tmp_path / "features"), "epochs": 1}
    config = of_folder(name, folder, train=train)
    jobs.train(config, "test", tmp_path / "run", devices.make_accelerator("fp32"))
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").rglob("*") if path.is_file()}
    jobs.train(config, "test", tmp_path / "again", devices.make_accelerator("fp32"))
    assert kept
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # read, not made again
    assert_same_tensors(tmp_path / "run" / "adapter.safetensors", tmp_path / "again" / "adapter.safetensors")


def test_a_bank(folder: Path, tmp_path: Path, images: torch.Tensor) -> None:
    alone = {}
    for name in ("dapt_x", "lora", "e3va"):
        config = of_folder(name, folder)
        model = randomise(build_model(config)).eval()
        path = tmp_path / f"{name}.safetensors"
        save_adapter(model, path, config=config, classes=[str(i) for i in range(10)])
        with torch.no_grad():
            alone[name] = model(images).logits
    bank = AdapterBank({name: str(tmp_path / f"{name}.safetensors") for name in alone})
    for name in [*alone, *alone]:
        torch.testing.assert_close(bank(images, name), alone[name])


@pytest.mark.filterwarnings("error")
def test_nothing_is_said_of_a_head_that_is_not_loaded(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The classifier of a file belongs to other classes; and no name is used that transformers will give up."""
    backbone = build_model(config_of(backbone={"name": "hf", "model": str(folder)})).backbone
    assert isinstance(backbone, HfBackbone)
    assert "not loaded" not in caplog.text
    assert not backbone.recomputed
    backbone.recomputed = True
    assert backbone.recomputed
    backbone.recomputed = False
    assert not backbone.recomputed


def test_weights_of_another_model(folder: Path, tmp_path: Path) -> None:
    config = of_folder("lora", folder)
    model = build_model(config)
    save_adapter(model, tmp_path / "a.safetensors", config=config, classes=[str(i) for i in range(10)])
    other: Any = randomised(models.hf_vit(), seed=1)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"belongs to the backbone with hash .* set backbone\.weights"):
        restore_model(read_adapter(tmp_path / "a.safetensors"), tmp_path / "other")
    swin: Any = models.hf_swin()
    swin.save_pretrained(tmp_path / "swin")
    with pytest.raises(CheckpointError, match="encoder tensors are missing"):
        restore_model(read_adapter(tmp_path / "a.safetensors"), tmp_path / "swin")


@pytest.mark.parametrize(("name", "options"), [("dapt_x", {"dropout": 0.0}), ("adaptformer_x", {"neighbours": 8})])
def test_recomputed_activations_give_the_same_gradients(
    name: str, options: dict[str, Any], folder: Path, images: torch.Tensor
) -> None:
    from pointadapterx.models.block import recompute_activations

    config = of_folder(name, folder).replaced(method=options, head={"dropout": 0.0})
    found = []
    for wanted in (False, True):
        model = randomise(build_model(config))
        recompute_activations(model, wanted)
        assert model.backbone.recomputed == wanted  # type: ignore[attr-defined]
        output, auxiliary = model(images)
        assert auxiliary is not None
        (output.square().sum() + auxiliary).backward()
        found.append([p.grad for p in model.method.parameters()])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain)


def test_stag_leaves_the_final_norm_of_another_library(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"method.final_norm: ViTModel .* has its own way to its head"):
        build_model(of_folder("stag", folder).replaced(method={"final_norm": False}))


def test_attention_is_not_drawn(folder: Path, images: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="own backbones"):
        class_attention(build_model(of_folder("linear", folder)), images)


def _folder(content: dict[str, str]) -> Callable[[Path], dict[str, Any]]:
    def make(root: Path) -> dict[str, Any]:
        for name, text in content.items():
            (root / name).write_text(text)
        return {"model": str(root)}

    return make


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda root: {}, "is required"),
        (lambda root: {"model": str(root / "none")}, "no such folder"),
        (lambda root: {"model": "facebook/dinov2-small"}, "write hf://facebook/dinov2-small"),
        (lambda root: {"model": str(root)}, "it has no config.json"),
        (_folder({"config.json": "["}), "config.json cannot be read"),
        (_folder({"config.json": json.dumps({"model_type": "no such"}), "model.safetensors": ""}), "no such: transf"),
        (
            _folder({"config.json": json.dumps({"model_type": "bert"}), "model.safetensors": ""}),
            "none of the models that are",
        ),
        (_folder({"config.json": json.dumps(VIT)}), "has no model.safetensors"),
        (_folder({"config.json": json.dumps(VIT), "pytorch_model.bin": ""}), "pickled weights"),
        (_folder({"config.json": json.dumps(VIT), "model.safetensors.index.json": ""}), "several files"),
        (lambda root: {"architecture": VIT, "image_size": SIDE, "dim": 99}, "that of the model is"),
        (lambda root: {"architecture": {"hidden_size": 8}}, "model_type"),
        (lambda root: {"architecture": {**VIT, "num_attention_heads": 5}, "image_size": SIDE}, "5 heads do not divide"),
        (lambda root: {"architecture": {**VIT, "hidden_act": "none"}, "image_size": SIDE}, "cannot build it"),
        (lambda root: {"model": str(root), "architecture": VIT}, "says its own architecture"),
    ],
)
def test_one_line_says_what_is_wrong(make: Callable[[Path], dict[str, Any]], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        config_of("linear", backbone={"name": "hf", **make(tmp_path)})
    assert len(str(caught.value).splitlines()) == 2  # the first says how many there are


@pytest.mark.parametrize("way", ["override", "base", "page"])
def test_a_model_of_your_own_in_one_line(way: str, folder: Path, tmp_path: Path) -> None:
    """By one override of the shipped config, by one that begins with it, and by that of the documentation."""
    file, overrides = tmp_path / "mine.yaml", []
    if way == "page":
        page = blocks(ROOT / "docs" / "backbones.md")[0].text
        assert len(page.splitlines()) <= 10
        file.write_text(page.replace("hf://facebook/dinov2-small", str(folder)))
    elif way == "base":
        file.write_text(f"_base_: hf_digits\nbackbone: {{model: {folder}}}\n")
    else:
        file, overrides = Path("hf_digits"), [f"backbone.model={folder}"]
    config = read_config(file, overrides)
    assert isinstance(config.backbone, HfBackbone.Options)
    assert (config.backbone.image_size, config.backbone.channels, config.backbone.label) == (SIDE, 3, "my_vit")
    assert config.backbone.weights == str(folder / "model.safetensors")
    assert config.head is not None
    assert config.head.hidden == []


def test_what_is_set_with_the_model_counts(folder: Path) -> None:
    config = read_config("hf_digits", ["backbone.image_size=32", f"backbone.model={folder}", "backbone.weights=null"])
    assert isinstance(config.backbone, HfBackbone.Options)
    assert (config.backbone.image_size, config.backbone.weights) == (32, None)


@pytest.mark.parametrize("name", ["dapt", "vpt"])
def test_prompts_where_the_blocks_take_none(name: str) -> None:
    beit = {**VIT, "model_type": "beit", "use_relative_position_bias": True}
    with pytest.raises(ConfigError, match=f"{name} inserts prompt tokens, but its relative position bias"):
        config_of(name, backbone={"name": "hf", "architecture": beit, "image_size": SIDE})


def test_by_name_from_python(folder: Path, images: torch.Tensor, tmp_path: Path) -> None:
    model = pax.create_model("hf", model=str(folder), method="lora", num_classes=3)
    assert model(images).logits.shape == (2, 3)
    model.save_pretrained(tmp_path / "mine")
    again = pax.from_pretrained(tmp_path / "mine", weights=folder)
    with torch.no_grad():
        assert torch.equal(again(images).logits, model.eval()(images).logits)
    with pytest.raises(ConfigError, match="model"):
        pax.create_model("hf")


@pytest.mark.timm
@pytest.mark.parametrize("size", [SIDE, 32])
def test_weights_of_timm(size: int, tmp_path: Path) -> None:
    models.need("timm")
    section = {**FAMILIES["timm vit"], "weights": str(tmp_path / "weights.safetensors")}
    given = randomised(build_backbone(config_of("linear", backbone=FAMILIES["timm vit"]).backbone).model)
    save_file(given.state_dict(), tmp_path / "weights.safetensors")
    config = config_of("linear", backbone={**section, "image_size": size})
    loaded = build_backbone(config.backbone).model.state_dict()
    for name, value in given.state_dict().items():
        assert size != SIDE or torch.equal(loaded[name], value)
    assert torch.equal(loaded["blocks.1.attn.qkv.weight"], given.state_dict()["blocks.1.attn.qkv.weight"])
    assert config.data.mean == [0.5] * 3
    with pytest.raises(ConfigError, match="no model of timm; did you mean 'vit_tiny_patch16_224'"):
        config_of("linear", backbone={"name": "timm", "model": "vit_tiny_patch16_22"})
