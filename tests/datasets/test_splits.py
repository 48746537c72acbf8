"""Validation parts."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointadapterx.build import build_splits
from pointadapterx.datasets import build_dataset, stratified_draw, stratified_split
from pointadapterx.errors import ConfigError, DataError
from tests.conftest import small_config


def labels_of(*counts: int) -> torch.Tensor:
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


def check_partition(train: torch.Tensor, val: torch.Tensor, n: int) -> None:
    assert train.dtype == val.dtype == torch.int64
    assert torch.equal(train, train.sort().values)
    assert torch.equal(val, val.sort().values)
    assert torch.cat([train, val]).sort().values.tolist() == list(range(n))
    assert len(train)
    assert len(val)


def test_every_class_gives_its_share() -> None:
    labels = labels_of(100, 50, 20)[torch.randperm(170, generator=torch.Generator().manual_seed(0))]
    train, val = stratified_split(labels, 0.2, seed=0)
    check_partition(train, val, 170)
    assert labels[val].bincount().tolist() == [20, 10, 4]


@pytest.mark.parametrize("grouped", [False, True])
def test_the_seed_fixes_the_split(grouped: bool) -> None:
    labels = labels_of(60, 40)
    groups = torch.arange(100) // 2 if grouped else None
    first = stratified_split(labels, 0.3, 1, groups)
    assert torch.equal(first[1], stratified_split(labels, 0.3, 1, groups)[1])
    assert not torch.equal(first[1], stratified_split(labels, 0.3, 2, groups)[1])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(2, 12), min_size=2, max_size=6), st.sampled_from([0.1, 0.15, 0.3, 0.5]), st.integers(0, 99))
def test_groups_stay_together_and_every_class_can_be_learnt(sizes: list[int], fraction: float, seed: int) -> None:
    labels = labels_of(*(3 * size for size in sizes))
    groups = torch.arange(len(labels)) // 3
    if len(groups.unique()) < 20:
        return
    train, val = stratified_split(labels, fraction, seed, groups)
    check_partition(train, val, len(labels))
    assert not set(groups[train].tolist()) & set(groups[val].tolist())
    assert labels[train].unique().tolist() == list(range(len(sizes)))
    assert abs(len(val) / len(labels) - fraction) < 0.15


def test_a_large_validation_part_leaves_every_class_a_group_to_learn_from() -> None:
    labels = labels_of(60, 4)
    groups = torch.arange(64) // 2  # class 1 has two groups, both of which nine folds of ten would mostly take
    for seed in range(5):
        train, val = stratified_split(labels, 0.9, seed, groups)
        check_partition(train, val, 64)
        assert labels[train].unique().tolist() == [0, 1]


def test_variants_of_a_part_stay_together_in_the_shipped_data() -> None:
    data = build_dataset("ldraw20", "train")
    assert data.groups is not None
    train, val = stratified_split(data.labels, 0.1, 0, data.groups)
    check_partition(train, val, len(data))
    assert not set(data.groups[train].tolist()) & set(data.groups[val].tolist())
    assert abs(len(val) / len(data) - 0.1) < 0.02
    assert len(data.labels[val].unique()) == 20


def test_a_class_of_one_sample_stays_in_train_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    labels = labels_of(20, 1, 20)
    with caplog.at_level(logging.WARNING):
        train, val = stratified_split(labels, 0.2, 0)
    check_partition(train, val, 41)
    assert 1 not in labels[val]
    assert "1 of 3 classes have a single sample and stay in the training part: labels 1" in caplog.text


def test_a_class_of_one_group_stays_in_train_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    labels = labels_of(20, 6, 20)
    groups = torch.cat([torch.arange(20), torch.full((6,), 99), torch.arange(20) + 200])
    with caplog.at_level(logging.WARNING):
        _, val = stratified_split(labels, 0.2, 0, groups)
    assert 1 not in labels[val]
    assert "have a single group" in caplog.text


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 2.0])
def test_fractions_outside_0_and_1(fraction: float) -> None:
    with pytest.raises(ConfigError, match="must be between 0 and 1"):
        stratified_split(labels_of(10, 10), fraction, 0)


def test_a_fraction_too_small_for_the_classes_names_one_that_works() -> None:
    labels = labels_of(*[10] * 15)
    with pytest.raises(ConfigError, match=r"there are 15 classes; choose a fraction from 0\.100 to 0\.900"):
        stratified_split(labels, 0.02, 0)
    stratified_split(labels, 0.1, 0)


def test_fractions_that_groups_cannot_meet_name_one_that_works() -> None:
    labels, groups = labels_of(8, 8), torch.arange(16) // 2
    with pytest.raises(ConfigError, match=r"fraction=0\.05 .*; choose one from 0\.125 to 0\.875"):
        stratified_split(labels, 0.05, 0, groups)
    train, val = stratified_split(labels, 0.125, 0, groups)
    check_partition(train, val, 16)


@pytest.mark.parametrize("labels", [torch.tensor([0, 1, 2]), torch.tensor([], dtype=torch.int64)])
def test_nothing_to_hold_out(labels: torch.Tensor) -> None:
    with pytest.raises(DataError, match="no class has two samples"):
        stratified_split(labels, 0.2, 0)


def test_groups_of_another_length() -> None:
    with pytest.raises(DataError, match="3 groups for 4 labels"):
        stratified_split(torch.zeros(4, dtype=torch.int64), 0.5, 0, torch.arange(3))


@given(counts=st.lists(st.integers(1, 40), min_size=2, max_size=6), share=st.floats(0, 1), seed=st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_draws_keep_the_shares_of_the_classes(counts: list[int], share: float, seed: int) -> None:
    labels = labels_of(*counts)
    size = len(counts) + round(share * (len(labels) - len(counts)))
    drawn = stratified_draw(labels, size, seed)
    assert len(drawn) == len(drawn.unique()) == size
    assert torch.equal(drawn, drawn.sort().values)
    found = labels[drawn].bincount(minlength=len(counts))
    for count, of_class in zip(counts, found.tolist(), strict=True):
        assert of_class >= 1
        assert abs(of_class - size * count / len(labels)) <= len(counts)
    assert torch.equal(drawn, stratified_draw(labels, size, seed))


def test_draws_differ_with_the_seed() -> None:
    labels = labels_of(50, 50)
    assert not torch.equal(stratified_draw(labels, 20, 0), stratified_draw(labels, 20, 1))


@pytest.mark.parametrize("size", [1, 21])
def test_a_draw_that_cannot_be(size: int) -> None:
    with pytest.raises(ConfigError, match=f"data.train_size={size} of 20 .* choose from 2 to 20"):
        stratified_draw(labels_of(10, 10), size, 0)


def test_train_size_limits_training_and_validation_part_alone() -> None:
    config = small_config("linear", "vit", data={"train_size": 100})
    train, val, test = build_splits(config)
    assert val is not None
    assert (len(train), len(val), len(test)) == (70, 30, 797)
    assert (
        len(build_splits(small_config("linear", "vit", data={"train_size": 100}, eval={"protocol": "last"})).train)
        == 100
    )


def test_train_size_of_a_few_shot_task() -> None:
    data = {"few_shot": {"ways": 10, "shots": 5}, "train_size": 50}
    with pytest.raises(ConfigError, match="a few-shot task has its own number of samples"):
        small_config("linear", "vit", data=data)
