"""Layers whose inputs the backward pass makes again instead of keeping them: the same gradients from less memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Any], *inputs: Any, norms: Sequence[nn.Module] = (), draws: bool = False) -> Any:
    """``function(*inputs)``, of which the backward pass keeps the inputs alone.

    What it needs of the rest is computed again, up to what the last layer reads: that layer itself does not run twice.
    So norms and activations before a convolution cost little. The values are the same bit by bit.

    Args:
        function: of tensors, at least one of which gets a gradient.
        inputs: of it.
        norms: that run in it. Their running statistics are updated once.
        draws: whether it draws random numbers, which are then drawn again.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():  # a compiler makes such choices itself
        return function(*inputs)
    changing = [norm for norm in norms if norm.training]

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _copied_buffers(changing)

    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=draws, context_fn=contexts)


@contextmanager
def _copied_buffers(norms: Sequence[nn.Module]) -> Iterator[None]:
    """What the norms do to their buffers, they do to copies."""
    kept = [dict(norm.named_buffers(recurse=False)) for norm in norms]
    try:
        for norm, buffers in zip(norms, kept, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer.clone())
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)
