"""Layouts and types of the stand-ins for pointnet2_ops and knn_cuda."""

from __future__ import annotations

import pytest
import torch

from pointadapterx import ops
from pointadapterx.ops import compat


@pytest.fixture
def xyz(device):
    return torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0)).to(device)


@pytest.fixture
def features(device):
    return torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(1)).to(device)


def test_furthest_point_sample(xyz):
    idx = compat.furthest_point_sample(xyz, 7)
    assert idx.dtype == torch.int32
    assert torch.equal(idx.long(), ops.farthest_point_sample(xyz, 7))
    xyz[:, 11] = 0
    everything = compat.furthest_point_sample(xyz, 40)
    assert bool((everything == 11).any(dim=1).all())
    assert not bool((compat.furthest_point_sample(xyz, 40, skip_origin=True) == 11).any())


def test_gather_operation(xyz, features):
    idx = compat.furthest_point_sample(xyz, 7)
    gathered = compat.gather_operation(features, idx)
    assert gathered.shape == (2, 5, 7)
    assert gathered.is_contiguous()
    for b in range(2):
        assert torch.equal(gathered[b], features[b][:, idx[b].long()])


def test_ball_query_and_grouping(xyz, features):
    centers = xyz[:, :6].contiguous()
    idx = compat.ball_query(0.8, 9, xyz, centers)
    assert (idx.dtype, idx.shape) == (torch.int32, (2, 6, 9))
    distance = torch.cdist(centers, xyz)
    for b in range(2):
        for m in range(6):
            inside = (distance[b, m] < 0.8).nonzero()[:, 0].tolist()[:9]
            assert idx[b, m].tolist() == inside + inside[:1] * (9 - len(inside))
    grouped = compat.grouping_operation(features, idx)
    assert grouped.shape == (2, 5, 6, 9)
    assert torch.equal(grouped[1, :, 4], features[1][:, idx[1, 4].long()])


def test_an_empty_ball_holds_zeros(xyz):
    assert compat.ball_query(0.1, 4, xyz, xyz[:, :1] + 50).abs().sum() == 0


def test_three_nn_and_interpolate(xyz, features):
    unknown, known = xyz[:, :11].contiguous(), xyz[:, 11:].contiguous()
    distance, idx = compat.three_nn(unknown, known)
    assert (idx.dtype, idx.shape, distance.shape) == (torch.int32, (2, 11, 3), (2, 11, 3))
    expected = torch.cdist(unknown.double(), known.double()).sort(dim=-1).values[..., :3]
    torch.testing.assert_close(distance, expected.float())
    weight = 1 / (distance + 1e-8)
    weight = weight / weight.sum(dim=2, keepdim=True)
    known_features = features[:, :, 11:].contiguous()
    result = compat.three_interpolate(known_features, idx, weight)
    assert result.shape == (2, 5, 11)
    grouped = compat.grouping_operation(known_features, idx)
    torch.testing.assert_close(result, (grouped * weight.unsqueeze(1)).sum(-1))


@pytest.mark.parametrize("use_xyz", [True, False])
def test_query_and_group(xyz, features, use_xyz):
    centers = xyz[:, :6].contiguous()
    grouped = compat.QueryAndGroup(0.8, 9, use_xyz)(xyz, centers, features)
    assert grouped.shape == (2, (3 if use_xyz else 0) + 5, 6, 9)
    idx = compat.ball_query(0.8, 9, xyz, centers)
    assert torch.equal(grouped[:, -5:], compat.grouping_operation(features, idx))
    relative = compat.QueryAndGroup(0.8, 9)(xyz, centers)
    assert relative.shape == (2, 3, 6, 9)
    assert float(relative.norm(dim=1).max()) < 0.8
    if use_xyz:
        assert torch.equal(grouped[:, :3], relative)


@pytest.mark.parametrize("use_xyz", [True, False])
def test_group_all(xyz, features, use_xyz):
    grouped = compat.GroupAll(use_xyz)(xyz, None, features)
    assert grouped.shape == (2, (3 if use_xyz else 0) + 5, 1, 40)
    assert torch.equal(grouped[:, -5:, 0], features)
    assert torch.equal(compat.GroupAll()(xyz, None)[:, :, 0], xyz.transpose(1, 2))


@pytest.mark.parametrize("group", [compat.QueryAndGroup(1.0, 2, use_xyz=False), compat.GroupAll(use_xyz=False)])
def test_nothing_to_group(group, xyz):
    with pytest.raises(ValueError, match="use_xyz=False leaves nothing to group without features"):
        group(xyz, xyz)


@pytest.mark.parametrize("dims", [3, 5])
def test_knn_layouts(device, dims):
    ref, query = torch.randn(2, 30, dims, device=device), torch.randn(2, 8, dims, device=device)
    distance, idx = compat.KNN(4, transpose_mode=True)(ref, query)
    assert (distance.shape, idx.shape, idx.dtype) == ((2, 8, 4), (2, 8, 4), torch.int64)
    expected = torch.cdist(query.double(), ref.double()).sort(dim=-1)
    assert torch.equal(idx, expected.indices[..., :4])
    torch.testing.assert_close(distance, expected.values[..., :4].float())
    first = compat.KNN(4, transpose_mode=False)(ref.mT.contiguous(), query.mT.contiguous())
    assert torch.equal(first[0], distance.mT)
    assert torch.equal(first[1], idx.mT)


def test_knn_has_no_gradient(device):
    ref = torch.randn(1, 9, 3, device=device, requires_grad=True)
    assert not compat.KNN(2, transpose_mode=True)(ref, ref)[0].requires_grad


def test_gradients_flow_through_features(xyz, features):
    features.requires_grad_()
    idx = compat.ball_query(0.8, 9, xyz, xyz[:, :6])
    compat.grouping_operation(features, idx).sum().backward()
    counts = torch.zeros(2, 40, device=features.device).scatter_add_(
        1, idx.flatten(1).long(), torch.ones(2, 54, device=features.device)
    )
    assert torch.equal(features.grad, counts.unsqueeze(1).expand(-1, 5, -1))
