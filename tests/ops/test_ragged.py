"""Batches of clouds of different sizes: each cloud gets what it gets alone, whatever fills its other places."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointadapterx import ops
from pointadapterx.ops import decomposed, reference
from tests.ops.test_agreement import LARGE, MANY, same

raw = torch.ops.pointadapterx


def filled(values, lengths):
    """Padded clouds with NaN in the places that are not real."""
    return values.masked_fill(~reference.within(lengths, values.shape[1])[..., None], math.nan)


@pytest.mark.parametrize("count", [1, 2, 65])
def test_ops_agree(clouds, compiled, count):
    lengths, queries = torch.tensor([count, 1, (count + 1) // 2]), torch.tensor([1, 37, 20])
    points, query = filled(clouds(3, count), lengths), filled(clouds(3, 37, seed=1), queries)
    on_device = tuple(tensor.to(compiled) for tensor in (query, points, queries, lengths))
    for k in {1, min(count, 20), count}:
        same(raw.ragged_knn(*on_device, k), reference.ragged_knn(query, points, queries, lengths, k))
    for samples in (1, count + 5):
        found = raw.ragged_ball_query(*on_device, 1.0, samples)
        same(found, reference.ragged_ball_query(query, points, queries, lengths, 1.0, samples))
    for skip_origin in (False, True):
        arguments = (lengths, count, 0, skip_origin)
        chosen = raw.ragged_farthest_point_sample(on_device[1], on_device[3], *arguments[1:])
        same(chosen, reference.ragged_farthest_point_sample(points, *arguments))


def test_large_clouds_agree(compiled, dtype):
    lengths, queries = torch.tensor([LARGE, 40, 5000]), torch.tensor([MANY, 700, 1])
    generator = torch.Generator().manual_seed(0)
    points, query = (
        filled(torch.randn(3, count, 3, generator=generator, dtype=dtype).mul(32).round() / 32, sizes)
        for count, sizes in ((LARGE, lengths), (700, queries))
    )
    on_device = tuple(tensor.to(compiled) for tensor in (query, points, queries, lengths))
    same(raw.ragged_knn(*on_device, 50), reference.ragged_knn(query, points, queries, lengths, 50))
    found = raw.ragged_ball_query(*on_device, 0.3, 9)
    same(found, reference.ragged_ball_query(query, points, queries, lengths, 0.3, 9))
    chosen = raw.ragged_farthest_point_sample(on_device[1], on_device[3], 100, 0, False)
    same(chosen, reference.ragged_farthest_point_sample(points, lengths, 100, 0, False))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 12)), min_size=1, max_size=4), st.integers(0, 9), st.data()
)
def test_each_cloud_gets_what_it_gets_alone(sizes, seed, data):
    lengths, queries = torch.tensor(sizes).unbind(1)
    generator = torch.Generator().manual_seed(seed)
    points, query = (
        filled(torch.randint(-2, 3, (len(sizes), int(of.max()), 3), generator=generator).float(), of)
        for of in (lengths, queries)
    )
    k = data.draw(st.integers(1, points.shape[1]))
    both = {"query_lengths": queries, "lengths": lengths}
    distances, indices = ops.knn(query, points, k, **both)
    found, counts = ops.ball_query(query, points, 1.5, 4, **both)
    chosen = ops.farthest_point_sample(points, k, lengths=lengths)
    plain = decomposed.ragged_knn(query, points, queries, lengths, k)
    same(plain, raw.ragged_knn(query, points, queries, lengths, k))
    same(decomposed.ragged_farthest_point_sample(points, lengths, k, 0, False), chosen)
    for b, (size, rows) in enumerate(sizes):
        near = min(k, size)
        alone = (query[b : b + 1, :rows], points[b : b + 1, :size])
        same((distances[b, :rows, :near], indices[b, :rows, :near]), tuple(x[0] for x in ops.knn(*alone, near)))
        same((found[b, :rows], counts[b, :rows]), tuple(x[0] for x in ops.ball_query(*alone, 1.5, 4)))
        same(chosen[b, :near], ops.farthest_point_sample(alone[1], near)[0])
        assert bool((chosen[b, near:] == 0).all())
        assert bool((distances[b, :rows, near:] == math.inf).all())
        assert torch.equal(indices[b, :rows, near:], indices[b, :rows, :1].expand(-1, k - near))
        for rest in (distances[b, rows:], indices[b, rows:], found[b, rows:], counts[b, rows:]):
            assert not rest.any()


def test_points_of_a_small_cloud_are_interpolated_from_as_many_as_it_has(device):
    points, values = torch.randn(2, 5, 3, device=device), torch.randn(2, 5, 4, device=device)
    distances, indices = ops.three_nn(points, points, lengths=torch.tensor([1, 5], device=device))
    weights = 1 / (distances + 1e-8)
    result = ops.three_interpolate(values, indices, weights / weights.sum(-1, keepdim=True))
    torch.testing.assert_close(result[0], values[0, :1].expand(5, -1))


@pytest.mark.parametrize("kind", [torch.int64, torch.int32])
def test_offsets(device, kind):
    values = torch.arange(24.0, device=device).reshape(12, 2).requires_grad_()
    offsets = torch.tensor([0, 5, 6, 12], dtype=kind, device=device)
    padded, lengths = ops.pad_clouds(values, offsets)
    assert lengths.tolist() == [5, 1, 6]
    assert torch.equal(padded[1], torch.cat([values[5:6], values.new_zeros(5, 2)]))
    assert torch.equal(ops.flatten_clouds(padded, lengths.to(kind)), values)
    (gradient,) = torch.autograd.grad(padded.square().sum(), values)
    assert torch.equal(gradient, 2 * values)
    chosen = ops.farthest_point_sample(torch.cat([padded, padded[..., :1]], -1), 2, lengths=lengths)
    assert (chosen + offsets[:-1, None]).tolist() == [[0, 4], [5, 5], [6, 11]]
