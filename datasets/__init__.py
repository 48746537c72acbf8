"""Data sets, splits, augmentation, resampling and batching of point clouds and of images.

``build_dataset("ldraw20", "train")`` needs no download; see :data:`DATASETS` for the others.
"""

from __future__ import annotations

from pointadapterx.datasets.ade20k import Ade20k
from pointadapterx.datasets.base import DATASETS, PointClouds, Samples
from pointadapterx.datasets.batching import EvalBatches, even_batches
from pointadapterx.datasets.build import build_dataset
from pointadapterx.datasets.coco import Coco
from pointadapterx.datasets.digit_scenes import DigitScenes
from pointadapterx.datasets.digits import Digits
from pointadapterx.datasets.fashion_mnist import FashionMnist
from pointadapterx.datasets.few_shot import few_shot_task
from pointadapterx.datasets.folder import Folder
from pointadapterx.datasets.home import Home
from pointadapterx.datasets.image_masks import MaskedImages
from pointadapterx.datasets.image_transforms import IMAGE_TRANSFORMS
from pointadapterx.datasets.imagefolder import ImageFolder
from pointadapterx.datasets.images import Images
from pointadapterx.datasets.inputs import Inputs, build_inputs
from pointadapterx.datasets.labelled_folder import LabelledFolder
from pointadapterx.datasets.labelled_h5 import LabelledH5
from pointadapterx.datasets.ldraw20 import LDraw20
from pointadapterx.datasets.ldraw_parts import LDrawParts
from pointadapterx.datasets.mask_folder import MaskFolder
from pointadapterx.datasets.modelnet40 import ModelNet40
from pointadapterx.datasets.object_images import ObjectImages
from pointadapterx.datasets.object_masks import CocoMasks, VocMasks
from pointadapterx.datasets.resample import check_num_points, resample_test, resample_train, to_fps_stage
from pointadapterx.datasets.rooms import Rooms
from pointadapterx.datasets.s3dis import S3DIS
from pointadapterx.datasets.scanobjectnn import ScanObjectNN
from pointadapterx.datasets.scenes import Scenes
from pointadapterx.datasets.shapenetpart import ShapeNetPart
from pointadapterx.datasets.splits import stratified_draw, stratified_split
from pointadapterx.datasets.transforms import TRANSFORMS, Augment, Transform, augment_label, build_augment
from pointadapterx.datasets.views import Views
from pointadapterx.datasets.voc import Voc
from pointadapterx.datasets.vtab import Vtab
from pointadapterx.hashing import content_hash, derive_seed

__all__ = [
    "DATASETS",
    "IMAGE_TRANSFORMS",
    "S3DIS",
    "TRANSFORMS",
    "Ade20k",
    "Augment",
    "Coco",
    "CocoMasks",
    "DigitScenes",
    "Digits",
    "EvalBatches",
    "FashionMnist",
    "Folder",
    "Home",
    "ImageFolder",
    "Images",
    "Inputs",
    "LDraw20",
    "LDrawParts",
    "LabelledFolder",
    "LabelledH5",
    "MaskFolder",
    "MaskedImages",
    "ModelNet40",
    "ObjectImages",
    "PointClouds",
    "Rooms",
    "Samples",
    "ScanObjectNN",
    "Scenes",
    "ShapeNetPart",
    "Transform",
    "Views",
    "Voc",
    "VocMasks",
    "Vtab",
    "augment_label",
    "build_augment",
    "build_dataset",
    "build_inputs",
    "check_num_points",
    "content_hash",
    "derive_seed",
    "even_batches",
    "few_shot_task",
    "resample_test",
    "resample_train",
    "stratified_draw",
    "stratified_split",
    "to_fps_stage",
]
