"""LDraw parts with a label for each point (CC BY 4.0), in ShapeNetPart's HDF5 layout; a reduced copy is shipped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pointadapterx.datasets.base import DATASETS, Unchecked
from pointadapterx.datasets.checks import check_classes
from pointadapterx.datasets.hdf5 import open_h5, read_text_attribute
from pointadapterx.datasets.ldraw20 import part_groups
from pointadapterx.datasets.parts import PartArrays, PartClouds, read_part_arrays
from pointadapterx.datasets.shipped import file_of, lacks
from pointadapterx.errors import DataError

EMBEDDED = Path(__file__).parent / "embedded" / "ldraw_parts"
STUDDED = ("flat", "inclined", "curved", "stud", "tube")
KINDS_OF_PARTS = {
    "brick": STUDDED,
    "plate": STUDDED,
    "slope": STUDDED,
    "technic": ("flat", "inclined", "curved", "hole", "joint"),
    "wheel": ("flat", "inclined", "curved"),
    "hinge": (*STUDDED, "joint"),
    "bracket": ("flat", "curved", "stud", "tube"),
    "wedge": STUDDED,
    "wing": ("flat", "inclined", "stud", "tube"),
    "tile": ("flat", "inclined", "curved", "tube"),
    "panel": STUDDED,
    "window": ("flat", "inclined", "curved", "stud"),
    "container": ("flat", "inclined", "curved", "stud"),
    "windscreen": ("flat", "inclined", "curved", "stud"),
    "train": STUDDED,
    "electric": ("flat", "inclined", "curved", "hole"),
}
LDRAW_PARTS = {category: [f"{category} {kind}" for kind in kinds] for category, kinds in KINDS_OF_PARTS.items()}
"""16 categories and their 72 parts; an attribute ``classes`` has the categories in this order."""


@DATASETS.register("ldraw_parts")
class LDrawParts(PartClouds):
    """16 categories of real CAD parts with 72 parts such as ``brick stud``, y up, unit sphere.

    A point's label is that of the primitive that the library's authors modelled the surface with: studs, tubes below,
    holes of pegs and axles, joints (pins, fingers, clips, teeth), otherwise curved, flat or inclined surfaces. The
    shipped copy has 983 of the 1,629 training clouds and all 488 test clouds. The order of a cloud's points carries no
    meaning. ``names`` are file names; ``groups`` keep the variants of one LDraw part together, as the train and test
    files do.

    Args:
        split: ``"train"`` or ``"test"``.
        root: folder with ``train.h5`` and ``test.h5``; the shipped clouds by default.
        variant: not supported here; a name is an error.
        normalize: centre and scale again, although the files already are.

    Raises:
        ConfigError: for an unknown split or a variant.
        DataError: if the file is missing or damaged, or its categories are others.
    """

    num_classes = len(LDRAW_PARTS)

    def __init__(
        self,
        split: str,
        *,
        root: str | Path | None = None,
        variant: str | None = None,
        normalize: bool = False,
    ) -> None:
        content = _read(split, root, variant)
        assert content.names is not None
        try:
            groups = part_groups(content.names)
        except ValueError as error:
            raise DataError(f"{content.path}: name {error}, such as 3001a.dat") from None
        super().__init__([content], LDRAW_PARTS, split, normalize=normalize, groups=groups)

    @classmethod
    def parts_in(cls, **options: Any) -> dict[str, list[str]]:
        """See :data:`LDRAW_PARTS`."""
        return LDRAW_PARTS

    @classmethod
    def each_cloud(cls, split: str, **options: Any) -> Iterator[Unchecked]:
        """See :class:`~pointadapterx.datasets.base.PointClouds`."""
        yield from _read(split, options.get("root"), options.get("variant")).unchecked(LDRAW_PARTS)


def _read(split: str, root: str | Path | None, variant: str | None) -> PartArrays:
    path = file_of("ldraw_parts", split, root, variant, EMBEDDED)
    with open_h5(path) as file:
        if "classes" not in file.attrs or "name" not in file:
            raise lacks(path, "data set 'name'" if "name" not in file else "attribute 'classes'", "ldraw_parts")
        check_classes(read_text_attribute(file, "classes"), tuple(LDRAW_PARTS), f"{path}: attribute 'classes'")
    return read_part_arrays(path)
