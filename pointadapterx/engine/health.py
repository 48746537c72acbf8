"""Health of a mixture's routing: epoch record, log phrase, TensorBoard scalars, warnings of starved experts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from torch import Tensor

LOAD, ENTROPY, SWITCHED = "routing_load", "routing_entropy", "routing_switched"


def routing_record(means: Mapping[str, Tensor]) -> dict[str, Any]:
    """The routing's part of an epoch's record: nested lists, to four decimals.

    Args:
        means: of :meth:`~pointadapterx.peft.base.Method.statistics` over the epoch's samples.

    Returns:
        ``routing_load`` (blocks, E), ``routing_entropy`` (blocks,), ``routing_switched`` (blocks - 1,), see
        :func:`~pointadapterx.peft.parts.mixture.routing_statistics`; empty for a method that does not route.
    """
    return {
        name.replace("/", "_"): values.cpu().double().round(decimals=4).tolist()
        for name, values in means.items()
        if name.startswith("routing/")
    }


def routing_summary(record: Mapping[str, Any]) -> dict[str, float]:
    """The routing in three percentages, averaged over blocks.

    Args:
        record: of an epoch.

    Returns:
        ``routing_min_load``, share of the assignments that the least used expert receives; ``routing_entropy``, of
        the gates, in percent of uniform gates' (not of one expert); ``routing_switched`` (not of one block), share
        of sub-tokens whose expert differs from the block before. Empty where there is no routing.
    """
    if LOAD not in record:
        return {}
    load = _load_per_expert(record)
    summary = {"routing_min_load": 100 * min(load)}
    if len(load) > 1:
        summary[ENTROPY] = min(100.0, 100 * fmean(record[ENTROPY]) / math.log(len(load)))  # records are rounded
    if record[SWITCHED]:
        summary[SWITCHED] = 100 * fmean(record[SWITCHED])
    return summary


def routing_line(record: Mapping[str, Any]) -> str:
    """The routing in a few words, averaged over blocks: the least and the most used expert, entropy, switches.

    Args:
        record: of an epoch.

    Returns:
        For example "experts 12–41 %, entropy 1.21 of 1.39, switched 38 %", where 1.39 is log E; "" where
        there is no routing.
    """
    if LOAD not in record:
        return ""
    load = _load_per_expert(record)
    words = [
        f"experts {100 * min(load):.0f}–{100 * max(load):.0f} %",
        f"entropy {fmean(record[ENTROPY]):.2f} of {math.log(len(load)):.2f}",
    ]
    if record[SWITCHED]:
        words.append(f"switched {100 * fmean(record[SWITCHED]):.0f} %")
    return ", ".join(words)


def routing_scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """One scalar per value of the routing, by TensorBoard tag; blocks and experts are numbered from 0.

    The switches into block i, from block i - 1, are ``routing_switched/block<i>``.
    """
    scalars = {
        f"{LOAD}/block{block}_expert{expert}": share
        for block, shares in enumerate(record.get(LOAD, ()))
        for expert, share in enumerate(shares)
    }
    scalars |= {f"{ENTROPY}/block{block}": value for block, value in enumerate(record.get(ENTROPY, ()))}
    scalars |= {f"{SWITCHED}/block{block}": value for block, value in enumerate(record.get(SWITCHED, ()), start=1)}
    return scalars


def starved_experts(history: Sequence[Mapping[str, Any]], share: float = 0.02, epochs: int = 3) -> list[str]:
    """Warnings of experts that hardly any sub-token reaches; each once, at the epoch that makes it so.

    Args:
        history: records of the epochs so far, the present one last.
        share: load, averaged over blocks, under which an expert starves; at most half of an even share counts.
        epochs: for how many epochs in a row.

    Returns:
        One line an expert whose load stayed under ``share`` in the last ``epochs`` epochs, but not in the one before.
    """
    recent = history[-epochs:]
    if len(recent) < epochs or any(LOAD not in record for record in recent):
        return []
    num_experts = len(recent[-1][LOAD][0])
    share = min(share, 0.5 / num_experts)
    starved = set.intersection(*(_under(record, share) for record in recent))
    if len(history) > epochs and LOAD in history[-epochs - 1]:
        starved -= _under(history[-epochs - 1], share)
    return [
        f"expert {expert} of 0–{num_experts - 1} received less than {100 * share:g} % of the sub-tokens in each of the "
        f"last {epochs} epochs; raise method.balance_weight or lower method.num_experts"
        for expert in sorted(starved)
    ]


def _under(record: Mapping[str, Any], share: float) -> set[int]:
    return {expert for expert, load in enumerate(_load_per_expert(record)) if load < share}


def _load_per_expert(record: Mapping[str, Any]) -> list[float]:
    """Share of the assignments that each expert gets, averaged over blocks: (E,)."""
    return [fmean(loads) for loads in zip(*record[LOAD], strict=True)]
