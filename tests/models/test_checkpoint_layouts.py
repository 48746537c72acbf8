"""Layouts of published files: which of several encoders is loaded, under which prefixes, and what others are called."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from easydict import EasyDict
from torch import nn

from pointadapterx.build import build_backbone
from pointadapterx.checkpoints.kinds import recognise
from pointadapterx.checkpoints.published import load_pretrained
from pointadapterx.errors import CheckpointError
from pointadapterx.models.backbone import Backbone
from pointadapterx.models.checkpoint_places import unwrapped
from pointadapterx.models.point_mae import MaskedAutoencoder, PointMAE
from pointadapterx.models.vit import ViT
from tests.conftest import small_config
from tests.models.test_pretrained import encoder, pretraining_state, refused, save
from tests.parity.oracle import State, random_state

FIRST = "encoder.first_conv.0.weight"


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def inner(seed: int) -> State:
    return random_state(seed, dim=48, depth=2, classes=20, pools=2)


def point_bert(*copies: str) -> State:
    """As Point-BERT's pre-training leaves it: 32-wide patch features, two encoders, a tokeniser, a queue."""
    state: State = {"module.queue": torch.zeros(4), f"module.dvae.{FIRST}": torch.zeros(128, 3, 1)}
    for seed, copy in enumerate(copies, 1):
        own = inner(seed)
        own["encoder.second_conv.3.weight"] = own["encoder.second_conv.3.weight"][:32]
        own["encoder.second_conv.3.bias"] = own["encoder.second_conv.3.bias"][:32]
        own |= {"reduce_dim.weight": torch.randn(48, 32), "reduce_dim.bias": torch.randn(48)}
        own |= {"mask_token": torch.zeros(1, 1, 48), "lm_head.weight": torch.zeros(8, 48)}
        state |= under(f"module.{copy}", own)
    return state


def point_bert_encoder() -> Backbone:
    return build_backbone(small_config("linear", backbone={"encoder_dim": 32}).backbone)


def images() -> ViT:
    return ViT(ViT.Options(dim=24, depth=2, num_heads=3, patch_size=4, image_size=16))


def vit_state() -> State:
    return {name: tensor.clone() for name, tensor in images().state_dict().items()}


@pytest.mark.parametrize(
    ("copies", "warns"),
    [
        (("transformer_k.", "transformer_q."), "the former is loaded"),
        (("transformer_q.",), None),
        (("transformer_k.",), "transformer_k. alone, a copy"),
    ],
)
def test_point_bert_loads_the_trained_encoder(
    copies: tuple[str, ...], warns: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state, model = point_bert(*copies), point_bert_encoder()
    with caplog.at_level(logging.WARNING, "pointadapterx"):
        report = load_pretrained(model, save(tmp_path, {"base_model": state}))
    assert report.coverage == 1.0
    wanted = copies[-1]  # q, or what there is
    assert torch.equal(model.state_dict()["patch_encoder.first.0.weight"], state[f"module.{wanted}{FIRST}"].squeeze(-1))
    assert torch.equal(model.state_dict()["reduce_dim.bias"], state[f"module.{wanted}reduce_dim.bias"])
    told = [record.getMessage() for record in caplog.records if "weights.pth" in record.getMessage()]
    assert told == [] if warns is None else warns in told[0]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (lambda: {"model": inner(1), "model_ema": inner(2)}, ("model", "model_ema")),
        (lambda: {"student": inner(1), "teacher": inner(2), "epoch": 3}, ("student", "teacher")),
        (lambda: {"state_dict": under("student.", inner(1)) | under("teacher.", inner(2))}, ("student.", "teacher.")),
        (lambda: inner(1) | under("module_ema.", inner(2)), ("names without a prefix", "module_ema.")),
        (lambda: under("context_encoder.", inner(1)) | under("target_encoder.", inner(2)), ("target_encoder.",)),
        (lambda: point_bert("transformer_q.") | under("ema.", inner(3)), ("transformer_q.", "ema.")),
    ],
)
def test_several_encoders_are_never_chosen_from_in_silence(
    content: Callable[[], Any], names: tuple[str, ...], tmp_path: Path
) -> None:
    message = refused(encoder(), save(tmp_path, content()))
    assert "does not say which of them is meant; keep one, with torch.save(" in message
    assert all(name in message for name in names)


@pytest.mark.parametrize("key", ["model_ema", "teacher"])
def test_a_copy_by_itself_is_loaded_with_a_word(key: str, tmp_path: Path) -> None:
    report = load_pretrained(encoder(), save(tmp_path, {key: inner(1), "epoch": 3}))
    assert report.coverage == 1.0
    assert report.notes == [f"holds {key} alone, a copy that follows the trained weights"]


@pytest.mark.parametrize(
    "prefix",
    [
        "_orig_mod.",
        "module.module.",
        "model.",
        "point_encoder.",
        "net.module._orig_mod.MAE_encoder.",
        "_orig_mod.module.model.ACT_encoder.",
        "module._fsdp_wrapped_module.base_model.",
    ],
)
def test_any_stack_of_prefixes(prefix: str, tmp_path: Path) -> None:
    state, model = inner(1), encoder()
    named = under(prefix, state) | {"logit_scale": torch.zeros(())}
    assert load_pretrained(model, save(tmp_path, named)).coverage == 1.0
    assert torch.equal(model.state_dict()["cls_token"], state["cls_token"])


def test_wrappers_within_names_and_around_the_decoder(tmp_path: Path) -> None:
    state = {f"_orig_mod.module.{name}": tensor for name, tensor in pretraining_state().items()}
    state = {name.replace("blocks.blocks.", "blocks._orig_mod.blocks."): tensor for name, tensor in state.items()}
    model = MaskedAutoencoder(encoder(), decoder_depth=1, decoder_heads=3)
    assert load_pretrained(model, save(tmp_path, state)).unexpected == []
    state[f"_orig_mod.module.MAE_encoder._orig_mod.{FIRST}"] = torch.zeros(128, 3, 1)
    assert "with and without a wrapper's name" in refused(model, save(tmp_path, state))


@pytest.mark.parametrize("prefix", ["model.", "_orig_mod.visual_encoder.", "module.module."])
def test_prefixes_of_a_vit(prefix: str, tmp_path: Path) -> None:
    assert load_pretrained(images(), save(tmp_path, under(prefix, vit_state()))).coverage == 1.0


def named(*names: str) -> State:
    return {name: torch.zeros(4) for name in names}


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (vit_state(), "a ViT as timm names it, whose weights belong to backbone.name=vit"),
        (named("Transformer/encoderblock_0/LayerNorm_0/scale", "embedding/kernel"), "Google's ViT"),
        (named("patch_embed.proj.weight", "blocks.0.0.ls1.gamma", "mask_token"), "DINOv2"),
        (named("visual.transformer.resblocks.0.ln_1.weight", "logit_scale"), "CLIP"),
        (named("vit.embeddings.patch_embeddings.projection.weight"), "a ViT as Hugging Face"),
        (named("encoder.layers.encoder_layer_0.ln_1.weight", "conv_proj.weight"), "a ViT as torchvision"),
        (named("layer1.0.conv1.weight", "fc.weight"), "a convolutional network of images"),
        (named("GPT_Transformer.blocks.layers.0.ln_1.weight", f"GPT_Transformer.{FIRST}"), "PointGPT"),
        (named("h_encoder.token_embed.0.first_conv.0.weight"), "Point-M2AE"),
        (named("point_encoder.encoder2trans.weight", "point_encoder.visual.blocks.0.norm1.weight"), "Uni3D"),
        (named("ppat.cls_token", "proj.weight"), "OpenShape"),
        (named("MAE_encoder.blocks.layers.0.mixer.A_log"), "PointMamba"),
        (named(f"tokenizer.embedding.{FIRST}", "positional_encoding.0.weight", "student.norm.weight"), "Point-JEPA"),
        (named("encoder.local_mlp.lins.0.weight"), "torch-pointcloud"),
        (named("embedding.stem.linear.weight", "enc.enc0.block0.cpe.0.weight"), "Point Transformer V3"),
        (named("sa1.mlp_convs.0.weight", "fc1.weight"), "PointNet++"),
        (named("model/head.mlp.0.weight", "optimizer/head.mlp.0.weight/exp_avg"), "the state of an unfinished run"),
        (named("base_model.model.layers.0.q.lora_A.weight"), "an adapter of the peft library"),
    ],
)
def test_files_of_other_models_are_named(state: State, says: str, tmp_path: Path) -> None:
    message = refused(encoder(), save(tmp_path, state))
    assert f"looks like {says}" in message
    assert "point_mae" in message


@pytest.mark.parametrize(("state", "says"), [(inner(1), "Point-MAE"), (point_bert("transformer_q."), "Point-BERT")])
def test_a_vit_given_a_file_of_clouds(state: State, says: str, tmp_path: Path) -> None:
    message = refused(images(), save(tmp_path, state))
    assert f"looks like {says}, whose weights belong to backbone.name=point_mae" in message


def test_descendants_that_compute_something_else(tmp_path: Path) -> None:
    femae = under("MAE_encoder.", inner(1) | {"blocks.blocks.0.cls.conv1.0.weight": torch.zeros(48, 96, 1, 1)})
    message = refused(encoder(), save(tmp_path, femae))
    assert "a layer that this backbone does not have" in message
    assert "Point-FEMAE" in message
    pcp = under("MAE_encoder.", inner(1) | {"pos_embed.0.weight": torch.zeros(128, 48)}) | {
        "pred_pos_proj.0.weight": torch.zeros(48, 48)
    }
    assert "looks like PCP-MAE" in refused(encoder(), save(tmp_path, pcp))
    recon = under("MAE_encoder.", inner(1) | {"blocks.blocks.0.norm1_contrast.weight": torch.zeros(48)})
    assert load_pretrained(encoder(), save(tmp_path, recon)).notes[0].startswith("ReCon: 1 tensors of its contrast")


def test_own_files_are_recognised() -> None:
    """A kind that is known must not be told of what loads."""
    for state, backbone in ((encoder().state_dict(), "point_mae"), (vit_state(), "vit"), (inner(1), "point_mae")):
        kind = recognise(state)
        assert kind is not None
        assert kind.backbone == backbone


@pytest.mark.parametrize("core", ["core", "_core"])
@pytest.mark.parametrize(
    "value", [np.float64(93.2), np.int64(7), np.bool_(True), np.arange(6.0).reshape(2, 3), np.zeros((0, 3))]
)
def test_values_saved_under_either_numpy(value: Any, core: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"base_model": inner(1), "best": value}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    written = b"numpy._core.multiarray" if b"numpy._core.multiarray" in content else b"numpy.core.multiarray"
    assert written in content
    path.write_bytes(content.replace(written, f"numpy.{core}.multiarray".encode()))
    assert load_pretrained(encoder(), path).coverage == 1.0


@pytest.mark.parametrize(
    "value",
    [
        argparse.Namespace(lr=1e-3, output=Path("runs/x")),
        EasyDict(model={"depth": 12}, names=["a"]),
        {"args": argparse.Namespace(nested=EasyDict(a=1))},
    ],
)
def test_arguments_and_configs_beside_the_tensors(value: Any, tmp_path: Path) -> None:
    assert load_pretrained(encoder(), save(tmp_path, {"model": inner(1), "args": value})).coverage == 1.0


@pytest.mark.parametrize(
    ("value", "kind"), [(np.array([object()]), "O8"), (np.datetime64("2026"), "M8"), (np.zeros(2, "f4,i4"), "V8")]
)
def test_numpy_values_that_are_no_plain_numbers(value: Any, kind: str, tmp_path: Path) -> None:
    message = refused(encoder(), save(tmp_path, {"model": inner(1), "best": value}))
    assert f"a numpy value of type '{kind}', which is not a plain number, so it is refused" in message


class _FlaggedDtype:
    """Pickles as a dtype whose state sets flags: numpy would take raw bytes for pointers to objects."""

    def __init__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def __reduce__(self) -> tuple[Any, ...]:
        return np.dtype, ("f8", False, True), self.state


@pytest.mark.parametrize(
    "state",
    [
        (3, "|", None, ("a",), {"a": (np.dtype("f8"), 0)}, 8, 1, 27),
        (3, "|", (np.dtype("f4"), (2,)), None, None, 8, 1, 63),
    ],
)
def test_a_file_sets_no_flags_of_a_dtype(state: tuple[Any, ...], tmp_path: Path) -> None:
    assert "of several fields" in refused(encoder(), save(tmp_path, {"model": inner(1), "x": _FlaggedDtype(state)}))


class _Asks:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


class _Array:
    """Pickles as an array of a state."""

    def __init__(self, shape: tuple[Any, ...]) -> None:
        self.shape = shape

    def __reduce__(self) -> tuple[Any, ...]:
        function, arguments, _ = np.zeros(1).__reduce__()  # type: ignore[misc]
        return function, arguments, (1, self.shape, np.dtype("f4"), False, b"abcd")


def _doubled() -> list[Any]:
    """A short pickle whose text has 2**60 letters."""
    nested: list[Any] = ["a"]
    for _ in range(60):
        nested = [nested, nested]
    return nested


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (_Asks(Path, _doubled()), "a path of list"),
        (_Asks(np.dtype, _doubled()), "which is not a plain number"),
        (_Array(("a", 10**12)), "a damaged numpy array"),
    ],
    ids=["path", "dtype", "shape"],
)
def test_values_that_would_take_any_memory(value: Any, reason: str, tmp_path: Path) -> None:
    assert reason in refused(encoder(), save(tmp_path, {"model": inner(1), "x": value}))


def test_a_tensor_of_more_values_than_are_stored(tmp_path: Path) -> None:
    state = inner(1) | {"blocks.x": torch.zeros(1).expand(10**5, 10**6)}
    message = refused(encoder(), save(tmp_path, {"model": state}))
    assert "blocks.x is said to have the shape (100000, 1000000), and fewer values are stored" in message


def test_names_in_very_many_wrappers() -> None:
    tensor = torch.zeros(1)
    name = "module._orig_mod." * 100_000 + "blocks." + "_orig_mod." * 100_000 + "0.module.weight"
    start = time.monotonic()
    assert unwrapped({name: tensor}) == {"blocks.0.module.weight": tensor}
    assert time.monotonic() - start < 5


def test_unknown_places_are_as_before(tmp_path: Path) -> None:
    model: nn.Module = encoder()
    assert isinstance(model, PointMAE)
    with pytest.raises(CheckpointError, match=r"encoder tensors are missing.*no kind of file that is known here"):
        load_pretrained(model, save(tmp_path, named("a.b", "c.d")))
