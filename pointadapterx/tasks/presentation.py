"""How a task shows what it found: in lines and tables for the terminal, in reports, exported files and model cards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from rich.table import Table
from torch import Tensor

from pointadapterx.datasets.point_files import Reading
from pointadapterx.tasks.exchange import Score, Tabular

if TYPE_CHECKING:
    from pointadapterx.tasks.point_scores import FileScores

FEWEST_UNITS = 5
"""Independent test samples, such as rooms, that a bootstrap needs: intervals over fewer say nothing."""


def too_few(units: int) -> str:
    """Why scores over so many independent test samples have no interval; empty where they have."""
    if units >= FEWEST_UNITS:
        return ""
    return f"{units} independent test {'sample is' if units == 1 else 'samples are'} too few for an interval"


class Presentation:
    """The part of a :class:`~pointadapterx.tasks.base.Task` that nothing is computed from.

    Attributes:
        scores: of the task.
        facts: of the task.
        unexportable: why models of the task cannot be exported; empty where they can.
    """

    scores: ClassVar[Mapping[str, Score]] = {}
    unexportable: ClassVar[str] = ""
    facts: Any

    def scoring(self, field: str | int | None, reading: Reading) -> FileScores | None:
        """What compares answers with labels in the files; None for a task whose files carry no labels to compare with.

        Args:
            field: with the labels; None: as the training files had it.
            reading: how the files are read for predictions.
        """
        return None

    @property
    def pixel_classes(self) -> list[str]:
        """Names of what a pixel is labelled with, by number; empty where pixels are not, and no picture shows them."""
        return []

    def pixel_labels(self, outputs: Tensor) -> Tensor:
        """(b, S, S) int64, the label of each pixel of a batch, from outputs (b, classes, S, S)."""
        return outputs.argmax(dim=1)

    @property
    def evaluation(self) -> str:
        """How a test counts, for a task that knows several ways: its name and what that means; printed with figures."""
        return ""

    def metrics_table(self, metrics: Mapping[str, Any], title: str) -> Table:
        """Metrics for the terminal; by default the scores alone."""
        table = Table(title=title, title_justify="left")
        table.add_column("score")
        table.add_column("value", justify="right")
        for key, score in self.scores.items():
            table.add_row(score.long, f"{metrics[key]:.4g} {score.unit}".rstrip(), style="bold")
        return table

    def scores_text(self, metrics: Mapping[str, Any], prefix: str = "") -> str:
        """The scores in a line: ``OA 81.20 mAcc 78.10``."""
        return " ".join(f"{score.short} {metrics[f'{prefix}{key}']:.2f}" for key, score in self.scores.items())

    def record_text(self, record: Mapping[str, Any], part: str) -> str:
        """The metrics of a part of the data in an epoch's record, for the log."""
        return f"{part} {self.scores_text(record, f'{part}_')}"

    def result(self, metrics: Mapping[str, Any], what: str, interval: tuple[float, float] | None) -> str:
        """The outcome of a test in a line; by default the first score, with its 95 % interval where it has one.

        Args:
            metrics: of the test.
            what: the samples are, ``"clouds"`` or ``"images"``.
            interval: of the first score.
        """
        (key, score), *_ = self.scores.items()
        sure = "" if interval is None else f", 95 % interval {interval[0]:.4g} to {interval[1]:.4g}"
        count = f" of {metrics['count']} {what}" if "count" in metrics else ""
        return f"{score.long}{count} {metrics[key]:.4g}{sure} {score.unit}".rstrip()

    def tables(self, metrics: Mapping[str, Any]) -> list[Tabular]:
        """Metrics in tables for a report, in addition to the scores."""
        return []

    def reading(self) -> dict[str, Any]:
        """What an exported file says of how to read its outputs; JSON-able."""
        return {"classes": self.facts.classes}

    def card(self, report: Mapping[str, Any] | None) -> list[tuple[str, str]]:
        """Sections of a model card on what the answers are worth: title and Markdown.

        Args:
            report: of the run, where there is one.
        """
        return []

    def limits(self) -> list[str]:
        """Sentences of a model card on what the answers do not say."""
        return []

    @property
    def lacks_novelty(self) -> bool:
        """Whether answers could say how unlike the training data an input is, but the adapter's file does not."""
        return False
