"""Rooms, composed of furniture by rules: drawn by the seed and a room's number alone, in tenths of a millimetre."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pointadapterx.building.furnishing import (
    CHAIR,
    DOOR,
    KINDS,
    RULES,
    SIDES,
    WINDOW,
    Rule,
    hangs_from_ceiling,
    is_thing,
)
from pointadapterx.building.furniture import CENTIMETRE, METRE, Piece

SEED = 1
PARTS = ("train", "test")
MARGIN = 3 * CENTIMETRE  # between pieces of furniture
SKIRTING = 2 * CENTIMETRE  # between furniture and a wall
TRIES = 20  # places that are drawn for a piece
BEFORE_DOOR, BEFORE_WINDOW = 9 * METRE // 10, METRE // 2  # that stays free
CORNER = METRE // 10  # between a corner or another opening and an opening
TUCKED = 12 * CENTIMETRE  # of a chair, under its table
ASIDE = 3 * METRE // 10  # of a chair, from the middle of its table; of what is anywhere, from walls
AROUND_EYE = 2 * METRE // 10  # that is free of furniture
LIGHT_WALLS, LIGHT_CEILING, ANY_FLOOR, TINT = (150, 245), (220, 245), (60, 200), 20  # colours


@dataclass(frozen=True)
class Box:
    """A part of space that something takes."""

    low: tuple[int, int, int]
    high: tuple[int, int, int]

    def meets(self, other: Box, margin: int = 0) -> bool:
        """Whether the two have a place in common; a margin widens x and z."""
        wider = (margin, 0, margin)
        return all(self.low[i] < other.high[i] + wider[i] and other.low[i] < self.high[i] + wider[i] for i in range(3))


@dataclass(frozen=True)
class Placed:
    """A piece at its place.

    Attributes:
        piece: what.
        at: where the middle of its floor is.
        turn: quarter turns; with 0 its back is at z = 0, with 1 at x = 0.
    """

    piece: Piece
    at: tuple[int, int, int]
    turn: int

    def moved(self, points: np.ndarray) -> np.ndarray:
        """Points ``(..., 3)`` of the piece, in the room."""
        x, y, z = points[..., 0], points[..., 1], points[..., 2]
        u, v = ((x, z), (z, -x), (-x, -z), (-z, x))[self.turn]
        return np.stack([u, y, v], -1) + np.array(self.at, np.int64)

    @property
    def box(self) -> Box:
        """What it takes."""
        width, _, depth = self.piece.size
        low = np.array([-(width // 2), 0, -(depth // 2)])
        corners = self.moved(np.stack([low, low + np.array(self.piece.size)]))
        return Box(tuple(corners.min(0).tolist()), tuple(corners.max(0).tolist()))


@dataclass(frozen=True)
class Hole:
    """An opening in the wall that is behind pieces of the same ``turn``: its place along the wall, and heights."""

    turn: int
    start: int
    end: int
    low: int
    high: int

    def is_near(self, other: Hole) -> bool:
        """Whether the wall between two would be too narrow."""
        apart = max(self.start - other.end, other.start - self.end)
        return self.turn == other.turn and apart < CORNER


class Room:
    """An empty room, and what is put into it.

    Args:
        part: ``train`` or ``test``.
        number: of the room in that part, which its kind follows from.
        pieces: furniture by class.
    """

    def __init__(self, part: str, number: int, pieces: Mapping[str, Sequence[Piece]]) -> None:
        self.draws = np.random.default_rng([SEED, PARTS.index(part), number])
        self.pieces, self.number = pieces, number
        self.kind = KINDS[number % len(KINDS)]
        low, high = (bound * METRE // 10 for bound in SIDES[self.kind])
        self.width, self.depth = self.draw(low, high), self.draw(low, min(high, 6 * METRE))
        self.height = self.draw(24 * METRE // 10, 29 * METRE // 10)
        self.colours = [self._colour(*bounds) for bounds in (LIGHT_CEILING, ANY_FLOOR, LIGHT_WALLS)]
        self.placed: list[Placed] = []
        self.taken: list[Box] = []
        self.holes: list[Hole] = []

    def draw(self, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``."""
        return int(self.draws.integers(low, max(low, high) + 1))

    def _colour(self, low: int, high: int) -> np.ndarray:
        tint = self.draw(low, high) + self.draws.integers(-TINT, TINT + 1, 3)
        return np.clip(tint, 0, 255).astype(np.uint8)

    def length(self, turn: int) -> int:
        """Of the wall that is behind pieces of that turn."""
        return self.depth if turn % 2 else self.width

    def beside(self, turn: int, along: int, away: int, height: int) -> tuple[int, int, int]:
        """The place so far along a wall and away from it."""
        x, z = ((along, away), (away, along), (along, self.depth - away), (self.width - away, along))[turn]
        return x, height, z

    def furnish(self) -> Room:
        """Puts doors, windows and furniture into it."""
        for rule in (DOOR, WINDOW):
            for _ in range(self.draw(*rule.times)):
                self._open(self._pick(rule))
        for rule in RULES[self.kind]:
            for _ in range(self.draw(*rule.times)):
                self._put_with_things(rule)
        self._hang_lamp()
        return self

    def _pick(self, rule: Rule) -> Piece | None:
        kind = rule.kinds[self.draw(0, len(rule.kinds) - 1)]
        return self._any([piece for piece in self.pieces.get(kind, ()) if rule.suits(piece)])

    def _any(self, pieces: Sequence[Piece]) -> Piece | None:
        return pieces[self.draw(0, len(pieces) - 1)] if pieces else None

    def _put(self, placed: Placed, but: Box | None = None, margin: int = MARGIN) -> bool:
        """Puts a piece where it is free; ``but`` may be in the way."""
        box = placed.box
        outside = min(box.low) < 0 or any(
            box.high[i] > side for i, side in enumerate((self.width, self.height, self.depth))
        )
        if outside or any(box.meets(other, margin) for other in self.taken if other != but):
            return False
        self.taken.append(box)
        self.placed.append(placed)
        return True

    def _open(self, piece: Piece | None) -> None:
        """A door or window in a wall, and free space before it."""
        if piece is None or piece.elevation + piece.size[1] >= self.height:
            return
        width, low, high = piece.size[0], piece.elevation, piece.elevation + piece.size[1]
        for _ in range(TRIES):
            turn = self.draw(0, 3)
            room_for = self.length(turn) - width - 2 * CORNER
            start = CORNER + self.draw(0, room_for)
            hole = Hole(turn, start, start + width, low, high)
            if room_for < 0 or any(hole.is_near(other) for other in self.holes):
                continue
            self.holes.append(hole)
            self.placed.append(Placed(piece, self.beside(turn, start + width // 2, 0, low), turn))
            away = BEFORE_DOOR if piece.kind == "door" else BEFORE_WINDOW
            ends = [self.beside(turn, hole.start, 0, low), self.beside(turn, hole.end, away, high)]
            corners = np.array(ends)
            self.taken.append(Box(tuple(corners.min(0).tolist()), tuple(corners.max(0).tolist())))
            return

    def _put_with_things(self, rule: Rule) -> None:
        piece = self._pick(rule)
        if piece is None:
            return
        is_free = rule.place == "free" or (rule.place == "either" and self.draw(0, 4) < 2)
        placed = self._put_anywhere(piece) if is_free else self._put_to_wall(piece)
        if placed is None:
            return
        if rule.chairs[1]:
            self._put_chairs(placed, self.draw(*rule.chairs))
        for _ in range(rule.things[1]):
            self._put_on(placed, rule.things[0])

    def _put_to_wall(self, piece: Piece) -> Placed | None:
        width, _, depth = piece.size
        for _ in range(TRIES):
            turn = self.draw(0, 3)
            low, high = width // 2 + 1 + SKIRTING, self.length(turn) - width // 2 - 1 - SKIRTING
            along = self.draw(low, high)
            away = depth // 2 + 1 + SKIRTING
            placed = Placed(piece, self.beside(turn, along, away, piece.elevation), turn)
            if low <= high and self._put(placed):
                return placed
        return None

    def _put_anywhere(self, piece: Piece) -> Placed | None:
        for _ in range(TRIES):
            place = self.draw(ASIDE, self.width - ASIDE), 0, self.draw(ASIDE, self.depth - ASIDE)
            placed = Placed(piece, place, self.draw(0, 3))
            if self._put(placed):
                return placed
        return None

    def _put_on(self, below: Placed, kinds: Sequence[str]) -> None:
        """A small thing on a piece, whose edges stay free."""
        kind = kinds[self.draw(0, len(kinds) - 1)]
        thing = self._any([piece for piece in self.pieces.get(kind, ()) if is_thing(piece)])
        if thing is None or below.piece.top is None:
            return
        box, top = below.box, below.at[1] + below.piece.top
        turn = self.draw(0, 3)
        for _ in range(TRIES):
            x, z = (self.draw(box.low[i] + side // 5, box.high[i] - side // 5) for i, side in _sides(box))
            placed = Placed(thing, (x, top, z), turn)
            own = placed.box
            is_within = all(box.low[i] <= own.low[i] and own.high[i] <= box.high[i] for i in (0, 2))
            if is_within and self._put(placed, box, 0):
                return

    def _put_chairs(self, table: Placed, count: int) -> None:
        """Chairs of one model that face a table, their seats partly under it."""
        chair = self._pick(CHAIR)
        if chair is None:
            return
        box, (x, _, z) = table.box, table.at
        away = chair.size[2] // 2 - TUCKED
        spots = [(x + aside, box.low[2] - away, 0) for aside in (-ASIDE, ASIDE)]
        spots += [(x + aside, box.high[2] + away, 2) for aside in (-ASIDE, ASIDE)]
        spots += [(box.low[0] - away, z, 1), (box.high[0] + away, z, 3)]
        for number in np.argsort(self.draws.random(len(spots)), kind="stable")[:count]:
            along, across, turn = spots[number]
            self._put(Placed(chair, (along, 0, across), turn), box, 0)

    def _hang_lamp(self) -> None:
        lamp = self._any([piece for piece in self.pieces.get("lamp", ()) if hangs_from_ceiling(piece)])
        if lamp is not None and lamp.size[1] < METRE:
            self._put(Placed(lamp, (self.width // 2, self.height - lamp.size[1], self.depth // 2), 0))

    def free_place(self, draws: np.random.Generator, low: int, high: int) -> np.ndarray:
        """A place ``(3,)`` to look from, between two heights, in no furniture; the last that is drawn where none is."""
        for _ in range(200):
            x, z = (int(draws.integers(ASIDE, side - ASIDE)) for side in (self.width, self.depth))
            eye = Box((x, 0, z), (x, 2 * METRE, z))
            if not any(eye.meets(other, AROUND_EYE) for other in self.taken):
                break
        return np.array([x, int(draws.integers(low, high)), z])


def _sides(box: Box) -> list[tuple[int, int]]:
    return [(axis, box.high[axis] - box.low[axis]) for axis in (0, 2)]


def compose(part: str, number: int, pieces: Sequence[Piece]) -> Room:
    """The room of a part that has this number."""
    by_kind: dict[str, list[Piece]] = {}
    for piece in pieces:
        by_kind.setdefault(piece.kind, []).append(piece)
    return Room(part, number, by_kind).furnish()
