"""The answers to a listing, each where it belongs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pointadapterx.datasets.h5 import SUFFIXES
from pointadapterx.engine.input_form import Failure
from pointadapterx.engine.predictor import Predictor
from pointadapterx.errors import DataError, PointAdapterXError
from pointadapterx.predicting.answer_files import Sink
from pointadapterx.tasks import Task
from pointadapterx.tasks.exchange import Answer
from pointadapterx.tasks.point_labels import PointLabels
from pointadapterx.tasks.point_scores import FileScores, Scored


@dataclass
class Tally:
    """What went wrong.

    Attributes:
        failures: inputs that could not be predicted or written.
        unscored: those that could not be compared with their labels.
    """

    failures: list[Failure] = field(default_factory=list)
    unscored: list[Failure] = field(default_factory=list)


@dataclass(frozen=True)
class EachFile:
    """A file for each answer.

    Attributes:
        suffix: of all of them.
        targets: input and adapter to the file.
    """

    suffix: str
    targets: Mapping[tuple[str, str], Path]

    def write(self, found: Answer, tasks: Mapping[str, Task]) -> None:
        """Writes that of an answer.

        Raises:
            PointAdapterXError: if it cannot be written.
        """
        tasks[found.adapter].write_file(found, self.targets[found.name, found.adapter], self.suffix)

    def of(self, names: Sequence[str]) -> EachFile:
        """Those of some inputs alone."""
        return EachFile(self.suffix, {key: path for name in names for key, path in self._of_each.get(name, ())})

    @cached_property
    def _of_each(self) -> dict[str, list[tuple[tuple[str, str], Path]]]:
        """Targets of each input."""
        found: dict[str, list[tuple[tuple[str, str], Path]]] = {}
        for key, path in self.targets.items():
            found.setdefault(key[0], []).append((key, path))
        return found


def answer_all(
    answers: Iterable[Answer | Failure],
    tasks: Mapping[str, Task],
    write: Sink,
    each: EachFile | None = None,
    scores: Mapping[str, FileScores] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Tally:
    """Takes answers about files to where they go, in their order.

    Args:
        answers: of a predictor.
        tasks: of its adapters.
        write: takes every answer and failure.
        each: where the files of single answers go.
        scores: what compares answers with labels in the files, by adapter.
        advance: called behind every file.
    """
    tally, last = Tally(), None
    for found in answers:
        shown: Answer | Failure = found
        if isinstance(found, Failure):
            tally.failures.append(found)
        else:
            try:
                if each is not None:
                    each.write(found, tasks)
            except PointAdapterXError as error:
                tally.failures.append(Failure(found.name, str(error)))
                found.warnings.append(f"no file of its own: {error}")
            if scores:
                shown = _scored(found, scores[found.adapter], tally.unscored)
        write(shown)
        if found.name != last:
            advance()
        last = found.name
    return tally


def _scored(found: Answer, scores: FileScores, failures: list[Failure]) -> Answer:
    """An answer with its scores; what cannot be compared is a failure, and the answer says so."""
    assert isinstance(found, PointLabels)
    try:
        return scores.scored(found)
    except DataError as error:
        failures.append(Failure(found.name, str(error)))
        found.warnings.append(f"not scored: {error}")
        return Scored(found, None)


def scores_by(predictor: Predictor[Answer], field: str | int | None) -> dict[str, FileScores]:
    """What compares the answers of each adapter with labels in the files; without those whose task gives none.

    Args:
        predictor: that answers.
        field: with these labels; None: as the adapter has it.
    """
    found = {name: task.scoring(field, predictor.reading) for name, task in predictor.tasks.items()}
    return {name: score for name, score in found.items() if score is not None}


def file_of(name: str) -> tuple[str, str]:
    """The file of an input, and which of its clouds it is: ``("scans/all.h5", "#3")``, or nothing."""
    path, mark, number = name.rpartition("#")
    if mark and number.isdigit() and Path(path).suffix.lower() in SUFFIXES:
        return path, f"#{number}"
    return name, ""
