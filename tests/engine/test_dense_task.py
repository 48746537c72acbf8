"""A task that answers for every point goes through training, evaluation, voting, files and predictions unchanged."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pointadapterx.build import build_model, build_splits
from pointadapterx.checkpoints.adapter_file import load_adapter, read_adapter, save_adapter
from pointadapterx.checkpoints.published import load_pretrained
from pointadapterx.commands.main import main
from pointadapterx.config import Config, dump_config, read_config
from pointadapterx.counting import count_model
from pointadapterx.datasets import PointClouds, Samples
from pointadapterx.datasets.base import Targets
from pointadapterx.datasets.cloud_reader import CloudReader
from pointadapterx.datasets.doubts import Cloud
from pointadapterx.datasets.inputs import Batch
from pointadapterx.engine.bank import AdapterBank
from pointadapterx.engine.conditions import folder_of
from pointadapterx.engine.devices import make_accelerator
from pointadapterx.engine.evaluator import evaluate, vote
from pointadapterx.engine.features import StoredBatches
from pointadapterx.engine.input_form import Failure
from pointadapterx.engine.predictor import Predictor
from pointadapterx.errors import CheckpointError, ConfigError
from pointadapterx.export import FORMATS, export_adapter
from pointadapterx.files import replacing
from pointadapterx.jobs import test as run_test
from pointadapterx.jobs import train
from pointadapterx.models.features import FeatureInfo, Features, Head
from pointadapterx.ops import three_interpolate, three_nn
from pointadapterx.tasks import TASKS, build_task
from pointadapterx.tasks.base import Task
from pointadapterx.tasks.exchange import Answer, Cut, Facts, Predictions, Ready, Score, TaskOptions, places
from tests.conftest import randomise, small_config
from tests.synthetic import write_ldraw20

CLASSES = 2


class HalvesOptions(TaskOptions):
    """``task:``."""

    name: Literal["halves"] = "halves"
    tiles: int = 1


class PointHead(Head):
    """Tokens of the three nearest groups, a point's coordinates and the sample's category -> logits of the point."""

    def __init__(self, info: FeatureInfo) -> None:
        super().__init__()
        self.layer = nn.Linear(info.width + 3 + 1, CLASSES)
        nn.init.zeros_(self.layer.weight)
        self.width = info.width

    def published_name(self, name: str) -> str | None:
        """That of the last layer."""
        return name.replace("convs3.", "layer.") if name.startswith("convs3.") else None

    def forward(self, features: Features) -> Tensor:
        """Features -> (B, N, classes)."""
        points, category = features.inputs, features.condition
        assert points is not None
        assert category is not None
        distance, nearest = three_nn(points, features.centers)
        weights = 1 / (distance + 1e-8)  # as published heads have it
        pooled = three_interpolate(features.sequence.patches, nearest, weights / weights.sum(dim=-1, keepdim=True))
        categories = category.to(points.dtype)[:, None, None].expand(*points.shape[:2], 1)
        return self.layer(torch.cat([pooled, points, categories], dim=-1))


@dataclass(frozen=True)
class Labels:
    """A label for each row of a file, -1 where it holds no point; before they are joined, the logits of a piece."""

    name: str
    adapter: str
    warnings: list[str]
    logits: Tensor
    places: Tensor
    labels: Tensor | None = None

    def text(self) -> str:
        """The number of points in the upper half."""
        return f"upper {self.cells(1)[0]}"

    def cells(self, top: int) -> list[str]:
        """The same."""
        assert self.labels is not None
        return [str(int((self.labels == 1).sum()))]

    def content(self) -> dict[str, Any]:
        """All labels."""
        assert self.labels is not None
        return {"labels": self.labels.tolist(), "warnings": self.warnings}


class Halves(Task):
    """Whether a point is in the upper half of its cloud; conditioned on the label."""

    Options = HalvesOptions
    caches = False
    whole = True
    file_kinds = (".csv",)
    scores: ClassVar[Mapping[str, Score]] = {"iou": Score("mIoU", "instance mIoU")}

    def targets(self, data: Samples) -> Targets:
        """Labels of points, and categories."""
        assert isinstance(data, PointClouds)
        heights = data.points[..., 1]
        upper = (heights > heights.median(dim=1, keepdim=True).values).long()
        return Targets(points=upper, condition=data.labels)

    @property
    def categories(self) -> list[str]:
        """Of samples."""
        return ["nut", "bolt"]

    def learn(self, train: Samples) -> Facts:
        """Names of the parts."""
        return Facts(["lower", "upper"])

    def build_head(self, info: FeatureInfo) -> PointHead:
        """See the class."""
        return PointHead(info)

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of points."""
        logits, auxiliary = model(batch.inputs, batch.targets.condition)
        assert batch.targets.points is not None
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch.targets.points.flatten())
        return loss if auxiliary is None else loss + auxiliary, {"loss": loss.detach() * len(logits)}

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits of the points."""
        return model(batch.inputs, batch.targets.condition).logits

    def rows(self, outputs: Tensor, batch: Batch) -> Tensor:
        """(b, 2 · classes): points in the intersection and the union of each part."""
        truth = nn.functional.one_hot(batch.targets.points, CLASSES).bool()
        found = nn.functional.one_hot(outputs.argmax(dim=-1), CLASSES).bool()
        return torch.cat([(truth & found).sum(dim=1), (truth | found).sum(dim=1)], dim=1)

    def metrics(self, found: Predictions) -> dict[str, Any]:
        """Instance mIoU."""
        both, either = found.rows.double().split(CLASSES, dim=1)
        return {"iou": 100.0 * (both / either.clamp_min(1)).mean().item(), "count": len(both)}

    def write_answers(self, path: Path, found: Predictions, data: Samples, protocol: str | None) -> None:
        """Counts of each sample."""
        path.write_text(json.dumps(found.rows.tolist()))

    def columns(self, top: int) -> list[str]:
        """The number."""
        return ["upper"]

    def write_file(self, answer: Answer, path: Path, kind: str) -> None:
        """A label a row."""
        assert isinstance(answer, Labels)
        assert kind == ".csv"
        with replacing(path) as temporary:
            np.savetxt(temporary, answer.labels.numpy(), fmt="%d")

    def pieces(self, points: Tensor, name: str) -> list[Cut]:
        """Slices along x, which overlap by half."""
        count, size = self.config.task.tiles, 2 * len(points) // (self.config.task.tiles + 1)
        order = points[:, 0].argsort()
        starts = [size // 2 * k for k in range(count)]
        return [Cut(order[at : at + size if at < starts[-1] else None]) for at in starts]

    def answers(self, model: Any, batch: Batch, inputs: Sequence[Ready], adapter: str, top: int) -> list[Answer | None]:
        """The logits of the model's points."""
        outputs = self.outputs(model, batch).float().cpu()
        return [
            Labels(item.name, adapter, item.warnings, logits, at) if logits.isfinite().all() else None
            for item, logits, at in zip(inputs, outputs, places(batch, inputs), strict=True)
        ]

    def joining(self, cloud: Cloud) -> SimpleNamespace:
        """Keeps all answers."""
        answers: list[Labels] = []
        return SimpleNamespace(add=answers.append, joined=lambda: self.join(answers, cloud))

    def join(self, answers: Sequence[Labels], cloud: Cloud) -> Labels:
        """Sums of logits, then those of the nearest point that has some."""
        points = torch.from_numpy(cloud.points).float()
        total, seen = torch.zeros(len(points), CLASSES), torch.zeros(len(points), dtype=torch.bool)
        for one in answers:
            total.index_add_(0, one.places, one.logits)
            seen[one.places] = True
        known = seen.nonzero().flatten()
        found = total[known[torch.cdist(points, points[known]).argmin(dim=1)]].argmax(dim=1)
        labels = found
        if cloud.kept is not None:
            labels = torch.full((len(cloud.kept),), -1)
            labels[torch.from_numpy(cloud.kept)] = found
        return replace(answers[0], labels=labels)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    TASKS.register("halves")(Halves)
    folder = tmp_path_factory.mktemp("halves")
    write_ldraw20(folder, train_per_class=4, test_per_class=2, num_points=300)
    plain = small_config("lora", data={"root": str(folder), "augment": ["point_dropout", "rotation"]})
    sections = plain.dump()
    sections["eval"]["select"] = None
    return Config.of({"task": {"name": "halves"}, **sections, "train": {**sections["train"], "lr": 5e-2, "epochs": 4}})


@pytest.fixture(scope="module")
def run(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(config, "halves", tmp_path_factory.mktemp("run") / "run", make_accelerator("fp32"))


def test_it_learns_and_is_stored(run: Path) -> None:
    history = json.loads((run / "history.json").read_text())
    assert history[-1]["val_iou"] > 60  # a third by chance
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["val_iou"] == max(record["val_iou"] for record in history)
    info = read_adapter(run)
    assert info.classes == ["lower", "upper"]
    assert info.config.task.name == read_config(run / "config.yaml").task.name == "halves"
    assert len(json.loads((run / "predictions.csv").read_text())) == 40


def test_its_votes_add_up_where_the_points_lie(config: Config, run: Path) -> None:
    """A vote of one copy is the copy; several go through the places of their points."""
    task, model, accelerator = build_task(config), build_model(config), make_accelerator("fp32")
    test = build_splits(config).test
    assert test is not None
    assert evaluate(model, test, task, accelerator).rows.shape == (40, 2 * CLASSES)
    one, again = (vote(model, test, task, accelerator, copies=1, seed=3).rows for _ in range(2))
    assert torch.equal(one, again)
    report = run_test(run, [], 2, False, run / "tested")
    assert report["vote"]["iou"]["votes"]


def test_a_vote_means_what_was_said_of_each_point(config: Config) -> None:
    """A point that a copy holds twice counts twice; one that the first lacks is left out."""
    index = [torch.tensor([[2, 0, 0]]), torch.tensor([[1, 2, 0]])]
    batches = [Batch(None, Targets(points=part), part) for part in index]
    outputs = [torch.tensor([[[1.0], [2.0], [6.0]]]), torch.tensor([[[9.0], [5.0], [1.0]]])]
    found = build_task(config).combine(outputs, batches)
    assert found.flatten().tolist() == [3.0, 3.0, 3.0]
    unmoved = [batch._replace(index=None) for batch in batches]
    assert torch.equal(build_task(config).combine(outputs, unmoved), (outputs[0] + outputs[1]) / 2)


def test_its_head_is_given_all_wherever_it_is_asked(config: Config) -> None:
    model, points, category = build_model(config).eval(), torch.randn(2, 128, 3), torch.tensor([0, 1])
    found = model.read(points, category)
    assert found.inputs is points
    assert found.condition is category
    assert torch.equal(model.head(found), model(points, category).logits)


def test_its_head_is_found_by_published_names(config: Config, tmp_path: Path) -> None:
    model = build_model(config)
    state = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("backbone.")}
    weight = torch.randn(*model.head.layer.weight.shape, 1)  # of a 1x1 convolution
    torch.save(
        {"model_state_dict": {**state, "module.convs3.weight": weight, "convs3.bias": torch.ones(2)}}, tmp_path / "a"
    )
    report = load_pretrained(model, tmp_path / "a")
    assert not report.unexpected
    assert torch.equal(model.head.layer.weight, weight.squeeze(-1))


def test_features_without_points_cannot_train_it(config: Config) -> None:
    data = build_splits(config).train
    cache = SimpleNamespace(views=2, fetch=None)
    with pytest.raises(
        ConfigError, match=r"^train\.cached_views: this task predicts something of every point.*; remov"
    ):
        StoredBatches(cache, build_task(config).targets(data), torch.device("cpu"))


def test_an_adapter_of_another_task_is_refused(config: Config, run: Path) -> None:
    model = build_model(config)
    model.recipe = model.recipe | {"task.name": "classification"}
    with pytest.raises(CheckpointError, match=r"was trained with task\.name=halves, the model has classification"):
        load_adapter(model, run / "adapter.safetensors")


def cloud(count: int, seed: int = 0) -> np.ndarray:
    """Points in no order."""
    return np.random.default_rng(seed).uniform(-1, 1, (count, 3)) * (0.3, 1, 0.3)


def agreement(answer: Answer | Failure, points: np.ndarray) -> float:
    """The share of points with the right label."""
    assert isinstance(answer, Labels), answer
    assert len(answer.labels) == len(points)
    return float(((points[:, 1] > np.median(points[:, 1])) == (answer.labels == 1).numpy()).mean())


@pytest.fixture(scope="module")
def sharp(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter whose head looks at heights alone, so that the right label of each point is known."""
    return altered(run, tmp_path_factory.mktemp("sharp") / "sharp.safetensors")


def altered(run: Path, path: Path, **task: Any) -> Path:
    info = read_adapter(run)
    sections = info.config.dump()
    sections["task"] |= task
    model = build_model(info.config)
    load_adapter(model, info)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.zero_()
        model.head.layer.weight[1, model.head.width + 1] = 1.0  # the height, y
    save_adapter(model, path, config=Config.of(sections), facts=info.facts, metrics=info.metrics)
    return path


@pytest.mark.parametrize("tiles", [1, 3])
@pytest.mark.parametrize(
    "points",
    [
        cloud(1000),  # more than the model takes, and than its training clouds have
        cloud(90),  # fewer
        np.repeat(cloud(150), 4, axis=0)[np.random.default_rng(1).permutation(600)],  # each four times
    ],
    ids=["more", "fewer", "duplicates"],
)
def test_every_point_of_a_file_gets_a_label_in_its_order(
    points: np.ndarray, tiles: int, run: Path, tmp_path: Path
) -> None:
    adapter = altered(run, tmp_path / "tiled.safetensors", tiles=tiles)
    np.save(tmp_path / "scan.npy", points)
    predictor = Predictor(adapter, condition="nut", batch_size=2)
    for answer in predictor([tmp_path / "scan.npy", points]):
        assert agreement(answer, points) > (0.9 if tiles == 1 else 0.8)


def test_a_task_may_place_its_pieces_itself(sharp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = cloud(300) + 5

    def pieces(task: Task, whole: Tensor, name: str) -> list[Cut]:
        index = torch.arange(task.config.data.num_points) % len(whole)
        return [Cut(index, 2 * whole[index].float())]

    monkeypatch.setattr(Halves, "pieces", pieces)
    (item,) = Predictor(sharp, condition="nut", up="z").ready([points])
    assert isinstance(item, Ready)
    moved = 2 * np.roll(points, -1, axis=1).astype(np.float32)  # z becomes y
    assert {tuple(row) for row in item.values.tolist()} <= {tuple(row) for row in moved.tolist()}


def test_rows_without_a_point_have_no_label(sharp: Path) -> None:
    points = cloud(300)
    points[7] = np.nan
    (answer,) = Predictor(sharp, condition="nut")([points])
    assert answer.labels[7] == -1
    assert (answer.labels == -1).sum() == 1
    assert answer.warnings == ["1 of 300 points have NaN or infinite coordinates and are left out"]


def test_a_piece_that_cannot_be_predicted_fails_its_file_alone(run: Path, tmp_path: Path) -> None:
    adapter = altered(run, tmp_path / "tiled.safetensors", tiles=3)
    flat = cloud(300)
    flat[flat[:, 0] > np.median(flat[:, 0])] = (1, 0, 0)
    first, failed, last = Predictor(adapter, condition="nut", batch_size=2)([cloud(300), flat, cloud(300)])
    assert isinstance(failed, Failure)
    assert failed.reason.startswith("input 1: ")
    assert torch.equal(first.labels, last.labels)


def test_clouds_that_stay_whole_are_read_ahead_in_bounds(
    sharp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        np.save(tmp_path / f"{number}.npy", cloud(400, number))
    monkeypatch.setattr("pointadapterx.engine.predictor.MOST_BYTES", 20_000)  # two files
    monkeypatch.setattr("pointadapterx.engine.predictor.MOST_POINTS", 800)
    read, most = [], 0
    load = CloudReader.__call__
    monkeypatch.setattr(CloudReader, "__call__", lambda self, name: (read.append(name), load(self, name))[1])
    for done, _ in enumerate(Predictor(sharp, condition="nut").stream(tmp_path)):
        most = max(most, len(read) - done)
    assert len(read) == 6
    assert most <= 5  # two that wait for their answer, two that are read ahead, and one more


def test_predict_writes_a_file_for_each_input(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("nut/a", "bolt/a", "bolt/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.savetxt(tmp_path / f"{name}.txt", cloud(300))
    places = [str(tmp_path / "nut"), str(tmp_path / "bolt")]
    command = ["predict", str(run / "adapter.safetensors"), *places, "--each", str(tmp_path / "found")]
    command += ["--condition-from", "folder"]
    assert main(command) == 0
    written = sorted(str(path.relative_to(tmp_path / "found")) for path in (tmp_path / "found").glob("*/*"))
    assert written == ["bolt/a.csv", "bolt/b.csv", "nut/a.csv"]
    assert len((tmp_path / "found" / "nut" / "a.csv").read_text().split()) == 300
    with pytest.raises(SystemExit):
        main([*command, "--kind", "ply"])
    assert "--kind ply: the task halves writes .csv" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--each", "--output"])
def test_predict_never_replaces_its_input(
    option: str, sharp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = tmp_path / "scan.csv"
    np.savetxt(scan, cloud(300), delimiter=",")
    before = scan.read_bytes()
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "scan.csv").hardlink_to(scan)
    place = tmp_path / "found" if option == "--each" else tmp_path / "found" / "scan.csv"
    with pytest.raises(SystemExit):
        main(["predict", str(sharp), str(scan), "--condition", "nut", option, str(place)])
    assert f"{place.parent / 'found' if option == '--each' else place.parent}" in (said := capsys.readouterr().err)
    assert "scan.csv is an input, which would be replaced; choose another place" in said
    assert scan.read_bytes() == before


def test_a_file_of_an_answer_is_not_the_output(sharp: Path, tmp_path: Path, capsys: Any) -> None:
    np.save(tmp_path / "scan.npy", cloud(300))
    command = ["predict", str(sharp), str(tmp_path / "scan.npy"), "--condition", "nut", "--each", str(tmp_path)]
    with pytest.raises(SystemExit):
        main([*command, "--output", str(tmp_path / "scan.csv")])
    assert "scan.csv is the --output; choose another folder" in capsys.readouterr().err


def test_a_condition_reaches_the_model(run: Path, tmp_path: Path) -> None:
    """As one for all, by folder, by a table, by a mapping; in a bank too."""
    info = read_adapter(run)
    model = build_model(info.config)
    load_adapter(model, info)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.zero_()
        model.head.layer.weight[1, -1] = 1.0  # all points of a bolt, whose number is 1, are the upper half
        model.head.layer.bias[0] = 0.5
    adapter = tmp_path / "by_category.safetensors"
    save_adapter(model, adapter, config=info.config, facts=info.facts, metrics=info.metrics)
    for kind in ("nut", "bolt"):
        (tmp_path / kind).mkdir()
        np.save(tmp_path / kind / "1.npy", cloud(200))
    (tmp_path / "list.csv").write_text("file,category\nnut/1.npy,nut\nbolt/1.npy,bolt\n")
    files = [tmp_path / "nut" / "1.npy", tmp_path / "bolt" / "1.npy"]
    by_name = {str(files[0]): "nut", str(files[1]): "bolt"}
    for condition in (folder_of, tmp_path / "list.csv", by_name):
        found = Predictor(adapter, condition=condition)(files)
        assert [answer.cells(1) for answer in found] == [["0"], ["200"]]
    assert [answer.cells(1) for answer in Predictor(adapter, condition="bolt")(files)] == [["200"], ["200"]]
    both = Predictor({"one": adapter, "other": run}, condition=folder_of)(files)
    assert [answer.adapter for answer in both] == ["one", "other"] * 2
    assert [answer.cells(1) for answer in both[::2]] == [["0"], ["200"]]
    bank, points = AdapterBank({"one": adapter, "other": run}), torch.rand(2, 128, 3)
    rows = bank(points, ["one", "one"], torch.tensor([0, 1]))
    assert [row.argmax(dim=1).sum() for row in rows] == [0, 128]
    tiled = altered(run, tmp_path / "tiled.safetensors", tiles=2)
    with pytest.raises(CheckpointError, match=r"tiled\.safetensors: its section task differs from that of .*use a"):
        Predictor({"one": adapter, "tiled": tiled}, condition="nut")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "the task halves has to know the category of an input: give --condition NAME"),
        (["--condition", "boltt"], "category 'boltt' is unknown; did you mean 'bolt'? Known: nut, bolt"),
        (["--condition-from", "list.csv"], "list.csv: line 2: category 'screw' is unknown. Known: nut, bolt"),
        (["--condition-from", "other.csv"], "other.csv: its first line has to name the columns file and category"),
        (["--condition-from", "nut"], "--condition-from nut: give folder or FILE.csv; --condition NAME is of all"),
    ],
)
def test_a_wrong_condition_is_one_line(
    options: list[str], message: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", cloud(200))
    Path("list.csv").write_text("file,category\na.npy,screw\n")
    Path("other.csv").write_text("name,category\na.npy,nut\n")
    try:
        status = main(["predict", str(run), "a.npy", "--output", "found.csv", *options])
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.glob("found*"))


def test_a_file_whose_condition_is_missing_fails_alone(run: Path, tmp_path: Path) -> None:
    for name in ("nut", "screw"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "1.npy", cloud(200))
    good, bad = Predictor(run, condition=folder_of)([tmp_path / "nut", tmp_path / "screw"])
    assert isinstance(good, Labels)
    assert isinstance(bad, Failure)
    assert bad.reason == f"{tmp_path / 'screw' / '1.npy'}: category 'screw' is unknown. Known: nut, bolt"


def test_the_exported_file_takes_the_category(config: Config, tmp_path: Path) -> None:
    """What propagates features to points is exported too; ONNX is left to the test of part segmentation."""
    small = config.replaced(backbone={"num_groups": 4, "depth": 1})  # FPS is unrolled, and exporters are slow
    model = randomise(build_model(small))
    save_adapter(model, tmp_path / "small.safetensors", config=small, facts=Facts(["lower", "upper"]), metrics={})
    found = export_adapter(tmp_path / "small.safetensors", tmp_path / "halves.pt2")
    assert found.metadata["output"]["shape"] == ["batch", 128, CLASSES]
    assert found.metadata["condition"] == {"name": "category", "shape": ["batch"], "categories": ["nut", "bolt"]}
    run = FORMATS[".pt2"].open(found.path)
    points = torch.rand(3, 128, 3)
    assert not torch.equal(*(run(points, torch.full((3,), number)) for number in (0, 1)))


@pytest.mark.parametrize("command", ["config", "folder"])
def test_training_ends_with_what_the_task_says(
    command: str, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "run"
    if command == "config":
        (tmp_path / "halves.yaml").write_text(dump_config(config.replaced(train={"epochs": 1})))
        arguments = ["--config", str(tmp_path / "halves.yaml")]
    else:
        for number in range(16):
            path = tmp_path / "scans" / ("nut", "bolt")[number % 2] / f"{number}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, cloud(256, number))
        small = ["data.num_points=128", "data.stored_points=256", "train.epochs=1"]
        arguments = [str(tmp_path / "scans"), "task.name=halves", *small]
    assert main(["train", *arguments, "--output", str(place)]) == 0
    (first, *_, last) = capsys.readouterr().out.partition("\ntest: ")[2].splitlines()
    assert re.fullmatch(r"instance mIoU of \d+ clouds [\d.]+ %", first)
    assert last.startswith(f"next: pointadapterx predict {place} FILES --condition CATEGORY, or pointadapterx report ")


def test_it_is_counted_by_its_own_loss(config: Config) -> None:
    """A backward pass through the head of every point."""
    assert count_model(config).costs.backward > 0


def test_training_from_kept_features_is_refused(config: Config) -> None:
    sections = config.dump()
    sections["train"]["cached_views"] = 2
    with pytest.raises(ConfigError, match=r"train.cached_views: the task halves cannot train from kept features"):
        Config.of(sections)
