"""The vocabulary of a study's YAML."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, field_validator

from pointadapterx.config import Document, read_document
from pointadapterx.config.problems import too_few
from pointadapterx.errors import ConfigError, shown
from pointadapterx.registry import did_you_mean
from pointadapterx.schema import Distinct, Many
from pointadapterx.study.comparability import draws_data
from pointadapterx.study.grids import TAGS, Tried
from pointadapterx.study.section import StudySection
from pointadapterx.text import printable


def _dotted(key: str) -> str:
    if "." not in key.strip("."):
        raise ValueError(f"'{key}' is not a config key with a dot, for example train.lr")
    return key


ConfigKey = Annotated[str, AfterValidator(_dotted)]
"""``section.key`` of a run's config; a section as a whole cannot be replaced."""

Overrides = Annotated[dict[ConfigKey, Any], BeforeValidator(lambda value: {} if value is None else value)]
"""Config keys to values, for example ``{train.lr: 1.0e-3}``; nothing after the colon means none."""

Grid = dict[ConfigKey, Tried]
"""Config keys to the values tried; several keys make the grid of all combinations."""

FileName = Annotated[str, Field(pattern=r"^[\w.-]+$")]
"""A name that is also a part of files' names."""

Percentage = Annotated[float, Field(ge=0, le=100)]

PooledBy = Literal["columns", "groups", "objects"]
"""What counts alike in a mean over columns."""

Replicate = int | float | str
Replicates = Annotated[list[Replicate], Field(min_length=1), Distinct]


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


class PublishedRow(StudySection):
    """A row of a published table: ``values`` are accuracies of columns, ``trainable`` is in million, all as printed.

    ``groups`` are printed means of groups without values of every column; ``average`` is the printed one of all.
    """

    source: str
    trainable: float | None = Field(None, ge=0)
    values: dict[str, Percentage] = Field(default={})
    groups: dict[str, Percentage] = Field(default={})
    average: Percentage | None = None


class PublishedConfig(StudySection):
    """Published results; ``conditions`` says in words what they were obtained with."""

    conditions: str
    rows: dict[str, PublishedRow] = Field(min_length=1)

    @property
    def sources(self) -> dict[str, int]:
        """The rows' sources, numbered from 1 in order."""
        return {name: i for i, name in enumerate(dict.fromkeys(row.source for row in self.rows.values()), 1)}


class TableContext(StudySection):
    """What the report adds to a table's results: means of groups of columns, and published rows."""

    groups: dict[str, Annotated[list[str], Field(min_length=1), Distinct]] = Field(default={})
    published: PublishedConfig | None = None

    @property
    def given(self) -> bool:
        """Whether the table has groups of columns or published rows."""
        return bool(self.groups) or self.published is not None

    def problems(self, columns: Collection[str]) -> Iterator[tuple[str, str]]:
        """Key and message of everything that does not fit the table's columns."""
        for group, members in self.groups.items():
            yield from (
                (f"groups.{group}", _unknown("column", name, columns)) for name in members if name not in columns
            )
        for column in columns if self.groups else ():
            having = [group for group, members in self.groups.items() if column in members]
            if len(having) != 1:
                where = "no group; add it to one" if not having else f"groups {' and '.join(having)}; keep one"
                yield "groups", f"column '{column}' is in {where}"
        for label, row in self.published.rows.items() if self.published is not None else ():
            yield from ((f"published.rows.{label}.{key}", message) for key, message in self._row_problems(row, columns))

    def _row_problems(self, row: PublishedRow, columns: Collection[str]) -> Iterator[tuple[str, str]]:
        yield from (("values", _unknown("column", name, columns)) for name in row.values if name not in columns)
        for name in row.groups:
            if name not in self.groups:
                yield "groups", _unknown("group", name, self.groups)
            elif all(column in row.values for column in self.groups[name]):
                yield f"groups.{name}", "is computed from the values of its columns; remove it"
        if not row.values and not row.groups and row.average is None:
            yield "values", "are missing, and so are groups and average; give one of them"


class PooledConfig(StudySection):
    """The mean over a table's columns, with the interval of the difference to the baseline.

    ``by`` says what counts alike: each column, as tasks do in VTAB's mean of tasks; each of the table's groups of
    columns, as in VTAB's printed average; or each test object of all columns.
    """

    label: str
    by: PooledBy = "columns"


class TableConfig(TableContext):
    """Methods (rows) × regimes or data sets (columns); ``baseline`` is the row the others are compared with.

    ``tuning`` are overrides of the runs that tune. With ``test: false`` it only tunes: nothing is reported of the test
    set.
    """

    title: str | None = None
    columns: dict[str, Overrides] = Field(min_length=1)
    rows: dict[str, RowConfig] = Field(min_length=1)
    baseline: str | None = None
    replicate: ReplicateConfig | None = None
    tune: Grid | None = None
    tuning: Overrides = Field(default={})
    test: bool = True
    pooled: PooledConfig | None = None

    @field_validator("pooled", mode="before")
    @classmethod
    def _label(cls, value: Any) -> Any:
        return {"label": value} if isinstance(value, str) else value

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

    ``config`` is relative to the study's file, or a shipped name; ``runs``, ``results`` and ``known`` are relative to
    the working directory. ``known`` are CSVs of earlier studies: runs that have ended there are not trained again.
    """

    title: str
    config: str
    overrides: Overrides = Field(default={})
    runs: str
    results: str
    known: Annotated[list[str], Distinct] = Field(default=[])
    processes: Many = 1
    replicate: ReplicateConfig = ReplicateConfig()
    tune: Grid = Field(default={})
    tables: dict[FileName, TableConfig] = Field(min_length=1)


def check_study(document: Document) -> StudyConfig:
    """The study of a YAML document, with the published rows of the files that it names.

    Raises:
        ConfigError: listing every problem with file, line, key and the way out.
    """
    document = _with_published(document)
    hidden = dict.fromkeys(_hidden_characters(document.content))
    if hidden:
        raise _problems(document, hidden)
    try:
        study = StudyConfig.model_validate(document.content)
    except ValidationError as error:
        problems = dict.fromkeys(describe_problem(detail) for detail in error.errors())
    else:
        problems = dict.fromkeys([*_unknown_names(study), *_context_problems(study)])
        if not problems:
            return study
    raise _problems(document, problems) from None


def _problems(document: Document, problems: Collection[tuple[str, str]]) -> ConfigError:
    lines = [f"  {document.origin(key)}: {key or 'study'}: {message}" for key, message in problems]
    many = "problem" if len(lines) == 1 else "problems"
    return ConfigError("\n".join([f"{document.path}: {len(lines)} {many} in the study", *lines]))


def _hidden_characters(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Names and texts with control characters, which would not come back from the CSV as they are."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield from _hidden_characters(str(name), key)
            yield from _hidden_characters(value, f"{key}.{name}".lstrip("."))
    elif isinstance(content, list):
        for number, value in enumerate(content):
            yield from _hidden_characters(value, f"{key}.{number}")
    elif isinstance(content, str) and printable(content, keep="\n") != content:
        yield key, f"'{content}' holds a control character; remove it"


def _with_published(document: Document) -> Document:
    """The document with published rows in place of the names of their files, which lie beside it."""
    files: dict[str, Document] = {}
    tables = document.content.get("tables")
    for name, table in tables.items() if isinstance(tables, dict) else ():
        if not isinstance(table, dict) or not isinstance(table.get("published"), str):
            continue
        key, path = f"tables.{name}.published", document.path.parent / table["published"]
        if not path.is_file():
            raise ConfigError(
                f"{document.origin(key)}: {key}: {path} does not exist; name a YAML file relative to "
                f"{document.path.name}, or give the rows here"
            )
        files[key] = read_document(path)
        table["published"] = files[key].content

    def origin(key: str) -> str:
        for prefix, file in files.items():
            if key.startswith(f"{prefix}."):
                return file.origin(key.removeprefix(f"{prefix}."))
        return document.origin(key)

    return document._replace(origin=origin)


def describe_problem(detail: Any) -> tuple[str, str]:
    """Key and message of one of pydantic's errors."""
    key = ".".join(str(part) for part in detail["loc"] if part not in ("[key]", *TAGS))
    if detail["type"] == "value_error":
        return key, str(detail["ctx"]["error"])
    if detail["type"] == "missing":
        return key, "is required"
    if detail["type"] == "too_short":
        return key, too_few(detail)
    return key, f"{detail['msg']}, not {shown(detail['input'])}"


def _unknown_names(study: StudyConfig) -> list[tuple[str, str]]:
    """Rows, columns and tables that are referred to but do not exist."""
    problems = []

    def look_up(key: str, kind: str, name: str | None, known: Mapping[str, Any]) -> None:
        if name is not None and name not in known:
            problems.append((key, _unknown(kind, name, known)))

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


def _context_problems(study: StudyConfig) -> Iterator[tuple[str, str]]:
    """Groups and published rows that do not fit their tables."""
    for name, table in study.tables.items():
        yield from ((f"tables.{name}.{key}", message) for key, message in table.problems(table.columns))
        for key in ("groups", "published", "pooled"):
            if not table.test and getattr(table, key):
                yield f"tables.{name}.{key}", "has no results to compare with, as test is false; remove one of both"
        yield from ((f"tables.{name}.pooled{key}", message) for key, message in _pooled_problems(study, table))


def _pooled_problems(study: StudyConfig, table: TableConfig) -> Iterator[tuple[str, str]]:
    """Key, below ``pooled``, and message of what cannot be pooled."""
    if table.pooled is None:
        return
    if len(table.columns) < 2:
        yield "", "has one column to take the mean of; add another, or remove 'pooled'"
    if table.pooled.label in table.columns:
        yield ".label", f"is the name of a column, '{table.pooled.label}'; choose another"
    if table.pooled.by == "groups" and not table.groups:
        yield ".by", "the table has no groups; add them, or choose columns or objects"
    replicate = table.replicate or study.replicate
    if draws_data(replicate.key):
        yield "", f"replicates by {replicate.key} have test objects of their own, column by column; remove 'pooled'"


def _unknown(kind: str, name: str, known: Collection[str]) -> str:
    near = did_you_mean(name, known)
    return f"there is no {kind} '{name}'{near} Known: {', '.join(known) or 'none'}"
