"""The vocabulary of a study's YAML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, field_validator, model_validator

from pointadapterx.config import Document
from pointadapterx.errors import ConfigError
from pointadapterx.registry import did_you_mean
from pointadapterx.schema import Distinct, Section


def _dotted(key: str) -> str:
    if "." not in key.strip("."):
        raise ValueError(f"'{key}' is not a config key with a dot, for example train.lr")
    return key


ConfigKey = Annotated[str, AfterValidator(_dotted)]
"""``section.key`` of a run's config; a section as a whole cannot be replaced."""

Overrides = Annotated[dict[ConfigKey, Any], BeforeValidator(lambda value: {} if value is None else value)]
"""Config keys to values, for example ``{train.lr: 1.0e-3}``; nothing after the colon means none."""

Grid = dict[ConfigKey, Annotated[list[Any], Field(min_length=1), Distinct]]
"""Config keys to the values tried; several keys make the grid of all combinations."""

FileName = Annotated[str, Field(pattern=r"^[\w.-]+$")]
"""A name that is also a part of files' names."""

Replicate = int | float | str
Replicates = Annotated[list[Replicate], Field(min_length=1), Distinct]


class StudySection(Section):
    """A part of a study's YAML; nothing after its colon means every default."""

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return {} if values is None else values
        known = list(cls.model_fields)
        unknown = [f"'{key}'{did_you_mean(str(key), known)}" for key in values if key not in known]
        if unknown:
            raise ValueError(f"unknown key {', '.join(unknown)} Known: {', '.join(known)}")
        return values


class ReplicateConfig(StudySection):
    """What is repeated: ``key`` takes each of ``values``.

    Tuning runs take ``tuning``, one value or several over which a candidate's score is averaged; by default the first.
    """

    key: ConfigKey = "train.seed"
    values: Replicates = Field(default=[0, 1, 2])
    tuning: Replicate | Replicates | None = None


class LikeConfig(StudySection):
    """A row that is inherited from; by default of the same table and column."""

    row: str
    table: str | None = None
    column: str | None = None


class RowConfig(StudySection):
    """A method: a row of every column.

    ``like`` inherits another row's overrides and tuned values. ``tune`` replaces the grid of the table; ``{}``
    tunes nothing. ``replicates`` replaces the values of the table.
    """

    label: str | None = None
    overrides: Overrides = Field(default={})
    tune: Grid | None = None
    replicates: Replicates | None = None
    like: LikeConfig | None = None

    @field_validator("like", mode="before")
    @classmethod
    def _row_name(cls, value: Any) -> Any:
        return {"row": value} if isinstance(value, str) else value


class TableConfig(StudySection):
    """Methods (rows) × regimes or data sets (columns); ``baseline`` is the row the others are compared with.

    With ``test: false`` it only tunes: nothing is reported of the test set.
    """

    title: str | None = None
    columns: dict[str, Overrides] = Field(min_length=1)
    rows: dict[str, RowConfig] = Field(min_length=1)
    baseline: str | None = None
    replicate: ReplicateConfig | None = None
    tune: Grid | None = None
    test: bool = True

    @field_validator("rows")
    @classmethod
    def _different_labels(cls, rows: dict[str, RowConfig]) -> dict[str, RowConfig]:
        first: dict[str, str] = {}
        for name, row in rows.items():
            label = row.label or name
            if first.setdefault(label, name) != name:
                raise ValueError(f"rows '{first[label]}' and '{name}' are both called '{label}'; change one label")
        return rows


class StudyConfig(StudySection):
    """A study. ``replicate`` and ``tune`` are the defaults of its tables.

    ``config`` is relative to the study's file, or a shipped name; ``runs`` and ``results`` are relative to the
    working directory.
    """

    title: str
    config: str
    overrides: Overrides = Field(default={})
    runs: str
    results: str
    processes: int = Field(1, ge=1)
    replicate: ReplicateConfig = ReplicateConfig()
    tune: Grid = Field(default={})
    tables: dict[FileName, TableConfig] = Field(min_length=1)


def check_study(document: Document) -> StudyConfig:
    """The study of a YAML document.

    Raises:
        ConfigError: listing every problem with file, line, key and the way out.
    """
    try:
        study = StudyConfig.model_validate(document.content)
    except ValidationError as error:
        problems = dict.fromkeys(_describe(detail) for detail in error.errors())
    else:
        problems = dict.fromkeys(_unknown_names(study))
        if not problems:
            return study
    lines = [f"  {document.origin(key)}: {key or 'study'}: {message}" for key, message in problems]
    many = "problem" if len(lines) == 1 else "problems"
    raise ConfigError("\n".join([f"{document.path}: {len(lines)} {many} in the study", *lines])) from None


def _describe(detail: Any) -> tuple[str, str]:
    key = ".".join(str(part) for part in detail["loc"] if part != "[key]")
    if detail["type"] == "value_error":
        return key, str(detail["ctx"]["error"])
    if detail["type"] == "missing":
        return key, "is required"
    return key, f"{detail['msg']}, not {detail['input']!r}"


def _unknown_names(study: StudyConfig) -> list[tuple[str, str]]:
    """Rows, columns and tables that are referred to but do not exist."""
    problems = []

    def look_up(key: str, kind: str, name: str | None, known: Mapping[str, Any]) -> None:
        if name is not None and name not in known:
            near = did_you_mean(name, list(known)) or ";"
            problems.append((key, f"there is no {kind} '{name}'{near} Known: {', '.join(known)}"))

    for table_name, table in study.tables.items():
        key = f"tables.{table_name}"
        look_up(f"{key}.baseline", "row", table.baseline, table.rows)
        for row_name, row in table.rows.items():
            if row.like is None:
                continue
            here = f"{key}.rows.{row_name}.like"
            look_up(here, "table", row.like.table, study.tables)
            source = study.tables.get(row.like.table or table_name)
            if source is not None:
                look_up(here, "row", row.like.row, source.rows)
                for column in [row.like.column] if row.like.column is not None else table.columns:
                    look_up(here, "column", column, source.columns)
    return problems
