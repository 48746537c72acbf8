"""Labels of points: what they are, what they were taken for, and where that is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pointadapterx.arrays import as_array
from pointadapterx.datasets import build_inputs
from pointadapterx.datasets.inputs import Batch, Batches
from pointadapterx.errors import ConfigError
from pointadapterx.tasks.exchange import require_finite
from pointadapterx.text import printable
from pointadapterx.visualize.colours import GREY, KINDS, of_labels, rgb
from pointadapterx.visualize.loaded_run import Subject

UNKNOWN = "no label"
RIGHT, WRONG = rgb(GREY), rgb(KINDS[5])
PALE = rgb("#d9d9d9")  # of points without a label


class Labelled(NamedTuple):
    """Clouds with labels of their points.

    Attributes:
        clouds: (b, N, 3), as the model takes them, on the CPU.
        truth: (b, N) int64; a number that is none of the classes means that the point has no label.
        found: (b, N) int64.
        classes: names.
    """

    clouds: Tensor
    truth: np.ndarray
    found: np.ndarray
    classes: Sequence[str]

    @property
    def known(self) -> np.ndarray:
        """(b, N) bool, which points have a label."""
        return (self.truth >= 0) & (self.truth < len(self.classes))

    @property
    def wrong(self) -> np.ndarray:
        """(b, N) bool, which of them were taken for something else."""
        return self.known & (self.truth != self.found)

    def coloured(self) -> dict[str, np.ndarray]:
        """Colours (b, N, 3) of the truth, of what was found, and of the errors, by name."""
        colours = of_labels(len(self.classes))
        truth = np.where(self.known[..., None], colours[self.truth.clip(0, len(self.classes) - 1)], PALE)
        errors = np.where(self.wrong[..., None], WRONG, RIGHT)
        return {
            "truth": truth,
            "prediction": colours[self.found],
            "errors": np.where(self.known[..., None], errors, PALE),
        }

    def legend(self) -> list[tuple[str, np.ndarray]]:
        """The classes that occur, with their colours."""
        seen = np.unique(np.concatenate([self.truth[self.known], self.found.ravel()]))
        colours = of_labels(len(self.classes))
        named = [(printable(self.classes[number]), colours[number]) for number in seen]
        return named if self.known.all() else [*named, (UNKNOWN, PALE)]

    def legend_of_errors(self) -> list[tuple[str, np.ndarray]]:
        """What the colours of the errors mean, with the share of the points."""
        share = 100 * self.wrong.sum() / max(1, self.known.sum())
        named = [("right", RIGHT), (f"wrong ({share:.1f} % of the points shown)", WRONG)]
        return named if self.known.all() else [*named, (UNKNOWN, PALE)]


def labels_points(subject: Subject) -> bool:
    """Whether there is something to show."""
    return subject.is_points and bool(subject.task.point_classes)


def has_labels(subject: Subject) -> bool:
    """Whether the labels of points are known, for all samples together or for each as it is drawn."""
    return labels_points(subject) and (subject.targets.points is not None or bool(subject.test.point_classes))


@torch.inference_mode()
def labelled(subject: Subject, indices: Sequence[int]) -> Labelled:
    """Test samples by number, with the labels of their points.

    Args:
        subject: of a task that labels points.
        indices: of samples.

    Raises:
        ConfigError: if it does not know them.
        TrainingError: if outputs are not finite.
    """
    if not has_labels(subject):
        raise ConfigError(f"{subject.path}: the task {subject.config.task.name} knows no labels of points to show")
    parts = [_labelled(subject, rows) for rows in torch.tensor(indices).split(subject.config.eval.batch_size)]
    batches, found = zip(*parts, strict=True)
    clouds, truth = (
        torch.cat(list(part)) for part in zip(*((b.inputs, b.targets.points) for b in batches), strict=True)
    )
    return Labelled(clouds.cpu(), as_array(truth), as_array(torch.cat(found)), subject.task.point_classes)


def _labelled(subject: Subject, rows: Tensor) -> tuple[Batch, Tensor]:
    """A batch of test samples and what its points were taken for."""
    batch = Batches(build_inputs(subject.config), subject.test, subject.targets, subject.device).test(rows)
    with subject.accelerator.autocast():
        outputs = subject.task.outputs(subject.model, batch).float()
    require_finite(outputs, "logits")
    return batch, subject.task.point_labels(outputs, batch)


def worst(subject: Subject, count: int) -> list[tuple[int, str]]:
    """Number and score in words of the test samples with the worst first score; none where samples have no score."""
    key, score = next(iter(subject.task.scores.items()))
    records = subject.task.sample_records(subject.predictions)
    if records is not None:
        values: Tensor | None = subject.task.scores_of(records.double())[key]
    else:
        values = subject.task.sample_scores(subject.predictions)
    if values is None:
        return []
    order = values.argsort(descending=not score.higher_is_better, stable=True)[:count].tolist()
    return [(number, f"{score.short} {float(values[number]):.4g} {score.unit}".rstrip()) for number in order]
