"""Outlines of objects as COCO writes them: polygons, run lengths, or a number in a picture of instances."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pointadapterx.datasets.files import state_of
from pointadapterx.datasets.images import FORMATS, numbers_of, picture_problem
from pointadapterx.errors import DataError, reason_of, shown
from pointadapterx.hashing import hash_bytes
from pointadapterx.optional import need

EXTRA = "dense2d"
"""Of this project, which installs what boxes and masks need."""
FAR = 2**20  # pixels that no coordinate of an outline reaches: drawing takes memory for each


class Instance(NamedTuple):
    """The pixels of a picture of instances that have a number.

    Attributes:
        path: of that picture, which is as large as the one that it describes.
        number: of the object.
    """

    path: Path
    number: int


def masks_of_coco() -> Any:
    """The module ``pycocotools.mask``.

    Raises:
        DataError: if it is not installed.
    """
    return need("pycocotools.mask", "masks of objects need pycocotools", EXTRA)


def drawn(outlines: Sequence[Any], width: int, height: int, where: str) -> np.ndarray:
    """Masks (k, height, width) uint8, of 0 and 1, of the objects of one picture.

    Args:
        outlines: for each of k objects a list of polygons ``[x, y, x, y, …]``, run lengths ``{"size", "counts"}``, or
            an :class:`Instance`.
        width: of the picture.
        height: of the picture.
        where: the picture, for messages.

    Raises:
        DataError: if an outline is none of these, or of another size.
    """
    found = [_drawn(outline, width, height, where) for outline in outlines]
    return np.stack(found) if found else np.zeros((0, height, width), np.uint8)


def _drawn(outline: Any, width: int, height: int, where: str) -> np.ndarray:
    if isinstance(outline, Instance):
        numbers = _instances(outline.path, state_of(outline.path))
        if numbers.shape != (height, width):
            raise DataError(
                f"{outline.path}: is {numbers.shape[1]} x {numbers.shape[0]} pixels, {where} is {width} x {height}"
            )
        found = (numbers == outline.number).astype(np.uint8)
        if not found.any():
            raise DataError(
                f"{outline.path}: no pixel has the number {outline.number} of an object of {where}; mend it"
            )
        return found
    masks = masks_of_coco()
    try:
        mask: np.ndarray = masks.decode(_runs(outline, width, height))
    except Exception as error:  # whatever pycocotools raises for numbers that are no outline
        raise DataError(f"{where}: not a readable outline ({reason_of(error)}); mend its 'segmentation'") from None
    return mask


def _runs(outline: Any, width: int, height: int) -> Any:
    """Compressed run lengths, of as many pixels as the picture has: pycocotools does not look.

    Raises:
        ValueError: if they are not, or a polygon is none.
    """
    masks = masks_of_coco()
    if isinstance(outline, dict):
        size, counts = list(outline["size"]), outline["counts"]
        if size != [height, width]:
            raise ValueError(f"of {size[1]} x {size[0]} pixels, not {width} x {height}")
        lengths = counts if isinstance(counts, list) else _lengths(counts)
        if min(lengths, default=0) < 0 or sum(lengths) != height * width:
            raise ValueError(f"run lengths of {sum(lengths)} pixels, not {height * width}")
        return masks.frPyObjects({"size": size, "counts": lengths}, height, width)
    polygons = [[float(number) for number in polygon] for polygon in outline]
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2 or not all(abs(number) < FAR for number in polygon):
            raise ValueError(f"a polygon of {shown(polygon)}")
    return masks.merge(masks.frPyObjects(polygons, height, width))


def _lengths(text: str | bytes) -> list[int]:
    """The run lengths of COCO's text: six bits a character, differences from the third number on."""
    found: list[int] = []
    value = bits = 0
    for character in text.encode() if isinstance(text, str) else text:
        code = character - 48
        if not 0 <= code < 64:
            raise ValueError(f"no run lengths: {shown(text)}")
        value |= (code & 31) << bits
        bits += 5
        if not code & 32:  # the last one of a number
            value -= (code & 16) << (bits - 4)
            found.append(value + (found[-2] if len(found) > 2 else 0))
            value = bits = 0
    if bits:
        raise ValueError(f"no run lengths: {shown(text)}")
    return found


@lru_cache(maxsize=16)
def _instances(path: Path, state: tuple[int, int]) -> np.ndarray:
    """The numbers (h, w) of a picture of instances, read again where the file has changed."""
    from PIL import Image  # slow to import, and point clouds do without

    try:
        with Image.open(path, formats=FORMATS) as image:
            numbers = numbers_of(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(
            f"{path}: not a readable picture of instances ({picture_problem(error)}); obtain it again"
        ) from None
    if numbers.ndim != 2 or numbers.dtype.kind not in "iub":
        raise DataError(f"{path}: holds colours, not one number a pixel; save the numbers of the instances")
    return numbers


def encoded(mask: np.ndarray) -> dict[str, Any]:
    """Run lengths ``{"size": [height, width], "counts": str}`` of a mask (height, width), as in COCO's results."""
    runs: dict[str, Any] = masks_of_coco().encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(size) for size in runs["size"]], "counts": runs["counts"].decode("ascii")}


def runs_of(outline: Any, width: int, height: int, where: str) -> dict[str, Any]:
    """Run lengths of an outline; see :func:`drawn`."""
    return encoded(drawn([outline], width, height, where)[0])


def described(outline: Any) -> str:
    """The same text for the same outline, for checksums."""
    return (
        f"{_content(outline.path, state_of(outline.path))} {outline.number}"
        if isinstance(outline, Instance)
        else repr(outline)
    )


@lru_cache(maxsize=4096)
def _content(path: Path, state: tuple[int, int]) -> str:
    try:
        return hash_bytes(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
