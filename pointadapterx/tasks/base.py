"""What a task is: targets, head, loss, scores and answers. One file a task; everybody else asks it.

Whatever trains, tests, votes, predicts, counts, exports, stores or reports a model takes what it needs from its task
and knows none by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.datasets import Samples, stratified_split
from pointadapterx.datasets.base import Targets
from pointadapterx.datasets.doubts import Cloud
from pointadapterx.datasets.inputs import Batch
from pointadapterx.errors import ConfigError
from pointadapterx.models import Backbone
from pointadapterx.models.features import FeatureInfo, Head
from pointadapterx.models.trainable import TrainableModel
from pointadapterx.registry import Registry, did_you_mean
from pointadapterx.tasks.exchange import (
    Answer,
    Cut,
    Facts,
    Joining,
    Predictions,
    Ready,
    Score,
    Sections,
    TaskOptions,
    mean_of_points,
)
from pointadapterx.tasks.presentation import Presentation

LabelOf = Callable[[Samples], tuple[Tensor, Tensor]]
"""Samples -> what the head's last layer reads of each (n, H), and the head's outputs (n, …)."""


class Task(Presentation, ABC):
    """What is asked of the features.

    Args:
        config: complete and checked.
        facts: of an adapter's file, or from :meth:`learn`.

    Attributes:
        Options: of the config's ``task`` section.
        stores: what is stored with an adapter.
        sections: of a config that the task needs in addition to ``backbone``, ``data``, ``train`` and ``eval``.
        adapts: whether a method and a head are trained, and kept in an adapter's file with a test at the end; otherwise
            a whole model is trained for its backbone's weights.
        needs_labels: whether data without class labels are refused; otherwise they are not even read where the data set
            can leave them out.
        predicts_classes: whether ``head.num_classes`` is the number of classes of the data.
        weighs_classes: whether ``train.class_weights`` mean something; :meth:`learn` then makes factors of the loss of
            them, by :func:`~pointadapterx.tasks.weighting.class_weights`.
        balances_classes: whether every sample has one class, :meth:`strata`, which ``train.sampler=balanced`` can draw
            equally often.
        caches: whether training from cached features (``train.cached_views``) is possible.
        test_keys: keys of the ``task`` section that say how a test is made, and nothing of the model.
        scores: metrics that ``eval.select`` may name, the default first; all are written into the history.
        recorded: further metrics that are written into the history.
        pictures: names of those of ``visualize.PICTURES`` that show something of this task.
        summary_pictures: those that a training on one's own data ends with.
        tags: what the hub calls the task, by modality; by default the task's name.
        pipelines: modalities whose tag is one of the hub's own pipelines.
        usage: Python expressions, of an answer ``found``, that a model card prints.
        file_kinds: suffixes of files, such as ``".ply"``, that :meth:`write_file` can write of an answer.
        whole: whether an answer is about all points of an input, as its file has them; otherwise only those that the
            model takes are kept in memory.
        condition: what a model's second input is called, where :attr:`categories` has names for it.
    """

    Options: ClassVar[type[TaskOptions]]
    stores: ClassVar[type[Facts]] = Facts
    sections: ClassVar[tuple[str, ...]] = ("method", "head")
    adapts: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    predicts_classes: ClassVar[bool] = False
    weighs_classes: ClassVar[bool] = False
    balances_classes: ClassVar[bool] = False
    caches: ClassVar[bool] = True
    test_keys: ClassVar[tuple[str, ...]] = ()
    scores: ClassVar[Mapping[str, Score]] = {}
    recorded: ClassVar[tuple[str, ...]] = ()
    pictures: ClassVar[tuple[str, ...]] = ("groups", "augmentation", "attention", "routing", "experts")

    summary_pictures: ClassVar[tuple[str, ...]] = ()

    tags: ClassVar[Mapping[str, str]] = {}
    pipelines: ClassVar[tuple[str, ...]] = ()
    usage: ClassVar[str] = "found.text()"
    file_kinds: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[bool] = False
    condition: ClassVar[str] = "category"

    def __init__(self, config: Sections, facts: Facts | None = None) -> None:
        self.config = config
        self.facts: Any = facts if facts is not None else self.stores()

    @property
    def select(self) -> str:
        """The score that selects an epoch, ``eval.select``."""
        assert self.config.eval.select is not None
        return self.config.eval.select

    # Data.

    def targets(self, data: Samples) -> Targets:
        """What is to be predicted of a data set's samples; by default what its files hold as targets."""
        return data.targets

    def strata(self, data: Samples) -> Tensor:
        """(n,) int64: samples of one number are spread evenly over training and validation part."""
        return data.labels

    def split(self, data: Samples, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
        """Indices to train on and to validate on, where the data set publishes no validation part.

        Raises:
            ConfigError: if ``fraction`` does not fit.
            DataError: if nothing can be held out.
        """
        return stratified_split(self.strata(data), fraction, seed, groups=data.groups)

    def check(self, data: Samples) -> None:
        """Whether a part of a data set fits the config.

        Raises:
            ConfigError, DataError: if not.
        """

    def learn(self, train: Samples) -> Facts:
        """What is to be known of the training part before the training."""
        return self.stores(classes=list(train.classes) if self.predicts_classes else [])

    # Model.

    def build_head(self, info: FeatureInfo) -> Head:
        """The head for the features of a backbone, with random weights."""
        raise NotImplementedError(f"{type(self).__name__} must build its head")

    def build_whole(self, backbone: Backbone) -> TrainableModel:
        """What a task that adapts nothing trains: a model around the backbone.

        Raises:
            ConfigError: for a backbone that it cannot train.
        """
        raise NotImplementedError(f"{type(self).__name__} must build what it trains")

    @property
    def categories(self) -> list[str]:
        """What a model's second input ``condition`` (b,) int64 numbers; empty where it takes only one.

        In training and tests it is ``targets.condition`` of :meth:`targets`, in a prediction of :meth:`category`.
        """
        return []

    def category(self, said: str | None) -> int | None:
        """The number of what is said of an input that is to be predicted; None where the model takes no condition.

        Raises:
            ConfigError: if nothing is said, though there are several; for an unknown name; or if anything is said
                though the model takes no condition.
        """
        known, task = self.categories, self.config.task.name
        if not known:
            if said is not None:
                raise ConfigError(f"condition {said!r}: the task {task} takes none; remove it")
            return None
        if said is None and len(known) == 1:
            return 0
        if said is None:
            raise ConfigError(
                f"the task {task} has to know the {self.condition} of an input: give --condition NAME, or condition="
                f"NAME to Predictor ({', '.join(known)})"
            )
        if said not in known:
            near = did_you_mean(said, known)
            raise ConfigError(f"{self.condition} {said!r} is unknown{near} Known: {', '.join(known)}")
        return known.index(said)

    # Training.

    def blank_targets(self, inputs: Tensor) -> Targets:
        """Targets with which :meth:`loss` can be counted, whose values do not matter.

        Args:
            inputs: of a model, (b, N, 3) or (b, channels, S, S).
        """
        number, of_points = inputs.shape[0], inputs.shape[:2] if inputs.ndim == 3 else None
        zeros = partial(inputs.new_zeros, dtype=torch.int64)
        return Targets(
            zeros(number),
            None if of_points is None else zeros(of_points),
            zeros(number) if self.categories else None,
        )

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a micro-batch in training.

        Args:
            model: what is trained, possibly wrapped for several processes: to be called once.
            batch: of b samples, resampled and augmented.
            generator: for further draws, on the device of the batch.

        Returns:
            The mean over the b samples, to be minimised, auxiliary losses included; and sums over them whose means over
            the epoch are reported: ``loss`` at least.
        """

    def progress(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """Further values for the epoch's record, from the means of what :meth:`loss` reports."""
        return {}

    def progress_text(self, record: Mapping[str, Any]) -> str:
        """The same in words for the log, after the loss."""
        return ""

    # Evaluation.

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """What a model in eval mode says of a batch: (b, …), which a vote averages over copies.

        A task that answers for every point gives (b, N, …), of which :meth:`combine` makes a vote.
        """
        return model(batch.inputs).logits

    def combine(self, outputs: Sequence[Tensor], batches: Sequence[Batch]) -> Tensor:
        """One output from those of several copies of the same samples: their mean.

        Where targets are of points, it is that of each point of the first copy, over those copies that hold it.
        """
        if len(outputs) > 1 and batches[0].targets.points is not None:
            return mean_of_points(outputs, batches)
        total = outputs[0]
        for output in outputs[1:]:
            total = total + output
        return total / len(outputs)

    def rows(self, outputs: Tensor, batch: Batch) -> Tensor:
        """What is kept of the outputs for :meth:`metrics`: (b, …); counts a sample where whole outputs are large."""
        return outputs

    @property
    def tests_wholes(self) -> bool:
        """Whether a test asks the model about more than the samples of training, by :meth:`whole_row`."""
        return False

    def judged(self, data: Samples) -> Samples:
        """What a test makes :class:`Predictions` of, given a part of a data set; by default its samples."""
        return data

    def whole_row(self, data: Samples, index: int, ask: Callable[[Batch], Tensor], device: torch.device) -> Tensor:
        """As :meth:`rows`, of one of the samples of :meth:`judged`, (…).

        Args:
            data: these samples.
            index: of the sample.
            ask: gives the outputs for a batch on the device.
            device: of the model.
        """
        raise NotImplementedError(f"{type(self).__name__} must test its wholes")

    def metrics(self, found: Predictions) -> dict[str, Any]:
        """Metrics of a part of a data set, JSON-able, :attr:`scores` among them; by default those of the records.

        Raises:
            TrainingError: if outputs are not finite.
        """
        records = self.sample_records(found)
        if records is None:
            raise NotImplementedError(f"{type(self).__name__} must define its metrics")
        values = self.scores_of(records.double().sum(dim=0))
        return {name: float(value) for name, value in values.items()} | {"count": len(records)}

    def write_answers(self, path: Path, found: Predictions, data: Samples, protocol: str | None) -> None:
        """Writes what the model says of each sample of a data set, as CSV.

        Args:
            path: file to write.
            found: of all samples.
            data: the samples.
            protocol: how the model was selected.
        """
        raise NotImplementedError(f"{type(self).__name__} must write its answers")

    def fit(self, read: LabelOf, train: Samples, val: Samples) -> Facts:
        """Facts that are fitted to the kept adapter's answers; by default none are.

        Args:
            read: gives what the adapter's head reads and answers.
            train: training part.
            val: validation part.
        """
        return self.facts

    def judge(self, found: Predictions) -> dict[str, Any]:
        """What a report says of a test in addition to the metrics, such as calibration; JSON-able."""
        return {}

    def sample_scores(self, found: Predictions) -> Tensor | None:
        """(n,) the value of each sample whose mean is the first score, for intervals; None where it is no such mean."""
        return None

    def sample_records(self, found: Predictions) -> Tensor | None:
        """(n, K) what of each sample adds up to the scores, for intervals of scores that are no mean over samples.

        Such as points in the intersection and in the union of each class. None where there is nothing of the kind.
        """
        return None

    @classmethod
    def scores_of(cls, sums: Tensor) -> Mapping[str, Tensor]:
        """Each of :attr:`scores`, (...), from sums (..., K) of float64 over the records of samples.

        Samples are resampled some thousand times for an interval, so it works on all leading axes at once, and stays
        finite where a class is in none of the samples.
        """
        raise NotImplementedError(f"{cls.__name__} must define its scores for its records")

    # Labels of points.

    @property
    def point_classes(self) -> list[str]:
        """Names of what a point is labelled with, by number; empty where points are not, and no picture shows them."""
        return []

    def point_labels(self, outputs: Tensor, batch: Batch) -> Tensor:
        """(b, N) int64, the label of each point of a batch, from :meth:`outputs` (b, N, classes)."""
        return outputs.argmax(dim=-1)

    # Predictions for single inputs.

    def columns(self, top: int) -> list[str]:
        """Columns of a CSV file of answers, between ``file`` and ``adapter`` and ``warnings`` and ``error``.

        Args:
            top: how many of several ranked answers are given.
        """
        raise NotImplementedError(f"{type(self).__name__} must name its columns")

    def answers(
        self, model: AdaptedModel, batch: Batch, inputs: Sequence[Ready], adapter: str, top: int
    ) -> list[Answer | None]:
        """What a model in eval mode says of some inputs; None where that is not finite.

        Args:
            model: of the adapter, on the device of the batch.
            batch: the inputs as the model takes them, with ``targets.condition`` where it takes one.
            inputs: as they were read; of a task about :attr:`whole` inputs with their pieces, see :meth:`pieces`.
            adapter: its name.
            top: how many of several ranked answers to give.
        """
        raise NotImplementedError(f"{type(self).__name__} must answer")

    def pieces(self, points: Tensor, name: str) -> Iterable[Cut]:
        """What a model is given of a :attr:`whole` cloud, piece by piece; by default all of it at once.

        Each piece is then prepared as a training cloud is, normalised, and reduced to the model's number of points or
        repeated up to it, unless the task has placed it. Pieces may overlap. Only a batch of them is in memory.

        Args:
            points: (n, 3) float64, with y up, in the units of the file.
            name: of the input.

        Raises:
            DataError: naming the input, if it cannot be cut.
        """
        return [Cut(torch.arange(len(points)))]

    def joining(self, cloud: Cloud) -> Joining:
        """What makes one answer about a :attr:`whole` input of those about its pieces, which it is given in order.

        Args:
            cloud: the input. A label for each row of its file is in ``cloud.kept``'s order where rows were left out.
        """
        raise NotImplementedError(f"{type(self).__name__} must join its answers")

    def write_file(self, answer: Answer, path: Path, kind: str) -> None:
        """Writes an answer into a file of its own, such as the input with a label a point.

        Args:
            answer: of :meth:`answers`.
            path: to write, whole or not at all.
            kind: one of :attr:`file_kinds`.
        """
        raise NotImplementedError(f"{type(self).__name__} must write its files")


TASKS: Registry[type[Task]] = Registry("task")
"""Tasks by the name used in ``task.name``."""
