"""What one forward pass of an adapted foreign model has to remember, apart from the model itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pointadapterx.errors import ConfigError
from pointadapterx.peft.e3va import Ride


class Run:
    """One forward pass, from the first block to the last.

    Attributes:
        length: tokens at the beginning of the stage, without prompts.
        gradients: whether the pass was begun with autograd.
        losses: auxiliary losses, by the number of the block.
        recorded: outputs of the branches of the block that is being run, by the name of the site.
        waiting: number, tokens and branches of the block behind which a highway has yet to go on.
        ride: of the highway.
        behind: tokens behind the blocks that a backbone is asked for, by their numbers.
    """

    def __init__(self, gradients: bool) -> None:
        self.length = 0
        self.gradients = gradients
        self.losses: dict[int, Tensor] = {}
        self.recorded: dict[str, Tensor] = {}
        self.waiting: tuple[int, Tensor, dict[str, Tensor]] | None = None
        self.lead: Callable[[Tensor], Tensor] | None = None
        self.ride: Ride | None = None
        self.behind: dict[int, Tensor] = {}


class Result(NamedTuple):
    """What a backbone gives its head of a pass.

    Attributes:
        tokens: behind the last block, prompts included, (B, L, C).
        behind: tokens behind other blocks, by their numbers.
    """

    tokens: Tensor
    behind: dict[int, Tensor]


class _PerThread(threading.local):
    run: Run | None = None
    losses: list[Tensor] | None = None
    result: Result | None = None

    def __init__(self) -> None:
        self.scratch: dict[Any, Tensor] = {}
        self.outside = False


class Passes:
    """The passes of a model, one a thread; a copy of the model, or one that was pickled, starts without any.

    A pass that is compiled has one place for all threads, since a compiler knows no threads.
    """

    def __init__(self) -> None:
        self._threads = _PerThread()
        self._run: Run | None = None
        self._losses: list[Tensor] | None = None
        self._result: Result | None = None
        self._scratch: dict[Any, Tensor] = {}
        self._newest = threading.get_ident()  # thread of the pass that was begun last

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    @property
    def run(self) -> Run | None:
        """The pass that is going on, None while a backward pass computes something again."""
        if torch.compiler.is_compiling():
            return self._run
        if recomputing():
            return None
        return self._threads.run or self._run

    def begin(self) -> Run:
        """Starts a pass, in place of one that an error has ended."""
        if torch.compiler.is_compiling():
            self._run = run = Run(torch.is_grad_enabled())
        else:
            run = Run(torch.is_grad_enabled() or self._threads.outside)
            self._threads.run, self._threads.outside, self._run = run, False, None
            self._newest = threading.get_ident()
            self._threads.scratch.clear()
        return run

    @property
    def alone(self) -> bool:
        """Whether no other thread has begun a pass since this one has."""
        return torch.compiler.is_compiling() or self._newest == threading.get_ident()

    def refuse_threads(self, title: str) -> None:
        """Raises a ConfigError where another thread runs the model of that title too."""
        if not self.alone:
            raise ConfigError(
                f"{title} runs in two threads at once, but this method remembers something from block to block; give "
                "each thread a copy of the model"
            )

    def note_gradients(self) -> None:
        """Called outside of a checkpoint that the next pass begins in: whether autograd is on there."""
        if not torch.compiler.is_compiling():
            self._threads.outside = torch.is_grad_enabled()

    def end(self, losses: list[Tensor], result: Result | None = None) -> None:
        """Ends the pass and keeps its auxiliary losses, and what a backbone gives its head."""
        if torch.compiler.is_compiling():
            self._run, self._losses, self._result = None, losses, result
        else:
            self._threads.run = self._run = None
            self._threads.losses, self._losses = losses, None
            self._threads.result, self._result = result, None

    @property
    def losses(self) -> list[Tensor]:
        """Auxiliary losses of the last pass, in the order of the blocks."""
        return (self._losses if self._losses is not None else self._threads.losses) or []

    def take_result(self) -> Result:
        """What the last pass gives the head of a backbone; it is kept no longer."""
        found = self._result if self._result is not None else self._threads.result
        assert found is not None
        self._result = None
        if not torch.compiler.is_compiling():
            self._threads.result = None
        return found

    def forget(self) -> None:
        """Discards the losses, and with them the graph that they are part of."""
        self._losses = None
        if not torch.compiler.is_compiling():
            self._threads.losses = None

    @property
    def scratch(self) -> dict[Any, Tensor]:
        """What one hook of a block leaves for the next one, also when a block is computed again."""
        return self._scratch if torch.compiler.is_compiling() else self._threads.scratch


def refuse_checkpoints(title: str, run: Run | None) -> None:
    """Raises a ConfigError where the model of that title computes a block again for the backward pass."""
    if run is None or (run.gradients and not torch.is_grad_enabled()):
        raise ConfigError(
            f"{title} runs its blocks in checkpoints, but this method remembers something from block to block; switch "
            "gradient checkpointing off"
        )


def recomputing() -> bool:
    """Whether a backward pass is going on, which computes the activations of a checkpoint again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class Stand:
    """Leaves in place of tensors that were made without autograd; their gradients are handed on to those made again.

    A reentrant checkpoint runs its block without autograd first. What leaves the block beside its output, auxiliary
    losses and prompts, would get no gradient. A leaf takes its place in the graph; its gradient is complete before the
    block's backward pass, which computes the same value again and passes the gradient on to it.
    """

    def __init__(self) -> None:
        self._leaves: dict[Any, list[Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def in_place_of(self, key: Any, value: Tensor) -> Tensor:
        """A leaf with the value of a tensor."""
        leaf = value.detach().requires_grad_()
        self._leaves.setdefault(key, []).append(leaf)
        return leaf

    def hand_on(self, key: Any, value: Tensor, through: Tensor) -> Tensor:
        """``through``, whose backward pass gives ``value`` the gradient that its newest leaf has received.

        Leaves that are older, or have no gradient, belong to passes that nobody has gone back through.
        """
        leaves = self._leaves.get(key, [])
        reached = [leaf for leaf in leaves if leaf.grad is not None]
        if not reached or not torch.is_grad_enabled():
            return through
        self._leaves[key] = [leaf for leaf in leaves if leaf is not reached[-1]][-MOST_WAITING:]
        grad = reached[-1].grad
        assert grad is not None
        return _HandOn.apply(through, value, grad)

    def clear(self) -> None:
        """Forgets leaves that nobody has gone back through."""
        self._leaves.clear()


MOST_WAITING = 16
"""Passes that one may go back through together."""


class _HandOn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, through: Tensor, value: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return through.view_as(through)

    @staticmethod
    def backward(ctx: Any, of_through: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = ctx.saved_tensors
        return of_through, grad, None


def kept() -> AbstractContextManager[object]:
    """What is computed inside is not computed again by a checkpoint around it; other hooks see what is saved."""
    if torch.compiler.is_compiling():
        return nullcontext()
    newest = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)  # of torch 2.8 and later
    if newest is None:
        return torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is)
    around = newest(True)
    if around is None or getattr(around[0], "__module__", None) != checkpoint.__module__:
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
