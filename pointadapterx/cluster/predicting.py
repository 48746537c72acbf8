"""Predictions of a long listing on a cluster: chunk by chunk, each a Ray task.

A task goes to whatever node has room, and Ray starts it again elsewhere if that node dies; a process of a node keeps
its model for the next chunk. What tasks return the command alone writes, each chunk into a file of its own until all
are there, so that nothing is there twice, and the next start goes on where this one was stopped.
"""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from pointadapterx.checkpoints.adapter_file import AdapterInfo
from pointadapterx.cluster.connection import MOST_LOST, nodes, ray, takes_gpus
from pointadapterx.cluster.place import Place, node
from pointadapterx.engine.given import Item
from pointadapterx.engine.input_form import Failure
from pointadapterx.engine.predictor import Predictor
from pointadapterx.engine.seen import Seen
from pointadapterx.engine.signals import stop_requests
from pointadapterx.errors import ConfigError, Interrupted, PointAdapterXError
from pointadapterx.files import write_text
from pointadapterx.hashing import hash_file, hash_json
from pointadapterx.predicting.answer_files import sink
from pointadapterx.predicting.answering import EachFile, Tally, answer_all, file_of, scores_by
from pointadapterx.process_tuning import keep_freed_memory
from pointadapterx.tasks.exchange import Answer
from pointadapterx.tasks.point_scores import FileScores
from pointadapterx.version import __version__

MOST_WAITING = 1000  # tasks that Ray has at a time
WAIT_SECONDS = 0.5
KEY_FILE = "listing.key"  # no kind of file that is predicted


class PredictionInterrupted(Interrupted):
    """A prediction on a cluster was asked to stop.

    Args:
        number: of the signal.
        store: folder of the chunks that are done.
    """

    def __init__(self, number: int, store: Path) -> None:
        name = signal.Signals(number).name
        Exception.__init__(self, f"stopped by {name}: {store} has what is done, the same command continues")
        self.signal_number = number


@dataclass(frozen=True)
class Asked:
    """What is asked about all files; it goes to every process that answers.

    Attributes:
        adapters: by name.
        options: of the predictor.
        suffix: of the output.
        columns: of an answer.
        score: whether answers are compared with labels in the files.
        label_field: with these labels.
        key: the same where all else is the same.
    """

    adapters: Mapping[str, AdapterInfo] = field(compare=False)
    options: Mapping[str, Any] = field(compare=False)
    suffix: str = field(compare=False)
    columns: Sequence[str] = field(compare=False)
    score: bool = field(compare=False)
    label_field: str | int | None = field(compare=False)
    key: str = ""

    def with_key(self) -> Asked:
        """The same with its key, for which the adapters' files are read."""
        condition = self.options["condition"]
        said = hash_file(condition) if isinstance(condition, Path) else getattr(condition, "__name__", condition)
        files = {name: hash_file(info.path) for name, info in self.adapters.items()}
        options = {name: value for name, value in self.options.items() if name != "workers"}
        others = [self.suffix, self.columns, self.score, self.label_field, os.getcwd()]
        return replace(self, key=hash_json([__version__, files, {**options, "condition": said}, others]))


class Chunks:
    """The files of finished chunks, in a folder that goes once the output is whole.

    Args:
        folder: made, if it is not there.
        key: of what is asked, and about which files.

    Raises:
        ConfigError: if the folder is of something else.
        CheckpointError: if it cannot be written.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        mark = folder / KEY_FILE
        if not mark.exists():
            write_text(mark, f"{key}\n")
        elif mark.read_text(encoding="utf-8").strip() != key:
            raise ConfigError(
                f"{folder}: holds results of another listing, adapter or other options; repeat that command to finish "
                "it, remove the folder, or choose another --output"
            )

    def read(self, number: int) -> dict[str, Any] | None:
        """The result of a chunk; None where it is not there."""
        try:
            found: dict[str, Any] = json.loads(self._path(number).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return found

    def write(self, number: int, content: Mapping[str, Any]) -> None:
        """Keeps the result of a chunk, whole or not at all."""
        write_text(self._path(number), json.dumps(content))

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:07d}.json"


def predict(
    asked: Asked,
    files: Sequence[Item],
    each: EachFile | None,
    chunk: int,
    store: Path,
    output: TextIO,
    totals: tuple[Seen, Mapping[str, FileScores]],
    advance: Callable[[], None],
) -> Tally:
    """Answers about all files, in their order, by the cluster that the process is connected to.

    Args:
        asked: what is asked.
        files: as a predictor lists them.
        each: where the files of single answers go.
        chunk: files of one task.
        store: folder for results of chunks, from which the next start goes on.
        output: takes the lines, in order, once all are there.
        totals: what is seen and scored is added there.
        advance: called for every file.

    Raises:
        PredictionInterrupted: after a signal.
        ConfigError: if a node does not see what this machine does, or ``store`` is of something else.
        PointAdapterXError: if a chunk cannot be computed.
    """
    targets = [] if each is None else [str(path) for path in each.targets.values()]
    pieces = [files[start : start + chunk] for start in range(0, len(files), chunk)]
    chunks = Chunks(store, hash_json([asked.key, chunk, list(map(str, files)), targets]))
    with stop_requests("what is done stays") as requests:
        _compute(asked, pieces, each, chunks, requests, advance)
    if requests:
        raise PredictionInterrupted(requests[0], store)
    tally, (seen, scores) = Tally(), totals
    for number in range(len(pieces)):
        found = chunks.read(number)
        assert found is not None
        output.write(found["text"])
        tally.failures += [Failure(*one) for one in found["failures"]]
        tally.unscored += [Failure(*one) for one in found["unscored"]]
        seen.add(found["seen"])
        for name, counts in found["scores"].items():
            scores[name].add(counts)
    return tally


def _compute(
    asked: Asked,
    pieces: Sequence[Sequence[Item]],
    each: EachFile | None,
    chunks: Chunks,
    requests: Sequence[int],
    advance: Callable[[], None],
) -> None:
    """Has every chunk computed that is not there yet, or whose files have changed."""

    def keep(number: int, content: dict[str, Any] | None) -> None:
        if content is not None:
            chunks.write(number, content)
        for _ in pieces[number]:
            advance()

    missing = []
    for number, piece in enumerate(pieces):
        found = chunks.read(number)
        own = None if each is None else each.of([str(file) for file in piece])
        if found is not None and found["state"] == state_of(piece) and _has_files(own, found):
            keep(number, None)
        else:
            missing.append(number)
    gpus = int(takes_gpus(asked.options["device"], nodes()))
    task = ray().remote(num_cpus=1, num_gpus=gpus, max_retries=MOST_LOST)(answer_chunk)
    shared, place, left = ray().put(asked), Place(), iter(missing)
    running: dict[Any, tuple[int, str]] = {}
    while not requests:
        for number in islice(left, MOST_WAITING - len(running)):
            own = each.of([str(file) for file in pieces[number]]) if each is not None else None
            state = state_of(pieces[number])  # here: a node may have a copy of its own
            running[task.remote(shared, pieces[number], own, place)] = number, state
        if not running:
            return
        done, _ = ray().wait(list(running), timeout=WAIT_SECONDS)
        for one in done:
            number, state = running.pop(one)
            keep(number, {**_result(one, pieces[number]), "state": state})


def _has_files(each: EachFile | None, found: Mapping[str, Any]) -> bool:
    """Whether the files of single answers are there, but for those of inputs that failed."""
    failed = {name for name, _ in found["failures"]}
    return each is None or all(name in failed or path.exists() for (name, _), path in each.targets.items())


def _result(task: Any, piece: Sequence[Item]) -> dict[str, Any]:
    """What a task has returned.

    Raises:
        ConfigError: if its node does not see what this machine does.
        PointAdapterXError: if it was lost too often.
    """
    errors = ray().exceptions
    try:
        found: dict[str, Any] | str = ray().get(task)
    except errors.RayTaskError:  # an exception in the task: a fault of the program
        raise
    except errors.RayError:
        raise PointAdapterXError(
            f"{piece[0]} and what follows: lost {MOST_LOST + 1} times with the machine that read it (out of memory?); "
            "leave out what is too large, or take less with --chunk"
        ) from None
    if isinstance(found, str):
        raise ConfigError(found)
    for name in found.pop("unseen"):
        if os.path.exists(file_of(name)[0]):
            raise ConfigError(f"{found['node']}: has no file {name}; files have to be where every node sees them")
    return found


def answer_chunk(asked: Asked, files: Sequence[Item], each: EachFile | None, place: Place) -> dict[str, Any] | str:
    """On a node: the answers about some files, as JSON takes them; a text says why there are none."""
    problem = place.problem()
    if problem is not None:
        return problem
    os.chdir(place.folder)
    try:
        predictor = _predictor(asked)
    except PointAdapterXError as error:
        return f"{node()}: {error}"
    predictor.seen = Seen()
    scores = scores_by(predictor, asked.label_field) if asked.score else {}
    lines = io.StringIO(newline="")
    write = sink(lines, asked.suffix, asked.columns, predictor.top)
    tally = answer_all(predictor.stream(files), predictor.tasks, write, each, scores)
    return {
        "node": node(),
        "text": lines.getvalue(),
        "failures": [(one.name, one.reason) for one in tally.failures],
        "unscored": [(one.name, one.reason) for one in tally.unscored],
        "unseen": [one.name for one in tally.failures if not os.path.exists(file_of(one.name)[0])],
        "seen": predictor.seen.content(),
        "scores": {name: score.counts() for name, score in scores.items()},
    }


@lru_cache(maxsize=1)
def _predictor(asked: Asked) -> Predictor[Answer]:
    """The model of this process, which stays for the next chunk."""
    keep_freed_memory()
    return Predictor[Answer](asked.adapters, **asked.options)


def state_of(files: Sequence[Item]) -> str:
    """Changes when one of the files does."""
    found = []
    for name in dict.fromkeys(file_of(str(file))[0] for file in files):
        try:
            stat = os.stat(name)
            found.append([stat.st_size, stat.st_mtime_ns])
        except (OSError, ValueError):
            found.append([-1, -1])
    return hash_json(found)
