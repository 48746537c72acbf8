"""Point operations of other packages, called as their users would; the extra ``bench`` installs them.

Each function returns what does the work with inputs that are already in the form that the package takes. Clouds that a
package takes one at a time are given to as many threads as torch has. Raises ImportError where the package is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

import torch
from torch import Tensor

from pointadapterx.ops import reference

Work = Callable[[], object]
HEIGHTS = (3, 5, 7, 9)
"""Heights of the k-d trees of fpsample and torch-quickfps that are tried where points suffice; the fastest is timed."""


def _each(function: Callable[[int], object], batch: int) -> Work:
    if batch == 1:
        return lambda: function(0)
    pool = ThreadPoolExecutor(torch.get_num_threads())
    return lambda: list(pool.map(function, range(batch)))


def _fastest(works: list[Work]) -> Work:
    def seconds(work: Work) -> float:
        work()
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return min(works, key=seconds)


def _heights(points: Tensor) -> list[int]:
    return [h for h in HEIGHTS if 2**h <= points.shape[1]] or [1]


def torch_loop(points: Tensor, number: int) -> Work | None:
    """The plain loop of torch operations; not for clouds where it would take minutes."""
    if points.shape[1] * number > 2**30:
        return None
    return lambda: reference.farthest_point_sample(points, number, 0, False)


def torch_quickfps(points: Tensor, number: int) -> Work:
    """torch-quickfps, which takes whole batches."""
    package = import_module("torch_quickfps")
    return _fastest([lambda h=h: package.sample(points, number, h=h, start_idx=0) for h in _heights(points)])


def fpsample(points: Tensor, number: int) -> Work:
    """The bucketed FPS of fpsample."""
    sample = import_module("fpsample").bucket_fps_kdline_sampling
    arrays = points.numpy()
    works = [_each(lambda b, h=h: sample(arrays[b], number, h=h, start_idx=0), len(points)) for h in _heights(points)]
    return _fastest(works)


def open3d_fps(points: Tensor, number: int) -> Work | None:
    """Open3D's older clouds, which sample much faster than its tensor clouds; not where it would take minutes."""
    o3d = import_module("open3d")
    if points.shape[1] * number > 2**32:
        return None
    clouds = [o3d.geometry.PointCloud(o3d.utility.Vector3dVector(cloud)) for cloud in points.double().numpy()]
    return _each(lambda b: clouds[b].farthest_point_down_sample(number), len(clouds))


def scipy(query: Tensor, points: Tensor, k: int) -> Work:
    """SciPy's k-d tree, built each time."""
    tree = import_module("scipy.spatial").cKDTree
    queries, arrays, threads = query.numpy(), points.numpy(), torch.get_num_threads()
    alone = len(points) == 1
    return _each(lambda b: tree(arrays[b]).query(queries[b], k, workers=threads if alone else 1), len(points))


def open3d_knn(query: Tensor, points: Tensor, k: int) -> Work:
    """Open3D's neighbour search, its index built each time."""
    o3d = import_module("open3d")
    queries, clouds = ([o3d.core.Tensor(cloud) for cloud in part.numpy()] for part in (query, points))

    def search(b: int) -> object:
        index = o3d.core.nns.NearestNeighborSearch(clouds[b])
        index.knn_index()
        return index.knn_search(queries[b], k)

    return _each(search, len(clouds))


def faiss(query: Tensor, points: Tensor, k: int) -> Work | None:
    """faiss, exhaustive; not for clouds where it would take minutes."""
    package = import_module("faiss")
    if points.shape[1] * query.shape[1] > 2**32:
        return None
    package.omp_set_num_threads(torch.get_num_threads())
    queries, arrays = query.numpy(), points.numpy()

    def search() -> None:
        for some, cloud in zip(queries, arrays, strict=True):
            index = package.IndexFlatL2(3)
            index.add(cloud)
            index.search(some, k)

    return search


def torch_cdist(query: Tensor, points: Tensor, k: int) -> Work | None:
    """torch's distances of all pairs, and its selection."""
    if points.shape[1] * query.shape[1] > 2**30:
        return None
    return lambda: torch.cdist(query, points).topk(k, largest=False)


FPS_PEERS: dict[str, Callable[[Tensor, int], Work | None]] = {
    "torch-quickfps": torch_quickfps,
    "fpsample": fpsample,
    "open3d": open3d_fps,
    "torch loop": torch_loop,
}
KNN_PEERS: dict[str, Callable[[Tensor, Tensor, int], Work | None]] = {
    "open3d": open3d_knn,
    "scipy": scipy,
    "faiss": faiss,
    "torch cdist + topk": torch_cdist,
}
PACKAGES = ("torch-quickfps", "fpsample", "open3d", "scipy", "faiss-cpu")
