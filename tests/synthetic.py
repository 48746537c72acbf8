"""Small files in the exact layouts of the published data sets, with shapes that tell the classes apart."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from pointadapterx.datasets.ldraw20 import LDRAW20_CLASSES
from pointadapterx.datasets.ldraw_parts import LDRAW_PARTS
from pointadapterx.datasets.modelnet40 import MODELNET40_CLASSES
from pointadapterx.datasets.parts import Parts, numbers_of
from pointadapterx.datasets.scanobjectnn import PREFIX, SCANOBJECTNN_CLASSES, VARIANTS
from pointadapterx.datasets.shapenetpart import SHAPENETPART

SPLITS = ("train", "test")


def shape(label: int, num_points: int, rng: np.random.Generator) -> np.ndarray:
    """Surface points ``(num_points, 3)`` float32 of one of four solids, its height growing with the class.

    Solid and height survive a rotation about y, so a model can learn the classes under that augmentation.
    """
    angle = rng.uniform(0, 2 * np.pi, num_points)
    t = rng.uniform(-1, 1, num_points)
    radius = (np.sqrt(1 - t**2), np.ones_like(t), (1 - t) / 2, 0.3 + 0.7 * (np.abs(t) > 0.7))[label % 4]
    height = 0.2 + 0.25 * (label // 4)
    points = np.stack([radius * np.cos(angle), height * t, radius * np.sin(angle)], axis=1)
    points *= rng.uniform(0.9, 1.1, 3) / np.linalg.norm(points, axis=1).max()
    return (points + rng.normal(0, 0.005, points.shape)).astype(np.float32)


def clouds(
    split: str, labels: Sequence[int], per_class: int, num_points: int, shuffle: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """``data (n, num_points, 3)`` float32 and ``label (n,)`` int64, ``per_class`` of each of ``labels``."""
    rng = np.random.default_rng([SPLITS.index(split), num_points])
    label = np.repeat(np.asarray(labels, dtype=np.int64), per_class)
    if shuffle:
        label = rng.permutation(label)
    return np.stack([shape(int(i), num_points, rng) for i in label]), label


def _parts(train_per_class: int, test_per_class: int) -> Iterator[tuple[str, int]]:
    yield from zip(SPLITS, (train_per_class, test_per_class), strict=True)


def write_scanobjectnn(
    root: Path, variant: str, train_per_class: int = 2, test_per_class: int = 1, num_points: int = 2048
) -> None:
    """Both files of one variant, with the ``mask`` that the published ones carry."""
    folder, suffix, _ = VARIANTS[variant]
    (root / folder).mkdir(parents=True, exist_ok=True)
    for split, per_class in _parts(train_per_class, test_per_class):
        data, label = clouds(split, range(len(SCANOBJECTNN_CLASSES)), per_class, num_points)
        with h5py.File(root / folder / f"{PREFIX[split]}_{suffix}", "w") as file:
            file["data"] = data + np.float32(0.5)  # not centred, as scans are not
            file["label"] = label
            file["mask"] = np.zeros(data.shape[:2], dtype=np.int64)


def _modelnet40_folder(root: Path) -> Path:
    folder = root / "modelnet40_normal_resampled"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "modelnet40_shape_names.txt").write_text("\n".join(MODELNET40_CLASSES) + "\n")
    return folder


def write_modelnet40_text(
    root: Path,
    train_per_class: int = 1,
    test_per_class: int = 1,
    num_points: int = 10_000,
    classes: Sequence[str] = MODELNET40_CLASSES,
) -> None:
    """The text layout; ``classes`` are those that have clouds, all 40 are named."""
    folder = _modelnet40_folder(root)
    labels = [MODELNET40_CLASSES.index(name) for name in classes]
    number = 1
    for split, per_class in _parts(train_per_class, test_per_class):
        data, label = clouds(split, labels, per_class, num_points, shuffle=False)
        names = [f"{MODELNET40_CLASSES[i]}_{number + n:04d}" for n, i in enumerate(label)]
        number += len(names)
        (folder / f"modelnet40_{split}.txt").write_text("\n".join(names) + "\n")
        for name, points in zip(names, data, strict=True):
            path = folder / name.rpartition("_")[0] / f"{name}.txt"
            path.parent.mkdir(exist_ok=True)
            np.savetxt(path, np.hstack([points, np.zeros_like(points)]), fmt="%.6f", delimiter=",")


def write_modelnet40_dat(
    root: Path, train_per_class: int = 1, test_per_class: int = 1, num_points: int = 8192, protocol: int | None = None
) -> None:
    """The pickled cache: a list of ``(num_points, 6)`` arrays and one of ``(1,)`` labels."""
    folder = _modelnet40_folder(root)
    for split, per_class in _parts(train_per_class, test_per_class):
        data, label = clouds(split, range(len(MODELNET40_CLASSES)), per_class, num_points)
        points = [np.hstack([cloud, np.zeros_like(cloud)]) for cloud in data]
        content = [points, [np.array([i], dtype=np.int32) for i in label]]
        with (folder / f"modelnet40_{split}_8192pts_fps.dat").open("wb") as file:
            pickle.dump(content, file, protocol=protocol)


def write_modelnet40_hdf5(
    root: Path, train_per_class: int = 2, test_per_class: int = 1, num_points: int = 2048, train_files: int = 2
) -> None:
    """The HDF5 layout, the training part in ``train_files`` files."""
    folder = root / "modelnet40_ply_hdf5_2048"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "shape_names.txt").write_text("\n".join(MODELNET40_CLASSES) + "\n")
    for split, per_class in _parts(train_per_class, test_per_class):
        data, label = clouds(split, range(len(MODELNET40_CLASSES)), per_class, num_points)
        for i, rows in enumerate(np.array_split(np.arange(len(data)), train_files if split == "train" else 1)):
            with h5py.File(folder / f"ply_data_{split}{i}.h5", "w") as file:
                file["data"] = data[rows]
                file["label"] = label[rows, None].astype(np.uint8)


def write_ldraw20(root: Path, train_per_class: int = 4, test_per_class: int = 2, num_points: int = 2048) -> None:
    """``train.h5`` and ``test.h5``; every second cloud is a variant of the part before it."""
    root.mkdir(parents=True, exist_ok=True)
    for split, per_class in _parts(train_per_class, test_per_class):
        data, label = clouds(split, range(len(LDRAW20_CLASSES)), per_class, num_points, shuffle=False)
        first = 1000 * (1 + SPLITS.index(split))
        names = [
            f"{first + 40 * i + n // 2}{'p01' if n % 2 else ''}.dat"
            for i in range(len(LDRAW20_CLASSES))
            for n in range(per_class)
        ]
        with h5py.File(root / f"{split}.h5", "w") as file:
            file["data"] = data.astype(np.float16)
            file["label"] = label
            file["name"] = names
            file.attrs["classes"] = list(LDRAW20_CLASSES)


VTAB_LISTS = {"train800": 6, "val200": 4, "train800val200": 10, "test": 5}


def write_vtab(root: Path, task: str, num_classes: int) -> None:
    """The lists of one task and their images, in folders of their own, as the prepared data have them.

    The images of ``train800val200`` are copies of the others, in another order; 6 + 4 images to train on and 5 to test.
    """
    rng = np.random.default_rng(len(task))
    images = {name: rng.integers(0, 256, (count, 6, 8, 3), dtype=np.uint8) for name, count in VTAB_LISTS.items()}
    images["train800val200"] = np.concatenate([images["val200"], images["train800"]])
    labels = {name: np.arange(count) % num_classes for name, count in VTAB_LISTS.items()}
    labels["train800val200"] = np.concatenate([labels["val200"], labels["train800"]])
    for name in VTAB_LISTS:
        folder = root / task / "images" / name
        folder.mkdir(parents=True)
        lines = []
        for i, (image, label) in enumerate(zip(images[name], labels[name], strict=True)):
            Image.fromarray(image).save(folder / f"{i:06d}.png")
            lines.append(f"images/{name}/{i:06d}.png {label}\n")
        (root / task / f"{name}.txt").write_text("".join(lines))


def part_labels(points: np.ndarray, numbers: range) -> np.ndarray:
    """Labels of the points of a cloud (N, 3): its parts lie one over the other."""
    height = points[:, 1]
    layer = (height - height.min()) / np.ptp(height) * len(numbers)
    return numbers[0] + np.minimum(layer.astype(np.int64), len(numbers) - 1)


def _part_arrays(split: str, parts: Parts, per_category: int, num_points: int) -> dict[str, np.ndarray]:
    data, label = clouds(split, range(len(parts)), per_category, num_points, shuffle=False)
    own = list(numbers_of(parts).values())
    pid = np.stack([part_labels(cloud, own[number]) for cloud, number in zip(data, label, strict=True)])
    return {"data": data, "label": label, "pid": pid.astype(np.uint8)}


def write_ldraw_parts(root: Path, per_category: int = 2, num_points: int = 256) -> None:
    """``train.h5`` and ``test.h5`` in the layout of the full set."""
    root.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        with h5py.File(root / f"{split}.h5", "w") as file:
            for key, value in _part_arrays(split, LDRAW_PARTS, per_category, num_points).items():
                file[key] = value
            first = 1000 if split == "train" else 2000
            file["name"] = [f"{first + number}.dat" for number in range(len(file["data"]))]
            file.attrs["classes"] = list(LDRAW_PARTS)


def write_shapenetpart_h5(root: Path, per_category: int = 1, num_points: int = 256) -> Path:
    """The layout of HDF5 files: two of training, one of validation and one of test."""
    folder = root / "hdf5_data"
    folder.mkdir(parents=True, exist_ok=True)
    offsets = {name: f"{number:08d}" for number, name in enumerate(SHAPENETPART, 2_000_001)}
    (folder / "all_object_categories.txt").write_text("".join(f"{name}\t{at}\n" for name, at in offsets.items()))
    for part, split, files in (("train", "train", 2), ("val", "train", 1), ("test", "test", 1)):
        names = [f"ply_data_{part}{number}.h5" for number in range(files)]
        (folder / f"{part}_hdf5_file_list.txt").write_text("".join(f"{name}\n" for name in names))
        for number, name in enumerate(names):
            arrays = _part_arrays(split, SHAPENETPART, per_category, num_points)
            arrays["data"] = arrays["data"] * np.float32(1 + 0.01 * number + 0.1 * (part == "val"))
            with h5py.File(folder / name, "w") as file:
                for key, value in arrays.items():
                    file[key] = value[:, None] if key == "label" else value
    return folder


def write_shapenetpart(root: Path, per_category: int = 1, num_points: int = 100) -> Path:
    """The text layout; shapes have different numbers of points."""
    folder = root / "shapenetcore_partanno_segmentation_benchmark_v0_normal"
    (folder / "train_test_split").mkdir(parents=True, exist_ok=True)
    offsets = {name: f"{number:08d}" for number, name in enumerate(SHAPENETPART, 2_000_001)}
    (folder / "synsetoffset2category.txt").write_text("".join(f"{name}\t{at}\n" for name, at in offsets.items()))
    own, rng = list(numbers_of(SHAPENETPART).values()), np.random.default_rng(0)
    for part in ("train", "val", "test"):
        entries = []
        for label, offset in enumerate(offsets.values()):
            (folder / offset).mkdir(exist_ok=True)
            for number in range(per_category):
                points = shape(label, num_points + int(rng.integers(20)), rng)
                rows = np.column_stack([points, np.zeros_like(points), part_labels(points, own[label])])
                np.savetxt(folder / offset / f"{part}{number}.txt", rows, fmt="%.6f")
                entries.append(f"shape_data/{offset}/{part}{number}")
        (folder / "train_test_split" / f"shuffled_{part}_file_list.json").write_text(json.dumps(entries))
    return folder
