"""What is done beside the steps of a training: keeping what it makes, drawing, probing. Jobs choose the hooks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pointadapterx.checkpoints.adapter_file import save_adapter
from pointadapterx.datasets import PointClouds
from pointadapterx.datasets.inputs import regime
from pointadapterx.datasets.preparation import Preparation
from pointadapterx.run_folder import ADAPTER_FILE

if TYPE_CHECKING:
    from pointadapterx.engine.trainer import Trainer


class Hook:
    """Called by the trainer; by default does nothing."""

    def best(self, trainer: Trainer, selected: Mapping[str, Any]) -> None:
        """The epoch is the best so far, or the one to keep.

        Args:
            trainer: its progress already says so.
            selected: metrics by the name of the part that they were selected on; empty where nothing was.
        """

    def assessed(self, trainer: Trainer, record: dict[str, Any], last: bool) -> None:
        """The epoch is assessed.

        Args:
            trainer: of the run.
            record: of the epoch, to which more may be added.
            last: whether this was the last epoch.
        """

    def text(self, record: Mapping[str, Any]) -> str:
        """What it added to the record, in words for the log."""
        return ""


class KeepAdapter(Hook):
    """Writes the adapter of the best epoch, with the story of its selection."""

    def __init__(self) -> None:
        self._form: dict[str, Any] | None = None

    def best(self, trainer: Trainer, selected: Mapping[str, Any]) -> None:
        """See :class:`Hook`."""
        if not trainer.accelerator.is_main_process:
            return
        story = {
            "protocol": trainer.protocol_words,
            "regime": regime(trainer.config.data),
            "epoch": trainer.progress.epoch + 1,
            **self._form_of_inputs(trainer),
            **selected,
        }
        path = trainer.folder / ADAPTER_FILE
        save_adapter(trainer.plain_model, path, config=trainer.config, facts=trainer.task.facts, metrics=story)

    def _form_of_inputs(self, trainer: Trainer) -> dict[str, Any]:
        """What a prediction has to know of the training clouds, computed once."""
        train = trainer.splits.train
        if not isinstance(train, PointClouds):
            return {}
        if self._form is None:
            self._form = {"inputs": Preparation.of(train)._asdict()}
        return self._form
