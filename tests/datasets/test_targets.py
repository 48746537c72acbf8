"""Targets of samples and of points go where their inputs go."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pointadapterx.datasets import PointClouds, build_augment, build_inputs, resample_test, resample_train
from pointadapterx.datasets.base import Targets
from pointadapterx.datasets.inputs import Batches
from tests.conftest import small_config

CPU = torch.device("cpu")


@pytest.fixture
def clouds() -> PointClouds:
    """6 clouds of 300 points, each point with its number as target."""
    points = torch.rand(6, 300, 3, generator=torch.Generator().manual_seed(0))
    numbers = torch.arange(300).expand(6, 300)
    targets = Targets(torch.arange(6), numbers.clone())
    return PointClouds(points, torch.arange(6), list("abcdef"), "train", targets=targets)


def batches(clouds: PointClouds, augment: object, *, staged: bool = False) -> Batches:
    inputs = build_inputs(small_config(data={"augment": augment}))
    return Batches(inputs, clouds, clouds.targets, CPU, staged=staged)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def taken(clouds: PointClouds, indices: Tensor, numbers: Tensor) -> Tensor:
    return clouds.points[indices].take_along_dim(numbers[..., None], dim=1)


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("augment", ["none", "point_dropout", ["point_dropout", "point_dropout"]])
def test_targets_of_points_follow_them(clouds: PointClouds, augment: object, staged: bool) -> None:
    indices = torch.tensor([4, 1, 3])
    found = batches(clouds, augment, staged=staged).training(indices, seeded())
    assert found.targets.points is not None
    assert torch.equal(taken(clouds, indices, found.targets.points), found.inputs)
    assert torch.equal(found.targets.points, found.index)
    assert torch.equal(found.targets.sample, indices)
    tested = batches(clouds, augment).test(indices, number=2)
    assert torch.equal(taken(clouds, indices, tested.targets.points), tested.inputs)
    assert tested.number == 2


@pytest.mark.parametrize("augment", ["rotation", "so3", ["scale_translate", "jitter", "point_dropout", "unit_sphere"]])
def test_inputs_are_drawn_as_without_targets(clouds: PointClouds, augment: str) -> None:
    """Bit for bit: resampling, then augmentation, from one generator."""
    indices, draws = torch.tensor([0, 5]), seeded(3)
    expected = build_augment(augment)(resample_train(clouds.points[indices], 128, draws), draws)
    for staged in (False, True):
        assert torch.equal(batches(clouds, augment, staged=staged).training(indices, seeded(3)).inputs, expected)
    assert torch.equal(batches(clouds, augment).test(indices).inputs, resample_test(clouds.points[indices], 128))


def test_points_are_not_traced_for_targets_of_samples_alone(clouds: PointClouds) -> None:
    inputs, draws = build_inputs(small_config(data={"augment": "none"})), (seeded(), seeded())
    plain = Batches(inputs, clouds, Targets(clouds.labels), CPU, staged=True)
    found, traced = plain.training(torch.arange(2), draws[0]), batches(clouds, "none", staged=True)
    assert found.index is None
    assert torch.equal(found.inputs, traced.training(torch.arange(2), draws[1]).inputs)


def test_targets_belong_to_the_samples_and_to_the_data(clouds: PointClouds) -> None:
    part = clouds.subset([5, 2])
    assert torch.equal(part.targets.sample, torch.tensor([5, 2]))
    assert part.targets.points.shape == (2, 300)
    assert clouds.outline().targets.points is None
    others = PointClouds(clouds.points, clouds.labels, clouds.classes, "train", targets=Targets(torch.zeros(6)))
    plain = PointClouds(clouds.points, clouds.labels, clouds.classes, "train")
    assert len({data.checksum for data in (clouds, others, plain)}) == 3
