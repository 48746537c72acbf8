"""Results of the runs of a study, read from their folders: what each line of the CSV says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from pointadapterx import run_folder
from pointadapterx.config import Config
from pointadapterx.engine.health import routing_summary
from pointadapterx.errors import DataError, reason_of
from pointadapterx.run_folder import (
    HISTORY_FILE,
    METRICS_FILE,
    PREDICTIONS_FILE,
    SAMPLE_RECORDS_FILE,
    SAMPLE_SCORES_FILE,
)
from pointadapterx.study.comparability import selection_words, test_words
from pointadapterx.study.grids import most_candidates
from pointadapterx.study.packing import pack_correctness, pack_groups, pack_records, pack_scores
from pointadapterx.study.plan import Cell, Plan, Run
from pointadapterx.study.records import (
    OF_TEST_SET,
    UNNAMED,
    Known,
    Record,
    finite,
    first_problem,
    task_scores,
)
from pointadapterx.study.samples import read_samples
from pointadapterx.tasks import TASKS, build_task
from pointadapterx.text import printable

OUTPUT = "run"
"""Folder of the training's own files inside the folder of a run."""

DIVERGED = "diverged.txt"
"""File in the folder of a run that diverged, with its error."""

_OF_TRAINING = (
    *("status", "error", "run", "task", "regime", "protocol", "best_val", "train_accuracy"),
    *("routing_min_load", "routing_entropy", "routing_switched"),
    *("trainable", "trainable_without_head", "percent", "seconds_per_epoch", "seconds"),
    *("peak_memory_mib", "checkpoint_bytes", "hardware", "torch"),
)


def is_finished(folder: Path) -> bool:
    """Whether the run in this folder is finished."""
    return run_folder.is_finished(folder / OUTPUT)


def divergence(folder: Path) -> str | None:
    """The error of a run that diverged; a run that does so once does so again."""
    path = folder / DIVERGED
    return path.read_text(encoding="utf-8").strip() if path.is_file() and not is_finished(folder) else None


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


def goodness(run: Run, score: float) -> float:
    """A number that is higher for the better of two validation scores of the run's task."""
    return TASKS[run.config.task.name].scores[str(run.config.eval.select)].goodness(score)


def describe_result(folder: Path, run: Run, *, tested: bool) -> str:
    """A finished run's result in words: of the test set for final runs, else of the validation part."""
    if not tested:
        return f"validation {validation_score(folder, run):.2f}"
    try:
        return build_task(run.config).scores_text(_read_metrics(folder)["test"])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise _damaged_run(folder / OUTPUT / METRICS_FILE, folder, repr(error)) from None


def collect(
    plan: Plan, runs: Path, scores: Mapping[str, float], failures: Mapping[str, str], known: Known | None = None
) -> list[Record]:
    """Every line of the study, in its present state.

    Args:
        plan: the study.
        runs: folder of the runs.
        scores: run name to :func:`goodness` of the validation score of the finished runs, ``-inf`` where one diverged.
        failures: run name to error of the runs that failed.
        known: lines of earlier studies, for runs that have not ended in ``runs``.

    Raises:
        DataError: for a damaged file of a run.
    """

    def outcome(cell: Cell, run: Run, *, tested: bool) -> dict[str, Any]:
        folder, line = runs / run.name, (known or {}).get((run.name, tested))
        if line is None or is_finished(folder) or divergence(folder) is not None:
            values = _outcome(run, folder, failures, tested=tested)
        else:
            values = {key: getattr(line, key) for key in (*_OF_TRAINING, *(OF_TEST_SET if tested else ()))}
        return values if values["status"] != "finished" else values | _settings(run, cell.replicate.key)

    return [record for cell in plan.cells.values() for record in _cell_records(plan, cell, runs, scores, outcome)]


def _cell_records(
    plan: Plan, cell: Cell, runs: Path, scores: Mapping[str, float], outcome: Callable[..., dict[str, Any]]
) -> Iterator[Record]:
    chosen = plan.chosen(cell, scores)
    table = plan.study.tables[cell.key.table]
    common: dict[str, Any] = {
        "study": plan.study.title,
        "table": cell.key.table,
        "table_title": table.title or cell.key.table,
        "baseline": table.baseline,
        "tested": table.test,
        "row": cell.key.row,
        "label": cell.label,
        "column": cell.key.column,
        "replicate_key": cell.replicate.key,
        "tuned_by": None if cell.tuned_by in (None, cell.key) else " · ".join(cell.tuned_by),
        "pooled": None if table.pooled is None else table.pooled.model_dump_json(),
    }
    for candidate, of_candidate in plan.tuning_runs(cell, scores):
        for value, run in of_candidate:
            yield _record(
                runs / run.name,
                **common,
                kind="tune",
                replicate=str(value),
                tuned=json.dumps(candidate),
                chosen=None if chosen is None else candidate == chosen,
                most=most_candidates(cell.grid),
                **outcome(cell, run, tested=False),
            )
    if chosen is None:
        for value in cell.values:
            yield Record(**common, kind="final", replicate=str(value), tuned="{}", status="missing")
        return
    for value, run in plan.final_runs(cell, chosen):
        values = outcome(cell, run, tested=True)
        tuned = json.dumps(chosen)
        yield _record(runs / run.name, **common, kind="final", replicate=str(value), tuned=tuned, **values)


def _record(folder: Path, **values: Any) -> Record:
    try:
        return Record(**values)
    except ValidationError as error:
        raise DataError(f"{folder}: damaged ({first_problem(error)}); delete it to train the run again") from None


def _outcome(run: Run, folder: Path, failures: Mapping[str, str], *, tested: bool) -> dict[str, Any]:
    if not is_finished(folder):
        diverged, failed = divergence(folder), failures.get(run.name)
        status = "diverged" if diverged is not None else "failed" if failed is not None else "missing"
        error = printable(diverged or failed or "") or None
        return {"status": status, "error": error, "run": run.name, "task": named_task(run.config)}
    metrics, task = _read_metrics(folder), named_task(run.config)
    outcome = (
        _costs(metrics)
        | _last_epoch(folder)
        | {
            "status": "finished",
            "run": run.name,
            "task": task,
            "regime": metrics.get("regime"),
            "protocol": metrics.get("protocol"),
            "best_val": validation_score(folder, run),
        }
    )
    if tested:
        test = metrics.get("test", {})
        outcome["test_checksum"] = metrics.get("data", {}).get("checksum")
        if task is None:
            outcome |= {key: test.get(key) for key in task_scores(None)} | _test_objects(folder)
        else:
            outcome |= _test_scores(folder, task, test) | _scores_of_samples(folder, test)
    return outcome


def named_task(config: Config) -> str | None:
    """The task of a run as the CSV names it: None for classification."""
    return None if config.task.name == UNNAMED else config.task.name


def _settings(run: Run, replicate_key: str) -> dict[str, Any]:
    """What a line says of the run's config."""
    assert run.config.method is not None
    return {
        "method": run.config.method.name,
        "data": test_words(run.config),
        "selection": selection_words(run.config, replicate_key),
        "epochs": run.config.train.epochs,
    }


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
    metrics = _read_json(path, folder)
    sections = ("test", "data", "parameters", "versions")
    if not isinstance(metrics, dict) or not all(isinstance(metrics.get(key, {}), dict) for key in sections):
        raise _damaged_run(path, folder, "not the metrics of a run")
    return metrics


def _read_json(path: Path, folder: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged_run(path, folder, reason_of(error)) from None


def _damaged_run(path: Path, folder: Path, why: str) -> DataError:
    return DataError(f"{path}: damaged ({why}); delete {folder} to train the run again")


def _last_epoch(folder: Path) -> dict[str, Any]:
    """What the last epoch says of the fit to the training set, and of the routing."""
    path = folder / OUTPUT / HISTORY_FILE
    if not path.is_file():
        return {}
    try:
        record = _read_json(path, folder)[-1]
        return {"train_accuracy": record.get("train_accuracy"), **routing_summary(record)}
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise _damaged_run(path, folder, repr(error)) from None


def _test_objects(folder: Path) -> dict[str, Any]:
    """Which test objects are classified correctly."""
    rows, groups = _rows(folder, PREDICTIONS_FILE, "correct")
    return {"test_objects": len(rows), "groups": groups, "correct": pack_correctness(rows == 1)}


def _test_scores(folder: Path, task: str, test: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of a task that the CSV names."""
    try:
        return {"scores": json.dumps({key: finite(test[key]) for key in task_scores(task)})}
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged_run(folder / OUTPUT / METRICS_FILE, folder, repr(error)) from None


def _scores_of_samples(folder: Path, test: Mapping[str, Any]) -> dict[str, Any]:
    """Records or scores of the test objects, where the task has such."""
    if (folder / OUTPUT / SAMPLE_RECORDS_FILE).is_file():
        rows, groups = _rows(folder, SAMPLE_RECORDS_FILE, None)
        return {"test_objects": len(rows), "groups": groups, "sample_records": pack_records(rows)}
    if not (folder / OUTPUT / SAMPLE_SCORES_FILE).is_file():
        return {"test_objects": test.get("count")}
    rows, groups = _rows(folder, SAMPLE_SCORES_FILE, "score")
    return {"test_objects": len(rows), "groups": groups, "sample_scores": pack_scores(rows)}


def _rows(folder: Path, name: str, column: str | None) -> tuple[np.ndarray, str | None]:
    """Numbers of the test objects in a run's CSV, as of :func:`read_samples`, and groups, as of :func:`pack_groups`."""
    path = folder / OUTPUT / name
    try:
        return _read_rows(path, column, path.stat().st_mtime_ns)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise _damaged_run(path, folder, repr(error)) from None


@cache  # the CSV is written after each run, and predictions of all runs may be millions of lines
def _read_rows(path: Path, column: str | None, changed: int) -> tuple[np.ndarray, str | None]:
    values, groups = read_samples(path, column)
    return values, pack_groups(groups)
