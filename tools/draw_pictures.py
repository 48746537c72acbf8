"""Makes a small task of classification from pictures that others have published, in the layout of `imagefolder`.

From a folder of classes, or one with train/ and test/ that hold them, some pictures of each class are drawn and copied
unchanged; without a test/, the test gets what training leaves:

    python tools/draw_pictures.py classes Sign-Language-Digits-Dataset/Dataset data/signs --train 100 --seed 0
    python tools/draw_pictures.py classes CIFAR-10-images data/cifar10_part --train 100 --test 200 --seed 1

From pictures with boxes, in the layout of VOC or COCO, the objects are cut out: squares around their boxes, moved into
the picture, and no larger than it. The parts are those of the boxes' own lists, so that all objects of a photograph are
on one side. pictures.csv says which come from one photograph or scene; with it as data.root, a validation part keeps
them together:

    python tools/draw_pictures.py objects voc BCCD_Dataset/BCCD data/blood_crops --train 300 --test 100
    python tools/draw_pictures.py objects coco data/views data/view_crops --train 80 --test 100

The draw depends on names and seed alone.
"""

from __future__ import annotations

import argparse
import csv
import random
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from pointadapterx.datasets.base import SPLITS
from pointadapterx.datasets.coco import Coco
from pointadapterx.datasets.images import SUFFIXES, read_picture
from pointadapterx.datasets.listings import COLUMNS
from pointadapterx.datasets.object_images import ObjectImages
from pointadapterx.datasets.voc import Voc
from pointadapterx.endings import ends_in_one_line
from pointadapterx.errors import DataError

LAYOUTS: dict[str, Callable[..., ObjectImages]] = {"voc": Voc, "coco": Coco}
TABLE = "pictures.csv"
LEAST = 16  # pixels of the longer side of an object that is cut out

Item = TypeVar("Item")


class Cut(NamedTuple):
    """An object that is to be cut out.

    Attributes:
        picture: file.
        box: left, top, right, bottom.
        name: of the file to write, without its suffix.
        group: photograph or scene.
    """

    picture: Path
    box: list[float]
    name: str
    group: str


def drawn(items: Sequence[Item], most: int | None, seed: int) -> list[Item]:
    """At most so many of ``items``, all if None, and their order by chance."""
    order = list(items)
    random.Random(seed).shuffle(order)
    return order[:most]


def draw_classes(source: Path, output: Path, train: int, test: int | None, seed: int) -> None:
    """Draws from folders of classes.

    Args:
        source: folder of classes, or of ``train`` and ``test`` with them.
        output: folder to make.
        train: pictures a class.
        test: the same; None: all.
        seed: of the draw.

    Raises:
        DataError: if there are no pictures, a class has too few, or the output exists.
    """
    parted = all((source / split).is_dir() for split in SPLITS)
    with _made(output) as folder:
        for name in _classes(source / "train" if parted else source):
            pool = _pictures(source / "train" / name if parted else source / name)
            chosen = drawn(pool, train, seed)
            rest = _pictures(source / "test" / name) if parted else [path for path in pool if path not in set(chosen)]
            if len(chosen) < train or not rest:
                raise DataError(f"{source}: {name} has {len(pool)} pictures, too few for {train} and a test")
            for split, files in (("train", chosen), ("test", drawn(rest, test, seed))):
                (folder / split / name).mkdir(parents=True)
                for file in files:
                    shutil.copyfile(file, folder / split / name / file.name)


def cut_objects(layout: str, source: Path, output: Path, train: int, test: int | None, seed: int) -> None:
    """Cuts out objects; see :func:`draw_classes`.

    Crowds, difficult objects, and those that measure less than :data:`LEAST` pixels are left out. A class may have
    fewer objects than ``train`` or ``test``.

    Args:
        layout: one of :data:`LAYOUTS`.
    """
    with _made(output) as folder:
        rows = []
        for split, most in zip(SPLITS, (train, test), strict=True):
            for label, cuts in _objects(LAYOUTS[layout](split, root=source)).items():
                (folder / split / label).mkdir(parents=True)
                for cut in sorted(drawn(cuts, most, seed)):
                    file = folder / split / label / f"{cut.name}.png"
                    if file.exists():
                        raise DataError(f"{cut.picture}: another picture has its name but for the suffix; rename one")
                    _cut_out(cut, file)
                    rows.append((f"{split}/{label}/{cut.name}.png", label, split, f"{split} {cut.group}"))
        with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


def _objects(data: ObjectImages) -> dict[str, list[Cut]]:
    """The objects of a part by their class, each class in the order of the files."""
    found: dict[str, list[Cut]] = defaultdict(list)
    objects, names = data.objects, data.names or []
    for picture, (path, name) in enumerate(zip(data.pixels, names, strict=True)):
        group = name if data.groups is None else str(int(data.groups[picture]))
        first, end = objects.starts[picture : picture + 2].tolist()
        for row in range(first, end):
            left, top, right, bottom = box = objects.boxes[row].tolist()
            if not objects.ignored[row] and max(right - left, bottom - top) >= LEAST:
                label = data.object_classes[int(objects.labels[row])]
                stem = "_".join(Path(name).with_suffix("").parts)
                found[label].append(Cut(Path(path), box, f"{stem}_{row - first}", group))
    return found


def square(box: Sequence[float], width: int, height: int) -> tuple[int, int, int]:
    """Left and top edge and side of a square around a box, within its picture; the middle of what does not fit."""
    left, top, right, bottom = box
    side = min(round(max(right - left, bottom - top)), width, height)
    x = round((left + right - side) / 2)
    y = round((top + bottom - side) / 2)
    return min(max(x, 0), width - side), min(max(y, 0), height - side), side


def _cut_out(cut: Cut, path: Path) -> None:
    from PIL import Image

    pixels = read_picture(cut.picture, None, 3).pixels
    left, top, side = square(cut.box, pixels.shape[2], pixels.shape[1])
    part = pixels[:, top : top + side, left : left + side].transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(part)).save(path)


def _classes(folder: Path) -> list[str]:
    found = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    found = [name for name in found if not name.startswith(".")]
    if not found:
        raise DataError(f"{folder}: holds no folders of classes")
    return found


def _pictures(folder: Path) -> list[Path]:
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in files if path.suffix.lower() in SUFFIXES)


class _made:
    """A folder that appears under its name when it is whole."""

    def __init__(self, output: Path) -> None:
        if output.exists():
            raise DataError(f"{output}: exists; choose another name, or remove it")
        output.parent.mkdir(parents=True, exist_ok=True)
        self.output = output
        self._beside = tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent)

    def __enter__(self) -> Path:
        self.folder = Path(self._beside.name) / "made"
        self.folder.mkdir()
        return self.folder

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.folder.rename(self.output)
        self._beside.cleanup()


def _number(text: str) -> int:
    """A number of pictures, of which 0 or less would be a task without a part, or all but some."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number above 0")
    return int(text)


@ends_in_one_line
def main() -> int:
    """Runs this module from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="classes | objects")
    for kind, about in (("classes", "of folders of classes"), ("objects", "cut out of pictures with boxes")):
        one = kinds.add_parser(kind, help=about)
        if kind == "objects":
            one.add_argument("layout", choices=sorted(LAYOUTS))
        one.add_argument("source", type=Path, metavar="SOURCE", help="folder of the published pictures")
        one.add_argument("output", type=Path, metavar="OUT", help="folder to make")
        one.add_argument("--train", type=_number, required=True, metavar="N", help="pictures of a class to train on")
        one.add_argument("--test", type=_number, metavar="N", help="pictures of a class to test on (default: all)")
        one.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    options = parser.parse_args()
    draw = (options.source, options.output, options.train, options.test, options.seed)
    if options.kind == "classes":
        draw_classes(*draw)
    else:
        cut_objects(options.layout, *draw)
    for split in SPLITS:
        files = [path for path in (options.output / split).rglob("*") if path.is_file()]
        print(f"{options.output / split}: {len(files):,} pictures of {len(_classes(options.output / split))} classes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
