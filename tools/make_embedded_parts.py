"""Makes the shipped copy of the LDraw parts with labels: python tools/make_embedded_parts.py FOLDER_OF_THE_FULL_SET

All clouds are kept, each reduced to 1,024 points by farthest point sampling in whole numbers, so the outcome does not
depend on the machine. As in make_embedded.py, the points lie along a Hilbert curve and coordinates are whole steps.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from make_embedded import CHUNK, GRID, hilbert_order

from pointadapterx.datasets.base import SPLITS
from pointadapterx.datasets.hdf5 import STEPS
from pointadapterx.datasets.ldraw_parts import EMBEDDED, LDrawParts
from pointadapterx.endings import ends_in_one_line
from pointadapterx.errors import DataError
from pointadapterx.files import replacing

LIMIT = 10_000_000  # bytes of both files: every clone and every wheel carries them
POINTS = 1024
BATCH = 64  # clouds that are sampled at a time

ATTRIBUTES = {
    "title": "LDraw parts with labels of points",
    "source": "Surface samples of the LDraw parts library, https://www.ldraw.org/ (ldraw-parts-free 2502+dfsg-2)",
    "attribution": "LDraw.org Parts Library, (c) 2012-2025 the LDraw.org contributors",
    "licence": "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/",
    "changes": (
        "Surfaces sampled at 2048 points, labelled by the primitives that they are modelled with, centred, scaled to "
        "the unit sphere, y up; 1024 points kept by farthest point sampling, centred and scaled again, and ordered "
        "along a Hilbert curve (order carries no meaning); coordinates rounded to 1/2048"
    ),
}


def farthest(steps: np.ndarray, count: int) -> np.ndarray:
    """Indices (n, count) of the farthest points of clouds (n, N, 3) of whole numbers, from the first point on."""
    axes, rows = steps.astype(np.int32).transpose(2, 0, 1), np.arange(len(steps))
    chosen = np.zeros((len(steps), count), np.int64)
    nearest = np.full(steps.shape[:2], np.iinfo(np.int32).max, np.int32)
    for place in range(1, count):
        away = [np.square(axis - axis[rows, chosen[:, place - 1]][:, None]) for axis in axes]
        np.minimum(nearest, away[0] + away[1] + away[2], out=nearest)
        chosen[:, place] = nearest.argmax(axis=1)
    return chosen


def unit_sphere(steps: np.ndarray) -> np.ndarray:
    """Clouds (n, N, 3) of whole numbers, centred and scaled into the unit sphere, in whole steps of 1/GRID."""
    whole = steps.astype(np.int64)
    centred = whole * whole.shape[1] - whole.sum(axis=1, keepdims=True)  # times N: no rounding before the last one
    radius = np.sqrt(np.square(centred).sum(axis=2).max(axis=1).astype(np.float64))
    return np.round(centred * (GRID / radius)[:, None, None])


def write(path: Path, data: LDrawParts, count: int) -> None:
    """Write the clouds with ``count`` points in the layout of the full file."""
    assert data.targets.points is not None
    clouds, parts = np.round(data.points.numpy() * GRID), data.targets.points.numpy()
    index = np.concatenate([farthest(part, count) for part in np.split(clouds, range(BATCH, len(clouds), BATCH))])
    clouds = unit_sphere(np.take_along_axis(clouds, index[..., None], 1))
    parts = np.take_along_axis(parts, index, 1)
    order = np.stack([hilbert_order(cloud / GRID) for cloud in clouds])
    clouds, parts = np.take_along_axis(clouds, order[..., None], 1), np.take_along_axis(parts, order, 1)
    steps = clouds.astype(np.int16)
    packed = {"compression": "gzip", "compression_opts": 9, "shuffle": True}
    rows = min(CHUNK, len(steps))
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("data", data=steps, chunks=(rows, count, 1), **packed).attrs[STEPS] = GRID
        file.create_dataset("pid", data=parts.astype(np.uint8), chunks=(rows, count), **packed)
        file["label"] = data.labels.numpy()
        file["name"] = np.array(data.names, dtype="S")  # of fixed length: equal content gives equal bytes
        file.attrs["classes"] = np.array(data.classes, dtype="S")
        for key, value in ATTRIBUTES.items():
            file.attrs[key] = np.bytes_(value)


def make_embedded_parts(source: Path, output: Path, count: int = POINTS) -> None:
    """Write ``train.h5`` and ``test.h5`` to ``output`` and print what they hold.

    Raises:
        DataError: if the full files are missing or damaged, or the copy exceeds the limit.
    """
    total = 0
    for split in SPLITS:
        data = LDrawParts(split, root=source)
        path = output / f"{split}.h5"
        write(path, data, count)
        content = path.read_bytes()
        total += len(content)
        print(f"{path.name}: {len(data)} clouds of {count} points, {len(content)} bytes")
        print(f"  sha256 {hashlib.sha256(content).hexdigest()}")
    if total > LIMIT:
        raise DataError(f"{output}: {total} bytes exceed the {LIMIT} that are shipped; lower --points {count}")


@ends_in_one_line
def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="folder of the full set: train.h5 and test.h5")
    parser.add_argument("--output", type=Path, default=EMBEDDED, help="folder to write to (default: %(default)s)")
    parser.add_argument("--points", type=int, default=POINTS, help="of a cloud (default: %(default)s)")
    arguments = parser.parse_args()
    make_embedded_parts(arguments.source, arguments.output, arguments.points)
    return 0


if __name__ == "__main__":
    sys.exit(main())
