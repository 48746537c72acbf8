"""Predictions for the user's own files: clouds, meshes or pictures that belong to no data set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Generic, cast

import torch
from torch import Tensor

from pointadapterx import ops
from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.build import restore_model
from pointadapterx.checkpoints.adapter_file import AdapterInfo, read_adapter
from pointadapterx.datasets.base import Targets
from pointadapterx.datasets.cloud_reader import CloudReader
from pointadapterx.datasets.entries import Entry
from pointadapterx.datasets.folder import BLOCK
from pointadapterx.datasets.images import SUFFIXES, Picture
from pointadapterx.datasets.inputs import Batch
from pointadapterx.datasets.point_files import KINDS, Cloud, Reading
from pointadapterx.datasets.workers import read_ahead
from pointadapterx.engine.bank import AdapterBank
from pointadapterx.engine.conditions import Said, reader_of
from pointadapterx.engine.given import File, Given, Item, listed, points_of
from pointadapterx.engine.input_form import Failure, Form
from pointadapterx.engine.precision import computes_bf16, usable_device
from pointadapterx.engine.seen import Seen
from pointadapterx.errors import CheckpointError, ConfigError
from pointadapterx.models.packing import pack_frozen
from pointadapterx.tasks import AnswerT
from pointadapterx.tasks.exchange import Answer, Joining, Ready

log = logging.getLogger(__name__)

MOST_WAITING = 4  # times the batch size, of files that wait for their turn, those that failed among them
MOST_POINTS = 2**22  # of whole clouds that wait for their turn, beyond which no further one is read
MOST_BYTES = 2**27  # of files that are read ahead where clouds stay whole


class Predictor(Generic[AnswerT]):
    """An adapter, or several on one backbone, ready for files and arrays.

    Inputs are prepared as the clouds of the adapter's training were: turned, normalised, resampled.

    Type checkers take answers for those of classification; those of another task are had by ``Predictor[Answer](…)``.

    Args:
        adapters: an adapter file, a run's folder or ``hf://owner/repository``; or by name several, also as
            :func:`~pointadapterx.checkpoints.adapter_file.read_adapter` returns them, which must prepare their inputs
            alike.
        weights: where the backbone's weights lie now, if not where the adapter's config says.
        device: ``"cpu"``, ``"cuda"``, …; the first CUDA device if there is one.
        precision: as ``train.precision``; by default the adapter's, or fp32 where the hardware has no bf16.
        batch_size: samples at a time; by default the adapter's ``eval.batch_size``.
        top: classes that a prediction lists.
        up: axis of the inputs that points up; by default the adapter's ``data.up``, or y.
        columns: of x, y and z in text files, by name or by number from 0; by default the adapter's ``data.columns``.
        nan: ``"drop"`` leaves out points with NaN or infinite coordinates, with a warning, ``"error"`` refuses such
            inputs; by default the adapter's ``data.nan``, or ``"drop"``.
        workers: processes that read files where one thread would take long; None: one a core.
        condition: of tasks that have to know more than the points, such as the category of each object: its name, for
            all inputs; a path, of a CSV file with the columns ``file`` and that of the condition; or a mapping or a
            function from an input's name to it, as :func:`~pointadapterx.engine.conditions.folder_of`.

    Attributes:
        classes: names of the classes by adapter.
        tasks: of the adapters, which say what their answers are.
        suffixes: kinds of files that can be read, without the dot.
        seen: what the clouds so far say together.

    Raises:
        CheckpointError: if an adapter cannot be read, or several do not fit one backbone or one preparation.
        ConfigError: for an unknown axis, precision or device, or a condition that is missing, unknown, or not taken.
        DataError: for a table of conditions that cannot be read.
    """

    def __init__(
        self,
        adapters: File | Mapping[str, File | AdapterInfo],
        *,
        weights: File | None = None,
        device: str | torch.device | None = None,
        precision: str | None = None,
        batch_size: int | None = None,
        top: int = 3,
        up: str | None = None,
        columns: Sequence[str | int] | None = None,
        nan: str | None = None,
        workers: int | None = 1,
        condition: Said = None,
    ) -> None:
        given = adapters if isinstance(adapters, Mapping) else {Path(adapters).stem: adapters}
        self.infos = {name: one if isinstance(one, AdapterInfo) else read_adapter(one) for name, one in given.items()}
        first = next(iter(self.infos.values()), None)
        if first is None:
            raise CheckpointError("a predictor needs at least one adapter")
        self.device = usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.top, self.workers = top, workers
        self.batch_size = batch_size or first.config.eval.batch_size
        self.classes = {name: info.classes for name, info in self.infos.items()}
        self.tasks = {name: info.task for name, info in self.infos.items()}
        _require_same_answers(self.infos)
        self._task = first.task
        self._condition, self._said = condition, reader_of(condition, self._task)
        self._bf16 = computes_bf16(precision, first.config.train.precision, self.device)
        said = {"up": up, "columns": columns, "nan": nan}
        self._form = Form.of(first, said)
        for info in self.infos.values():
            if Form.of(info, said).key != self._form.key:
                raise CheckpointError(
                    f"{info.path}: prepares its inputs otherwise than {first.path}; use a predictor for each"
                )
        self._models = self.build_models(first, weights)
        self.seen = Seen()

    def build_models(self, first: AdapterInfo, weights: File | None) -> Callable[[str], AdaptedModel]:
        """What gives the model of each adapter by its name; called once, and overridden where models are shared.

        Args:
            first: of the adapters.
            weights: where the backbone's weights lie now.
        """
        if len(self.infos) > 1:
            bank = AdapterBank(self.infos, weights).to(self.device)
            pack_frozen(bank.backbone)
            return bank.model
        model = restore_model(first, weights).to(self.device).eval().requires_grad_(False)
        pack_frozen(model)
        return lambda name: model

    @property
    def reading(self) -> Reading:
        """How files of points are read."""
        return self._form.reading

    @property
    def without_novelty(self) -> list[str]:
        """Names of the adapters whose files store no novelty score."""
        return [name for name, task in self.tasks.items() if task.lacks_novelty]

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Kinds of files that are taken from a folder, without the dot: the adapter's ``data.suffixes``, or all."""
        if not self._form.points:
            return tuple(suffix.removeprefix(".") for suffix in SUFFIXES)
        chosen = next(iter(self.infos.values())).config.data.suffixes
        return tuple(chosen) if chosen else KINDS

    def __call__(self, inputs: Given) -> list[AnswerT | Failure]:
        """All predictions in the order of the inputs, with a failure for each that has none; see :meth:`stream`."""
        return list(self.stream(inputs))

    def listed(self, inputs: Given) -> list[Item]:
        """The single inputs of what :meth:`stream` takes, each of which gets an answer."""
        return listed(inputs, self.suffixes, clouds=self._form.points)

    def stream(self, inputs: Given) -> Iterator[AnswerT | Failure]:
        """Predictions as they are made, in the order of the inputs, one an adapter; a failure takes their place.

        Files are read while the model computes, and a bounded number is in memory.

        Args:
            inputs: a file; a folder, for the files in it and below; points (N, 3 or more) as an array or tensor, or a
                batch of such; or a list of these. Arrays are named by their number, and the clouds of an HDF5 file
                that holds several ``all.h5#0``, ``all.h5#1`` and so on.

        Raises:
            ConfigError: if the task needs a condition, and the predictor has none.
            DataError: for a folder without a file that can be read.
            TypeError: for anything else.
        """
        self._require_condition()
        return self._stream(self.listed(inputs))

    def _stream(self, inputs: Sequence[Item]) -> Iterator[AnswerT | Failure]:
        begun: list[Joining | Failure] = []  # the last input, whose other pieces are still to come, one an adapter
        for item, answers in self._answered(inputs):
            if isinstance(item, Failure):
                begun = []
                yield item
            elif item.piece is None:
                yield from answers
            else:
                before = begun or [task.joining(item.piece.cloud) for task in self.tasks.values()]
                begun = [with_piece(*pair) for pair in zip(before, answers, strict=True)]
                if item.piece.last:
                    yield from (one if isinstance(one, Failure) else cast(AnswerT, one.joined()) for one in begun)
                    begun = []

    def _answered(self, inputs: Sequence[Item]) -> Iterator[tuple[Ready | Failure, list[AnswerT | Failure]]]:
        """Each input, or piece of one, with its answers, one an adapter; a failure has none."""
        waiting: list[Ready | Failure] = []
        points = 0  # of whole clouds in memory
        for item in self._read(inputs):
            waiting.append(item)
            ready = sum(isinstance(one, Ready) for one in waiting)
            if isinstance(item, Ready) and item.piece is not None and item.piece.last:
                points += len(item.piece.cloud.points)
            full = ready == self.batch_size or len(waiting) == MOST_WAITING * self.batch_size
            if full or points >= MOST_POINTS:
                yield from self._answer(waiting)
                waiting, points = [], 0
        yield from self._answer(waiting)

    def prepared(self, inputs: Given) -> Iterator[Tensor | Failure]:
        """Each input as the model takes it, (1, N, 3) or (1, channels, S, S) on its device; or why it cannot be.

        Of an input that its task cuts into pieces, each of them.
        """
        for item in self.ready(inputs):
            yield item if isinstance(item, Failure) else item.values[None]

    def ready(self, inputs: Given) -> Iterator[Ready | Failure]:
        """The same, (N, 3) or (channels, S, S), with the names of the inputs and what is said of them.

        Raises:
            ConfigError: if the task needs a condition, and the predictor has none.
        """
        self._require_condition()
        for item in self._read(self.listed(inputs)):
            if isinstance(item, Failure):
                yield item
            else:
                yield replace(item, values=self._form.batch([item.values], self.device).inputs[0])

    def _require_condition(self) -> None:
        if self._condition is None:
            self._task.category(None)

    def doubts(self) -> list[str]:
        """Doubts about single clouds so far, and differences of all of them from the training clouds."""
        return self.seen.lines(self._form)

    def _read(self, inputs: Sequence[Item]) -> Iterator[Ready | Failure]:
        files = [item for item in inputs if isinstance(item, str | Entry)]
        reader = self._form.reader(whole=self._task.whole)
        contents = read_ahead(reader, files, _ahead(files) if self._task.whole else BLOCK, self.workers)
        for number, item in enumerate(inputs):
            name = str(item) if isinstance(item, str | Entry) else f"input {number}"
            if isinstance(item, str | Entry):
                content = next(contents)
            elif isinstance(reader, CloudReader):
                content = points_of(item, name, reader)
            else:
                content = f"{name} is an array; an adapter for pictures takes files"
            if isinstance(content, str):
                yield Failure(name, content)
            else:
                yield from self.prepare(name, content, self._said(name), self._condition is not None)

    def prepare(
        self, name: str, content: Cloud | Picture, said: str | None, conditional: bool = True
    ) -> Iterator[Ready | Failure]:
        """An input, or the pieces of it that its task wants.

        Args:
            name: of the input.
            content: what the reader of the adapters' form made of it.
            said: its condition, for tasks that have to know one.
            conditional: whether that is checked.
        """
        try:
            for task in self.tasks.values() if conditional else ():
                task.category(said)
        except ConfigError as error:
            yield Failure(name, f"{name}: {error}")
            return
        if not isinstance(content, Cloud):
            yield Ready(name, torch.from_numpy(content.pixels), [], said=said, size=(content.height, content.width))
            return
        if self._task.whole:
            prepared = self._form.cut(name, content, self._task)
        else:
            prepared = iter([self._form.bring(name, torch.from_numpy(content.points))])
        for number, item in enumerate(prepared):
            if isinstance(item, Failure):
                yield item
                continue
            if number == 0:
                item.warnings.extend(doubt.text for doubt in content.doubts)
                self.seen.take(item.values, (doubt.kind for doubt in content.doubts))
            yield item if said is None else replace(item, said=said)

    def _answer(self, waiting: list[Ready | Failure]) -> Iterator[tuple[Ready | Failure, list[AnswerT | Failure]]]:
        ready = [item for item in waiting if isinstance(item, Ready)]
        answers = iter(self.answers(ready) if ready else ())
        for item in waiting:
            yield item, [] if isinstance(item, Failure) else next(answers)

    @torch.inference_mode()
    def answers(self, ready: Sequence[Ready], batch: Batch | None = None) -> list[list[AnswerT | Failure]]:
        """The answers to some prepared inputs, or pieces of such, at least one: for each of them one an adapter.

        Args:
            ready: the inputs.
            batch: what :meth:`batch` makes of them, where that is there already.
        """
        batch = batch or self.batch(ready)
        answers: list[list[AnswerT | Failure]] = [[] for _ in ready]
        for name, task in self.tasks.items():
            given = batch
            if task.categories:
                numbers = torch.tensor([task.category(item.said) for item in ready], device=self.device)
                given = batch._replace(targets=Targets(condition=numbers))
            with self.computing():
                found = task.answers(self._models(name), given, ready, name, self.top)
            for item, answer, own in zip(ready, found, answers, strict=True):
                failure = Failure(item.name, _no_answer(item.name, name, len(self.infos)))
                own.append(failure if answer is None else cast(AnswerT, answer))
        return answers

    def batch(self, ready: Sequence[Ready]) -> Batch:
        """Prepared inputs as the model takes them, on its device."""
        return self._form.batch([item.values for item in ready], self.device)

    @torch.inference_mode()
    def logits(self, inputs: Tensor) -> Tensor:
        """Of the first adapter, for inputs as :meth:`prepared` gives them: (b, …) float32, on the CPU."""
        name, task = next(iter(self.tasks.items()))
        with self.computing():
            return task.outputs(self._models(name), Batch(inputs, Targets())).float().cpu()

    @contextmanager
    def computing(self) -> Iterator[None]:
        """In the precision of the predictor, without checks of what only this package passes on."""
        autocast = torch.autocast(self.device.type, torch.bfloat16) if self._bf16 else nullcontext()
        with autocast, ops.unchecked():
            yield


def with_piece(begun: Joining | Failure, answer: Answer | Failure) -> Joining | Failure:
    """What has become of an input with the answer about one more piece of it; a failure of any is one of the whole."""
    if isinstance(begun, Failure):
        return begun
    if isinstance(answer, Failure):
        return answer
    begun.add(answer)
    return begun


def _ahead(files: Sequence[str | Entry]) -> int:
    """Files to read ahead whose clouds stay whole: fewer, the larger they are."""
    largest = 1
    for file in files:
        if isinstance(file, str):
            with suppress(OSError):  # said when it is read
                largest = max(largest, Path(file).stat().st_size)
    return max(1, min(BLOCK, MOST_BYTES // largest))


def _require_same_answers(infos: Mapping[str, AdapterInfo]) -> None:
    """Adapters that answer side by side are of one task, and of one way to cut inputs into pieces."""
    first, *others = infos.values()
    for info in others:
        if info.task.whole and info.config.task != first.config.task:
            raise CheckpointError(
                f"{info.path}: its section task differs from that of {first.path}; use a predictor for each"
            )
        if info.config.task.name != first.config.task.name:
            raise CheckpointError(
                f"{info.path}: is of the task {info.config.task.name}, {first.path} of {first.config.task.name}; use a "
                "predictor for each"
            )


def _no_answer(name: str, adapter: str, adapters: int) -> str:
    """Why a model that computes NaN says nothing of an input: the largest of its logits would be the first class."""
    whose = f" of adapter {adapter}" if adapters > 1 else ""
    return f"{name}: logits or features{whose} are not finite; try --precision fp32, or train the adapter again"
