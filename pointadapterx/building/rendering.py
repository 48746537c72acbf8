"""Pictures of rooms: triangles, the first along the ray of each pixel, in flat colours under one lamp.

Floating-point numbers are combined here by + - * / and sqrt alone, one operation at a time, so that every machine that
follows IEEE 754 finds the same pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from pointadapterx.building.furniture import CEILING, CENTIMETRE, FLOOR, METRE, WALL
from pointadapterx.building.rooms import Room

WIDTH, HEIGHT = 320, 240
SPREAD = 0.75  # half the width of the picture at distance 1: 74 degrees
NEAR = 2.0 * CENTIMETRE
AT_ONCE = 2**20  # pairs of triangle and pixel
AMBIENT, LAMP = 0.45, 0.55
OUTSIDE = (225, 235, 240)  # colour of what is seen through an opening
NOTHING = -1


class Scene(NamedTuple):
    """Triangles of a room: corners ``(n, 3, 3)``, colours ``(n, 3)``, labels and instances ``(n,)``; and its lamp."""

    triangles: np.ndarray
    colours: np.ndarray
    labels: np.ndarray
    instances: np.ndarray
    lamp: np.ndarray


class Camera(NamedTuple):
    """Where it is ``(3,)``, and its unit vectors to the right, up and forward ``(3, 3)``."""

    eye: np.ndarray
    axes: np.ndarray


class Picture(NamedTuple):
    """Colours ``(h, w, 3)``, labels (255: nothing) and instances (0: the room) ``(h, w)``, all uint8."""

    colours: np.ndarray
    labels: np.ndarray
    instances: np.ndarray


def scene_of(room: Room) -> Scene:
    """All surfaces of a room."""
    parts = [_level(room, room.height), _level(room, 0), np.concatenate([_wall(room, turn) for turn in range(4)])]
    colours = [np.tile(room.colours[label], (len(parts[label]), 1)) for label in (CEILING, FLOOR, WALL)]
    labels = [CEILING, FLOOR, WALL]
    for placed in room.placed:
        parts.append(placed.moved(placed.piece.triangles))
        colours.append(placed.piece.paint)
        labels.append(placed.piece.label)
    counts = [len(part) for part in parts]
    instances = [0, 0, 0, *range(1, len(room.placed) + 1)]
    return Scene(
        np.concatenate(parts).astype(np.float64),
        np.concatenate(colours),
        np.repeat(np.array(labels, np.uint8), counts),
        np.repeat(np.array(instances, np.uint8), counts),
        np.array([room.width // 2, room.height - METRE // 5, room.depth // 2], float),
    )


def _level(room: Room, height: int) -> np.ndarray:
    return _square([(0, height, 0), (room.width, height, 0), (room.width, height, room.depth), (0, height, room.depth)])


def _square(corners: list[tuple[int, int, int]]) -> np.ndarray:
    return np.array(corners)[[[0, 1, 2], [0, 2, 3]]]


def _wall(room: Room, turn: int) -> np.ndarray:
    """A wall but for its openings, whose edges cut it into rectangles."""
    holes = [hole for hole in room.holes if hole.turn == turn]
    across = sorted({0, room.length(turn), *(edge for hole in holes for edge in (hole.start, hole.end))})
    up = sorted({0, room.height, *(edge for hole in holes for edge in (hole.low, hole.high))})
    found = []
    for left, right in pairwise(across):
        for low, high in pairwise(up):
            if any(hole.start <= left < hole.end and hole.low <= low < hole.high for hole in holes):
                continue
            edges = [(left, low), (right, low), (right, high), (left, high)]
            found.append(_square([room.beside(turn, along, 0, height) for along, height in edges]))
    return np.concatenate(found)


def look(eye: np.ndarray, at: np.ndarray) -> Camera:
    """A camera that looks from one place to another, upright."""
    forward = _unit(at - eye.astype(float))
    right = _unit(np.array([-forward[2], 0, forward[0]]))
    return Camera(eye.astype(float), np.stack([right, np.cross(right, forward), forward]))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.sqrt(_dot(vectors, vectors))[..., None]


def _dot(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of the last axes; no BLAS, whose order of additions depends on the machine."""
    product = first * second
    total: np.ndarray = product[..., 0] + product[..., 1] + product[..., 2]
    return total


def render(scene: Scene, camera: Camera) -> Picture:
    """The picture that a camera takes."""
    moved = scene.triangles - camera.eye
    first, nearness = trace(np.stack([_dot(moved, axis) for axis in camera.axes], -1))
    hit = first != NOTHING
    triangle = first[hit]
    places = np.stack([*_rays(np.flatnonzero(hit)), np.ones(len(triangle))], -1) / nearness[hit][:, None]
    to_lamp = scene.lamp - camera.eye
    light = _unit(np.stack([_dot(to_lamp, axis) for axis in camera.axes]) - places)
    corners = np.stack([_dot(moved[triangle], axis) for axis in camera.axes], -1)
    normals = _unit(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
    shade = AMBIENT + LAMP * np.abs(_dot(normals, light))
    colours = np.tile(np.array(OUTSIDE, np.uint8), (len(first), 1))
    colours[hit] = np.floor(scene.colours[triangle] * shade[:, None]).clip(0, 255)
    labels, instances = np.full(len(first), 255, np.uint8), np.zeros(len(first), np.uint8)
    labels[hit], instances[hit] = scene.labels[triangle], scene.instances[triangle]
    size = HEIGHT, WIDTH
    return Picture(colours.reshape(*size, 3), labels.reshape(size), instances.reshape(size))


def _rays(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """To the right and up, where forward is 1, of pixels by number."""
    x, y = pixels % WIDTH, pixels // WIDTH
    return ((2 * x + 1) / WIDTH - 1) * SPREAD, (1 - (2 * y + 1) / HEIGHT) * (SPREAD * HEIGHT / WIDTH)


def trace(triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel the number of the first triangle (or :data:`NOTHING`), and 1 / its distance forward.

    A ray d meets a triangle a, b, c where d · (b × c), d · (c × a) and d · (a × b) have the sign of a · (b × c). Both
    triangles at an edge find the same number for it, so nothing shows through between them.

    Args:
        triangles: ``(n, 3, 3)``, right, up and forward of the camera.
    """
    first, nearness = np.full(WIDTH * HEIGHT, NOTHING), np.zeros(WIDTH * HEIGHT)
    a, b, c = (triangles[:, corner] for corner in range(3))
    edges = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], 1)
    volume = _dot(a, edges[:, 0])
    for numbers, pixels in _candidates(triangles, volume != 0):
        x, y = _rays(pixels)
        normal, side = edges[numbers], np.sign(volume[numbers])
        weights = [(normal[:, k, 0] * x + normal[:, k, 1] * y + normal[:, k, 2]) * side for k in range(3)]
        inside = (weights[0] >= 0) & (weights[1] >= 0) & (weights[2] >= 0)
        numbers, pixels = numbers[inside], pixels[inside]
        near = (weights[0] + weights[1] + weights[2])[inside] / np.abs(volume[numbers])
        better = near > nearness[pixels]
        numbers, pixels, near = numbers[better], pixels[better], near[better]
        np.maximum.at(nearness, pixels, near)
        best = near == nearness[pixels]
        first[pixels[best][::-1]] = numbers[best][::-1]  # of equal ones the first
    return first, nearness


def _candidates(triangles: np.ndarray, proper: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Triangles and pixels in their bounds, as pairs, some at a time."""
    low, high = _bounds(triangles)
    left, top = np.maximum(np.ceil(low), 0).astype(np.int64).T
    right, bottom = np.minimum(np.floor(high), [WIDTH - 1, HEIGHT - 1]).astype(np.int64).T
    wide, tall = right - left + 1, bottom - top + 1
    there = np.flatnonzero(proper & (wide > 0) & (tall > 0))
    ends = np.cumsum(wide[there] * tall[there])
    start = 0
    while start < len(there):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + AT_ONCE, side="right")))
        some = there[start:stop]
        areas = wide[some] * tall[some]
        within = np.arange(areas.sum()) - np.repeat(np.cumsum(areas) - areas, areas)
        numbers = np.repeat(some, areas)
        row, column = within // wide[numbers], within % wide[numbers]
        yield numbers, (top[numbers] + row) * WIDTH + left[numbers] + column
        start = stop


def _bounds(triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest place ``(n, 2)`` in pixels of what is before the camera; without any, least is greater."""
    low, high = np.full((len(triangles), 2), 2.0 * WIDTH), np.full((len(triangles), 2), -1.0)
    depth = triangles[..., 2]
    for corner in range(3):
        start, end = triangles[:, corner], triangles[:, (corner + 1) % 3]
        _extend(low, high, start, depth[:, corner] >= NEAR)
        crosses = (start[:, 2] >= NEAR) != (end[:, 2] >= NEAR)
        share = (NEAR - start[:, 2]) / np.where(crosses, end[:, 2] - start[:, 2], 1)
        _extend(low, high, start + share[:, None] * (end - start), crosses)
    return low, high


def _extend(low: np.ndarray, high: np.ndarray, places: np.ndarray, there: np.ndarray) -> None:
    """Takes places ``(n, 3)`` into bounds; half a thousandth of a pixel more, for what rounding moves."""
    forward = np.where(there, places[:, 2], 1).clip(NEAR / 2)
    x = (places[:, 0] / forward / SPREAD + 1) / 2 * WIDTH - 0.5
    y = (1 - places[:, 1] / forward / (SPREAD * HEIGHT / WIDTH)) / 2 * HEIGHT - 0.5
    place = np.stack([x, y], 1).clip(-1.0, 2.0 * WIDTH)
    np.minimum(low, place - 5e-4, out=low, where=there[:, None])
    np.maximum(high, place + 5e-4, out=high, where=there[:, None])
