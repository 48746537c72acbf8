"""Values that are tuned: fixed lists, and open ones, which go on where the best value is the outermost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from pointadapterx.schema import Distinct, Many
from pointadapterx.study.section import StudySection

Values = dict[str, Any]
"""Dotted config keys to values."""

TAGS = ("[list]", "[open]")
"""Kinds of values, as they appear in the places of pydantic's errors."""

DIGITS = 4  # significant, of a value that is not in the YAML: 0.008, not 0.008000000000000002


class OpenValues(StudySection):
    """Values of a key that go on in both directions.

    Attributes:
        start: tried in any case, ascending.
        most: how many values are tried at most.
    """

    start: Annotated[list[int | float], Field(min_length=2), Distinct]
    most: Many

    @field_validator("start", mode="before")
    @classmethod
    def _ascending(cls, values: Any) -> Any:
        numbers = [value for value in values if is_number(value)] if isinstance(values, list) else []
        if not numbers or len(numbers) < len(values) or numbers[0] <= 0 or sorted(numbers) != numbers:
            raise ValueError(f"{values} are not ascending numbers above 0, of which the next follows by their ratio")
        return values

    @model_validator(mode="after")
    def _room(self) -> OpenValues:
        if self.most < len(self.start):
            raise ValueError(f"most: {self.most} is less than the {len(self.start)} values of start")
        return self

    def beyond(self, tried: Sequence[float], value: float) -> float | None:
        """What comes next where the best of ``tried`` is ``value``: a step of the outermost ratio; None within."""
        first, second, *_ = self.start
        *_, last_but_one, last = self.start
        if len(tried) >= self.most:
            return None
        if value == max(tried):
            return self._rounded(value * last / last_but_one, value)
        return self._rounded(value * first / second, value) if value == min(tried) else None

    def _rounded(self, value: float, before: float) -> float | None:
        if not all(isinstance(known, int) for known in self.start):
            return float(f"{value:.{DIGITS}g}")
        whole = round(value)
        return whole if whole >= 1 and whole != before else None


def _kind(value: Any) -> str:
    return TAGS[isinstance(value, Mapping | OpenValues)]


Tried = Annotated[
    Annotated[list[Any], Field(min_length=1), Distinct, Tag(TAGS[0])] | Annotated[OpenValues, Tag(TAGS[1])],
    Discriminator(_kind),
]
"""A list of values, or ``{start: [...], most: N}``."""


def is_number(value: Any) -> bool:
    """Whether a value has a place on a line."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def starts(grid: Mapping[str, list[Any] | OpenValues]) -> list[Values]:
    """Every combination of the values that are tried in any case; empty where nothing is tuned."""
    lists = [tried.start if isinstance(tried, OpenValues) else tried for tried in grid.values()]
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*lists)] if grid else []


def next_candidate(
    grid: Mapping[str, list[Any] | OpenValues], candidates: Sequence[Values], best: Values
) -> Values | None:
    """What to try after ``candidates``: the best of them, of which one open key takes its next value.

    Args:
        grid: of the cell.
        candidates: those that were tried.
        best: one of them.

    Returns:
        None where no open key of ``best`` is at the edge, or each has had as many values as it may.
    """
    for key, tried in grid.items():
        if isinstance(tried, OpenValues):
            value = tried.beyond(list(dict.fromkeys(candidate[key] for candidate in candidates)), best[key])
            if value is not None:
                return {**best, key: value}
    return None


def reach(grid: Mapping[str, list[Any] | OpenValues]) -> list[Values]:
    """Candidates with every value that open keys may come to, beside those that they start with."""
    found = []
    for key, tried in grid.items():
        for outermost in (max, min) if isinstance(tried, OpenValues) else ():
            so_far = list(tried.start) if isinstance(tried, OpenValues) else []
            while isinstance(tried, OpenValues) and (value := tried.beyond(so_far, outermost(so_far))) is not None:
                so_far.append(value)
                found.append({**starts(grid)[0], key: value})
    return found


def most_candidates(grid: Mapping[str, list[Any] | OpenValues]) -> int | None:
    """How many candidates an open grid may come to; None for one that is not open."""
    opened = [tried for tried in grid.values() if isinstance(tried, OpenValues)]
    if not opened:
        return None
    lengths = (len(tried.start if isinstance(tried, OpenValues) else tried) for tried in grid.values())
    return math.prod(lengths) + sum(tried.most - len(tried.start) for tried in opened)
