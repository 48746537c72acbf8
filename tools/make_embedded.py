"""Makes the shipped subset of LDraw-20 from the full set: python tools/make_embedded.py FOLDER_WITH_TRAIN_AND_TEST_H5

Of every class the same share is kept, chosen by a hash of the part's file name, so the outcome does not depend on
the machine. Point order carries no meaning; putting the points along a Hilbert curve brings similar values side by
side, which makes the file about a fifth smaller, and whole steps of 2^-11 another quarter.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
from pathlib import Path

import h5py
import numpy as np

from pointadapterx.building.sampling import GRID, hilbert_order, to_steps
from pointadapterx.datasets.base import SPLITS, PointClouds
from pointadapterx.datasets.hdf5 import STEPS
from pointadapterx.datasets.ldraw20 import EMBEDDED, LDraw20
from pointadapterx.endings import ends_in_one_line
from pointadapterx.errors import DataError
from pointadapterx.files import replacing

LIMIT = 7_000_000  # bytes of both files: every clone and every wheel carries them
CHUNK = 256  # clouds

ATTRIBUTES = {
    "title": "LDraw-20 (subset)",
    "source": "Surface samples of the LDraw parts library, https://www.ldraw.org/ (ldraw-parts-free 2502+dfsg-2)",
    "attribution": "LDraw.org Parts Library, (c) 2012-2025 the LDraw.org contributors",
    "licence": "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/",
    "changes": (
        "Surfaces sampled at 2048 points, centred, scaled to the unit sphere, y up; a stratified subset of 20 "
        "categories; points ordered along a Hilbert curve (order carries no meaning); coordinates rounded to 1/2048"
    ),
}


def choose(data: PointClouds, fraction: float) -> list[int]:
    """Indices of ``ceil(fraction * n)`` clouds of every class, in the order of the full file."""
    names, labels = data.names or [], data.labels.tolist()
    chosen: list[int] = []
    for label in range(len(data.classes)):
        members = [i for i, other in enumerate(labels) if other == label]
        members.sort(key=lambda i: hashlib.blake2b(names[i].encode()).digest())
        chosen += members[: math.ceil(fraction * len(members))]
    return sorted(chosen)


def write(path: Path, data: LDraw20, chosen: list[int]) -> None:
    """Write the chosen clouds in the layout of the full file."""
    clouds = data.points[chosen].numpy()
    grid = np.round(clouds * GRID)
    ordered = np.stack([cloud[hilbert_order(cloud / GRID)] for cloud in grid])
    names = [(data.names or [])[i] for i in chosen]
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset(
            "data",
            data=to_steps(ordered),
            chunks=(min(CHUNK, len(ordered)), ordered.shape[1], 1),
            compression="gzip",
            compression_opts=9,
            shuffle=True,
        ).attrs[STEPS] = GRID
        file["label"] = data.labels[chosen].numpy()
        file["name"] = np.array(names, dtype="S")  # of fixed length: equal content gives equal bytes
        file.attrs["classes"] = np.array(data.classes, dtype="S")
        for key, value in ATTRIBUTES.items():
            file.attrs[key] = np.bytes_(value)


def make_embedded(source: Path, output: Path, fraction: float) -> None:
    """Write ``train.h5`` and ``test.h5`` to ``output`` and print what they hold.

    Raises:
        DataError: if the full files are missing or damaged, or the subset exceeds the limit.
    """
    total = 0
    for split in SPLITS:
        data = LDraw20(split, root=source)
        chosen = choose(data, fraction)
        path = output / f"{split}.h5"
        write(path, data, chosen)
        content = path.read_bytes()
        total += len(content)
        print(f"{path.name}: {len(chosen)} of {len(data)} clouds, {len(content)} bytes")
        print(f"  sha256 {hashlib.sha256(content).hexdigest()}")
    if total > LIMIT:
        raise DataError(f"{output}: {total} bytes exceed the {LIMIT} that are shipped; lower --fraction {fraction}")


@ends_in_one_line
def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="folder of the full set: train.h5 and test.h5")
    parser.add_argument("--output", type=Path, default=EMBEDDED, help="folder to write to (default: %(default)s)")
    parser.add_argument("--fraction", type=float, default=0.48, help="share of every class (default: %(default)s)")
    arguments = parser.parse_args()
    make_embedded(arguments.source, arguments.output, arguments.fraction)
    return 0


if __name__ == "__main__":
    sys.exit(main())
