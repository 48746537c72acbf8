"""Point operations: FPS, kNN, ball query, gather, interpolation, Chamfer distance; of ragged batches, too.

Each is a torch custom op with compiled C++ and CUDA kernels and a plain torch reference, which serves
wherever nothing is compiled. Set ``POINTADAPTERX_OPS=reference`` to skip the compiled kernels.
"""

from __future__ import annotations

from pointadapterx.ops.library import implementation  # isort: skip  (registers the ops)
from pointadapterx.ops.chamfer import chamfer_distance
from pointadapterx.ops.checks import unchecked
from pointadapterx.ops.gathering import gather_points, group_points, three_interpolate
from pointadapterx.ops.neighbours import ball_query, knn, three_nn
from pointadapterx.ops.ragged import flatten_clouds, pad_clouds
from pointadapterx.ops.sampling import farthest_point_sample

__all__ = [
    "ball_query",
    "chamfer_distance",
    "farthest_point_sample",
    "flatten_clouds",
    "gather_points",
    "group_points",
    "implementation",
    "knn",
    "pad_clouds",
    "three_interpolate",
    "three_nn",
    "unchecked",
]
