"""Intervals of scores that are no mean over samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pointadapterx.errors import DataError
from pointadapterx.study.resampling import Records, record_difference, record_intervals
from pointadapterx.study.statistics import RESAMPLES, score_interval
from tests.dense_task import Layers, random_records


def records(seed: int, count: int = 30) -> Records:
    return Records(random_records(np.random.default_rng(seed), count).numpy(), Layers.scores_of)


def test_the_metric_itself_is_taken_of_resampled_samples() -> None:
    """Against a plain loop over the same draws."""
    run = records(0)
    drawn = np.random.default_rng(0).integers(30, size=(500, 30))  # the first part of all resamples
    values = []
    for rows in drawn:
        both, either = run.rows[rows].sum(axis=0).reshape(2, -1)
        values.append(100 * np.mean(both / either))
    low, high = np.quantile(values, [0.025, 0.975])
    assert record_intervals([run])["iou"] == pytest.approx((low, high), abs=0.15)
    assert low < run.values["iou"] < high
    assert record_intervals([run]).keys() == {"iou", "upper"}


@pytest.mark.parametrize("grouped", [False, True])
def test_of_a_mean_over_samples_it_is_the_interval_of_the_mean(grouped: bool) -> None:
    rng = np.random.default_rng(1)
    runs = [rng.uniform(0, 50, 80) for _ in range(3)]
    groups = np.arange(80) // 4 if grouped else None
    mean_of = [Records(np.stack([run, np.ones(80)], axis=1), lambda s: {"mean": s[..., 0] / s[..., 1]}) for run in runs]
    assert record_intervals(mean_of, groups=groups)["mean"] == pytest.approx(
        score_interval(runs, groups=groups), abs=0.3
    )


def test_differences_are_paired_by_sample() -> None:
    """What both have in common cancels out."""
    ours = records(0)
    better = Records(ours.rows + np.array([1, 1, 0, 0]), ours.scores)
    value, (low, high) = record_difference([better], [ours])
    assert value == pytest.approx(better.values["iou"] - ours.values["iou"])
    assert low < value < high
    assert high - low < 0.2
    assert record_difference([ours], [ours]) == (0.0, (0.0, 0.0))


def test_folds_have_students_t() -> None:
    runs = [records(seed, 20 + seed) for seed in range(4)]
    values = [run.values["iou"] for run in runs]
    low, high = record_intervals(runs, same_objects=False)["iou"]
    assert (low + high) / 2 == pytest.approx(np.mean(values))
    assert high - low == pytest.approx(2 * 3.18245 * np.std(values, ddof=1) / 2, rel=1e-4)
    assert record_difference(runs, runs, same_objects=False) == (0.0, (0.0, 0.0))
    with pytest.raises(DataError, match="4 and 3 folds cannot be paired"):
        record_difference(runs, runs[:3], same_objects=False)
    with pytest.raises(DataError, match="of 20 and of 23 test objects are not of one test set"):
        record_intervals(runs)


def test_every_resample_counts_once() -> None:
    shapes = []

    def scores(sums: torch.Tensor) -> dict[str, torch.Tensor]:
        shapes.append(len(sums) if sums.ndim > 1 else 0)
        return {"count": sums.sum(dim=-1)}

    found = record_intervals([Records(np.ones((7, 1)), scores)])
    assert sum(shapes) == RESAMPLES
    assert found["count"] == (7, 7)
