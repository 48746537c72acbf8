"""Settings of training that follow from others which were overridden."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pointadapterx.config import Overrides
from pointadapterx.config.overrides import flat
from pointadapterx.sections import EvalConfig, TrainConfig


def fitting(train: TrainConfig, judged: EvalConfig, overrides: Overrides) -> Mapping[str, Any]:
    """Overrides that make the defaults fit shorter training, or training that scores no epoch.

    Without them ``train.epochs=5`` would be refused for a warm-up and an early stopping that nobody asked for. What is
    overridden itself is left as it is.

    Args:
        train: section to start from.
        judged: ``eval`` section to start from.
        overrides: what the user sets.
    """
    changes = flat(overrides)
    epochs, every = (
        changes.get(key, default) for key, default in (("train.epochs", train.epochs), ("eval.every", judged.every))
    )
    if not all(isinstance(number, int) and number > 0 for number in (epochs, every)):
        return {}  # refused later, by name
    found = dict[str, Any]()
    if train.warmup_epochs >= epochs:
        found["train.warmup_epochs"] = 0
    unscored = changes.get("eval.protocol", judged.protocol) == "last"
    if train.early_stopping is not None and (unscored or every * (train.early_stopping + 1) > epochs):
        found["train.early_stopping"] = None
    return {key: value for key, value in found.items() if key not in changes}
