"""What farthest point sampling promises."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from pointadapterx import ops
from pointadapterx.ops import reference

# Point 0 is the start. Points 1 and 2 lie within sqrt(0.001) = 0.0316 of the origin.
NEAR_ORIGIN = [[1.0, 0, 0], [0, 0, 0], [0, 0.03, 0], [0.875, 0, 0], [0, 0.04, 0], [1.0, 0.125, 0]]


@pytest.mark.parametrize("module", [ops, reference], ids=["served", "reference"])
def test_skip_origin_on_a_small_example(module):
    points = torch.tensor([NEAR_ORIGIN])

    def sample(count, skip_origin):
        return module.farthest_point_sample(points, count, 0, skip_origin)[0].tolist()

    # Squared distances to point 0: 1, 1.0009, 1/64, 1.0016, 1/64 for points 1 to 5. Point 4 comes next, and
    # then the tie of 3 and 5, since 1 and 2 are even closer to 4.
    assert sample(6, False) == [0, 4, 3, 5, 1, 2]
    # Without 1 and 2; once the four candidates are used up, the lowest candidate repeats.
    assert sample(6, True) == [0, 4, 3, 5, 0, 0]


@pytest.mark.parametrize("module", [ops, reference], ids=["served", "reference"])
def test_skip_origin_compares_with_the_double_threshold(module, dtype):
    # The squares of these lie on either side of 1e-3 and, in float32, on the float32 nearest to it,
    # which is above the double 1e-3 and therefore a candidate.
    edge = torch.tensor(1e-3, dtype=torch.float64).sqrt()
    xs = torch.stack([edge * (1 + step * 2.0**-25) for step in range(-64, 65)]).to(dtype)
    points = torch.zeros(1, len(xs) + 1, 3, dtype=dtype)
    points[0, 1:, 0] = xs
    points[0, 0, 0] = 1
    candidates = {0} | {i + 1 for i, x in enumerate(xs) if float(x * x) > 1e-3}
    assert 1 < len(candidates) < len(xs)
    chosen = module.farthest_point_sample(points, len(xs), 0, True)[0].tolist()
    distinct = {round(float(points[0, i, 0]), 12) for i in candidates}
    assert set(chosen) <= candidates
    assert {round(float(points[0, i, 0]), 12) for i in chosen} == distinct


def test_skip_origin_without_candidates_repeats_index_0():
    points = torch.full((1, 70, 3), 0.001)
    assert ops.farthest_point_sample(points, 4, start=9, skip_origin=True)[0].tolist() == [9, 0, 0, 0]


def test_sampling_every_point_is_a_permutation(clouds, device):
    points = clouds(2, 70).to(device)
    if points.abs().max() > 1e20:
        points = points / 1e25  # the checks of finite values are not what is tested here
    chosen = ops.farthest_point_sample(points, 70, start=3)
    assert torch.equal(chosen.sort(dim=1).values.cpu(), torch.arange(70).expand(2, -1))


def test_copies_follow_once_every_position_is_taken(device):
    points = torch.tensor([[[0.0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]]], device=device)
    assert ops.farthest_point_sample(points, 5)[0].tolist() == [0, 2, 1, 3, 4]


def test_a_longer_sample_continues_a_shorter_one(clouds, device):
    points = clouds(2, 90).to(device)
    long = ops.farthest_point_sample(points, 60, start=7)
    assert torch.equal(long[:, :25], ops.farthest_point_sample(points, 25, start=7))
    assert bool((long[:, 0] == 7).all())


def test_cover_radius_shrinks(device):
    points = torch.randn(3, 500, 3, device=device)
    radii = []
    for count in (1, 4, 16, 64):
        centers = ops.gather_points(points, ops.farthest_point_sample(points, count))
        radii.append(ops.knn(points, centers, 1)[0].amax(dim=(1, 2)))
    assert all(bool((later < earlier).all()) for earlier, later in pairwise(radii))
    assert math.isclose(float(radii[0][0]), float((points[0] - points[0, 0]).norm(dim=-1).max()), rel_tol=1e-5)
