"""Few-shot tasks: which classes and clouds, that they are the same everywhere, and their way through a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

from pointadapterx.build import build_splits, build_test_split
from pointadapterx.config import Config
from pointadapterx.datasets import PointClouds, build_dataset, few_shot_task
from pointadapterx.datasets.ldraw20 import LDRAW20_CLASSES
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


def support(data: PointClouds, ways: int, shots: int, fold: int) -> PointClouds:
    return few_shot_task(data, clouds("test"), ways, shots, fold)[0]


def names(data: PointClouds) -> list[str]:
    return [data.classes[label] for label in data.labels.tolist()]


def test_a_task_has_its_ways_and_shots_and_all_queries() -> None:
    train, test = clouds("train"), clouds("test", 5)
    shots, queries = few_shot_task(train, test, ways=3, shots=2, fold=0)
    assert shots.classes == queries.classes
    assert set(shots.classes) < set(CLASSES)
    assert shots.classes == sorted(shots.classes)  # the order of the data set
    assert shots.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert queries.labels.bincount().tolist() == [5, 5, 5]
    assert (shots.split, queries.split) == ("train", "test")
    for part, whole in ((shots, train), (queries, test)):
        assert len(set(part.positions.tolist())) == len(part)
        assert torch.equal(part.points[:, 0, 0], part.positions.float())
        original = dict(zip(whole.positions.tolist(), names(whole), strict=True))
        assert [original[i] for i in part.positions.tolist()] == names(part)


def test_a_number_of_queries() -> None:
    train, test = clouds("train"), clouds("test")
    queries = few_shot_task(train, test, ways=6, shots=2, fold=1, queries=3)[1]
    assert queries.labels.bincount().tolist() == [3] * 6
    others = few_shot_task(train, test, ways=6, shots=3, fold=1, queries=3)[1]
    assert queries.positions.tolist() != others.positions.tolist()


def test_a_task_is_the_same_at_any_time_and_in_any_order_of_reading() -> None:
    torch.manual_seed(1)
    data = clouds("train")
    first = support(data, 3, 2, fold=4)
    torch.manual_seed(2)
    shuffled = data.subset(torch.randperm(len(data)))
    second = support(shuffled, 3, 2, fold=4)
    assert sorted(first.positions.tolist()) == sorted(second.positions.tolist())
    assert first.classes == second.classes


def test_the_draws_stay_those_of_the_first_version() -> None:
    """Published folds must not change: neither with the code nor with a library."""
    part = support(clouds("train"), 3, 2, fold=0)
    assert part.classes == ["bee", "dog", "fox"]
    assert part.positions.tolist() == [2, 48, 4, 24, 6, 33]


def test_folds_differ_and_reach_every_class_and_cloud() -> None:
    train, test = clouds("train"), clouds("test")
    folds = [few_shot_task(train, test, ways=3, shots=4, fold=fold) for fold in range(30)]
    assert len({shots.checksum for shots, _ in folds}) == 30
    assert {name for shots, _ in folds for name in shots.classes} == set(CLASSES)
    assert {i for shots, _ in folds for i in shots.positions.tolist()} == set(train.positions.tolist())


def test_all_classes_in_two_folds_differ_by_their_clouds() -> None:
    train = clouds("train")
    one, two = support(train, 6, 2, fold=0), support(train, 6, 2, fold=1)
    assert one.classes == two.classes == CLASSES
    assert one.checksum != two.checksum


@pytest.mark.parametrize("fold", range(5))
def test_shots_are_of_different_groups_as_far_as_there_are(fold: int) -> None:
    groups = torch.arange(48) // 6 // 2 * 6 + torch.arange(48) % 6  # 4 objects a class, 2 clouds of each
    four = support(clouds("train", groups=groups), 6, 4, fold)
    assert four.groups is not None
    assert len(set(four.groups.tolist())) == 24
    six = support(clouds("train", groups=groups), 6, 6, fold)
    assert six.groups is not None
    assert len(set(six.groups.tolist())) == 24
    assert six.labels.bincount().tolist() == [6] * 6


def test_classes_with_too_few_clouds_are_not_drawn() -> None:
    train, test = clouds("train"), clouds("test")
    few = train.subset(torch.arange(46))  # the last two classes lack a cloud
    none = test.subset((test.labels != 2).nonzero().flatten())
    drawn = {name for fold in range(20) for name in few_shot_task(few, none, 2, 8, fold)[0].classes}
    assert drawn == {"ant", "bee", "dog"}
    for fold in range(20):
        whole, part = few_shot_task(train, test, 3, 8, fold), few_shot_task(few, none, 3, 8, fold)
        if set(whole[0].classes) == drawn:
            assert whole[0].checksum == part[0].checksum
            assert whole[1].checksum == part[1].checksum
        assert part[0].classes == part[1].classes == sorted(drawn)


def test_every_fold_of_the_embedded_clouds_is_a_task() -> None:
    train, test = build_dataset("ldraw20", "train"), build_dataset("ldraw20", "test")
    for fold in range(10):
        shots, queries = few_shot_task(train, test, 10, 20, fold)
        assert shots.labels.bincount().tolist() == [20] * 10
        assert len(queries.labels.unique()) == 10


def test_impossible_tasks() -> None:
    train, test = clouds("train"), clouds("test")
    with pytest.raises(ConfigError, match=r"data\.few_shot\.ways=7: only 6 of 6 classes have 2 training .* lower one"):
        few_shot_task(train, test, 7, 2, 0)
    with pytest.raises(ConfigError, match=r"ways=6: only 4 of 6 classes have 8 training samples .* and 1 test samples"):
        few_shot_task(train.subset(torch.arange(46)), test, 6, 8, 0)
    with pytest.raises(ConfigError, match=r"ways=2: only 0 of 6 classes have 1 training samples .* and 9 test samples"):
        few_shot_task(train, test, 2, 1, 0, 9)


# The way through a run


def few_shot_config(root: Path, num_classes: int = 5, protocol: str = "validation", **few_shot: Any) -> Config:
    task = {"ways": 5, "shots": 2, "fold": 3} | few_shot
    return small_config(
        data={"root": str(root), "few_shot": task}, head={"num_classes": num_classes}, eval={"protocol": protocol}
    )


def test_a_run_sees_the_task(tmp_path: Path) -> None:
    write_ldraw20(tmp_path, num_points=160)
    config = few_shot_config(tmp_path, protocol="published")
    splits = build_splits(config)
    shots, queries = few_shot_task(
        build_dataset("ldraw20", "train", root=tmp_path), build_dataset("ldraw20", "test", root=tmp_path), 5, 2, 3
    )
    assert splits.train.checksum == shots.checksum
    assert splits.test.checksum == queries.checksum
    assert len(shots) == 10
    assert len(queries) == 10


def test_the_test_split_alone_is_the_same_task(tmp_path: Path) -> None:
    write_ldraw20(tmp_path, num_points=160)
    with h5py.File(tmp_path / "train.h5", "r+") as file:
        file["label"][file["label"][()] < 10] = 19  # ten classes without a training cloud
    config = few_shot_config(tmp_path, protocol="last", queries=1)
    whole = build_splits(config).test
    alone = build_test_split(config)
    assert alone.checksum == whole.checksum
    assert alone.classes == whole.classes
    assert not set(alone.classes) & set(LDRAW20_CLASSES[:10])
    assert build_test_split(config.replaced(train={"seed": 9})).checksum == whole.checksum


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
        Config.of(few_shot_config(tmp_path), "test", overrides)
    assert "1 problem" in str(error.value)
    assert says in str(error.value)


def test_a_task_is_no_pre_training_data(tmp_path: Path) -> None:
    config = few_shot_config(tmp_path).dump()
    sections = {key: config[key] for key in ("backbone", "data", "train", "eval")}
    pretrain = {"decoder_heads": 3, "probe": {"name": "folder"}}
    with pytest.raises(ConfigError) as error:
        Config.of(sections | {"pretrain": pretrain}, "test")
    assert "2 problems" in str(error.value)
    assert "data.few_shot: belongs to adaptation" in str(error.value)
    assert "pretrain.probe.name: folder has no labels for a probe" in str(error.value)
