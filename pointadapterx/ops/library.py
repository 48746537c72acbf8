"""The point ops as torch custom ops: schemas, shape kernels, gradients, and who computes them.

The schema and the plain reference are registered here, the reference for every device
(``CompositeExplicitAutograd``). The compiled library, when there is one, registers CPU and CUDA kernels,
which the dispatcher prefers; no call site has to choose.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import pointadapterx.extensions as extensions
from pointadapterx.errors import ConfigError
from pointadapterx.ops import reference

NAMESPACE = "pointadapterx"
ENVIRONMENT = "POINTADAPTERX_OPS"
SIMD = "POINTADAPTERX_SIMD"

SCHEMAS = {
    "farthest_point_sample": "(Tensor points, SymInt num_samples, SymInt start, bool skip_origin) -> Tensor",
    "knn": "(Tensor query, Tensor points, SymInt k) -> (Tensor, Tensor)",
    "nearest": "(Tensor query, Tensor points) -> (Tensor, Tensor)",
    "ball_query": "(Tensor query, Tensor points, float radius, SymInt num_samples) -> (Tensor, Tensor)",
    "gather_points": "(Tensor points, Tensor indices) -> Tensor",
    "interpolate": "(Tensor points, Tensor indices, Tensor weights) -> Tensor",
    "spread": "(Tensor values, Tensor indices, Tensor weights, SymInt count) -> Tensor",
    "ragged_farthest_point_sample": (
        "(Tensor points, Tensor lengths, SymInt num_samples, SymInt start, bool skip_origin) -> Tensor"
    ),
    "ragged_knn": ("(Tensor query, Tensor points, Tensor query_lengths, Tensor lengths, SymInt k) -> (Tensor, Tensor)"),
    "ragged_ball_query": (
        "(Tensor query, Tensor points, Tensor query_lengths, Tensor lengths, float radius, SymInt num_samples)"
        " -> (Tensor, Tensor)"
    ),
}
LATER = (
    *("ragged_farthest_point_sample", "ragged_knn", "ragged_ball_query", "spread", "simd"),
    *("thin_experts", "bottlenecks"),
)
"""What a library compiled from an older version may lack; the reference serves in its place."""
ON_CPU = ("spread", "simd", "thin_experts", "bottlenecks")
"""Those of them that have no CUDA kernel."""

_library = torch.library.Library(NAMESPACE, "FRAGMENT")
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(_name, getattr(reference, _name), "CompositeExplicitAutograd")


def _require_one_device(first: Tensor, *others: Tensor) -> None:
    """Where one input is a meta tensor, the dispatcher takes shape kernels, which leave memory as it was."""
    for other in others:
        if other.device != first.device:
            raise RuntimeError(f"inputs are on {first.device} and on {other.device}; move one")


def _index_like(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    return tensor.new_empty(shape, dtype=torch.int64)


@torch.library.register_fake(f"{NAMESPACE}::farthest_point_sample", lib=_library)
def _(points: Tensor, num_samples: int, start: int, skip_origin: bool) -> Tensor:
    return _index_like(points, (points.shape[0], num_samples))


@torch.library.register_fake(f"{NAMESPACE}::knn", lib=_library)
def _(query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    _require_one_device(query, points)
    shape = (query.shape[0], query.shape[1], k)
    return query.new_empty(shape), _index_like(query, shape)


@torch.library.register_fake(f"{NAMESPACE}::nearest", lib=_library)
def _(query: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    _require_one_device(query, points)
    shape = (query.shape[0], query.shape[1])
    return query.new_empty(shape), _index_like(query, shape)


@torch.library.register_fake(f"{NAMESPACE}::ball_query", lib=_library)
def _(query: Tensor, points: Tensor, radius: float, num_samples: int) -> tuple[Tensor, Tensor]:
    _require_one_device(query, points)
    shape = (query.shape[0], query.shape[1])
    return _index_like(query, (*shape, num_samples)), _index_like(query, shape)


@torch.library.register_fake(f"{NAMESPACE}::gather_points", lib=_library)
def _(points: Tensor, indices: Tensor) -> Tensor:
    _require_one_device(points, indices)
    return points.new_empty((points.shape[0], indices.shape[1], points.shape[2]))


@torch.library.register_fake(f"{NAMESPACE}::interpolate", lib=_library)
def _(points: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    _require_one_device(points, indices, weights)
    return points.new_empty((points.shape[0], indices.shape[1], points.shape[2]))


@torch.library.register_fake(f"{NAMESPACE}::spread", lib=_library)
def _(values: Tensor, indices: Tensor, weights: Tensor, count: int) -> Tensor:
    _require_one_device(values, indices, weights)
    return values.new_empty((values.shape[0], count, values.shape[2]))


@torch.library.register_fake(f"{NAMESPACE}::ragged_farthest_point_sample", lib=_library)
def _(points: Tensor, lengths: Tensor, num_samples: int, start: int, skip_origin: bool) -> Tensor:
    _require_one_device(points, lengths)
    return _index_like(points, (points.shape[0], num_samples))


@torch.library.register_fake(f"{NAMESPACE}::ragged_knn", lib=_library)
def _(query: Tensor, points: Tensor, query_lengths: Tensor, lengths: Tensor, k: int) -> tuple[Tensor, Tensor]:
    _require_one_device(query, points, query_lengths, lengths)
    shape = (query.shape[0], query.shape[1], k)
    return query.new_empty(shape), _index_like(query, shape)


@torch.library.register_fake(f"{NAMESPACE}::ragged_ball_query", lib=_library)
def _(
    query: Tensor, points: Tensor, query_lengths: Tensor, lengths: Tensor, radius: float, num_samples: int
) -> tuple[Tensor, Tensor]:
    _require_one_device(query, points, query_lengths, lengths)
    shape = (query.shape[0], query.shape[1])
    return _index_like(query, (*shape, num_samples)), _index_like(query, shape)


def _scatter(values: Tensor, indices: Tensor, count: int) -> Tensor:
    """Sums values (B, M, C) into zeros (B, count, C) at indices (B, M): the transpose of a gather."""
    total = values.new_zeros(values.shape[0], count, values.shape[2])
    return total.scatter_add(1, indices.unsqueeze(-1).expand_as(values), values)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Saves the tensor inputs, followed by the index output where there is one."""
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    if isinstance(output, tuple):
        ctx.mark_non_differentiable(output[1])
        tensors.append(output[1])
    ctx.save_for_backward(*tensors)


def _squared_distance_gradients(
    query: Tensor, points: Tensor, indices: Tensor, grad: Tensor, real: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients of |query - points[indices]|² for indices and grad (B, M, k), where ``real`` (B, M, k) holds."""
    neighbours = torch.ops.pointadapterx.gather_points(points, indices.flatten(1)).unflatten(1, indices.shape[1:])
    pull = 2 * grad.unsqueeze(-1) * (query.unsqueeze(2) - neighbours)  # (B, M, k, D)
    if real is not None:
        pull = torch.where(real.unsqueeze(-1), pull, 0)
    return pull.sum(2), -_scatter(pull.flatten(1, 2), indices.flatten(1), points.shape[1])


def _knn_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None]:
    query, points, indices = ctx.saved_tensors
    return (*_squared_distance_gradients(query, points, indices, grad), None)


def _ragged_knn_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
    query, points, query_lengths, lengths, indices = ctx.saved_tensors
    real = (
        reference.within(query_lengths, indices.shape[1])[:, :, None]
        & reference.within(lengths, indices.shape[2])[:, None]
    )
    return (*_squared_distance_gradients(query, points, indices, grad, real), None, None, None)


def _nearest_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    query, points, indices = ctx.saved_tensors
    return _squared_distance_gradients(query, points, indices.unsqueeze(-1), grad.unsqueeze(-1))


def _gather_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    points, indices = ctx.saved_tensors
    return _scatter(grad, indices, points.shape[1]), None


def _interpolate_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor | None]:
    points, indices, weights = ctx.saved_tensors
    of_weights = _weight_gradients(grad, points, indices) if ctx.needs_input_grad[2] else None
    return torch.ops.pointadapterx.spread(grad, indices, weights, points.shape[1]), None, of_weights


def _spread_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor | None, None]:
    values, indices, weights = ctx.saved_tensors
    of_weights = _weight_gradients(values, grad, indices) if ctx.needs_input_grad[2] else None
    return torch.ops.pointadapterx.interpolate(grad, indices, weights), None, of_weights, None


def _weight_gradients(of_queries: Tensor, of_points: Tensor, indices: Tensor) -> Tensor:
    """Products (B, M, K) of the values of each query (B, M, C) and of its points (B, N, C), place by place."""
    gather = torch.ops.pointadapterx.gather_points
    return torch.stack([(of_queries * gather(of_points, at)).sum(-1) for at in indices.unbind(-1)], dim=-1)


_BACKWARD: dict[str, Callable[..., Any]] = {
    "knn": _knn_backward,
    "ragged_knn": _ragged_knn_backward,
    "nearest": _nearest_backward,
    "gather_points": _gather_backward,
    "interpolate": _interpolate_backward,
    "spread": _spread_backward,
}
for _name, _backward in _BACKWARD.items():
    torch.library.register_autograd(f"{NAMESPACE}::{_name}", _backward, setup_context=_save_inputs, lib=_library)


def _load() -> str | None:
    """Loads the compiled library; returns why it was not loaded, or ``None``."""
    wanted = os.environ.get(ENVIRONMENT, "").strip().lower()
    if wanted == "reference":
        return f"{ENVIRONMENT}=reference is set; unset it to use the compiled ops"
    if wanted:
        raise ConfigError(
            f"{ENVIRONMENT}={wanted} is unknown; set it to 'reference' to skip the compiled ops, or unset it"
        )
    level = os.environ.get(SIMD, "").strip().lower()
    if level not in ("", "avx512", "avx2", "baseline"):
        raise ConfigError(f"{SIMD}={level} is unknown; set it to avx512, avx2 or baseline, or unset it")
    return extensions.load()


_reason = _load()


def implementation(device: torch.device | str) -> str:
    """Who computes the point ops on a device, for logs.

    Args:
        device: ``"cpu"``, ``"cuda:0"``, ``"mps"``, or a :class:`torch.device`.

    Returns:
        ``"compiled C++ (AVX2)"``, ``"compiled CUDA (sm_80, sm_90)"``, or ``"reference (reason: …)"`` with the
        command that builds the compiled ops where that would help.
    """
    kind = torch.device(device).type
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(kind)
    if key is None:
        return f"reference (reason: there are no compiled kernels for '{kind}' devices)"
    if _reason is None and all(
        torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", key)
        for name in SCHEMAS
        if name not in LATER
    ):
        if not all(_is_compiled(name, key) for name in LATER):
            language = "C++" if kind == "cpu" else "CUDA"
            return f"compiled {language} (of an older version; rebuild with: {extensions.rebuild_command()})"
        if kind == "cpu":
            return f"compiled C++ ({torch.ops.pointadapterx.simd()})"
        return f"compiled CUDA ({', '.join(extensions.build_info().get('cuda_architectures') or [])})"
    if _reason is not None and _reason.startswith(ENVIRONMENT):
        return f"reference (reason: {_reason})"
    reason = _reason or extensions.build_info().get("cuda_reason") or "the library was built without CUDA"
    return f"reference (reason: {reason}; rebuild with: {extensions.rebuild_command()})"


def _is_compiled(name: str, key: str) -> bool:
    """Whether the loaded library has what it should have of an op on a device."""
    if key != "CPU" and name in ON_CPU:
        return True
    if name in SCHEMAS:
        return torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", key)
    return hasattr(torch.ops.pointadapterx, name)
