"""A task that answers for every point goes through training, evaluation, voting, files and predictions unchanged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pointadapterx.build import build_model, build_splits
from pointadapterx.checkpoints.adapter_file import load_adapter, read_adapter
from pointadapterx.commands.main import main
from pointadapterx.config import Config, read_config
from pointadapterx.counting import count_model
from pointadapterx.datasets import PointClouds, Samples
from pointadapterx.datasets.base import Targets
from pointadapterx.datasets.inputs import Batch
from pointadapterx.engine.devices import make_accelerator
from pointadapterx.engine.evaluator import evaluate, vote
from pointadapterx.engine.features import StoredBatches
from pointadapterx.engine.predictor import Predictor
from pointadapterx.errors import CheckpointError, ConfigError
from pointadapterx.export import export_adapter
from pointadapterx.jobs import test as run_test
from pointadapterx.jobs import train
from pointadapterx.models.features import FeatureInfo, Features, Head
from pointadapterx.tasks import TASKS, build_task
from pointadapterx.tasks.base import Task
from pointadapterx.tasks.exchange import Answer, Facts, Predictions, Ready, Score, TaskOptions
from pointadapterx.tasks.pooled import Values
from tests.conftest import small_config
from tests.synthetic import write_ldraw20

CLASSES = 2


class HalvesOptions(TaskOptions):
    """``task:``."""

    name: Literal["halves"] = "halves"


class PointHead(Head):
    """Pooled tokens, a point's coordinates and the sample's category -> logits of the point."""

    def __init__(self, info: FeatureInfo) -> None:
        super().__init__()
        self.layer = nn.Linear(info.width + 3 + 1, CLASSES)
        nn.init.zeros_(self.layer.weight)
        self.width = info.width

    def forward(self, features: Features) -> Tensor:
        """Features -> (B, N, classes)."""
        points, category = features.inputs, features.condition
        assert points is not None
        pooled = features.sequence.patches.amax(dim=1)[:, None].expand(-1, points.shape[1], -1)
        given = points.new_zeros(len(points)) if category is None else category.to(points.dtype)
        categories = given[:, None, None].expand(*points.shape[:2], 1)
        return self.layer(torch.cat([pooled, points, categories], dim=-1))


class Halves(Task):
    """Whether a point is in the upper half of its cloud; conditioned on the label."""

    Options = HalvesOptions
    caches = False
    file_kinds = (".csv",)
    scores: ClassVar[Mapping[str, Score]] = {"iou": Score("mIoU", "instance mIoU")}

    def targets(self, data: Samples) -> Targets:
        """Labels of points, and categories."""
        assert isinstance(data, PointClouds)
        heights = data.points[..., 1]
        return Targets(data.labels, (heights > heights.median(dim=1, keepdim=True).values).long())

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
        logits, auxiliary = model(batch.inputs, batch.targets.sample)
        assert batch.targets.points is not None
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch.targets.points.flatten())
        return loss if auxiliary is None else loss + auxiliary, {"loss": loss.detach() * len(logits)}

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits of the points."""
        return model(batch.inputs, batch.targets.sample).logits

    def combine(self, outputs: Sequence[Tensor], batches: Sequence[Batch]) -> Tensor:
        """Sums of logits where the points of all copies lie in the cloud, for those of the first copy."""
        if len(outputs) == 1:
            return outputs[0]
        index = [batch.index for batch in batches]
        assert all(part is not None for part in index)
        total = outputs[0].new_zeros(len(outputs[0]), int(max(part.max() for part in index)) + 1, CLASSES)
        for part, logits in zip(index, outputs, strict=True):
            total.scatter_add_(1, part[..., None].expand_as(logits), logits)
        return total.take_along_dim(index[0][..., None], dim=1)

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
        """The same, alone."""
        path.write_text(f"{answer.name} {kind} {answer.text()}")

    def answers(self, model: Any, batch: Batch, inputs: Sequence[Ready], adapter: str, top: int) -> list[Answer | None]:
        """The number of points in the upper half."""
        counts = self.outputs(model, batch).argmax(dim=-1).sum(dim=1).tolist()
        return [Values(item.name, adapter, {"upper": float(n)}, []) for item, n in zip(inputs, counts, strict=True)]


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


def test_its_head_is_given_all_wherever_it_is_asked(config: Config) -> None:
    model, points, category = build_model(config).eval(), torch.randn(2, 128, 3), torch.tensor([0, 1])
    found = model.read(points, category)
    assert found.inputs is points
    assert found.condition is category
    assert torch.equal(model.head(found), model(points, category).logits)


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


def test_it_predicts(run: Path) -> None:
    (answer,) = Predictor(run)([np.random.default_rng(0).uniform(-1, 1, (500, 3))])
    assert isinstance(answer, Values)
    assert 0 <= answer.values["upper"] <= 128


def test_predict_writes_a_file_for_each_input(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        np.savetxt(tmp_path / f"{name}.txt", np.random.default_rng(0).uniform(-1, 1, (300, 3)))
    command = ["predict", str(run / "adapter.safetensors"), str(tmp_path), "--each", str(tmp_path / "found")]
    assert main(command) == 0
    assert sorted(path.name for path in (tmp_path / "found").iterdir()) == ["a.csv", "b.csv"]
    assert ".csv upper " in (tmp_path / "found" / "a.csv").read_text()
    with pytest.raises(SystemExit):
        main([*command, "--kind", "ply"])
    assert "--kind ply: the task halves writes .csv" in capsys.readouterr().err


def test_the_exported_file_takes_the_category(run: Path, tmp_path: Path) -> None:
    found = export_adapter(run, tmp_path / "halves.pt2")
    assert found.metadata["output"]["shape"] == ["batch", 128, CLASSES]
    assert found.metadata["condition"] == {"name": "category", "shape": ["batch"], "categories": ["nut", "bolt"]}
    program = torch.export.load(found.path).module()
    points = torch.rand(3, 128, 3)
    assert not torch.equal(*(program(points, torch.full((3,), kind)) for kind in (0, 1)))


def test_it_is_counted_by_its_own_loss(config: Config) -> None:
    """A backward pass through the head of every point."""
    assert count_model(config).costs.backward > 0


def test_training_from_kept_features_is_refused(config: Config) -> None:
    sections = config.dump()
    sections["train"]["cached_views"] = 2
    with pytest.raises(ConfigError, match=r"train.cached_views: the task halves cannot train from kept features"):
        Config.of(sections)
