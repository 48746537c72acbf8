"""What a scanner sees of a room: points of its surfaces, as they are seen from a few places, on a grid, with noise.

All of it is computed with whole numbers: what hides what, and which points share a cell, cannot depend on a machine.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pointadapterx.building.furniture import CEILING, CENTIMETRE, DENSITY, FLOOR, METRE, WALL
from pointadapterx.building.rooms import PARTS, SEED, Room

PLACES = 4  # to look from
EYES = 12 * METRE // 10, 18 * METRE // 10  # heights
CELLS = 90  # on each side of a face of the cube around a place, a degree each
BEHIND = 5 * CENTIMETRE  # and a fiftieth: how much farther than the first surface a point is still seen
GRID = 5 * CENTIMETRE
NOISE = 35  # tenths of a millimetre; the sum of four such draws deviates by 4.1 mm
SPECKLE = 8  # of colours
SCAN = 1  # tells the draws of a scan from those of the room


class Scan(NamedTuple):
    """Points of a room: ``(n, 3)`` int16 millimetres, colours ``(n, 3)`` uint8, labels uint8, and instances uint16."""

    points: np.ndarray
    colours: np.ndarray
    labels: np.ndarray
    instances: np.ndarray


def scan(room: Room, part: str) -> Scan:
    """The points that are seen of a room."""
    draws = np.random.default_rng([SEED, PARTS.index(part), room.number, SCAN])
    points, colours, labels, instances = surfaces(room, draws)
    seen = np.zeros(len(points), bool)
    for _ in range(PLACES):
        seen |= visible(points - room.free_place(draws, *EYES))
    chosen = thinned(points, np.flatnonzero(seen), draws)
    moved = points[chosen] + draws.integers(-NOISE, NOISE + 1, (4, len(chosen), 3)).sum(0)
    speckled = colours[chosen] + draws.integers(-SPECKLE, SPECKLE + 1, (len(chosen), 3))
    return Scan(
        ((moved + 5) // 10).astype(np.int16),
        np.clip(speckled, 0, 255).astype(np.uint8),
        labels[chosen],
        instances[chosen],
    )


def surfaces(room: Room, draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Points of everything in a room, seen or not; with colours (int64), labels and instances."""
    points = [_level(room, draws, room.height), _level(room, draws, 0)]
    points.append(np.concatenate([_wall(room, turn, draws) for turn in range(4)]))
    colours = [np.tile(room.colours[label].astype(int), (len(points[label]), 1)) for label in (CEILING, FLOOR, WALL)]
    labels = [np.full(len(points[label]), label, np.uint8) for label in (CEILING, FLOOR, WALL)]
    for placed in room.placed:
        points.append(placed.moved(placed.piece.points))
        colours.append(placed.piece.colours.astype(int))
        labels.append(np.full(len(points[-1]), placed.piece.label, np.uint8))
    numbers = [0, 0, 0, *range(1, len(room.placed) + 1)]
    instances = np.repeat(np.array(numbers, np.uint16), [len(part) for part in points])
    return np.concatenate(points), np.concatenate(colours), np.concatenate(labels), instances


def _level(room: Room, draws: np.random.Generator, height: int) -> np.ndarray:
    count = room.width * room.depth * DENSITY // METRE**2
    x, z = (draws.integers(0, side, count) for side in (room.width, room.depth))
    return np.stack([x, np.full(count, height), z], 1)


def _wall(room: Room, turn: int, draws: np.random.Generator) -> np.ndarray:
    """Points of a wall, without those of its openings."""
    length = room.length(turn)
    count = length * room.height * DENSITY // METRE**2
    along, height = draws.integers(0, length, count), draws.integers(0, room.height, count)
    solid = np.ones(count, bool)
    for hole in room.holes:
        if hole.turn == turn:
            across = (along > hole.start) & (along < hole.end)
            solid &= ~(across & (height > hole.low) & (height < hole.high))
    corner, next_to_it = (np.array(room.beside(turn, place, 0, 0)) for place in (0, 1))
    points: np.ndarray = corner + along[:, None] * (next_to_it - corner) + height[:, None] * np.array([0, 1, 0])
    return points[solid]


def visible(points: np.ndarray) -> np.ndarray:
    """Whether points ``(n, 3)``, as seen from 0, are the first in their direction, up to :data:`BEHIND`."""
    away = np.abs(points)
    axis = away.argmax(1)
    rows = np.arange(len(points))
    depth = np.maximum(away[rows, axis], 1)
    face = 2 * axis + (points[rows, axis] < 0)
    cell = face
    for other in (1, 2):
        cell = cell * CELLS + (points[rows, (axis + other) % 3] + depth) * CELLS // (2 * depth + 1)
    first = np.full(6 * CELLS**2, np.iinfo(np.int64).max // 200)
    np.minimum.at(first, cell, depth)
    seen: np.ndarray = 50 * depth <= 51 * first[cell] + 50 * BEHIND
    return seen


def thinned(points: np.ndarray, chosen: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """Of ``chosen`` one point of each cell of the grid, by chance, in the order of the cells."""
    mixed = chosen[np.argsort(draws.random(len(chosen)), kind="stable")]
    x, y, z = (points[mixed] // GRID + 1000).T  # positive, as windows reach out of the room
    _, first = np.unique((x * 10**4 + z) * 10**4 + y, return_index=True)
    return mixed[first]
