"""Masks of pre-training."""

from __future__ import annotations

import pytest
import torch

from pointadapterx.models.masking import MASKINGS, block_mask, hidden_groups, random_mask


@pytest.fixture
def centers() -> torch.Tensor:
    return torch.randn(5, 16, 3, generator=torch.Generator().manual_seed(0))


def test_the_published_ratio_hides_38_of_64() -> None:
    assert hidden_groups(0.6, 64) == 38


@pytest.mark.parametrize("name", MASKINGS)
def test_every_cloud_hides_the_same_number(name: str, centers: torch.Tensor) -> None:
    mask = MASKINGS[name](centers, 9, torch.Generator().manual_seed(1))
    assert mask.dtype == torch.bool
    assert mask.sum(dim=1).tolist() == [9] * 5


@pytest.mark.parametrize("name", MASKINGS)
def test_masks_are_a_function_of_the_generator(name: str, centers: torch.Tensor) -> None:
    draw = [MASKINGS[name](centers, 9, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])


def test_random_masks_hide_every_group_equally_often(centers: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    share = torch.stack([random_mask(centers, 8, generator) for _ in range(400)]).float().mean(dim=(0, 1))
    assert share.min() > 0.45
    assert share.max() < 0.55


def test_a_block_is_a_ball_around_one_of_its_groups(centers: torch.Tensor) -> None:
    for cloud, mask in zip(centers, block_mask(centers, 6, torch.Generator().manual_seed(3)), strict=True):
        distance = torch.cdist(cloud[mask], cloud)  # from each hidden centre to all
        nearest = distance.argsort(dim=1)[:, :6].sort(dim=1).values
        assert any(torch.equal(row, mask.nonzero().flatten()) for row in nearest)
