"""Files of the sets that are composed of furniture: ``rooms``, clouds with labels, and ``views``, pictures of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pointadapterx.building.furniture import LABEL_OF, LABELS, METRE, Piece
from pointadapterx.building.lists import Model
from pointadapterx.building.recipes import Recipe
from pointadapterx.building.rendering import HEIGHT, WIDTH, Camera, Picture, look, render, scene_of
from pointadapterx.building.rooms import PARTS, SEED, Room, compose
from pointadapterx.building.scanning import scan
from pointadapterx.building.sources import Cloud
from pointadapterx.building.writing import new_h5, story_of
from pointadapterx.files import write_text
from pointadapterx.hashing import content_hash

CHUNK = 2**16  # points
VIEWS = 3  # of a room
CAMERAS = 2  # tells the draws of cameras from those of rooms and scans
EYES = 13 * METRE // 10, 18 * METRE // 10  # heights
FAR = 15 * METRE // 10  # from the eye to what it looks at
ASIDE = 6 * METRE // 10  # from the place that is opposite in the room
AIM = 7 * METRE // 10  # height
FEWEST = 60  # pixels of an object that is annotated


def furnishes(model: Model) -> bool:
    """Whether a model is of a class that rooms have."""
    return model.label in LABEL_OF


def write_rooms(path: Path, recipe: Recipe, models: Sequence[Model], clouds: Mapping[str, Cloud]) -> str:
    """Writes the clouds of a part's rooms to an HDF5 file, and returns the hash of its content."""
    rooms = list(_rooms(path.stem, recipe.counts[path.stem], models, clouds))
    scans = [scan(room, path.stem) for room in rooms]
    points, colours, labels, instances = (np.concatenate(parts) for parts in zip(*scans, strict=True))
    entries = {"xyz_mm": points, "rgb": colours, "label": labels, "instance": instances}
    offsets = np.cumsum([0, *(len(one.points) for one in scans)], dtype=np.int64)
    kinds = [room.kind for room in rooms]
    with new_h5(path) as file:
        for key, values in entries.items():
            chunks = (min(CHUNK, len(values)), *(1 for _ in values.shape[1:]))
            file.create_dataset(key, data=values, chunks=chunks, compression="gzip", compression_opts=9, shuffle=True)
        file["offset"], file["kind"] = offsets, np.array(kinds, dtype="S")
        file.attrs["labels"] = np.array(LABELS, dtype="S")
        for key, text in story_of(recipe).items():
            file.attrs[key] = np.bytes_(text.encode())
    texts = ("offset", offsets, "kind", "\n".join(kinds), "labels", "\n".join(LABELS))
    return content_hash(*(part for entry in entries.items() for part in entry), *texts)


def _rooms(part: str, count: int, models: Sequence[Model], clouds: Mapping[str, Cloud]) -> Iterator[Room]:
    pieces = [piece for model in models if isinstance(piece := clouds[model.name], Piece)]
    return (compose(part, number, pieces) for number in range(count))


def write_views(path: Path, recipe: Recipe, models: Sequence[Model], clouds: Mapping[str, Cloud]) -> str:
    """Writes pictures of a part's rooms, with masks, to a folder beside a JSON file in COCO's form.

    Returns:
        The hash of that file's content and of the pictures' and masks' pixels: PNG loses none, so it depends on no
        library that reads or writes them.
    """
    folder = path.with_suffix("")
    folder.mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    hashes: list[str] = []
    for room in _rooms(path.stem, -(-recipe.counts[path.stem] // VIEWS), models, clouds):
        scene = scene_of(room)
        for camera in cameras(room, path.stem)[: recipe.counts[path.stem] - len(images)]:
            picture, number = render(scene, camera), len(images)
            _save(picture, folder / f"{number:05d}")
            hashes.append(content_hash(*picture))
            name = f"{number:05d}.png"
            images.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT, "room": room.number})
            annotations += [
                {"id": 1 + len(annotations) + more, "image_id": number, **found}
                for more, found in enumerate(objects_of(picture))
            ]
    content = {
        "info": story_of(recipe),
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(LABELS)],
    }
    write_text(path, json.dumps(content) + "\n")
    described = json.dumps({key: value for key, value in content.items() if key != "info"}, sort_keys=True)
    return content_hash(described, *hashes)


def cameras(room: Room, part: str) -> list[Camera]:
    """Where pictures of a room are taken from: free places at eye height, towards the opposite side of the room."""
    draws = np.random.default_rng([SEED, PARTS.index(part), room.number, CAMERAS])
    return [_camera(room, draws) for _ in range(VIEWS)]


def _camera(room: Room, draws: np.random.Generator) -> Camera:
    for _ in range(50):
        eye = room.free_place(draws, *EYES)
        opposite = np.array([room.width - eye[0], AIM, room.depth - eye[2]])
        at = opposite + [1, 0, 1] * draws.integers(-ASIDE, ASIDE + 1, 3)
        across = at - eye
        if across[0] ** 2 + across[2] ** 2 >= FAR**2:
            break
    return look(eye, at)


def _save(picture: Picture, stem: Path) -> None:
    named = {".png": picture.colours, "_label.png": picture.labels, "_instance.png": picture.instances}
    for suffix, pixels in named.items():
        Image.fromarray(pixels).save(stem.with_name(stem.name + suffix))


def objects_of(picture: Picture) -> list[dict[str, Any]]:
    """What is seen of each object, in COCO's form: class, box, pixels, and its number in the mask of instances."""
    found = []
    for instance in np.unique(picture.instances[picture.instances > 0]).tolist():
        rows, columns = np.nonzero(picture.instances == instance)
        if len(rows) < FEWEST:
            continue
        left, top = int(columns.min()), int(rows.min())
        box = [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1]
        label = int(picture.labels[rows[0], columns[0]])
        found.append({"category_id": label, "bbox": box, "area": len(rows), "iscrowd": 0, "instance": instance})
    return found
