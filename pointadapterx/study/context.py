"""What the report adds to the results of the CSV, in a file beside it: groups of columns and published rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from pointadapterx.errors import DataError, reason_of
from pointadapterx.files import write_json
from pointadapterx.study.records import Record
from pointadapterx.study.schema import StudyConfig, TableContext, describe_problem

CONTEXT_FILE = "tables.json"


def write_contexts(folder: Path, study: StudyConfig) -> dict[str, TableContext]:
    """Writes the context of each table that has one; returns table name to context.

    Without any there is no file, and that of an earlier version of the study is removed.
    """
    contexts = {
        name: TableContext(groups=table.groups, published=table.published)
        for name, table in study.tables.items()
        if table.given
    }
    path = folder / CONTEXT_FILE
    if contexts:
        write_json(path, {name: context.model_dump() for name, context in contexts.items()})
    else:
        path.unlink(missing_ok=True)
    return contexts


def read_contexts(folder: Path, records: Sequence[Record]) -> dict[str, TableContext]:
    """Reads what :func:`write_contexts` wrote beside a CSV; empty where there is no such file.

    Args:
        folder: of the CSV.
        records: its lines.

    Raises:
        DataError: if the file is damaged or does not fit the CSV.
    """
    path = folder / CONTEXT_FILE
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        contexts = TypeAdapter(dict[str, TableContext]).validate_python(content)
        problems = _problems(contexts, records)
    except ValidationError as error:
        problems = (describe_problem(detail) for detail in error.errors())
    except (OSError, ValueError, RecursionError) as error:
        problems = iter([("", f"cannot be read ({reason_of(error)})")])
    for key, message in problems:
        raise DataError(
            f"{path}: {': '.join(filter(None, (key, message)))}; write it again with the study, or remove it"
        )
    return contexts


def _problems(contexts: Mapping[str, TableContext], records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    for name, context in contexts.items():
        columns = list(dict.fromkeys(r.column for r in records if r.table == name and r.kind == "final"))
        if not columns:
            yield name, "is no table with results in the CSV beside it"
        else:
            yield from ((f"{name}.{key}", message) for key, message in context.problems(columns))
