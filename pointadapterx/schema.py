"""Base of every config section: unknown keys and wrong types are errors, never ignored."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer


class Section(BaseModel):
    """One section of a config. Strict: ``"3"`` is not a number, and an unknown key is an error.

    Attributes:
        unwritten: keys that are not written at their default, since they are younger than files, run names and hashes
            that have to stay as they are.
        needs: packages that it takes to build what the section describes.
        extra: of this project, which installs them.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())
    unwritten: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""

    @model_serializer(mode="wrap")
    def _without_unwritten(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        for key in self.unwritten:
            if getattr(self, key) == type(self).model_fields[key].get_default(call_default_factory=True):
                written.pop(key, None)
        return written


def _distinct(values: list[Any]) -> list[Any]:
    twice = [name for name, count in Counter(map(str, values)).items() if count > 1]
    if twice:
        raise ValueError(f"{', '.join(twice)} is listed twice; remove one")
    return values


Distinct = AfterValidator(_distinct)
"""Of a list: no value appears twice."""


def null_if(default: object) -> AfterValidator:
    """Of an optional value: ``default`` is stored as null, so that files name the key only where it says more.

    Names of runs leave out keys that are null, and so stay as they were when such a key is added.
    """
    return AfterValidator(lambda value: None if value == default else value)


Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
"""A dropout or drop-path probability in [0, 1)."""

# Upper limits keep a small file from asking for a machine that there is not. Each is beyond what anyone has published,
# so that it is in nobody's way.
Blocks = Annotated[int, Field(ge=1, le=1_000)]
"""Layers on top of each other; DeepNet has 1,000."""

Width = Annotated[int, Field(ge=1, le=2**16)]
"""Features of a layer, a rank, or a number of tokens; the widest transformers have 18,432."""

Many = Annotated[int, Field(ge=1, le=1_024)]
"""Experts or attention heads of a layer, or processes; published adapters have 4 to 64 experts."""

Points = Annotated[int, Field(ge=1, le=2**24)]
"""Points of a cloud, 16.8 million, or samples of a batch."""

Times = Annotated[int, Field(ge=1, le=10**6)]
"""How often something is done: epochs, copies of a vote, generations."""
