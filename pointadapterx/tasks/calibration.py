"""How far a prediction can be trusted: calibrated probabilities.

Fitted on the validation part with the kept adapter, and stored in its file.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pointadapterx.datasets.preparation import is_number
from pointadapterx.errors import shown
from pointadapterx.text import markdown

log = logging.getLogger(__name__)

BINS = 15
LOG_TEMPERATURES = (-3.0, 3.0)
TEMPERATURES = (0.01, 100.0)
"""Least and largest temperature of a file: beyond what is ever fitted, and far from where logits overflow."""
FOLDS = 5
LEAST = 50  # validation samples that a temperature is judged by: ten a fold


class Calibration(NamedTuple):
    """How to read logits.

    Attributes:
        temperature: T of softmax(logits / T).
        samples: of the validation part that it was fitted on.
        reason: why T is 1, if the fitted temperature was rejected.
    """

    temperature: float
    samples: int
    reason: str = ""

    def probabilities(self, logits: Tensor) -> Tensor:
        """(..., classes) -> the same, rows sum to 1."""
        return ((logits - logits.amax(dim=-1, keepdim=True)) / self.temperature).softmax(dim=-1)

    def check(self) -> None:
        """Checks that the values are plausible.

        Raises:
            ValueError: for a temperature that is no number, or beyond :data:`TEMPERATURES`, and other damage.
        """
        least, most = TEMPERATURES
        if not is_number(self.temperature) or not least <= self.temperature <= most:
            raise ValueError(f"temperature is {shown(self.temperature)}, not a number from {least} to {most}")
        if not isinstance(self.samples, int) or not isinstance(self.reason, str):
            raise ValueError(f"calibration is {self._asdict()!r}")


def fit_temperature(logits: Tensor, labels: Tensor) -> Calibration:
    """The temperature with the least loss, used only if it lowers the calibration error in cross-validation.

    These are the validation samples again, in five folds: each fold's error is measured with the temperature of the
    other four.

    Args:
        logits: (n, classes) of samples that were not trained on.
        labels: (n,).

    Returns:
        The fitted temperature; or 1 with the reason, if it does not help or there are too few samples.
    """
    count = len(labels)
    if count < LEAST:
        return _plain(count, f"{count} validation samples are too few to judge one by; {LEAST} are enough")
    plain = calibration_error(logits.softmax(dim=-1), labels)
    scaled = calibration_error(_out_of_fold(logits, labels), labels)
    if not scaled < plain:
        return _plain(
            count,
            f"a fitted one does not lower the calibration error of validation samples ({plain:.2f} % without, "
            f"{scaled:.2f} % with it)",
        )
    return Calibration(least_loss(logits, labels), count)


def _plain(count: int, reason: str) -> Calibration:
    log.info("temperature 1: %s", reason)
    return Calibration(1.0, count, reason)


def _out_of_fold(logits: Tensor, labels: Tensor) -> Tensor:
    """Probabilities (n, classes), each with the temperature of the folds that a sample is not in."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    found = torch.empty_like(logits)
    for number in range(FOLDS):
        fold = torch.zeros(len(labels), dtype=torch.bool)
        fold[order[number::FOLDS]] = True
        temperature = least_loss(logits[~fold], labels[~fold])
        found[fold] = Calibration(temperature, len(labels)).probabilities(logits[fold])
    return found


def least_loss(logits: Tensor, labels: Tensor) -> float:
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
        scaled = logits / math.exp(log_temperature)
        return torch.nn.functional.cross_entropy(scaled, labels, label_smoothing=min(smoothing, 1.0)).item()

    found = minimize_scalar(loss, bounds=LOG_TEMPERATURES, method="bounded", options={"xatol": 1e-4})
    return math.exp(found.x)


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Expected calibration error of the chosen class in %, 15 bins of equal width.

    Args:
        probabilities: (n, classes).
        labels: (n,).
    """
    from torchmetrics.functional.classification import multiclass_calibration_error  # slow to import

    classes = probabilities.shape[-1]
    return 100.0 * multiclass_calibration_error(probabilities, labels, classes, n_bins=BINS, norm="l1").item()


def summary(calibration: Calibration, logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """Temperature, why it is 1 if it is, and the calibration error of other samples without and with it."""
    return {
        "temperature": calibration.temperature,
        "fitted_on": calibration.samples,
        "reason": calibration.reason,
        "calibration_error_before": calibration_error(logits.softmax(dim=-1), labels),
        "calibration_error": calibration_error(calibration.probabilities(logits), labels),
    }


def card_text(calibration: Calibration | None, found: Mapping[str, Any] | None) -> str:
    """What a model card says of the probabilities.

    Args:
        calibration: of the adapter, where one was fitted.
        found: what :func:`summary` says of the test set, where that is known.
    """
    if calibration is None:
        return "None was fitted: probabilities are those of a softmax over the logits, often too certain."
    if calibration.reason:
        text = f"Probabilities are softmax(logits). No temperature: {markdown(calibration.reason)}."
        if found is not None:
            text += f" Expected calibration error on the test set: {found['calibration_error']:.2f} % (15 bins)."
        return text
    text = (
        f"Probabilities are softmax(logits / {calibration.temperature:.4f}), fitted on {calibration.samples} "
        "validation samples."
    )
    if found is not None:
        text += (
            f" Expected calibration error on the test set: {found['calibration_error']:.2f} %, without it "
            f"{found['calibration_error_before']:.2f} % (15 bins)."
        )
    return text
