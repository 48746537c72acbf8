"""What may stand in one column: results of one augmentation regime, selection protocol and test set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from pointadapterx.errors import ConfigError


class Conditions(NamedTuple):
    """Of one result; ``replicate`` is empty unless replicates have test sets of their own, as few-shot folds do."""

    table: str
    column: str
    row: str
    replicate: str
    regime: str
    protocol: str
    test_set: str


def check_columns(results: Iterable[Conditions]) -> None:
    """Refuses columns that mix what cannot be compared.

    Raises:
        ConfigError: naming both conditions and the rows they come from.
    """
    first_seen: dict[tuple[str, ...], Conditions] = {}
    for result in results:
        for what, place in (
            ("regime", (result.table, result.column)),
            ("protocol", (result.table, result.column)),
            ("test_set", (result.table, result.column, result.replicate)),
        ):
            first = first_seen.setdefault((what, *place), result)
            ours, theirs = getattr(result, what), getattr(first, what)
            if ours != theirs:
                raise ConfigError(
                    f"table '{result.table}', column '{result.column}': {what.replace('_', ' ')} '{theirs}' (row "
                    f"'{first.row}') and '{ours}' (row '{result.row}') cannot be compared; give each its own column"
                )
