"""The folder of a run: the names of its files, and reading what is plain text among them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from pointadapterx.errors import CheckpointError

CONFIG_FILE = "config.yaml"
"""The complete config."""
STATE_FILE = "state.safetensors"
"""All that an unfinished run needs to continue."""
HISTORY_FILE = "history.json"
"""One record per finished epoch."""
METRICS_FILE = "metrics.json"
"""The report of a finished run."""
TEST_FILE = "test.json"
"""The report of a later test."""
ADAPTER_FILE = "adapter.safetensors"
"""The kept epoch's adapter; the same name in a repository of the hub."""
WEIGHTS_FILE = "weights.safetensors"
"""The last backbone of a pre-training run."""
BEST_WEIGHTS_FILE = "weights_best.safetensors"
"""Its backbone where the probe was best."""
PREDICTIONS_FILE = "predictions.csv"
"""What the model answers on the test set."""
SAMPLE_SCORES_FILE = "sample_scores.csv"
"""The score of each test sample, of a task that has such and does not classify."""
SAMPLE_RECORDS_FILE = "sample_records.csv"
"""What of each test sample adds up to the scores, of a task that has such."""
VOTE_PREDICTIONS_FILE = f"vote_{PREDICTIONS_FILE}"
LOG_FILE = "log.txt"
EVENTS_FOLDER = "tensorboard"
DRAWINGS_FOLDER = "reconstructions"
REPORT_FILE = "report.html"
SEARCH_FILE = "search.json"
"""Scores of the architectures that a search has evaluated."""
ARCHITECTURE_FILE = "architecture.yaml"
"""Its best architecture, a config to train."""
LOCK_FILE = ".lock"
"""There while a process writes into the folder."""


def new_folder(name: str) -> Path:
    """Where a run goes by default: ``runs/<name>/<time>``, beside ``runs/<name>`` where that is a run itself."""
    base, now = Path("runs") / name, time.strftime("%Y%m%d-%H%M%S")
    return base.with_name(f"{name}-{now}") if (base / CONFIG_FILE).exists() else base / now


def can_resume(folder: Path) -> bool:
    """Whether the folder holds a run with a state to continue from."""
    return (folder / STATE_FILE).is_file() and (folder / CONFIG_FILE).is_file()


def is_finished(folder: Path) -> bool:
    """Whether the folder's run has written its report."""
    return (folder / METRICS_FILE).is_file()


def read_metrics(folder: Path) -> dict[str, Any]:
    """The report of a finished run.

    Raises:
        CheckpointError: if it cannot be read, or is no JSON object.
    """
    content = _read_json(folder / METRICS_FILE)
    if not isinstance(content, dict):
        raise not_of_a_run(folder / METRICS_FILE)
    return content


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's epochs, each with ``epoch`` and ``train_loss``.

    Raises:
        CheckpointError: if they cannot be read, or are something else.
    """
    content = _read_json(folder / HISTORY_FILE)
    if not isinstance(content, list) or not all(map(_is_record, content)):
        raise not_of_a_run(folder / HISTORY_FILE)
    return content


def _is_record(record: Any) -> bool:
    return isinstance(record, dict) and all(isinstance(record.get(key), int | float) for key in ("epoch", "train_loss"))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: is not JSON; restore it or move it away") from None


def not_of_a_run(path: Path) -> CheckpointError:
    """The error for a file with other content."""
    return CheckpointError(f"{path}: is not of a finished run; restore it or move it away")
