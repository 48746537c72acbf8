"""FPS as a loop of ONNX, for files that run without this package.

Unrolled it would be a dozen operators a sample, which exporters are slow with. The same start, distances and ties as
:mod:`pointadapterx.ops.reference`. Needs onnxscript.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnxscript
import torch
from onnxscript import FLOAT, INT64, opset18

op: Any = opset18  # whose types know no values that are computed
LOCAL = onnxscript.values.Opset("pointadapterx", 1)
NEAR = 1e-3  # of the squared distance from the origin, as the reference


@onnxscript.script(LOCAL, default_opset=op)
def _steps(points: FLOAT, nearest: FLOAT, first: INT64, places: INT64, steps: INT64) -> INT64:
    """(B, N, 3), squared distances (B, N) to what is chosen, (B, 1) and (1, N) int64 -> (B, 1 + steps) int64."""
    current = op.Identity(first)
    left = op.Identity(nearest)
    chosen = op.Identity(first)
    for _step in range(steps):  # type: ignore[call-overload]
        left = op.Where(op.Equal(places, current), op.Constant(value_float=-1.0), left)
        shape = op.Concat(op.Shape(current), op.Constant(value_ints=[3]), axis=0)
        place = op.Expand(op.Unsqueeze(current, op.Constant(value_ints=[2])), shape)
        difference = points - op.GatherElements(points, place, axis=1)
        x, y, z = op.Split(difference * difference, num_outputs=3, axis=2)
        left = op.Min(left, op.Squeeze((x + y) + z, op.Constant(value_ints=[2])))
        current = op.ArgMax(left, axis=1, keepdims=1)
        chosen = op.Concat(chosen, current, axis=1)
    return chosen


def farthest_point_sample(points: Any, num_samples: int, start: int, skip_origin: bool) -> Any:
    """(B, N, 3) -> (B, num_samples) int64; see :func:`pointadapterx.ops.farthest_point_sample`."""
    batch, count = op.Shape(points, start=0, end=1), op.Shape(points, start=1, end=2)
    first = op.Expand(op.Constant(value_ints=[start]), op.Concat(batch, op.Constant(value_ints=[1]), axis=0))
    nearest = op.Expand(op.Constant(value_float=math.inf), op.Concat(batch, count, axis=0))
    if skip_origin:  # what was chosen may be chosen again: no place is equal to -1
        x, y, z = op.Split(op.Mul(points, points), num_outputs=3, axis=2)
        norm = op.Squeeze(op.Add(op.Add(x, y), z), op.Constant(value_ints=[2]))
        near = op.Less(norm, op.Constant(value_float=NEAR))
        nearest = op.Where(near, op.Constant(value_float=-1.0), nearest)
        places = op.Constant(value_ints=[-1])
    else:
        zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
        places = op.Range(zero, op.Squeeze(count), one)
    row = op.Unsqueeze(places, op.Constant(value_ints=[0]))
    return _steps(points, nearest, first, row, op.Constant(value_int=num_samples - 1))


TRANSLATIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.pointadapterx.farthest_point_sample.default: farthest_point_sample,
}
"""For :func:`torch.onnx.export`."""
