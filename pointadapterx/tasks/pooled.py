"""Tasks with one answer a sample, from pooled tokens through a small MLP."""

from __future__ import annotations

import csv
import io
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.datasets import Samples
from pointadapterx.datasets.inputs import Batch
from pointadapterx.files import write_text
from pointadapterx.models.features import FeatureInfo
from pointadapterx.tasks.base import Task
from pointadapterx.tasks.exchange import Answer, Predictions, Ready
from pointadapterx.tasks.heads import ClassificationHead
from pointadapterx.text import cell

Said = float | str


@dataclass(frozen=True)
class Values:
    """What an adapter says of one input: numbers or words by name.

    Attributes:
        name: of the input.
        adapter: name of the adapter.
        values: by the names of :attr:`PooledTask.said`.
        warnings: in what the input differs from the training data.
    """

    name: str
    adapter: str
    values: dict[str, Said]
    warnings: list[str]

    def text(self) -> str:
        """Names and values."""
        return ", ".join(f"{name} {_short(value)}" for name, value in self.values.items())

    def cells(self, top: int) -> list[str]:
        """The values."""
        return [_cell(value) for value in self.values.values()]

    def content(self) -> dict[str, Any]:
        """All but the name."""
        return {key: value for key, value in asdict(self).items() if key != "name"}


class PooledTask(Task):
    """A task with :meth:`width` outputs a sample.

    Attributes:
        said: names of what :meth:`say` says, columns of a table of answers.
    """

    said: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def width(self) -> int:
        """Outputs of the head for a sample."""

    def build_head(self, info: FeatureInfo) -> ClassificationHead:
        """The MLP of the ``head`` section, with :meth:`width` outputs."""
        assert self.config.head is not None
        return ClassificationHead(info, self.config.head.model_copy(update={"num_classes": self.width()}))

    @abstractmethod
    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss, a mean over samples.

        Args:
            outputs: (b, width) float32.
            targets: (b, …), ``targets.sample`` of the data.
        """

    def say(self, output: Tensor) -> dict[str, Said]:
        """The answer that an output (width,) means, by the names of :attr:`said`."""
        raise NotImplementedError(f"{type(self).__name__} must say what its outputs mean")

    def loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The criterion and the method's auxiliary loss; reports the former."""
        assert batch.targets.sample is not None
        outputs, auxiliary = model(batch.inputs)
        loss = self.criterion(outputs.float(), batch.targets.sample)
        sums = {"loss": loss.detach() * len(outputs)} | self.counted(outputs.detach(), batch.targets.sample)
        return loss if auxiliary is None else loss + auxiliary, sums

    def counted(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Further sums over a training batch, for :meth:`progress`."""
        return {}

    def write_answers(self, path: Path, found: Predictions, data: Samples, protocol: str | None) -> None:
        """One row per sample: protocol, index, name, what is said of it, group."""
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["protocol", "index", "name", *self.said, "group"])
        for index, output in enumerate(found.rows):
            name = cell(data.names[index]) if data.names is not None else ""
            group = int(data.groups[index]) if data.groups is not None else ""
            writer.writerow([protocol, index, name, *map(_cell, self.say(output).values()), group])
        write_text(path, text.getvalue())

    def columns(self, top: int) -> list[str]:
        """:attr:`said`."""
        return list(self.said)

    def answers(
        self, model: AdaptedModel, batch: Batch, inputs: Sequence[Ready], adapter: str, top: int
    ) -> list[Answer | None]:
        """What each output says, unless it is not finite."""
        outputs = self.outputs(model, batch).float().cpu()
        finite = outputs.isfinite().all(dim=1).tolist()
        return [
            Values(item.name, adapter, self.say(output), item.warnings) if known else None
            for item, output, known in zip(inputs, outputs, finite, strict=True)
        ]


def _short(value: Said) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _cell(value: Said) -> str:
    return cell(value) if isinstance(value, str) else f"{value:.6g}"
