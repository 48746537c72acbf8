"""ADE20K as the scene-parsing challenge published it: 20,210 and 2,000 photographs with 150 classes of pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pointadapterx.datasets.base import DATASETS
from pointadapterx.datasets.image_masks import MaskedFiles, Pair, mask_beside
from pointadapterx.datasets.images import SUFFIXES

PARTS = {"train": "training", "test": "validation"}
NUMBERS = range(1, 151)  # of the classes in a mask, where 0 means unlabelled

ADE20K_CLASSES = (
    *("wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass"),
    *("cabinet", "sidewalk", "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair"),
    *("car", "water", "painting", "sofa", "shelf", "house", "sea", "mirror", "rug", "field"),
    *("armchair", "seat", "fence", "desk", "rock", "wardrobe", "lamp", "bathtub", "railing", "cushion"),
    *("base", "box", "column", "signboard", "chest of drawers", "counter", "sand", "sink", "skyscraper", "fireplace"),
    *("refrigerator", "grandstand", "path", "stairs", "runway", "case", "pool table", "pillow", "screen door"),
    *("stairway", "river", "bridge", "bookcase", "blind", "coffee table", "toilet", "flower", "book", "hill"),
    *("bench", "countertop", "stove", "palm", "kitchen island", "computer", "swivel chair", "boat", "bar"),
    *("arcade machine", "hovel", "bus", "towel", "light", "truck", "tower", "chandelier", "awning", "streetlight"),
    *("booth", "television receiver", "airplane", "dirt track", "apparel", "pole", "land", "bannister", "escalator"),
    *("ottoman", "bottle", "buffet", "poster", "stage", "van", "ship", "fountain", "conveyer belt", "canopy"),
    *("washer", "plaything", "swimming pool", "stool", "barrel", "basket", "waterfall", "tent", "bag", "minibike"),
    *("cradle", "oven", "ball", "food", "step", "tank", "trade name", "microwave", "pot", "animal", "bicycle"),
    *("lake", "dishwasher", "screen", "blanket", "sculpture", "hood", "sconce", "vase", "traffic light", "tray"),
    *("ashcan", "fan", "pier", "crt screen", "plate", "monitor", "bulletin board", "shower", "radiator", "glass"),
    *("clock", "flag"),
)


@DATASETS.register("ade20k")
class Ade20k(MaskedFiles):
    """``images/{training,validation}`` and ``annotations/{training,validation}``, as ``ADEChallengeData2016`` has them.

    The validation part is the test split. In a mask 0 means unlabelled, and k class k - 1.
    """

    called = "ade20k"
    layout = "images/{training,validation}/*.jpg and annotations/{training,validation}/*.png"
    default_root = "data/ADEChallengeData2016"

    @classmethod
    def classes_of(cls, folder: Path, variant: str | None) -> Sequence[str]:
        """The 150 of the challenge."""
        return ADE20K_CLASSES

    @classmethod
    def pairs(cls, split: str, folder: Path, variant: str | None) -> Iterator[Pair]:
        """Of files with the same name."""
        part = PARTS[split]
        for picture in sorted((folder / "images" / part).glob("*")):
            if picture.suffix.lower() in SUFFIXES:
                mask = mask_beside(picture, folder / "annotations" / part / f"{picture.stem}.png", NUMBERS, (0,))
                yield Pair(picture.name, picture, mask)
