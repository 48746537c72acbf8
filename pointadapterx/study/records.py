"""Results of a study as a tidy CSV: one line for each use of a run in a table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from pointadapterx.engine.run import METRICS_FILE, PREDICTIONS_FILE
from pointadapterx.errors import DataError
from pointadapterx.files import write_text
from pointadapterx.study.plan import Cell, Plan, Run, Values

OUTPUT = "run"
"""Folder of the training's own files inside the folder of a run."""


class Record(BaseModel):
    """One line of the CSV. Percentages, seconds, MiB and bytes; empty where a run does not tell.

    ``tuned`` holds the tuned keys and values as JSON. A ``tune`` line carries nothing of the test set.
    ``correct`` are the test objects in file order as bits, packed into hexadecimal digits, the first object in
    the highest bit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: str
    table: str
    table_title: str
    baseline: str | None = None
    row: str
    label: str
    column: str
    kind: Literal["tune", "final"]
    replicate_key: str
    replicate: str
    status: Literal["finished", "failed", "missing"]
    error: str | None = None
    run: str | None = None
    method: str | None = None
    data: str | None = None
    regime: str | None = None
    protocol: str | None = None
    test_checksum: str | None = None
    tuned: str
    chosen: bool | None = None
    overall_accuracy: float | None = None
    mean_class_accuracy: float | None = None
    best_val: float | None = None
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
    test_objects: int | None = None
    correct: str | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return None if value == "" else value

    @property
    def tuned_values(self) -> Values:
        """Tuned config keys to values."""
        return json.loads(self.tuned)

    @property
    def correctness(self) -> np.ndarray:
        """(n,) bool: which test objects are classified correctly."""
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(self.correct or ""), dtype=np.uint8))
        return bits[: self.test_objects].astype(bool)


def pack_correctness(correct: np.ndarray) -> str:
    """(n,) bool as hexadecimal digits, the inverse of :attr:`Record.correctness`."""
    return np.packbits(correct).tobytes().hex()


def is_finished(folder: Path) -> bool:
    """Whether the run of this folder needs no further training."""
    return (folder / OUTPUT / METRICS_FILE).is_file()


def validation_score(folder: Path, run: Run) -> float | None:
    """Best validation score of a finished run; None unless it selected by one. The test set is not looked at.

    Raises:
        DataError: if the run's metrics are damaged.
    """
    if run.config.eval.protocol != "validation":
        return None
    key = f"val_{run.config.eval.select}"
    metrics = _read_metrics(folder)
    if key not in metrics:
        raise DataError(f"{folder / OUTPUT / METRICS_FILE}: holds no {key}; delete {folder} to train the run again")
    return metrics[key]


def describe_result(folder: Path, run: Run, *, tested: bool) -> str:
    """A finished run's result in words: of the test set for final runs, else of the validation part."""
    if not tested:
        return f"validation {validation_score(folder, run):.2f}"
    test = _read_metrics(folder)["test"]
    return f"OA {test['overall_accuracy']:.2f} mAcc {test['mean_class_accuracy']:.2f}"


def collect(plan: Plan, runs: Path, scores: Mapping[str, float], failures: Mapping[str, str]) -> list[Record]:
    """Every line of the study as things stand.

    Args:
        plan: the study.
        runs: folder of the runs.
        scores: run name to validation score of the finished runs.
        failures: run name to error of the runs that failed.

    Raises:
        DataError: for a damaged file of a run.
    """
    return [record for cell in plan.cells.values() for record in _cell_records(plan, cell, runs, scores, failures)]


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Writes the CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Record.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(record.model_dump() for record in records)
    write_text(path, text.getvalue())


def read_records(path: Path) -> list[Record]:
    """Reads the CSV that :func:`write_records` wrote.

    Raises:
        DataError: if it is missing or not such a file.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}); give the CSV of a study") from None
    records = []
    for number, row in enumerate(rows, start=2):
        try:
            records.append(Record.model_validate(row))
        except ValidationError as error:
            detail = error.errors()[0]
            raise DataError(
                f"{path}: line {number}: {'.'.join(map(str, detail['loc']))}: {detail['msg']}; give a CSV that this "
                "version wrote, or write it again from the runs"
            ) from None
    if not records:
        raise DataError(f"{path}: holds no results; give the CSV of a study")
    return records


def _cell_records(
    plan: Plan, cell: Cell, runs: Path, scores: Mapping[str, float], failures: Mapping[str, str]
) -> Iterator[Record]:
    chosen = plan.chosen(cell, scores)
    table = plan.study.tables[cell.key.table]
    common: dict[str, Any] = {
        "study": plan.study.title,
        "table": cell.key.table,
        "table_title": table.title or cell.key.table,
        "baseline": table.baseline,
        "row": cell.key.row,
        "label": cell.label,
        "column": cell.key.column,
        "replicate_key": cell.replicate.key,
    }
    for candidate, run in plan.tuning_runs(cell):
        yield Record(
            **common,
            kind="tune",
            replicate=str(cell.tuning_replicate),
            tuned=json.dumps(candidate),
            chosen=None if chosen is None else candidate == chosen,
            **_outcome(run, runs, failures, tested=False),
        )
    if chosen is None:
        for value in cell.values:
            yield Record(**common, kind="final", replicate=str(value), tuned="{}", status="missing")
        return
    for value, run in plan.final_runs(cell, chosen):
        outcome = _outcome(run, runs, failures, tested=True)
        yield Record(**common, kind="final", replicate=str(value), tuned=json.dumps(chosen), **outcome)


def _outcome(run: Run, runs: Path, failures: Mapping[str, str], *, tested: bool) -> dict[str, Any]:
    folder = runs / run.name
    if not is_finished(folder):
        error = failures.get(run.name)
        return {"status": "missing" if error is None else "failed", "error": error, "run": run.name}
    metrics = _read_metrics(folder)
    outcome = _costs(metrics) | {
        "status": "finished",
        "run": run.name,
        "method": run.config.method.name,
        "data": " ".join(filter(None, (run.config.data.name, run.config.data.variant))),
        "regime": metrics.get("regime"),
        "protocol": metrics.get("protocol"),
        "best_val": validation_score(folder, run),
        "epochs": run.config.train.epochs,
    }
    if tested:
        outcome |= {
            "overall_accuracy": metrics["test"]["overall_accuracy"],
            "mean_class_accuracy": metrics["test"]["mean_class_accuracy"],
            "test_checksum": metrics["data"]["checksum"],
            **_correctness(folder),
        }
    return outcome


def _costs(metrics: Mapping[str, Any]) -> dict[str, Any]:
    parameters = metrics.get("parameters", {})
    return {
        **{key: parameters.get(key) for key in ("trainable", "trainable_without_head", "percent")},
        **{key: metrics.get(key) for key in ("seconds_per_epoch", "seconds", "peak_memory_mib", "hardware")},
        "checkpoint_bytes": metrics.get("adapter_bytes"),
        "torch": metrics.get("versions", {}).get("torch"),
    }


def _read_metrics(folder: Path) -> dict[str, Any]:
    path = folder / OUTPUT / METRICS_FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error}); delete {folder} to train the run again") from None


def _correctness(folder: Path) -> dict[str, Any]:
    path = folder / OUTPUT / PREDICTIONS_FILE
    try:
        with path.open(newline="", encoding="utf-8") as file:
            correct = np.array([row["correct"] == "1" for row in csv.DictReader(file)])
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error!r}); delete {folder} to train the run again") from None
    return {"test_objects": len(correct), "correct": pack_correctness(correct)}
