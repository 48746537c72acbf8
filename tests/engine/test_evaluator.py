"""Evaluation, voting and metrics: what a figure depends on, and what it must not depend on."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from accelerate import Accelerator
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, recall_score
from torch import Tensor

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.build import build_model, build_test_split
from pointadapterx.config import Config
from pointadapterx.datasets import PointClouds, resample_test, resample_train
from pointadapterx.datasets.base import Targets
from pointadapterx.datasets.inputs import Batch, Batches
from pointadapterx.datasets.ldraw20 import LDRAW20_CLASSES
from pointadapterx.engine import evaluator
from pointadapterx.engine.devices import make_accelerator
from pointadapterx.engine.evaluator import evaluate, evaluate_features, vote, vote_over_seeds
from pointadapterx.errors import TrainingError
from pointadapterx.jobs.linear_probe import probe_accuracy
from pointadapterx.tasks import Classification, Task, build_task
from pointadapterx.tasks.classification import ClassFacts, compute_metrics, write_predictions
from pointadapterx.tasks.exchange import Predictions
from pointadapterx.visualize.introspection import saliency
from tests.conftest import randomise

MakeConfig = Callable[..., Config]


class Rank:
    """An accelerator that claims to be one of several processes; its gathering is not used."""

    def __init__(self, rank: int, world: int) -> None:
        self.process_index, self.num_processes = rank, world
        self.device = torch.device("cpu")
        self.autocast = make_accelerator("fp32").autocast


def task_of(config: Config) -> Task:
    """The task of a config on LDraw-20."""
    return build_task(config, ClassFacts(list(LDRAW20_CLASSES)))


@pytest.fixture
def config(run_config: MakeConfig) -> Config:
    return run_config(eval={"batch_size": 7})


@pytest.fixture
def model(config: Config) -> AdaptedModel:
    return randomise(build_model(config))


@pytest.fixture
def dataset(config: Config) -> PointClouds:
    return build_test_split(config)


@pytest.fixture
def accelerator() -> Accelerator:
    return make_accelerator("fp32")


def test_every_sample_is_predicted_once_in_file_order(
    model: AdaptedModel, dataset: PointClouds, config: Config, accelerator: Accelerator
) -> None:
    found = evaluate(model, dataset, task_of(config), accelerator)
    assert found.logits.shape == (40, 20)
    assert torch.equal(found.labels, dataset.labels)
    model.eval()
    for index in (0, 6, 7, 39):
        alone = model(resample_test(dataset.points[index : index + 1], 128)).logits
        torch.testing.assert_close(alone[0], found.logits[index], atol=1e-4, rtol=1e-4)


def test_the_mode_of_the_model_is_restored(
    model: AdaptedModel, dataset: PointClouds, config: Config, accelerator: Accelerator
) -> None:
    for mode in (True, False):
        model.train(mode)
        before = {name: module.training for name, module in model.named_modules()}
        evaluate(model, dataset, task_of(config), accelerator)
        assert {name: module.training for name, module in model.named_modules()} == before


def test_evaluation_changes_no_tensor(
    model: AdaptedModel, dataset: PointClouds, config: Config, accelerator: Accelerator
) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    vote(model.train(), dataset, task_of(config), accelerator, copies=1, seed=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_predictions_do_not_depend_on_the_order_of_the_samples(
    model: AdaptedModel, dataset: PointClouds, config: Config, accelerator: Accelerator
) -> None:
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
    straight = evaluate(model, dataset, task_of(config), accelerator).logits
    shuffled = evaluate(model, dataset.subset(order), task_of(config), accelerator).logits
    torch.testing.assert_close(shuffled, straight[order], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 13, 40, 100])
def test_predictions_do_not_depend_on_the_batch_size(
    batch_size: int, model: AdaptedModel, dataset: PointClouds, config: Config, accelerator: Accelerator
) -> None:
    straight = evaluate(model, dataset, task_of(config), accelerator).logits
    config = config.replaced(eval={"batch_size": batch_size})
    torch.testing.assert_close(
        evaluate(model, dataset, task_of(config), accelerator).logits, straight, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("world", [2, 3, 8])
def test_ranks_split_the_batches_and_lose_nothing(
    world: int, model: AdaptedModel, dataset: PointClouds, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: the parts of all ranks together are the rows of one process, voting included."""
    whole = vote(model, dataset, task_of(config), make_accelerator("fp32"), copies=1, seed=5).logits
    parts: list[tuple[Tensor, Tensor]] = []

    def keep(indices: Tensor, rows: Tensor, accelerator: Accelerator) -> Tensor:
        parts.append((indices, rows))
        return rows

    monkeypatch.setattr(evaluator, "_gather_rows", keep)
    for rank in range(world):
        vote(model, dataset, task_of(config), cast(Accelerator, Rank(rank, world)), copies=1, seed=5)
    indices, rows = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    assert indices.sort().values.tolist() == list(range(len(dataset)))
    assert torch.equal(rows[indices.argsort()], whole)


def test_a_vote_is_a_function_of_its_seed(
    model: AdaptedModel, dataset: PointClouds, config: Config, accelerator: Accelerator
) -> None:
    one = vote(model, dataset, task_of(config), accelerator, copies=2, seed=1).logits
    torch.manual_seed(99)
    assert torch.equal(vote(model, dataset, task_of(config), accelerator, copies=2, seed=1).logits, one)
    assert not torch.equal(vote(model, dataset, task_of(config), accelerator, copies=2, seed=2).logits, one)


def test_only_the_model_computes_in_half_precision(
    model: AdaptedModel, dataset: PointClouds, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The draws of a vote are those of a training, whatever the precision."""
    drawn, training = [], Batches.training

    def note(batches: Batches, indices: Tensor, generator: torch.Generator) -> Batch:
        drawn.append(torch.is_autocast_enabled("cpu"))
        return training(batches, indices, generator)

    monkeypatch.setattr(Batches, "training", note)
    rank = Rank(0, 1)
    rank.autocast = lambda: torch.autocast("cpu", torch.bfloat16)
    rough = vote(model, dataset, task_of(config), cast(Accelerator, rank), copies=2, seed=0).logits
    assert drawn == [False] * len(drawn)
    assert not torch.equal(
        vote(model, dataset, task_of(config), cast(Accelerator, Rank(0, 1)), copies=2, seed=0).logits, rough
    )


def test_a_vote_is_the_mean_of_the_logits_of_its_copies(
    model: AdaptedModel,
    dataset: PointClouds,
    config: Config,
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copies: list[Tensor] = []
    combine = Classification.combine

    def recording(self: Classification, outputs: list[Tensor], batches: list[Batch]) -> Tensor:
        copies.append(torch.stack(outputs))
        return combine(self, outputs, batches)

    monkeypatch.setattr(Classification, "combine", recording)
    found = vote(model, dataset, task_of(config), accelerator, copies=3, seed=0).logits
    three = torch.cat(copies, dim=1)
    assert len(three) == 3
    torch.testing.assert_close(found, three.mean(dim=0))
    assert not torch.equal(three[0], three[1])  # each copy has its own draws
    again = vote(model, dataset, task_of(config), accelerator, copies=1, seed=0).logits
    assert torch.equal(again, three[0])  # and they do not depend on how many there are


@pytest.mark.parametrize("num_points", [1, 64, 200, 213, 214, 255, 256])
def test_every_point_count_evaluates_and_votes(
    num_points: int, dataset: PointClouds, run_config: MakeConfig, accelerator: Accelerator
) -> None:
    """256 are the points of a cloud: the counts are on both sides of where the FPS stage would exceed them."""
    sizes = {"num_groups": 1, "group_size": 1} if num_points == 1 else {}
    config = run_config(data={"num_points": num_points, "augment": "rotation"}, backbone=sizes)
    model = randomise(build_model(config))
    few = dataset.subset(range(5))
    found = evaluate(model, few, task_of(config), accelerator).logits
    voted = vote(model, few, task_of(config), accelerator, copies=1, seed=0).logits
    assert found.shape == voted.shape == (5, 20)
    assert torch.isfinite(found).all()
    assert torch.isfinite(voted).all()


def test_the_test_set_is_not_resampled_when_it_has_the_points(dataset: PointClouds) -> None:
    assert resample_test(dataset.points, 256) is dataset.points
    shuffled = resample_train(dataset.points[:2], 256, torch.Generator().manual_seed(0))
    assert torch.equal(shuffled.sort(dim=1).values, dataset.points[:2].sort(dim=1).values)


def test_votes_over_seeds_report_their_spread(
    model: AdaptedModel, dataset: PointClouds, config: Config, accelerator: Accelerator
) -> None:
    report, first = vote_over_seeds(model, dataset, task_of(config), accelerator, copies=2, seeds=[3, 4, 5])
    assert torch.equal(first.logits, vote(model, dataset, task_of(config), accelerator, copies=2, seed=3).logits)
    for key in ("overall_accuracy", "mean_class_accuracy"):
        votes = [
            compute_metrics(vote(model, dataset, task_of(config), accelerator, copies=2, seed=seed), dataset.classes)[
                key
            ]
            for seed in (3, 4, 5)
        ]
        assert report[key]["votes"] == votes
        assert report[key]["mean"] == pytest.approx(sum(votes) / 3)
        assert report[key]["std"] == pytest.approx(torch.tensor(votes, dtype=torch.float64).std().item())
        assert "published_maximum" not in report[key]
    assert "label" not in report
    json.dumps(report)


def test_the_published_maximum_is_labelled(
    model: AdaptedModel, dataset: PointClouds, config: Config, accelerator: Accelerator
) -> None:
    report, _ = vote_over_seeds(model, dataset, task_of(config), accelerator, copies=1, seeds=[0, 1], published=True)
    assert report["label"] == "published protocol: maximum of 2 votes on the test set, optimistic"
    assert report["overall_accuracy"]["published_maximum"] == max(report["overall_accuracy"]["votes"])


def test_one_vote_has_no_spread(
    model: AdaptedModel, dataset: PointClouds, config: Config, accelerator: Accelerator
) -> None:
    report, _ = vote_over_seeds(model, dataset, task_of(config), accelerator, copies=1, seeds=[0])
    assert report["overall_accuracy"]["std"] is None


@pytest.mark.parametrize("seed", range(5))
def test_metrics_are_those_of_scikit_learn(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 6, (83,), generator=generator)
    logits = torch.randn(83, 6, generator=generator) + torch.nn.functional.one_hot(labels, 6)
    names = [f"class {index}" for index in range(6)]
    metrics = compute_metrics(Predictions(logits, Targets(labels)), names)
    truth, chosen = labels.numpy(), logits.argmax(dim=1).numpy()
    assert metrics["confusion_matrix"] == confusion_matrix(truth, chosen, labels=range(6)).tolist()
    assert metrics["overall_accuracy"] == pytest.approx(100 * accuracy_score(truth, chosen))
    assert metrics["mean_class_accuracy"] == pytest.approx(100 * balanced_accuracy_score(truth, chosen), abs=1e-4)
    recall = recall_score(truth, chosen, labels=range(6), average=None)
    for index, name in enumerate(names):
        assert metrics["per_class"][name]["accuracy"] == pytest.approx(100 * recall[index], abs=1e-4)
        assert metrics["per_class"][name]["count"] == (truth == index).sum()
    assert metrics["count"] == 83
    json.dumps(metrics)


def test_a_class_without_samples_does_not_enter_the_mean() -> None:
    """Nor does it when others are mistaken for it."""
    labels = torch.tensor([0, 0, 2, 2])
    logits = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 2]), 4).float()
    metrics = compute_metrics(Predictions(logits, Targets(labels)), ["a", "b", "c", "d"])
    assert metrics["mean_class_accuracy"] == 75.0
    assert metrics["overall_accuracy"] == 75.0
    assert metrics["per_class"]["b"] == {"accuracy": None, "count": 0}
    assert metrics["per_class"]["d"] == {"accuracy": None, "count": 0}
    assert metrics["per_class"]["a"] == {"accuracy": 50.0, "count": 2}


def test_the_prediction_file_tells_each_sample(tmp_path: Path) -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0], [-1.0, 1.0]])
    predictions = Predictions(logits, Targets(torch.tensor([0, 1, 1])))
    write_predictions(tmp_path / "p.csv", predictions, ["bag, small", "bin"], ["a", "b", 'c"d'], "validation")
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["protocol"] for row in rows} == {"validation"}
    assert [row["name"] for row in rows] == ["a", "b", 'c"d']
    assert [row["label"] for row in rows] == ["bag, small", "bin", "bin"]
    assert [row["prediction"] for row in rows] == ["bag, small", "bag, small", "bin"]
    assert [row["correct"] for row in rows] == ["1", "0", "1"]
    wanted = torch.softmax(logits, dim=-1).amax(dim=-1).tolist()
    assert [float(row["probability"]) for row in rows] == pytest.approx(wanted, abs=1e-6)
    assert {row["group"] for row in rows} == {""}


def test_the_prediction_file_tells_which_samples_are_of_one_object(tmp_path: Path) -> None:
    predictions = Predictions(torch.eye(3), Targets(torch.tensor([0, 1, 1])))
    groups = torch.tensor([4, 7, 4])
    write_predictions(tmp_path / "p.csv", predictions, ["a", "b", "c"], None, "validation", groups)
    with (tmp_path / "p.csv").open(newline="") as file:
        assert [row["group"] for row in csv.DictReader(file)] == ["4", "7", "4"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_no_answer(value: float, tmp_path: Path) -> None:
    """The largest of NaNs is the first class, which would be right for its samples."""
    predictions = Predictions(torch.tensor([[1.0, 0.0], [value, value]]), Targets(torch.tensor([0, 0])))
    with pytest.raises(TrainingError, match=r"the logits of 1 samples are not finite, first indices \[1\]"):
        compute_metrics(predictions, ["a", "b"])
    with pytest.raises(TrainingError, match="not finite"):
        write_predictions(tmp_path / "p.csv", predictions, ["a", "b"], None, None)
    assert not (tmp_path / "p.csv").exists()


@pytest.mark.parametrize("part", ["head", "backbone"])
def test_weights_that_compute_nan_are_refused_everywhere(part: str, run_config: MakeConfig) -> None:
    config = run_config("linear")
    model, dataset, accelerator = build_model(config), build_test_split(config), Accelerator(cpu=True)
    assert isinstance(dataset, PointClouds)
    with torch.no_grad():
        next(getattr(model, part).parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match="the logits of 40 samples are not finite"):
        evaluate(model, dataset, task_of(config), accelerator)
    with pytest.raises(TrainingError, match="the logits of 40 samples are not finite"):
        vote(model, dataset, task_of(config), accelerator, copies=1, seed=0)
    if part == "backbone":
        with pytest.raises(TrainingError, match="the features of 40 samples are not finite"):
            evaluate_features(model, dataset, task_of(config), accelerator)
        with pytest.raises(TrainingError, match="the features of 40 samples are not finite"):
            probe_accuracy(model.backbone, dataset, dataset, config, accelerator)
    with pytest.raises(TrainingError, match="not finite"):
        saliency(model.eval(), dataset.points[:1])
