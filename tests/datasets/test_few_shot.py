"""Few-shot tasks: which classes and clouds, that they are the same everywhere, and their way through a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pointadapterx.build import build_split, build_splits
from pointadapterx.config import check_config
from pointadapterx.datasets import PointClouds, build_dataset, few_shot_split, few_shot_task
from pointadapterx.errors import ConfigError
from tests.conftest import small_config
from tests.synthetic import write_ldraw20

CLASSES = ["ant", "bee", "cat", "dog", "eel", "fox"]


def clouds(split: str, per_class: int = 8, groups: torch.Tensor | None = None) -> PointClouds:
    """One point a cloud, that tells which it is; every 10th cloud of the files was dropped before."""
    labels = torch.arange(len(CLASSES)).repeat(per_class)
    positions = torch.tensor([i for i in range(2 * len(labels)) if i % 10][: len(labels)])
    points = positions.float().view(-1, 1, 1).expand(-1, 1, 3).contiguous()
    return PointClouds(points, labels, CLASSES, split, groups=groups, positions=positions)


def names(data: PointClouds) -> list[str]:
    return [data.classes[label] for label in data.labels.tolist()]


def test_a_task_has_its_ways_and_shots_and_all_queries() -> None:
    train, test = clouds("train"), clouds("test", 5)
    support, queries = few_shot_task(train, test, ways=3, shots=2, fold=0)
    assert support.classes == queries.classes
    assert set(support.classes) < set(CLASSES)
    assert support.classes == sorted(support.classes)  # the order of the data set
    assert support.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert queries.labels.bincount().tolist() == [5, 5, 5]
    assert (support.split, queries.split) == ("train", "test")
    for part, whole in ((support, train), (queries, test)):
        assert len(set(part.positions.tolist())) == len(part)
        assert torch.equal(part.points[:, 0, 0], part.positions.float())
        original = dict(zip(whole.positions.tolist(), names(whole), strict=True))
        assert [original[i] for i in part.positions.tolist()] == names(part)


def test_a_number_of_queries() -> None:
    queries = few_shot_task(clouds("train"), clouds("test"), ways=4, shots=2, fold=1, queries=3)[1]
    assert queries.labels.bincount().tolist() == [3, 3, 3, 3]
    assert queries.positions.tolist() != few_shot_split(clouds("test"), 4, 3, 1, 3).positions.tolist()


def test_a_task_is_the_same_at_any_time_and_in_any_order_of_reading() -> None:
    torch.manual_seed(1)
    data = clouds("train")
    first = few_shot_split(data, 3, 2, fold=4)
    torch.manual_seed(2)
    shuffled = data.subset(torch.randperm(len(data)))
    second = few_shot_split(shuffled, 3, 2, fold=4)
    assert sorted(first.positions.tolist()) == sorted(second.positions.tolist())
    assert first.classes == second.classes


def test_the_draws_stay_those_of_the_first_version() -> None:
    """Published folds must not change: neither with the code nor with a library."""
    part = few_shot_split(clouds("train"), 3, 2, fold=0)
    assert part.classes == ["bee", "dog", "fox"]
    assert part.positions.tolist() == [2, 48, 4, 24, 6, 33]


def test_folds_differ_and_reach_every_class_and_cloud() -> None:
    train, test = clouds("train"), clouds("test")
    folds = [few_shot_task(train, test, ways=3, shots=4, fold=fold) for fold in range(30)]
    assert len({support.checksum for support, _ in folds}) == 30
    assert {name for support, _ in folds for name in support.classes} == set(CLASSES)
    assert {i for support, _ in folds for i in support.positions.tolist()} == set(train.positions.tolist())


def test_all_classes_in_two_folds_differ_by_their_clouds() -> None:
    train = clouds("train")
    one, two = few_shot_split(train, 6, 2, fold=0), few_shot_split(train, 6, 2, fold=1)
    assert one.classes == two.classes == CLASSES
    assert one.checksum != two.checksum


@pytest.mark.parametrize("fold", range(5))
def test_shots_are_of_different_groups_as_far_as_there_are(fold: int) -> None:
    groups = torch.arange(48) // 6 // 2 * 6 + torch.arange(48) % 6  # 4 objects a class, 2 clouds of each
    four = few_shot_split(clouds("train", groups=groups), 6, 4, fold)
    assert four.groups is not None
    assert len(set(four.groups.tolist())) == 24
    six = few_shot_split(clouds("train", groups=groups), 6, 6, fold)
    assert six.groups is not None
    assert len(set(six.groups.tolist())) == 24
    assert six.labels.bincount().tolist() == [6] * 6


def test_impossible_tasks() -> None:
    with pytest.raises(ConfigError, match=r"data\.few_shot\.ways=7 exceeds the 6 classes of the data; lower it"):
        few_shot_split(clouds("train"), 7, 2, 0)
    few = clouds("train").subset(torch.arange(45))  # the last three classes lack a cloud
    with pytest.raises(ConfigError, match=r"class 'dog' has 7 train clouds and 8 are needed; lower .*shots=8, or take"):
        few_shot_split(few, 6, 8, 0)
    with pytest.raises(ConfigError, match=r"class 'ant' has 8 test clouds and 9 are needed; lower .*queries=9, or"):
        few_shot_split(clouds("test"), 6, 1, 0, 9)
    none = clouds("test").subset((clouds("test").labels != 2).nonzero().flatten())
    with pytest.raises(ConfigError, match=r"class 'cat' has 0 test clouds and 1 are needed; take another"):
        few_shot_split(none, 6, 1, 0)


# The way through a run


def few_shot_config(root: Path, num_classes: int = 5, **few_shot: Any) -> dict[str, Any]:
    task = {"ways": 5, "shots": 2, "fold": 3} | few_shot
    return small_config(data={"root": str(root), "few_shot": task}, head={"num_classes": num_classes})


def test_a_run_sees_the_task(tmp_path: Path) -> None:
    write_ldraw20(tmp_path, num_points=160)
    config = few_shot_config(tmp_path)
    config["eval"]["protocol"] = "published"
    splits = build_splits(config)
    support, queries = few_shot_task(
        build_dataset("ldraw20", "train", root=tmp_path), build_dataset("ldraw20", "test", root=tmp_path), 5, 2, 3
    )
    assert splits.train.checksum == support.checksum
    assert splits.test.checksum == queries.checksum
    assert len(support) == 10
    assert len(queries) == 10


def test_the_test_split_alone_is_the_same_task(tmp_path: Path) -> None:
    write_ldraw20(tmp_path, num_points=160)
    config = few_shot_config(tmp_path, queries=1)
    whole = build_splits(config).test
    (tmp_path / "train.h5").unlink()
    alone = build_split(config, "test")
    assert alone.checksum == whole.checksum
    assert alone.classes == whole.classes
    config["train"]["seed"] = 9
    assert build_split(config, "test").checksum == whole.checksum


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["head.num_classes=20"], "head.num_classes: 20, but data.few_shot has 5 classes"),
        (["data.few_shot.ways=21", "head.num_classes=21"], "data.few_shot.ways: 21 exceeds the 20 classes of ldraw20"),
        (["data.few_shot.fold=-1"], "data.few_shot.fold: Input should be greater than or equal to 0, not -1"),
        (["data.few_shot.shot=3"], "data.few_shot.shot: unknown key; did you mean 'shots'?"),
        (["data.few_shot=5"], "data.few_shot: "),
    ],
)
def test_a_config_is_checked(tmp_path: Path, overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_config(few_shot_config(tmp_path), "test", overrides)
    assert "1 problem" in str(error.value)
    assert says in str(error.value)


def test_a_task_is_no_pre_training_data(tmp_path: Path) -> None:
    config = few_shot_config(tmp_path)
    sections = {key: config[key] for key in ("backbone", "data", "train", "eval")}
    pretrain = {"decoder_heads": 3, "probe": {"name": "folder"}}
    with pytest.raises(ConfigError) as error:
        check_config(sections | {"pretrain": pretrain}, "test")
    assert "2 problems" in str(error.value)
    assert "data.few_shot: belongs to adaptation" in str(error.value)
    assert "pretrain.probe.name: folder has no labels for a probe" in str(error.value)
