"""The data sets that can be built, each with its package, what is written into its files, and known checksums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pointadapterx.building import sources
from pointadapterx.building.furniture import furniture
from pointadapterx.building.packages import ELECTRONICS, FURNITURE, LDRAW, Package
from pointadapterx.building.sources import Source
from pointadapterx.datasets.home import HOME_CLASSES
from pointadapterx.datasets.ldraw20 import LDRAW20_CLASSES
from pointadapterx.datasets.ldraw_parts import LDRAW_PARTS

SAMPLED = "Surfaces sampled at 2048 points, centred, scaled to the unit sphere, y up"
ROUNDED = "coordinates rounded to 1/2048"
FURNISHED = "Models scaled to the sizes of their catalogue and composed to rooms"
COMPOSED = "CC BY 3.0, CC BY 3.0 US and CC0 1.0, as ATTRIBUTION.txt says for each model"


@dataclass(frozen=True)
class Recipe:
    """How a data set is built.

    Attributes:
        about: in a line.
        package: what it is built from.
        source: makes the clouds.
        classes: names, in the order of the labels; empty takes those of the list, sorted.
        title: of the files.
        licence: of the files.
        changes: what was done to the models.
        config: with which the set is read.
        known: content hash of each file, as the authors built it.
        suffix: of the files; pictures are in a folder beside such a file.
        unit: what is in them.
        list: the list of models, where it is that of another set.
        counts: rooms or pictures of each file, if it is not a cloud of each model.
    """

    about: str
    package: Package
    source: Source
    classes: tuple[str, ...]
    title: str
    licence: str
    changes: str
    config: str
    known: Mapping[str, str]
    suffix: str = ".h5"
    unit: str = "clouds"
    list: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)


RECIPES = {
    "home": Recipe(
        "furniture and household objects, 21 classes, 348 / 142 clouds",
        FURNITURE,
        sources.home,
        HOME_CLASSES,
        "Home",
        "CC BY 3.0, CC BY 3.0 US and CC0 1.0, as the entry 'licence' says for each cloud",
        f"{SAMPLED}; points ordered along a Hilbert curve (order carries no meaning); {ROUNDED}",
        "home",
        {"train": "c08547940abb86fe73ac4a1f92f62ac5", "test": "aa1b39595a197c363c5f5cf676de1970"},
    ),
    "ldraw20": Recipe(
        "CAD parts of toys, 20 classes, 1662 / 531 clouds, and 4537 without labels to pre-train on",
        LDRAW,
        sources.ldraw20,
        LDRAW20_CLASSES,
        "LDraw-20",
        "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/",
        f"{SAMPLED}; coordinates rounded to float16",
        "ldraw20",
        {
            "train": "d306fb7b905941954305f54738e8d412",
            "test": "3147fb2f1707234ca3f7b41e03e37a8f",
            "pretrain": "5045cd8b4bd0490bc6a87e17c3853ae4",
        },
    ),
    "ldraw_parts": Recipe(
        "CAD parts with a label for each point, 16 categories and 72 parts, 1629 / 488 clouds",
        LDRAW,
        sources.ldraw_parts,
        tuple(LDRAW_PARTS),
        "LDraw parts with labels of points",
        "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/",
        f"{SAMPLED}, points labelled by the primitives that surfaces are modelled with; {ROUNDED}",
        "ldraw_parts",
        {"train": "3185aeb3db6c7c86d966e04536c3c449", "test": "ece1f1c042ca0220ddc63d1c8f4226a7"},
    ),
    "electronics": Recipe(
        "packages of electronic parts, 36 classes, 2451 / 916 clouds",
        ELECTRONICS,
        sources.electronics,
        (),
        "Electronics",
        "CC BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0/",
        f"{SAMPLED}; {ROUNDED}",
        "h5",
        {"train": "a392d5075d7a1c505ebe5a927cbea6ff", "test": "a87fd9e3c70e9839b01eb218465ee457"},
    ),
    "rooms": Recipe(
        "scan-like clouds of composed rooms, 16 labels of points, 100 / 34 rooms",
        FURNITURE,
        furniture,
        (),
        "Rooms",
        COMPOSED,
        f"{FURNISHED}; surfaces sampled, as seen from four places, thinned to 5 cm, with noise, in whole millimetres",
        "rooms",
        {"train": "e931a849391edb51bc731dd7f3292c3b", "test": "5d4fbb4024ea7265c219e75f5a8c77d5"},
        unit="rooms",
        list="home",
        counts={"train": 100, "test": 34},
    ),
    "views": Recipe(
        "pictures of the same rooms with masks and boxes, 16 classes, 300 / 102 pictures",
        FURNITURE,
        furniture,
        (),
        "Views",
        COMPOSED,
        f"{FURNISHED}; rendered in the flat colours of their materials",
        "views_vit",
        {"train": "b47d6ce2bd82d6bf17c24aaae2d8881e", "test": "7f80c33b4efb146f4bb1f84a23034fde"},
        suffix=".json",
        unit="pictures",
        list="home",
        counts={"train": 300, "test": 102},
    ),
}
