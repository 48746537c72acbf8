"""ModelNet40's text layout: read once in parallel, reduced to 8192 points by FPS, and cached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from pointadapterx.datasets.cache import cache_path, cached_points
from pointadapterx.datasets.files import impostor
from pointadapterx.datasets.resample import fps
from pointadapterx.datasets.workers import map_in_order
from pointadapterx.errors import DataError
from pointadapterx.hashing import content_hash

STORED_POINTS = 8192  # of the 10,000 in a file: what Point-BERT and its successors keep
BLOCK = 256  # clouds parsed at a time: 30 MB of coordinates
FPS_BATCH = 16  # clouds sampled at a time: steps of the progress bar
CACHE_FORMAT = "1"


@dataclass(frozen=True)
class TextLayout:
    """Paths of ``modelnet40_normal_resampled/``.

    Args:
        folder: that holds everything.
        split: ``"train"`` or ``"test"``.
    """

    folder: Path
    split: str

    @property
    def shape_names(self) -> Path:
        """Class names, one a line."""
        return self.folder / "modelnet40_shape_names.txt"

    @property
    def split_list(self) -> Path:
        """Names of the split's clouds, such as ``airplane_0001``, one a line."""
        return self.folder / f"modelnet40_{self.split}.txt"

    @property
    def dat(self) -> Path:
        """The pickled cache that Point-BERT's code writes."""
        return self.folder / f"modelnet40_{self.split}_{STORED_POINTS}pts_fps.dat"

    def cloud(self, name: str) -> Path:
        """The text file of one cloud."""
        return self.folder / _class_of(name) / f"{name}.txt"

    def cache(self, cache_dir: Path | None) -> Path:
        """Our cache: in ``cache_dir``, else beside the data, else, if that is read-only, in the user's cache."""
        return cache_path(self.folder, f"modelnet40_{self.split}_{STORED_POINTS}pts_fps.h5", cache_dir)


def _class_of(name: str) -> str:
    return name.rpartition("_")[0]


def read_lines(path: Path) -> list[str]:
    """Non-empty lines of a text file, stripped.

    Raises:
        DataError: if the file is a pointer or a web page, empty, or not text.
    """
    what = impostor(path)
    if what is not None:
        raise DataError(f"{path}: {what}")
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: this is not a text file ({error.reason} at byte {error.start})") from error


def read_split_list(layout: TextLayout, classes: Sequence[str]) -> tuple[list[str], torch.Tensor]:
    """Names of the split's clouds and their labels ``(n,)`` int64.

    Raises:
        DataError: naming the line whose class is unknown.
    """
    names = read_lines(layout.split_list)
    if not names:
        raise DataError(f"{layout.split_list}: no cloud is listed in it")
    index = {name: i for i, name in enumerate(classes)}
    for line, name in enumerate(names, 1):
        if _class_of(name) not in index:
            raise DataError(
                f"{layout.split_list}: entry {line} is '{name}', expected <class>_<number>, as airplane_0001"
            )
    return names, torch.tensor([index[_class_of(name)] for name in names])


def read_text_layout(
    layout: TextLayout, names: Sequence[str], cache_dir: Path | None = None, workers: int | None = None
) -> tuple[torch.Tensor, Path]:
    """Clouds of the text layout, from the cache if it is whole and was made from these very files.

    The cache carries a hash of its content and of what it was made from (every file's name, size and time of
    change). A stale or damaged one is rebuilt, with a log line. It is written atomically, so several processes
    may do so at once. If it cannot be written, that is a warning.

    Args:
        layout: the paths.
        names: of the clouds.
        cache_dir: folder of the cache; see :meth:`TextLayout.cache`.
        workers: processes that parse; all CPU cores by default, none for few files.

    Returns:
        ``points (n, 8192, 3)`` float32, not normalised, and the file they came from: cache or split list.

    Raises:
        DataError: if a text file is missing or damaged; the message names it.
    """
    cache = layout.cache(cache_dir)
    points, is_cached = cached_points(
        cache, _fingerprint(layout, names), lambda: _parse_all([layout.cloud(name) for name in names], workers)
    )
    return points, cache if is_cached else layout.split_list


def _fingerprint(layout: TextLayout, names: Sequence[str]) -> str:
    """Hash of what the cache is made from.

    Raises:
        DataError: if a listed file is missing.
    """
    parts, missing = [CACHE_FORMAT, str(STORED_POINTS)], []
    for name in names:
        try:
            stat = layout.cloud(name).stat()
            parts.append(f"{name} {stat.st_size} {stat.st_mtime_ns}")
        except FileNotFoundError:
            missing.append(layout.cloud(name))
    if missing:
        raise DataError(
            f"{layout.split_list}: {len(missing)} of the {len(names)} files it lists are missing, the first is "
            f"{missing[0]}; unpack the whole archive"
        )
    return content_hash("\n".join(parts))


def parse_cloud(path: Path) -> np.ndarray:
    """Coordinates ``(N, 3)`` float32 of one file of comma-separated ``x,y,z,nx,ny,nz`` rows.

    Raises:
        DataError: if a row is not numbers, or a coordinate is not finite.
    """
    what = impostor(path)
    if what is not None:
        raise DataError(f"{path}: {what}")
    try:
        points = np.loadtxt(path, delimiter=",", usecols=(0, 1, 2), dtype=np.float32, ndmin=2)
    except (ValueError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: rows must be x,y,z,nx,ny,nz, but {reason}; unpack the file again") from error
    bad = np.flatnonzero(~np.isfinite(points).all(1))
    if len(bad):
        raise DataError(f"{path}: row {bad[0] + 1} holds NaN or infinite coordinates; unpack the file again")
    return points


def _parse_all(paths: Sequence[Path], workers: int | None) -> torch.Tensor:
    """FPS of every file's points: ``(n, 8192, 3)`` float32."""
    points = torch.empty(len(paths), STORED_POINTS, 3)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batches = [paths[start : start + FPS_BATCH] for start in range(0, len(paths), FPS_BATCH)]
    parsed = map_in_order(parse_cloud, paths, BLOCK, workers)
    rows = None
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(f"Reading {len(paths)} ModelNet40 text files", total=len(paths))
        for part, out in zip(batches, points.split(FPS_BATCH), strict=True):
            clouds = list(islice(parsed, len(part)))
            for path, cloud in zip(part, clouds, strict=True):
                rows = rows or len(cloud)
                if len(cloud) != rows or rows < STORED_POINTS:
                    raise DataError(
                        f"{path}: {len(cloud)} points, expected as many as in the first file ({rows}) and "
                        f"{STORED_POINTS} at least; the file is truncated, unpack it again"
                    )
            out.copy_(fps(torch.from_numpy(np.stack(clouds)).to(device), STORED_POINTS))
            progress.advance(task, len(part))
    return points
