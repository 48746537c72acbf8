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
OF_LABELS = ("label_field", "label_names", "ignored_labels")
"""Keys of files with labels of points."""
OF_CLOUDS = (
    "num_points",
    "normalize",
    "up",
    "stored_points",
    "suffixes",
    "columns",
    "nan",
    "cache_dir",
    "block",
    *OF_LABELS,
)
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
    ``label_field``, ``label_names`` and ``ignored_labels`` say how ``labelled_folder`` finds labels of points.
    ``block`` is the side of the blocks that samples are drawn from, in units of the files, or ``whole``; null is what
    the data set is for.
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
    label_field: str | Annotated[int, Field(ge=0)] | None = None
    label_names: str | None = None
    ignored_labels: list[int] | None = None
    block: Annotated[float, Field(gt=0)] | Literal["whole"] | None = None
    few_shot: FewShotConfig | None = None
    train_size: int | None = Field(None, ge=2)
    mean: list[float] | None = Field(None, min_length=1)
    std: list[Annotated[float, Field(gt=0.0)]] | None = Field(None, min_length=1)
    resize: Literal["stretch", "letterbox"] | None = None

    def reading_options(self) -> dict[str, Any]:
        """The keys that decide what is read, where they are set."""
        keys = ["root", "variant", "normalize", "cache_dir", "up", "stored_points", "suffixes", "columns", "nan"]
        keys += OF_LABELS
        keys += ["num_points", "block"] * (DATASETS[self.name].default_block is not None)
        return {key: value for key in keys if (value := getattr(self, key)) is not None}

    @property
    def block_side(self) -> float | None:
        """Side of the blocks that samples are drawn from; None where clouds stay whole."""
        block = self.block or DATASETS[self.name].default_block
        return None if block is None or isinstance(block, str) else block

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

    def find_point_classes(self) -> list[str] | None:
        """Names of what points are labelled with; None where they are not, or the files would have to be read for it.

        Raises:
            ConfigError, DataError, OSError: if the files are needed, and not there or wrong.
        """
        return None if self.lacks_variant else DATASETS[self.name].point_classes_in(**self.reading_options())

    def find_parts(self) -> dict[str, list[str]] | None:
        """Names of the parts of each category, likewise."""
        return None if self.lacks_variant else DATASETS[self.name].parts_in(**self.reading_options())

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, message) for each unknown name and impossible combination."""
        if self.name not in DATASETS:
            yield "name", unknown_name(self.name, DATASETS)
        else:
            yield from self._problems_of_variant()
            yield from self._foreign_keys()
            yield from self._problems_of_draws()
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

    def _problems_of_draws(self) -> Iterator[tuple[str, str]]:
        default = DATASETS[self.name].default_block
        if default is None:
            if self.block is not None:
                yield "block", f"{self.name} holds single objects, of which no blocks are drawn; remove it"
            return
        if self.few_shot is not None:
            yield "few_shot", f"the clouds of {self.name} have no classes to draw from; remove it"
        if self.train_size is not None and (self.block or default) != "whole":
            yield "train_size", f"{self.name} draws blocks of all its scenes in every epoch; remove it"

    def _foreign_keys(self) -> Iterator[tuple[str, str]]:
        if DATASETS[self.name].modality == "points":
            foreign, others, own = OF_IMAGES, "images", "points"
        else:
            foreign, others, own = OF_CLOUDS, "point clouds", "images"
        for key in foreign:
            if getattr(self, key) is not None:
                yield key, f"belongs to {others}, but {self.name} holds {own}; remove it"
