"""Predict the classes of your own files with one or several adapters."""

from __future__ import annotations

import argparse
import csv
import glob
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol, TextIO

from pointadapterx.checkpoints.adapter_file import ADAPTERS
from pointadapterx.checkpoints.shipped import ADAPTERS as ADAPTERS_FOLDER
from pointadapterx.checkpoints.shipped import READY, shipped_adapter
from pointadapterx.commands.conditions import add_condition, condition_of
from pointadapterx.commands.options import UsageError, add_device, add_reading, add_weights, require_positive
from pointadapterx.commands.scoring import add_score, columns_of, scored, scores_of
from pointadapterx.datasets.h5 import SUFFIXES
from pointadapterx.datasets.point_files import KINDS
from pointadapterx.endings import explain
from pointadapterx.engine.console import log_warnings_to, progress_bar
from pointadapterx.engine.given import files_of
from pointadapterx.engine.input_form import Failure
from pointadapterx.engine.predictor import Predictor
from pointadapterx.errors import ConfigError, PointAdapterXError
from pointadapterx.hub import HUB
from pointadapterx.locks import alone
from pointadapterx.run_folder import ADAPTER_FILE, CONFIG_FILE, STATE_FILE
from pointadapterx.tasks import Task
from pointadapterx.tasks.exchange import Answer
from pointadapterx.text import cell, json_line, printable

FAILED = 3  # exit status where some files could not be read
SHOWN = 20
FORMATS = (".csv", ".jsonl")
ADAPTER_SUFFIX = ".safetensors"
EXAMPLES = """\
  %(prog)s scan.ply                                             by the shipped adapter
  %(prog)s runs/demo/<time> scan.ply                            the three likeliest classes
  %(prog)s adapter.safetensors scans/ 'more/*.obj' --output found.csv
  %(prog)s hf://owner/repository scans/
  %(prog)s runs/demo/<time> clouds.h5                           each cloud of a file
  %(prog)s runs/parts/<time> chairs/ --condition chair          where the task has to know the category
  %(prog)s runs/parts/<time> test/ --score                    beside the labels of points in the files
  %(prog)s --adapter parts=a.safetensors --adapter tools=b.safetensors scans/ --output found.jsonl
"""


class Sink(Protocol):
    """Receives predictions and failures one after the other."""

    def __call__(self, found: Answer | Failure) -> None:
        """Writes the line of one prediction or failure."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See :class:`~pointadapterx.commands.main.Module`."""
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="first the adapter (its file, its run's folder or hf://owner/repository), unless --adapter or for the "
        "shipped one; then files, folders and globs",
    )
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="an adapter by name; several on one backbone",
    )
    answers = parser.add_argument_group("answers")
    answers.add_argument("--output", type=Path, metavar="FILE", help="FILE.csv or FILE.jsonl instead of the terminal")
    answers.add_argument("--top", type=int, default=3, help="classes a file")
    answers.add_argument(
        "--each",
        type=Path,
        metavar="DIR",
        help="also a file for each input; only for tasks that write such (classification does not)",
    )
    answers.add_argument(
        "--kind", metavar="SUFFIX", help="of these files; only with --each (default: the first that the task writes)"
    )
    add_score(answers)
    files = parser.add_argument_group("reading files")
    files.add_argument(
        "--up", choices=["x", "y", "z"], help="axis of the files that points up (default: the adapter's)"
    )
    add_reading(files, nan="the adapter's, or drop")
    add_condition(files)
    model = parser.add_argument_group("model")
    add_weights(model)
    add_device(model)
    model.add_argument("--precision", choices=["auto", "fp32", "bf16"], help="default: the adapter's")
    model.add_argument("--batch-size", type=int, metavar="N", help="default: the adapter's eval.batch_size")


def run(options: argparse.Namespace) -> int:
    """Predicts.

    Returns:
        0, or 3 if files could not be read, which are listed; the rest was predicted.
    """
    require_positive(options, "top", "batch_size", "workers")
    if options.output is not None and options.output.suffix.lower() not in FORMATS:
        raise UsageError(f"--output {options.output}: ends in {' or '.join(FORMATS)}")
    log_warnings_to(sys.stderr)
    named = dict(text.partition("=")[::2] for text in options.adapter)
    if not all(named) or not all(named.values()) or len(named) < len(options.adapter):
        raise UsageError("--adapter takes NAME=FILE, each name once")
    adapter, paths = (named, options.paths) if named else _adapter_of(options.paths)
    if not paths:
        raise UsageError(f"nothing to predict: first {ADAPTERS}, then files, folders or globs")
    predictor = Predictor(
        adapter,
        weights=options.weights,
        device=options.device,
        precision=options.precision,
        batch_size=options.batch_size,
        top=options.top,
        up=options.up,
        columns=options.columns,
        nan=options.nan,
        workers=options.workers,
        condition=condition_of(options),
    )
    if not named and isinstance(adapter, dict):
        _introduce(predictor.classes[READY])
    files = predictor.listed(find_files(paths, predictor.suffixes, leave_out=options.output))
    names = list(map(str, files))
    _require_inputs_kept([options.output] if options.output else [], names, "--output")
    write_each = _each_writer(options.each, options.kind, predictor.tasks, names, options.output)
    scores = scores_of(options, predictor)
    failures, unscored = list[Failure](), list[Failure]()
    answers = predictor.stream(files)
    with (
        _writer(options.output, columns_of(predictor, options), options.top, several=len(named) > 1) as write,
        progress_bar("predicting", len(files), 0, options.output is not None) as advance,
    ):
        last = None
        for found in answers:
            shown: Answer | Failure = found
            if isinstance(found, Failure):
                failures.append(found)
            else:
                try:
                    write_each(found)
                except PointAdapterXError as error:
                    failures.append(Failure(found.name, str(error)))
                    found.warnings.append(f"no file of its own: {error}")
                if scores:
                    shown = scored(found, scores[found.adapter], unscored)
            write(shown)
            if found.name != last:
                advance()
            last = found.name
    failed = {failure.name for failure in failures}
    for name in predictor.without_novelty:
        print(f"note: {name}: novelty is not available; the adapter's file does not store it", file=sys.stderr)
    for doubt in predictor.doubts():
        print(printable(f"note: {doubt}"), file=sys.stderr)
    if options.output is not None:
        print(printable(f"written: {options.output}, {len(files) - len(failed)} files predicted"))
    for name, score in scores.items():
        for line in score.lines():
            print(printable(f"[{name}] {line}" if len(scores) > 1 else line))
    written = "" if options.each is None else " or written"
    _say_failures(failures, f"files could not be predicted{written}", len(files))
    _say_failures(unscored, "files could not be scored", len(files))
    return FAILED if failures or unscored else 0


def _say_failures(failures: Sequence[Failure], what: str, files: int) -> None:
    for failure in failures[:SHOWN]:
        print(printable(f"error: {failure.reason}"), file=sys.stderr)
    if failures:
        failed = {failure.name for failure in failures}  # of several adapters each may fail
        more = f", {len(failures) - SHOWN} more in the output" if len(failures) > SHOWN else ""
        print(f"{len(failed)} of {files} {what}{more}", file=sys.stderr)


def _adapter_of(paths: Sequence[str]) -> tuple[str | dict[str, Path], Sequence[str]]:
    """The adapter, and what to predict: the shipped adapter where the first path is no adapter but clouds."""
    first = Path(paths[0])
    if paths[0].startswith(HUB) or shipped_adapter(paths[0]) is not None:
        is_adapter = True
    elif first.is_dir():
        # With more behind it, it is taken for a run in the wrong place: its files may be of anything.
        is_adapter = len(paths) > 1 or any((first / name).exists() for name in (ADAPTER_FILE, STATE_FILE, CONFIG_FILE))
    elif first.exists() or glob.has_magic(paths[0]):
        is_adapter = first.suffix.lower() == ADAPTER_SUFFIX
    else:  # a word that is nothing yet is meant as a run, unless it looks like a cloud
        is_adapter = first.suffix.lower()[1:] not in KINDS
    return (paths[0], paths[1:]) if is_adapter else ({READY: ADAPTERS_FOLDER / f"{READY}{ADAPTER_SUFFIX}"}, paths)


def _introduce(classes: Sequence[str]) -> None:
    """Says which adapter answers, and what it does not know."""
    print(
        f"note: no adapter was given, so {READY} answers, which is shipped and knows {len(classes)} classes of CAD "
        f"parts ({', '.join(classes[:2])}, …) alone; for your own: pointadapterx train FOLDER",
        file=sys.stderr,
    )


def find_files(paths: Sequence[str], suffixes: Sequence[str], *, leave_out: Path | None = None) -> list[str]:
    """Files of the kinds ``suffixes`` in folders and below, files that match globs, and files as they are named.

    In folders the file ``leave_out`` is none of them. A file that does not exist stays in the list, for the reader to
    say so. None is listed twice.

    Raises:
        DataError: for a folder without such a file.
    """
    found: list[str] = []
    for text in paths:
        path = Path(text)
        if path.is_dir():
            found += map(str, files_of(path, suffixes, leave_out=leave_out))
        elif not path.exists() and glob.has_magic(text):
            found += sorted(glob.glob(text, recursive=True)) or [text]
        else:
            found.append(text)
    return list(dict.fromkeys(found))


@contextmanager
def _writer(output: Path | None, columns: Sequence[str], top: int, *, several: bool) -> Iterator[Sink]:
    """Writes to the terminal, or to ``NAME.part``, which is renamed when it is complete."""
    if output is None:
        yield lambda found: _print(found, several)
        return
    part = output.with_name(f"{output.name}.part")
    with ExitStack() as stack:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            lock = output.with_name(f".{output.name}.lock")
            stack.enter_context(alone(lock, output, "wait for it, or choose another --output"))
            file = part.open("w", encoding="utf-8", newline="")
        except OSError as error:
            raise PointAdapterXError(
                f"{output}: cannot be written ({error.strerror}); choose another --output"
            ) from None
        try:
            with file:
                yield _csv_sink(file, columns, top) if output.suffix.lower() == ".csv" else _json_sink(file)
            part.replace(output)
        except OSError as error:
            if explain(error) is None:
                raise
            raise PointAdapterXError(
                f"{output}: cannot be written ({error.strerror}); what was found is in {part}"
            ) from None


def _each_writer(
    folder: Path | None, kind: str | None, tasks: Mapping[str, Task], files: Sequence[str], output: Path | None
) -> Callable[[Answer], None]:
    """Writes a file for each answer into a folder, named like the input, and like the adapter where there are several.

    Inputs of one name from several folders are written into such folders again.

    Raises:
        UsageError: if the task writes no such files, or one would have the name of an input or of the output.
        ConfigError: if two would have one name.
    """
    if folder is None:
        if kind is not None:
            raise UsageError("--kind belongs to --each DIR")
        return lambda found: None
    task = next(iter(tasks.values()))
    name, kinds = task.config.task.name, task.file_kinds
    suffix = f".{kind.removeprefix('.')}" if kind is not None else next(iter(kinds), "")
    if not kinds:
        raise UsageError(f"--each {folder}: the task {name} has one answer a file; use --output FILE.csv")
    if suffix not in kinds:
        raise UsageError(f"--kind {kind}: the task {name} writes {', '.join(kinds)}")
    names = {file: _stem(file) for file in files}
    if len(set(names.values())) < len(names):
        top = os.path.commonpath([Path(file).absolute().parent for file in files])
        names = {file: os.path.join(os.path.relpath(Path(file).absolute().parent, top), _stem(file)) for file in files}
    first: dict[str, str] = {}
    for file, name in names.items():
        if first.setdefault(name, file) != file:
            raise ConfigError(f"--each {folder}: {first[name]} and {file} have one name; predict them apart")

    def target(name: str, adapter: str) -> Path:
        return folder / f"{names[name]}{f'.{adapter}' if len(tasks) > 1 else ''}{suffix}"

    targets = [target(file, adapter) for file in files for adapter in tasks]
    _require_inputs_kept(targets, files, f"--each {folder}")
    if output is not None and output.absolute() in {path.absolute() for path in targets}:
        raise UsageError(f"--each {folder}: {output} is the --output; choose another folder")

    def write(found: Answer) -> None:
        tasks[found.adapter].write_file(found, target(found.name, found.adapter), suffix)

    return write


def _require_inputs_kept(targets: Sequence[Path], files: Sequence[str], option: str) -> None:
    """Refuses to write over what is predicted.

    Raises:
        UsageError: naming the first of ``targets`` that is a file of an input.
    """
    inputs = {_identity(Path(_path(file)[0])) for file in files} - {None}
    for path in targets:
        if _identity(path) in inputs:
            raise UsageError(f"{option}: {path} is an input, which would be replaced; choose another place")


def _identity(path: Path) -> tuple[int, int] | None:
    """Equal for two names of one file; None where there is no file."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _stem(name: str) -> str:
    """The name of an input without its suffix: ``all#3`` of ``scans/all.h5#3``."""
    path, number = _path(name)
    return f"{Path(path).stem}{number}"


def _path(name: str) -> tuple[str, str]:
    """The file of an input, and which of its clouds it is: ``("scans/all.h5", "#3")``, or nothing."""
    path, mark, number = name.rpartition("#")
    if mark and number.isdigit() and Path(path).suffix.lower() in SUFFIXES:
        return path, f"#{number}"
    return name, ""


def _print(found: Answer | Failure, several: bool) -> None:
    if isinstance(found, Failure):
        return  # listed at the end
    adapter = f"[{found.adapter}] " if several else ""
    notes = "".join(f" ({note})" for note in found.warnings)
    print(printable(f"{found.name}: {adapter}{found.text()}{notes}"), flush=True)


def _csv_sink(file: TextIO, columns: Sequence[str], top: int) -> Sink:
    writer = csv.writer(file)
    writer.writerow(["file", "adapter", *columns, "warnings", "error"])

    def write(found: Answer | Failure) -> None:
        if isinstance(found, Failure):
            writer.writerow([cell(found.name), "", *[""] * len(columns), "", cell(found.reason)])
            return
        notes = cell("; ".join(found.warnings))
        writer.writerow([cell(found.name), cell(found.adapter), *found.cells(top), notes, ""])

    return write


def _json_sink(file: TextIO) -> Sink:
    def write(found: Answer | Failure) -> None:
        said = {"error": found.reason} if isinstance(found, Failure) else found.content()
        file.write(json_line({"file": found.name, **said}) + "\n")

    return write
