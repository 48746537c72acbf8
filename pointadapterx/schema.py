"""Base of every config section: unknown keys and wrong types are errors, never ignored."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """One section of a config. Strict: ``"3"`` is not a number, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())


Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
"""A dropout or drop-path probability in [0, 1)."""
