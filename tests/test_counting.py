"""What a model costs: by hand on small models, and as a real step has it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pointadapterx.adapted_model import AdaptedModel, count_parameters
from pointadapterx.build import build_model
from pointadapterx.config import Config, read_config
from pointadapterx.counting import (
    Costs,
    SavedStorages,
    count_costs,
    count_model,
    count_parts,
    flop_counter,
)
from pointadapterx.errors import ConfigError
from pointadapterx.peft import METHODS
from pointadapterx.peft.parts.mixture import SharedMixture, group_sizes
from tests.conftest import BACKBONES, ROOT, small_config, small_pretraining
from tests.mechanisms import exhaustive, methods_on

KINDS = list(BACKBONES)


def batch(config: Config, size: int = 2) -> Tensor:
    return torch.randn(
        size, *config.backbone.input_shape(config.data.num_points), generator=torch.Generator().manual_seed(0)
    )


def by_hand() -> dict[str, tuple[int, int]]:
    """Multiply-adds of a forward and a backward pass of the small ViT with a linear head on its class token.

    The backward pass of fused attention is 5 products for the 2 of the forward pass: it computes the scores again.
    """
    dim, depth, patches, classes, rank, inner = 48, 2, 16, 10, 4, 8
    length = 1 + patches
    embed = patches * (3 * 4 * 4) * dim
    linear = 12 * dim**2 * length
    attention = length**2 * dim
    head = dim * classes
    forward = embed + depth * (linear + 2 * attention) + head
    through = depth * (linear + 5 * attention) + 2 * head  # input gradients of frozen blocks, both of the head
    low_rank = rank * dim * length
    doubly = 2 * inner * (dim + rank) * length  # an adapter of E³VA
    before_first = 3 * dim**2 * length  # nothing in front of the first qkv needs a gradient
    return {
        "linear": (forward, head),
        "full": (forward, embed + depth * (2 * linear + 5 * attention) + 2 * head),
        "bitfit": (forward, through),
        # two weights and the input of B for each of q and v, and the input of A behind the first block
        "lora": (forward + depth * 4 * low_rank, through - before_first + depth * 6 * low_rank + 2 * low_rank),
        # no product with a weight of the backbone, nor the input gradient of an adapter's first layer
        "e3va": (
            forward + depth * 2 * doubly,
            depth * 2 * (2 * doubly - inner * dim * length) + 2 * head,
        ),
    }


@pytest.mark.parametrize("name", by_hand())
def test_multiply_adds_are_those_counted_by_hand(name: str) -> None:
    config = small_config(name, kind="vit", head={"pools": ["cls"], "hidden": []})
    costs = count_costs(build_model(config), batch(config))
    assert (costs.forward, costs.backward) == by_hand()[name]


def test_trained_parts_decide_what_the_backward_pass_costs() -> None:
    found = {name: count_model(small_config(name, kind="vit")).costs for name in ("full", "lora", "bitfit", "e3va")}
    assert 1.9 < found["full"].backward / found["full"].forward < 2.2
    for name in ("lora", "bitfit"):  # weights of the backbone have no gradient
        assert found[name].backward < 0.6 * found["full"].backward
        assert found[name].activation_bytes < found["full"].activation_bytes
    assert found["e3va"].backward < 0.3 * found["bitfit"].backward


def real_step(model: AdaptedModel, inputs: Tensor) -> Costs:
    """Costs of a step that is really made, for the whole batch."""
    kept = SavedStorages([*model.parameters(), *model.buffers(), inputs])
    with flop_counter() as forward, kept.watch():
        logits, auxiliary = model(inputs)
        loss = F.cross_entropy(logits, torch.zeros(len(inputs), dtype=torch.long))
        loss = loss if auxiliary is None else loss + auxiliary
    with flop_counter() as backward:
        loss.backward()
    return Costs(forward.get_total_flops() // 2, backward.get_total_flops() // 2, kept.nbytes())


@pytest.mark.parametrize(("name", "kind"), methods_on(KINDS))
def test_the_count_is_that_of_a_real_step(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SharedMixture, "compiled", False)  # what is counted is torch's
    one = {"architecture": {"prompts": [2, 0], "lora": [0, 3], "adapter": [4, 1]}}  # a supernet draws one a step
    config = small_config(name, kind=kind, method=one if name == "noah" else {})
    model = build_model(config)
    counted = count_costs(model.eval(), batch(config))
    two, four = (real_step(model.train(), batch(config, size)) for size in (2, 4))
    one_more = [round((b - a) / 2) for a, b in zip(two[:2], four[:2], strict=True)]
    assert counted == Costs(*one_more, round(two.activation_bytes / 2))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[exhaustive] * (name not in ("dapt_x", "e3va", "idpt"))) for name in METHODS]
)
def test_multiply_adds_of_a_sample_do_not_depend_on_the_batch(name: str) -> None:
    config = small_config(name)
    model = build_model(config)
    two, four = (count_costs(model, batch(config, size)) for size in (2, 4))
    assert (two.forward, two.backward) == (four.forward, four.backward)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=exhaustive) for name in ("scan_pb_t50_rs_adapter", "vtab/lora")]
    + ["scan_pb_t50_rs_e3va"],
)
def test_activations_of_a_sample_hardly_depend_on_the_batch(name: str) -> None:
    config = read_config(ROOT / "cfgs" / f"{name}.yaml")
    with torch.device("meta"):
        model = build_model(config)
        two, four = (
            count_costs(model, torch.empty(size, *config.backbone.input_shape(config.data.num_points)))
            for size in (2, 4)
        )
    assert two.activation_bytes == pytest.approx(four.activation_bytes, rel=2e-3)


@pytest.mark.parametrize("name", ["dapt_x", "e3va_x"])
def test_the_model_and_the_random_state_stay_as_they_are(name: str) -> None:
    config = small_config(name, train={"frozen_bn": "batch"})
    model = build_model(config).eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(0)
    random_state = torch.get_rng_state()
    count_costs(model, batch(config))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_merged_model_has_no_backward_pass() -> None:
    config = small_config("lora", kind="vit")
    merged = count_costs(build_model(config).merge(), batch(config))
    assert merged == Costs(count_model(small_config("linear", kind="vit")).costs.forward, 0, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_parts_add_up_to_their_component(name: str, kind: str) -> None:
    model = build_model(small_config(name, kind=kind))
    components = count_parameters(model).components
    for component, parts in count_parts(model).items():
        sums = tuple(sum(sizes) for sizes in zip(*parts.values(), strict=True)) or (0, 0)
        assert sums == components[component]
        assert all(count.total > 0 for count in parts.values())
    assert set(count_parts(model)["backbone"]) == {
        "patch embedding",
        "class token and positions",
        "blocks",
        "final norm",
    }


def test_values_decide_the_groups_where_there_are_any() -> None:
    assert group_sizes(torch.tensor([2, 0, 2, 2]), 4) == [1, 0, 3, 0]


def test_a_pretraining_config_adapts_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a pre-training config adapts nothing to be counted"):
        count_model(small_pretraining(tmp_path))
