"""The linear probe: how much of a task a backbone's features already tell a linear classifier."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from torch.optim.swa_utils import update_bn

from pointadapterx.arrays import as_array
from pointadapterx.datasets import PointClouds, resample_test
from pointadapterx.engine.metrics import require_finite
from pointadapterx.models.backbone import Backbone
from pointadapterx.models.point_mae import PointMAE

COSTS = (1e-4, 1e-3, 1e-2, 1e-1)


@torch.inference_mode()
def frozen_features(
    backbone: Backbone, dataset: PointClouds, config: Mapping[str, Any], accelerator: Accelerator
) -> np.ndarray:
    """Maximum and mean of the patch tokens of each cloud, (n, 2 C) float32.

    These are the features of Point-MAE's linear SVM, except that the class token, which pre-training has not seen,
    is in the sequence as in every adaptation.
    """
    was_training = backbone.training
    backbone.eval()
    rows = []
    for points in dataset.points.split(config["eval"]["batch_size"]):
        points = resample_test(
            points.to(accelerator.device),
            config["data"]["num_points"],
            skip_origin=config["backbone"]["skip_origin"],
        )
        with accelerator.autocast():
            patches = backbone(points).sequence.patches
        rows.append(torch.cat([patches.amax(dim=1), patches.mean(dim=1)], dim=-1).float().cpu())
    backbone.train(was_training)
    return as_array(torch.cat(rows))


def calibrate_batch_norm(backbone: PointMAE, dataset: PointClouds, config: Mapping[str, Any]) -> None:
    """Gives the patch encoder's BatchNorm the statistics of ``dataset``, as the first epoch of any training would.

    Random weights keep 0 and 1 otherwise, which handicaps them for no reason that has to do with what was learnt.
    """
    device = next(backbone.parameters()).device
    clouds = (
        resample_test(points.to(device), config["data"]["num_points"], skip_origin=config["backbone"]["skip_origin"])
        for points in dataset.points.split(config["eval"]["batch_size"])
    )
    update_bn((backbone.grouping(points).neighborhood for points in clouds), backbone.patch_encoder)


def probe_accuracy(
    backbone: Backbone,
    train: PointClouds,
    val: PointClouds,
    config: Mapping[str, Any],
    accelerator: Accelerator,
) -> float:
    """Accuracy in % on ``val`` of a linear SVM on frozen features of ``train``.

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
    return 100.0 * float(search.score(features[1], labels[1]))
