"""Whatever is wrong with what a user gives: one clear error, exit status 2, and nothing written over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pointadapterx.build import build_backbone, build_model
from pointadapterx.checkpoints.adapter_file import save_adapter
from pointadapterx.commands.main import main
from pointadapterx.config import dump_config
from pointadapterx.datasets.ldraw20 import LDRAW20_CLASSES
from pointadapterx.datasets.scanobjectnn import SCANOBJECTNN_CLASSES
from pointadapterx.files import read_safetensors
from tests.conftest import small_config
from tests.synthetic import clouds, write_ldraw20


class Case(NamedTuple):
    """One kind of bad input.

    Attributes:
        prepare: makes it in the folder, where good input lies already.
        arguments: of the command line; ``{}`` stands for the folder.
        says: what the message must hold; ``{}`` again.
    """

    prepare: Callable[[Path], object]
    arguments: str
    says: tuple[str, ...]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Good input: config.yaml, data/, weights.safetensors, adapter.safetensors."""
    write_ldraw20(tmp_path / "data", train_per_class=3, test_per_class=1, num_points=160)
    config = small_config(data={"root": str(tmp_path / "data")}, train={"epochs": 1})
    (tmp_path / "config.yaml").write_text(dump_config(config))
    model = build_model(config)
    save_file({name: t.clone() for name, t in model.backbone.state_dict().items()}, tmp_path / "weights.safetensors")
    save_adapter(model, tmp_path / "adapter.safetensors", config=config, classes=LDRAW20_CLASSES)
    return tmp_path


def contents(folder: Path) -> dict[Path, bytes | None]:
    """Every file and folder below, with the bytes of the files."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def nothing(folder: Path) -> None:
    """The arguments alone are wrong."""


def config(text: str) -> Callable[[Path], object]:
    """Another file, that includes the good config."""
    return lambda folder: (folder / "bad.yaml").write_text(f"_base_: config.yaml\n{text}")


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def truncate(name: str) -> Callable[[Path], object]:
    def cut(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return cut


def tensors(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Changes the tensors of a safetensors file, its metadata kept."""

    def edit(folder: Path) -> None:
        content, metadata = load_file(folder / name), read_safetensors(folder / name)[1]
        change(content)
        save_file(content, folder / name, metadata)

    return edit


def metadata(**changes: Any) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        content, story = read_safetensors(folder / "adapter.safetensors")
        save_file(content, folder / "adapter.safetensors", story | {k: json.dumps(v) for k, v in changes.items()})

    return edit


def torch_file(content: Callable[[Path], Any]) -> Callable[[Path], object]:
    return lambda folder: torch.save(content(folder), folder / "weights.pth")


def data(change: Callable[[h5py.File], object], split: str = "test") -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        with h5py.File(folder / "data" / f"{split}.h5", "r+") as file:
            change(file)

    return edit


def replace(key: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[h5py.File], object]:
    def edit(file: h5py.File) -> None:
        values = change(file[key][:])
        del file[key]
        file[key] = values

    return edit


def poke(where: Any, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def edit(values: np.ndarray) -> np.ndarray:
        values[where] = value
        return values

    return edit


def scanobjectnn(label: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], object]:
    """OBJ_BG files, with the test labels changed."""

    def make(folder: Path) -> None:
        (folder / "data" / "main_split").mkdir()
        for split, name in (("train", "training"), ("test", "test")):
            points, labels = clouds(split, range(len(SCANOBJECTNN_CLASSES)), 2, 160)
            with h5py.File(folder / "data" / "main_split" / f"{name}_objectdataset.h5", "w") as file:
                file["data"], file["label"] = points, label(labels)

    return make


def run_folder(*files: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        (folder / "run").mkdir()
        for name in files:
            (folder / "run" / name).write_text("not what it should be")

    return make


def damaged_run(folder: Path) -> None:
    run_folder("state.safetensors")(folder)
    (folder / "run" / "config.yaml").write_bytes((folder / "config.yaml").read_bytes())


class Code:
    """An object whose unpickling runs code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("the checkpoint ran code",)


def nan_bias(folder: Path) -> Any:
    state = load_file(folder / "weights.safetensors")
    state["norm.bias"][0] = float("nan")
    return state


def other_backbone(folder: Path) -> None:
    backbone = build_backbone(small_config("linear", backbone={"init_seed": 9}).backbone)
    save_file({name: t.clone() for name, t in backbone.state_dict().items()}, folder / "other.safetensors")


def wide(folder: Path) -> Any:
    return build_backbone(small_config("linear", backbone={"dim": 96, "encoder_dim": 96}).backbone).state_dict()


TRAIN = "--config {}/config.yaml --output {}/run"
BAD = "--config {}/bad.yaml --output {}/run"
PTH = f"{TRAIN} backbone.weights={{}}/weights.pth"
OWN = f"{TRAIN} backbone.weights={{}}/weights.safetensors"
TEST = "--test {}/adapter.safetensors"
SCAN = f"{TRAIN} data.name=scanobjectnn data.variant=obj_bg head.num_classes=15"

CASES = {
    # configs
    "no such config": Case(nothing, "--config {}/none.yaml", ("{}/none.yaml: no such config", "Shipped: best, blood_")),
    "not YAML": Case(config("train: [1"), BAD, ("{}/bad.yaml:2: not valid YAML", "expected")),
    "binary config": Case(write("bad.yaml", b"\x89PNG\xff\xfe"), BAD, ("{}/bad.yaml", "not valid YAML")),
    "impossible date": Case(config("data: {root: 2024-13-45}"), BAD, ("{}/bad.yaml", "not valid YAML", "month")),
    "endless alias": Case(config("train: &t {lr: *t}"), BAD, ("{}/bad.yaml", "alias (*)", "anchor (&)")),
    "config is a list": Case(write("bad.yaml", b"- train\n"), BAD, ("{}/bad.yaml", "mapping of sections", "list")),
    "base missing": Case(write("bad.yaml", b"_base_: nope.yaml\n"), BAD, ("{}/bad.yaml", "_base_ names nope.yaml")),
    "base in a circle": Case(write("bad.yaml", b"_base_: bad.yaml\n"), BAD, ("includes itself: bad.yaml -> bad.yaml",)),
    "key twice": Case(config("train:\n  lr: 1\n  lr: 2\n"), BAD, ("bad.yaml:4: train.lr is set twice", "remove one")),
    "unknown key": Case(config("train: {epoch: 3}\n"), BAD, ("bad.yaml:2: train.epoch", "did you mean 'epochs'?")),
    "unknown section": Case(config("optim: {}\n"), BAD, ("bad.yaml:2: optim: unknown section", "Known: backbone")),
    "number as a key": Case(config("3: x\n"), BAD, ("bad.yaml:2: 3: unknown section",)),
    "unknown method": Case(config("method: {name: dabt}\n"), BAD, ("'dabt'", "did you mean 'dapt'?")),
    "list as a name": Case(config("method: {name: [dapt]}\n"), BAD, ("unknown name ['dapt']", "Known: adapter, ")),
    "wrong type": Case(nothing, f"{TRAIN} train.epochs=many", ("override train.epochs=many", "not 'many'")),
    "method in capitals": Case(
        nothing, f"{TRAIN} method.name=LoRA", ("unknown name 'LoRA'; did you mean 'lora'? Known",)
    ),
    "method like no other": Case(nothing, f"{TRAIN} method.name=xyz", ("unknown name 'xyz'. Known: adapter, ",)),
    "out of range": Case(nothing, f"{TRAIN} train.lr=-1", ("train.lr", "greater than 0, not -1")),
    "malformed override": Case(nothing, f"{TRAIN} epochs", ("override 'epochs' is not of the form section.key=value",)),
    "heads do not divide": Case(nothing, f"{TRAIN} backbone.num_heads=5", ("5 heads do not divide dim=48",)),
    "unknown augmentation": Case(nothing, f"{TRAIN} data.augment=rotate", ("data.augment", "did you mean 'rotation'?")),
    "prompts of no one": Case(
        nothing, f"{TRAIN} method.prompts=false", ("prompt_mean needs prompt tokens", "remove it")
    ),
    "fp16 without a GPU": Case(nothing, f"{TRAIN} train.precision=fp16", ("fp16 needs a CUDA device", "bf16 or fp32")),
    # checkpoints
    "no such weights": Case(nothing, PTH, ("{}/weights.pth: does not exist",)),
    "weights are a folder": Case(lambda f: (f / "weights.pth").mkdir(), PTH, ("weights.pth: is a folder",)),
    "weights are a web page": Case(
        write("weights.pth", b"<html>"), PTH, ("not a readable checkpoint", "copy it again")
    ),
    "weights run code": Case(torch_file(lambda f: {"a": Code()}), PTH, ("weights.pth", "print", "refused", "re-save")),
    "no state dict": Case(torch_file(lambda f: {"epoch": 3}), PTH, ("holds no state dict (found: epoch)", "expected")),
    "of another model": Case(
        torch_file(lambda f: {"conv1.weight": torch.zeros(3)}), PTH, ("encoder tensors are missing", "conv1.weight")
    ),
    "wider weights": Case(
        torch_file(wide), PTH, ("dim 96 (the backbone: 48)", "set backbone.dim=96 backbone.encoder_dim=96")
    ),
    "NaN in the weights": Case(torch_file(nan_bias), PTH, ("weights.pth: norm.bias holds", "NaN")),
    "truncated weights": Case(
        truncate("weights.safetensors"), OWN, ("weights.safetensors: not a readable", "truncated")
    ),
    "weight missing": Case(
        tensors("weights.safetensors", lambda t: t.pop("norm.bias")),
        OWN,
        ("1 encoder tensors are missing, first norm.bias",),
    ),
    # adapters
    "no such adapter": Case(nothing, "--test {}/none.safetensors", ("{}/none.safetensors: no such run or file",)),
    "folder without adapter": Case(nothing, "--test {}/data", ("/data: holds no adapter", "a run's folder")),
    "weights as an adapter": Case(
        nothing, "--test {}/weights.safetensors", ("is not an adapter file", "belong in backbone.weights")
    ),
    "truncated adapter": Case(
        truncate("adapter.safetensors"), TEST, ("adapter.safetensors: not a readable", "copy it")
    ),
    "pickle as an adapter": Case(
        lambda f: torch.save({"a": 1}, f / "adapter.safetensors"), TEST, ("not a readable safetensors file",)
    ),
    "adapter of another backbone": Case(
        other_backbone,
        f"{TEST} backbone.weights={{}}/other.safetensors",
        ("belongs to the backbone with hash", "set backbone.weights"),
    ),
    "test with another method": Case(
        nothing, f"{TEST} method.name=dapt", ("method.name=dapt: a test keeps the adapter's model", "may change")
    ),
    "test with another backbone size": Case(
        nothing, f"{TEST} backbone.depth=3", ("backbone.depth=3: a test keeps the adapter's model",)
    ),
    "NaN in the adapter": Case(
        tensors("adapter.safetensors", lambda t: t["head.mlp.0.bias"].fill_(float("nan"))),
        TEST,
        ("head.mlp.0.bias", "NaN"),
    ),
    "other classes": Case(metadata(classes=["a"] * 20), TEST, ("was trained on other classes (a, a, a",)),
    "damaged story": Case(metadata(metrics=[]), TEST, ("adapter.safetensors: its metadata is damaged", "copy")),
    # clouds
    "NaN in a cloud": Case(
        data(replace("data", poke((3, 5, 1), np.nan))), TRAIN, ("test.h5", "cloud 3 holds NaN or infinite coordinates")
    ),
    "infinite cloud": Case(
        data(replace("data", poke((2, 0, 0), np.inf)), "train"), TRAIN, ("train.h5", "cloud 2 holds NaN or infinite")
    ),
    "flat clouds": Case(data(replace("data", lambda x: x[..., :2])), TRAIN, ("test.h5", "(20, 160, 2), expected")),
    "no clouds": Case(data(replace("data", lambda x: x[:0])), TRAIN, ("test.h5", "there is no cloud")),
    "too few points": Case(nothing, f"{TRAIN} data.num_points=161", ("data.num_points=161 exceeds the 160 points",)),
    "fewer points than groups": Case(
        nothing, f"{TRAIN} data.num_points=10", ("backbone.num_groups: 16 exceeds data.num_points=10", "lower it")
    ),
    "adaptation to a folder": Case(
        nothing, f"{TRAIN} data.name=folder", ("has no labels, so it is for pre-training", "put files")
    ),
    "too few clouds for a task": Case(
        nothing,
        f"{TRAIN} data.few_shot.ways=5 data.few_shot.shots=4 head.num_classes=5",
        ("data.few_shot.ways=5: only 0 of 20 classes have 4 training samples", "lower one of these keys"),
    ),
    "task of another size": Case(
        nothing,
        f"{TRAIN} data.few_shot.ways=5 data.few_shot.shots=1",
        ("head.num_classes: 20, but data.few_shot has 5 classes",),
    ),
    # data files
    "no data": Case(nothing, f"{TRAIN} data.root={{}}/nowhere", ("{}/nowhere", "missing")),
    "truncated data": Case(truncate("data/test.h5"), TRAIN, ("{}/data/test.h5", "truncated or damaged")),
    "LFS pointer": Case(
        write("data/train.h5", b"version https://git-lfs.github.com/spec/v1\n"),
        TRAIN,
        ("data/train.h5", "git lfs pull"),
    ),
    "web page as data": Case(write("data/train.h5", b"<!DOCTYPE html>"), TRAIN, ("data/train.h5", "web page")),
    "label out of range": Case(
        data(replace("label", poke(4, 20))), TRAIN, ("test.h5", "cloud 4 has label 20, expected 0 to 19")
    ),
    "labels missing": Case(data(lambda f: f.pop("label")), TRAIN, ("test.h5", "no data set 'label' in it")),
    "labels of another set": Case(
        scanobjectnn(lambda label: label + 1), SCAN, ("objectdataset.h5", "has label 15, expected 0 to 14")
    ),
    # run folders
    "run exists": Case(run_folder("config.yaml"), TRAIN, ("{}/run: already holds a run", "--resume", "--output")),
    "nothing to resume": Case(run_folder(), "--resume {}/run", ("{}/run: holds no run to resume", "config.yaml")),
    "resume with other settings": Case(run_folder(), "--resume {}/run train.lr=1", ("train.lr=1", "keeps its config")),
    "output below a file": Case(
        nothing, "--config {}/config.yaml --output {}/config.yaml/run", ("config.yaml/run", "--output")
    ),
    "damaged state": Case(
        damaged_run,
        "--resume {}/run",
        ("run/state.safetensors: not a readable safetensors file",),
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_bad_input(kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES[kind]
    if "fp16" in case.arguments and torch.cuda.is_available():
        pytest.skip("fp16 is fine on this machine")
    case.prepare(folder)
    before = contents(folder)
    status = main([argument.format(folder, folder) for argument in case.arguments.split()])
    printed = capsys.readouterr()
    assert status == 2, printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("error: ") == 1
    assert "Traceback" not in printed.err + printed.out
    assert "ran code" not in printed.out
    for part in case.says:
        assert part.format(folder) in printed.err
    assert contents(folder) == before


def test_the_good_input_is_good(folder: Path) -> None:
    """Else every case above could fail for a reason of its own."""
    assert main([argument.format(folder, folder) for argument in OWN.split()]) == 0
    assert main([*(argument.format(folder) for argument in TEST.split()), "--output", str(folder / "tested")]) == 0
    assert (folder / "run" / "metrics.json").is_file()
    assert (folder / "tested" / "test.json").is_file()


@pytest.mark.parametrize(
    ("points", "says"),
    [
        (torch.zeros(2, 128), r"shape \(2, 128\), expected \(B, N, 3\)"),
        (torch.zeros(2, 30, 128), r"shape \(2, 30, 128\), expected \(B, N, 3\).*transpose"),
        (torch.zeros(2, 128, 6), r"6 values per point; pass points\[..., :3\]"),
        (torch.zeros(2, 128, 3, dtype=torch.int64), r"points has dtype torch.int64.*pass points.float\(\)"),
        (torch.zeros(2, 128, 3).fill_(float("nan")), "points"),
        (torch.zeros(2, 5, 3), "num_groups=16 exceeds the 5 input points; lower backbone.num_groups"),
    ],
)
def test_clouds_that_no_model_takes(points: torch.Tensor, says: str) -> None:
    with pytest.raises((ValueError, TypeError), match=says):
        build_model(small_config()).eval()(points)
