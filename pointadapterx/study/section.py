"""The base of all parts of a study's YAML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import model_validator

from pointadapterx.registry import did_you_mean
from pointadapterx.schema import Section


class StudySection(Section):
    """A part of a study's YAML; nothing after its colon means every default."""

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return {} if values is None else values
        known = list(cls.model_fields)
        unknown = [str(key) for key in values if key not in known]
        if unknown:
            near = did_you_mean(unknown[0], known) if len(unknown) == 1 else "."
            raise ValueError(f"unknown key {', '.join(map(repr, unknown))}{near} Known: {', '.join(known)}")
        return values
