"""Which columns of a table of points are x, y and z: by their names, or as the user says."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

Columns = tuple[int, int, int]

WAY_OUT = (
    "say which are x, y and z, by name or by number from 0: data.columns=[A,B,C] in a config, --columns A,B,C for "
    "predict and doctor"
)
SHOWN = 12  # names that a message lists
LONGEST = 40  # characters of each
USUAL = 200  # characters that a usual name has at most; patterns take long for very long ones

_PLACES = "points?(?:_m_xyz)?|pos|positions?|coords?|coordinates?|vertex|vertices|loc|location|world|global|xyz|pt|p"
_UNITS = "m|mm|cm|km|ft|met(?:er|re)s?|utm|world|coord|coordinates?|pos|position"
_AXIS = re.compile(rf"(?:(?P<place>{_PLACES})[\W_]*)?(?P<axis>[xyz])(?:[\W_]*(?:{_UNITS}))?")
_COMPONENT = re.compile(rf"(?P<place>{_PLACES})[\W_]*(?P<axis>[0-3])\W*")
_MAP = (
    ("e", "east", "easting", "eastings", "rechtswert"),
    ("n", "north", "northing", "northings", "hochwert"),
    ("z", "h", "u", "up", "height", "elevation", "elev", "altitude", "alt", "hoehe", "höhe"),
)
_MAP_UNITS = re.compile(rf"[\W_]+(?:{_UNITS})$")
_OTHERS = (
    *("id", "index", "time", "timestamp", "gpstime", "t", "intensity", "reflectance", "range", "label", "class"),
    *("r", "g", "b", "red", "green", "blue", "nx", "ny", "nz", "lat", "lon", "latitude", "longitude", "azimuth"),
)
_UNIT = re.compile(r"\s{0,9}[\[(](?!\d{1,9}[\])])[^\])]{0,100}[\])]")  # [m], (mm), but not the [0] of Points[0]
_NUMBERED = re.compile(r"(?P<stem>.*?)[\W_]*(?P<number>\d+)[\W_]*")


def columns_of_text(text: str) -> tuple[str | int, ...]:
    """Columns as a command is given them: ``"Easting,Northing,Height"`` or ``"1,2,3"``."""
    cells = [cell.strip() for cell in text.split(",")]
    return tuple(int(cell) if cell.isascii() and cell.isdecimal() else cell for cell in cells)


def without_units(line: str) -> str:
    """A line of names without what is in brackets, such as ``[m]``."""
    return _UNIT.sub("", line)


def named(names: Sequence[str]) -> Columns:
    """The columns called x, y, z, or by another usual name of these.

    Known are, in any case and with units: x, y, z, also with a word for points before them (``pos_x``, ``Points:X``);
    the components 0, 1, 2 or 1, 2, 3 of such a word (``Points:0``); easting, northing and a word for height.

    Raises:
        ValueError: if there are no three such columns, or more than three.
    """
    plain = [_plain(name) if len(name) <= USUAL else "" for name in names]
    groups: dict[tuple[str, str], list[list[int]]] = defaultdict(lambda: [[], [], []])
    for index, name in enumerate(plain):
        if axis := _AXIS.fullmatch(name):
            groups["axes", axis["place"] or ""]["xyz".index(axis["axis"])].append(index)
        if part := _COMPONENT.fullmatch(name):
            for first in (0, 1):
                if 0 <= int(part["axis"]) - first < 3:
                    groups[f"from {first}", part["place"]][int(part["axis"]) - first].append(index)
        for role, words in enumerate(_MAP):
            if _MAP_UNITS.sub("", name) in words:
                groups["map", ""][role].append(index)
    bare, points = groups["axes", ""], groups["map", ""]
    several = [group for key, group in groups.items() if key not in {("axes", ""), ("map", "")} and all(group)]
    for found in ([bare], several, [points], [[bare[0], bare[1], points[2]]]):
        complete = [group for group in found if all(group)]
        if len(complete) > 1 or any(len(role) > 1 for group in complete for role in group):
            raise ValueError(f"its columns are {listed(names)}, of which more than three may be x, y and z")
        if complete:
            (x,), (y,), (z,) = complete[0]
            return x, y, z
    raise ValueError(f"its columns are {listed(names)}, of which no three are known as x, y and z")


def knows(names: Sequence[str]) -> bool:
    """Whether :func:`named` finds x, y and z."""
    try:
        named(names)
    except ValueError:
        return False
    return True


def is_usual(name: str) -> bool:
    """Whether a word is a usual name of a column of points, x, y and z or another."""
    if len(name) > USUAL:
        return False
    plain = _plain(name)
    words = (*_OTHERS, *(word for words in _MAP for word in words))
    return plain in words or bool(_AXIS.fullmatch(plain) or _COMPONENT.fullmatch(plain))


def chosen(columns: Sequence[str | int], names: Sequence[str] | None, width: int) -> Columns:
    """The columns that the user gave.

    Args:
        columns: three names, or numbers from 0.
        names: of the file's columns, if it names them.
        width: number of its columns.

    Raises:
        ValueError: if one is not there, or numbers contradict the file's own x, y and z.
    """
    found: list[int] = []
    for column in columns:
        if isinstance(column, int):
            matching = [column] if column < width else []
        elif names is None:
            raise ValueError(f"it names no columns, so no column is called '{column}'; give numbers from 0")
        else:
            matching = [index for index, name in enumerate(names) if name == column]
            matching = matching or [index for index, name in enumerate(names) if _plain(name) == _plain(column)]
        if len(matching) != 1:
            others = f"its {width} columns are {listed(names)}" if names else f"its {width} columns have no names"
            raise ValueError(f"it has {'several' if matching else 'no'} column {_show(str(column))}; {others}")
        found += matching
    x, y, z = found
    own = named(names) if names is not None and knows(names) else (x, y, z)
    if own != (x, y, z) and all(isinstance(column, int) for column in columns):
        raise ValueError(
            f"its columns called x, y and z are {own}, not {(x, y, z)} as given; give names if you mean it"
        )
    return x, y, z


def count_up(names: Sequence[str]) -> bool:
    """Whether names only number the columns: ``0, 1, 2`` or ``V1, V2, V3``."""
    if any(len(name) > USUAL for name in names):
        return False
    parts = [_NUMBERED.fullmatch(name.strip()) for name in names]
    stems = {part["stem"] for part in parts if part}
    numbers = [int(part["number"]) for part in parts if part]
    places = len(stems) == 1 and bool(numbers) and numbers[0] in (0, 1)
    return places and len(numbers) == len(names) and numbers == list(range(numbers[0], numbers[0] + len(names)))


def listed(names: Sequence[str]) -> str:
    """Names of columns as a list for a message, cut if it is long."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(_show(name) or "''" for name in names[:SHOWN]) + more


def _show(name: str) -> str:
    printable = "".join(character if character.isprintable() else "?" for character in name.strip())
    return printable if len(printable) <= LONGEST else f"{printable[:LONGEST]}…"


def _plain(name: str) -> str:
    return without_units(name).strip(" \t\"'").lower() if len(name) <= USUAL else name
