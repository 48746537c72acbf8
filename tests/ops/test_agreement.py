"""The compiled ops equal the plain ones bit for bit, and both equal an independent numpy search."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointadapterx.ops import reference

raw = torch.ops.pointadapterx
# Around the widths at which the kernels change path: a warp, a block of 64, several blocks.
COUNTS = (1, 2, 31, 64, 65, 300)


def numpy_squared(query, points):
    """(M, D), (N, D) -> (M, N), coordinates left to right, as the ops define it."""
    total = np.zeros((len(query), len(points)), dtype=query.dtype)
    with np.errstate(over="ignore"):
        for axis in range(query.shape[1]):
            difference = query[:, None, axis] - points[None, :, axis]
            total = total + difference * difference
    return total


def numpy_fps(points, num_samples, start, skip_origin):
    squared = numpy_squared(points, points)
    with np.errstate(over="ignore"):
        norm = numpy_squared(points, np.zeros_like(points[:1]))[:, 0]
    allowed = [not (skip_origin and float(value) <= 1e-3) for value in norm]
    chosen = [start]
    while len(chosen) < num_samples:
        nearest = squared[chosen].min(axis=0)
        candidates = [i for i in range(len(points)) if allowed[i] and (skip_origin or i not in chosen)]
        chosen.append(min(candidates, key=lambda i: (-nearest[i], i)) if candidates else 0)
    return chosen


def same(actual, expected):
    actual = [actual] if isinstance(actual, torch.Tensor) else actual
    expected = [expected] if isinstance(expected, torch.Tensor) else expected
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        assert a.shape == e.shape
        assert torch.equal(a.cpu(), e)


@pytest.mark.parametrize("skip_origin", [False, True])
@pytest.mark.parametrize("count", COUNTS)
def test_fps_agrees(clouds, compiled, count, skip_origin):
    points = clouds(3, count)
    args = (count, count // 2, skip_origin)
    same(raw.farthest_point_sample(points.to(compiled), *args), reference.farthest_point_sample(points, *args))


@pytest.mark.parametrize("dims", [1, 2, 3, 7])
@pytest.mark.parametrize("count", COUNTS)
def test_searches_agree(clouds, compiled, count, dims):
    query, points = clouds(2, 37, dims, seed=1), clouds(2, count, dims)
    on_device = (query.to(compiled), points.to(compiled))
    for k in {1, min(count, 20), count}:
        same(raw.knn(*on_device, k), reference.knn(query, points, k))
    same(raw.nearest(*on_device), reference.nearest(query, points))
    for samples in (1, 8, count + 5):
        same(raw.ball_query(*on_device, 1.0, samples), reference.ball_query(query, points, 1.0, samples))


def test_knn_beyond_the_shared_list_agrees(clouds, compiled):
    points = clouds(1, 700)
    for k in (128, 129, 400, 700):
        same(raw.knn(points.to(compiled), points.to(compiled), k), reference.knn(points, points, k))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.complex128])
def test_gather_agrees(compiled, kind):
    points = torch.arange(2 * 70 * 5).reshape(2, 70, 5).to(kind)
    indices = torch.randint(0, 70, (2, 90))
    same(raw.gather_points(points.to(compiled), indices.to(compiled)), reference.gather_points(points, indices))


def test_interpolate_agrees(compiled, dtype):
    points, weights = torch.randn(2, 70, 33, dtype=dtype), torch.rand(2, 50, 3, dtype=dtype)
    indices = torch.randint(0, 70, (2, 50, 3))
    actual = raw.interpolate(points.to(compiled), indices.to(compiled), weights.to(compiled))
    same(actual, reference.interpolate(points, indices, weights))


@pytest.mark.parametrize("channels", [1, 33, 300])
def test_spread_agrees(compiled, dtype, channels):
    values, weights = torch.randn(2, 50, channels, dtype=dtype), torch.rand(2, 50, 3, dtype=dtype)
    indices = torch.randint(0, 7, (2, 50, 3))
    actual = raw.spread(values.to(compiled), indices.to(compiled), weights.to(compiled), 9)
    torch.testing.assert_close(actual.cpu(), reference.spread(values, indices, weights, 9))
    assert not actual[:, 7:].any()


def test_inputs_may_be_strided(compiled):
    points, query = torch.randn(2, 3, 80), torch.randn(2, 40, 6)[..., ::2]
    on_device = points.to(compiled).transpose(1, 2)
    same(raw.farthest_point_sample(on_device, 20, 0, False), reference.farthest_point_sample(points.mT, 20, 0, False))
    same(raw.knn(query.to(compiled), on_device, 4), reference.knn(query, points.mT, 4))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_values_stay_in_bounds_and_agree(compiled, bad):
    points = torch.randn(2, 100, 3)
    points[0, ::7, 1] = bad
    points[1] = bad
    on_device = points.to(compiled)
    for skip in (False, True):
        chosen = raw.farthest_point_sample(on_device, 60, 0, skip)
        assert 0 <= int(chosen.min()) <= int(chosen.max()) < 100
        same(chosen, reference.farthest_point_sample(points, 60, 0, skip))
    same(raw.knn(on_device, on_device, 30), reference.knn(points, points, 30))
    same(raw.nearest(on_device, on_device), reference.nearest(points, points))
    same(raw.ball_query(on_device, on_device, 1.0, 9), reference.ball_query(points, points, 1.0, 9))


@pytest.mark.parametrize("points_shape", [(0, 5, 3), (2, 5, 3)])
def test_empty_results(device, points_shape):
    points = torch.zeros(points_shape, device=device)
    query = points[:, :0]
    assert raw.knn(query, points, 2)[1].shape == (points_shape[0], 0, 2)
    assert raw.nearest(query, points)[0].shape == (points_shape[0], 0)
    assert raw.ball_query(query, points, 1.0, 2)[0].shape == (points_shape[0], 0, 2)
    assert raw.gather_points(points, query[..., 0].long()).shape == (points_shape[0], 0, 3)
    assert raw.farthest_point_sample(points[:0], 2, 0, False).shape == (0, 2)


def implementations():
    """The reference and whatever serves the CPU: the same unless nothing is compiled."""
    return {"reference": reference, "cpu": raw}


small_clouds = st.tuples(
    st.integers(1, 40), st.integers(1, 3), st.integers(0, 2**31), st.sampled_from([0, 1, 4]), st.sampled_from([0, 1e6])
)


@settings(max_examples=60, deadline=None)
@given(small_clouds, st.booleans(), st.data())
def test_fps_equals_numpy(shape, skip_origin, data):
    count, _, seed, levels, offset = shape
    points = cloud(count, 3, seed, levels, offset)
    samples = data.draw(st.integers(1, count))
    start = data.draw(st.integers(0, count - 1))
    expected = numpy_fps(points, samples, start, skip_origin)
    for name, module in implementations().items():
        chosen = module.farthest_point_sample(torch.from_numpy(points)[None], samples, start, skip_origin)
        assert chosen[0].tolist() == expected, name


@settings(max_examples=60, deadline=None)
@given(small_clouds, st.data())
def test_searches_equal_numpy(shape, data):
    count, dims, seed, levels, offset = shape
    points, query = cloud(count, dims, seed, levels, offset), cloud(7, dims, seed + 1, levels, offset)
    k = data.draw(st.integers(1, count))
    squared = numpy_squared(query, points)
    order = np.argsort(squared, axis=1, kind="stable")[:, :k]
    inside = [np.flatnonzero(row < np.float32(0.7) * np.float32(0.7))[:k].tolist() for row in squared]
    q, p = torch.from_numpy(query)[None], torch.from_numpy(points)[None]
    for name, module in implementations().items():
        distances, indices = module.knn(q, p, k)
        assert np.array_equal(indices[0].numpy(), order), name
        assert np.array_equal(distances[0].numpy(), np.take_along_axis(squared, order, 1)), name
        distances, indices = module.nearest(q, p)
        assert np.array_equal(indices[0].numpy(), order[:, 0]), name
        assert np.array_equal(distances[0].numpy(), squared.min(axis=1)), name
        found, counts = module.ball_query(q, p, 0.7, k)
        assert counts[0].tolist() == [len(row) for row in inside], name
        assert found[0].tolist() == [row + (row[:1] or [0]) * (k - len(row)) for row in inside], name


def cloud(count, dims, seed, levels, offset):
    """(count, dims) float32; rounded to a lattice of 1 / levels, which makes ties, unless levels is 0."""
    values = np.random.default_rng(seed).standard_normal((count, dims))
    return ((np.round(values * levels) / levels if levels else values) + offset).astype(np.float32)


def test_threads_do_not_change_results():
    points, query = torch.randn(5, 900, 3), torch.randn(5, 333, 3)

    def everything():
        knn = raw.knn(query, points, 16)
        return (
            raw.farthest_point_sample(points, 100, 0, False),
            *knn,
            *raw.nearest(query, points),
            *raw.ball_query(query, points, 0.3, 16),
            raw.gather_points(points, knn[1].flatten(1)),
            raw.interpolate(points, knn[1], knn[0]),
        )

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = everything()
        torch.set_num_threads(2)
        shared = everything()
    finally:
        torch.set_num_threads(before)
    same(shared, alone)


def test_reference_searches_in_blocks(monkeypatch):
    points, query = torch.randn(2, 50, 3), torch.randn(2, 23, 3)

    def everything():
        return (
            *reference.knn(query, points, 5),
            *reference.nearest(query, points),
            *reference.ball_query(query, points, 0.5, 6),
        )

    whole = everything()
    monkeypatch.setattr(reference, "_BLOCK", 400)  # 4 queries at a time
    same(everything(), whole)


LARGE = 9000
"""Points from which trees serve every op on the CPU, if there are as many queries as MANY."""
MANY = 600


@pytest.mark.parametrize("skip_origin", [False, True])
def test_fps_of_large_clouds_agrees(clouds, compiled, skip_origin):
    points = clouds(2, LARGE)
    args = (200, LARGE - 1, skip_origin)
    same(raw.farthest_point_sample(points.to(compiled), *args), reference.farthest_point_sample(points, *args))


def test_fps_of_a_large_cloud_is_a_permutation(clouds, compiled):
    points = clouds(1, 4100)
    chosen = raw.farthest_point_sample(points.to(compiled), 4100, 0, False)
    same(chosen, reference.farthest_point_sample(points, 4100, 0, False))
    assert chosen[0].sort().values.tolist() == list(range(4100))


def test_searches_of_large_clouds_agree(clouds, compiled):
    points, query = clouds(1, LARGE), clouds(1, MANY, seed=1)
    query[:, ::2] = points[:, : MANY // 2]  # their nearest is at 0
    on_device = (query.to(compiled), points.to(compiled))
    for k in (1, 5, 40, 300):
        same(raw.knn(*on_device, k), reference.knn(query, points, k))
    same(raw.nearest(*on_device), reference.nearest(query, points))
    for radius, samples in ((0.05, 8), (0.5, 32), (1e7, 3)):
        same(raw.ball_query(*on_device, radius, samples), reference.ball_query(query, points, radius, samples))


def test_large_clouds_in_a_batch_agree(clouds, compiled):
    points, query = clouds(3, LARGE), clouds(3, MANY, seed=1)
    query[1, 5] = math.nan
    query[2, 7:9, 0] = math.inf
    on_device = (query.to(compiled), points.to(compiled))
    same(raw.knn(*on_device, 4), reference.knn(query, points, 4))
    same(raw.nearest(*on_device), reference.nearest(query, points))
    same(raw.ball_query(*on_device, 0.3, 4), reference.ball_query(query, points, 0.3, 4))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("count", [4096, 4097, 8192, 8193, 16384, 16385, 40_000])
def test_sizes_at_which_kernels_change_agree(compiled, count, threads):
    generator = torch.Generator().manual_seed(count)
    points = torch.randn(1, count, 3, generator=generator).mul(32).round() / 32
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for skip_origin in (False, True):
            args = (65, count // 3, skip_origin)
            same(raw.farthest_point_sample(points.to(compiled), *args), reference.farthest_point_sample(points, *args))
        query = points[:, :MANY]
        same(raw.knn(query.to(compiled), points.to(compiled), 5), reference.knn(query, points, 5))
    finally:
        torch.set_num_threads(before)


def test_an_ordered_grid_does_not_degenerate(compiled):
    rows, columns = 126, 800
    place = torch.arange(rows * columns)
    points = torch.stack([place % columns, place // columns, torch.zeros_like(place)], dim=-1)[None].float()
    query = points[:, ::150] + 0.3
    started = time.perf_counter()
    found = raw.nearest(query.to(compiled), points.to(compiled))
    assert time.perf_counter() - started < 2.0
    same(found, reference.nearest(query, points))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_large_clouds_with_non_finite_values_agree(compiled, bad):
    points = torch.randn(1, LARGE, 3)
    points[0, 5, 1] = bad
    query = points[:, :MANY]
    same(
        raw.farthest_point_sample(points.to(compiled), 100, 0, False),
        reference.farthest_point_sample(points, 100, 0, False),
    )
    same(raw.knn(query.to(compiled), points.to(compiled), 9), reference.knn(query, points, 9))
    query = torch.full((1, MANY, 3), bad)  # of finite points
    points = torch.randn(1, LARGE, 3)
    same(raw.knn(query.to(compiled), points.to(compiled), 9), reference.knn(query, points, 9))
    same(raw.nearest(query.to(compiled), points.to(compiled)), reference.nearest(query, points))
    same(raw.ball_query(query.to(compiled), points.to(compiled), 1.0, 9), reference.ball_query(query, points, 1.0, 9))
