"""Part segmentation: its metrics, labels of whole files, and the commands that end in them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pointadapterx.adapted_model import ModelOutput
from pointadapterx.build import build_model
from pointadapterx.checkpoints.adapter_file import save_adapter
from pointadapterx.commands.main import main
from pointadapterx.config import dump_config
from pointadapterx.datasets.base import Targets
from pointadapterx.datasets.doubts import Cloud
from pointadapterx.datasets.inputs import Batch
from pointadapterx.engine.devices import make_accelerator
from pointadapterx.engine.predictor import Predictor
from pointadapterx.errors import ConfigError, TrainingError
from pointadapterx.export import FORMATS, export_adapter
from pointadapterx.jobs import test as run_test
from pointadapterx.jobs import train
from pointadapterx.quickstart import ending
from pointadapterx.tasks import PartSegmentation, PointLabels, build_task, propagation
from pointadapterx.tasks.exchange import Facts, Predictions
from pointadapterx.tasks.point_labels import JoinedPoints, PieceLogits
from pointadapterx.tasks.point_segmentation import PointFacts
from pointadapterx.tasks.propagation import RelativePropagation, carry
from pointadapterx.tasks.segmentation_heads import kept_blocks
from pointadapterx.visualize.labels import has_labels
from pointadapterx.visualize.loaded_run import Subject
from tests.conftest import randomise
from tests.mechanisms import exhaustive
from tests.parts import CLASSES, PARTS, Objects, objects, parts_config


def task() -> PartSegmentation:
    found = build_task(parts_config(), Facts(CLASSES))
    assert isinstance(found, PartSegmentation)
    return found


def said(outputs: Tensor, truth: Tensor, category: Tensor) -> Predictions:
    """What is kept of logits (n, N, classes)."""
    targets = Targets(points=truth, condition=category)
    return Predictions(task().rows(outputs, Batch(None, targets)), targets)


def plain_iou(found: Tensor, truth: Tensor, parts: Sequence[int]) -> float:
    """The published rule, shape by shape."""
    values = []
    for part in parts:
        either = ((found == part) | (truth == part)).sum()
        values.append(1.0 if either == 0 else float(((found == part) & (truth == part)).sum() / either))
    return float(np.mean(values))


def test_metrics_are_the_published_ones() -> None:
    """Restricted to the parts of the category; a part in neither counts as found; classes are means of their shapes."""
    generator = torch.Generator().manual_seed(0)
    _, category, truth = objects(7, 3, 40)
    truth[0] = CLASSES.index("foot")  # a lamp without pole and shade
    outputs = torch.randn(7, 40, len(CLASSES), generator=generator)
    outputs[0, :, CLASSES.index("foot")] += 9
    outputs[..., CLASSES.index("handle")] += 5  # what only a mug has
    found, rows = said(outputs, truth, category), []
    for logits, labels, number in zip(outputs, truth, category, strict=True):
        parts = torch.tensor([CLASSES.index(part) for part in list(PARTS.values())[number]])
        rows.append(plain_iou(parts[logits[:, parts].argmax(dim=1)], labels, parts.tolist()))
    assert rows[0] == 1.0
    values, ious = task().metrics(found), np.array(rows)
    assert values["instance_miou"] == pytest.approx(100 * ious.mean())
    of_category = [ious[category.numpy() == number].mean() for number in range(3)]
    assert values["class_miou"] == pytest.approx(100 * np.mean(of_category))
    assert values["instance_miou"] != pytest.approx(values["class_miou"])
    assert [entry["miou"] for entry in values["per_category"].values()] == pytest.approx([100 * v for v in of_category])
    assert values["per_category"]["lamp"]["count"] == 3
    assert list(values["per_category"]["mug"]["parts"]) == PARTS["mug"]
    assert sum(entry["points"] for entry in values["per_class"].values()) == 7 * 40
    assert task().metrics_table(values, "t").row_count == 5
    assert task().tables(values)[0].rows[0][:2] == ("lamp", "3")


def test_a_category_without_a_shape_does_not_count() -> None:
    clouds = torch.zeros(2, 10, len(CLASSES))
    found = said(clouds, torch.zeros(2, 10, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
    values = task().metrics(found)
    assert values["class_miou"] == values["instance_miou"]
    assert values["per_category"]["mug"] == {"miou": None, "count": 0, "parts": {"body": None, "handle": None}}


def test_a_shape_without_a_labelled_point_does_not_count() -> None:
    """In no score and interval; the table says so, and its row has no figures."""
    clouds = torch.randn(4, 10, len(CLASSES), generator=torch.Generator().manual_seed(0))
    truth, category = torch.zeros(4, 10, dtype=torch.int64), torch.tensor([0, 1, 0, 2])
    truth[2] = -1
    found, kept = said(clouds, truth, category), torch.tensor([0, 1, 3])
    values, others = task().metrics(found), task().metrics(said(clouds[kept], truth[kept], category[kept]))
    assert (values.pop("unlabelled"), values.pop("count"), others.pop("count")) == (1, 4, 3)
    assert values == others
    assert task().said_of(found.rows[2], found, 2) == {"category": "lamp", "iou": "", "accuracy": ""}
    table = task().metrics_table({**values, "unlabelled": 1, "count": 4}, "t")
    assert list(table.columns[1].cells)[-3:] == ["3", "3", "1"]


def test_outputs_that_are_not_finite_are_noticed() -> None:
    outputs = torch.zeros(2, 10, len(CLASSES))
    outputs[1, 3, 0] = torch.nan
    found = said(outputs, torch.zeros(2, 10, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(TrainingError, match=r"logits of 1 samples are not finite, first indices \[1\]"):
        task().metrics(found)


def test_classes_weigh_in_the_loss() -> None:
    config = parts_config(train={"class_weights": [1.0, 1.0, 1.0, 1.0, 1.0, 3.0]})
    weighing, plain = build_task(config), task()
    weighing.learn(Objects("train"))
    logits, labels = torch.randn(2, 5, 6), torch.tensor([[0, 1, 2, 3, -1], [5, 5, 5, 5, 5]])
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="none")
    factors = torch.tensor([1.0] * 5 + [3.0] * 5)
    torch.testing.assert_close(weighing.criterion(logits, labels), (each * factors).mean())
    torch.testing.assert_close(plain.criterion(logits, labels), each.mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_may_be_over_the_parts_of_the_category(smoothing: float) -> None:
    """As if the head had no other outputs; these get no gradient."""
    learning = build_task(parts_config(task={"loss_over": "own"}, train={"label_smoothing": smoothing}))
    own = [CLASSES.index(name) for name in PARTS["stool"]]
    condition, labels = torch.tensor([list(PARTS).index("stool")] * 2), torch.tensor(own * 4)[None].repeat(2, 1)
    logits = torch.randn(2, labels.shape[1], len(CLASSES), requires_grad=True)
    batch = Batch(None, Targets(points=labels, condition=condition))
    loss, _ = learning.loss(lambda *_: ModelOutput(logits, None), batch, torch.Generator())  # type: ignore[arg-type]
    loss.backward()
    local, numbers = logits.detach()[..., own].flatten(0, 1), torch.arange(len(own)).repeat(8)
    expected = torch.nn.functional.cross_entropy(local, numbers, label_smoothing=smoothing)
    torch.testing.assert_close(loss.detach(), expected)
    assert logits.grad is not None
    assert not logits.grad[..., [k for k in range(len(CLASSES)) if k not in own]].any()


def test_points_without_a_label_divide_nothing() -> None:
    """Neither the loss nor the accuracy of training: both are of the labelled points; none at all are refused."""
    learning, data = task(), Objects("train")
    labels = data.targets.points
    assert labels is not None
    labels[:, 1::2] = -1
    learning.learn(data)
    logits = torch.randn(2, 8, len(CLASSES))
    loss, known = learning.criterion(logits, labels[:2, :8]), labels[:2, :8:2].flatten()
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits[:, ::2].flatten(0, 1), known))
    right = torch.nn.functional.one_hot(labels[:2, :8].clamp(min=0), len(CLASSES)).float()
    batch = Batch(None, Targets(points=labels[:2, :8]))
    _, sums = learning.loss(lambda *_: ModelOutput(right, None), batch, torch.Generator())  # type: ignore[arg-type]
    assert learning.progress({name: value.double() / 2 for name, value in sums.items()})["train_point_accuracy"] == 100
    assert learning.progress(dict.fromkeys(sums, torch.tensor(0.0)))["train_point_accuracy"] == 0
    labels[:] = -1
    with pytest.raises(ConfigError, match=r"data\.name=objects: none of the 3,840 training points has a label"):
        task().learn(data)


@pytest.mark.parametrize(("depth", "blocks"), [(12, (3, 7, 11)), (6, (1, 3, 5)), (2, (0, 1)), (1, (0,))])
def test_blocks_are_the_last_of_three_parts(depth: int, blocks: tuple[int, ...]) -> None:
    assert kept_blocks(None, depth) == blocks


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": [2]}, r"task\.blocks: 2: the backbone's blocks are 0 to 1"),
        ({"pools": ["patch_mx"]}, r"task\.pools: unknown pool 'patch_mx'; did you mean 'patch_max'"),
        ({"pools": ["prompt_mean"]}, r"task\.pools: prompt_mean needs prompt tokens, which method lora does not make"),
        ({"parts": {"lamp": []}}, r"task\.parts: lamp: has no part"),
        ({"parts": {"lamp": ["a", "a"]}}, r"task\.parts: lamp: names a part twice"),
        ({"heads": "light"}, r"task\.heads: unknown key; did you mean 'head'"),
    ],
)
def test_a_wrong_option_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parts_config("lora", options)


def test_a_point_is_read_from_three_patches() -> None:
    with pytest.raises(ConfigError, match=r"backbone\.num_groups: 2: a head that labels points reads the 3 nearest"):
        parts_config(backbone={"num_groups": 2})


def test_prompts_need_a_pool_that_reads_them() -> None:
    with pytest.raises(ConfigError, match=r"are read by a prompt pool alone; add prompt_mean to task\.pools"):
        parts_config("e3va", {"pools": ["patch_max"]}, method={"prompts": True})
    config = parts_config("dapt")
    assert config.task.read_pools(config.method) == ["patch_max", "patch_mean", "prompt_mean"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"name": "ldraw20"}}, r"ldraw20 knows no parts: give \{category"),
        ({"task": {"parts": {"lamp": ["x", "y"]}}}, r"labelled with 6 classes, and the config names 2; 'foot' is in"),
        (
            {"task": {"parts": dict(reversed(PARTS.items()))}},
            r"labelled with 6 classes, and the config names 6; their order differs",
        ),
        ({"task": {"parts": {"all": CLASSES}}}, r"task\.parts: names the categories all…, but .* has lamp, mug, stool"),
    ],
)
def test_data_of_other_parts_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        train(parts_config("lora", **changes), "parts", tmp_path / "run", make_accelerator("fp32"))


# Labels of whole files.


def piece(logits: Tensor, places: Tensor, points: np.ndarray) -> PieceLogits:
    labels = logits.argmax(dim=1).numpy()
    return PieceLogits("a", "b", CLASSES, labels, np.ones(len(labels)), ["odd"], points, [3, 5], logits, places, None)


def test_pieces_that_overlap_are_averaged() -> None:
    points = np.arange(12.0).reshape(4, 3)
    joined = JoinedPoints(Cloud(points), 2)
    joined.add(piece(torch.tensor([[1.0, 0], [0, 1], [0, 3]]), torch.tensor([0, 1, 1]), points))
    joined.add(piece(torch.tensor([[0.0, 3], [9, 0]]), torch.tensor([0, 2]), points))
    joined.add(piece(torch.tensor([[5.0, 0]]), torch.tensor([3]), points))
    joined.joined()  # changes nothing: a second call has the same answer
    found = joined.joined()
    assert found.labels.tolist() == [1, 1, 0, 0]
    expected = torch.tensor([[0.5, 1.5], [0, 2], [9, 0], [5, 0]]).softmax(dim=1).amax(dim=1)
    np.testing.assert_allclose(found.confidence, expected, rtol=1e-6)
    assert found.warnings == ["odd"]
    assert found.points is points


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_tokens_are_read_with_the_place_of_a_point(scale: float) -> None:
    """Point by point, as it is written down; in whatever unit the clouds are."""
    torch.manual_seed(0)
    layer = RelativePropagation(5, 7)
    points, centers, tokens = torch.randn(2, 9, 3), torch.randn(2, 4, 3), torch.randn(2, 4, 5)
    found = layer(points * scale, centers * scale, tokens)
    for cloud in range(2):
        away = torch.cdist(points[cloud], centers[cloud])
        unit = away.min(1).values.mean()
        for number, point in enumerate(points[cloud]):
            nearest = away[number].argsort()[:3]
            weights = 1 / (scale * away[number, nearest]) ** 2
            said = torch.zeros(7)
            for weight, center in zip(weights / weights.sum(), nearest, strict=True):
                offset = torch.cat([point - centers[cloud, center], away[number, center, None]]) / unit
                said += weight * (layer.tokens(tokens[cloud, center]) + layer.offset.weight @ offset).clamp(min=0)
            torch.testing.assert_close(found[cloud, number], said, atol=1e-5, rtol=1e-5)


def test_points_that_are_all_centres_are_read_in_half_precision() -> None:
    """As in a cloud with hardly more points than patches: offsets are not divided by next to nothing."""
    torch.manual_seed(0)
    layer, centers = RelativePropagation(5, 7), torch.randn(1, 16, 3)
    points = centers + 1e-7
    with torch.autocast("cpu", torch.float16):
        assert layer(points, centers, torch.randn(1, 16, 5)).isfinite().all()


def test_rows_without_a_point_get_no_label() -> None:
    points, kept = np.eye(3), np.array([True, False, True, True])
    joined = JoinedPoints(Cloud(points, kept=kept), 2)
    joined.add(piece(torch.tensor([[0.0, 1]]), torch.tensor([1]), points))
    found = joined.joined()
    assert found.labels.tolist() == [1, -1, 1, 1]
    assert np.isnan(found.points[1]).all()
    assert found.text() == "pole 100.0 % of 3 points; confidence 0.73"
    assert found.cells(1) == ["3", "pole", "1.000000", f"{found.confidence[0]:.6f}"]


@pytest.mark.parametrize("far", [0.0, 1e7])
@pytest.mark.parametrize("count", [1, 2, 50])
def test_values_are_carried_by_the_three_nearest(count: int, far: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a map with coordinates far from its origin, and where a tree finds them in parts."""
    generator = torch.Generator().manual_seed(0)
    known = torch.rand(count, 3, generator=generator, dtype=torch.float64)
    points = torch.rand(400, 3, generator=generator, dtype=torch.float64)
    values = torch.randn(count, 4, generator=generator)
    near = torch.cdist(points, known).sort(dim=1)
    take = min(count, 3)
    weights = 1 / (near.values[:, :take] ** 2 + 1e-8)
    weights = weights / weights.sum(dim=1, keepdim=True)
    wanted = (values[near.indices[:, :take]] * weights[..., None]).sum(dim=1) if count > 2 else None
    found = carry(values, known + far, points + far)
    if wanted is not None:
        torch.testing.assert_close(found, wanted.float(), atol=1e-4, rtol=1e-4)
    elif count == 1:
        torch.testing.assert_close(found, values.expand(400, 4))
    monkeypatch.setattr(propagation, "TREE_FROM", 3)
    monkeypatch.setattr(propagation, "implementation", lambda device: "reference")
    monkeypatch.setattr(propagation, "CHUNK", 70)
    torch.testing.assert_close(carry(values, known + far, points + far), found, atol=1e-4, rtol=1e-4)


# From a run to files.


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained until it knows the parts."""
    config = parts_config("lora", train={"epochs": 8, "lr": 1e-2, "class_weights": "balanced"})
    return train(config, "parts", tmp_path_factory.mktemp("parts") / "run", make_accelerator("fp32"))


def test_a_run_has_scores_records_and_answers(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["test"]["instance_miou"] > 70
    assert metrics["val_instance_miou"] > 70
    rows = list(csv.DictReader((run / "predictions.csv").open()))
    assert [row["category"] for row in rows[:3]] == list(PARTS)
    assert np.mean([float(row["iou"]) for row in rows]) == pytest.approx(metrics["test"]["instance_miou"] / 100)
    history = json.loads((run / "history.json").read_text())
    assert history[-1]["train_point_accuracy"] > 70
    report = run_test(run, [], 2, False, run / "tested")
    assert report["vote"]["class_miou"]["votes"]


def fresh(category: str, count: int, seed: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """A cloud that nobody has seen, in its own units and far away, and its labels."""
    clouds, numbers, labels = objects(3, seed, count)
    row = int((numbers == list(PARTS).index(category)).nonzero()[0])
    return 40 * clouds[row].double().numpy() + 1000, labels[row].numpy()


@pytest.mark.parametrize("count", [700, 90])
def test_every_point_of_a_file_is_labelled_in_its_order(count: int, run: Path) -> None:
    points, truth = fresh("mug", count)
    (found,) = Predictor[PointLabels](run, condition="mug")([points])
    assert found.labels.shape == found.confidence.shape == (count,)
    assert (found.labels == truth).mean() > 0.9
    assert set(found.labels) <= {CLASSES.index(part) for part in PARTS["mug"]}
    assert found.confidence.min() >= 0.5
    np.testing.assert_array_equal(found.points, points)


def test_predict_writes_labelled_files_of_several_adapters(run: Path, tmp_path: Path) -> None:
    points, truth = fresh("stool", 400)
    np.save(tmp_path / "chair.npy", points)
    other = tmp_path / "other.safetensors"
    other.write_bytes((run / "adapter.safetensors").read_bytes())
    command = ["predict", "--adapter", f"one={run}", "--adapter", f"other={other}", str(tmp_path / "chair.npy")]
    places = ["--condition", "stool", "--each", str(tmp_path / "found"), "--output", str(tmp_path / "all.csv")]
    assert main([*command, *places, "--kind", "csv"]) == 0
    rows = list(csv.DictReader((tmp_path / "all.csv").open()))
    assert [row["adapter"] for row in rows] == ["one", "other"]
    assert {row["points"] for row in rows} == {"400"}
    assert {row["class_1"] for row in rows} <= set(PARTS["stool"])
    for name in ("one", "other"):
        written = list(csv.DictReader((tmp_path / "found" / f"chair.{name}.csv").open()))
        names = [CLASSES[number] for number in truth]
        assert np.mean([row["name"] == name for row, name in zip(written, names, strict=True)]) > 0.9


def test_pictures_know_labels_that_come_with_each_sample(run: Path) -> None:
    """Data sets that draw their samples have no labels of all of them together."""
    subject = Subject(run)
    assert has_labels(subject)
    subject.targets = subject.targets._replace(points=None)
    assert has_labels(subject)
    subject.test.point_classes = []
    assert not has_labels(subject)


@exhaustive
def test_a_segmentor_is_exported(tmp_path: Path) -> None:
    """To ONNX, with what reading its output takes."""
    config = parts_config("lora", {"head": "published", "blocks": [0]}, backbone={"num_groups": 4, "depth": 1})
    model = randomise(build_model(config))
    save_adapter(model, tmp_path / "a.safetensors", config=config, facts=Facts(CLASSES), metrics={})
    found = export_adapter(tmp_path / "a.safetensors", tmp_path / "a.onnx")
    assert found.difference < 1e-4
    assert found.metadata["parts"] == {"lamp": [0, 1, 2], "mug": [3, 4], "stool": [0, 5]}
    assert found.metadata["condition"]["categories"] == list(PARTS)
    clouds, category = torch.rand(3, 128, 3), torch.tensor([2, 0, 1])
    with torch.no_grad():
        wanted = model.eval()(clouds, category).logits
    torch.testing.assert_close(FORMATS[".onnx"].open(found.path)(clouds, category), wanted, atol=1e-4, rtol=0)


def test_files_get_the_numbers_of_the_training_files(tmp_path: Path) -> None:
    task = build_task(parts_config(), PointFacts(CLASSES, [10, 20, 30, 40, 50, 60][: len(CLASSES)]))
    answer = PointLabels("a", "lora", CLASSES, np.array([1, -1, 0]), np.ones(3), [], np.zeros((3, 3)), [10, 20, 30])
    assert answer.numbers.tolist() == [20, -1, 10]
    task.write_file(answer, tmp_path / "a.csv", ".csv")
    assert [row.split(",")[3] for row in (tmp_path / "a.csv").read_text().splitlines()] == ["label", "20", "-1", "10"]
    stored, _ = task.facts.stored()
    assert PointFacts.restored(task.config, stored, {}) == task.facts
    for wrong in ([1], ["a"] * len(CLASSES), [2**40] * len(CLASSES)):
        with pytest.raises(ValueError, match="values is"):
            PointFacts.restored(task.config, stored | {"values": wrong}, {})


def test_a_training_on_ones_own_files_ends_with_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with a command that says no category, where there is only one."""
    data = {"name": "labelled_folder", "root": str(tmp_path)}
    config = parts_config(task={"parts": {"object": CLASSES}}, data=data)
    metrics = {"test": {"instance_miou": 50.0, "class_miou": 50.0, "count": 2}, "epochs": 1, "best_epoch": 1}
    path = tmp_path / "adapter.safetensors"
    save_adapter(build_model(config), path, config=config, facts=PointFacts(CLASSES), metrics=metrics)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    monkeypatch.setattr(ending, "_draw", lambda folder, task, overrides: [Path(name) for name in task.summary_pictures])
    ending.end(tmp_path)
    *_, pictures, last = capsys.readouterr().out.splitlines()
    assert pictures == "pictures: point_labels"
    assert last.startswith(f"next: pointadapterx predict {tmp_path} FILES, or")


def test_the_only_category_need_not_be_said() -> None:
    config = parts_config(task={"parts": {"object": ["floor", "wall"]}})
    assert build_task(config).category(None) == 0
    with pytest.raises(ConfigError, match="has to know the category"):
        build_task(parts_config()).category(None)
