"""Data sets, splits, augmentation, resampling and batching of point clouds.

``build_dataset("ldraw20", "train")`` needs no download; see :data:`DATASETS` for the others.
"""

from __future__ import annotations

from pointadapterx.datasets.base import DATASETS, PointClouds
from pointadapterx.datasets.batching import EvalBatches, even_batches
from pointadapterx.datasets.build import build_dataset
from pointadapterx.datasets.few_shot import few_shot_task
from pointadapterx.datasets.folder import Folder
from pointadapterx.datasets.hashing import content_hash, derive_seed
from pointadapterx.datasets.ldraw20 import LDraw20
from pointadapterx.datasets.modelnet40 import ModelNet40
from pointadapterx.datasets.resample import check_num_points, resample_test, resample_train, to_fps_stage
from pointadapterx.datasets.scanobjectnn import ScanObjectNN
from pointadapterx.datasets.splits import stratified_split
from pointadapterx.datasets.transforms import TRANSFORMS, Augment, Transform, augment_label, build_augment

__all__ = [
    "DATASETS",
    "TRANSFORMS",
    "Augment",
    "EvalBatches",
    "Folder",
    "LDraw20",
    "ModelNet40",
    "PointClouds",
    "ScanObjectNN",
    "Transform",
    "augment_label",
    "build_augment",
    "build_dataset",
    "check_num_points",
    "content_hash",
    "derive_seed",
    "even_batches",
    "few_shot_task",
    "resample_test",
    "resample_train",
    "stratified_split",
    "to_fps_stage",
]
