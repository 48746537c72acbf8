"""Every mistake gets one line that names the value and the way out."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from pointadapterx import ops

P = torch.randn(2, 8, 3)
I2 = torch.zeros(2, 4, dtype=torch.int64)
L = torch.tensor([8, 3])
I3 = torch.zeros(2, 4, 3, dtype=torch.int64)


def with_value(value, place=(1, 5, 2)):
    points = P.clone()
    points[place] = value
    return points


CASES = {
    "array": (
        lambda: ops.farthest_point_sample(np.zeros((1, 4, 3)), 2),
        TypeError,
        "points must be a torch.Tensor, got ndarray; convert it with torch.as_tensor",
    ),
    "integers": (
        lambda: ops.farthest_point_sample(P.long(), 2),
        TypeError,
        "points has dtype torch.int64; coordinates must be floating-point: pass points.float()",
    ),
    "no batch axis": (
        lambda: ops.farthest_point_sample(P[0], 2),
        ValueError,
        "points has shape (8, 3), expected (B, N, 3); add a batch axis: points.unsqueeze(0)",
    ),
    "four axes": (
        lambda: ops.knn(P[None], P, 2),
        ValueError,
        "query has shape (1, 2, 8, 3), expected (B, N, D)",
    ),
    "further channels": (
        lambda: ops.farthest_point_sample(torch.zeros(2, 8, 6), 2),
        ValueError,
        "points has shape (2, 8, 6), expected (B, N, 3): 6 values per point; pass points[..., :3] if further "
        "channels follow, or transpose a channels-first layout",
    ),
    "empty cloud": (
        lambda: ops.knn(P, P[:, :0], 1),
        ValueError,
        "points has shape (2, 0, 3): its clouds are empty; drop them beforehand",
    ),
    "empty features": (
        lambda: ops.gather_points(P[:, :0], I2),
        ValueError,
        "points has shape (2, 0, 3): its clouds are empty; drop them beforehand",
    ),
    "NaN": (
        lambda: ops.farthest_point_sample(with_value(float("nan")), 2),
        ValueError,
        "points holds nan in cloud 1, point 5, coordinate 2; remove or repair points with non-finite coordinates",
    ),
    "infinity": (
        lambda: ops.chamfer_distance(P, with_value(float("-inf"), (0, 1, 0))),
        ValueError,
        "y holds -inf in cloud 0, point 1, coordinate 0; remove or repair points with non-finite coordinates",
    ),
    "too many samples": (
        lambda: ops.farthest_point_sample(P, 9),
        ValueError,
        "num_samples=9 exceeds the 8 points per cloud; lower num_samples or pass clouds of at least 9 points",
    ),
    "k too large": (
        lambda: ops.knn(P, P, 40),
        ValueError,
        "k=40 exceeds the 8 points per cloud; lower k or pass clouds of at least 40 points",
    ),
    "two points for three_nn": (
        lambda: ops.three_nn(P, P[:, :2]),
        ValueError,
        "k=3 exceeds the 2 points per cloud; lower k or pass clouds of at least 3 points",
    ),
    "no samples": (lambda: ops.farthest_point_sample(P, 0), ValueError, "num_samples=0 must be at least 1"),
    "fractional k": (lambda: ops.knn(P, P, 2.0), TypeError, "k must be an int, got 2.0 (float)"),
    "boolean k": (lambda: ops.knn(P, P, True), TypeError, "k must be an int, got True (bool)"),
    "start": (
        lambda: ops.farthest_point_sample(P, 2, start=8),
        ValueError,
        "start=8 is not a point: each cloud has points 0 to 7",
    ),
    "negative start": (
        lambda: ops.farthest_point_sample(P, 2, start=-1),
        ValueError,
        "start=-1 is not a point: each cloud has points 0 to 7",
    ),
    "type of start": (
        lambda: ops.farthest_point_sample(P, 2, start=None),
        TypeError,
        "start must be an int, got None (NoneType)",
    ),
    "clouds": (
        lambda: ops.knn(P[:1], P, 2),
        ValueError,
        "query has 1 clouds and points 2; pass as many of one as of the other",
    ),
    "dimensions": (
        lambda: ops.chamfer_distance(P[..., :2], P),
        ValueError,
        "x has 2 values per point and y 3; pass the same coordinates of both",
    ),
    "devices": (
        lambda: ops.knn(P, P.to("meta"), 2),
        ValueError,
        "query is on cpu and points on meta; move one: points.to(query.device)",
    ),
    "radius": (lambda: ops.ball_query(P, P, -1.0, 2), ValueError, "radius=-1.0 must be positive and finite"),
    "type of radius": (
        lambda: ops.ball_query(P, P, "1", 2),
        TypeError,
        "radius must be a number, got '1' (str)",
    ),
    "norm": (
        lambda: ops.chamfer_distance(P, P, norm="L2"),
        ValueError,
        "norm='L2' is unknown; choose one of: l2, l1",
    ),
    "reduction": (
        lambda: ops.chamfer_distance(P, P, reduction="sum"),
        ValueError,
        "reduction='sum' is unknown; choose one of: mean, none",
    ),
    "floating indices": (
        lambda: ops.gather_points(P, I2.float()),
        TypeError,
        "indices has dtype torch.float32; indices must be int64 or int32: pass indices.long()",
    ),
    "list of indices": (
        lambda: ops.gather_points(P, [[0], [1]]),
        TypeError,
        "indices must be a torch.Tensor, got list; convert it with torch.as_tensor",
    ),
    "axes of indices": (
        lambda: ops.group_points(P, I2),
        ValueError,
        "indices has shape (2, 4), expected 3 axes, the first one B",
    ),
    "axes of features": (
        lambda: ops.gather_points(P[0], I2),
        ValueError,
        "points has shape (8, 3), expected (B, N, C)",
    ),
    "index too large": (
        lambda: ops.gather_points(P, I2.index_fill(1, torch.tensor(2), 8)),
        IndexError,
        "indices[0, 2] is 8, outside the 8 points of each cloud; valid indices are 0 to 7",
    ),
    "negative index": (
        lambda: ops.group_points(P, I3.index_fill(1, torch.tensor(3), -1)),
        IndexError,
        "indices[0, 3, 0] is -1, outside the 8 points of each cloud; valid indices are 0 to 7",
    ),
    "four neighbours": (
        lambda: ops.three_interpolate(P, I3.new_zeros(2, 4, 4), torch.zeros(2, 4, 4)),
        ValueError,
        "indices has shape (2, 4, 4), expected (B, M, 3)",
    ),
    "weights": (
        lambda: ops.three_interpolate(P, I3, torch.zeros(2, 4, 2)),
        ValueError,
        "weights has shape (2, 4, 2) and indices (2, 4, 3); they must be equal",
    ),
    "empty cloud among lengths": (
        lambda: ops.knn(P, P, 2, lengths=L - 3),
        ValueError,
        "lengths[1] is 0; a cloud of points has 1 to 8 points: drop empty clouds beforehand",
    ),
    "length beyond the clouds": (
        lambda: ops.ball_query(P, P, 1.0, 2, query_lengths=L + 1),
        ValueError,
        "query_lengths[0] is 9; a cloud of query has 1 to 8 points: drop empty clouds beforehand",
    ),
    "number of lengths": (
        lambda: ops.farthest_point_sample(P, 2, lengths=L[:1]),
        ValueError,
        "lengths has shape (1,), expected (2,), one for each cloud of points",
    ),
    "floating lengths": (
        lambda: ops.farthest_point_sample(P, 2, lengths=L.float()),
        TypeError,
        "lengths has dtype torch.float32; lengths must be int64 or int32: pass lengths.long()",
    ),
    "list of lengths": (
        lambda: ops.knn(P, P, 2, lengths=[8, 3]),
        TypeError,
        "lengths must be a torch.Tensor, got list; convert it with torch.as_tensor",
    ),
    "device of lengths": (
        lambda: ops.knn(P, P, 2, lengths=L.to("meta")),
        ValueError,
        "points is on cpu and lengths on meta; move one: lengths.to(points.device)",
    ),
    "start beyond a length": (
        lambda: ops.farthest_point_sample(P, 2, start=3, lengths=L),
        ValueError,
        "start=3 is not a point of cloud 1, which has points 0 to 2",
    ),
    "NaN in a ragged batch": (
        lambda: ops.knn(P, with_value(float("nan"), (1, 2, 0)), 2, lengths=L),
        ValueError,
        "points holds nan in cloud 1, point 2, coordinate 0; remove or repair points with non-finite coordinates",
    ),
    "k beyond a padded batch": (
        lambda: ops.knn(P, P, 9, lengths=L),
        ValueError,
        "k=9 exceeds the 8 points per cloud; lower k or pass clouds of at least 9 points",
    ),
    "end of offsets": (
        lambda: ops.pad_clouds(P[0], torch.tensor([0, 3, 7])),
        ValueError,
        "offsets goes from 0 to 7; it must go from 0 to the 8 points of values",
    ),
    "offsets without points": (
        lambda: ops.pad_clouds(P[0], torch.tensor([0, 3, 3, 8])),
        ValueError,
        "cloud 1 of offsets has 0 points; drop empty clouds beforehand",
    ),
    "floating offsets": (
        lambda: ops.pad_clouds(P[0], torch.tensor([0.0, 8.0])),
        TypeError,
        "offsets has dtype torch.float32; offsets must be int64 or int32: pass offsets.long()",
    ),
    "shape of offsets": (
        lambda: ops.pad_clouds(P[0], torch.tensor([8])),
        ValueError,
        "offsets has shape (1,), expected (B + 1,) for B clouds",
    ),
    "integer weights": (
        lambda: ops.three_interpolate(P, I3, I3),
        TypeError,
        "weights has dtype torch.int64; it must be floating-point: pass weights.float()",
    ),
}


@pytest.mark.parametrize("case", list(CASES))
def test_message(case):
    call, kind, message = CASES[case]
    with pytest.raises(kind, match=re.escape(message) + "$"):
        call()


def test_large_finite_values_are_not_mistaken_for_infinity():
    points = torch.full((1, 1000, 3), 3e38)  # finite, though their sum is not
    assert ops.farthest_point_sample(points, 2).tolist() == [[0, 1]]


def test_unchecked_skips_only_what_reads_the_data():
    points = with_value(float("nan"))
    with ops.unchecked():
        assert int(ops.farthest_point_sample(points, 8).max()) < 8
        with pytest.raises(ValueError, match="num_samples=9"):
            ops.farthest_point_sample(P, 9)
        with pytest.raises(IndexError):  # the kernel itself refuses
            ops.gather_points(P, I2 + 8)
    with pytest.raises(ValueError, match="holds nan"):
        ops.farthest_point_sample(points, 8)


def test_unchecked_ends_with_an_exception():
    with pytest.raises(KeyError), ops.unchecked():
        raise KeyError
    with pytest.raises(ValueError, match="holds nan"):
        ops.knn(P, with_value(float("nan")), 1)


RAW = torch.ops.pointadapterx


@pytest.mark.parametrize(
    "call",
    [
        lambda: RAW.farthest_point_sample(P, 9, 0, False),
        lambda: RAW.farthest_point_sample(P, 2, 8, False),
        lambda: RAW.farthest_point_sample(P[..., :2].contiguous(), 2, 0, False),
        lambda: RAW.knn(P, P, 9),
        lambda: RAW.knn(P, P.double(), 2),
        lambda: RAW.nearest(P, P[:1]),
        lambda: RAW.ball_query(P, P[:, :0], 1.0, 2),
        lambda: RAW.ragged_farthest_point_sample(P, L + 1, 2, 0, False),
        lambda: RAW.ragged_farthest_point_sample(P, L, 2, 3, False),
        lambda: RAW.ragged_knn(P, P, L, L - 3, 2),
        lambda: RAW.ragged_knn(P, P, L[:1], L, 2),
        lambda: RAW.ragged_ball_query(P, P, L.int(), L, 1.0, 2),
        lambda: RAW.gather_points(P, I2 - 1),
        lambda: RAW.gather_points(P, I2.int()),
        lambda: RAW.interpolate(P, I3 + 8, torch.zeros(2, 4, 3)),
        lambda: RAW.interpolate(P, I3, torch.zeros(2, 4, 2)),
        lambda: RAW.spread(P[:, :4], I3 - 1, torch.zeros(2, 4, 3), 9),
        lambda: RAW.spread(P, I3, torch.zeros(2, 4, 3), 9),
    ],
)
@pytest.mark.compiler
def test_direct_calls_stay_inside_memory(call):
    if not ops.implementation("cpu").startswith("compiled"):
        pytest.skip(ops.implementation("cpu"))
    with pytest.raises((RuntimeError, IndexError)):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda half: RAW.farthest_point_sample(half, 2, 0, False),
        lambda half: RAW.knn(half, half, 2),
        lambda half: RAW.nearest(half, half),
        lambda half: RAW.ball_query(half, half, 1.0, 2),
        lambda half: RAW.interpolate(half, I3, torch.zeros(2, 4, 3, dtype=half.dtype)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_direct_calls_with_half_precision_name_the_way_out(call, dtype, compiled):
    with pytest.raises(RuntimeError, match="the compiled ops take float32 and float64, so convert it first"):
        call(P.to(compiled, dtype))


@pytest.mark.parametrize(
    "call",
    [
        lambda: RAW.knn(P, P.to("meta"), 2),
        lambda: RAW.nearest(P, P.to("meta")),
        lambda: RAW.ball_query(P, P.to("meta"), 1.0, 2),
        lambda: RAW.ragged_farthest_point_sample(P, L.to("meta"), 2, 0, False),
        lambda: RAW.ragged_knn(P, P, L, L.to("meta"), 2),
        lambda: RAW.ragged_ball_query(P, P, L.to("meta"), L, 1.0, 2),
        lambda: RAW.gather_points(P, I2.to("meta")),
        lambda: RAW.interpolate(P, I3, torch.zeros(2, 4, 3, device="meta")),
    ],
)
def test_direct_calls_on_two_devices_return_no_stale_memory(call):
    with pytest.raises(RuntimeError, match="inputs are on cpu and on meta"):
        call()
