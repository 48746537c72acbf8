"""Gradients of the differentiable ops."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from pointadapterx import ops


def leaf(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def differentiable(device, *tensors):
    return tuple(tensor.to(device).requires_grad_() for tensor in tensors)


@pytest.mark.parametrize("dims", [2, 3])
def test_knn(device, dims):
    inputs = differentiable(device, leaf(2, 4, dims), leaf(2, 9, dims, seed=1))
    assert gradcheck(lambda q, p: ops.knn(q, p, 3)[0], inputs)
    assert gradgradcheck(lambda q, p: ops.knn(q, p, 3)[0], inputs)


def test_knn_of_ragged_clouds(device):
    sizes, k = {"query_lengths": torch.tensor([4, 2]), "lengths": torch.tensor([2, 7])}, 3
    sizes = {name: values.to(device) for name, values in sizes.items()}
    query, points = differentiable(device, leaf(2, 4, 3), leaf(2, 7, 3, seed=1))

    def near(query, points):
        distances = ops.knn(query, points, k, **sizes)[0]
        return torch.where(distances.isfinite(), distances, 0)

    assert gradcheck(near, (query, points))
    assert gradgradcheck(near, (query, points))
    with torch.no_grad():
        query[1, 2:] = points[0, 2:] = torch.nan
    of_query, of_points = torch.autograd.grad(ops.knn(query, points, k, **sizes)[0].sum(), (query, points))
    assert of_query.isfinite().all()
    assert of_points.isfinite().all()
    assert not of_query[1, 2:].any()
    assert not of_points[0, 2:].any()


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_chamfer(device, norm):
    inputs = differentiable(device, leaf(2, 5, 3), leaf(2, 7, 3, seed=1))
    assert gradcheck(lambda x, y: ops.chamfer_distance(x, y, norm=norm, reduction="none"), inputs)
    assert gradgradcheck(lambda x, y: ops.chamfer_distance(x, y, norm=norm), inputs)


def test_gather_and_group(device):
    (points,) = differentiable(device, leaf(2, 6, 4))
    indices = torch.tensor([[[0, 0], [5, 2]], [[1, 3], [3, 3]]], device=device)  # repeats: gradients add up
    assert gradcheck(lambda p: ops.group_points(p, indices), (points,))
    assert gradcheck(lambda p: ops.gather_points(p, indices[..., 0]), (points,))
    assert gradgradcheck(lambda p: ops.group_points(p, indices), (points,))


def test_three_interpolate(device):
    inputs = differentiable(device, leaf(2, 6, 4), leaf(2, 5, 3, seed=1))
    indices = torch.randint(0, 6, (2, 5, 3), device=device)
    assert gradcheck(lambda p, w: ops.three_interpolate(p, indices, w), inputs)
    assert gradgradcheck(lambda p, w: ops.three_interpolate(p, indices, w), inputs)


def test_gradient_of_a_zero_distance_is_zero_as_in_cdist(device):
    points = leaf(1, 5, 3)

    def gradients(distances):
        query, cloud = differentiable(device, points.clone(), points.clone())  # each query is one of the points
        return torch.autograd.grad(distances(query, cloud).sum(), (query, cloud))

    ours = gradients(lambda q, p: ops.knn(q, p, 5)[0])
    theirs = gradients(lambda q, p: torch.cdist(q, p, compute_mode="donot_use_mm_for_euclid_dist"))
    assert all(torch.allclose(a, b) for a, b in zip(ours, theirs, strict=True))  # false for NaN


def test_chamfer_l1_of_equal_clouds_has_zero_gradient(device):
    (points,) = differentiable(device, leaf(2, 8, 3).float())
    distance = ops.chamfer_distance(points, points.detach(), norm="l1")
    distance.backward()
    assert distance.item() == 0
    assert torch.equal(points.grad, torch.zeros_like(points))


def test_indices_carry_no_gradient(device):
    query, points = differentiable(device, leaf(1, 4, 3), leaf(1, 6, 3))
    assert not ops.knn(query, points, 2)[1].requires_grad
    assert not ops.farthest_point_sample(points, 3).requires_grad
    assert not ops.ball_query(query, points, 1.0, 2)[0].requires_grad
