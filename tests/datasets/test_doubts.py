"""What looks wrong with coordinates is named, and healthy clouds are left in peace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pointadapterx.datasets.doubts import doubts_of, far_points, outside
from pointadapterx.datasets.point_files import load_cloud

trimesh = pytest.importorskip("trimesh", exc_type=ImportError)

RNG = np.random.default_rng(0)
BOX = RNG.uniform(-1, 1, (2000, 3))
BALL = RNG.normal(size=(2000, 3))
MAP = np.array([5e5, 4.5e6, 100.0])
GRID = np.stack(np.meshgrid(*[np.arange(8.0)] * 3), axis=-1).reshape(-1, 3)


def with_rows(points: np.ndarray, *rows: tuple[float, float, float], times: int = 1) -> np.ndarray:
    return np.concatenate([points, np.tile(rows, (times, 1))])


HEALTHY = {
    "box": BOX,
    "ball": BALL,
    "map in double precision": BOX + MAP,
    "map of a town in float32": (500 * BOX + MAP).astype(np.float32).astype(float),
    "whole numbers on a map": GRID + MAP,
    "a plane on a map": (np.where([True, False, True], BOX, 0) + MAP).round(2),
    "voxels": GRID,
    "the origin twice": with_rows(BOX, (0, 0, 0), times=2),
    "a point at -9999 of a large scan": with_rows(20_000 * BOX, (0, 0, -9999)),
    "a heavy tail": RNG.standard_t(4, (2000, 3)),
    "one spot": np.ones((200, 3)),
    "one point": np.ones((1, 3)),
    "huge": 1e300 * BOX,
    "few points of which one is far": with_rows(BOX[:20], (100, 0, 0)),
}


@pytest.mark.parametrize("kind", HEALTHY)
def test_nothing_is_said_of_healthy_clouds(kind: str) -> None:
    assert doubts_of(HEALTHY[kind].astype(float)) == ()


DOUBTFUL = {
    "ESRI": (
        with_rows(BOX + MAP, (5e5, 4.5e6, -9999), times=7),
        "7 of 2007 points have z = -9999, which stands for no",
    ),
    "GDAL": (with_rows(BOX, (-3.4028234663852886e38,) * 3), "1 of 2001 points have x = -3.40282347e+38, which stands"),
    "int16": (with_rows(BOX, (-32768, 0, 0)), "1 of 2001 points have x = -32768, which stands for no data"),
    "depth image": (with_rows(BOX + 5, (0, 0, 0), times=9), "9 of 2009 points are exactly (0, 0, 0), as for no data"),
    "padding": (with_rows(BOX, (0, 0, 0), times=50), "50 of 2050 points are exactly (0, 0, 0), as for no data or"),
    "lone": (with_rows(BOX, (30, 0, 0), (0, 80, 0)), "2 of 2002 points lie 5 times farther out than 99 % of them"),
    "float32": ((2 * BOX + MAP).astype(np.float32).astype(float), "9 different values of y among 2000 points: float32"),
    "float32, negative": (
        -(2 * BOX + MAP).astype(np.float32).astype(float),
        "with steps of 0.5 at 4500002, has spoilt",
    ),
}


@pytest.mark.parametrize("kind", DOUBTFUL)
def test_doubtful_clouds(kind: str) -> None:
    points, says = DOUBTFUL[kind]
    (doubt,) = doubts_of(points)
    assert says in doubt.text


def test_points_outside_are_found() -> None:
    points = with_rows(BOX, (-9999, 0, 0), (50, 0, 0))
    assert outside(points).nonzero()[0].tolist() == [2000, 2001]
    assert not outside(np.full((200, 3), -9999.0)).any()
    assert not far_points(BALL).any()


def test_vertices_of_a_mesh_are_judged_and_not_its_samples(tmp_path: Path) -> None:
    ball = pytest.importorskip("trimesh").creation.icosphere(3)
    ball.export(tmp_path / "near.ply")
    ball.apply_translation(MAP)
    ball.export(tmp_path / "far.ply")  # in float32
    assert load_cloud(tmp_path / "near.ply", 500, 0).doubts == ()
    (doubt,) = load_cloud(tmp_path / "far.ply", 500, 0).doubts
    assert "different values of y among 642 points: float32, with steps of 0.5" in doubt.text
