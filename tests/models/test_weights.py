"""Where ``backbone.weights`` leads, and the files that pre-training writes."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import zipfile
import zlib
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from pointadapterx.build import build_backbone, build_model
from pointadapterx.checkpoints import shipped as weights_module
from pointadapterx.checkpoints.adapter_file import save_adapter
from pointadapterx.checkpoints.published import load_pretrained
from pointadapterx.checkpoints.shipped import (
    SHIPPED,
    find_weights,
    save_backbone,
    shipped_licence,
    shipped_weights,
)
from pointadapterx.config import read_config
from pointadapterx.errors import CheckpointError
from pointadapterx.files import read_safetensors, write_safetensors
from pointadapterx.quickstart.model import create_model
from pointadapterx.run_folder import WEIGHTS_FILE
from tests.conftest import ROOT, load_tool, randomise, small_config

OPTIONS = small_config("linear").backbone


def test_a_path_is_itself(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.touch()
    assert find_weights(str(file)) == file


@pytest.fixture(autouse=True)
def without_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the package of larger weights where it is installed: only one in a test's own folder is found."""

    def found(name: str) -> ModuleSpec | None:
        spec = find_spec(name)
        return spec if spec and spec.origin and Path(spec.origin).is_relative_to(tmp_path) else None

    monkeypatch.setattr(weights_module, "find_spec", found)


def test_shipped_weights_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "SHIPPED", tmp_path)
    (tmp_path / "some_backbone.safetensors").touch()
    assert shipped_weights() == ["some_backbone"]
    assert find_weights("some_backbone") == tmp_path / "some_backbone.safetensors"
    with pytest.raises(CheckpointError, match=r"some_bakbone: does not exist.*did you mean 'some_backbone'"):
        find_weights("some_bakbone")
    with pytest.raises(CheckpointError, match=r"or shipped weights\. Shipped: some_backbone"):
        find_weights("nothing_like_it")


def test_a_folder_is_not_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder, not a file; give the path"):
        find_weights(tmp_path)


@pytest.mark.parametrize("text", ["hf://", "hf://owner", "hf://owner/repository", "hf://owner/repository/"])
def test_a_hub_address_names_a_file(text: str) -> None:
    with pytest.raises(CheckpointError, match="is not of the form owner/repository/file or hf://owner/repository/file"):
        find_weights(text)


def test_a_hub_file_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def download(repository: str, file: str, revision: str | None) -> str:
        calls.append((repository, file, revision))
        return str(tmp_path / "cached")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert find_weights("hf://owner/repository/folder/file.pth") == tmp_path / "cached"
    find_weights("hf://owner/repository/file.pth@v2")
    assert calls == [("owner/repository", "folder/file.pth", None), ("owner/repository", "file.pth", "v2")]


def test_a_failed_download_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repository: str, file: str, revision: str | None) -> str:
        raise OSError("no route to host\nand much more")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(CheckpointError, match=r"could not be fetched \(no route to host\); check the name"):
        find_weights("hf://owner/repository/file.pth")


def test_a_backbone_survives_in_half_precision(tmp_path: Path) -> None:
    backbone = build_backbone(OPTIONS)
    save_backbone(backbone, tmp_path / "b.safetensors", OPTIONS, {"told": "story"})
    with safe_open(tmp_path / "b.safetensors", framework="pt") as file:
        metadata = file.metadata()
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16, torch.int64}  # noqa: SIM118
    assert json.loads(metadata["story"]) == {"told": "story"}
    assert json.loads(metadata["backbone"])["dim"] == 48
    other = build_backbone(OPTIONS.model_copy(update={"init_seed": 5}))
    class_token = other.cls_token.clone()
    report = load_pretrained(other, tmp_path / "b.safetensors")
    assert (report.missing, report.unexpected, report.coverage) == (["cls_position", "cls_token"], [], 1.0)
    assert torch.equal(other.cls_token, class_token)
    for name, tensor in backbone.state_dict().items():
        if name not in report.missing:
            assert torch.equal(other.state_dict()[name], tensor.half().to(tensor.dtype)), name


def test_sizes_that_no_shape_tells_must_agree(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_backbone(build_backbone(OPTIONS), tmp_path / "b.safetensors", OPTIONS, {})
    other = build_backbone(OPTIONS.model_copy(update={"num_heads": 6}))
    with pytest.raises(
        CheckpointError, match=r"pre-trained with num_heads=3, the backbone has 6; set backbone.num_heads=3"
    ):
        load_pretrained(other, tmp_path / "b.safetensors")
    load_pretrained(build_backbone(OPTIONS.model_copy(update={"group_size": 4})), tmp_path / "b.safetensors")
    assert "was pre-trained with group_size=8, the backbone has 4" in caplog.text


def test_what_half_precision_cannot_hold_is_refused(tmp_path: Path) -> None:
    backbone = build_backbone(OPTIONS)
    with torch.no_grad():
        backbone.norm.bias[0] = 1e6
    with pytest.raises(CheckpointError, match=r"norm\.bias is not finite in half precision"):
        save_backbone(backbone, tmp_path / "b.safetensors", OPTIONS, {})
    assert not list(tmp_path.iterdir())


def test_weights_of_a_run_of_full_fine_tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config("full", "vit")
    model = randomise(build_model(config))
    save_adapter(model, tmp_path / "adapter.safetensors", config=config, classes=[str(i) for i in range(10)])
    output = tmp_path / "backbone.safetensors"
    monkeypatch.setattr(sys, "argv", ["export_backbone.py", str(tmp_path), str(output)])
    assert load_tool("export_backbone").main() == 0
    fresh = build_backbone(config.backbone.model_copy(update={"weights": str(output)}))
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor.half().float()), name


def test_weights_of_a_run_that_left_the_backbone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config("linear", "vit")
    save_adapter(build_model(config), tmp_path / "adapter.safetensors", config=config, classes=["a"] * 10)
    monkeypatch.setattr(sys, "argv", ["export_backbone.py", str(tmp_path), str(tmp_path / "b.safetensors")])
    assert load_tool("export_backbone").main() == 2
    assert "method.name=linear leaves the backbone as it was; only full trains it" in capsys.readouterr().err


def test_eight_bits_round_by_half_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Written again from a file of weights, whose story stays; matrices are rounded by half a step at most."""
    half, eight = tmp_path / WEIGHTS_FILE, tmp_path / "eight.safetensors"
    backbone = build_backbone(OPTIONS)
    save_backbone(backbone, half, OPTIONS, {"told": "story"})
    for source in (half, tmp_path):  # the folder of a pre-training run
        monkeypatch.setattr(sys, "argv", ["export_backbone.py", str(source), str(eight), "--bits", "8"])
        assert load_tool("export_backbone").main() == 0
    assert eight.stat().st_size < 0.75 * half.stat().st_size  # of a small backbone, whose headers weigh much
    assert json.loads(read_safetensors(eight)[1]["story"]) == {"told": "story"}
    other = build_backbone(OPTIONS.model_copy(update={"init_seed": 5, "weights": str(eight)}))
    stored, coarse = read_safetensors(half)[0], 0
    for name, tensor in stored.items():
        found = other.state_dict()[name]
        if tensor.ndim < 2 or tensor.numel() < 1024:
            assert torch.equal(found, tensor.to(found.dtype)), name
            continue
        step = tensor.float().flatten(1).abs().amax(dim=1) / 127
        apart = (found - tensor.float()).flatten(1).abs().amax(dim=1)
        assert bool((apart <= 0.501 * step).all()), name
        coarse += 1
    assert coarse > 5
    tensors, metadata = read_safetensors(eight)
    name = next(name for name in tensors if name.endswith(".int8"))
    for change in ({name: tensors[name][:1]}, {name.replace(".int8", ".scale"): torch.tensor([float("nan")])}):
        write_safetensors(tmp_path / "bad.safetensors", tensors | change, metadata)
        with pytest.raises(
            CheckpointError, match="eight-bit numbers and their factors do not fit; copy the file again"
        ):
            load_pretrained(backbone, tmp_path / "bad.safetensors")


def test_the_package_of_larger_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its wheel, with a stand-in of small weights: names are found where it is installed, and said where it is not."""
    with pytest.raises(
        CheckpointError, match=r"point_mae_small: is in a package of its own, .*else pip install pointadapterx_w"
    ):
        find_weights("point_mae_small")
    source = tmp_path / "source"
    shutil.copytree(ROOT / "tools" / "weights_package", source, ignore=shutil.ignore_patterns("*.safetensors"))
    save_backbone(build_backbone(OPTIONS), source / weights_module.PACKAGE / "stand_in.safetensors", OPTIONS, {}, 8)
    (source / weights_module.PACKAGE / "stand_in.md").write_text(
        "| licence | CC BY 4.0, like the data; attribution below |\n\n**Attribution.** Somebody.\n"
    )
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(tmp_path),
    ]
    subprocess.run([*build, str(source)], check=True, capture_output=True)
    with zipfile.ZipFile(tmp_path / weights_module.WHEEL) as wheel:
        wheel.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert shipped_weights() == ["point_mae_tiny", "stand_in", "vit_tiny"]
    assert shipped_licence("stand_in") == ("CC BY 4.0, like the data", "Somebody.")
    assert load_pretrained(build_backbone(OPTIONS), "stand_in").coverage == 1.0


def test_every_shipped_file_has_a_card() -> None:
    assert {path.stem for path in SHIPPED.iterdir()} == set(shipped_weights())
    assert all((SHIPPED / f"{name}.md").is_file() for name in shipped_weights())


def check_shipped(name: str, config: str, limit: float) -> tuple[dict[str, Any], list[str], str]:
    """Story, words that the card must have, and card of shipped weights, which load into the config that names them."""
    path = find_weights(name)
    metadata = read_safetensors(path)[1]
    options = {**json.loads(metadata["backbone"]), "weights": None, "init_seed": 0, "drop_path": 0.0}
    shipped = read_config(config).backbone
    backbone = build_backbone(type(shipped).model_validate(options))
    assert load_pretrained(backbone, name).coverage == 1.0
    assert shipped.weights == name
    assert shipped.model_dump().items() >= json.loads(metadata["backbone"]).items()
    assert path.stat().st_size <= limit
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    return json.loads(metadata["story"]), [f"{parameters:,} parameters"], path.with_suffix(".md").read_text()


def test_point_mae_tiny_is_what_its_card_says() -> None:
    story, told, card = check_shipped("point_mae_tiny", "ldraw20", 6e6)
    record = story["record"]
    told += [f"epoch {record['epoch']}", f"{record['val_loss']:.5f}", "CC BY 4.0", "LDraw.org", "--probe"]
    for words in (*told, "--config cfgs/pretrain/point_mae_tiny.yaml"):
        assert words in card


def test_vit_tiny_is_what_its_card_says() -> None:
    story, told, card = check_shipped("vit_tiny", "vtab/digits", 4e6)
    told += [f"epoch {story['metrics']['epoch']}", f"{story['metrics']['val']['overall_accuracy']:.2f}", "MIT licence"]
    told += [f"{story['train']['epochs']} epochs", "Fashion-MNIST", "tools/export_backbone.py"]
    for words in (*told, "--config cfgs/pretrain/vit_tiny.yaml"):
        assert words in card


def test_point_mae_small_is_what_its_card_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by name where its package is, with the sizes of its config, and as the curves of its training end."""
    monkeypatch.setattr(weights_module, "find_spec", find_spec)
    monkeypatch.syspath_prepend(ROOT / "tools" / "weights_package")
    assert set(weights_module.LARGER) <= set(shipped_weights())
    path = find_weights("point_mae_small")
    story = json.loads(read_safetensors(path)[1]["story"])
    model = create_model("point_mae_small", method="linear", num_classes=3)
    assert load_pretrained(model.backbone, path).coverage == 1.0
    parameters = sum(parameter.numel() for parameter in model.backbone.parameters())
    told = [f"{parameters:,} parameters", f"{story['data']['clouds']:,} to train on"]
    told += [f"{path.stat().st_size / 1e6:.1f} MB", f"then {story['config']['train']['epochs']} in batches of 32"]
    card = path.with_suffix(".md").read_text()
    for words in (*told, "--bits 8", "https://creativecommons.org/licenses/by/3.0/"):
        assert words in card, words
    licence, attribution = shipped_licence("point_mae_small")
    assert licence == "CC BY 4.0"
    assert all(name in attribution for name in ("LDraw.org", "Scopia", "Reallusion", "Robotics", "Quaternius"))
    with (ROOT / "docs" / "results" / "point_mae_small" / "history.csv").open() as file:
        *_, last = csv.DictReader(file)
    assert float(last["val_loss"]) == pytest.approx(story["record"]["val_loss"])


def test_the_package_stays_small() -> None:
    """Compressed as in a wheel, of which clouds and weights are nearly all.

    16 MB is the bound, and for data sets that came later, 10, 4 and 1.5 MB.
    """
    packages = [ROOT / "datasets", ROOT / "pointadapterx", ROOT / "cfgs", ROOT / "extensions"]
    embedded = ROOT / "datasets" / "embedded"
    sizes = dict.fromkeys(["ldraw_parts", "home", "blood", ""], 0)
    for file in (file for folder in packages for file in folder.rglob("*") if file.is_file() and file.suffix != ".pyc"):
        own = next((name for name in sizes if name and file.is_relative_to(embedded / name)), "")
        sizes[own] += len(zlib.compress(file.read_bytes()))
    assert 0 < sizes["ldraw_parts"] < 10e6
    assert 0 < sizes["home"] < 4e6
    assert 0 < sizes["blood"] < 1.5e6
    assert sizes[""] < 16e6
