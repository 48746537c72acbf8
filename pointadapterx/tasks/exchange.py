"""What passes between a task and those who ask it: sections of a config, facts, predictions, answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from typing_extensions import Self

from pointadapterx.datasets.base import Targets
from pointadapterx.datasets.doubts import Cloud
from pointadapterx.datasets.inputs import Batch
from pointadapterx.datasets.options import DataConfig
from pointadapterx.datasets.preparation import is_number
from pointadapterx.errors import TrainingError, shown
from pointadapterx.models import Backbone
from pointadapterx.peft.base import Method
from pointadapterx.schema import Section
from pointadapterx.sections import EvalConfig, TrainConfig
from pointadapterx.tasks.heads import HeadConfig


class Sections(Protocol):
    """The sections of a complete config; a task may read all of them."""

    @property
    def task(self) -> TaskOptions:
        """What is asked of the features."""

    @property
    def backbone(self) -> Backbone.Options:
        """Pre-trained network."""

    @property
    def method(self) -> Method.Options | None:
        """How it is adapted; None where nothing is."""

    @property
    def head(self) -> HeadConfig | None:
        """On top of it; None where nothing is adapted."""

    @property
    def pretrain(self) -> Section | None:
        """How it is pre-trained; None elsewhere."""

    @property
    def data(self) -> DataConfig:
        """What is learnt from."""

    @property
    def train(self) -> TrainConfig:
        """How."""

    @property
    def eval(self) -> EvalConfig:
        """How that is judged."""


class TaskOptions(Section):
    """``task:`` of a config; a task gives ``name`` its own and adds keys."""

    name: str = ""

    def completed(self, data: DataConfig | None) -> tuple[Self, list[tuple[str, str]]]:
        """With what is null filled in from the data, and (dotted key, message) for what cannot be.

        Files are read only where something is null, so that a stored config is complete without them.

        Args:
            data: None where its section is wrong.
        """
        return self, []

    def problems(self, backbone: Backbone.Options | None, method: Method.Options | None) -> Iterator[tuple[str, str]]:
        """(dotted key, message) for each impossible value.

        Args:
            backbone: None where its section is wrong.
            method: likewise, and where nothing is adapted.
        """
        return iter(())


class Score(NamedTuple):
    """A metric of a whole set that may select an epoch, and is shown in tables.

    Attributes:
        short: in a line of the log.
        long: in a table.
        unit: behind the number.
        higher_is_better: the direction of selection.
        metric: what the hub calls it; empty: as the task does.
    """

    short: str
    long: str
    unit: str = "%"
    higher_is_better: bool = True
    metric: str = ""

    def goodness(self, value: float) -> float:
        """A number that is higher for the better of two values."""
        return value if self.higher_is_better else -value


class Predictions(NamedTuple):
    """What a model says of a whole part of a data set, in file order, and what is true.

    Attributes:
        rows: (n, …) on the CPU, as :meth:`Task.rows` keeps them.
        targets: of these samples.
        groups: (n,) int64, equal for samples of one object or scene; None where that is not known.
    """

    rows: Tensor
    targets: Targets
    groups: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        """The rows, where they are a head's outputs."""
        return self.rows

    @property
    def labels(self) -> Tensor:
        """The targets of whole samples."""
        assert self.targets.sample is not None
        return self.targets.sample


class Tabular(NamedTuple):
    """A table as plain data, for reports: a title, names of the columns, and rows of text."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Facts:
    """What a task knows of its data that its config does not say: stored in the adapter's file, to read its answers.

    A task with more to know adds fields of numbers; for anything else it extends both methods. Tensors have a ``/`` in
    their names, which those of a model have not.

    Attributes:
        classes: names of what is predicted, where that has names.
    """

    classes: list[str] = field(default_factory=list)

    def stored(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """JSON-able values, and tensors, by name."""
        return {place.name: getattr(self, place.name) for place in fields(self)}, {}

    @classmethod
    def restored(cls, config: Sections, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Facts:
        """The inverse of :meth:`stored`, checked against the config of the file.

        Args:
            config: of the file.
            values: decoded; names of later versions may be among them.
            tensors: those with a ``/`` in their names.

        Raises:
            KeyError, TypeError, ValueError: if anything is missing, or cannot be meant.
        """
        found = {place.name: values[place.name] for place in fields(cls)}
        names_of(found["classes"])
        for name, value in found.items():
            if name != "classes" and not is_number(value):
                raise ValueError(f"{name} is {shown(value)}, which is no number")
        return cls(**found)

    def unfitted(self) -> Facts:
        """Without what was fitted to one adapter's answers and does not hold for another's."""
        return self


def names_of(value: Any) -> list[str]:
    """A list of names as it is.

    Raises:
        TypeError: for anything else.
    """
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise TypeError("classes are not strings")
    return value


@dataclass(frozen=True)
class Cut:
    """What a task gives a model of a whole cloud at once.

    Attributes:
        index: (m,) int64, the points in it.
        placed: (m, 3) float32, where they lie for the model, with y up, where they keep the frame of the whole cloud,
            such as tiles of a room with the height above its floor; then m is the number of points that the model
            takes, and points are repeated where there are too few. None: they are turned, normalised and reduced as a
            training cloud of its own.
    """

    index: Tensor
    placed: Tensor | None = None


@dataclass(frozen=True)
class Piece:
    """Where the points that a model is given come from, for a task that answers for every point.

    Attributes:
        cloud: the whole input, ``points`` (n, 3) float64 in the units, axes and order of its file.
        index: (N,) int64, which of these points the values are.
        last: whether no other piece of the cloud follows.
    """

    cloud: Cloud
    index: Tensor
    last: bool


@dataclass(frozen=True)
class Ready:
    """An input on its way to the model.

    Attributes:
        name: of the input.
        values: (N, 3) or (channels, S, S).
        warnings: in what it differs from the training data.
        piece: where the values come from, for a task that answers for every point.
        said: the condition, in words, such as the object's category; None where nothing is said.
        size: height and width of a picture as its file has it.
    """

    name: str
    values: Tensor
    warnings: list[str]
    piece: Piece | None = None
    said: str | None = None
    size: tuple[int, int] | None = None


def places(batch: Batch, inputs: Sequence[Ready]) -> list[Tensor]:
    """Which points of its whole cloud a model was given, (num_points,) int64 on the CPU, for each input with a piece.

    Points are repeated where a cloud has too few.
    """
    found = []
    for row, item in enumerate(inputs):
        assert item.piece is not None
        found.append(item.piece.index if batch.index is None else item.piece.index[batch.index[row].cpu()])
    return found


def mean_of_points(outputs: Sequence[Tensor], batches: Sequence[Batch]) -> Tensor:
    """Means over copies of the same clouds, each resampled on its own, where their points lie in the cloud.

    Args:
        outputs: of the copies, (b, N, …) each.
        batches: the copies.

    Returns:
        (b, N, …), for the points of the first copy, each over all that were given of it.
    """
    (clouds, count), device = outputs[0].shape[:2], outputs[0].device
    as_they_are = torch.arange(count, device=device).expand(clouds, -1)
    index = [as_they_are if batch.index is None else batch.index for batch in batches]
    size = 1 + max(int(part.max()) for part in index)
    starts = size * torch.arange(clouds, device=device)[:, None]
    places_of = [(part + starts).flatten() for part in index]
    total = outputs[0].new_zeros(clouds * size, *outputs[0].shape[2:])
    for at, output in zip(places_of, outputs, strict=True):
        total.index_add_(0, at, output.flatten(0, 1))
    given = torch.bincount(torch.cat(places_of), minlength=len(total))[places_of[0]]
    return (total[places_of[0]] / given.view(-1, *[1] * (total.ndim - 1))).view_as(outputs[0])


class Answer(Protocol):
    """The prediction of one adapter for one input."""

    @property
    def name(self) -> str:
        """Of the input."""

    @property
    def adapter(self) -> str:
        """Its name."""

    @property
    def warnings(self) -> list[str]:
        """In what the input differs from the training data."""

    def text(self) -> str:
        """The answer in a few words, for a terminal, after the input's name."""

    def cells(self, top: int) -> list[str]:
        """For a CSV file, under :meth:`Task.columns`."""

    def content(self) -> dict[str, Any]:
        """For a JSON file, without the name."""


class Joining(Protocol):
    """What becomes of the answers about the pieces of a whole input, one after the other."""

    def add(self, answer: Any) -> None:
        """Takes the answer about the next piece, which may then be forgotten.

        Args:
            answer: of :meth:`Task.answers`.
        """

    def joined(self) -> Answer:
        """The answer about the whole."""


def require_finite(rows: Tensor, what: str) -> None:
    """Refuses what no answer can be read from.

    Args:
        rows: (n, …), a sample each.
        what: they are.

    Raises:
        TrainingError: naming the samples with NaN or infinite values.
    """
    broken = [row for row, values in enumerate(torch.isfinite(rows)) if not bool(values.all())]
    if broken:
        raise TrainingError(
            f"the {what} of {len(broken)} samples are not finite, first indices {broken[:5]}; the weights have "
            "diverged: lower train.lr, or use train.precision=fp32"
        )
