"""Plans the runs of a study from its YAML: cells of tables, tuning grids, and the config of each run."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from pointadapterx.config import ORDER, Config, parse_value, read_config, read_document
from pointadapterx.datasets.inputs import regime
from pointadapterx.errors import ConfigError, DataError
from pointadapterx.registry import did_you_mean
from pointadapterx.study.comparability import Conditions, check_columns, draws_data, selection_words, test_words
from pointadapterx.study.grids import Values, next_candidate, reach, starts
from pointadapterx.study.identity import check_splits, outlines, run_name
from pointadapterx.study.schema import Grid, Replicate, ReplicateConfig, StudyConfig, check_study
from pointadapterx.tasks import TASKS


class Run(NamedTuple):
    """One training: its folder's name and its complete config."""

    name: str
    config: Config


class CellKey(NamedTuple):
    """The place of a cell."""

    table: str
    row: str
    column: str


@dataclass(frozen=True)
class Cell:
    """One method under one column's conditions.

    Attributes:
        key: its place.
        label: of the row.
        overrides: of study, column and row.
        replicate: what is repeated.
        values: of the replicate key in final runs, of which a table without a test has none.
        tuning: overrides of tuning runs.
        grid: values tried on the validation part; empty: none.
        tuned_by: cell whose chosen values this one takes; itself if it has a grid; None: nothing is tuned.
    """

    key: CellKey
    label: str
    overrides: Values
    replicate: ReplicateConfig
    values: Sequence[Replicate]
    tuning: Values
    grid: Grid
    tuned_by: CellKey | None

    @property
    def candidates(self) -> list[Values]:
        """Every combination of the grid's values, with which an open one starts."""
        return starts(self.grid)

    @property
    def tuning_replicates(self) -> Sequence[Replicate]:
        """Values of the replicate key in tuning runs."""
        tuning = self.replicate.tuning
        if tuning is None:
            return self.replicate.values[:1]
        return tuning if isinstance(tuning, list) else [tuning]


class Use(NamedTuple):
    """What a run is for: to tune a cell, or as a result (``final``) of it."""

    run: Run
    cell: Cell
    final: bool
    values: Values

    def __str__(self) -> str:
        kind = "final" if self.final else "tuning"
        return (
            f"{self.cell.key.table} · {self.cell.label} · {self.cell.key.column} · {kind} {format_values(self.values)}"
        )


class Plan:
    """The cells of a study and the runs they need.

    Args:
        study: checked study.
        base: path or shipped name of the config under every run.

    Raises:
        PointAdapterXError: for a config that is wrong, tuning without a validation part, or a column of
            conditions that cannot be compared.
    """

    def __init__(self, study: StudyConfig, base: str | Path) -> None:
        self.study = study
        self.cells: dict[CellKey, Cell] = {}
        for table_name, table in study.tables.items():
            for row, column in itertools.product(table.rows, table.columns):
                key = CellKey(table_name, row, column)
                self.cells[key] = _cell(study, key)
        self._base = base
        self._runs: dict[tuple[str, ...], Run] = {}
        self._check()

    def tuning_runs(
        self, cell: Cell, scores: Mapping[str, float] | None = None
    ) -> list[tuple[Values, list[tuple[Replicate, Run]]]]:
        """Each candidate of the cell's grid with its runs, one a tuning replicate.

        Args:
            cell: any cell.
            scores: as in :meth:`chosen`; what they say decides how far an open grid goes.
        """
        found = [(candidate, self._tuning_runs(cell, candidate)) for candidate in cell.candidates]
        while (means := _means(found, scores or {})) and (best := max(means)) != -math.inf:
            tried = [candidate for candidate, _ in found]
            candidate = next_candidate(cell.grid, tried, tried[means.index(best)])
            if candidate is None:
                break
            found.append((candidate, self._tuning_runs(cell, candidate)))
        return found

    def final_runs(self, cell: Cell, chosen: Values) -> list[tuple[Replicate, Run]]:
        """Each replicate of the cell and its run with the chosen values."""
        return self._runs_of(cell, chosen, cell.values)

    def chosen(self, cell: Cell, scores: Mapping[str, float]) -> Values | None:
        """The candidate with the best mean validation score, the first of equals.

        Args:
            cell: any cell.
            scores: run name to validation score, higher for the better, of the finished runs; ``-inf`` where a run
                diverged.

        Returns:
            Its values; None until all are known, or if every candidate diverged.
        """
        if cell.tuned_by is None:
            return {}
        candidates = self.tuning_runs(self.cells[cell.tuned_by], scores)
        means = _means(candidates, scores)
        best = max(means, default=-math.inf)
        return None if best == -math.inf else candidates[means.index(best)][0]

    def due(self, scores: Mapping[str, float]) -> tuple[dict[str, Use], int]:
        """Runs that are known to be needed, finished or not, and how many more will be once all is tuned.

        Table by table: what tunes, then one replicate of every cell after the other, so that a study that was stopped
        has whole tables of fewer replicates.

        Args:
            scores: as in :meth:`chosen`.

        Returns:
            Run name to the run's first use, or first final one; the number of final runs without a choice yet.
        """
        uses: dict[str, Use] = {}
        undecided = 0
        for _, group in itertools.groupby(self.cells.values(), lambda cell: cell.key.table):
            cells = list(group)
            for cell in cells:
                for candidate, runs in self.tuning_runs(cell, scores):
                    for value, run in runs:
                        uses.setdefault(run.name, Use(run, cell, False, {**candidate, cell.replicate.key: value}))
            finals = []
            for cell in cells:
                chosen = self.chosen(cell, scores)
                if chosen is None:
                    reused = cell.tuning_replicates if cell.grid and not cell.tuning else ()
                    undecided += sum(value not in reused for value in cell.values)
                    continue
                runs = self.final_runs(cell, chosen)
                finals.append([Use(run, cell, True, {**chosen, cell.replicate.key: value}) for value, run in runs])
            for turn in itertools.zip_longest(*finals):  # the first replicate of every cell, then the second
                for use in filter(None, turn):
                    if not (use.run.name in uses and uses[use.run.name].final):
                        uses[use.run.name] = use  # a run that tunes keeps its place
        return uses, undecided

    def _tuning_runs(self, cell: Cell, candidate: Values) -> list[tuple[Replicate, Run]]:
        return self._runs_of(cell, {**cell.tuning, **candidate}, cell.tuning_replicates)

    def _runs_of(self, cell: Cell, tuned: Values, replicates: Sequence[Replicate]) -> list[tuple[Replicate, Run]]:
        return [(value, self._run(cell, tuned, value)) for value in replicates]

    def _run(self, cell: Cell, tuned: Values, replicate: Replicate) -> Run:
        overrides = {**cell.overrides, **tuned, cell.replicate.key: replicate}
        texts = tuple(f"{key}={json.dumps(value, default=str)}" for key, value in overrides.items())
        if texts not in self._runs:
            config = read_config(self._base, texts)
            if not TASKS[config.task.name].adapts:
                raise ConfigError(f"{self._base}: pre-trains; a study compares adaptations, remove 'pretrain'")
            if config.train.precision == "auto":  # which is each machine's own choice
                config = config.replaced(train={"precision": "fp32"})
            check_splits(config)
            self._runs[texts] = Run(run_name(config), config)
        return self._runs[texts]

    def _check(self) -> None:
        """Builds every config that may be needed before anything is trained."""
        conditions = []
        for cell in self.cells.values():
            try:
                candidates = [*cell.candidates, *reach(cell.grid)]
                for run in (run for candidate in candidates for _, run in self._tuning_runs(cell, candidate)):
                    if run.config.eval.protocol != "validation":
                        raise ConfigError(
                            f"tuning needs a validation part, but eval.protocol={run.config.eval.protocol}; set it for "
                            "these runs (the table's 'tuning: {eval.protocol: validation}'), take the values of "
                            "another row ('like') or tune nothing ('tune: {}')"
                        )
                chosen = {} if cell.tuned_by is None else self.cells[cell.tuned_by].candidates[0]
                conditions += [_conditions(cell, value, run.config) for value, run in self.final_runs(cell, chosen)]
            except (ConfigError, DataError) as error:
                place = f"table '{cell.key.table}', row '{cell.key.row}', column '{cell.key.column}'"
                raise type(error)(f"{place}: {error}") from None
        check_columns(conditions)
        for name, table in self.study.tables.items():
            tasks = dict.fromkeys(found.task for found in conditions if found.table == name)
            if table.pooled is not None and len(tasks) > 1:
                raise ConfigError(
                    f"table '{name}': columns of {' and '.join(tasks)} have no common score to pool; remove 'pooled'"
                )


def _means(
    candidates: Sequence[tuple[Values, Sequence[tuple[Replicate, Run]]]], scores: Mapping[str, float]
) -> list[float]:
    """Mean validation score of each candidate; empty until all are known."""
    if any(run.name not in scores for _, runs in candidates for _, run in runs):
        return []
    return [fmean(scores[run.name] for _, run in runs) for _, runs in candidates]


def read_plan(path: str | Path, overrides: Sequence[str] = ()) -> Plan:
    """The plan of a study's YAML.

    Args:
        path: YAML file, or the name of a shipped one.
        overrides: ``processes=2``, ``runs=...``, ``results=...``, ``known=[...]`` or ``title=...`` replaces that key
            of the study; ``train.epochs=1`` is added to the study's ``overrides``.

    Raises:
        PointAdapterXError: as :class:`Plan`; for a study that is wrong, a :class:`ConfigError` with every problem.
    """
    document = read_document(path)
    for text in overrides:
        _override(document.content, text)
    study = check_study(document)
    beside = document.path.parent / study.config
    return Plan(study, beside if beside.is_file() else study.config)


def _override(content: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    replaceable = ("title", "runs", "results", "known", "processes")
    section, dot, _ = key.partition(".")
    if not equals or (key not in replaceable and not (dot and section in ORDER)):
        near = did_you_mean(key, replaceable)
        raise ConfigError(
            f"override '{text}' is not of the form key=value with a config key (train.epochs=1) or a key of the "
            f"study{near} Known: {', '.join(replaceable)}"
        )
    parsed = parse_value(value)
    if key in replaceable:
        content[key] = parsed
    else:
        content["overrides"] = {**(content.get("overrides") or {}), key: parsed}


def _cell(study: StudyConfig, key: CellKey) -> Cell:
    table = study.tables[key.table]
    row = table.rows[key.row]
    replicate = table.replicate or study.replicate
    ancestry = list(_ancestry(study, key))
    tuned_by = next((k for k in ancestry if _grid(study, k) is not None), None)
    tuned = (_grid(study, tuned_by) if tuned_by is not None else None) or {}
    of_row = _row_overrides(study, ancestry)
    for where, overrides in (("overrides set", of_row), ("the table's tuning sets", table.tuning)):
        for name in (replicate.key, *tuned):
            if name in overrides:
                what = "tuned" if name in tuned else "repeated"
                raise ConfigError(
                    f"table '{key.table}', row '{key.row}': {where} {name}, which is {what}; remove it there, or "
                    "say 'tune: {}'"
                )
    grid = _grid(study, key) or {}
    if not table.test and not grid:
        raise ConfigError(
            f"table '{key.table}', row '{key.row}': nothing is left to do, as test is false and nothing is tuned; set "
            "'tune' or 'test: true'"
        )
    return Cell(
        key=key,
        label=row.label or key.row,
        overrides={**study.overrides, **table.columns[key.column], **of_row},
        replicate=replicate,
        values=(row.replicates or replicate.values) if table.test else [],
        tuning=table.tuning,
        grid=grid,
        tuned_by=tuned_by if tuned else None,
    )


def _grid(study: StudyConfig, key: CellKey) -> Grid | None:
    """What a row tunes: its own grid or the default one; None where it inherits the values of another row."""
    table = study.tables[key.table]
    row = table.rows[key.row]
    if row.tune is not None or row.like is not None:
        return row.tune
    return table.tune if table.tune is not None else study.tune


def _ancestry(study: StudyConfig, key: CellKey) -> Iterator[CellKey]:
    """The cell, the one it is like, the one that is like, ..."""
    seen: list[CellKey] = []
    while True:
        if key in seen:
            raise ConfigError(
                f"table '{key.table}': rows are like each other: {' -> '.join(k.row for k in [*seen, key])}"
            )
        seen.append(key)
        yield key
        like = study.tables[key.table].rows[key.row].like
        if like is None:
            return
        key = CellKey(like.table or key.table, like.row, like.column or key.column)


def _row_overrides(study: StudyConfig, ancestry: Sequence[CellKey]) -> Values:
    merged: Values = {}
    for key in reversed(ancestry):
        merged |= study.tables[key.table].rows[key.row].overrides
    return merged


def _conditions(cell: Cell, replicate: Replicate, config: Config) -> Conditions:
    data = config.data
    fold = "" if data.few_shot is None else f"fold {data.few_shot.fold}"
    return Conditions(
        table=cell.key.table,
        column=cell.key.column,
        row=cell.key.row,
        replicate=str(replicate) if draws_data(cell.replicate.key) else "",
        regime=regime(data),
        protocol=config.eval.protocol,
        selection=selection_words(config, cell.replicate.key),
        test_set=" ".join(filter(None, (test_words(config), fold, outlines(data)[1].checksum[:12]))),
        task=config.task.name,
    )


def format_values(values: Mapping[str, Any]) -> str:
    """Config keys and values as text, such as ``train.lr=0.001 train.seed=0``."""
    return " ".join(f"{key}={value}" for key, value in values.items())
