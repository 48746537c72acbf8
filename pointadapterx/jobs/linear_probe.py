"""The linear probe: how well a linear classifier solves a task from a backbone's frozen features."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from rich.table import Table
from torch import Tensor
from torch.optim.swa_utils import update_bn

from pointadapterx import ops
from pointadapterx.arrays import as_array
from pointadapterx.build import build_backbone, build_probe_data
from pointadapterx.config import Config
from pointadapterx.datasets import PointClouds, build_inputs
from pointadapterx.engine.console import console
from pointadapterx.errors import ConfigError
from pointadapterx.models.backbone import Backbone
from pointadapterx.models.point_mae import PointMAE
from pointadapterx.tasks.exchange import require_finite

COSTS = (1e-4, 1e-3, 1e-2, 1e-1)
PROBE_SEEDS = (0, 1, 2)  # initialisations of the random backbones


@torch.inference_mode()
def frozen_features(backbone: Backbone, dataset: PointClouds, config: Config, accelerator: Accelerator) -> np.ndarray:
    """Maximum and mean of the patch tokens of each cloud, (n, 2 C) float32.

    These are the features of Point-MAE's linear SVM, except that the class token, which pre-training has not seen,
    is in the sequence as in every adaptation.
    """
    was_training = backbone.training
    backbone.eval()
    rows, inputs = [], build_inputs(config)
    for points in dataset.points.split(config.eval.batch_size):
        points = inputs.for_test(points.to(accelerator.device))
        with accelerator.autocast():
            patches = backbone(points).sequence.patches
        rows.append(torch.cat([patches.amax(dim=1), patches.mean(dim=1)], dim=-1).float().cpu())
    backbone.train(was_training)
    return as_array(torch.cat(rows))


def calibrate_batch_norm(backbone: PointMAE, dataset: PointClouds, config: Config) -> None:
    """Gives the patch encoder's BatchNorm the statistics of ``dataset``, as the first epoch of any training would.

    Otherwise random weights keep mean 0 and variance 1, a handicap that has nothing to do with what was learnt.
    """
    device, inputs = next(backbone.parameters()).device, build_inputs(config)
    clouds = (inputs.for_test(points.to(device)) for points in dataset.points.split(config.eval.batch_size))
    update_bn((backbone.grouping(points).neighborhood for points in clouds), backbone.patch_encoder)


def probe_accuracy(
    backbone: Backbone,
    train: PointClouds,
    val: PointClouds,
    config: Config,
    accelerator: Accelerator,
) -> float:
    """Accuracy in % of :func:`probe_outcomes`."""
    return 100.0 * float(probe_outcomes(backbone, train, val, config, accelerator).mean())


def probe_outcomes(
    backbone: Backbone,
    train: PointClouds,
    val: PointClouds,
    config: Config,
    accelerator: Accelerator,
) -> np.ndarray:
    """Which clouds of ``val`` a linear SVM on frozen features of ``train`` classifies correctly, (n,) bool.

    The SVM's cost is chosen by cross-validation within ``train``, whose ``groups``, where known, stay together. The
    class token, which pre-training does not train, is no feature.

    Args:
        backbone: on the accelerator's device; its mode is restored.
        train: labelled clouds.
        val: of the same classes.
        config: ``data.num_points``, ``eval.batch_size`` and ``backbone.skip_origin`` are used.
        accelerator: gives device and precision.

    Raises:
        TrainingError: if features are not finite.
    """
    # Slow to import, for whoever only counts or resumes.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    features = [frozen_features(backbone, part, config, accelerator) for part in (train, val)]
    for part in features:
        require_finite(torch.from_numpy(part), "features")
    labels = [part.labels.numpy() for part in (train, val)]
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LinearSVC(random_state=0, max_iter=3000)),
        {"linearsvc__C": COSTS},
        cv=3 if train.groups is None else StratifiedGroupKFold(3, shuffle=True, random_state=0),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the largest costs need not converge to be compared
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer clouds than folds
        search.fit(features[0], labels[0], groups=train.groups)
    return np.asarray(search.predict(features[1]) == labels[1])


def standard_error(runs: Sequence[np.ndarray], groups: Tensor | None) -> float:
    """Standard error in points of the mean accuracy, as it varies with the judged clouds.

    Args:
        runs: (n,) bool for each initialisation, which clouds are right.
        groups: (n,), the same for clouds that are not independent, such as variants of one part.
    """
    right = np.mean(runs, axis=0)
    numbers = np.arange(len(right)) if groups is None else np.unique(groups.numpy(), return_inverse=True)[1]
    sums = np.bincount(numbers, weights=right - right.mean())
    return 100.0 * math.sqrt(len(sums) / max(1, len(sums) - 1) * float(np.square(sums).sum())) / len(right)


def probe(config: Config, accelerator: Accelerator) -> dict[str, float]:
    """Linear-probe accuracy in % of a config's backbone weights and of random ones, printed as a table.

    Random weights are judged as they are initialised, and with BatchNorm's statistics taken from the training
    clouds; both are means over three initialisations. Standard errors are those of :func:`standard_error`.

    Args:
        config: of a pre-training job; ``backbone.weights`` names the weights.
        accelerator: from :func:`~pointadapterx.engine.devices.make_accelerator`.

    Returns:
        Accuracy by the name of the weights.

    Raises:
        ConfigError: for an adaptation config, or without weights to judge.
    """
    if config.pretrain is None:
        raise ConfigError("a probe needs a pre-training config, for example cfgs/pretrain/point_mae_tiny.yaml")
    weights = config.backbone.weights
    if weights is None:
        raise ConfigError("backbone.weights is not set; add backbone.weights=FILE to the command")
    parts = build_probe_data(config)

    def judge(source: str | None, seed: int, calibrated: bool = False) -> np.ndarray:
        backbone = build_backbone(config.backbone.model_copy(update={"weights": source, "init_seed": seed}))
        backbone.to(accelerator.device)
        if calibrated and isinstance(backbone, PointMAE):
            calibrate_batch_norm(backbone, parts[0], config)
        return probe_outcomes(backbone, *parts, config, accelerator)

    with ops.unchecked():
        of_weights = [judge(weights, config.backbone.init_seed or 0)]  # first: weights may not fit
        runs = {
            "random": [judge(None, seed) for seed in PROBE_SEEDS],
            "random, BatchNorm calibrated": [judge(None, seed, calibrated=True) for seed in PROBE_SEEDS],
            str(weights): of_weights,
        }
    found = {name: 100.0 * float(np.mean(of_name)) for name, of_name in runs.items()}
    table = Table(
        title=f"linear SVM on frozen features of {config.pretrain.probe.name}: {len(parts[0])} clouds to "
        f"train on, accuracy on {len(parts[1])} others of the training split",
        title_justify="left",
    )
    table.add_column("weights")
    table.add_column("accuracy %", justify="right")
    table.add_column("standard error", justify="right")
    for name, value in found.items():
        table.add_row(name, f"{value:.2f}", f"{standard_error(runs[name], parts[1].groups):.2f}")
    console.print(table)
    return found
