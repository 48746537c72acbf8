"""Loads a trained adapter together with its data set, or with the user's own files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from pointadapterx.build import build_restored, build_splits, build_test_split, model_config
from pointadapterx.checkpoints.adapter_file import read_adapter
from pointadapterx.datasets import Samples, build_inputs
from pointadapterx.datasets.base import UNLABELLED, Targets
from pointadapterx.datasets.doubts import Cloud
from pointadapterx.datasets.inputs import Batch
from pointadapterx.engine.conditions import Said
from pointadapterx.engine.devices import make_accelerator
from pointadapterx.engine.evaluator import evaluate, evaluate_features
from pointadapterx.engine.input_form import Failure
from pointadapterx.engine.predictor import Predictor
from pointadapterx.errors import CheckpointError, ConfigError, DataError
from pointadapterx.peft.parts.mixture import Routing
from pointadapterx.tasks import build_task
from pointadapterx.tasks.exchange import Answer, Piece, Predictions, Ready, require_finite
from pointadapterx.text import printable
from pointadapterx.visualize import introspection


class Chosen(NamedTuple):
    """Some inputs to look at.

    Attributes:
        inputs: as the model takes them, (n, N, 3) or (n, channels, S, S), on the model's device.
        names: n titles.
        labels: (n,) int64, or None for files of which nothing is known.
        indices: n numbers of test samples, or None for files.
        condition: (n,) int64, where the model takes one.
    """

    inputs: Tensor
    names: list[str]
    labels: Tensor | None
    indices: Sequence[int] | None = None
    condition: Tensor | None = None


class Subject:
    """An adapter with its model in eval mode, and what there is to show it.

    Args:
        adapter: an adapter file, a run's folder, or ``hf://owner/repository``.
        overrides: of its config: ``data.…``, ``eval.…``, ``backbone.weights``, ``train.precision``.
        name: in titles; by default that of the method.

    Attributes:
        path: of the adapter file.
        name: see above.
        config: the run's, with the overrides.
        info: what the adapter file says.
        classes: names of the classes.
        device: of the model.
        model: in eval mode.

    Raises:
        CheckpointError: if the adapter cannot be read.
        ConfigError: for an override that would make it another model.
    """

    def __init__(self, adapter: str | Path, overrides: Sequence[str] = (), name: str | None = None) -> None:
        self.info = read_adapter(adapter)
        of_task = tuple(f"task.{key}=" for key in self.info.task.test_keys)
        for text in overrides:
            if not text.startswith(("data.", "eval.", "backbone.weights=", "train.precision=", *of_task)):
                raise ConfigError(
                    f"{text}: would make it another model; data.*, eval.*, backbone.weights and train.precision may "
                    "change"
                )
        self.path = self.info.path
        self.config = model_config(self.info, overrides)
        self.name = name or self.info.method.name
        self.task = build_task(self.config, self.info.facts)
        self.classes = self.info.classes
        model = build_restored(self.info, self.config)
        self.device = self.accelerator.device
        self.model = model.to(self.device).eval()

    @property
    def accelerator(self) -> Accelerator:
        """Device and precision; there is one a process, which the subject that computes makes its own."""
        return make_accelerator(self.config.train.precision, self.config.train.device)

    @property
    def is_points(self) -> bool:
        """Whether it takes clouds, and not images."""
        return self.model.backbone.modality == "points"

    @cached_property
    def test(self) -> Samples:
        """The test split of its data set.

        Raises:
            DataError: if the files are missing or damaged.
            CheckpointError: if they have other classes.
        """
        dataset = build_test_split(self.config)
        if self.task.predicts_classes and dataset.classes != self.classes:
            raise CheckpointError(f"{self.path}: the data in data.root={self.config.data.root} has other classes")
        return dataset

    @cached_property
    def train(self) -> Samples:
        """The part of its data set that it was trained on."""
        return build_splits(self.config).train

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Those of the test split, as its task measures them."""
        return self.task.metrics(self.predictions)

    @cached_property
    def predictions(self) -> Predictions:
        """Logits of the test split."""
        return evaluate(self.model, self.test, self.task, self.accelerator)

    @cached_property
    def targets(self) -> Targets:
        """What is true of the test split."""
        return self.task.targets(self.test)

    @cached_property
    def probabilities(self) -> Tensor:
        """Of the test split, (n, classes); calibrated where the adapter stores a temperature."""
        return self.read(self.predictions.logits)

    @cached_property
    def features(self) -> Tensor:
        """What the head reads of the test split, (n, pools · C)."""
        return evaluate_features(self.model, self.test, self.task, self.accelerator)

    def choose(self, indices: Sequence[int]) -> Chosen:
        """Test samples by their number."""
        rows, dataset = torch.tensor(indices, dtype=torch.int64), self.test
        inputs = build_inputs(self.config)
        values = inputs.for_test(inputs.source(dataset)(rows).to(self.device))
        condition = self.targets.condition
        known = None if condition is None else condition[rows]
        return Chosen(values, [self.title(index) for index in indices], dataset.labels[rows], indices, known)

    def spread(self, count: int) -> list[int]:
        """Numbers of ``count`` test samples, of as many classes as can be: the first of each class, then the second."""
        seen: dict[int, int] = {}
        order = []
        for index, label in enumerate(self.test.labels.tolist()):
            seen[label] = seen.get(label, 0) + 1
            order.append((seen[label], label, index))
        return [index for _, _, index in sorted(order)[:count]]

    def title(self, index: int) -> str:
        """Class and name of a test sample; the name alone where samples have no class."""
        names = self.test.names
        if self.test.classes == UNLABELLED:
            return printable(Path(names[index]).stem if names else f"sample {index}")
        label = self.test.classes[int(self.test.labels[index])]
        return printable(f"{label}: {Path(names[index]).stem}" if names else f"{label} {index}")

    def read_files(self, files: Sequence[str | Path], condition: Said = None) -> Chosen:
        """Files of one's own, or those in folders, prepared as ``predict`` does; of large ones each piece.

        Args:
            files: or folders.
            condition: of the files, see :class:`~pointadapterx.engine.predictor.Predictor`.

        Raises:
            ConfigError: if the model takes a condition and none is given, or it is unknown.
            DataError: if a file cannot be read.
        """
        weights = self.config.backbone.weights
        predictor = Predictor(self.path, weights=weights, device=self.device, condition=condition)
        values, names, said = [], [], []
        for item in predictor.ready(files):
            if isinstance(item, Failure):
                raise DataError(item.reason)
            values.append(item.values)
            names.append(printable(Path(item.name).stem))
            said.append(self.task.category(item.said))
        known = torch.tensor(said) if self.task.categories else None
        return Chosen(torch.stack(values), names, None, condition=known)

    def routing(self, inputs: Tensor) -> dict[str, Routing]:
        """See :func:`~pointadapterx.visualize.introspection.routing`; in the run's precision, as all of these."""
        with self.accelerator.autocast():
            return introspection.routing(self.model, inputs)

    def class_attention(self, inputs: Tensor) -> Tensor:
        """See :func:`~pointadapterx.visualize.introspection.class_attention`."""
        with self.accelerator.autocast():
            return introspection.class_attention(self.model, inputs)

    def saliency(self, inputs: Tensor) -> Tensor:
        """Of the probabilities of :meth:`prediction`, see :func:`~pointadapterx.visualize.introspection.saliency`."""
        with self.accelerator.autocast():
            return introspection.saliency(self.model, inputs, self.read)

    def read(self, logits: Tensor) -> Tensor:
        """Logits (..., classes) -> probabilities, calibrated where the adapter stores a temperature."""
        calibration = self.info.facts.calibration
        return logits.softmax(dim=-1) if calibration is None else calibration.probabilities(logits)

    def answers(self, chosen: Chosen) -> list[str]:
        """What the adapter says of each input, in a few words.

        Raises:
            TrainingError: if outputs are not finite.
        """
        inputs = chosen.inputs
        if self.task.predicts_classes:
            return [f"{answer} {100 * sure:.0f} %" for answer, sure in zip(*self.prediction(inputs), strict=True)]
        given = [
            Ready(name, values, [], self._piece(values)) for name, values in zip(chosen.names, inputs, strict=True)
        ]
        condition = None if chosen.condition is None else chosen.condition.to(inputs.device)
        with torch.inference_mode(), self.accelerator.autocast():
            batch = Batch(inputs, Targets(condition=condition))
            said = self.task.answers(self.model, batch, given, self.name, top=1)
        answers = [self._whole(item, answer) for item, answer in zip(given, said, strict=True)]
        return ["not finite" if answer is None else printable(answer.text()) for answer in answers]

    def _piece(self, values: Tensor) -> Piece | None:
        """What is shown as the only piece of its cloud, for a task about whole clouds."""
        if not self.task.whole:
            return None
        return Piece(Cloud(values.double().cpu().numpy()), torch.arange(len(values)), last=True)

    def _whole(self, item: Ready, answer: Answer | None) -> Answer | None:
        if answer is None or item.piece is None:
            return answer
        joining = self.task.joining(item.piece.cloud)
        joining.add(answer)
        return joining.joined()

    def prediction(self, inputs: Tensor) -> tuple[list[str], list[float]]:
        """The likeliest class of each input, and its probability.

        Raises:
            TrainingError: if logits are not finite.
        """
        with torch.inference_mode(), self.accelerator.autocast():
            logits = self.model(inputs).logits.float().cpu()
        require_finite(logits, "logits")
        best = self.read(logits).max(dim=-1)
        return [printable(self.classes[i]) for i in best.indices.tolist()], best.values.tolist()


def name_apart(subjects: Sequence[Subject]) -> None:
    """Gives adapters of the same method distinct names, by their folders or files, or by numbers."""
    names = [subject.name for subject in subjects]
    for subject in subjects:
        if names.count(subject.name) > 1:
            path = subject.path.resolve()
            subject.name += f" ({printable(path.parent.name if path.stem == 'adapter' else path.stem)})"
    names = [subject.name for subject in subjects]
    for number, subject in enumerate(subjects, 1):
        if names.count(subject.name) > 1:
            subject.name += f" {number}"
