"""How unlike the training data a sample is, judged by the features of the last layer and by the logits.

Fitted on the training and the validation part with the kept adapter, and stored in its file. How well it works is
measured by ``python -m benchmarks novelty`` (docs/results/novelty.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

RANK = 128  # directions that are stored; the rest share one spread
QUANTILES = 101
PASS = 0.95  # share of known samples that are to pass
LEAST = 2  # validation samples, for a spread
FLOOR = 1e-4  # of the variance of all features: where classes have a single sample they have no spread of their own
EARLIER = {"means", "scales", "quantiles"}  # of files before 0.1.0


class Novelty:
    """Energy of the logits plus Mahalanobis distance to the nearest class, each in deviations of the validation part.

    The energy is −log Σ exp(logits) (Liu et al., arXiv 2010.03759). The distance is taken in the features that the
    head's last layer reads, with one covariance within classes for all (Lee et al., arXiv 1807.03888), shrunk as Ledoit
    and Wolf do.

    Args:
        means: (classes with training samples, H), of the features.
        basis: (H, r), directions of the largest variance within classes.
        spread: (r + 1,), standard deviation in each, and in the rest.
        units: (4,), mean and standard deviation of the energy and of the distance, of validation samples.
        quantiles: (Q,) of the scores of validation samples, ascending.
        limit: (1,), the score up to which a sample counts as known.
    """

    def __init__(
        self, means: Tensor, basis: Tensor, spread: Tensor, units: Tensor, quantiles: Tensor, limit: Tensor
    ) -> None:
        self.means, self.basis, self.spread = means.float(), basis.float(), spread.float()
        self.units, self.quantiles, self.limit = units.float(), quantiles.float(), limit.float()

    @classmethod
    def fit(cls, hidden: Tensor, labels: Tensor, val_hidden: Tensor, val_logits: Tensor) -> Novelty | None:
        """Fits the score on training samples and on samples that were not used for training.

        Args:
            hidden: (n, H), what the head's last layer reads.
            labels: (n,).
            val_hidden: (m, H).
            val_logits: (m, classes).

        Returns:
            None with less than two validation samples, or where values are not finite.
        """
        if len(val_hidden) < LEAST or not all(bool(part.isfinite().all()) for part in (hidden, val_hidden, val_logits)):
            return None
        means, basis, spread = _within_classes(hidden.double().cpu(), labels.cpu())
        fitted = cls(_stored(means), _stored(basis), spread, torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.zeros(1), spread)
        parts = (energy(val_logits).double().cpu(), fitted.distance(val_hidden).double())
        least = torch.finfo(torch.float32).eps
        units = [(part.mean(), part.std().clamp_min(least * (1 + part.abs().mean()))) for part in parts]
        fitted.units = torch.stack([value for pair in units for value in pair]).float()
        scores = fitted.score(val_hidden, val_logits).double().sort().values
        # The rank that a new sample of the same kind exceeds with probability 1 - PASS; with few samples the largest.
        fitted.limit = scores[min(math.ceil(PASS * (len(scores) + 1)), len(scores)) - 1 :][:1].float()
        places = torch.linspace(0, 1, min(QUANTILES, len(scores)), dtype=torch.float64)
        fitted.quantiles = scores.quantile(places).float()
        return fitted

    def distance(self, hidden: Tensor) -> Tensor:
        """(b, H) -> (b,), in standard deviations within classes."""
        exact = "donot_use_mm_for_euclid_dist"  # products cancel where a feature hardly varies
        return torch.cdist(self._whitened(hidden), self._whitened(self.means), compute_mode=exact).amin(dim=1)

    def score(self, hidden: Tensor, logits: Tensor) -> Tensor:
        """(b, H), (b, classes) -> (b,): the larger, the less like the training data; NaN where an input is."""
        energy_mean, energy_unit, distance_mean, distance_unit = self.units
        far = (self.distance(hidden) - distance_mean) / distance_unit
        return far + (energy(logits).float().cpu() - energy_mean) / energy_unit

    def share_below(self, hidden: Tensor, logits: Tensor) -> Tensor:
        """(b, H), (b, classes) -> share in [0, 1] of validation samples with a lower score; NaN where an input is."""
        score = self.score(hidden, logits)
        return (torch.searchsorted(self.quantiles, score).float() / len(self.quantiles)).where(score == score, score)

    def is_known(self, hidden: Tensor, logits: Tensor) -> Tensor:
        """(b, H), (b, classes) -> (b,) bool: a score as 95 % of samples of the training classes have, or lower."""
        return self.score(hidden, logits) <= self.limit

    def tensors(self) -> dict[str, Tensor]:
        """What :meth:`from_tensors` takes, in half precision where that is enough."""
        return {
            "means": _stored(self.means),
            "basis": _stored(self.basis),
            "spread": self.spread,
            "units": self.units,
            "quantiles": self.quantiles,
            "limit": self.limit,
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], classes: int, width: int) -> Novelty | None:
        """Of a file; None where it stores none, or that of an earlier form.

        Args:
            tensors: by name.
            classes: number of classes of the adapter.
            width: H.

        Raises:
            ValueError: if they are not what :meth:`tensors` gives.
        """
        if not tensors or tensors.keys() == EARLIER:
            return None
        wanted = {"means": 2, "basis": 2, "spread": 1, "units": 1, "quantiles": 1, "limit": 1}
        if tensors.keys() != wanted.keys():
            raise ValueError(f"novelty has {', '.join(sorted(tensors))}, not {', '.join(wanted)}")
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        rank = shapes["spread"][0] - 1 if len(shapes["spread"]) == 1 else -1
        fits = all(tensors[name].is_floating_point() and len(shapes[name]) == n for name, n in wanted.items())
        if not (
            fits
            and 1 <= shapes["means"][0] <= classes
            and shapes["means"][1] == width
            and 0 <= rank <= width
            and shapes["basis"] == (width, rank)
            and shapes["units"] == (4,)
            and shapes["limit"] == (1,)
            and shapes["quantiles"][0] > 0
        ):
            raise ValueError(f"novelty has shapes {shapes} for {classes} classes and {width} features")
        broken = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
        if broken:
            raise ValueError(f"novelty: {broken[0]} holds NaN or infinite values")
        found = cls(**tensors)
        if float(found.spread.min()) <= 0 or float(found.units[1::2].min()) <= 0:
            raise ValueError("novelty: a standard deviation is not positive")
        if bool((found.quantiles.diff() < 0).any()):
            raise ValueError("novelty: quantiles do not ascend")
        return found

    def _whitened(self, hidden: Tensor) -> Tensor:
        """Features whitened by the covariance within classes, (b, H)."""
        values, rest = hidden.float().cpu(), 1 / self.spread[-1]
        with torch.autocast("cpu", enabled=False):  # in which a prediction may run; the difference is too fine for bf16
            return rest * values + (values @ self.basis * (1 / self.spread[:-1] - rest)) @ self.basis.T


def energy(logits: Tensor) -> Tensor:
    """(b, classes) -> (b,): low where some class is likely."""
    return -logits.float().logsumexp(dim=1)


def _within_classes(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means of the classes (c, H), directions (H, r) and spread (r + 1,) within them."""
    from sklearn.covariance import ledoit_wolf  # slow to import, and needed once a run

    present = labels.unique()
    means = torch.stack([hidden[labels == label].mean(dim=0) for label in present])
    own = means[torch.searchsorted(present, labels)]
    covariance = torch.from_numpy(ledoit_wolf((hidden - own).numpy(), assume_centered=True)[0])
    variances, directions = torch.linalg.eigh(covariance)  # ascending
    everything = (hidden - hidden.mean(dim=0)).square().mean()
    variances = variances.clamp_min(FLOOR * float(everything) + torch.finfo(torch.float32).tiny)
    rank = min(RANK, len(variances))
    rest = variances[: len(variances) - rank].mean() if rank < len(variances) else variances[0]
    spread = torch.cat([variances[len(variances) - rank :], rest[None]]).sqrt()
    return means, directions[:, len(variances) - rank :], spread.float()


def _stored(values: Tensor) -> Tensor:
    """The tensor in half precision, unless a value does not fit into it."""
    half = values.contiguous().half()
    return half if bool(half.isfinite().all()) else values.contiguous().float()
