"""Reports, model cards, pictures, the doctor and weights ask a task that labels points, and know it not by name."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pointadapterx.commands.main import main
from pointadapterx.config import Config
from pointadapterx.datasets import DATASETS, PointClouds
from pointadapterx.datasets.base import Unchecked
from pointadapterx.datasets.batching import balanced_order
from pointadapterx.engine.devices import make_accelerator
from pointadapterx.errors import CheckpointError, ConfigError, DataError
from pointadapterx.jobs import train
from pointadapterx.quickstart.ending import end
from pointadapterx.report.document import write_report
from pointadapterx.run_folder import SAMPLE_RECORDS_FILE
from pointadapterx.sharing import push_adapter
from pointadapterx.study.outcomes import OUTPUT, collect
from pointadapterx.study.packing import pack_groups
from pointadapterx.study.plan import read_plan
from pointadapterx.study.records import read_records, write_records
from pointadapterx.study.report import render_report
from pointadapterx.study.resampling import Records
from pointadapterx.study.samples import read_samples, run_intervals
from pointadapterx.study.summary import summarise
from pointadapterx.tasks import TASKS, build_task
from pointadapterx.visualize.labels import labelled, worst
from pointadapterx.visualize.loaded_run import Subject
from tests.dense_task import NAMES, Layers, layers_config
from tests.synthetic import write_ldraw20


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    TASKS.register("layers")(Layers)
    folder = tmp_path_factory.mktemp("layers")
    write_ldraw20(folder, train_per_class=4, test_per_class=2, num_points=256)
    yield layers_config(str(folder), class_weights=[1.0, 2.0], sampler="balanced")
    TASKS._entries.pop("layers")


@pytest.fixture(scope="module")
def run(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(config, "layers", tmp_path_factory.mktemp("run") / "run", make_accelerator("fp32"))


def test_records_of_samples_are_kept(run: Path) -> None:
    """The scores of the run are those of its records."""
    rows, groups = read_samples(run / SAMPLE_RECORDS_FILE, None)
    test = json.loads((run / "metrics.json").read_text())["test"]
    assert rows.shape == (40, 4)
    assert groups[:4] == ["0", "0", "1", "1"]
    assert Records(rows, Layers.scores_of).values == pytest.approx({key: test[key] for key in ("iou", "upper")})
    assert not (run / "sample_scores.csv").exists()


def test_a_study_reads_them_back(run: Path, tmp_path: Path) -> None:
    table = {"columns": {"all": None}, "rows": {"lora": {}}}
    study = {"title": "Layers", "config": str(run / "config.yaml"), "replicate": {"values": [0]}}
    study |= {"runs": str(tmp_path), "results": str(tmp_path)}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study | {"tables": {"main": table}}))
    plan = read_plan(str(tmp_path / "study.yaml"), [])
    ((cell,),) = ([*plan.cells.values()],)
    ((_, planned),) = plan.final_runs(cell, {})
    shutil.copytree(run, tmp_path / planned.name / OUTPUT)
    (record,) = collect(plan, tmp_path, {}, {})
    write_records(tmp_path / "results.csv", [record])
    assert read_records(tmp_path / "results.csv") == [record]
    report = render_report([record], summarise([record]), {})
    intervals = run_intervals(run, Layers).of
    for key, value in record.score_values.items():
        assert f"{value:.2f} [{intervals[key].low:.2f}, {intervals[key].high:.2f}]" in report
    assert record.groups is not None
    of_two_rooms = record.model_copy(update={"groups": pack_groups(["a", "b"] * 20)})
    report = render_report([of_two_rooms], summarise([of_two_rooms]), {})
    assert f"The scores have no interval: {TOO_FEW}." in report
    assert "[95 %]" not in report
    (tmp_path / planned.name / OUTPUT / SAMPLE_RECORDS_FILE).write_text("index\n0\n")
    with pytest.raises(DataError, match=r"sample_records.csv: damaged \(.*it holds no records.*\); delete"):
        collect(plan, tmp_path, {}, {})


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    pytest.importorskip("matplotlib", exc_type=ImportError)
    return write_report([run]).read_text(encoding="utf-8")


def test_a_report_colours_points_by_truth_prediction_and_errors(run: Path, page: str) -> None:
    for name in ("mean IoU of the classes (mIoU)", "IoU of the upper part"):
        found = re.search(rf"{re.escape(name)} \[95 %\]</td><td>([\d.]+) % \[([\d.]+), ([\d.]+)\]", page)
        assert found is not None
        assert float(found[2]) < float(found[1]) < float(found[3])
    assert "<h2>Worst samples</h2>" in page
    assert "<h2>Parts</h2>" in page
    clouds = json.loads(re.findall(r'<script id="clouds" type="application/json">(.*?)</script>', page)[0])
    assert len(clouds) == 16
    assert list(clouds[0]["modes"])[:5] == ["truth", "prediction", "errors", "height", "groups"]
    assert not any("what the answer loses" in name for name in clouds[0]["modes"])
    shown = re.findall(r'<p class="legend" data-mode="(\w+)"( hidden)?>(.*?)</p>', page, re.DOTALL)
    assert [(mode, bool(hidden)) for mode, hidden, _ in shown[:3]] == [
        ("truth", False),
        ("prediction", True),
        ("errors", True),
    ]
    assert all(name in shown[0][2] for name in NAMES)
    assert re.search(r"wrong \(\d+\.\d % of the points shown\)", shown[2][2])


def test_the_labels_shown_are_those_of_the_points(run: Path) -> None:
    """Truth and errors agree with the records of the samples; the worst comes first."""
    subject = Subject(run)
    found = labelled(subject, [3, 0])
    for row, index in enumerate((3, 0)):
        upper = found.clouds[row, :, 1] > found.clouds[row, :, 1].median()
        assert (found.truth[row] == upper.numpy()).mean() > 0.95  # the median is that of all points
        wrong = int(found.wrong[row].sum())
        record = subject.predictions.rows[index]
        assert int(record[2:].sum() - record[:2].sum()) == 2 * wrong
    numbers = [number for number, _ in worst(subject, 40)]
    scores = Layers.scores_of(subject.predictions.rows.double())["iou"][numbers]
    assert torch.equal(scores, scores.sort().values)
    hidden = found._replace(truth=np.where(found.truth == 0, -1, found.truth))
    assert not (hidden.wrong & (found.truth == 0)).any()
    assert [name for name, _ in hidden.legend()][-1] == "no label"


def test_a_picture_of_labels(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", exc_type=ImportError)
    command = ["visualize", str(run), "--picture", "point_labels", "--samples", "1", "--output", str(tmp_path)]
    assert main([*command, "--dpi", "40", "--renderer", "matplotlib"]) == 0
    assert (tmp_path / "point_labels.png").is_file()
    assert main([*command, "--files", str(tmp_path)]) == 2
    capsys.readouterr()


def test_a_training_ends_with_the_interval_of_its_score(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    end(run, pictures=False)
    low, high = run_intervals(run, Layers).of["iou"]
    assert f", 95 % interval {low:.4g} to {high:.4g}" in capsys.readouterr().out


def test_a_card_has_intervals(run: Path, tmp_path: Path) -> None:
    push_adapter(run, "owner/layers", folder=tmp_path / "card")
    text = (tmp_path / "card" / "README.md").read_text(encoding="utf-8")
    for name, (low, high) in run_intervals(run, Layers).of.items():
        assert f"| {Layers.scores[name].long} | " in text
        assert f"%, 95 % interval {low:.2f} to {high:.2f} |" in text
    assert "bootstrap intervals over the test samples" in text


TOO_FEW = "2 independent test samples are too few for an interval"


def test_too_few_samples_have_no_interval(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    header, *rows = (copied / SAMPLE_RECORDS_FILE).read_text().splitlines()
    of_two_rooms = [f"{row.rpartition(',')[0]},{number % 2}" for number, row in enumerate(rows)]
    (copied / SAMPLE_RECORDS_FILE).write_text("\n".join([header, *of_two_rooms]) + "\n")
    end(copied, pictures=False)
    printed = capsys.readouterr().out
    assert f"\nno interval: {TOO_FEW}\n" in printed
    assert "95 %" not in printed
    push_adapter(copied, "owner/layers", folder=tmp_path / "card")
    text = (tmp_path / "card" / "README.md").read_text(encoding="utf-8")
    assert f"The scores have no interval: {TOO_FEW}." in text
    assert "95 %" not in text


@pytest.mark.parametrize("content", ["", "index,group\n0,\n", "index,record_1,group\n0,x,\n"])
def test_damaged_records_are_named(run: Path, tmp_path: Path, content: str) -> None:
    for name in ("adapter.safetensors", "metrics.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    (tmp_path / SAMPLE_RECORDS_FILE).write_text(content)
    with pytest.raises(CheckpointError, match="its answers to the test samples are damaged"):
        push_adapter(tmp_path, "owner/layers", folder=tmp_path / "card")


def test_the_task_weighs_classes_of_points(config: Config) -> None:
    balanced = config.replaced(train={"class_weights": "balanced"})
    data = PointClouds(torch.randn(3, 9, 3), torch.zeros(3, dtype=torch.int64), ["a"], "train")  # 4 of 9 are above
    task = build_task(balanced)
    task.learn(data)
    assert isinstance(task, Layers)
    assert task.weights is not None
    assert task.weights.tolist() == pytest.approx([9 / 10, 9 / 8])
    with pytest.raises(ConfigError, match=r"train.class_weights: 3 numbers for 2 classes; .* order lower, upper"):
        build_task(config.replaced(train={"class_weights": [1.0, 1.0, 1.0]})).learn(data)


def test_a_task_without_classes_of_samples_refuses_to_balance(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Layers, "balances_classes", False)
    with pytest.raises(ConfigError, match=r"train.sampler: the task layers has no classes to balance; remove it"):
        Config.of(config.dump())
    with pytest.raises(ConfigError, match=r"train.sampler=balanced: all training samples are of one class; remove it"):
        balanced_order(torch.zeros(4, dtype=torch.int64), torch.Generator())


class Scenes(PointClouds):
    """Clouds of files whose points have labels."""

    @classmethod
    def each_cloud(cls, split: str, **options: Any) -> Iterator[Unchecked]:
        """Some of them wrong."""
        rng = np.random.default_rng(split == "test")
        labels = {
            "good": np.arange(300) % 2,
            "floats": (np.arange(300) % 2).astype(float)[:, None],
            "ignored": np.where(np.arange(300) < 9, 255, 0),
            "short": np.zeros(200, int),
            "table": np.zeros((300, 2), int),
            "fraction": np.full(300, 0.5),
            "words": np.full(300, "wall"),
            "outside": np.where(np.arange(300) < 7, 40, 0),
            "negative": np.where(np.arange(300) < 7, -1, 0),
            "nothing": None,
        }
        for name, of in labels.items():
            yield Unchecked(name, rng.normal(size=(300, 3)), None, False, of, ["wall", "floor"], [255])
        yield Unchecked("broken", f"{split}/broken.ply: the file is empty", point_classes=["wall", "floor"])


def test_the_doctor_looks_at_labels_of_points(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(DATASETS._entries, "scenes", Scenes)
    assert main(["doctor", "--name", "scenes", "--all"]) == 1
    printed = capsys.readouterr().out
    for says in (
        "short: 200 labels for 300 points; give each point one label",
        "table: labels of shape (300, 2) for 300 points; give each",
        "fraction: 300 of 300 labels of points are no whole numbers, such as 0.5; number the classes from 0 to 1",
        "words: 300 of 300 labels of points are no whole numbers, such as wall",
        "outside: 7 of 300 labels of points are none of the classes, such as 40; expected 0 to 1",
        "negative: 7 of 300 labels of points are none of the classes, such as -1",
        "nothing: its points have no labels; add one for each point",
        "train/broken.ply: the file is empty",
    ):
        assert says in printed
    for good in ("good", "floats", "ignored"):
        assert f"{good}: " not in printed
    assert "of the test alone" not in printed
