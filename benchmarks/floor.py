"""Measures the time of a step's matrix products alone: a lower bound for the step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.jobs import seconds
from pointadapterx.models.packing import pack_weight, product

aten = torch.ops.aten


class Operand(NamedTuple):
    """Layout of a matrix, or of a batch of them; packed weights (out, in) have no strides."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Operand:
        """The layout of a tensor."""
        return cls(tuple(tensor.shape), () if tensor.is_mkldnn else tensor.stride(), tensor.dtype)

    def make(self, device: torch.device) -> Tensor:
        """Random values in this layout."""
        if len(self.stride) < len(self.shape):
            return pack_weight(torch.randn(self.shape), self.dtype)
        stored = [1 if step == 0 else size for size, step in zip(self.shape, self.stride, strict=True)]
        values = torch.empty_strided(stored, self.stride, dtype=self.dtype, device=device).normal_()
        return values.expand(self.shape)


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[tuple[Operand, Operand]] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for one, other in _products(func.overloadpacket, args, result):
            self.products[Operand.of(one), Operand.of(other)] += 1
        return result


def _products(operation: Any, args: tuple[Any, ...], result: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of matrices that an operation multiplies; fused attention's are q kᵀ and p v, and five going back.

    A convolution is the product of its weights with the patches of its input, and in its backward pass of what its
    mask asks for.
    """
    if operation in (aten.mm, aten.bmm, torch.ops.mkldnn._linear_pointwise):
        yield args[0], args[1]
    elif operation in (aten.addmm, aten.baddbmm):
        yield args[1], args[2]
    elif operation is aten._grouped_mm:
        yield from _groups(*args[:3])
    elif operation is aten.convolution:
        yield _convolution(args[1], result)
    elif operation is aten.convolution_backward:
        weight, columns = _convolution(args[2], args[0])
        output = args[0].flatten(2)
        of_input, of_weight, _ = args[-1]
        yield from [(weight.mT, output)] * of_input + [(output, columns.mT)] * of_weight
    elif operation is aten._scaled_dot_product_flash_attention_for_cpu:
        yield from _attention(*args[:3])
    elif operation is aten._scaled_dot_product_flash_attention_for_cpu_backward:
        query, key, value = args[1:4]
        yield from _attention(query, key, value)
        yield from [*_attention(query, key, value), (_scores(query, key).mT, query)]


def _groups(one: Tensor, other: Tensor, ends: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Products of groups of rows with a matrix each; or, for the gradients of these, of groups of both."""
    for number, (start, end) in enumerate(pairwise([0, *ends.tolist()])):
        if other.ndim == 3:
            yield one[start:end], other[number]
        else:
            yield one[:, start:end], other[start:end]


def _convolution(weight: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (B, out, K) and patches (B, K, L) of a convolution without groups."""
    matrix = weight.flatten(1)
    batch, length = output.shape[0], output[0, 0].numel()
    return matrix.expand(batch, -1, -1), weight.new_empty(batch, matrix.shape[1], length)


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    yield query, key.mT
    yield _scores(query, key), value


def _scores(query: Tensor, key: Tensor) -> Tensor:
    return query.new_empty(*query.shape[:-1], key.shape[-2])


def product_floor(step: Callable[[], None], device: torch.device, rounds: int = 5) -> float:
    """Seconds of all products of a step, each layout timed alone on warm operands."""
    with _Recorder() as recorder:
        step()
    total = 0.0
    for (one, other), count in recorder.products.items():
        left, right = one.make(device), other.make(device)
        multiply = partial(_multiply, left, right)
        multiply()
        total += count * median(seconds(multiply, device) for _ in range(rounds))
    return total


def _multiply(left: Tensor, right: Tensor) -> Tensor:
    return product(left, right, None) if right.is_mkldnn else torch.matmul(left, right)
