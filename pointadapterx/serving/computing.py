"""Answers of several adapters at once: those on one backbone share a pass where their methods allow it."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence

import torch

from pointadapterx.datasets.inputs import Batch
from pointadapterx.engine.bank import AdapterBank
from pointadapterx.engine.input_form import Failure
from pointadapterx.serving.residents import Residents
from pointadapterx.serving.served import Served
from pointadapterx.tasks.exchange import Answer, Ready

log = logging.getLogger(__name__)
Found = list[Answer | Failure] | Exception


def answers_of(asked: Mapping[Served, Sequence[Ready]], residents: Residents) -> Iterator[tuple[Served, Found]]:
    """What each adapter says of its inputs, or the error that it ends with.

    Args:
        asked: at least one prepared input for each adapter.
        residents: the models.
    """
    batches: dict[Served, Batch] = {}
    groups: dict[Hashable, list[Served]] = {}
    for served, ready in asked.items():
        try:
            residents.resident(served)
            batches[served] = batch = served.batch(ready)
            groups.setdefault((served.shares, batch.inputs.shape[1:]), []).append(served)
        except Exception as error:  # of this adapter; the others are computed
            yield served, error
    for group in groups.values():
        yield from _group(group, asked, batches, residents)


def _group(
    group: Sequence[Served],
    asked: Mapping[Served, Sequence[Ready]],
    batches: Mapping[Served, Batch],
    residents: Residents,
) -> Iterator[tuple[Served, Found]]:
    try:
        bank = _shared(group, residents)
        found = {} if bank is None else _together(bank, group, asked, batches)
    except Exception as error:  # of one of them: each by itself says of which
        log.warning("adapters do not share a pass: %s: %s", type(error).__name__, error)
        found = {}
    if found:
        yield from found.items()
        return
    for served in group:
        try:
            yield served, [answer for (answer,) in served.answers(asked[served], batches[served])]
        except Exception as error:  # as above
            yield served, error


def _shared(group: Sequence[Served], residents: Residents) -> AdapterBank | None:
    """The bank that all of them are in, if they are several."""
    if len(group) == 1:
        return None
    banks = {id(bank): bank for served in group if (bank := residents.resident(served).bank) is not None}
    bank = next(iter(banks.values())) if len(banks) == 1 else None
    # Where memory is short, one of them may have had to leave for another.
    return bank if bank is not None and all(served.key in bank.names for served in group) else None


def _together(
    bank: AdapterBank,
    group: Sequence[Served],
    asked: Mapping[Served, Sequence[Ready]],
    batches: Mapping[Served, Batch],
) -> dict[Served, Found]:
    inputs = torch.cat([batches[served].inputs for served in group])
    counts = {served.key: len(asked[served]) for served in group}
    with group[0].computing(), bank.together(inputs, counts):
        return {served: [answer for (answer,) in served.answers(asked[served], batches[served])] for served in group}
