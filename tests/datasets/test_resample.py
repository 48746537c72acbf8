"""FPS and random subsets."""

from __future__ import annotations

import pytest
import torch

from pointadapterx.datasets import check_num_points, resample_test, resample_train
from pointadapterx.datasets import resample as resample_module
from pointadapterx.datasets.resample import fps, fps_stage
from pointadapterx.errors import ConfigError
from pointadapterx.ops import farthest_point_sample


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cloud(num_points: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, num_points, 3, generator=seeded(5))


def rows(points: torch.Tensor) -> set[tuple[float, ...]]:
    return {tuple(point) for point in points.tolist()}


@pytest.mark.parametrize(
    ("wanted", "stage"), [(1024, 1200), (2048, 2400), (4096, 4800), (8192, 8192), (512, 600), (100, 118)]
)
def test_fps_stage(wanted: int, stage: int) -> None:
    assert fps_stage(wanted) == stage


@pytest.mark.parametrize(
    ("available", "wanted"), [(2048, 2048), (2048, 1024), (1200, 1024), (1024, 1024), (2048, 1), (50, 43), (3000, 2048)]
)
def test_train_draws_distinct_points_of_the_cloud(available: int, wanted: int) -> None:
    points = cloud(available)
    out = resample_train(points, wanted, seeded())
    assert out.shape == (2, wanted, 3)
    for drawn, given in zip(out, points, strict=True):
        assert len(rows(drawn)) == wanted
        assert rows(drawn) <= rows(given)


def test_train_draws_from_the_farthest_points() -> None:
    points = cloud(2048)
    stage = fps(points, 1200)
    out = resample_train(points, 1024, seeded())
    for drawn, kept in zip(out, stage, strict=True):
        assert rows(drawn) <= rows(kept)
    assert torch.equal(stage, points.gather(1, farthest_point_sample(points, 1200)[..., None].expand(-1, -1, 3)))


def test_train_is_a_function_of_the_seed_and_differs_by_cloud() -> None:
    points = cloud(300, 1).expand(3, -1, -1)
    assert torch.equal(resample_train(points, 200, seeded(1)), resample_train(points, 200, seeded(1)))
    assert not torch.equal(resample_train(points, 200, seeded(1)), resample_train(points, 200, seeded(2)))
    out = resample_train(points, 200, seeded(1))
    assert rows(out[0]) != rows(out[1])


@pytest.mark.parametrize(("available", "wanted"), [(2048, 2048), (1200, 1024), (1100, 1024)])
def test_fps_that_would_keep_every_point_is_skipped(
    monkeypatch: pytest.MonkeyPatch, available: int, wanted: int
) -> None:
    def refuse(*_: object, **__: object) -> torch.Tensor:
        raise AssertionError("FPS of every point is only a permutation")

    monkeypatch.setattr(resample_module, "farthest_point_sample", refuse)
    points = cloud(available)
    out = resample_train(points, wanted, seeded())
    assert len(rows(out[0]) & rows(points[0])) == wanted
    assert not torch.equal(out, points[:, :wanted])
    assert resample_test(points, available) is points


def test_test_points_are_the_farthest_ones_in_order() -> None:
    points = cloud(500)
    out = resample_test(points, 100)
    assert torch.equal(out, fps(points, 100))
    assert torch.equal(out[:, 0], points[:, 0])
    assert torch.equal(resample_test(points, 50), out[:, :50])


def test_skip_origin_reaches_fps() -> None:
    points = cloud(40)
    points[:, 5:] *= 1e-4  # all but 5 points lie near the origin
    assert rows(resample_test(points, 5, skip_origin=True)[0]) == rows(points[0, :5])
    drawn = resample_train(points, 30, seeded(), skip_origin=True)
    assert rows(drawn[0]) <= rows(points[0, :5])


@pytest.mark.parametrize("resample", [resample_train, resample_test])
def test_more_points_than_there_are(resample: object) -> None:
    with pytest.raises(ConfigError, match=r"num_points=101 exceeds the 100 points .*lower data.num_points to 100"):
        resample(cloud(100), 101)  # type: ignore[operator]


def test_no_points() -> None:
    with pytest.raises(ConfigError, match="num_points=0 must be at least 1"):
        check_num_points(0, 10)
