"""Which results may share a column: those of one task, augmentation regime, selection protocol and test set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from pointadapterx.config import Config
from pointadapterx.datasets.options import DataConfig
from pointadapterx.errors import ConfigError
from pointadapterx.study.identity import publishes_validation
from pointadapterx.tasks import build_task

DRAW_KEYS = ("val_fraction", "split_seed")
"""Keys of ``eval`` that decide which samples a drawn validation part holds."""

SELECTION_KEYS = {
    "validation": (*DRAW_KEYS, "select", "every"),
    "last": (),
    "published": ("select", "every"),
}
"""Keys of ``eval`` that decide which epoch is kept, by protocol."""


class Conditions(NamedTuple):
    """Of one result; ``replicate`` is empty unless replicates have test sets of their own, as few-shot folds do."""

    table: str
    column: str
    row: str
    replicate: str
    regime: str
    protocol: str
    selection: str
    test_set: str
    task: str


def draws_data(replicate_key: str) -> bool:
    """Whether replicates have test objects of their own, as few-shot folds do."""
    return replicate_key.startswith("data.")


def selection_words(config: Config, replicate_key: str) -> str:
    """How a run of this config selects its epoch (``eval.select=overall_accuracy ...``), but for what is repeated.

    A validation part that the data set publishes is named as such, since the settings of a draw mean nothing then.
    """
    settings = config.eval
    keys = [key for key in SELECTION_KEYS[settings.protocol] if f"eval.{key}" != replicate_key]
    words = []
    if settings.protocol == "validation" and publishes_validation(config.data):
        keys = [key for key in keys if key not in DRAW_KEYS]
        words = ["published validation part"]
    return " ".join([*words, *(f"eval.{key}={getattr(settings, key)}" for key in keys)])


def task_words(data: DataConfig) -> str:
    """Data set, variant, few-shot task (without the fold) and number of labels of a ``data`` section."""
    words = [data.name, data.variant]
    if data.train_size is not None:
        words.append(f"{data.train_size} training samples")
    if (few_shot := data.few_shot) is not None:
        words.append(f"{few_shot.ways}-way {few_shot.shots}-shot")
        if few_shot.queries is not None:
            words.append(f"{few_shot.queries} queries")
    return " ".join(filter(None, words))


def test_words(config: Config) -> str:
    """The same, with how the test counts, for a task that knows several ways."""
    return ", ".join(filter(None, (task_words(config.data), build_task(config).evaluation)))


def check_columns(results: Iterable[Conditions]) -> None:
    """Refuses columns that mix what cannot be compared.

    Raises:
        ConfigError: naming both conditions and the rows they come from.
    """
    first_seen: dict[tuple[str, ...], Conditions] = {}
    for result in results:
        column = (result.table, result.column)
        for what, place in (
            ("task", column),
            ("regime", column),
            ("protocol", column),
            ("selection", column),
            ("test_set", (*column, result.replicate)),
        ):
            first = first_seen.setdefault((what, *place), result)
            ours, theirs = getattr(result, what), getattr(first, what)
            if ours != theirs:
                raise ConfigError(
                    f"table '{result.table}', column '{result.column}': {what.replace('_', ' ')} '{theirs}' (row "
                    f"'{first.row}') and '{ours}' (row '{result.row}') cannot be compared; give each its own column"
                )
