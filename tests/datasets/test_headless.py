"""Text without names of columns whose first three are not x, y and z is refused, or doubted where it is not clear."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pointadapterx.datasets.point_files import Reading, load_cloud
from pointadapterx.errors import DataError

RNG = np.random.default_rng(0)
N = 1000
UNIT = RNG.normal(size=(N, 3))
UNIT /= np.linalg.norm(UNIT, axis=1, keepdims=True)
BALL = 2 * UNIT + [1, 2, 3]
SORTED = BALL[np.argsort(BALL[:, 0])]
SWEEP = np.arange(N) % 100 / 50
SCAN = np.stack([3 * np.cos(SWEEP), 3 * np.sin(SWEEP), np.arange(N) // 100 / 30 + RNG.normal(size=N) / 1000], axis=1)
STEPS = np.cumsum(RNG.exponential(0.01, N))
GRID = np.stack(np.meshgrid(np.arange(40.0), np.arange(25.0), indexing="ij"), axis=-1).reshape(-1, 2)
HEIGHT = np.sin(GRID[:, 0] / 9) + RNG.normal(size=N) / 10
COLOURS = RNG.integers(0, 256, (N, 3))
SHARES = RNG.random((N, 3))


def write(path: Path, *columns: np.ndarray) -> Path:
    np.savetxt(path / "cloud.xyz", np.column_stack(columns), fmt="%.14g")
    return path / "cloud.xyz"


REFUSED = {
    "index": ([np.arange(N), BALL], "its first column counts the rows"),
    "index of whole points": ([np.arange(N), COLOURS], "its first column counts the rows"),
    "time": ([np.arange(N) / 10, SCAN], "its first column changes by about 0.1 from row to row, as a time does"),
    "time, falling": ([-np.arange(N) / 10, SCAN], "changes by about -0.1 from row to row"),
    "time, rounded": ([(np.arange(N) / 30).round(3), BALL], "changes by about 0.0333 from row to row"),
    "time of a scanner": ([STEPS, SCAN], "first column is in order, and the three after it change little from row"),
    "time since 1970": ([1.7e9 + STEPS, BALL], "first column rises from 1700000000 to 1700000010, as a time does"),
    "rows and columns": ([GRID, SCAN, COLOURS], "first two columns hold whole numbers, as rows and columns of a"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_clearly_no_coordinate_is_refused(kind: str, tmp_path: Path) -> None:
    columns, says = REFUSED[kind]
    path = write(tmp_path, *columns)
    with pytest.raises(DataError) as error:
        load_cloud(path, 1, 0)
    assert says in str(error.value)
    assert "so x, y and z lie elsewhere, and nothing names them; say which are x, y and z" in str(error.value)
    chosen = load_cloud(path, 1, 0, Reading((1, 2, 3)))
    assert np.allclose(chosen.points, np.column_stack(columns)[:, 1:4])
    assert chosen.doubts == ()


DOUBTED = {
    "time, or sorted": ([3e5 + STEPS, BALL], "the first column is in order from the first row to the last, as a time"),
    "sorted": ([SORTED, COLOURS[:, :1]], "the first column is in order from the first row to the last"),
    "intensity": ([COLOURS[:, 0], BALL], "the first column holds whole numbers, and the next three fractions"),
    "share": ([SHARES[:, 0], 20 * BALL], "the first column lies between 0 and 1, and the next three do not"),
    "one class": ([np.zeros(N), BALL], "the first column holds whole numbers, and the next three fractions"),
    "a grid with colours": ([GRID, HEIGHT, SHARES], "first two columns hold whole numbers, as rows and columns"),
}


@pytest.mark.parametrize("kind", DOUBTED)
def test_what_is_likely_no_coordinate_is_doubted(kind: str, tmp_path: Path) -> None:
    columns, says = DOUBTED[kind]
    (doubt,) = load_cloud(write(tmp_path, *columns), 1, 0).doubts
    assert says in doubt.text
    assert doubt.text.startswith("columns 0, 1, 2 of ")
    assert doubt.note


PLAIN = {
    "three columns in order": [STEPS, BALL[:, :2]],
    "an intensity last": [BALL, COLOURS[:, :1]],
    "colours last": [BALL, SHARES],
    "a grid in order": [GRID, HEIGHT],
    "a grid with a class": [GRID, HEIGHT, COLOURS[:, :1]],
    "a grid with normals": [GRID, HEIGHT, UNIT],
    "a fine grid with an intensity": [GRID / 4 + 0.1, HEIGHT, SHARES[:, :1]],
    "a map with two values": [GRID + 5e5, HEIGHT, 90 * SHARES],
    "voxels with a class": [GRID, GRID[:, 0] % 7, COLOURS[:, :1]],
    "sorted, with normals": [SORTED, UNIT],
    "a line of whole numbers": [np.arange(N), np.zeros((N, 3))],
    "whole numbers": [COLOURS, COLOURS],
}


@pytest.mark.parametrize("kind", PLAIN)
def test_nothing_is_said_of_coordinates(kind: str, tmp_path: Path) -> None:
    columns = PLAIN[kind]
    cloud = load_cloud(write(tmp_path, *columns), 1, 0)
    assert np.allclose(cloud.points, np.column_stack(columns)[:, :3])
    assert cloud.doubts == ()


def test_too_few_rows_say_nothing(tmp_path: Path) -> None:
    assert load_cloud(write(tmp_path, np.arange(9), BALL[:9]), 1, 0).doubts == ()


def test_a_label_behind_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "cloud.txt"
    path.write_text("".join(f"{row / 10} {x} {y} {z} chair\n" for row, (x, y, z) in enumerate(BALL)), encoding="utf-8")
    with pytest.raises(DataError, match=r"changes by about 0\.1 from row to row"):
        load_cloud(path, 1, 0)
