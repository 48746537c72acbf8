"""Blocks of scenes: what is in them, and that a draw depends on its key and place alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from pointadapterx.datasets.ragged import Ragged, checked_point_labels
from pointadapterx.datasets.scenes import LEAST, Scenes, points_around
from pointadapterx.errors import ConfigError, DataError

CLASSES = ["floor", "wall", "thing"]
COUNTS = [9000, 5000, 700]


def random_clouds(seed: int = 0, counts: Sequence[int] = COUNTS) -> Ragged:
    """Boxes of 4 m, 2 m high, whose labels are the thirds of their height; some points have no label."""
    draws, clouds = np.random.default_rng(seed), []
    for count in counts:
        points = draws.uniform([10, -1, -5], [14, 1, -1], (count, 3)).astype(np.float32)
        labels = np.clip(np.floor((points[:, 1] + 1) * 1.5), 0, 2).astype(np.int8)
        labels[::97] = -1
        clouds.append((points, labels))
    return Ragged.of(clouds)


def scenes(block: float | str = 1.0, *, num_points: int = 256, normalize: bool = False) -> Scenes:
    """A small data set."""
    names = [f"room {number}" for number in range(len(COUNTS))]
    return Scenes(
        random_clouds(), CLASSES, "train", num_points=num_points, block=block, names=names, normalize=normalize
    )


def test_a_block_holds_points_of_one_place() -> None:
    """Within half a metre of its middle, heights above the lowest point, labels of these points, nothing twice."""
    data = scenes()
    assert len(data) == sum(round(count / sum(COUNTS) * (sum(COUNTS) // 256)) for count in COUNTS)
    points, labels = data.draw(torch.arange(len(data)))
    assert points.shape == (len(data), 256, 3)
    assert points[..., [0, 2]].abs().max() <= 0.5 + 1e-5
    assert points[..., 1].amin() >= 0
    assert points[..., 1].amax() > 1.9
    known = labels >= 0
    floors = torch.from_numpy(data.floors).float()[data.scene][:, None]
    expected = ((points[..., 1] + floors + 1) * 1.5).floor().clamp(0, 2).long()
    assert (expected == labels)[known].float().mean() > 0.999  # of float32's rounding
    assert (~known).any()
    sparse = data.scene == 2  # no block of 700 points over 16 m² holds 256
    for found, few in zip(points, sparse.tolist(), strict=True):
        assert (len(found.unique(dim=0)) < 256) == few


def test_a_draw_depends_on_key_and_place_alone() -> None:
    """The same in a subset and in any order; another in another epoch."""
    data = scenes().epoch(7, 3)
    whole = data.draw(torch.arange(len(data)))
    index = torch.tensor([5, 1, 30])
    part = data.subset(index)
    for kept, found in zip(whole, part.draw(torch.tensor([2, 0])), strict=True):
        assert torch.equal(kept[index[[2, 0]]], found)
    assert not torch.equal(data.epoch(7, 4).draw(index)[0], whole[0][index])
    assert not torch.equal(data.epoch(8, 3).draw(index)[0], whole[0][index])
    assert torch.equal(part.scene, data.scene[index])
    again, first = data.draw(torch.tensor([5, 5, 5]), torch.tensor([0, 1, 2]))[0], whole[0][5]
    assert [torch.equal(found, first) for found in again] == [True, False, False]  # of one epoch that draws it often
    assert not torch.equal(again[1], again[2])
    assert data[1]["point_labels"].tolist() == whole[1][1].tolist()


@pytest.mark.parametrize("step", [1.0, 0.001])
def test_the_grid_misses_no_point_around_a_place(step: float) -> None:
    """As a look at all points finds them, wherever the square lies; millimetres as metres."""
    clouds = random_clouds()
    if step != 1.0:
        clouds = Ragged.flat((clouds.points / step).round().astype(np.int16), clouds.labels, clouds.counts, step)
    clouds = clouds.in_cells(0.5, ["a", "b", "c"])
    draws = np.random.default_rng(1)
    for _ in range(50):
        number, half = int(draws.integers(3)), float(draws.uniform(0.05, 1.5))
        middle = draws.uniform([9, -6], [15, 0])
        points, rows = points_around(clouds, number, middle, half)
        whole = clouds.cloud(number).astype(np.float64)
        inside = (np.abs(whole[:, [0, 2]] - middle) <= half).all(axis=1)
        assert sorted(rows.tolist()) == np.flatnonzero(inside).tolist()
        assert np.array_equal(points, whole[rows])


def test_blocks_are_drawn_until_they_are_full() -> None:
    """Most of a scene's points are in one corner; the others are in no block that is taken."""
    draws = np.random.default_rng(0)
    corner, rest = draws.uniform(0, 1, (3000, 3)), draws.uniform([3, 0, 3], [9, 1, 9], (3000, 3))
    cloud = np.concatenate([corner, rest]).astype(np.float32), np.repeat([0, 1], 3000).astype(np.int8)
    data = Scenes(Ragged.of([cloud]), CLASSES, "train", num_points=1500, block=1.0, names=["one"])
    _, labels = data.draw(torch.arange(len(data)))
    assert LEAST == 1024
    assert (labels == 0).all()


def test_whole_clouds() -> None:
    """Each is one sample, without repetition where it has enough points, and in the unit sphere if that is wanted."""
    data = scenes("whole", num_points=600, normalize=True)
    assert len(data) == 3
    points, _ = data.draw(torch.arange(3))
    assert all(len(cloud.unique(dim=0)) == 600 for cloud in points)
    assert 0.9 < points.norm(dim=2).amax() < 1 + 1e-5
    with pytest.raises(ConfigError, match=r"data\.normalize: blocks keep"):
        scenes(1.0, normalize=True)


def test_hash_of_what_a_run_sees() -> None:
    """Another block, number of points, subset or label is other data."""
    found = [scenes().checksum, scenes(2.0).checksum, scenes(num_points=300).checksum, scenes("whole").checksum]
    found.append(scenes().subset([0, 1]).checksum)
    assert len(set(found)) == len(found)
    assert scenes().checksum == found[0]


def test_labels_of_all_points_of_the_scenes_in_use() -> None:
    """Those of other scenes do not count."""
    data = scenes()
    part = data.subset((data.scene == 1).nonzero().flatten())
    assert [len(labels) for labels in part.label_parts()] == [5000]
    assert [len(labels) for labels in data.label_parts()] == COUNTS


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(4), "here: 4 labels for 5 points; give each point one label"),
        (np.zeros((5, 2)), r"here: labels of shape \(5, 2\) for 5 points"),
        (np.array([0, 1, 7, 2, -1]), r"here: point 2 has label 7, expected 0 to 2 \(1 of 5 labels"),
        (np.array([0, 1, 0.5, np.nan, 2]), r"here: point 2 has label 0\.5, expected 0 to 2 \(2 of 5 labels"),
        (np.array(["a"] * 5), "here: labels of type <U1; number the classes from 0 to 2"),
    ],
)
def test_wrong_labels(labels: np.ndarray, message: str) -> None:
    """One line that names the place."""
    with pytest.raises(DataError, match=message):
        checked_point_labels(labels, 5, CLASSES, "here")


def test_a_scene_in_another_unit_is_refused() -> None:
    """Its cells could not be numbered."""
    far = np.array([[0, 0, 0], [1e9, 0, 0]], np.float32), np.zeros(2, np.int8)
    with pytest.raises(
        DataError, match=r"one: measures 1e\+09, 2e\+09 times a block's half; give coordinates in metres"
    ):
        Scenes(Ragged.of([far]), CLASSES, "train", num_points=4, block=1.0, names=["one"])
