"""How the kept epoch of a run is chosen, in words that are printed with every figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pointadapterx.config import Config

PROTOCOLS = {
    "validation": "validation: best epoch selected on {part}, test set used once",
    "last": "last: the last epoch of the whole training set, nothing selected, test set used once",
    "published": "published: best epoch selected on the TEST set, optimistic",
}
LAST_KEPT = {
    "validation": "validation: the last epoch kept, the only one scored on {part}, test set used once",
    "published": "published: the last epoch kept, the only one scored on the TEST set",
}
"""The same where ``eval.every`` leaves a single epoch to choose from."""


def chooses(config: Config) -> bool:
    """Whether a run of this config has several epochs to choose from."""
    return config.eval.protocol != "last" and config.eval.every < config.train.epochs


def keeps_last_tie(config: Config) -> bool:
    """Whether the last of equally good epochs is kept, not the first.

    A small part is soon answered without a mistake, and the last of such epochs has learnt most.
    """
    ties = config.eval.ties or ("first" if config.train.early_stopping is None else "last")
    return ties == "last"


def stops_early(config: Config, history: Sequence[Mapping[str, Any]], best_epoch: int) -> bool:
    """Whether ``train.early_stopping`` evaluations since the best have passed, and epochs are left.

    It depends on the history alone, so a run that is resumed stops where it would have stopped.

    Args:
        config: complete config.
        history: a record a finished epoch.
        best_epoch: the best so far, from 0; -1 for none.
    """
    patience, every, epochs = config.train.early_stopping, config.eval.every, config.train.epochs
    if patience is None or best_epoch < 0 or len(history) >= epochs:
        return False
    judged = range(every, len(history) + 1, every)  # epochs, from 1
    return sum(epoch > best_epoch + 1 for epoch in judged) >= patience


def protocol_words(config: Config, own_validation: bool) -> str:
    """How the kept epoch is chosen.

    Args:
        config: complete config.
        own_validation: whether the data set has a validation part, which is then not drawn from the training set.
    """
    protocol = config.eval.protocol
    words = PROTOCOLS[protocol] if chooses(config) else LAST_KEPT.get(protocol, PROTOCOLS[protocol])
    return words.format(part="the data set's validation part" if own_validation else "a part of the training set")
