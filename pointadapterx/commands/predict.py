"""Predict the classes of your own files with one or several adapters."""

from __future__ import annotations

import argparse
import glob
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pointadapterx.checkpoints.adapter_file import ADAPTERS
from pointadapterx.checkpoints.shipped import ADAPTERS as ADAPTERS_FOLDER
from pointadapterx.checkpoints.shipped import READY, shipped_adapter
from pointadapterx.commands.conditions import add_condition, condition_of
from pointadapterx.commands.each import each_file, require_inputs_kept
from pointadapterx.commands.options import (
    UsageError,
    add_device,
    add_engine,
    add_reading,
    add_weights,
    on_ray,
    require_positive,
)
from pointadapterx.commands.scoring import add_score, columns_of, label_field_of, scores_of
from pointadapterx.datasets.point_files import KINDS
from pointadapterx.engine.console import log_warnings_to, progress_bar
from pointadapterx.engine.given import Item, files_of
from pointadapterx.engine.input_form import Failure
from pointadapterx.engine.predictor import Predictor
from pointadapterx.hub import HUB
from pointadapterx.predicting.answer_files import FORMATS, Sink, sink, whole, write_heading
from pointadapterx.predicting.answering import EachFile, Tally, answer_all
from pointadapterx.run_folder import ADAPTER_FILE, CONFIG_FILE, STATE_FILE
from pointadapterx.tasks.exchange import Answer
from pointadapterx.tasks.point_scores import FileScores
from pointadapterx.text import printable

FAILED = 3  # exit status where some files could not be read
SHOWN = 20
CHUNK = 256  # files of a task on a cluster
ADAPTER_SUFFIX = ".safetensors"
EXAMPLES = """\
  %(prog)s scan.ply                                             by the shipped adapter
  %(prog)s runs/demo/<time> scan.ply                            the three likeliest classes
  %(prog)s adapter.safetensors scans/ 'more/*.obj' --output found.csv
  %(prog)s hf://owner/repository scans/
  %(prog)s runs/demo/<time> clouds.h5                           each cloud of a file
  %(prog)s runs/parts/<time> chairs/ --condition chair          where the task has to know the category
  %(prog)s runs/parts/<time> test/ --score                    beside the labels of points in the files
  %(prog)s runs/demo/<time> scans/ --output found.csv --engine ray --address HOST:6379
  %(prog)s --adapter parts=a.safetensors --adapter tools=b.safetensors scans/ --output found.jsonl
"""


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
    cluster = parser.add_argument_group("cluster")
    add_engine(cluster, "predicts")
    cluster.add_argument(
        "--chunk", type=int, metavar="N", help=f"files that a task takes; only with --engine ray (default: {CHUNK})"
    )


def run(options: argparse.Namespace) -> int:
    """Predicts.

    Returns:
        0, or 3 if files could not be read, which are listed; the rest was predicted.
    """
    require_positive(options, "top", "batch_size", "workers", "chunk")
    cluster = on_ray(options)
    if cluster and options.output is None:
        raise UsageError(f"--engine ray: give --output FILE ({' or '.join(FORMATS)})")
    if options.chunk is not None and not cluster:
        raise UsageError("--chunk belongs to --engine ray")
    if options.output is not None and options.output.suffix.lower() not in FORMATS:
        raise UsageError(f"--output {options.output}: ends in {' or '.join(FORMATS)}")
    log_warnings_to(sys.stderr)
    named = dict(text.partition("=")[::2] for text in options.adapter)
    if not all(named) or not all(named.values()) or len(named) < len(options.adapter):
        raise UsageError("--adapter takes NAME=FILE, each name once")
    adapter, paths = (named, options.paths) if named else _adapter_of(options.paths)
    if not paths:
        raise UsageError(f"nothing to predict: first {ADAPTERS}, then files, folders or globs")
    said: dict[str, Any] = {
        "weights": options.weights,
        "device": options.device,
        "precision": options.precision,
        "batch_size": options.batch_size,
        "top": options.top,
        "up": options.up,
        "columns": options.columns,
        "nan": options.nan,
        "workers": options.workers,
        "condition": condition_of(options),
    }
    predictor = Predictor[Answer](adapter, **said)
    if not named and isinstance(adapter, dict):
        _introduce(predictor.classes[READY])
    files = predictor.listed(find_files(paths, predictor.suffixes, leave_out=options.output))
    names = list(map(str, files))
    require_inputs_kept([options.output] if options.output else [], names, "--output")
    each = each_file(options.each, options.kind, predictor.tasks, names, options.output)
    scores = scores_of(options, predictor)
    columns = columns_of(predictor, options)
    answers = predictor.stream(files)
    with progress_bar("predicting", len(files), 0, options.output is not None) as advance:
        if cluster:
            tally = _on_cluster(options, said, predictor, files, each, scores, advance)
        else:
            with _opened(options.output, columns, options.top, several=len(named) > 1) as write:
                tally = answer_all(answers, predictor.tasks, write, each, scores, advance)
    failed = {failure.name for failure in tally.failures}
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
    _say_failures(tally.failures, f"files could not be predicted{written}", len(files), options.output)
    _say_failures(tally.unscored, "files could not be scored", len(files), options.output)
    return FAILED if failed or tally.unscored else 0


def _on_cluster(
    options: argparse.Namespace,
    said: Mapping[str, Any],
    predictor: Predictor[Answer],
    files: Sequence[Item],
    each: EachFile | None,
    scores: Mapping[str, FileScores],
    advance: Callable[[], None],
) -> Tally:
    """Has all files predicted by a cluster, and writes the output."""
    from pointadapterx.cluster.connection import connected
    from pointadapterx.cluster.predicting import Asked, predict

    columns, output = columns_of(predictor, options), options.output
    said = {**said, "workers": options.workers or 1}  # a process has one core
    asked = Asked(predictor.infos, said, output.suffix, columns, options.score, label_field_of(options))
    chunk, store = options.chunk or CHUNK, output.with_name(f"{output.name}.chunks")
    with connected(options.address), whole(output) as file:
        write_heading(file, output.suffix, columns)
        tally = predict(asked.with_key(), files, each, chunk, store, file, (predictor.seen, scores), advance)
    shutil.rmtree(store, ignore_errors=True)
    return tally


def _say_failures(failures: Sequence[Failure], what: str, files: int, output: Path | None) -> None:
    """A line each; of many only the first, where the output has them all."""
    shown = len(failures) if output is None else SHOWN
    for failure in failures[:shown]:
        print(printable(f"error: {failure.reason}"), file=sys.stderr)
    if failures:
        failed = {failure.name for failure in failures}  # of several adapters each may fail
        more = f", {len(failures) - shown} more in {output}" if len(failures) > shown else ""
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
def _opened(output: Path | None, columns: Sequence[str], top: int, *, several: bool) -> Iterator[Sink]:
    """Writes to the terminal, or to a file."""
    if output is None:
        yield lambda found: _print(found, several)
        return
    with whole(output) as file:
        write_heading(file, output.suffix, columns)
        yield sink(file, output.suffix, columns, top)


def _print(found: Answer | Failure, several: bool) -> None:
    if isinstance(found, Failure):
        return  # listed at the end
    adapter = f"[{found.adapter}] " if several else ""
    notes = "".join(f" ({note})" for note in found.warnings)
    print(printable(f"{found.name}: {adapter}{found.text()}{notes}"), flush=True)
