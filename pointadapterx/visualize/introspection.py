"""What happens inside a model: attention of the class token, routing, and which patches a prediction depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pointadapterx import ops
from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.errors import ConfigError
from pointadapterx.models.grouping import Grouping
from pointadapterx.peft.parts.mixture import Routing
from pointadapterx.peft.parts.routed import RoutedMethod
from pointadapterx.tasks.exchange import require_finite

AT_ONCE = 64  # inputs of a pass


@torch.inference_mode()
def class_attention(model: AdaptedModel, inputs: Tensor) -> Tensor:
    """How much the class token attends to each patch, the mean of the heads: (blocks, B, G).

    Rows sum to less than 1: the class token also attends to itself, and to prompts.

    Args:
        model: in eval mode.
        inputs: as the model takes them, B.

    Raises:
        ConfigError: if its backbone has no class token, several stages, or blocks of another library.
    """
    found: list[Tensor] = []
    if model.backbone.foreign:
        raise ConfigError(
            f"attention is read from the blocks of this package's own backbones, and {model.backbone.title} has others"
        )
    info = model.backbone.feature_info
    if not info.has_class_token or len(info.stages) > 1:
        lacking = "has several stages" if info.has_class_token else "has no class token"
        name = type(model.backbone).__name__
        raise ConfigError(f"attention is that of the class token over one stage, but backbone {name} {lacking}")

    def look(heads: int) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            query, key, _ = output.float().unflatten(-1, (3, heads, -1)).unbind(dim=2)  # each (B, L, heads, d)
            with torch.autocast(output.device.type, enabled=False):  # which would take the product in bf16
                scores = torch.einsum("bhd,blhd->bhl", query[:, 0] * query.shape[-1] ** -0.5, key)
                weights = scores.softmax(dim=-1).mean(dim=1)
            found.append(weights[:, -info.num_patches :].cpu())

        return hook

    blocks = model.backbone.every_block()
    handles = [block.site("qkv").module.register_forward_hook(look(block.num_heads)) for block in blocks]
    try:
        model.read(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(found)


@torch.inference_mode()
def routing(model: AdaptedModel, inputs: Tensor) -> dict[str, Routing]:
    """Where the mixture sends the sub-tokens of every use, by its name: gates (B, L, h, E), chosen (B, L, h, top_k).

    Args:
        model: in eval mode.
        inputs: as the model takes them, B.

    Raises:
        ConfigError: if its method has no router.
    """
    method = require_router(model)
    with method.recording():
        model.read(inputs)
        return method.routing()


def routes(model: AdaptedModel) -> bool:
    """Whether the model's method has a router in use."""
    method = model.method
    return isinstance(method, RoutedMethod) and method.routes


def require_router(model: AdaptedModel) -> RoutedMethod:
    """The model's method, if it routes.

    Raises:
        ConfigError: if it has no router, or its mixture is off.
    """
    method = model.method
    if not isinstance(method, RoutedMethod) or not routes(model):
        name = getattr(method.options, "name", type(method).__name__)
        raise ConfigError(f"method {name} routes nothing; routing is that of dapt_x, adapter_x, adaptformer_x, e3va_x")
    return method


def probabilities_of(logits: Tensor) -> Tensor:
    """Softmax over the last axis."""
    return logits.softmax(dim=-1)


@torch.inference_mode()
def saliency(model: AdaptedModel, inputs: Tensor, read: Callable[[Tensor], Tensor] = probabilities_of) -> Tensor:
    """Which patches a prediction depends on: how much its probability falls without each (occlusion, arXiv 1311.2901).

    A patch of a cloud is removed by moving its points onto other points, which keeps their number; a patch of an image
    by painting it in the mean colour. Works for every method, whether or not gradients pass through it.

    Args:
        model: in eval mode.
        inputs: points (B, N, 3), or images (B, channels, S, S).
        read: logits (..., classes) to probabilities; those of a calibration where the answer's are calibrated.

    Returns:
        (B, G), in probability; negative where the answer becomes surer.

    Raises:
        TrainingError: if logits are not finite.
    """
    rows = []
    for one in inputs:
        logits = model(one[None]).logits.float()
        require_finite(logits, "logits")
        before = read(logits)[0]
        answer = int(before.argmax())
        taken = torch.cat([read(model(part).logits.float())[:, answer] for part in _without(model, one)])
        rows.append((before[answer] - taken).cpu())
    return torch.stack(rows)


def nearest_patch(model: AdaptedModel, points: Tensor) -> tuple[Tensor, Tensor]:
    """Centres (B, G, 3) and the number of each point's nearest one, (B, N), for points (B, N, 3)."""
    centers = model.backbone.patches(points).centers
    _, nearest = ops.knn(points, centers, 1)
    return centers, nearest.squeeze(-1)


class Members(NamedTuple):
    """Which points belong to each group.

    Attributes:
        centers: (B, G, 3).
        points: (B, G, k), numbers of the points.
    """

    centers: Tensor
    points: Tensor

    def times(self, total: int) -> Tensor:
        """In how many groups each of ``total`` points is, (B, total)."""
        flat = self.points.flatten(1)
        return torch.zeros(len(flat), total, dtype=torch.int64, device=flat.device).scatter_add(
            1, flat, torch.ones_like(flat)
        )


def group_members(model: AdaptedModel, points: Tensor) -> Members:
    """The groups that become tokens, of points (B, N, 3): each the nearest points of an FPS centre.

    A point may be in several groups, or in none; then the model does not see it.
    """
    grouping = model.backbone.grouping
    assert isinstance(grouping, Grouping)
    centers = grouping(points).centers
    return Members(centers, ops.knn(centers, points, grouping.group_size)[1])


def _without(model: AdaptedModel, one: Tensor) -> Iterator[Tensor]:
    """One input (N, 3) or (channels, S, S), each time without one patch, some at a time."""
    for patches in torch.arange(model.backbone.num_patches, device=one.device).split(AT_ONCE):
        if model.backbone.modality == "points":
            yield _clouds_without(model, one, patches)
        else:
            yield _images_without(model, one, patches)


def _clouds_without(model: AdaptedModel, cloud: Tensor, patches: Tensor) -> Tensor:
    """(b, N, 3): each without the points whose nearest centre is a patch's, whose places others take."""
    nearest = nearest_patch(model, cloud[None])[1][0]  # (N,)
    clouds = cloud.expand(len(patches), -1, -1).clone()
    for row, patch in enumerate(patches):
        gone = nearest == patch
        left = (~gone).nonzero().flatten()
        if len(left) == 0:  # a cloud of a single spot is all one patch
            continue
        clouds[row, gone] = cloud[left[torch.arange(int(gone.sum()), device=cloud.device) % len(left)]]
    return clouds


def _images_without(model: AdaptedModel, image: Tensor, patches: Tensor) -> Tensor:
    """(b, channels, S, S): each with a patch of the image's mean."""
    grid = model.backbone.grid
    assert grid is not None
    side = image.shape[-1] // grid
    images = image.expand(len(patches), -1, -1, -1).clone()
    for row, patch in enumerate(patches.tolist()):
        top, left = side * (patch // grid), side * (patch % grid)
        images[row, :, top : top + side, left : left + side] = image.mean(dim=(1, 2))[:, None, None]
    return images
