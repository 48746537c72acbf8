"""What is told of the routing, and when an expert is said to starve."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from pointadapterx.engine.health import (
    routing_line,
    routing_record,
    routing_scalars,
    routing_summary,
    starved_experts,
)

MEANS = {
    "loss": torch.tensor(1.0),
    "routing/load": torch.tensor([[0.1, 0.5, 0.2, 0.2], [0.2, 0.4, 0.1, 0.3], [0.06, 0.33, 0.2, 0.41]]),
    "routing/entropy": torch.tensor([1.3, 1.2, 1.13]),
    "routing/switched": torch.tensor([0.4, 0.36], dtype=torch.float64),
}


def epoch(*load: float) -> dict[str, Any]:
    """The record of an epoch whose two blocks have this load, averaged."""
    return {"epoch": 1, "routing_load": [[0.5 * share for share in load], [1.5 * share for share in load]]}


def test_record_is_json_and_holds_the_routing_alone() -> None:
    record = json.loads(json.dumps(routing_record(MEANS)))
    assert record == {
        "routing_load": [[0.1, 0.5, 0.2, 0.2], [0.2, 0.4, 0.1, 0.3], [0.06, 0.33, 0.2, 0.41]],
        "routing_entropy": [1.3, 1.2, 1.13],
        "routing_switched": [0.4, 0.36],
    }


def test_line_averages_over_blocks() -> None:
    assert routing_line(routing_record(MEANS)) == "experts 12–41 %, entropy 1.21 of 1.39, switched 38 %"


def test_summary_is_of_percentages_averaged_over_blocks() -> None:
    summary = routing_summary(routing_record(MEANS))
    expected = {"routing_min_load": 12.0, "routing_entropy": 87.28, "routing_switched": 38.0}
    assert summary == pytest.approx(expected, rel=1e-4)
    uniform = {"routing_load": [[0.25] * 4], "routing_entropy": [1.3863], "routing_switched": []}
    assert routing_summary(uniform) == {"routing_min_load": 25.0, "routing_entropy": 100.0}
    alone = {"routing_load": [[1.0], [1.0]], "routing_entropy": [0.0, 0.0], "routing_switched": [0.0]}
    assert routing_summary(alone) == {"routing_min_load": 100.0, "routing_switched": 0.0}


def test_one_block_has_no_switches() -> None:
    record = routing_record({name: values[:1] for name, values in MEANS.items() if name != "loss"})
    record["routing_switched"] = []
    assert routing_line(record) == "experts 10–50 %, entropy 1.30 of 1.39"


def test_scalars_are_one_per_value() -> None:
    scalars = routing_scalars(routing_record(MEANS))
    assert len(scalars) == 12 + 3 + 2
    assert scalars["routing_load/block2_expert3"] == 0.41
    assert scalars["routing_entropy/block1"] == 1.2
    assert scalars["routing_switched/block2"] == 0.36  # between blocks 1 and 2
    assert "routing_switched/block0" not in scalars


def test_a_method_without_routing_says_nothing() -> None:
    record = {"epoch": 1, "train_loss": 2.0}
    assert routing_record({"loss": torch.tensor(2.0)}) == {}
    assert routing_line(record) == ""
    assert routing_summary(record) == {}
    assert routing_scalars(record) == {}
    assert starved_experts([record] * 5) == []


def test_a_starved_expert_is_reported_once_with_the_way_out() -> None:
    history = [epoch(0.4, 0.2, 0.2, 0.2), *[epoch(0.5, 0.3, 0.01, 0.19)] * 4]
    warnings = [starved_experts(history[:count]) for count in range(1, 6)]
    assert [len(found) for found in warnings] == [0, 0, 0, 1, 0]
    line = warnings[3][0]
    assert line == (
        "expert 2 of 0–3 received less than 2 % of the sub-tokens in each of the last 3 epochs; "
        "raise method.balance_weight or lower method.num_experts"
    )


def test_an_expert_that_starves_again_is_reported_again() -> None:
    hungry, fed = epoch(0.5, 0.49, 0.01), epoch(0.4, 0.3, 0.3)
    assert len(starved_experts([hungry, hungry, hungry])) == 1
    assert starved_experts([hungry, hungry, fed, hungry, hungry]) == []
    assert len(starved_experts([hungry, hungry, hungry, fed, hungry, hungry, hungry])) == 1


@pytest.mark.parametrize(("share", "count"), [(1 / 64, 0), (0.4 / 64, 1)])
def test_an_even_share_of_many_experts_is_not_starving(share: float, count: int) -> None:
    rest = (1 - share) / 63
    assert len(starved_experts([epoch(share, *[rest] * 63)] * 3)) == count
