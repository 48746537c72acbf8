"""What every method must satisfy under every task that labels points."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from pointadapterx.build import build_model
from pointadapterx.checkpoints.adapter_file import load_adapter, save_adapter
from pointadapterx.engine.optim import build_optimizer
from pointadapterx.peft import METHODS
from pointadapterx.peft.base import Method
from pointadapterx.peft.parts.bottlenecks import DynamicAdapter
from pointadapterx.sections import TrainConfig
from pointadapterx.tasks import build_task
from pointadapterx.tasks.exchange import Facts
from tests.conftest import randomise
from tests.dense import DENSE, dense_batch
from tests.mechanisms import STARTS_ELSEWHERE

FORMS = [
    *((name, {}) for name in METHODS if name != "noah"),
    ("noah", {"architecture": {"prompts": [2, 0], "lora": [0, 3], "adapter": [4, 1]}}),
]
on_every_task = pytest.mark.parametrize("task_name", DENSE)


@on_every_task
@pytest.mark.parametrize(("name", "method"), FORMS)
def test_training_moves_what_is_trained_and_nothing_else(
    name: str, method: dict[str, Any], task_name: str, tmp_path: Path
) -> None:
    """Every trainable parameter gets a gradient, frozen tensors stay bit for bit, and the adapter's file is exact."""
    config = DENSE[task_name](name, method=method)
    task, model = build_task(config), build_model(config).train()
    batch, generator = dense_batch(task), torch.Generator()
    for module in model.modules():
        if isinstance(module, DynamicAdapter):  # as initialised, its ReLU may be 0 for every token of these clouds
            torch.nn.init.ones_(module.token_scale.bias)
    before = copy.deepcopy(model.state_dict())
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    free = {n for n, _ in model.named_buffers() if METHODS[name].trains_backbone or not n.startswith("backbone.")}
    torch.manual_seed(0)  # dropout and drop path
    optimizer = build_optimizer(model, TrainConfig(lr=1e-2))
    for _ in range(3):
        optimizer.zero_grad()
        loss, _ = task.loss(model, batch, generator)
        loss.backward()
        optimizer.step()
    after = model.state_dict()
    changed = {n for n in after if not torch.equal(before[n], after[n])}
    assert changed <= trainable | free
    assert trainable <= changed
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())

    save_adapter(model, tmp_path / "adapter", config=config, facts=task.stores(task.point_classes))
    fresh = build_model(config)
    info = load_adapter(fresh, tmp_path / "adapter")
    assert (info.config, info.facts.classes) == (config, task.point_classes)
    assert torch.equal(info.task.outputs(fresh.eval(), batch), task.outputs(model.eval(), batch))


@on_every_task
@pytest.mark.parametrize(("name", "method"), FORMS)
def test_what_the_head_reads_starts_as_the_plain_backbone(name: str, method: dict[str, Any], task_name: str) -> None:
    if "prompts" in METHODS[name].Options.model_fields:
        method = {**method, "prompts": False}
    if name == "noah":
        method = {"architecture": {"prompts": [0, 0], "lora": [0, 3], "adapter": [4, 1]}}
    if METHODS[name].Options(**method).makes_prompts:
        pytest.skip("its prompts cannot be switched off, and a token takes part in attention")
    if name in STARTS_ELSEWHERE:
        pytest.skip(STARTS_ELSEWHERE[name])
    config = DENSE[task_name](name, method=method)
    model = build_model(config).eval()
    inputs = dense_batch(build_task(config)).inputs
    plain = model.backbone(inputs, Method(config.method), model.head.blocks)
    found = model.read(inputs)
    for block in model.head.blocks:
        assert torch.equal(found.intermediates[block].sequence.tokens, plain.intermediates[block].sequence.tokens), (
            block
        )


@on_every_task
def test_points_without_a_label_have_no_say(task_name: str) -> None:
    """In the loss; a batch without any label has a loss of 0."""
    config = DENSE[task_name]("linear")
    task, model = build_task(config), randomise(build_model(config)).eval()
    batch, generator = dense_batch(task), torch.Generator()
    labels = batch.targets.points
    loss, _ = task.loss(model, batch, generator)
    assert loss.item() > 0
    none = batch._replace(targets=batch.targets._replace(points=torch.full_like(labels, -1)))
    assert task.loss(model, none, generator)[0].item() == 0
    some, logits = labels.clone(), torch.randn(*labels.shape, len(task.point_classes))
    some[:, ::2] = -1
    changed = logits + 9 * torch.randn_like(logits) * (some < 0)[..., None]
    assert torch.equal(task.criterion(logits, some), task.criterion(changed, some))
    assert torch.equal(task.counts(logits.argmax(dim=-1), some), task.counts(changed.argmax(dim=-1), some))
    counted = task.counts(labels.clamp(min=0), labels)
    classes = len(task.point_classes)
    assert counted[:, 2 * classes :].sum() == (labels >= 0).sum()
    assert torch.equal(counted[:, :classes], counted[:, classes : 2 * classes])


@on_every_task
def test_facts_of_other_classes_are_refused(task_name: str) -> None:
    config = DENSE[task_name]("linear")
    task = build_task(config)
    with pytest.raises(ValueError, match="not those of its config"):
        task.stores.restored(config, Facts(["a", "b"]).stored()[0], {})
