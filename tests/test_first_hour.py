"""From a folder of meshes to predictions by the commands on the README's first screen, as a newcomer would."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pointadapterx import Predictor
from pointadapterx.build import build_splits
from pointadapterx.checkpoints.adapter_file import read_adapter
from pointadapterx.checkpoints.shipped import ADAPTERS, READY
from pointadapterx.commands.main import main
from pointadapterx.config import read_config
from pointadapterx.errors import CheckpointError
from pointadapterx.peft import METHODS
from pointadapterx.quickstart.ending import interval
from pointadapterx.quickstart.fitting import fitting
from pointadapterx.quickstart.folder_run import with_parts
from pointadapterx.quickstart.own_data import read_entries, stored_points
from pointadapterx.run_folder import read_metrics
from tests.conftest import ROOT

trimesh = pytest.importorskip("trimesh")

FIRST_SCREEN = 60  # lines
A_CLASS = 6  # meshes


def box(extents: tuple[float, float, float], at: tuple[float, float, float] = (0, 0, 0)) -> trimesh.Trimesh:
    return trimesh.creation.box(extents, trimesh.transformations.translation_matrix(at))


def legs(wide: float, deep: float, high: float) -> list[trimesh.Trimesh]:
    """Four, below y = 0."""
    return [box((0.06, high, 0.06), (x * wide / 2, -high / 2, z * deep / 2)) for x in (-1, 1) for z in (-1, 1)]


def board(wide: float, deep: float, at: float = 0.0) -> trimesh.Trimesh:
    return box((wide, 0.05, deep), (0, at, 0))


def pole(radius: float, high: float, at: float = 0.0) -> trimesh.Trimesh:
    upright = trimesh.creation.cylinder(radius, high, sections=16)
    upright.apply_transform(trimesh.transformations.rotation_matrix(np.pi / 2, (1, 0, 0)))
    upright.apply_translation((0, at, 0))
    return upright


def ball(radius: float, at: float) -> trimesh.Trimesh:
    found = trimesh.creation.icosphere(2, radius)
    found.apply_translation((0, at, 0))
    return found


Parts = list[trimesh.Trimesh]
FURNITURE: dict[str, Callable[[float], Parts]] = {
    "table": lambda s: [board(1.6 * s, 0.9), *legs(1.5 * s, 0.8, 0.7)],
    "desk": lambda s: [board(1.4 * s, 0.7), box((0.05, 0.7, 0.7), (-0.65 * s, -0.35, 0)), *legs(1.3 * s, 0.6, 0.7)[2:]],
    "chair": lambda s: [board(0.45, 0.45), *legs(0.4, 0.4, 0.45), box((0.45, 0.5 * s, 0.05), (0, 0.25 * s, -0.2))],
    "stool": lambda s: [board(0.4 * s, 0.4 * s), *legs(0.3 * s, 0.3 * s, 0.5)],
    "bench": lambda s: [board(1.8 * s, 0.35), *legs(1.7 * s, 0.3, 0.4)],
    "shelf": lambda s: (
        [box((0.05, 1.8, 0.3), (x * 0.4 * s, 0, 0)) for x in (-1, 1)]
        + [board(0.8 * s, 0.3, at) for at in (-0.85, -0.4, 0.05, 0.5, 0.85)]
    ),
    "bed": lambda s: [box((1.4 * s, 0.35, 2.0)), box((1.4 * s, 0.8, 0.06), (0, 0.3, -1.0))],
    "wardrobe": lambda s: [box((1.0 * s, 2.0, 0.6))],
    "sofa": lambda s: [
        *(box((1.8 * s, 0.4, 0.8)), box((1.8 * s, 0.5, 0.2), (0, 0.4, -0.3))),
        *(box((0.2, 0.3, 0.8), (x * 0.8 * s, 0.3, 0)) for x in (-1, 1)),
    ],
    "lamp": lambda s: [pole(0.15, 0.04, -0.7), pole(0.02, 1.4), trimesh.creation.cone(0.25 * s, 0.3)],
    "mirror": lambda s: [box((0.6 * s, 1.5, 0.03))],
    "coat_rack": lambda s: [pole(0.03, 1.7 * s), ball(0.08, 0.85 * s), *legs(0.5, 0.5, 0.85)],
}


@pytest.fixture
def furniture(tmp_path: Path) -> Path:
    """A folder for each of 12 classes, with a few meshes of different sizes, and none for a test."""
    rng = np.random.default_rng(0)
    for name, build in FURNITURE.items():
        (tmp_path / "furniture" / name).mkdir(parents=True)
        for number in range(A_CLASS):
            mesh = trimesh.util.concatenate(build(rng.uniform(0.8, 1.25)))
            mesh.apply_scale(rng.uniform(0.9, 1.1, 3))
            mesh.export(tmp_path / "furniture" / name / f"{number}.{('obj', 'stl', 'off', 'ply')[number % 4]}")
    return tmp_path / "furniture"


def test_three_commands_lead_from_meshes_to_predictions(
    furniture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy("furniture/chair/0.obj", "furniture/stool/twin.obj")  # to be found doubtful
    assert main(["predict", "furniture/chair/0.obj"]) == 0  # before anything is trained
    said = capsys.readouterr()
    assert re.search(
        r"ldraw20 answers, which is shipped and knows 20 classes of CAD parts \(plate, brick, …\)", said.err
    )
    assert said.out.startswith("furniture/chair/0.obj: ")

    few = ["data.num_points=256", "data.stored_points=512", "train.epochs=2"]
    assert main(["train", "furniture", "--output", "run", *few]) == 0
    said = capsys.readouterr()
    assert "furniture: a folder for each class, of which 20 % are kept for the test; 12 classes (bed, bench" in said.out
    assert re.search("doubtful: .*chair/0.obj.*stool/twin.obj", said.out)
    assert re.search(r"test: \d+\.\d % of 12 clouds are right, 95 % interval \d+ to \d+ %", said.out)
    assert "next: pointadapterx predict run FILES" in said.out
    report = read_metrics(Path("run"))
    assert report["method"] == "dapt_x"
    assert sum(entry["count"] for entry in report["test"]["per_class"].values()) == 12
    if Path("run/pictures").exists():
        assert {"confusion.png", "mistakes.png"} >= {path.name for path in Path("run/pictures").iterdir()}

    ending = re.sub("pictures: .*\n", "", said.out[said.out.index("\ntest:") :])
    shutil.rmtree("run/pictures", ignore_errors=True)
    assert main(["resume", "run"]) == 0
    assert capsys.readouterr().out.endswith(ending)
    assert not Path("run/pictures").exists()  # a finished run stays as it is

    assert main(["predict", "run", "furniture/chair", "--output", "found.csv"]) == 0
    rows = Path("found.csv").read_text().splitlines()
    assert len(rows) == 1 + A_CLASS


def test_the_commands_are_on_the_first_screen() -> None:
    screen = "\n".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:FIRST_SCREEN])
    for command in (r"predict \S+\.ply", r"train \S+ --output \S+", r"predict runs/\S+ \S+"):
        assert re.search(rf"^pointadapterx {command}", screen, re.MULTILINE), command


def test_the_readme_counts_the_methods() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"\n| methods that train few parameters | {len(METHODS)} |" in text
    assert {17: "Seventeen methods"}[len(METHODS)] in text


def test_the_first_screen_and_the_tutorial_write_into_different_folders() -> None:
    """Whoever follows both would be refused by the second."""
    pages = [(ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/tutorial.md")]
    written = [set(re.findall(r"--output (\S+)", page)) for page in pages]
    assert written[0]
    assert not written[0] & written[1]


@pytest.mark.parametrize(
    ("here", "arguments", "message"),
    [
        ("demo", ["demo"], "demo is a folder here and a shipped config: give ./demo or --config demo"),
        ("scans", ["nowhere"], "nowhere: no such folder, file or shipped config; give a folder with a folder for each"),
        ("scans", ["demmo"], "demmo: no such folder, file or shipped config; did you mean 'demo'?"),
        ("scans", ["scans", "--config", "demo"], "--config demo: is of the data set ldraw20, not of clouds by class"),
        ("scans", [], "give FOLDER (your own files), --config FILE (for example --config demo) or --resume RUN"),
        ("scans", ["scans"], "scans: is empty, with no file in it or below; choose a folder"),
        ("scans/a.ply", ["scans/a.ply"], "scans/a.ply: a single file is no data set; give a folder"),
        ("pictures/cat/1.png", ["pictures"], "pictures: holds pictures (1), not clouds; train on"),
    ],
)
def test_what_cannot_be_trained_on_is_one_line(
    here: str,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(here)
    (path.parent if path.suffix else path).mkdir(parents=True)
    if path.suffix:
        path.touch()
    try:
        status = main(["train", *arguments])
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_a_config_can_be_named_without_a_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "demo", "train.epochs=0", "--output", str(tmp_path / "run")]) == 2
    assert "override train.epochs=0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], {}),
        (["train.epochs=20"], {}),
        (["train.epochs=5"], {"train.early_stopping": None}),
        (["train.epochs=1"], {"train.early_stopping": None, "train.warmup_epochs": 0}),
        (["train.epochs=5", "train.early_stopping=2"], {}),
        (["eval.every=10"], {"train.early_stopping": None}),
        (["eval.protocol=last"], {"train.early_stopping": None}),
        (["train.epochs=few"], {}),  # refused by its own name
    ],
)
def test_what_nobody_asked_for_gives_way_to_what_is_overridden(
    overrides: list[str], expected: dict[str, object], tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "0.npy", np.eye(3))
    start = read_config("own", ["data.name=folder", f"data.root={tmp_path}"])
    assert fitting(start.train, start.eval, overrides) == expected


@pytest.mark.parametrize(
    ("classes", "clouds", "expected"),
    [
        (3, 4, {"protocol": "last", "early_stopping": None, "val_fraction": 0.2}),  # 3 to learn each class from
        (5, 5, {"protocol": "validation", "early_stopping": 12, "val_fraction": 0.25}),  # one of 4 each
        (3, 12, {"protocol": "validation", "early_stopping": 12, "val_fraction": 0.2}),
    ],
)
def test_the_validation_part_suits_the_number_of_clouds(
    classes: int, clouds: int, expected: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for number in range(classes):
        (tmp_path / f"class_{number}").mkdir()
        for cloud in range(clouds):
            np.save(tmp_path / f"class_{number}" / f"{cloud}.npy", rng.normal(size=(64, 3)))
    given = [f"data.root={tmp_path}", "data.name=folder", "data.num_points=64", "data.stored_points=64"]
    found = with_parts(read_config("own", given), [])
    assert {**found.eval.model_dump(), **found.train.model_dump()}.items() >= expected.items()
    assert ("too few to set some aside" in capsys.readouterr().out) == (expected["protocol"] == "last")
    assert build_splits(found).test is not None
    assert with_parts(found, ["eval.val_fraction=0.3"]) is found


@pytest.mark.parametrize(
    ("sizes", "overrides", "expected"),
    [
        ((80, 90), [], 80),
        ((80, 200), [], 80),
        ((80, 90), ["data.stored_points=72"], None),  # enough
        ((120, 128), [], None),  # a few doubles do no harm
        ((50, 90), [], None),  # too few for the model: refused by name
    ],
)
def test_small_clouds_lower_the_points_that_are_kept(
    sizes: tuple[int, int], overrides: list[str], expected: int | None, tmp_path: Path
) -> None:
    for name, size in zip("ab", sizes, strict=True):
        (tmp_path / name).mkdir()
        cloud = np.random.default_rng(size).normal(size=(size, 3))
        np.save(tmp_path / name / "0.npy", np.concatenate([cloud, cloud[: max(0, 128 - size)]]))
    given = [f"data.root={tmp_path}", "data.name=folder", "data.num_points=64", "data.stored_points=128", *overrides]
    data = read_config("own", given).data
    assert stored_points(data, read_entries(data)) == expected


@pytest.mark.parametrize(
    ("right", "groups", "low", "high"),
    [
        ([True] * 36, None, 90.4, 100),
        ([True] * 9 + [False], None, 59.6, 98.2),
        ([True] * 36, [*range(9)] * 4, 70.1, 100),  # no more than nine objects
        ([True, True, False, False], [0, 0, 1, 1], 0, 100),
    ],
)
def test_the_interval_of_few_clouds_is_wide(
    right: list[bool], groups: list[int] | None, low: float, high: float
) -> None:
    found = interval(np.array(right), None if groups is None else np.array(groups))
    assert found == pytest.approx((low, high), abs=0.1)


def test_the_ready_adapter_is_what_its_card_says() -> None:
    info = read_adapter("ldraw20")
    card = info.path.with_suffix(".md").read_text(encoding="utf-8")
    assert info.path.parent == ADAPTERS
    assert info.path.stat().st_size < 300_000
    assert info.config.backbone.weights == "point_mae_tiny"
    assert info.config.data.root is None
    story = (", ".join(info.classes), f"{info.config.train.epochs} epochs, seed 0", f"epoch {info.metrics['epoch']}")
    for words in (*story, "rotation and scale-and-translate", "CC BY 4.0", "train.epochs=40"):
        assert words in card
    assert info.metrics["val"]["count"] == 162


def test_a_shipped_adapter_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    points = np.random.default_rng(0).normal(size=(1500, 3))
    by_name, by_path = (Predictor(adapter)(points)[0] for adapter in ("ldraw20", ADAPTERS / "ldraw20.safetensors"))
    assert by_name.probabilities == by_path.probabilities
    (tmp_path / "ldraw20").mkdir()  # one's own folder comes first
    with pytest.raises(CheckpointError, match="ldraw20: holds no adapter"):
        read_adapter("ldraw20")


def test_the_ready_adapter_answers_beside_a_folder_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / READY).mkdir()
    np.save("scan.npy", np.random.default_rng(0).normal(size=(300, 3)))
    assert main(["predict", "scan.npy"]) == 0
    printed = capsys.readouterr()
    assert f"so {READY} answers" in printed.err
    assert printed.out.startswith("scan.npy: ")


def test_own_files_and_another_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the folder wants, and shorter training, is fitted as without a config."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("ball", "disc"):
        Path("shapes", name).mkdir(parents=True)
        for number in range(6):
            points = rng.normal(size=(1100, 3)) * (1, 1, 1 if name == "ball" else 0.1)
            np.save(Path("shapes", name, f"{number}.npy"), points)
    Path("mine.yaml").write_text("_base_: own\nmethod:\n  rank: 3\n", encoding="utf-8")
    assert main(["train", "shapes", "--config", "mine.yaml", "train.epochs=1", "--output", "run"]) == 0
    said = capsys.readouterr().out
    assert "1,100 points of each file are kept" in said
    config = read_config(Path("run", "config.yaml"), [])
    assert (config.method.rank, config.data.stored_points, config.train.early_stopping) == (3, 1100, None)
    assert main(["train", "shapes", "--config", "demo"]) == 2
    assert "--config demo: is of the data set ldraw20, not of clouds by class" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "mine.yaml", "--config", "demo"])
    assert "choose one of mine.yaml and --config" in capsys.readouterr().err
