"""ModelNet40: CAD models of 40 categories (Wu et al., CVPR 2015), in the two layouts that are in use."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from pointadapterx.datasets.base import DATASETS, PointClouds, check_choice, check_split, logger, warn_count
from pointadapterx.datasets.checks import check_classes, checked_labels, checked_points
from pointadapterx.datasets.files import require_files
from pointadapterx.datasets.h5 import read_h5
from pointadapterx.datasets.modelnet40_text import TextLayout, read_lines, read_split_list, read_text_layout
from pointadapterx.datasets.unpickle import read_pickled_arrays
from pointadapterx.errors import DataError, shown

MODELNET40_CLASSES = (
    *("airplane", "bathtub", "bed", "bench", "bookshelf", "bottle", "bowl", "car", "chair", "cone"),
    *("cup", "curtain", "desk", "door", "dresser", "flower_pot", "glass_box", "guitar", "keyboard", "lamp"),
    *("laptop", "mantel", "monitor", "night_stand", "person", "piano", "plant", "radio", "range_hood", "sink"),
    *("sofa", "stairs", "stool", "table", "tent", "toilet", "tv_stand", "vase", "wardrobe", "xbox"),
)
PUBLISHED = {"train": 9843, "test": 2468}

# variant -> folder, files by which the folder is known
LAYOUTS = {
    "normal_resampled": ("modelnet40_normal_resampled", "modelnet40_*.*"),
    "ply_hdf5_2048": ("modelnet40_ply_hdf5_2048", "ply_data_*"),
}

OBTAIN = (
    "ModelNet40 is Princeton's, for academic use under the terms at https://modelnet.cs.princeton.edu/: obtain "
    "modelnet40_normal_resampled or modelnet40_ply_hdf5_2048, unpack it, and set data.root to the folder that "
    "holds it."
)

Content = tuple[torch.Tensor, torch.Tensor, list[str] | None, list[Path]]  # points, labels, names, sources


@DATASETS.register("modelnet40")
class ModelNet40(PointClouds):
    """40 classes, y up; coordinates only, normals are left out.

    Layouts, found by themselves under ``root`` (the first wins) or chosen by ``variant``:

    - ``normal_resampled``: text files of 10,000 points, reduced to 8192 by FPS as in the field, and cached (see
      :func:`~pointadapterx.datasets.modelnet40_text.read_text_layout`). Where the pickled
      ``modelnet40_{split}_8192pts_fps.dat`` is, it is read instead, by a reader that cannot run code.
    - ``ply_hdf5_2048``: HDF5 files of 2048 points.

    Args:
        split: ``"train"`` or ``"test"``.
        root: the layout's folder, or the folder that holds it.
        variant: see above.
        normalize: centre and scale into the unit sphere; on in the usual protocol.
        cache_dir: folder for the cache of the text layout; beside the data by default, or in the user's cache
            folder where the data is read-only.
        workers: processes that parse text files; all CPU cores by default.

    Raises:
        ConfigError: for an unknown split or variant.
        DataError: if files are missing or damaged. A number of clouds that is not the published one is a warning.
    """

    variants = tuple(LAYOUTS)
    num_classes = 40

    def __init__(
        self,
        split: str,
        *,
        root: str | Path | None = None,
        variant: str | None = None,
        normalize: bool = True,
        cache_dir: str | Path | None = None,
        workers: int | None = None,
    ) -> None:
        check_split(split)
        if variant is not None:
            check_choice(variant, tuple(LAYOUTS), "data.variant of modelnet40")
        layout, folder = _find_layout(Path(root or "data/ModelNet40"), variant, split)
        if layout == "ply_hdf5_2048":
            points, labels, names, source = _read_hdf5(folder, split)
        else:
            text = TextLayout(folder, split)
            cache = None if cache_dir is None else Path(cache_dir)
            points, labels, names, source = (
                _read_dat(text.dat) if text.dat.is_file() else _read_text(text, cache, workers)
            )
        super().__init__(points, labels, MODELNET40_CLASSES, split, names=names, source=source, normalize=normalize)
        warn_count("ModelNet40", split, len(self), PUBLISHED[split])


def _hdf5_files(folder: Path, split: str) -> list[Path]:
    """``ply_data_train0.h5``, ``ply_data_train1.h5``, ... in the order of their numbers."""
    pattern = re.compile(rf"ply_data_{split}(\d+)\.h5")
    found = {int(match[1]): path for path in folder.glob("*.h5") if (match := pattern.fullmatch(path.name))}
    for number in range(max(found, default=-1) + 1):
        if number not in found:
            raise DataError(
                f"{folder}: ply_data_{split}{number}.h5 is missing, though ply_data_{split}{max(found)}.h5 is there; "
                "unpack the whole archive"
            )
    return [found[number] for number in sorted(found)]


def _find_layout(base: Path, variant: str | None, split: str) -> tuple[str, Path]:
    """Layout and folder of the data.

    Raises:
        DataError: if the files of the split are in neither; the message lists what is expected.
    """
    wanted = list(LAYOUTS) if variant is None else [variant]
    found = [
        (layout, folder)
        for layout in wanted
        for folder in (base / LAYOUTS[layout][0], base)
        if next(folder.glob(LAYOUTS[layout][1]), None)
    ]
    if len(found) > 1:
        logger.info("ModelNet40: several layouts are there, reading %s; data.variant chooses another", found[0][1])
    layout, folder = found[0] if found else (wanted[0], base / LAYOUTS[wanted[0]][0])
    expected: dict[str, list[Path]] = {}
    for other in wanted if not found else [layout]:
        place = folder if other == layout else base / LAYOUTS[other][0]
        text = TextLayout(place, split)
        expected[other] = (
            [text.shape_names, text.split_list, place / "<class>" / "<class>_<number>.txt", text.dat]
            if other == "normal_resampled"
            else [place / f"ply_data_{split}0.h5", place / "shape_names.txt"]
        )
    if layout == "ply_hdf5_2048":
        needed = _hdf5_files(folder, split) or expected[layout][:1]
    else:
        needed = [text.dat] if (text := TextLayout(folder, split)).dat.is_file() else expected[layout][:2]
    require_files(f"ModelNet40 {split}", needed, [path for paths in expected.values() for path in paths], OBTAIN)
    return layout, folder


def _read_hdf5(folder: Path, split: str) -> Content:
    if (folder / "shape_names.txt").is_file():
        check_classes(read_lines(folder / "shape_names.txt"), MODELNET40_CLASSES, str(folder / "shape_names.txt"))
    paths = _hdf5_files(folder, split)
    parts = [read_h5(path, len(MODELNET40_CLASSES)) for path in paths]
    count = parts[0].points.shape[1]
    for path, part in zip(paths, parts, strict=True):
        if part.points.shape[1] != count:
            raise DataError(f"{path}: {part.points.shape[1]} points a cloud, but {paths[0].name} has {count}")
    return torch.cat([part.points for part in parts]), torch.cat([part.labels for part in parts]), None, paths


def _read_text(text: TextLayout, cache_dir: Path | None, workers: int | None) -> Content:
    check_classes(read_lines(text.shape_names), MODELNET40_CLASSES, str(text.shape_names))
    names, labels = read_split_list(text, MODELNET40_CLASSES)
    points, source = read_text_layout(text, names, cache_dir, workers)
    return points, labels, names, [source]


def _read_dat(path: Path) -> Content:
    """``[points, labels]``: a list of ``(8192, 6)`` float arrays and one of ``(1,)`` whole-number arrays."""
    content = read_pickled_arrays(path)
    if not (isinstance(content, list | tuple) and len(content) == 2 and all(isinstance(x, list) for x in content)):
        raise DataError(f"{path}: expected a list of two lists, clouds and labels, as Point-BERT's code writes it")
    clouds, labels = content
    if len(clouds) != len(labels) or not clouds:
        raise DataError(f"{path}: {len(clouds)} clouds and {len(labels)} labels, expected one label a cloud")
    for i, cloud in enumerate(clouds):
        shape = np.shape(cloud) if isinstance(cloud, np.ndarray) else type(cloud).__name__
        first = np.shape(clouds[0])
        if not isinstance(cloud, np.ndarray) or cloud.ndim != 2 or cloud.shape[1] < 3 or cloud.shape != first:
            raise DataError(f"{path}: cloud {i} is {shape}, expected an array of shape (points, 6) as all the others")
    stored = path.stat().st_size
    if len(clouds) * clouds[0].nbytes > stored:  # one array may occur in a list many times
        raise DataError(f"{path}: {len(clouds)} clouds of {clouds[0].nbytes} bytes in a file of {stored} bytes")
    for i, label in enumerate(labels):
        if not isinstance(label, np.ndarray) or label.size != 1 or label.dtype.kind not in "iu":
            raise DataError(f"{path}: label {i} is {shown(label)}, expected an array of one whole number")
    points = checked_points(np.stack([cloud[:, :3] for cloud in clouds]), str(path))
    flat = np.concatenate([label.reshape(1) for label in labels])
    return points, checked_labels(flat, len(points), len(MODELNET40_CLASSES), str(path)), None, [path]
