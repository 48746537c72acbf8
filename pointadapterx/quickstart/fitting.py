"""Settings of training that follow from others which were overridden."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pointadapterx.config import Overrides, read_document
from pointadapterx.config.overrides import flat
from pointadapterx.sections import EvalConfig, TrainConfig

WARMUP_SHARE = 10
"""Of the epochs, which the warm-up takes where the usual one leaves none."""


def shorter_warmup(name: str | Path, overrides: Sequence[str]) -> int | None:
    """``train.warmup_epochs`` for a config whose own leaves nothing of overridden epochs; None where it fits.

    Args:
        name: of the config.
        overrides: what the user sets; a warm-up among them is kept, and refused later if it does not fit.

    Raises:
        ConfigError: if the config cannot be read, or a text is no override.
    """
    changes = flat(overrides)
    epochs = changes.get("train.epochs")
    if not isinstance(epochs, int) or epochs < 1 or "train.warmup_epochs" in changes:
        return None
    section = read_document(name).content.get("train")
    own = section.get("warmup_epochs") if isinstance(section, Mapping) else None
    warmup = TrainConfig.model_fields["warmup_epochs"].default if own is None else own
    return epochs // WARMUP_SHARE if isinstance(warmup, int) and warmup >= epochs else None


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
        found["train.warmup_epochs"] = epochs // WARMUP_SHARE
    unscored = changes.get("eval.protocol", judged.protocol) == "last"
    if train.early_stopping is not None and (unscored or every * (train.early_stopping + 1) > epochs):
        found["train.early_stopping"] = None
    return {key: value for key, value in found.items() if key not in changes}
