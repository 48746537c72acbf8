"""Results of a study as a tidy CSV: one line for each use of a run in a table."""

from __future__ import annotations

import csv
import io
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pointadapterx.errors import DataError, reason_of
from pointadapterx.files import write_text
from pointadapterx.registry import unknown_name
from pointadapterx.study.grids import Values
from pointadapterx.study.packing import (
    LARGEST_FIELD,
    pack_correctness,
    pack_groups,
    unpack_correctness,
    unpack_groups,
    unpack_records,
    unpack_scores,
)
from pointadapterx.study.resampling import Records
from pointadapterx.study.schema import Percentage, PooledConfig
from pointadapterx.tasks import TASKS
from pointadapterx.tasks.exchange import Score
from pointadapterx.text import guarded, unguarded

UNNAMED = "classification"
"""The task of a line that names none, as all did before there were others."""

Known = Mapping[tuple[str, bool], "Record"]
"""Name of a run, and whether its test result is wanted, to a line of an earlier CSV that has it."""

OF_TASK = ("task", "scores", "sample_scores")
"""Columns of studies with other tasks than classification; left out of a CSV where no line needs them."""

OF_RECORDS = ("sample_records",)
"""Columns of tasks whose scores are no mean over samples; left out of a CSV where no line needs them."""

OF_TABLE = ("pooled", "most")
"""Columns of studies with pooled columns or open grids; each is left out of a CSV where no line needs it."""

OF_TEST_SET = (
    *("overall_accuracy", "mean_class_accuracy", "test_checksum", "test_objects", "groups", "correct"),
    *("scores", "sample_scores", "sample_records"),
)

NEEDED = {
    False: ("overall_accuracy", "mean_class_accuracy", "test_checksum", "test_objects", "correct"),
    True: ("test_checksum", "scores"),
}
"""Of a finished final line; by whether it names its task."""


class Record(BaseModel):
    """One line of the CSV. Percentages, seconds, MiB and bytes; empty where a run does not say.

    ``task`` is empty for classification. Other tasks have their scores in ``scores``, a JSON object by name, instead of
    the accuracies, and in ``sample_scores``, if they have a score of each test object, those in file order as float32,
    packed into hexadecimal digits, instead of ``correct``; or in ``sample_records``, as of :func:`pack_records`, what
    of each test object adds up to the scores.

    ``pooled`` is what the table says of the mean over its columns, as JSON, and ``most``, of a ``tune`` line, the
    largest number of candidates that the row's open grid may come to.

    ``tested`` is false in a table that only tunes. ``tuned`` holds the tuned keys and values as JSON, ``tuned_by`` the
    cell they were taken from, if another. A ``tune`` line carries nothing of the test set. ``train_accuracy`` and the
    routing, as of :func:`~pointadapterx.engine.health.routing_summary`, are the last epoch's. ``correct`` are the test
    objects in file order as bits, packed into hexadecimal digits, the first object in the highest bit. ``groups`` are
    those that are not independent, as of :func:`pack_groups`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    study: str
    table: str
    table_title: str
    baseline: str | None = None
    tested: bool = True
    row: str
    label: str
    column: str
    kind: Literal["tune", "final"]
    replicate_key: str
    replicate: str
    status: Literal["finished", "failed", "diverged", "missing"]
    error: str | None = None
    run: str | None = None
    method: str | None = None
    data: str | None = None
    regime: str | None = None
    protocol: str | None = None
    selection: str | None = None
    test_checksum: str | None = None
    tuned: str
    tuned_by: str | None = None
    chosen: bool | None = None
    overall_accuracy: Percentage | None = None
    mean_class_accuracy: Percentage | None = None
    best_val: float | None = None
    train_accuracy: Percentage | None = None
    routing_min_load: Percentage | None = None
    routing_entropy: Percentage | None = None
    routing_switched: Percentage | None = None
    trainable: int | None = None
    trainable_without_head: int | None = None
    percent: float | None = None
    seconds_per_epoch: float | None = None
    seconds: float | None = None
    peak_memory_mib: float | None = None
    checkpoint_bytes: int | None = None
    epochs: int | None = None
    hardware: str | None = None
    torch: str | None = None
    test_objects: Annotated[int, Field(ge=1)] | None = None
    groups: str | None = None
    correct: str | None = None
    task: str | None = None
    scores: str | None = None
    sample_scores: str | None = None
    sample_records: str | None = None
    pooled: str | None = None
    most: Annotated[int, Field(ge=1)] | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("tuned")
    @classmethod
    def _is_json_object(cls, value: str) -> str:
        try:
            content = json.loads(value)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise ValueError(f"{value!r} is not a JSON object")
        return value

    @field_validator("pooled")
    @classmethod
    def _pools(cls, value: str | None) -> str | None:
        try:
            _ = value is None or PooledConfig.model_validate_json(value)
        except ValidationError as error:
            raise ValueError(f"{value!r} is not what 'pooled' of a table says ({first_problem(error)})") from None
        return value

    @model_validator(mode="after")
    def _is_whole(self) -> Record:
        """What the statistics need is there and agrees."""
        if self.task is not None and self.task not in TASKS:
            raise ValueError(f"task: {unknown_name(self.task, TASKS)}")
        if self.task is None and self.best_val is not None and not 0 <= self.best_val <= 100:
            raise ValueError(f"best_val is {self.best_val}, which is no percentage")
        if self.status != "finished":
            return self
        needed = NEEDED[self.task is not None] if self.kind == "final" else ("best_val",)
        missing = [key for key in needed if getattr(self, key) is None]
        if missing:
            raise ValueError(f"a finished {self.kind} line without {', '.join(missing)}")
        if self.kind == "final":
            if self.task is None:
                self._check_correctness()
            else:
                self._check_scores()
            self._check_groups()
        return self

    def _check_correctness(self) -> None:
        assert self.test_objects is not None
        assert self.overall_accuracy is not None
        try:
            correct = self.correctness
        except ValueError:
            raise ValueError("correct is not of hexadecimal digits") from None
        if pack_correctness(correct) != self.correct or len(correct) != self.test_objects:
            raise ValueError(f"correct does not hold one bit for each of {self.test_objects} test objects")
        accuracy = 100.0 * float(correct.mean())
        if abs(accuracy - self.overall_accuracy) > 1e-6:  # both are float64, of the same counts
            raise ValueError(f"overall_accuracy is {self.overall_accuracy}, but of the bits in correct {accuracy} %")

    def _check_scores(self) -> None:
        """Scores and those of samples, of a task that is named."""
        try:
            values = self.score_values
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"scores is not a JSON object of numbers for {', '.join(self.task_scores)}") from None
        if self.sample_records is not None:
            self._check_records(values)
            return
        if self.sample_scores is None:
            return
        try:
            samples = self.outcomes
        except ValueError:
            samples = None
        if not isinstance(samples, np.ndarray) or len(samples) != self.test_objects or not np.isfinite(samples).all():
            raise ValueError(f"sample_scores does not hold one number for each of {self.test_objects} test objects")
        name, value = next(iter(values.items()))
        if not math.isclose(float(samples.mean()), value, rel_tol=1e-5, abs_tol=1e-6):  # these are float32
            raise ValueError(f"scores says {name} is {value}, but the mean of sample_scores is {samples.mean()}")

    def _check_records(self, values: Mapping[str, float]) -> None:
        """Records of samples, whose sum must have the scores."""
        try:
            found = self.outcomes
            known = found.values if isinstance(found, Records) and np.isfinite(found.rows).all() else None
        except (NotImplementedError, RuntimeError, ValueError, zlib.error):
            known = None
        if known is None:
            raise ValueError(f"sample_records does not hold records of {self.test_objects} test objects")
        for name, value in values.items():
            if not math.isclose(known[name], value, rel_tol=1e-5, abs_tol=1e-6):  # metrics may be of float32
                raise ValueError(f"scores says {name} is {value}, but of sample_records {known[name]}")

    def _check_groups(self) -> None:
        try:
            groups = self.object_groups
        except (ValueError, IndexError):
            groups = np.empty(0)
        if groups is not None and pack_groups([str(number) for number in groups]) != self.groups:
            raise ValueError("groups is not of the form '0 3; 1 2 4', positions of test objects in order")

    @property
    def task_scores(self) -> Mapping[str, Score]:
        """The scores of its task, the one that is compared first."""
        return task_scores(self.task)

    @property
    def score_values(self) -> dict[str, float]:
        """The test set's value of each of :attr:`task_scores`; empty where it was not tested."""
        if self.task is not None:
            found = json.loads(self.scores or "null")
            return {} if found is None else {name: finite(found[name]) for name in self.task_scores}
        values = {name: getattr(self, name) for name in self.task_scores}
        return {} if None in values.values() else values

    @property
    def outcomes(self) -> np.ndarray | Records | None:
        """(n,) bool, which test objects are right, or float64, their scores, or records; None where they have none."""
        if self.task is None:
            return self.correctness
        if self.sample_records is not None:
            return Records(unpack_records(self.sample_records, self.test_objects or 0), TASKS[self.task].scores_of)
        if self.sample_scores is None:
            return None
        return unpack_scores(self.sample_scores)

    @property
    def pooling(self) -> PooledConfig | None:
        """What its table says of the mean over columns."""
        return None if self.pooled is None else PooledConfig.model_validate_json(self.pooled)

    @property
    def tuned_values(self) -> Values:
        """Tuned config keys to values."""
        return json.loads(self.tuned)

    @property
    def correctness(self) -> np.ndarray:
        """(n,) bool: which test objects are classified correctly."""
        return unpack_correctness(self.correct or "", self.test_objects or 0)

    @property
    def object_groups(self) -> np.ndarray | None:
        """(n,) int64, equal for test objects that are not independent; None where all are."""
        if self.groups is None:
            return None
        return unpack_groups(self.groups, self.test_objects or 0)


def finite(value: Any) -> float:
    """A number as it is.

    Raises:
        TypeError, ValueError: for anything else.
    """
    if not math.isfinite(value):
        raise ValueError(f"{value} is not finite")
    return float(value)


def task_scores(task: str | None) -> Mapping[str, Score]:
    """The scores of a task by its name in the CSV, which is empty for classification."""
    return TASKS[task or UNNAMED].scores


def read_known(paths: Iterable[str | Path]) -> Known:
    """The runs that have ended according to the CSVs of earlier studies; of several lines the first counts.

    Raises:
        DataError: as :func:`read_records`.
    """
    known: dict[tuple[str, bool], Record] = {}
    for path in paths:
        for record in read_records(Path(path)):
            if record.run is None or record.status not in ("finished", "diverged"):
                continue
            known.setdefault((record.run, False), record)
            if record.kind == "final" or record.status == "diverged":
                known.setdefault((record.run, True), record)
    return known


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Writes the lines of the CSV atomically."""
    records, text = list(records), io.StringIO()
    unused = set[str]() if any(record.task for record in records) else set(OF_TASK)
    unused |= set() if any(record.sample_records for record in records) else set(OF_RECORDS)
    unused |= {key for key in OF_TABLE if all(getattr(record, key) is None for record in records)}
    names = [name for name in Record.model_fields if name not in unused]
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_each_text(guarded, record.model_dump()) for record in records)
    write_text(path, text.getvalue())


def read_records(path: Path) -> list[Record]:
    """Reads the CSV that :func:`write_records` wrote.

    Raises:
        DataError: if it is missing, not such a file, or damaged.
    """
    records: dict[int, Record] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            csv.field_size_limit(LARGEST_FIELD)
            reader = csv.DictReader(file)
            for row in reader:
                records[reader.line_num] = Record.model_validate(_each_text(unguarded, row))
    except ValidationError as error:
        raise _damaged(path, reader.line_num, first_problem(error)) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({reason_of(error)}); give the CSV of a study") from None
    if not records:
        raise DataError(f"{path}: holds no results; give the CSV of a study")
    for number, problem in _disagreements(records):
        raise _damaged(path, number, problem)
    return list(records.values())


def _each_text(change: Callable[[str], str], row: Mapping[Any, Any]) -> dict[Any, Any]:
    """A line of the CSV with its texts changed."""
    return {key: change(value) if isinstance(value, str) else value for key, value in row.items()}


def _disagreements(records: Mapping[int, Record]) -> Iterator[tuple[int, str]]:
    """Line number and problem of lines that are right by themselves but not together."""
    lines: dict[tuple[str, ...], int] = {}
    test_sets: dict[str, tuple[int, Record]] = {}
    with_results = {record.table for record in records.values() if record.kind == "final"}
    for number, record in records.items():
        tuned = record.tuned if record.kind == "tune" else ""
        use = (record.table, record.row, record.column, record.kind, record.replicate, tuned)
        if lines.setdefault(use, number) != number:
            yield number, f"repeats line {lines[use]}"
        if record.tested != (record.table in with_results):
            have = "no final line, but its tested is true" if record.tested else "final lines, but its tested is false"
            yield number, f"table '{record.table}' has {have}"
        if record.kind == "tune" or record.status != "finished":
            continue
        first_number, first = test_sets.setdefault(record.test_checksum or "", (number, record))
        if record.test_objects != first.test_objects:
            yield number, f"test_objects is {record.test_objects}, but {first.test_objects} in line {first_number}"
        if None not in (record.groups, first.groups) and record.groups != first.groups:
            yield number, f"groups are others than those of line {first_number}, which has the same test set"


def first_problem(error: ValidationError) -> str:
    """Place and message of the first of the problems."""
    detail = error.errors()[0]
    message = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else detail["msg"]
    return ": ".join(filter(None, (".".join(map(str, detail["loc"])), message)))


def _damaged(path: Path, number: int, problem: str) -> DataError:
    return DataError(
        f"{path}: line {number}: {problem}; give a CSV as this version wrote it, or write it again from the runs"
    )
