"""What lies at a path of the user's own, and what a config's ``data`` section says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch

from pointadapterx.config import Config
from pointadapterx.datasets import Folder, PointClouds, Samples
from pointadapterx.datasets.cloud_reader import DISTINCT
from pointadapterx.datasets.files import walk_files
from pointadapterx.datasets.folder import STORED_POINTS, unlabelled_text
from pointadapterx.datasets.h5 import find_h5
from pointadapterx.datasets.images import SUFFIXES as PICTURES
from pointadapterx.datasets.labelled_h5 import read_classes
from pointadapterx.datasets.layouts import HELD_OUT, find_layout
from pointadapterx.datasets.listings import TABLE_SUFFIX
from pointadapterx.datasets.options import DataConfig
from pointadapterx.datasets.point_files import Reading
from pointadapterx.doctor.checks import Finding, diagnose
from pointadapterx.doctor.examined import Entry
from pointadapterx.doctor.reading import Options, examine_files, is_h5, plan_reading, read_set
from pointadapterx.errors import ConfigError, DataError
from pointadapterx.files import replacing
from pointadapterx.text import printable

Arrays = tuple[Any, Any]
"""Points (n, N, 3) and labels (n,), numbers or names."""

LOOKED_AT = 1000  # files, to tell pictures from clouds
MOST_FINDINGS = 6  # lines
SHOWN = 8  # names in a line
FORM = "give a folder with a folder for each class, a CSV with the columns file,label,split, or an HDF5 file"


class OwnData(NamedTuple):
    """Data of the user's own.

    Attributes:
        path: where they lie.
        name: ``data.name``, what reads them.
        layout: how they were understood, in a line.
    """

    path: Path
    name: str
    layout: str


def recognise(path: str | Path) -> OwnData:
    """What reads the data at a path, as training and doctor understand them.

    Raises:
        DataError: if there is nothing to train on, or it is not clear what the folders mean.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; {FORM}")
    if is_h5(path):
        files = find_h5(path)
        parts = ", ".join(f"{part} from {_some([file.name for file in of])}" for part, of in files.items())
        return OwnData(path, "h5", f"{path}: HDF5, {parts}; {_classes(read_classes(files))}")
    if path.is_file():
        if path.suffix.lower() != TABLE_SUFFIX:
            raise DataError(f"{path}: a single file is no data set; {FORM}")
        return OwnData(path, "folder", f"{path}: a table of files; {Folder.classes_in(path)} classes")
    layout = find_layout(path)
    if layout.kind == "plain":
        if pictures := _count_pictures(path):
            raise DataError(
                f"{path}: holds pictures ({pictures}), not clouds; train on {path}/{{train,test}}/<class>/ by "
                f"--config vtab/digits data.name=imagefolder data.root={path}"
            )
        raise DataError(unlabelled_text(path))
    parts = ", ".join(f"{layout.parts[part]}/" for part in ("train", "val", "test") if part in layout.parts)
    kinds = {
        "parts": f"folders of classes in {parts}",
        "parts of classes": f"a folder for each class, divided into {parts}",
        "classes": f"a folder for each class, of which {100 * HELD_OUT:.0f} % are kept for the test",
    }
    return OwnData(path, "folder", f"{path}: {kinds[layout.kind]}; {_classes(layout.classes)}")


def _classes(names: Sequence[str]) -> str:
    return f"{len(names)} classes ({_some(names)})"


def _some(names: Sequence[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return printable(", ".join(names[:SHOWN])) + more


def _count_pictures(folder: Path) -> int:
    return sum(path.suffix.lower() in PICTURES for path in islice(walk_files(folder), LOOKED_AT))


def read_entries(data: DataConfig) -> list[Entry]:
    """The clouds of one's own data, folder or h5, examined; files are read once for this and for training."""
    assert data.root is not None
    if data.name == "h5":
        return read_set("h5", Path(data.root))
    how = Options(
        suffixes=None if data.suffixes is None else tuple(data.suffixes),
        stored_points=data.stored_points or STORED_POINTS,
        reading=Reading.of(data.columns, data.nan),
        cache_dir=None if data.cache_dir is None else Path(data.cache_dir),
    )
    return examine_files(plan_reading(Path(data.root), how), how)


def stored_points(data: DataConfig, entries: Sequence[Entry]) -> int | None:
    """Fewer ``data.stored_points`` that all files have, where the usual number is too many; else None.

    They are never fewer than the model takes: files with fewer points than that are refused later, by name.
    """
    counts = [entry.found.distinct for entry in entries if not isinstance(entry.found, str)]
    least = min(counts, default=STORED_POINTS)
    fits = data.name != "folder" or least >= DISTINCT * (data.stored_points or STORED_POINTS)
    return None if fits or least < (data.num_points or 1) else least


def doubtful(config: Config, entries: Sequence[Entry]) -> list[str]:
    """What doctor finds in a config's own data, a line each.

    Args:
        config: complete config, of ``data.name`` folder or h5.
        entries: of its data.
    """
    data = config.data
    wanted = data.stored_points or STORED_POINTS
    if data.name == "h5":
        wanted = max((getattr(entry.found, "points", 0) for entry in entries), default=STORED_POINTS)
    findings = diagnose(entries, wanted=wanted, groups=config.backbone.least_points, shown=2)
    return _lines(sorted(findings, key=lambda finding: finding.note), str(data.root))


def _lines(findings: Sequence[Finding], root: str) -> list[str]:
    lines = ["; ".join(filter(None, (finding.text, finding.fix))) for finding in findings[:MOST_FINDINGS]]
    left = len(findings) - len(lines)
    return [*lines, *([f"{left} more: pointadapterx doctor {root}"] if left else [])]


def store_arrays(data: Any, folder: Path) -> Path:
    """Writes arrays or data sets as HDF5 files, which a run then reads: it can be resumed, tested and reported.

    Args:
        data: ``(points, labels)``, of which 20 % of each class are then held out for the test; or one such, or a
            :class:`~pointadapterx.datasets.PointClouds`, for each of ``"train"``, ``"test"`` and perhaps ``"val"``.
        folder: to write into; made if need be.

    Raises:
        ConfigError: for anything else.
        DataError: if points and labels do not fit together.
    """
    parts = data if isinstance(data, Mapping) else {"train": data}
    strange = set(parts) - {"train", "test", "val"}
    if strange or "train" not in parts:
        raise ConfigError(f"data: the parts are {_some(sorted(map(str, parts)))}; give train, and perhaps val and test")
    read = {part: _as_arrays(content, f"data[{part!r}]") for part, content in parts.items()}
    labels = np.concatenate([of for _, of, _ in read.values()])
    named = [classes for _, _, classes in read.values()]
    if any(classes != named[0] for classes in named):
        raise ConfigError("data: the parts name other classes; give all as arrays, or as data sets of the same classes")
    classes = named[0] or [str(name) for name in np.unique(labels)]
    folder.mkdir(parents=True, exist_ok=True)
    for part, (points, of, known) in read.items():
        numbers = of if known is not None else np.searchsorted(np.unique(labels), of)
        with replacing(folder / f"{part}.h5") as temporary, h5py.File(temporary, "w") as file:
            file.create_dataset("data", data=points, compression="gzip", shuffle=True)
            file["label"] = numbers.astype(np.int64)
            file.attrs["classes"] = np.array(classes, dtype=h5py.string_dtype())
    return folder


def _as_arrays(content: Any, where: str) -> tuple[np.ndarray, np.ndarray, list[str] | None]:
    """Points (n, N, 3), labels (n,), and names of the classes where the labels are their numbers."""
    if isinstance(content, PointClouds):
        return content.points.numpy(), content.labels.numpy(), content.classes
    if isinstance(content, Samples) or not isinstance(content, tuple | list) or len(content) != 2:
        raise ConfigError(f"{where}: is {type(content).__name__}; give a path, (points, labels), or PointClouds")
    points, labels = (np.asarray(part.cpu() if isinstance(part, torch.Tensor) else part) for part in content)
    if points.ndim != 3 or points.shape[2] != 3 or points.dtype.kind not in "fiu":
        raise DataError(f"{where}: points {points.shape} of type {points.dtype}, expected numbers of shape (n, N, 3)")
    if labels.shape != points.shape[:1] or labels.dtype.kind not in "iuUO":
        raise DataError(f"{where}: labels {labels.shape} for {len(points)} clouds; give a number or a name each")
    return points, labels.astype(str) if labels.dtype.kind in "UO" else labels, None
