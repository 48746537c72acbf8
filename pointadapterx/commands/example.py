"""Write small clouds of three classes as files, to try the other commands on."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pointadapterx.errors import DataError
from pointadapterx.text import printable

if TYPE_CHECKING:
    import numpy as np

CLASSES = ("plate", "wheel", "window")  # easy to tell apart
TRAIN, TEST, NEW = 16, 8, 2  # files a class; parts of test and new are others than those of training
EXAMPLES = """\
  %(prog)s scans        writes scans/train, scans/test and scans/new
"""
HEADER = """ply
format binary_little_endian 1.0
comment LDraw Parts Library, LDraw.org, CC BY 4.0; surface sampled, centred and scaled
element vertex {count}
property float x
property float y
property float z
end_header
"""
ATTRIBUTION = """\
# Example clouds

Points on the surfaces of CAD parts, 2048 each, y up: `train/` and `test/` with a folder for each class, and `new/`.

LDraw Parts Library, LDraw.org, (c) 2012-2025 its contributors, licensed under CC BY 4.0
(https://creativecommons.org/licenses/by/4.0/). Changes: surfaces sampled, centred, scaled to the unit sphere, turned
y up. LDraw.org does not endorse this project.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See :class:`~pointadapterx.commands.main.Module`."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to write, a new or empty folder")


def run(options: argparse.Namespace) -> int:
    """Writes the files."""
    count = write_example(options.folder)
    print(printable(f"written: {count} files in {options.folder}, classes {', '.join(CLASSES)}"))
    return 0


def write_example(folder: Path) -> int:
    """Writes ``train/<class>/*.ply``, ``test/<class>/*.ply`` and ``new/*.ply``, of the embedded LDraw-20 clouds.

    Each file is of another part; those of ``new`` are named after their class, which no command reads.

    Returns:
        Number of clouds.

    Raises:
        DataError: if the folder holds something, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise DataError(f"{folder}: is not empty; choose a new folder")
        (folder / "ATTRIBUTION.md").write_text(ATTRIBUTION, encoding="utf-8")
        clouds = dict(_clouds())
        for name, points in clouds.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(HEADER.format(count=len(points)).encode() + points.astype("<f4").tobytes())
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from None
    return len(clouds)


def _clouds() -> Iterator[tuple[str, np.ndarray]]:
    """Names below the folder, and points (2048, 3)."""
    import numpy as np

    from pointadapterx.datasets import LDraw20

    for split, wanted in (("train", TRAIN), ("test", TEST + NEW)):
        data = LDraw20(split)
        assert data.names is not None
        assert data.groups is not None
        labels, groups = data.labels.numpy(), data.groups.numpy()
        for label in CLASSES:
            of_class = np.flatnonzero(labels == data.classes.index(label))
            _, first = np.unique(groups[of_class], return_index=True)
            for place, row in enumerate(of_class[np.sort(first)][:wanted]):
                name = f"{split}/{label}/{Path(data.names[row]).stem}.ply"
                if split == "test" and place >= TEST:
                    name = f"new/{label}_{place - TEST + 1}.ply"
                yield name, data.points[row].numpy()
