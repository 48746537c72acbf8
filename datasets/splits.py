"""A validation part of the training set, so that nothing is chosen on the test set."""

from __future__ import annotations

import logging
import math
import warnings
from fractions import Fraction

import numpy as np
import torch

from pointadapterx.errors import ConfigError, DataError
from pointadapterx.hashing import derive_seed

logger = logging.getLogger(__name__)

MAX_FOLDS = 20  # a fraction is met to 1/20 when groups must stay together


def stratified_split(
    labels: torch.Tensor, fraction: float, seed: int, groups: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Split sample indices into a training and a validation part with the same share of every class.

    A class with a single sample (with ``groups``: in a single group) stays in the training part, with a warning.

    Args:
        labels: ``(n,)`` int64.
        fraction: share of the validation part, between 0 and 1.
        seed: of the draw.
        groups: ``(n,)`` int64; samples of one group stay on one side, and the fraction is met approximately.

    Returns:
        ``(train_idx, val_idx)``, sorted int64.

    Raises:
        ConfigError: if ``fraction`` is not between 0 and 1, or too small for one sample a class.
        DataError: if nothing can be held out without taking all of a class.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"fraction={fraction} of the validation part must be between 0 and 1")
    y = labels.numpy()
    units = np.arange(len(y)) if groups is None else groups.numpy()
    if len(units) != len(y):
        raise DataError(f"{len(units)} groups for {len(y)} labels; each sample needs one group")
    rest = np.flatnonzero(~np.isin(units, _lone_units(y, units, "sample" if groups is None else "group")))
    if not len(rest):
        raise DataError(
            f"no validation part can be cut from {len(y)} samples: no class has two "
            f"{'samples' if groups is None else 'groups'}; use more data or train without a validation part"
        )
    state = derive_seed(seed, "split") % 2**32  # the range that scikit-learn takes
    if groups is None:
        held_out = rest[_shuffle_split(y[rest], fraction, state)]
    else:
        held_out = rest[_group_split(y[rest], units[rest], fraction, state)]
    if not len(held_out):
        raise DataError(
            f"no validation part can be cut from {len(y)} samples in {len(np.unique(units))} groups without taking all "
            "of a class; use more data or train without a validation part"
        )
    train = np.setdiff1d(np.arange(len(y)), held_out)
    return torch.from_numpy(train), torch.from_numpy(np.sort(held_out))


def stratified_draw(labels: torch.Tensor, size: int, seed: int) -> torch.Tensor:
    """Indices of ``size`` samples, drawn with about the same share of every class, and at least one of each.

    Args:
        labels: ``(n,)`` int64.
        size: how many.
        seed: of the draw.

    Returns:
        ``(size,)`` int64, sorted.

    Raises:
        ConfigError: if there are fewer samples, or more classes, than ``size``.
    """
    y = labels.numpy()
    num_classes = len(np.unique(y))
    if not num_classes <= size <= len(y):
        raise ConfigError(
            f"data.train_size={size} of {len(y)} training samples in {num_classes} classes; choose from {num_classes} "
            f"to {len(y)}"
        )
    order = np.random.default_rng(derive_seed(seed, "draw")).permutation(len(y))
    # The k-th drawn sample of a class, from 0, has the position k / its size; the lowest positions are taken.
    place = np.empty(len(y))
    for label in np.unique(y):
        members = order[y[order] == label]
        place[members] = np.arange(len(members)) / len(members)
    chosen = order[np.argsort(place[order], kind="stable")][:size]
    return torch.from_numpy(np.sort(chosen))


def _lone_units(y: np.ndarray, units: np.ndarray, unit: str) -> np.ndarray:
    """Classes with only one sample or group."""
    pairs = np.unique(np.stack([y, units]), axis=1)  # (2, pairs of a class and a unit)
    classes, counts = np.unique(pairs[0], return_counts=True)
    lone = classes[counts == 1]
    if len(lone):
        logger.warning(
            "%d of %d classes have a single %s and stay in the training part: labels %s",
            *(len(lone), len(classes), unit, ", ".join(map(str, lone))),
        )
    return pairs[1][np.isin(pairs[0], lone)]


def _shuffle_split(y: np.ndarray, fraction: float, state: int) -> np.ndarray:
    num_classes = len(np.unique(y))
    num_val = math.ceil(fraction * len(y))
    if num_val < num_classes or len(y) - num_val < num_classes:
        raise ConfigError(
            f"fraction={fraction} of {len(y)} samples leaves {num_val} for validation and {len(y) - num_val} for "
            f"training, but there are {num_classes} classes; choose a fraction from {num_classes / len(y):.3f} "
            f"to {1 - num_classes / len(y):.3f}"
        )
    from sklearn.model_selection import StratifiedShuffleSplit  # slow to import

    splitter = StratifiedShuffleSplit(n_splits=1, test_size=num_val, random_state=state)
    return next(splitter.split(y, y))[1]


def _group_split(y: np.ndarray, units: np.ndarray, fraction: float, state: int) -> np.ndarray:
    from sklearn.model_selection import StratifiedGroupKFold  # slow to import

    # No more folds than the largest class has samples, nor than there are groups.
    folds_at_most = min(MAX_FOLDS, int(np.bincount(y).max()), len(np.unique(units)))
    share = Fraction(fraction).limit_denominator(folds_at_most)
    if share in (0, 1):
        raise ConfigError(
            f"fraction={fraction} cannot be met with groups that stay together; "
            f"choose one from {1 / folds_at_most:.3f} to {1 - 1 / folds_at_most:.3f}"
        )
    folds = StratifiedGroupKFold(n_splits=share.denominator, shuffle=True, random_state=state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer groups than folds is met in some folds only
        parts = [part for _, part in folds.split(y, y, units)][: share.numerator]
    held_out = np.concatenate(parts)
    for label in np.unique(y):
        if np.isin(np.flatnonzero(y == label), held_out).all():  # a class to be learnt needs a group to learn from
            back = units[y == label].min()
            held_out = held_out[units[held_out] != back]
    return held_out
