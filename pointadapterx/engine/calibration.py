"""What a prediction is worth: calibrated confidence, and how unlike the training data a sample is.

Both are fitted on the validation part with the kept adapter, and stored in its file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

BINS = 15
LOG_TEMPERATURES = (-3.0, 3.0)
QUANTILES = 101
FAR = 1.5


class Calibration(NamedTuple):
    """How to read logits.

    Attributes:
        temperature: T of softmax(logits / T).
        samples: of the validation part that it was fitted on.
    """

    temperature: float
    samples: int

    def probabilities(self, logits: Tensor) -> Tensor:
        """(..., classes) -> the same, rows sum to 1."""
        return (logits / self.temperature).softmax(dim=-1)


def fit_temperature(logits: Tensor, labels: Tensor) -> Calibration:
    """The temperature with the least negative log-likelihood (Guo et al., arXiv 1706.04599).

    As if one sample of n + 2 were wrong (the rule of succession): n right answers alone do not make one certain.

    Args:
        logits: (n, classes) of samples that were not trained on.
        labels: (n,).
    """
    from scipy.optimize import minimize_scalar  # slow to import, and needed once a run

    logits, classes = logits.double(), logits.shape[-1]
    smoothing = classes / (classes - 1) / (len(labels) + 2)  # torch's is shared by all classes, the right one too

    def loss(log_temperature: float) -> float:
        scaled = logits / torch.tensor(log_temperature).exp()
        return torch.nn.functional.cross_entropy(scaled, labels, label_smoothing=min(smoothing, 1.0)).item()

    found = minimize_scalar(loss, bounds=LOG_TEMPERATURES, method="bounded", options={"xatol": 1e-4})
    return Calibration(float(torch.tensor(found.x).exp()), len(labels))


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Expected calibration error of the chosen class in %, 15 bins of equal width.

    Args:
        probabilities: (n, classes).
        labels: (n,).
    """
    classes = probabilities.shape[-1]
    return 100.0 * multiclass_calibration_error(probabilities, labels, classes, n_bins=BINS, norm="l1").item()


class Novelty:
    """Distance to the nearest class of the training data in the features that the head reads.

    The distance is the mean over features of (f - μ_c)² / σ², with σ² the variance within classes. It is told as the
    share of validation samples that are nearer, 0.5 being usual; a sample is unlike them all where it is farther than
    :data:`FAR` times the farthest.

    Args:
        means: (classes, D), μ.
        scales: (D,), σ.
        quantiles: (Q,) of the distances of validation samples, ascending, the least and the largest among them.
    """

    def __init__(self, means: Tensor, scales: Tensor, quantiles: Tensor) -> None:
        self.means, self.scales, self.quantiles = means.float(), scales.float(), quantiles.float()

    @classmethod
    def fit(cls, features: Tensor, labels: Tensor, num_classes: int, held_out: Tensor) -> Novelty:
        """From training samples and such as were not trained on.

        Args:
            features: (n, D).
            labels: (n,).
            num_classes: classes without a sample have no mean.
            held_out: (m, D).
        """
        features = features.double()
        present = [c for c in range(num_classes) if bool((labels == c).any())]
        means = torch.stack([features[labels == c].mean(dim=0) for c in present])
        own = means[torch.tensor([present.index(int(label)) for label in labels])]
        scales = (features - own).square().mean(dim=0).sqrt()
        means = means.half()  # as they are stored
        fitted = cls(means, scales.clamp(min=1e-6 + 1e-3 * float(scales.mean())), torch.zeros(0))
        distances = fitted.distance(held_out).double()
        fitted.quantiles = distances.quantile(torch.linspace(0, 1, QUANTILES, dtype=torch.float64)).float()
        return fitted

    def distance(self, features: Tensor) -> Tensor:
        """(b, D) -> (b,)."""
        scaled, means = features.float().cpu() / self.scales, self.means / self.scales
        exact = "donot_use_mm_for_euclid_dist"  # products cancel where a feature hardly varies
        return torch.cdist(scaled, means, compute_mode=exact).square().amin(dim=1) / features.shape[1]

    def share_nearer(self, features: Tensor) -> Tensor:
        """(b, D) -> share in [0, 1] of the validation samples that are nearer to the training data."""
        return torch.searchsorted(self.quantiles, self.distance(features)).float() / len(self.quantiles)

    def is_unlike(self, features: Tensor) -> Tensor:
        """(b, D) -> (b,) bool, whether a sample is unlike the training data."""
        return self.distance(features) > FAR * self.quantiles[-1]

    def tensors(self) -> dict[str, Tensor]:
        """What :meth:`from_tensors` takes, in half precision where that is enough."""
        return {"means": self.means.half(), "scales": self.scales, "quantiles": self.quantiles}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Novelty:
        """Of a file."""
        return cls(tensors["means"], tensors["scales"], tensors["quantiles"])


def summary(calibration: Calibration, logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Temperature, and the calibration error of other samples without and with it."""
    return {
        "temperature": calibration.temperature,
        "fitted_on": calibration.samples,
        "calibration_error_before": calibration_error(logits.softmax(dim=-1), labels),
        "calibration_error": calibration_error(calibration.probabilities(logits), labels),
    }
