"""Data sets of a train.h5 and a test.h5 of which a copy is shipped, and which a command makes whole."""

from __future__ import annotations

from pathlib import Path

from pointadapterx.datasets.base import SPLITS, check_split
from pointadapterx.datasets.files import require_files
from pointadapterx.errors import ConfigError, DataError


def file_of(name: str, split: str, root: str | Path | None, variant: str | None, embedded: Path) -> Path:
    """The file of a split.

    Args:
        name: of the data set in a config.
        split: ``"train"`` or ``"test"``.
        root: folder with ``train.h5`` and ``test.h5``; None: the shipped one.
        variant: none of these sets has one.
        embedded: folder of the shipped files.

    Raises:
        ConfigError: for an unknown split or a variant.
        DataError: if the file is missing.
    """
    check_split(split)
    if variant is not None:
        raise ConfigError(f"data.variant '{variant}': {name} has no variants; remove data.variant")
    paths = {part: (embedded if root is None else Path(root)) / f"{part}.h5" for part in SPLITS}
    require_files(name, [paths[split]], list(paths.values()), f"{_obtain(name)}.")
    return paths[split]


def lacks(path: Path, what: str, name: str) -> DataError:
    """For a file of such a set that has no entry or attribute ``what``."""
    obtain = _obtain(name)
    return DataError(f"{path}: no {what} in it, which {name} needs; {obtain[0].lower()}{obtain[1:]}")


def _obtain(name: str) -> str:
    return f"Leave data.root out to use the shipped files. Make all of them by: pointadapterx data build {name} FOLDER"
