"""Semantic segmentation: training on blocks, two ways to count a test, tiles of scenes of any size."""

from __future__ import annotations

import csv
import json
import re
import tracemalloc
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pointadapterx.build import build_model, build_splits
from pointadapterx.checkpoints.adapter_file import save_adapter
from pointadapterx.commands.main import main
from pointadapterx.config import Config
from pointadapterx.datasets import Scenes, build_dataset
from pointadapterx.datasets.grid import Grid
from pointadapterx.datasets.inputs import Batch
from pointadapterx.engine import devices
from pointadapterx.engine.input_form import Failure
from pointadapterx.engine.predictor import Predictor
from pointadapterx.errors import CheckpointError, ConfigError, DataError
from pointadapterx.jobs import test as run_test
from pointadapterx.jobs import train, training
from pointadapterx.study.comparability import test_words as words_of
from pointadapterx.tasks import SemanticSegmentation, build_task
from pointadapterx.tasks.exchange import Predictions
from pointadapterx.tasks.point_segmentation import PointFacts
from pointadapterx.tasks.tiles import PADDING, Tiling
from pointadapterx.tasks.weighting import weights_of_counts
from tests.resuming import assert_resumes_bit_identical
from tests.rooms import CLASSES, TEST, TRAIN, rooms_config, write_rooms


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rooms."""
    return write_rooms(tmp_path_factory.mktemp("rooms"))


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, which has learnt what is high and what is low."""
    out = tmp_path_factory.mktemp("run") / "run"
    config = rooms_config("full", folder, train={"epochs": 8, "lr": 5e-3, "class_weights": "cube_root"})
    return train(config, "test", out, devices.make_accelerator("fp32"))


def test_a_run_on_blocks(run: Path) -> None:
    """Samples are blocks, groups are rooms, and every figure says how the test counts."""
    report = json.loads((run / "metrics.json").read_text())
    assert report["evaluation"].startswith("blocks: random blocks of the test scenes")
    assert report["test"]["count"] == sum(TEST) // 128
    assert report["test"]["miou"] > 30  # a class of the four is nowhere, and does not count
    assert report["test"]["per_class"]["lamp"] == {"iou": None, "accuracy": None, "points": 0}
    points = sum(entry["points"] for entry in report["test"]["per_class"].values())
    assert points == 128 * report["test"]["count"]
    with (run / "sample_records.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["group"] for row in rows} == {"0", "1"}
    assert len(rows) == report["test"]["count"]


def test_rooms_are_another_way_to_count(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every point of every room once; the adapter is the same, and the name is printed with the figures."""
    overrides = ["task.test=rooms", "task.votes=2"]
    report = run_test(run, overrides, None, False, tmp_path / "rooms")
    said = "rooms: every point of whole scenes, by tiles of 1 every 0.5, majority of all labels of 2 passes"
    assert report["evaluation"] == said
    assert said in " ".join(capsys.readouterr().out.split())
    assert report["test"]["count"] == len(TEST)
    assert sum(entry["points"] for entry in report["test"]["per_class"].values()) == sum(TEST)
    with (tmp_path / "rooms" / "predictions.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["test 0 kitchen", "test 1 kitchen"]
    with pytest.raises(ConfigError, match="a vote is of samples as in training, not of rooms: every point"):
        run_test(run, overrides, 2, False, tmp_path / "vote")
    with pytest.raises(ConfigError, match=r"task\.head=published: a test keeps the adapter's model"):
        run_test(run, ["task.head=published"], None, False, tmp_path / "other")


def test_report_pictures_and_votes(run: Path, tmp_path: Path) -> None:
    """All show blocks; the report names the way to count."""
    report = run_test(run, [], 2, False, tmp_path / "vote")
    assert report["vote"]["first_vote"]["count"] == report["test"]["count"]
    assert main(["report", str(run), "--output", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "blocks: random blocks of the test scenes" in page
    assert "Worst samples" in page
    command = ["visualize", str(run), "--picture", "point_labels", "--samples", "2"]
    assert main([*command, "--renderer", "matplotlib", "--output", str(tmp_path / "labels.png")]) == 0


def test_figures_of_both_ways_share_no_column(folder: Path) -> None:
    """A study names them apart."""
    blocks, rooms = (words_of(rooms_config("lora", folder, task={"test": way})) for way in ("blocks", "rooms"))
    assert blocks.startswith("rooms, blocks: random blocks")
    assert rooms.startswith("rooms, rooms: every point of whole scenes, by tiles of 1 every 0.5")
    whole = rooms_config("lora", folder, data={"block": "whole"})
    assert words_of(whole).startswith("rooms, clouds: one sample of each cloud")


def test_majority_of_all_tiles_and_passes(folder: Path) -> None:
    """A model that is right, but sometimes wrong, is outvoted; one that is never finite is refused."""
    task = build_task(rooms_config("lora", folder, task={"test": "rooms", "votes": 3}))
    data = task.judged(build_dataset("rooms", "test", root=folder, num_points=128))
    assert isinstance(data, Scenes)
    draws = np.random.default_rng(0)

    def ask(batch: Batch) -> Tensor:
        labels = ((batch.inputs[..., 1] + 1e-4) / 0.334).floor().clamp(0, 2).long()
        wrong = torch.from_numpy(draws.random(labels.shape) < 0.1)
        return torch.nn.functional.one_hot(torch.where(wrong, 3, labels), len(CLASSES)).float()

    rows = torch.stack([task.whole_row(data, index, ask, torch.device("cpu")) for index in range(len(data))])
    metrics = task.metrics(Predictions(rows, task.targets(data)))
    assert metrics["accuracy"] > 99
    broken = task.whole_row(data, 0, lambda batch: ask(batch) * torch.nan, torch.device("cpu"))
    assert broken.isnan().all()


def test_scores_pool_the_points() -> None:
    """As counted by hand, and on any number of resampled sums at once."""
    both, either, truth = [6.0, 0.0, 2.0, 0.0], [10.0, 4.0, 4.0, 0.0], [8.0, 4.0, 2.0, 0.0]
    found = SemanticSegmentation.scores_of(torch.tensor([both + either + truth, [0.0] * 12]))
    assert found["miou"][0] == pytest.approx(100 * (0.6 + 0 + 0.5) / 3)
    assert found["mean_accuracy"][0] == pytest.approx(100 * (0.75 + 0 + 1) / 3)
    assert found["accuracy"][0] == pytest.approx(100 * 8 / 14)
    assert all(value[1] == 0 for value in found.values())


def test_a_run_resumes_bit_for_bit(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of an epoch depend on seed and epoch alone."""
    config = rooms_config("lora", folder, train={"epochs": 2, "batch_size": 16})
    assert_resumes_bit_identical(config, tmp_path, monkeypatch)


def test_validation_holds_out_whole_rooms(folder: Path) -> None:
    """No room is on both sides."""
    splits = build_splits(rooms_config("lora", folder))
    assert isinstance(splits.train, Scenes)
    assert isinstance(splits.val, Scenes)
    rooms = [set(part.scene.tolist()) for part in (splits.train, splits.val)]
    assert not rooms[0] & rooms[1]
    assert rooms[0] | rooms[1] == set(range(len(TRAIN)))


def test_third_root_of_frequencies() -> None:
    """In the proportions of the published weights, with a mean of 1 over the labels."""
    counts = torch.tensor([800, 100, 0, 100])
    weights = weights_of_counts("cube_root", counts, CLASSES)
    assert weights[1] / weights[0] == pytest.approx(2)
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1)
    assert weights.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"block": "whole"}, "task": {"test": "rooms"}}, r"task\.test: rooms tests whole scenes by blocks"),
        ({"task": {"stride": 1.5}}, r"task\.stride: 1\.5 leaves gaps between blocks of 1; lower it"),
        ({"task": {"stride": 0.05}}, r"task\.stride: 0\.05 asks for each point in more than 16² blocks of 1; raise it"),
        ({"data": {"block": "whole"}, "task": {"stride": 0.5}}, r"task\.stride: tiles belong to blocks"),
        ({"task": {"classes": ["a", "a"]}}, r"task\.classes: names a class twice"),
        ({"data": {"few_shot": {"ways": 2, "shots": 1}}}, r"data\.few_shot: the clouds of rooms have no classes"),
        ({"data": {"train_size": 5}}, r"data\.train_size: rooms draws blocks of all its scenes in every epoch"),
        ({"data": {"block": 0.0}}, r"data\.block"),
        ({"data": {"name": "ldraw20", "block": 1.0}}, r"data\.block: ldraw20 holds single objects"),
        ({"data": {"name": "ldraw20"}, "task": {"classes": None}}, r"task\.classes: is required, as ldraw20 names no"),
        ({"task": {"classes": None}}, r"data\.root: data\.root is required for data\.name=rooms"),
    ],
)
def test_configs_that_cannot_be_meant(changes: dict[str, Any], message: str) -> None:
    """Each is refused in a line."""
    with pytest.raises(ConfigError, match=message):
        rooms_config("lora", **changes)


def test_classes_come_from_the_data(folder: Path) -> None:
    """And are checked against it."""
    config = rooms_config("lora", folder, task={"classes": None})
    assert config.task.classes == CLASSES  # type: ignore[attr-defined]
    other = rooms_config("lora", folder, task={"classes": ["a", "b"]})
    with pytest.raises(ConfigError, match=r"labelled with 4 classes, and the config names 2; 'floor' is in one"):
        build_splits(other)


def test_no_task_that_labels_whole_clouds(folder: Path) -> None:
    """Says which one to take."""
    sections = rooms_config("lora", folder).dump()
    sections.pop("task")
    sections["eval"]["select"] = None
    config = Config.of({**sections, "head": {"num_classes": 4}})
    with pytest.raises(ConfigError, match=r"its clouds are not; set task\.name=semantic_segmentation"):
        build_splits(config)


# Tiles.


def scene(count: int, seed: int = 0) -> np.ndarray:
    """Points over an L, with a lone one far away."""
    draws = np.random.default_rng(seed)
    points = draws.uniform([-3, 5, 2], [2, 8, 6], (count, 3))
    points = points[(points[:, 0] < 0) | (points[:, 2] < 3)]
    return np.concatenate([points, [[400.0, 6.0, -700.0]]])


@pytest.mark.parametrize(("block", "stride"), [(1.0, 0.5), (1.3, 1.3), (0.7, 0.4)])
def test_tiles_are_those_of_all_windows(block: float, stride: float) -> None:
    """Every point is covered, by the windows that a plain loop over the whole ground has."""
    points = scene(3000)
    grid, order = Grid.over(points[:, [0, 2]], block / 2)
    tiling = Tiling(block, stride, 64)
    seen = np.zeros(len(points), dtype=np.int64)
    for cut in tiling.cuts(points, grid, order, 0):
        assert cut.placed is not None
        assert len(cut.index) == len(cut.placed) == 64
        assert cut.placed[:, [0, 2]].abs().max() <= block / 2 + PADDING + 1e-5
        assert np.allclose(cut.placed[:, 1].numpy(), points[cut.index.numpy(), 1] - points[:, 1].min(), atol=1e-5)
        seen[cut.index.unique().numpy()] += 1
    assert seen.min() >= 1
    low, high = points[:, [0, 2]].min(axis=0), points[:, [0, 2]].max(axis=0)
    numbers = [np.arange(max(np.ceil((high[k] - low[k] - block) / stride), 0) + 1) for k in (0, 1)]
    starts = [np.minimum(low[k] + numbers[k] * stride, high[k] - block) for k in (0, 1)]
    expected = np.zeros(len(points), dtype=np.int64)
    for x in starts[0]:
        column = np.flatnonzero((points[:, 0] >= x - PADDING) & (points[:, 0] <= x + block + PADDING))
        for z in starts[1] if len(column) else []:
            near = column[(points[column, 2] >= z - PADDING) & (points[column, 2] <= z + block + PADDING)]
            expected[near] += 1
    covered = np.zeros(len(points), dtype=np.int64)
    for begin in tiling.corners(grid, low, high):
        inside = (points[:, [0, 2]] >= begin - PADDING) & (points[:, [0, 2]] <= begin + block + PADDING)
        covered += inside.all(axis=1)
    assert np.array_equal(covered, expected)


def test_sets_fill_up_with_points_of_their_tile() -> None:
    """All points of a tile are in its sets; others of it fill the last one, as often as need be."""
    points = np.random.default_rng(0).uniform(0, 0.9, (100, 3))
    grid, order = Grid.over(points[:, [0, 2]], 0.5)
    for size, sets in ((64, 2), (100, 1), (300, 1)):
        found = [cut.index for cut in Tiling(1.0, 0.5, size).cuts(points, grid, order, 0)]
        assert len(found) == sets
        assert torch.cat(found).unique().tolist() == list(range(100))


def test_every_point_of_a_file_gets_a_label(run: Path, tmp_path: Path) -> None:
    """Of 20 files, of which 3 are broken: the others are labelled, in the units of their files, and the 3 are named."""
    draws, clouds = np.random.default_rng(5), tmp_path / "clouds"
    clouds.mkdir()
    for number in range(20):
        points = draws.uniform([100, 0, 100], [102, 1, 101.6], (700, 3))[:, [2, 0, 1]]  # z is up
        np.save(clouds / f"{number:02}.npy", points[:, :2] if number % 7 == 3 else points)
    table, each = tmp_path / "found.csv", tmp_path / "each"
    arguments = ["--up", "z", "--each", str(each), "--kind", "csv", "--output", str(table)]
    assert main(["predict", str(run), str(clouds), *arguments]) != 0
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["file"]).stem for row in rows if row["error"]] == ["03", "10", "17"]
    assert {row["points"] for row in rows if not row["error"]} == {"700"}
    assert len(list(each.iterdir())) == 17
    (found,) = Predictor(run, up="z")([str(clouds / "00.npy")])
    assert np.array_equal(found.points, np.load(clouds / "00.npy"))
    truth = np.clip(np.floor(found.points[:, 2] / 0.334), 0, 2)
    assert (found.labels == truth).mean() > 0.4
    assert ((found.confidence > 0) & (found.confidence <= 1)).all()


def test_a_scene_of_too_few_points_is_named(run: Path) -> None:
    """Its groups cannot be made."""
    (found,) = Predictor(run)([np.random.default_rng(0).uniform(0, 1, (5, 3))])
    assert isinstance(found, Failure)
    assert "5 different points; the model's groups need" in found.reason


def test_a_scene_that_cannot_be_cut_fails_alone(run: Path) -> None:
    """A stray point so far away that cells cannot be numbered."""
    points = np.random.default_rng(0).uniform(0, [2, 1, 1.6], (700, 3))
    failed, found = Predictor(run)([np.concatenate([points, [[1e7, 0, 0]]]), points])
    assert isinstance(failed, Failure)
    assert failed.reason.startswith("input 0: measures 1e+07")
    assert len(found.labels) == 700


@pytest.mark.parametrize("scale", [1000, 1, 0.001])
def test_a_scene_in_another_unit(run: Path, scale: float) -> None:
    """It would be cut into tiles without number, or be a single one; stray points do not make a scene large."""
    points = np.random.default_rng(0).uniform(0, [2, 1, 1.6], (700, 3))
    points[3] = [0, 90, 0]
    (found,) = Predictor(run)([scale * points])
    if scale > 1:
        assert isinstance(found, Failure)
        assert "another unit; scale it to the training data's" in found.reason
    else:
        assert any("another unit" in warning for warning in found.warnings) == (scale < 1)


@pytest.mark.parametrize(("up", "along"), [("y", "z"), ("z", "x"), ("x", None)])
def test_a_scene_that_lies_on_its_side(run: Path, up: str, along: str | None) -> None:
    """It is labelled, and said is which axis may point up: the one along which it is as high as the training's."""
    sides = {"y": [8, 6, 1], "z": [1, 8, 6], "x": [1, 8, 6]}[up]
    (found,) = Predictor(run, up=up)([np.random.default_rng(0).uniform(0, sides, (3000, 3))])
    doubts = [warning for warning in found.warnings if "may point up" in warning]
    assert [f"{along} may point up, which --up {along} says" in doubt for doubt in doubts] == [True] * (
        along is not None
    )


def test_a_file_that_cannot_be_written_fails_alone(run: Path, tmp_path: Path, capsys: Any) -> None:
    """Its answer is in the table, and the message names the file."""
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(0).uniform(0, [2, 1, 1.6], (700, 3)))
    each, table = tmp_path / "each", tmp_path / "found.csv"
    (each / "a.csv").mkdir(parents=True)
    arguments = ["--each", str(each), "--kind", "csv", "--output", str(table)]
    assert main(["predict", str(run), str(tmp_path / "a.npy"), str(tmp_path / "b.npy"), *arguments]) == 3
    assert (each / "b.csv").is_file()
    said = capsys.readouterr().err
    assert f"error: {each / 'a.csv'}: could not be written" in said
    assert "1 of 2 files could not be predicted or written" in said
    with table.open() as file:
        first, second = csv.DictReader(file)
    assert first["points"] == second["points"] == "700"
    assert first["warnings"].startswith(f"no file of its own: {each / 'a.csv'}: could not")


def test_las_of_rows_without_a_point_is_refused_by_its_name(run: Path, tmp_path: Path) -> None:
    """Not by that of a temporary file."""
    pytest.importorskip("laspy")
    points = np.random.default_rng(0).uniform(0, [2, 1, 1.6], (700, 3))
    points[7] = np.nan
    predictor = Predictor(run)
    (found,) = predictor([points])
    with pytest.raises(DataError, match=re.escape(f"{tmp_path / 'a.las'}: LAS holds no NaN")):
        next(iter(predictor.tasks.values())).write_file(found, tmp_path / "a.las", ".las")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("block", [2.0, "whole"])
def test_adapters_of_other_tiles_are_no_pair(folder: Path, tmp_path: Path, block: float | str) -> None:
    """Both would be given those of the first."""
    for name, side in (("first", 1.0), ("second", block)):
        config = rooms_config("lora", folder, data={"block": side, "normalize": False if side == "whole" else None})
        place = tmp_path / f"{name}.safetensors"
        save_adapter(build_model(config), place, config=config, facts=PointFacts(CLASSES), metrics={})
    with pytest.raises(CheckpointError, match=r"second\.safetensors: prepares its inputs otherwise than .*first"):
        Predictor({name: tmp_path / f"{name}.safetensors" for name in ("first", "second")})


@pytest.mark.parametrize("block", [1.0, "whole"])
def test_training_refuses_the_scenes_that_predict_refuses(tmp_path: Path, block: float | str) -> None:
    """Their points are too few for the model's groups."""
    config = rooms_config("lora", write_rooms(tmp_path, [2600, 3]), data={"block": block})
    with pytest.raises(DataError, match=r"^train 1 kitchen: 3 different points; the model's groups need \d+: rem"):
        build_splits(config)
    data = build_dataset("rooms", "train", root=tmp_path, num_points=128, block=block)
    assert list(data.outline().sparse(16)) == []  # what a study plans with


def test_tiles_of_sparse_scenes_take_little_memory() -> None:
    """However few points a cell has."""
    draws = np.random.default_rng(0)
    points = draws.uniform(0, 5e4, (50_000, 3))
    grid, _ = Grid.over(points[:, [0, 2]], 0.5)
    low, high = points[:, [0, 2]].min(axis=0), points[:, [0, 2]].max(axis=0)
    tracemalloc.start()
    assert len(list(islice(Tiling(1.0, 0.5, 64).corners(grid, low, high), 1000))) == 1000
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 120 * len(grid.keys)


def test_words_of_a_pass() -> None:
    """One pass is no passes."""
    task = build_task(rooms_config("lora", task={"test": "rooms", "votes": 1, "stride": 0.25}))
    assert task.evaluation.endswith("by tiles of 1 every 0.25, majority of all labels of 1 pass")
    metrics = {"miou": 50.0, "mean_accuracy": 1.0, "accuracy": 1.0, "count": 2}
    assert task.result(metrics, "clouds", (40.0, 60.0)).endswith("40 to 60 % (rooms)")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            {"block": 50.0},
            "data.block=50 is larger than the clouds, the largest of which measures 2: blocks hold whole",
        ),
        ({"block": 0.01}, "blocks of data.block=0.01 hold about 1 point each, and samples have 128: most of them are"),
        (
            {"block": "whole", "num_points": 2000},
            "clouds have fewer points than the 2,000 of data.num_points, the fewest ",
        ),
        ({}, ""),
    ],
)
def test_training_says_what_samples_hold(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, data: dict[str, Any], words: str
) -> None:
    training._trainer(rooms_config("linear", folder, data=data), tmp_path, devices.make_accelerator("fp32"))
    said = [record.getMessage() for record in caplog.records if "data." in record.getMessage()]
    assert len(said) == bool(words)
    assert all(words in line for line in said)
