"""Base of every config section: unknown keys and wrong types are errors, never ignored."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Section(BaseModel):
    """One section of a config. Strict: ``"3"`` is not a number, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())


def _distinct(values: list[Any]) -> list[Any]:
    twice = [name for name, count in Counter(map(str, values)).items() if count > 1]
    if twice:
        raise ValueError(f"{', '.join(twice)} is listed twice; remove one")
    return values


Distinct = AfterValidator(_distinct)
"""Of a list: no value appears twice."""

Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
"""A dropout or drop-path probability in [0, 1)."""
