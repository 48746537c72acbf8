"""What furnishes a room of each kind, and in which order: rules, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pointadapterx.building.furniture import CENTIMETRE, LARGEST, METRE, Piece

KINDS = ("living", "bedroom", "kitchen", "bath", "office")
SIDES = {"living": (35, 70), "bedroom": (30, 55), "kitchen": (28, 50), "bath": (20, 35), "office": (35, 70)}
"""Lengths of walls, from and to, in tenths of a metre."""
CEILINGS = 25 * METRE // 10  # height of the room that the catalogue's elevations of lamps are meant for
BIGGEST_THING, SMALLEST_THING = 8 * METRE // 10, 2 * CENTIMETRE  # that are put on furniture


@dataclass(frozen=True)
class Rule:
    """Some pieces of furniture; sizes are in centimetres.

    Attributes:
        kinds: classes of which one is drawn for each piece.
        times: fewest and most pieces.
        place: with its back to a wall, or anywhere.
        height: smallest and largest.
        width: largest.
        area: smallest width times depth, in square decimetres.
        chairs: fewest and most that stand around it.
        things: classes that are put on it, and how many.
    """

    kinds: tuple[str, ...]
    times: tuple[int, int] = (1, 1)
    place: Literal["wall", "free", "either"] = "wall"
    height: tuple[int, int] = (0, 300)
    width: int = 330
    area: int = 0
    chairs: tuple[int, int] = (0, 0)
    things: tuple[tuple[str, ...], int] = ((), 0)

    def suits(self, piece: Piece) -> bool:
        """Whether a piece is one of these."""
        width, height, depth = piece.size
        low, high = (bound * CENTIMETRE for bound in self.height)
        return (
            low < height < high
            and width < self.width * CENTIMETRE
            and width * depth > self.area * METRE * METRE // 100
            and max(piece.size) < LARGEST
            and not hangs_from_ceiling(piece)
        )


def hangs_from_ceiling(piece: Piece) -> bool:
    """Whether the catalogue hangs a lamp so high that it touches the ceiling."""
    return piece.kind == "lamp" and piece.elevation > 0 and piece.elevation + piece.size[1] >= CEILINGS - CENTIMETRE


def is_thing(piece: Piece) -> bool:
    """Whether it is put on other furniture."""
    return max(piece.size) < BIGGEST_THING and min(piece.size) > SMALLEST_THING and piece.elevation == 0


TABLE, TALL = (60, 95), (50, 300)
DOOR = Rule(("door",), (1, 2), height=(150, 230), width=180)
WINDOW = Rule(("window",), (1, 2), width=120)
CHAIR = Rule(("chair", "chair", "chair", "stool"), height=(60, 110), width=70)
LAMPS = Rule(("lamp",), (0, 2), height=(9, 180))
PAPERS = ("electronics", "electronics", "bottle", "tableware", "lamp")
RULES: dict[str, tuple[Rule, ...]] = {
    "living": (
        Rule(("sofa",), (1, 2)),
        Rule(("armchair",), (1, 2)),
        Rule(("table",), place="free", height=(0, 62), things=(("tableware", "electronics", "bottle", "plant"), 2)),
        Rule(("cabinet",), height=(0, 100), things=(("electronics", "plant", "lamp"), 2)),
        Rule(("table",), place="free", height=TABLE, area=40, chairs=(3, 6), things=(("tableware", "bottle"), 3)),
        Rule(("shelf",), (1, 2), height=TALL),
        LAMPS,
        Rule(("plant",), (1, 2), height=TALL),
        Rule(("cabinet",), (1, 2), height=TALL, things=(("electronics", "lamp"), 1)),
    ),
    "bedroom": (
        Rule(("bed",), (1, 2)),
        Rule(("cabinet",), (2, 4), height=(40, 300), things=(("lamp", "clothes", "plant"), 1)),
        Rule(("table",), height=TABLE, area=40, chairs=(1, 1), things=(("electronics", "bottle", "lamp"), 2)),
        Rule(("shelf",), (0, 1), height=TALL),
        Rule(("plant",), (0, 1), height=(40, 300)),
        LAMPS,
        Rule(("chair", "armchair"), (1, 2), height=(40, 120)),
        Rule(("clothes",), (1, 3), place="free", height=(0, 40)),
    ),
    "kitchen": (
        Rule(("sanitary",), height=(70, 110), width=100),
        Rule(("cabinet", "appliance"), (6, 10), height=TALL, things=(("tableware", "bottle", "appliance"), 1)),
        Rule(("table",), place="free", height=TABLE, area=40, chairs=(2, 5), things=(("tableware", "bottle"), 4)),
        Rule(("container",), height=(20, 110)),
        Rule(("stool",), (0, 2), place="free", height=(40, 110), width=70),
        Rule(("plant",), height=(20, 110)),
        LAMPS,
    ),
    "bath": (
        Rule(("sanitary",), (3, 5), height=(30, 220), width=190),
        Rule(("cabinet",), (1, 2), height=(30, 300), width=190, things=(("bottle", "clothes"), 2)),
        Rule(("appliance",), height=(60, 140), width=70),
        Rule(("stool",), (0, 1), height=(40, 110), width=70),
        Rule(("container",), height=(20, 110), width=70),
        Rule(("plant",), height=(20, 100)),
        LAMPS,
    ),
    "office": (
        Rule(("table",), (2, 5), place="either", height=TABLE, area=40, chairs=(1, 2), things=(PAPERS, 3)),
        Rule(("shelf", "cabinet"), (2, 4), height=(40, 300), things=(("electronics", "plant"), 1)),
        Rule(("plant",), height=(40, 300)),
        LAMPS,
        Rule(("container",), height=(20, 110)),
        Rule(("armchair", "chair"), (0, 2)),
    ),
}
"""By kind of room, in the order in which pieces find a place."""
