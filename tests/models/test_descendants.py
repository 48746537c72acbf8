"""Weights of Point-MAE's descendants: each public layout loads, computes the same, and names the options it needs."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from pointadapterx.build import build_backbone, build_model
from pointadapterx.checkpoints.published import load_pretrained
from pointadapterx.checkpoints.shipped import save_backbone
from pointadapterx.config import Config, load_config
from pointadapterx.errors import CheckpointError, ConfigError
from pointadapterx.models.checkpoint_keys import translate_published
from pointadapterx.models.point_mae import MaskedAutoencoder, PointMAE
from pointadapterx.peft import METHODS
from tests.conftest import ROOT, randomise, small_config
from tests.models.plain_layouts import LAYOUTS, Layout, Sizes, State, random_state, run, under
from tests.models.plain_layouts import decoder as decoder_shapes
from tests.models.test_pretrained import refused

SMALL = Sizes(dim=48, depth=2, heads=3, groups=16, size=8)
OPTIONS = ("qkv_bias", "conv_bias", "position_code", "class_token", "reduce_dim", "averaged_weights")
PRESETS = ("act", "recon_as_used", "point_bert", "point_jepa", "pcp_mae")


def preset(name: str) -> dict[str, Any]:
    """What a base config adds to Point-MAE, at small sizes."""
    text = (ROOT / "cfgs" / "base" / f"{name}.yaml").read_text(encoding="utf-8")
    found = {key: value for key, value in yaml.safe_load(text)["backbone"].items() if key in OPTIONS}
    return found | ({"encoder_dim": 32} if name == "point_bert" else {})


def config_of(name: str, method: str = "linear", /, **changes: dict[str, Any]) -> Config:
    changes["backbone"] = preset(name) | changes.get("backbone", {})
    return small_config(method, **{"head": {"pools": None}} | changes)


def backbone(name: str, **changes: Any) -> PointMAE:
    built = build_backbone(config_of(name, backbone=changes).backbone)
    assert isinstance(built, PointMAE)
    return built.eval()


def write(layout: Layout, folder: Path, seed: int = 1) -> tuple[Path, State]:
    state = random_state(layout.shapes(SMALL), seed)
    if layout.wrapper is None:
        save_file(state, folder / "model.safetensors")
        return folder / "model.safetensors", state
    torch.save({layout.wrapper: state, "epoch": 300}, folder / "weights.pth")
    return folder / "weights.pth", state


def assert_computes(model: PointMAE, state: State, layout: Layout, points: Tensor) -> None:
    """The tokens of the plain implementation, on the file's own names, within 1e-5."""
    found = model(points[:2]).sequence.tokens
    if not layout.names.class_token and model.has_class_token:  # the class token is the model's
        state |= {"cls_token": model.cls_token.data, "cls_pos": model.cls_position.data}
        layout = layout._replace(names=layout.names._replace(class_token="cls"))
    wanted = torch.stack([run(state, cloud, layout.names, SMALL) for cloud in points[:2]])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_public_layout_computes_what_it_did(
    name: str, points: Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layout = LAYOUTS[name]
    path, state = write(layout, tmp_path)
    model = backbone(layout.preset)
    report = load_pretrained(model, path)
    assert report.coverage == 1.0
    assert_computes(model, state, layout, points)
    known = tuple(start.removeprefix("module.") for start in layout.unused)  # as messages name them
    rest = [name for name in report.unexpected if not name.startswith((*known, "head."))]
    assert [name for name in rest if "_contrast." not in name] == []
    assert not any("unknown in such a file" in note for note in report.notes)
    missing = {"cls_token", "cls_position"} if model.has_class_token and not layout.names.class_token else set()
    assert set(report.missing) == missing


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_options_are_read_from_the_file(name: str, points: Tensor, tmp_path: Path) -> None:
    """A backbone with the options of Point-MAE gets one line, and what that says to set makes the file fit."""
    layout = LAYOUTS[name]
    path, state = write(layout, tmp_path)
    options = preset(layout.preset)
    told = {key: value for key, value in options.items() if key not in ("class_token", "averaged_weights")}
    told.pop("conv_bias", None)  # a bias of zero is none
    plain = backbone("point_mae")
    if not told:
        assert load_pretrained(plain, path).coverage == 1.0
        return
    message = refused(plain, path)
    assert f"looks like {layout.words}" in message
    assert f"as cfgs/base/{layout.preset}.yaml does, set " in message
    found = {key: yaml.safe_load(value) for key, value in re.findall(r"backbone\.(\w+)=(\S+)", message)}
    assert found == told
    model = build_backbone(small_config("linear", backbone=found).backbone).eval()
    assert isinstance(model, PointMAE)
    load_pretrained(model, path)
    assert_computes(model, state, layout, points)


@pytest.mark.parametrize("name", PRESETS)
def test_a_file_of_point_mae_says_so_too(name: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"base_model": random_state(LAYOUTS["act"].shapes(SMALL))}, path)
    model = backbone(name)
    if name in ("act", "recon_as_used"):
        assert load_pretrained(model, path).coverage == 1.0
        return
    found = {key: yaml.safe_load(value) for key, value in re.findall(r"backbone\.(\w+)=(\S+)", refused(model, path))}
    opposite = {
        "point_bert": {"encoder_dim": 48, "reduce_dim": False},
        "point_jepa": {"qkv_bias": False, "conv_bias": True},
        "pcp_mae": {"position_code": "xyz"},
    }
    assert found == opposite[name]


PUBLISHED = Sizes()


@pytest.mark.parametrize(
    ("name", "tensors", "parameters", "head", "printed"),
    [
        ("act", 152, 21_825_792, 267_535, 22.1),  # with a class token, and the head of 15 classes
        ("recon", 152, 21_825_792, 267_535, 22.1),
        ("point_bert", 154, 21_858_816, 207_144, 22.07),  # with its own head of 40 classes, 768 -> 256 -> 40
        ("pcp_mae", 150, 22_070_656, 768 + 267_535, 22.34),  # with the class token, which its file has not
        ("point_jepa", 160, 21_838_208, 0, 21.84),  # without head and class token
    ],
)
def test_names_and_shapes_at_published_size(
    name: str, tensors: int, parameters: int, head: int, printed: float
) -> None:
    """Every public name and shape of the encoder is one of ours, none is missing, and papers print that many."""
    layout = LAYOUTS[name]
    sizes = {"encoder_dim": 256} if layout.preset == "point_bert" else {}
    with torch.device("meta"):
        model = PointMAE(PointMAE.Options(**preset(layout.preset) | sizes))
        state = {key: torch.empty(shape) for key, shape in layout.shapes(Sizes()).items()}
    found = {key.removeprefix("backbone."): tensor for key, tensor in translate_published(state).tensors.items()}
    target = {key: value.shape for key, value in model.state_dict().items()}
    loaded = {key: tensor.shape for key, tensor in found.items() if key in target}
    assert loaded == {key: shape for key, shape in target.items() if "cls_" not in key or key in found}
    counted = [shape.numel() for key, shape in loaded.items() if "running_" not in key and "num_batches" not in key]
    assert (len(counted), sum(counted)) == (tensors, parameters)
    places = len(str(printed).partition(".")[2])
    assert round((parameters + head) / 1e6, places) == printed


@pytest.mark.parametrize("name", ["point_jepa", "point_bert"])
def test_the_average_is_loaded_where_it_is_asked_for(name: str, points: Tensor, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    path, state = write(layout, tmp_path)
    copy = {"student.": "teacher.ema_model.", "transformer_q.": "transformer_k."}
    swapped = {
        key: state.get(key.replace(*pair), tensor)
        for key, tensor in state.items()
        for pair in copy.items()
        if pair[0] in key or all(trained not in key for trained in copy)
    }
    model = build_backbone(config_of(layout.preset, backbone={"weights": str(path), "averaged_weights": True}).backbone)
    assert isinstance(model, PointMAE)
    assert_computes(model.eval(), swapped, layout, points)
    with pytest.raises(
        CheckpointError, match=r"holds no average of trained weights .*; set backbone\.averaged_weights="
    ):
        load_pretrained(backbone("act"), write(LAYOUTS["act"], tmp_path)[0], averaged=True)


def test_biases_before_batch_norm_are_zero_where_a_backbone_has_them(points: Tensor, tmp_path: Path) -> None:
    layout = LAYOUTS["point_jepa"]
    path, state = write(layout, tmp_path)
    model = backbone("point_jepa", conv_bias=True)
    assert load_pretrained(model, path).coverage == 1.0
    assert not any(model.patch_encoder.get_parameter(f"{part}.0.bias").any() for part in ("first", "second"))
    assert_computes(model, state, layout, points)


def test_unknown_names_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layout = LAYOUTS["act"]
    path, state = write(layout, tmp_path)
    torch.save(state | {"module.ACT_encoder.gate.weight": torch.zeros(3), "scale": torch.zeros(1)}, path)
    with caplog.at_level(logging.WARNING, "pointadapterx"):
        report = load_pretrained(backbone("act"), path)
    said = "2 tensors that are unknown in such a file are not loaded: ACT_encoder.gate.weight, scale"
    assert report.notes == [said]
    assert report.notes[0] in caplog.text


def test_recon_is_named_for_what_it_is(tmp_path: Path) -> None:
    report = load_pretrained(backbone("recon_as_used"), write(LAYOUTS["recon"], tmp_path)[0])
    assert report.notes == [
        "ReCon: 24 tensors of its contrast branch are left out, as papers on adapters do: these are its weights in the "
        "architecture of Point-MAE, which is not ReCon itself"
    ]


def test_heads_of_fine_tuned_files(tmp_path: Path) -> None:
    """torch-pointcloud's names of Point-MAE's head are read; Point-BERT's has other layers, so nothing of it is."""
    model = build_model(config_of("act", head={"pools": ["cls", "patch_max"]}))
    path, state = write(LAYOUTS["torch_pointcloud"], tmp_path)
    report = load_pretrained(model, path)
    assert {name for name in report.missing if name.startswith("head.")} == {"head.mlp.8.weight", "head.mlp.8.bias"}
    for ours, theirs in (("mlp.4.weight", "lins.1.weight"), ("mlp.5.running_var", "norms.1.module.running_var")):
        assert torch.equal(model.head.state_dict()[ours], state[f"head.{theirs}"])
    narrow = build_model(config_of("act", head={"pools": ["cls"]}))  # its first layer reads something else
    before = narrow.head.mlp[4].weight.clone()
    assert "head.mlp.4.weight" in load_pretrained(narrow, path).unexpected
    assert torch.equal(narrow.head.mlp[4].weight, before)
    model = build_model(config_of("point_bert", head={"pools": ["cls", "patch_max"]}))
    before = model.head.mlp[0].weight.clone()
    report = load_pretrained(model, write(LAYOUTS["torch_pointcloud_bert"], tmp_path)[0])
    assert {"head.mlp.0.weight", "head.mlp.3.weight"} <= set(report.unexpected)
    assert torch.equal(model.head.mlp[0].weight, before)


def test_pre_training_files_of_torch_pointcloud_bring_their_decoder(tmp_path: Path) -> None:
    own = MaskedAutoencoder(backbone("point_mae"), decoder_depth=1, decoder_heads=3)
    shapes = {name: shape for name, shape in LAYOUTS["torch_pointcloud"].shapes(SMALL).items() if "head." not in name}
    shapes = {name.replace("norm_f", "norm"): shape for name, shape in shapes.items() if not name.startswith("cls_")}
    rest = decoder_shapes(SMALL)
    rest = {
        re.sub(r"mlp\.fc(\d)", lambda found: f"mlp.lins.{int(found[1]) - 1}", name)
        .replace("increase_dim.0", "increase_dim.lins.0")
        .replace("decoder_pos_embed.0", "decoder_pos_embed.lins.0")
        .replace("decoder_pos_embed.2", "decoder_pos_embed.lins.1"): shape
        for name, shape in rest.items()
        if not re.match(r"MAE_decoder\.blocks\.[123]", name)
    }
    state = random_state(under("MAE_encoder.", shapes) | rest)
    save_file(state, tmp_path / "model.safetensors")
    report = load_pretrained(own, tmp_path / "model.safetensors")
    assert (report.missing, report.unexpected) == (["encoder.cls_position", "encoder.cls_token"], [])
    assert torch.equal(own.decoder_blocks[0].mlp.fc2.weight, state["MAE_decoder.blocks.0.mlp.lins.1.weight"])
    assert torch.equal(own.predict_points.weight, state["increase_dim.lins.0.weight"].squeeze(-1))


def named(*names: str, shape: tuple[int, ...] = (4,)) -> State:
    return {name: torch.zeros(shape) for name in names}


@pytest.mark.parametrize(
    ("state", "words", "needs"),
    [
        (
            named("module.GPT_Transformer.blocks.layers.0.ln_1.weight", "module.GPT_Transformer.sos_pos"),
            "PointGPT",
            "causal blocks over ordered groups",
        ),
        (
            named("h_encoder.token_embed.0.first_conv.0.weight", "h_encoder.encoder_blocks.0.blocks.0.norm1.weight"),
            "Point-M2AE or I2P-MAE",
            "three levels of groups, with attention to near ones",
        ),
        (
            named("module.MAE_encoder.blocks.layers.0.mixer.A_log", "module.MAE_encoder.OrderScale_gamma_1"),
            "PointMamba or Mamba3D",
            "blocks with a selective scan",
        ),
        (
            named("point_encoder.encoder2trans.weight", "point_encoder.visual.blocks.0.attn.qkv.weight"),
            "Uni3D",
            "colours, and the blocks of EVA",
        ),
        (
            named(
                "module.ppat.lift.0.weight", "module.ppat.transformer.layers.0.0.fn.to_qkv.weight", "module.proj.weight"
            ),
            "OpenShape's PointBERT",
            "groups within a radius, and colours",
        ),
        (
            named("embedding.stem.linear.weight", "enc.enc0.block0.cpe.0.weight", "enc.enc1.down.proj.weight"),
            "Point Transformer V3, Sonata or Concerto",
            "sparse convolutions, and windows along a curve",
        ),
        (
            named("rope_embed.periods", "storage_tokens", "blocks.0.ls1.gamma", "patch_embed.proj.weight"),
            "DINOv3",
            "rotary positions (rope) and register tokens",
        ),
    ],
)
def test_a_wrong_backbone_is_named_with_what_it_needs(state: State, words: str, needs: str, tmp_path: Path) -> None:
    torch.save({"base_model": state}, tmp_path / "weights.pth")
    message = refused(backbone("act"), tmp_path / "weights.pth")
    assert f"looks like {words}, which backbone.name=point_mae cannot load: it needs {needs}, which is not" in message


def test_point_femae_and_coloured_points_need_more(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    plain = random_state(LAYOUTS["act"].shapes(SMALL))
    plain = {name.replace("ACT_encoder.", "MAE_encoder."): tensor for name, tensor in plain.items()}
    lem = named(
        "module.MAE_encoder.blocks.blocks.0.cls.conv1.0.weight", "module.MAE_encoder.blocks.blocks.0.cls_norm.bias"
    )
    torch.save({"base_model": plain | lem}, path)
    assert "the file is of Point-FEMAE, which needs a local branch with edge convolutions in every block" in refused(
        backbone("act"), path
    )
    bert = random_state(LAYOUTS["point_bert"].shapes(SMALL))
    kept = {name: tensor for name, tensor in bert.items() if "transformer_q." in name}
    ulip = {name.replace("module.transformer_q.", "module.point_encoder."): tensor for name, tensor in kept.items()}
    first = "module.point_encoder.encoder.first_conv.0.weight"
    torch.save({"state_dict": ulip | {first: torch.cat([ulip[first]] * 2, dim=1)}}, path)
    message = refused(backbone("point_bert"), path)
    assert "looks like ULIP's PointBERT, of other sizes than the backbone: numbers of a point 6" in message
    assert "no option changes that (ULIP's PointBERT needs a colour at each point)" in message


METHOD_FORMS = [
    *((name, {}) for name in METHODS),
    *((name, {"prompts": False}) for name in METHODS if "prompts" in METHODS[name].Options.model_fields),
]


@pytest.mark.parametrize(("method", "options"), METHOD_FORMS)
@pytest.mark.parametrize("name", ["point_bert", "point_jepa", "pcp_mae"])
def test_methods_adapt_every_option_set(name: str, method: str, options: dict[str, Any], points: Tensor) -> None:
    sizes = {"rank": 4} if "rank" in METHODS[method].Options.model_fields else {}
    chosen = {"name": method, **sizes, **options}
    needs = METHODS[method].Options(**{key: value for key, value in chosen.items() if key == "prompts"})
    if name == "point_jepa" and needs.needs_class_token:
        with pytest.raises(ConfigError, match=r"class token, which backbone point_mae does not have"):
            config_of(name, method, method=options)
        return
    model = randomise(build_model(config_of(name, method, method=options))).train()
    logits, auxiliary = model(points)
    (logits.sum() if auxiliary is None else logits.sum() + auxiliary).backward()
    lacking = [n for n, p in model.named_parameters() if (p.grad is None) == p.requires_grad]
    assert lacking == [] or method == "noah"  # a supernet runs a part of itself
    model.eval()
    with torch.no_grad():
        kept = model.method.precompute(model.backbone, points)
        torch.testing.assert_close(model(kept).logits, model(points).logits)
    if method in ("lora", "ssf", "bitfit", "linear"):
        torch.testing.assert_close(model.merge()(points).logits, model(points).logits, atol=1e-5, rtol=0)


def test_own_files_keep_the_options(points: Tensor, tmp_path: Path) -> None:
    config = config_of("point_jepa")
    source = build_backbone(config.backbone).eval()
    save_backbone(source, tmp_path / "own.safetensors", config.backbone, {})
    fresh = backbone("point_jepa", init_seed=5)
    assert load_pretrained(fresh, tmp_path / "own.safetensors").coverage == 1.0
    torch.testing.assert_close(fresh(points).sequence.tokens, source(points).sequence.tokens, atol=1e-2, rtol=0)
    assert "set backbone.qkv_bias=true backbone.conv_bias=false" in refused(
        backbone("point_mae"), tmp_path / "own.safetensors"
    )


def test_values_that_change_nothing_are_null() -> None:
    same = {
        "qkv_bias": False,
        "conv_bias": True,
        "position_code": "xyz",
        "class_token": True,
        "averaged_weights": False,
    }
    assert small_config("linear", backbone=same) == small_config("linear")
    with pytest.raises(ConfigError, match=r"reduce_dim: false, but encoder_dim=32 is not dim=48; remove the key"):
        small_config("linear", backbone={"encoder_dim": 32, "reduce_dim": False})
    with pytest.raises(ConfigError, match=r"position_code: sine needs a dim that 6 divides, not 40; choose another"):
        small_config("linear", backbone={"dim": 40, "encoder_dim": 40, "num_heads": 4, "position_code": "sine"})


@pytest.mark.parametrize("name", PRESETS)
def test_base_configs_are_whole(name: str, tmp_path: Path) -> None:
    """A config on one of them, with a method and data, is complete."""
    (tmp_path / "mine.yaml").write_text(
        f"_base_: {ROOT / 'cfgs' / 'base' / name}.yaml\nmethod: {{name: lora}}\n"
        "data: {name: ldraw20, num_points: 1024, augment: rotation}\n",
        encoding="utf-8",
    )
    config = load_config(tmp_path / "mine.yaml")
    assert config.backbone.dim == 384
    pools = ["patch_max", "patch_mean"] if name == "point_jepa" else ["cls", "patch_max"]
    assert config.head.get("pools") == pools
