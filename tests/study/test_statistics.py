"""Means, intervals and tests against scipy and values computed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import bootstrap

from pointadapterx.errors import DataError
from pointadapterx.study import statistics
from pointadapterx.study.statistics import difference_interval, mcnemar, score_interval, spread


def outcomes(accuracy: float, count: int = 300, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(count) < accuracy


@pytest.mark.parametrize(
    "compute",
    [
        lambda: difference_interval([outcomes(0.5, 40)], [outcomes(0.5, 1)]),
        lambda: difference_interval([outcomes(0.5, 40)], [outcomes(0.5, 30)]),
        lambda: difference_interval([outcomes(0.5, 40)] * 2, [outcomes(0.5, 30)] * 2),
        lambda: difference_interval([outcomes(0.5, 40)] * 3, [outcomes(0.5, 40)] * 2, same_objects=False),
        lambda: difference_interval([outcomes(0.5, 40)] * 2, [outcomes(0.5, 30)] * 2, same_objects=False),
        lambda: difference_interval([outcomes(0.5, 40)], [outcomes(0.5, 40)], groups=np.arange(39)),
        lambda: difference_interval([outcomes(0.5, 40)], []),
        lambda: score_interval([]),
        lambda: score_interval([np.zeros(0, bool)]),
        lambda: score_interval([outcomes(0.5, 40), outcomes(0.5, 41)]),
        lambda: score_interval([outcomes(0.5, 40)], groups=np.arange(41)),
        lambda: mcnemar(outcomes(0.5, 40), outcomes(0.5, 1)),
    ],
)
def test_what_is_not_of_the_same_objects_is_refused(compute: Callable[[], object]) -> None:
    """NumPy would repeat a single object in silence."""
    with pytest.raises(DataError, match=r"same|at least one|number an object|one test set|test it again"):
        compute()


def test_spread_has_n_minus_1_degrees_of_freedom() -> None:
    assert spread([80.0, 82.0, 84.0]) == (82.0, 2.0)
    assert spread([80.0]) == (80.0, None)


def test_one_run_agrees_with_scipys_percentile_bootstrap() -> None:
    right = outcomes(0.8)
    reference = bootstrap((right,), np.mean, method="percentile", n_resamples=10_000, rng=1).confidence_interval
    interval = score_interval([right])
    assert interval.low == pytest.approx(100 * reference.low, abs=0.5)
    assert interval.high == pytest.approx(100 * reference.high, abs=0.5)


def test_a_paired_difference_agrees_with_scipy() -> None:
    ours, theirs = outcomes(0.8, seed=1), outcomes(0.7, seed=2)
    reference = bootstrap(
        (ours, theirs),
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=10_000,
        rng=1,
        vectorized=True,
    ).confidence_interval
    interval = difference_interval([ours], [theirs])
    assert interval.low == pytest.approx(100 * reference.low, abs=0.6)
    assert interval.high == pytest.approx(100 * reference.high, abs=0.6)


@pytest.mark.parametrize("grouped", [False, True])
def test_many_groups_are_drawn_by_kind_with_the_same_result(grouped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = ([outcomes(rate, 900, seed) for seed in seeds] for rate, seeds in ((0.8, (1, 2, 3)), (0.7, (4, 5))))
    groups = np.arange(900) // 2 if grouped else None
    found = []
    for limit in (1000, 100):
        monkeypatch.setattr(statistics, "MANY_GROUPS", limit)
        found.append((score_interval(ours, groups=groups), difference_interval(ours, theirs, groups=groups)))
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, abs=0.15)
        assert one != other  # of other draws


def test_runs_that_agree_on_each_object_differ_by_nothing() -> None:
    right = outcomes(0.8)
    assert difference_interval([right], [right]) == (0.0, 0.0)


def test_pairing_narrows_the_interval() -> None:
    theirs = outcomes(0.5)
    ours = theirs.copy()
    ours[np.flatnonzero(~theirs)[:30]] = True  # right wherever the other is, and on 30 objects more
    paired = difference_interval([ours], [theirs])
    alone = score_interval([ours])
    assert paired.low > 0
    assert paired.high - paired.low < alone.high - alone.low


def test_seeds_are_resampled_too() -> None:
    everything, nothing = np.ones(100, bool), np.zeros(100, bool)
    # Objects alone would leave 50 % in each resample; of two seeds, a quarter of the resamples takes one twice.
    assert score_interval([everything, nothing]) == (0.0, 100.0)


def test_folds_have_a_t_interval_over_their_accuracies() -> None:
    folds = [np.arange(10) < 5, np.arange(20) < 12, np.arange(10) < 7]  # folds may be of different sizes
    low, high = score_interval(folds, same_objects=False)  # 50, 60, 70: t(0.975, 2) = 4.303, s = 10
    assert (low, high) == pytest.approx((60 - 4.303 * 10 / math.sqrt(3), 60 + 4.303 * 10 / math.sqrt(3)), abs=0.01)
    better = [np.arange(10) < 6, np.arange(20) < 14, np.arange(10) < 8]  # each by 10
    assert difference_interval(better, folds, same_objects=False) == pytest.approx((10.0, 10.0))
    assert score_interval([np.ones(10, bool), np.zeros(10, bool)], same_objects=False) == (0.0, 100.0)


def test_results_are_the_same_each_time() -> None:
    runs = [outcomes(0.7, seed=seed) for seed in range(3)]
    assert score_interval(runs) == score_interval(runs)


def test_mcnemar_is_the_binomial_of_the_discordant_objects() -> None:
    ours = np.array([1] * 8 + [0] * 2 + [1] * 5 + [0] * 5, bool)
    theirs = np.array([0] * 8 + [1] * 2 + [1] * 5 + [0] * 5, bool)
    by_hand = 2 * sum(math.comb(10, k) for k in range(3)) / 2**10  # 8 against 2
    assert mcnemar(ours, theirs) == pytest.approx(by_hand)
    assert mcnemar(theirs, ours) == pytest.approx(by_hand)
    assert mcnemar(ours, ours) == 1.0


def test_groups_are_resampled_whole() -> None:
    groups = np.repeat(np.arange(60), 5)
    right = np.repeat(outcomes(0.8, 60), 5)  # five copies of each object tell no more than one
    one_each = score_interval([right[::5]])
    grouped = score_interval([right], groups=groups)
    assert grouped == pytest.approx(one_each, abs=1e-9)
    alone = score_interval([right])
    assert alone.high - alone.low < 0.6 * (grouped.high - grouped.low)
    theirs = np.repeat(outcomes(0.6, 60, seed=1), 5)
    assert difference_interval([right], [theirs], groups=groups) == pytest.approx(
        difference_interval([right[::5]], [theirs[::5]]), abs=1e-9
    )


def test_the_resampled_accuracy_of_groups_is_of_their_objects() -> None:
    groups = np.array([3, 8, 8, 8])  # one right object alone, three wrong ones together
    low, high = score_interval([np.array([True, False, False, False])], groups=groups)
    assert (low, high) == (0.0, 100.0)
    assert score_interval([outcomes(0.7)], groups=np.arange(300)) == score_interval([outcomes(0.7)])
