"""How the kept epoch of a run is chosen, in words that are printed with every figure."""

from __future__ import annotations

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


def protocol_words(config: Config, own_validation: bool) -> str:
    """How the kept epoch is chosen.

    Args:
        config: complete config.
        own_validation: whether the data set has a validation part, which is then not drawn from the training set.
    """
    protocol = config.eval.protocol
    words = PROTOCOLS[protocol] if chooses(config) else LAST_KEPT.get(protocol, PROTOCOLS[protocol])
    return words.format(part="the data set's validation part" if own_validation else "a part of the training set")
