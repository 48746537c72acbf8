"""Makes the shipped copy of the LDraw parts with labels: python tools/make_embedded_parts.py FOLDER_OF_THE_FULL_SET

All test clouds are kept, and of the training clouds of each category the same share, chosen by a hash of the part's
file name, so the outcome does not depend on the machine. As in make_embedded.py, the points lie along a Hilbert curve
and coordinates are whole steps.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from make_embedded import CHUNK, choose

from pointadapterx.building.sampling import GRID, hilbert_order
from pointadapterx.datasets.base import SPLITS
from pointadapterx.datasets.hdf5 import STEPS
from pointadapterx.datasets.ldraw_parts import EMBEDDED, LDrawParts
from pointadapterx.endings import ends_in_one_line
from pointadapterx.errors import DataError
from pointadapterx.files import replacing

LIMIT = 10_000_000  # bytes of both files: every clone and every wheel carries them
FRACTION = 0.6  # of the training clouds of each category

ATTRIBUTES = {
    "title": "LDraw parts with labels of points",
    "source": "Surface samples of the LDraw parts library, https://www.ldraw.org/ (ldraw-parts-free 2502+dfsg-2)",
    "attribution": "LDraw.org Parts Library, (c) 2012-2025 the LDraw.org contributors",
    "licence": "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/",
    "changes": (
        "Surfaces sampled at 2048 points, labelled by the primitives that they are modelled with, centred, scaled to "
        "the unit sphere, y up; of the training clouds a stratified subset; points ordered along a Hilbert curve "
        "(order carries no meaning); coordinates rounded to 1/2048"
    ),
}


def write(path: Path, data: LDrawParts, chosen: list[int]) -> None:
    """Write the chosen clouds in the layout of the full file."""
    assert data.targets.points is not None
    clouds, parts = np.round(data.points[chosen].numpy() * GRID), data.targets.points[chosen].numpy()
    order = np.stack([hilbert_order(cloud / GRID) for cloud in clouds])
    steps = np.take_along_axis(clouds, order[..., None], 1).astype(np.int16)
    packed = {"compression": "gzip", "compression_opts": 9, "shuffle": True}
    rows, count = min(CHUNK, len(steps)), steps.shape[1]
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("data", data=steps, chunks=(rows, count, 1), **packed).attrs[STEPS] = GRID
        pid = np.take_along_axis(parts, order, 1).astype(np.uint8)
        file.create_dataset("pid", data=pid, chunks=(rows, count), **packed)
        file["label"] = data.labels[chosen].numpy()
        file["name"] = np.array([(data.names or [])[i] for i in chosen], dtype="S")  # of fixed length: equal bytes
        file.attrs["classes"] = np.array(data.classes, dtype="S")
        for key, value in ATTRIBUTES.items():
            file.attrs[key] = np.bytes_(value)


def make_embedded_parts(source: Path, output: Path, fraction: float = FRACTION) -> None:
    """Write ``train.h5`` and ``test.h5`` to ``output`` and print what they hold.

    Raises:
        DataError: if the full files are missing or damaged, or the copy exceeds the limit.
    """
    total = 0
    for split in SPLITS:
        data = LDrawParts(split, root=source)
        chosen = choose(data, fraction if split == "train" else 1.0)
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
    parser.add_argument(
        "--fraction",
        type=float,
        default=FRACTION,
        help="of each category's training clouds (default: %(default)s)",
    )
    arguments = parser.parse_args()
    make_embedded_parts(arguments.source, arguments.output, arguments.fraction)
    return 0


if __name__ == "__main__":
    sys.exit(main())
