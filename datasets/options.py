"""The ``data`` section of a config, and what can be wrong with it alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from pointadapterx.datasets.base import DATASETS
from pointadapterx.datasets.point_files import KINDS, problem_of_columns
from pointadapterx.datasets.transforms import build_augment
from pointadapterx.errors import ConfigError
from pointadapterx.registry import did_you_mean, unknown_name
from pointadapterx.schema import Points, Section, Times

OF_IMAGES = ("mean", "std", "resize")
"""Keys that only a data set of images has."""
OF_CLOUDS = ("num_points", "normalize", "up", "stored_points", "suffixes", "columns", "nan", "cache_dir")
"""Keys that only a data set of point clouds has."""

AugmentSpec = str | list[str | dict[str, dict[str, Any] | None]]


class FewShotConfig(Section):
    """``data.few_shot:``: one fold of a few-shot task; ``queries`` are test clouds a class, all if null."""

    ways: int = Field(ge=2, le=2**20)
    shots: Times
    fold: int = Field(0, ge=0)
    queries: Times | None = None


class DataConfig(Section):
    """``data:``: ``augment`` is a transform's name, ``none``, or a list of names and {name: parameters}.

    ``train_size`` is a number of labelled training samples (those for validation included) to draw, all if null.
    ``num_points`` belongs to clouds. ``mean`` and ``std`` belong to images, a number a channel of images in [0, 1];
    by default those of the backbone's own preprocessing where it has one, else 0.5. ``resize`` is how pictures of
    other shapes become square: ``stretch``, as null does, or ``letterbox``, which keeps their shape and adds a border.
    """

    unwritten = ("resize",)

    name: str
    root: str | None = None
    variant: str | None = None
    num_points: Points | None = None
    augment: AugmentSpec = "none"
    normalize: bool | None = None
    cache_dir: str | None = None
    up: Literal["x", "y", "z"] | None = None
    stored_points: Points | None = None
    suffixes: list[str] | None = Field(None, min_length=1)
    columns: list[int | str] | None = None
    nan: Literal["drop", "error"] | None = None
    few_shot: FewShotConfig | None = None
    train_size: int | None = Field(None, ge=2)
    mean: list[float] | None = Field(None, min_length=1)
    std: list[Annotated[float, Field(gt=0.0)]] | None = Field(None, min_length=1)
    resize: Literal["stretch", "letterbox"] | None = None

    def reading_options(self) -> dict[str, Any]:
        """The keys that decide what is read, where they are set."""
        keys = ("root", "variant", "normalize", "cache_dir", "up", "stored_points", "suffixes", "columns", "nan")
        return {key: value for key in keys if (value := getattr(self, key)) is not None}

    def statistics(self, channels: int) -> tuple[list[float], list[float]]:
        """``mean`` and ``std`` of images in [0, 1], a number a channel."""
        return self.mean or [0.5] * channels, self.std or [0.5] * channels

    def normalised(self, mean: list[float], std: list[float]) -> DataConfig:
        """With these statistics, where the data are images and none are set."""
        images = self.name in DATASETS and DATASETS[self.name].modality == "images"
        if not images or self.mean is not None or self.std is not None:
            return self
        return self.model_copy(update={"mean": mean, "std": std})

    def count_classes(self) -> int | None:
        """Number of classes of the few-shot task or the data set; None where only the files tell it."""
        return self.few_shot.ways if self.few_shot is not None else DATASETS[self.name].count_classes(self.variant)

    @property
    def lacks_variant(self) -> bool:
        """Whether the data set is not known for want of a variant."""
        return self.variant is None and DATASETS[self.name].needs_variant

    def find_classes(self) -> int | None:
        """As :meth:`count_classes`, but asks the files if need be; None where they would have to be read for it.

        Raises:
            ConfigError, DataError, OSError: if the files are needed, and not there or wrong.
        """
        found = self.count_classes()
        if found is None and not self.lacks_variant:
            found = DATASETS[self.name].classes_in(self.root)
        return found

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, message) for each unknown name and impossible combination."""
        if self.name not in DATASETS:
            yield "name", unknown_name(self.name, DATASETS)
        else:
            yield from self._problems_of_variant()
            yield from self._foreign_keys()
        for suffix in self.suffixes or ():
            if suffix not in KINDS:
                near = did_you_mean(suffix, KINDS)
                yield "suffixes", f"unknown kind '{suffix}'{near} Known: {', '.join(KINDS)}"
        if self.columns is not None and (problem := problem_of_columns(self.columns)) is not None:
            yield "columns", problem
        try:
            build_augment(self.augment, DATASETS[self.name].modality if self.name in DATASETS else "points")
        except ConfigError as error:
            yield "augment", f"{error}"
        if self.few_shot is not None and self.name in DATASETS:
            available = DATASETS[self.name].count_classes(self.variant)
            if self.train_size is not None:
                yield "train_size", "a few-shot task has its own number of samples; remove one of the two"
            if available is not None and self.few_shot.ways > available:
                yield "few_shot.ways", f"{self.few_shot.ways} exceeds the {available} classes of {self.name}"

    def _problems_of_variant(self) -> Iterator[tuple[str, str]]:
        variants = DATASETS[self.name].variants
        if self.lacks_variant:
            yield "variant", f"is required for {self.name}, one of {', '.join(variants)}"
        if self.variant is not None and self.variant not in variants:
            options = ", ".join(variants) or "none: leave it out"
            near = did_you_mean(self.variant, variants)
            yield "variant", f"unknown variant '{self.variant}'{near} Known: {options}"

    def _foreign_keys(self) -> Iterator[tuple[str, str]]:
        if DATASETS[self.name].modality == "points":
            foreign, others, own = OF_IMAGES, "images", "points"
        else:
            foreign, others, own = OF_CLOUDS, "point clouds", "images"
        for key in foreign:
            if getattr(self, key) is not None:
                yield key, f"belongs to {others}, but {self.name} holds {own}; remove it"
