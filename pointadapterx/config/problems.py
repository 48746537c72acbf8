"""What is wrong with a config, as one line a problem."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError

from pointadapterx.config.files import Origins
from pointadapterx.errors import ConfigError, shown
from pointadapterx.registry import did_you_mean
from pointadapterx.schema import Section

MOST_LINES = 50
"""Problems of a config that a message lists."""
MOST_WIDE = 2_000  # characters of a line of it
_BRANCH = re.compile(r"(bool|float|int|str|constrained-\w+|(dict|list|literal|nullable|union)\[.*\])$")
"""What pydantic adds to the place of a problem for each kind that a value may be of."""
_BEGINNING = "Input should be "
_REMOVE = re.compile(r"\b(remove (it|one|one of the two|the key)|leave it out)$")


class Problem(NamedTuple):
    """One problem of a config: dotted key and message."""

    key: str
    message: str

    @classmethod
    def of(cls, section: str, problems: Iterable[tuple[str, str]]) -> list[Problem]:
        """Of the (key, message) that a section gives for itself."""
        return [cls(f"{section}.{key}", message) for key, message in problems]


def undone(problem: Problem, origins: Origins, sections: object) -> Problem:
    """Says that null undoes a key that a file sets, as a file that others share is not to be changed for one run.

    Args:
        problem: whose message says to remove its key.
        origins: where each key was set.
        sections: has those that are right on their own as attributes; one of them has the key.
    """
    section, _, key = problem.key.partition(".")
    field = getattr(type(getattr(sections, section, None)), "model_fields", {}).get(key)
    of_file = not origins.get(problem.key, "override").startswith("override")
    if (
        field is None
        or type(None) not in get_args(field.annotation)
        or not of_file
        or not _REMOVE.search(problem.message)
    ):
        return problem
    return Problem(problem.key, f"{problem.message}, for example by {problem.key}=null")


def error_of(problems: list[Problem], origins: Origins, source: str) -> ConfigError:
    """One error that lists them, each with the file and line that set the key."""
    lines = [f"  {origins.of(p.key)}: {p.key or 'config'}: {p.message}" for p in problems]
    many = "problem" if len(lines) == 1 else "problems"
    more = [f"  … and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
    kept = [line if len(line) <= MOST_WIDE else f"{line[:MOST_WIDE]}…" for line in lines[:MOST_LINES]]
    return ConfigError("\n".join([f"{source}: {len(lines)} {many} in the config", *kept, *more]))


def problems_of(section: str, error: ValidationError, model: type[Section]) -> list[Problem]:
    """What pydantic found in a section, one problem a key, though a union reports each of its branches."""
    found: dict[tuple[int | str, ...], list[Mapping[str, Any]]] = {}
    for detail in error.errors():
        found.setdefault(_place(section, detail["loc"]), []).append(detail)
    inner = {place[:end] for place in found for end in range(1, len(place))}  # one branch fits all but what is there
    return [_describe(section, place, details, model) for place, details in found.items() if place not in inner]


def _place(section: str, location: Sequence[int | str]) -> tuple[int | str, ...]:
    """Where a value is in its section: key, and perhaps a key or number inside, without branches of unions."""
    if (section, *location[:1]) == ("data", "augment"):
        return ("augment",)
    return (*location[:1], *(part for part in location[1:] if isinstance(part, int) or not _BRANCH.match(part)))


def _describe(
    section: str, place: tuple[int | str, ...], details: Sequence[Mapping[str, Any]], model: type[Section]
) -> Problem:
    """One problem of a value, from each branch of a union that it does not fit."""
    key, (first, *_) = ".".join(map(str, [section, *place])), details
    if first["type"] == "extra_forbidden":
        known = list(_inner(model, place[:-1]).model_fields)
        return Problem(key, f"unknown key{did_you_mean(str(place[-1]), known)} Known: {', '.join(known)}")
    if first["type"] == "missing":
        return Problem(key, "is required")
    if first["type"] == "too_short":
        return Problem(key, too_few(first))
    if key == "data.augment":
        return Problem(key, f"must be a name or a list of names and {{name: parameters}}, not {shown(first['input'])}")
    others = [detail["msg"].removeprefix(_BEGINNING) for detail in details[1:]]
    return Problem(key, f"{' or '.join([first['msg'], *others])}, not {shown(first['input'])}")


def too_few(detail: Mapping[str, Any]) -> str:
    """What pydantic found in a list that is too short, in our words."""
    least = detail["ctx"]["min_length"]
    return f"needs at least {least} item{'s' * (least > 1)}, not {shown(detail['input'])}"


def _inner(model: type[BaseModel], location: Sequence[int | str]) -> type[BaseModel]:
    """The section inside a section, as ``eval.vote``; the outer one where there is no such."""
    for part in location:
        field = model.model_fields.get(str(part))
        kinds = () if field is None else (field.annotation, *get_args(field.annotation))
        model = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), model)
    return model
