"""Scores of novelty that the product's is compared with, each fitted as it is, on the training and validation part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.novelty_runs import Run, Seen
from pointadapterx.tasks.novelty import Novelty, energy

Score = Callable[[Seen], Tensor]
OURS, EARLIER, PLAIN = "energy + Mahalanobis, last layer", "deviations from the nearest class", "softmax probability"
RESAMPLES = 500
DIRECTIONS = 64  # kept by the residual


def make_scores(run: Run) -> dict[str, Score]:
    """Names to functions of n clouds -> (n,), the larger the less like the training data."""
    scores: dict[str, Score] = {
        PLAIN: lambda seen: -seen.logits.softmax(dim=1).amax(dim=1),
        "largest logit": lambda seen: -seen.logits.amax(dim=1),
        "energy": lambda seen: energy(seen.logits),
        EARLIER: _deviations(run.train),
    }
    scores["Mahalanobis, head's input"] = _mahalanobis(run, "features")
    scores["Mahalanobis, last layer"] = _mahalanobis(run, "hidden")
    for field, where in (("features", "head's input"), ("hidden", "last layer")):
        scores[f"nearest training cloud, {where}"] = _nearest(run.train, field)
    scores["energy + residual (ViM)"] = _residual(run.train)
    novelty = product(run)
    scores[OURS] = lambda seen: novelty.score(seen.hidden, seen.logits)
    return scores


def product(run: Run) -> Novelty:
    """As training stores it, after the round trip through its tensors."""
    train, val = run.train, run.val
    fitted = Novelty.fit(train.hidden, train.labels, val.hidden, val.logits)
    assert fitted is not None
    stored = Novelty.from_tensors(fitted.tensors(), val.logits.shape[1], val.hidden.shape[1])
    assert stored is not None
    return stored


def _mahalanobis(run: Run, field: str) -> Score:
    train, val = getattr(run.train, field), getattr(run.val, field)
    fitted = Novelty.fit(train, run.train.labels, val, run.val.logits)
    assert fitted is not None
    return lambda seen: fitted.distance(getattr(seen, field))


def _deviations(train: Seen) -> Score:
    """What earlier versions stored: every feature of the head's input by itself."""
    means = torch.stack([train.features[train.labels == label].mean(dim=0) for label in train.labels.unique()])
    spread = (train.features - means[train.labels]).square().mean(dim=0).sqrt()
    spread = spread.clamp_min(1e-6 + 1e-3 * float(spread.mean()))
    return lambda seen: torch.cdist(seen.features / spread, means / spread).amin(dim=1)


def _nearest(train: Seen, field: str) -> Score:
    """Distance of directions (Sun et al., arXiv 2204.06507), with one neighbour."""
    bank = F.normalize(getattr(train, field), dim=1)
    return lambda seen: torch.cdist(F.normalize(getattr(seen, field), dim=1), bank).amin(dim=1)


def _residual(train: Seen) -> Score:
    """What the main directions of the head's input leave, beside the energy (Wang et al., arXiv 2203.10807)."""
    mean, spread = train.features.mean(dim=0), train.features.std(dim=0).clamp_min(1e-4)
    values = (train.features - mean) / spread
    rest = torch.linalg.eigh(values.T @ values / len(values))[1][:, :-DIRECTIONS]

    def outside(seen: Seen) -> Tensor:
        return ((seen.features - mean) / spread @ rest).norm(dim=1)

    scale = train.logits.amax(dim=1).mean() / outside(train).mean()
    return lambda seen: scale * outside(seen) + energy(seen.logits)


class Measured(NamedTuple):
    """One score of one run against one kind of unknown clouds.

    Attributes:
        auroc: chance that an unknown cloud scores higher than a known one; ties count half.
        passing: share of unknown clouds that pass where 95 % of the known test clouds do.
        flagged: the same the other way round where 80 % of the known do: share of unknown clouds that do not pass.
    """

    auroc: float
    passing: float
    flagged: float


def measure(known: Tensor, unknown: Tensor) -> Measured:
    """Of scores (n,) and (m,)."""
    return Measured(
        float(_wins(known, unknown).mean()),
        float((unknown <= known.quantile(0.95)).float().mean()),
        float((unknown > known.quantile(0.80)).float().mean()),
    )


def _wins(known: Tensor, unknown: Tensor) -> Tensor:
    """(n,), (m,) -> (n, m): 1 where the unknown is higher, ½ where they are equal."""
    return (unknown > known[:, None]).float() + 0.5 * (unknown == known[:, None]).float()


class Pair(NamedTuple):
    """Known and unknown clouds of a run, and scores of both by name."""

    known: Seen
    unknown: Seen
    scores: Mapping[str, tuple[Tensor, Tensor]]


def intervals(pairs: list[Pair], names: list[str], against: str) -> dict[str, dict[str, list[float]]]:
    """95 % intervals of mean AUROCs, and of the difference of ``against`` to each of them.

    Runs are resampled, and within each run the known and the unknown objects, near-copies together.
    """
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(pairs), np.full(len(pairs), 1 / len(pairs)), RESAMPLES) / len(pairs)
    means = {name: np.zeros(RESAMPLES) for name in {*names, against}}
    for number, pair in enumerate(pairs):
        known, unknown = (_weights(seen.groups, rng) for seen in (pair.known, pair.unknown))
        for name, sums in means.items():
            wins = _wins(*pair.scores[name])
            sums += drawn[:, number] * ((known @ wins) * unknown).sum(dim=1).double().numpy()
    found = {}
    for name in names:
        low, high = np.quantile(means[name], [0.025, 0.975])
        less, more = np.quantile(means[against] - means[name], [0.025, 0.975])
        found[name] = {"auroc": [float(low), float(high)], "difference": [float(less), float(more)]}
    return found


def _weights(groups: Tensor, rng: np.random.Generator) -> Tensor:
    """Weights (resamples, n) of resampled objects; rows sum to 1."""
    numbers = groups.unique(return_inverse=True)[1]
    objects = int(numbers.max()) + 1
    drawn = torch.from_numpy(rng.multinomial(objects, np.full(objects, 1 / objects), RESAMPLES)).float()[:, numbers]
    return drawn / drawn.sum(dim=1, keepdim=True)
