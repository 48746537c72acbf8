"""The cost of adapting a model: parameters by part, multiply-adds of a training step, activations kept for it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from pointadapterx import ops
from pointadapterx.adapted_model import AdaptedModel, ParameterCount, ParameterReport, count_parameters
from pointadapterx.build import build_model
from pointadapterx.config import Config
from pointadapterx.datasets.inputs import Batch
from pointadapterx.errors import ConfigError
from pointadapterx.models import Backbone
from pointadapterx.tasks import TASKS, Task, build_task

BATCH_SIZE = 32  # the published one of Point-MAE; what a batch costs once, whatever its size, is shared by so many


Loss = Callable[[AdaptedModel, Tensor], Tensor]


class Costs(NamedTuple):
    """Costs of a training step, per sample of its batch.

    Attributes:
        forward: multiply-adds of the forward pass.
        backward: multiply-adds of the backward pass.
        activation_bytes: what autograd keeps of the forward pass for the backward pass.
    """

    forward: int
    backward: int
    activation_bytes: int


class ModelCount(NamedTuple):
    """What a config's model costs.

    Attributes:
        parameters: of the whole, see :class:`~pointadapterx.adapted_model.ParameterReport`.
        parts: of the parts of each component, see :func:`count_parts`.
        costs: of a training step in float32.
    """

    parameters: ParameterReport
    parts: dict[str, dict[str, ParameterCount]]
    costs: Costs


def count_model(config: Config | Mapping[str, Any]) -> ModelCount:
    """Counts a config's model; needs no data and no weights, and takes seconds whatever the model's size.

    Args:
        config: from :func:`~pointadapterx.config.load_config`.

    Raises:
        ConfigError: for a pre-training config, which adapts nothing.
    """
    config = Config.of(config)
    if not TASKS[config.task.name].adapts:
        raise ConfigError("a pre-training config adapts nothing to be counted; give an adaptation config")
    with torch.device("meta"):  # shapes without values
        model = build_model(config.replaced(backbone={"weights": None}))
        inputs = torch.empty(BATCH_SIZE, *config.backbone.input_shape(config.data.num_points))
    costs = count_costs(model, inputs, _loss_of(build_task(config)))
    return ModelCount(count_parameters(model), count_parts(model), costs)


def _loss_of(task: Task) -> Loss:
    """What training for a task minimises, for targets that do not matter."""
    generator = torch.Generator()

    def loss(model: AdaptedModel, inputs: Tensor) -> Tensor:
        return task.loss(model, Batch(inputs, task.blank_targets(inputs)), generator)[0]

    return loss


def count_parts(model: AdaptedModel) -> dict[str, dict[str, ParameterCount]]:
    """Parameters of backbone and method by part: ``backbone``, ``method`` -> name of the part -> count.

    The parts of a method are its own attributes, by their names.
    """
    return {
        "backbone": _count(_backbone_parts(model.backbone)),
        "method": _count(
            {name: module.parameters() for name, module in model.method.named_children()}
            | {name: [parameter] for name, parameter in model.method.named_parameters(recurse=False)}
        ),
    }


def _backbone_parts(backbone: Backbone) -> dict[str, list[nn.Parameter]]:
    tokens, stages = list(backbone.parameters(recurse=False)), backbone.stages
    named = {
        "class token and positions": [*tokens, *_parameters(backbone.position_layers())],
        "blocks": _parameters(stage.modules for stage in stages),
        "between stages": _parameters(stage.transition for stage in stages if stage.transition is not None),
        "final norm": list(backbone.norm.parameters()),
    }
    known = {id(parameter) for parameters in named.values() for parameter in parameters}
    return {"patch embedding": [p for p in backbone.parameters() if id(p) not in known], **named}


def _parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    return [parameter for module in modules for parameter in module.parameters()]


def _count(parts: Mapping[str, Iterable[nn.Parameter]]) -> dict[str, ParameterCount]:
    sizes = {name: [(p.numel(), p.requires_grad) for p in parameters] for name, parameters in parts.items()}
    return {
        name: ParameterCount(sum(size for size, trainable in found if trainable), sum(size for size, _ in found))
        for name, found in sizes.items()
        if found
    }


def count_costs(model: AdaptedModel, inputs: Tensor, loss: Loss | None = None) -> Costs:
    """Counts a training step of a model: forward pass, loss, backward pass.

    The step is followed on tensors that have shapes but no values, on a copy, as on a CPU: the model stays as it is,
    may be on any device, the meta device included, and of any size.

    Multiply-adds are those of matrix products, convolutions, attention (whose fused backward pass computes the scores
    again) and the distances of the point operations. Element-wise work, norms and pooling are not counted, nor what
    is computed once for the whole batch (weights folded into others): they are the cost of one more sample. What
    is computed again in the backward pass counts there. A routed mixture sends each sub-token to ``top_k`` experts,
    which all cost the same, so its counts do not depend on the routing.

    Activations are the storages that autograd saves for the backward pass, each once; parameters, buffers and the
    inputs are not among them.

    Args:
        model: in training or eval mode; it is counted in training mode.
        inputs: a batch of the model's inputs, points (B, N, 3) or images (B, channels, S, S); only the shape matters.
        loss: model and inputs -> what training minimises; by default the cross-entropy of the outputs.
    """
    model = copy.deepcopy(model)
    loss = loss or _cross_entropy
    with FakeTensorMode(allow_non_fake_inputs=True), ops.unchecked():
        model.to_empty(device="cpu").train()
        inputs = torch.empty_like(inputs, device="cpu")
        single, double = (_count_step(model, part, loss) for part in (inputs, torch.cat([inputs, inputs])))
    forward, backward = (round((two - one) / 2 / len(inputs)) for one, two in zip(single[:2], double[:2], strict=True))
    return Costs(forward, backward, round(single[2] / len(inputs)))


def _count_step(model: AdaptedModel, inputs: Tensor, minimised: Loss) -> tuple[int, int, int]:
    """Floating-point operations forward and backward, and bytes of saved activations."""
    kept = SavedStorages([*model.parameters(), *model.buffers(), inputs])
    with flop_counter() as forward, kept.watch():
        loss = minimised(model, inputs)
    with flop_counter() as backward:
        if loss.requires_grad:
            loss.backward()
    return forward.get_total_flops(), backward.get_total_flops(), kept.nbytes()


def _cross_entropy(model: AdaptedModel, inputs: Tensor) -> Tensor:
    """For labels that do not matter."""
    logits, auxiliary = model(inputs)
    rows = logits.flatten(0, -2)
    loss = F.cross_entropy(rows, rows.new_zeros(len(rows), dtype=torch.long))
    return loss if auxiliary is None else loss + auxiliary


class SavedStorages:
    """The storages that autograd saves for a backward pass.

    Args:
        known: tensors whose storages are there anyway.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._saved: dict[int, torch.UntypedStorage] = {}  # alive, so that no other takes its place

    def watch(self) -> torch.autograd.graph.saved_tensors_hooks:
        """Context manager that records the tensors autograd saves."""
        return torch.autograd.graph.saved_tensors_hooks(self._note, lambda tensor: tensor)

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._saved[storage._cdata] = storage
        return tensor

    def nbytes(self) -> int:
        """Total size of the recorded storages in bytes."""
        return sum(storage.nbytes() for storage in self._saved.values())


def flop_counter() -> FlopCounterMode:
    """Torch's counter with the operations that it does not know; a multiply-add counts as two."""
    return FlopCounterMode(
        display=False,
        custom_mapping={
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
            torch.ops.pointadapterx.farthest_point_sample: _sampling_flops,
            torch.ops.pointadapterx.knn: _knn_flops,
        },
    )


def _attention_flops(query: torch.Size, key: torch.Size, *_: Any, **__: Any) -> int:
    """Scores and their product with the values, for queries (B, heads, L, D)."""
    return 4 * query.numel() * key[-2]


def _attention_backward_flops(_: torch.Size, query: torch.Size, key: torch.Size, *__: Any, **___: Any) -> int:
    """The scores again, then gradients of values, scores, queries and keys."""
    return 10 * query.numel() * key[-2]


def _sampling_flops(points: torch.Size, num_samples: int, *_: Any, **__: Any) -> int:
    """A squared distance of every point to every chosen one, for points (B, N, 3)."""
    return 2 * points.numel() * num_samples


def _knn_flops(query: torch.Size, points: torch.Size, *_: Any, **__: Any) -> int:
    """A squared distance of every pair, for queries (B, M, D)."""
    return 2 * query.numel() * points[1]
