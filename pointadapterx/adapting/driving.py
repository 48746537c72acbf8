"""Runs a method inside a model that keeps its own forward: hooks ask it what a backbone of ours would ask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pointadapterx.adapting.arguments import Inputs, Named, flat, put, with_wide_masks
from pointadapterx.adapting.highways import Leads, check_input, check_recorded
from pointadapterx.adapting.passes import Passes, Result, Run, Stand, kept, recomputing, refuse_checkpoints
from pointadapterx.errors import ConfigError
from pointadapterx.models.additions import Recorded
from pointadapterx.models.foreign.host import ForeignBlock, ForeignHost, ForeignStage
from pointadapterx.models.foreign.sites import Span
from pointadapterx.models.tokens import insert_after_cls
from pointadapterx.peft.base import Method
from pointadapterx.peft.e3va import Highway, Ride
from pointadapterx.peft.hooks import first_tensor


class Driver:
    """A method at work in a foreign model.

    Args:
        host: the model.
        method: attached to it.
        whole: whether the tokens behind the last block are kept, prompts included, for the head of a backbone.

    Attributes:
        enabled: whether the method acts; False leaves the plain model.
        passes: what its forward passes remember.
        wanted: numbers of the blocks whose tokens are kept too.
        steps: gets what a highway reads of every block, where it is a list.
    """

    def __init__(self, host: ForeignHost, method: Method, *, whole: bool = False) -> None:
        self.host = host
        self.method = method
        self.whole = whole
        self.wanted: frozenset[int] = frozenset()
        self.steps: list[Recorded] | None = None
        self.enabled = True
        self.passes = Passes()
        self._stand = Stand()
        self._prompts = 0  # that the last stage ends with, for a block that is computed again
        self._checked = self._checked_input = False
        self._acted: set[int] = set()
        self._handles: list[RemovableHandle] = []
        members = host.members()
        self.last = len(members) - 1
        self.rides = isinstance(method, Highway)
        self.first = method.first if isinstance(method, Highway) else None
        self.asks_ffn = type(method).adapt_ffn is not Method.adapt_ffn
        before, after = type(method).before_block, type(method).after_block
        self.asks_block = before is not Method.before_block or after is not Method.after_block
        self.leads = type(method).leave_stage is not Method.leave_stage
        self.inserts = bool(getattr(method.options, "needs_class_token", False)) and not self.rides
        self._place(members)

    def __getstate__(self) -> dict[str, Any]:
        self.method.end()  # what an interrupted pass has left cannot be copied
        return self.__dict__.copy()

    def _place(self, members: list[ForeignBlock]) -> None:
        each = self.whole or self.rides or self.asks_ffn or self.asks_block
        outer = self.host.checkpointed()
        if each and outer is not None:
            self._handles.append(outer.register_forward_pre_hook(_Notes(self)))
        for stage in self.host.stages:
            for block in stage.members:
                index = block.seen.index
                if each or index in (0, self.last):
                    opens, closes = _Opens(self, stage, block), _Closes(self, stage, block)
                    self._handles.append(block.module.register_forward_pre_hook(opens, with_kwargs=True))
                    self._handles.append(block.module.register_forward_hook(closes))
                if self.rides and block.attention is not None:
                    self._around(block, block.attention, "attention", self._record)
                if self.rides and block.ffn is not None:
                    self._around(block, block.ffn, "ffn", self._record)
                elif self.asks_ffn and block.ffn is not None:
                    self._around(block, block.ffn, "ffn", self._adapt)
            if (self.rides or self.leads) and stage.transition is not None:
                leads = Leads(self)
                self._handles.append(stage.transition.register_forward_pre_hook(leads.before, with_kwargs=True))
                self._handles.append(stage.transition.register_forward_hook(leads.behind))

    def _around(self, block: ForeignBlock, span: Span, name: str, act: _Act) -> None:
        """Hooks at both ends of a branch."""
        key = (block.seen.index, name)
        ends = _Ends(self, key, act)
        if span.entry is span.exit and not span.into:
            self._handles.append(span.exit.register_forward_hook(ends.whole, with_kwargs=True))
            return
        self._handles.append(span.entry.register_forward_pre_hook(ends.begin, with_kwargs=True))
        if span.into:
            self._handles.append(span.exit.register_forward_pre_hook(ends.into, with_kwargs=True))
        else:
            self._handles.append(span.exit.register_forward_hook(ends.out))
        if name == "ffn" and block.attention is not None:  # a checkpoint may have stopped in the middle of the branch
            self._handles.append(block.attention.entry.register_forward_pre_hook(ends.forget))

    def remove(self) -> None:
        """Takes all hooks away for good."""
        for handle in self._handles:
            handle.remove()
        for hook in self.method.hooks:
            hook.remove()

    def enable(self, wanted: bool) -> None:
        """Lets the method act, or leaves the plain model."""
        self.enabled = wanted
        for hook in self.method.hooks:
            hook.enabled = wanted

    def open(self, stage: ForeignStage, index: int, tokens: Tensor) -> Tensor:
        """Tokens (B, L, C) on their way into a block."""
        run = self._run_at(index)
        if run is not None and index == stage.first:
            run.length = tokens.shape[1]
            self._check_length(stage, run.length)
        if run is not None and self.rides:
            if index == 0 and not self._checked_input and not torch.compiler.is_compiling():
                check_input(self.host, self.method, tokens)
                self._checked_input = torch.is_grad_enabled()
            self._pass_on(run)
        if self.first is not None:
            refuse_checkpoints(self.host.title, run)
        if not self.asks_block:
            return tokens
        if self.method.remembers:
            refuse_checkpoints(self.host.title, run)
            self.passes.refuse_threads(self.host.title)
            if index == stage.first:
                self.method.enter_stage(stage.number, None)
        return self.method.before_block(index, tokens)

    def _run_at(self, index: int) -> Run | None:
        if index > 0 or recomputing():
            return self.passes.run
        run = self.passes.begin()
        if isinstance(self.method, Highway):
            run.ride = Ride(self.method)
        self.method.begin()
        return run

    def close(self, stage: ForeignStage, index: int, tokens: Tensor) -> Tensor:
        """Tokens (B, L, C) behind a block."""
        run, prompt = self.passes.run, self.passes.scratch.pop((index, "prompt"), None)
        last_of_stage = index == stage.members[-1].seen.index and not (self.whole and index == self.last)
        if prompt is not None and not last_of_stage:
            tokens = insert_after_cls(tokens, prompt)
        if self.asks_block:
            if self.method.remembers:
                self.passes.refuse_threads(self.host.title)
            tokens = self.method.after_block(index, tokens)
        if run is not None and index in self.wanted and not self.rides:
            run.behind[index] = tokens
        if run is not None and self.rides:
            seen = tokens if self._joins(index) else tokens.detach()
            run.waiting, run.recorded = (index, seen, run.recorded), {}
            if self._joins(index + 1):
                tokens = self._go_on(run)
        if last_of_stage:
            if run is not None and (self.asks_block or self.asks_ffn):
                self._prompts = tokens.shape[1] - run.length
            if self._prompts:
                tokens = torch.cat([tokens[:, :1], tokens[:, 1 + self._prompts :]], dim=1)
            if prompt is not None:  # it has nowhere to go, but data-parallel training waits for its gradient
                tokens = tokens + 0.0 * prompt.sum()
        if run is not None and index == self.last:
            tokens = self._finish(run, tokens)
        return tokens

    def _finish(self, run: Run, tokens: Tensor) -> Tensor:
        losses = [run.losses[index] for index in sorted(run.losses)]
        if run.ride is not None:
            self._pass_on(run)
            with kept():
                tokens, losses = run.ride.end(), run.ride.losses
        self.method.end()
        self.passes.end(losses, Result(tokens, run.behind) if self.whole else None)
        if not self._checked and not torch.compiler.is_compiling():
            self._check_ran()
        return tokens

    def _joins(self, index: int) -> bool:
        """Whether the state of a highway has joined the tokens on their way into a block."""
        return self.first is not None and index >= self.first

    def _pass_on(self, run: Run) -> None:
        """Takes the highway past the block that has ended, whose way to the next stage is known by now."""
        if run.waiting is not None:
            self._go_on(run)

    def _go_on(self, run: Run) -> Tensor:
        """Takes the highway past the block that has ended; its tokens, which the state may have joined."""
        assert run.waiting is not None
        assert run.ride is not None
        number, tokens, found = run.waiting
        run.waiting, lead, run.lead = None, run.lead, None
        check_recorded(self.host, number, found, run)
        joins = self._joins(number + 1)
        step = Recorded(found["attention"], found["ffn"], tokens, None, None if joins else lead)
        if self.steps is not None:
            self.steps.append(step)
        with kept():
            run.ride.take(number, step)
            if number in self.wanted:
                run.behind[number] = run.ride.joined()
            if joins:
                return run.ride.hand_over()
            run.ride.lead()
        return tokens

    def _adapt(self, key: tuple[int, str], read: Tensor, made: Tensor) -> Tensor:
        """What a branch of the method makes of the output of an FFN."""
        index = key[0]
        if not self._checked:
            self._acted.add(index)
        added = self.method.adapt_ffn(index, flat(read), flat(made))
        if added is None:
            return made
        update, prompt, loss = added
        run = self.passes.run
        if run is None:  # computed again
            for name, value in (("loss", loss), ("prompt", prompt)):
                if value is not None:
                    update = self._stand.hand_on((index, name), value, update)
        elif run.gradients and not torch.is_grad_enabled():  # first of the two passes of a reentrant checkpoint
            loss = None if loss is None else self._stand.in_place_of((index, "loss"), loss)
            prompt = None if prompt is None else self._stand.in_place_of((index, "prompt"), prompt)
        if run is not None and loss is not None:
            run.losses[index] = loss
        if prompt is not None:
            self.passes.scratch[index, "prompt"] = prompt
        return made + update.view(made.shape)

    def _record(self, key: tuple[int, str], read: Tensor, made: Tensor) -> None:
        run = self.passes.run
        if run is not None:
            run.recorded[key[1]] = flat(made if self._joins(key[0]) else made.detach())

    def _check_length(self, stage: ForeignStage, length: int) -> None:
        known, sites = stage.num_patches, self.host.sites
        others = sites.class_token + sites.registers
        if known and getattr(self.method.options, "counts_patches", False) and length != others + known:
            raise ConfigError(
                f"{self.host.title} was given {length} tokens, of which {others} are no patches, but its adapter is "
                f"made for {known} patches; give it inputs of the size that it was built for"
            )

    def _check_ran(self) -> None:
        """After the first pass: whether every module that something acts at has been run as a module.

        Raises:
            ConfigError: naming the module and the site.
        """
        self._checked = True
        idle = [hook.site for hook in self.method.hooks if not hook.ran and hook.site.name not in OUTSIDE]
        if self.asks_ffn and not self.rides:
            blocks = (block.seen for block in self.host.members() if block.seen.index not in self._acted)
            idle += [block.site("ffn") for block in blocks]
        if idle:
            names = {module: name for name, module in self.host.model.named_modules()}
            raise ConfigError(
                f"{self.host.title} has not run '{names.get(idle[0].pieces()[0][0], '?')}' (site {idle[0].name}) as a "
                "module, so nothing can act there; it may use the weights alone: choose another site or method"
            )


_Act = Callable[[tuple[int, str], Tensor, Tensor], Tensor | None]


OUTSIDE = ("patch", "final norm")
"""Sites that do not run between the first block and the last."""


class _Notes:
    """Before what may run the first block in a checkpoint."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    def __call__(self, module: nn.Module, inputs: Inputs) -> None:
        self.driver.passes.note_gradients()


class _Opens:
    """Before a block."""

    def __init__(self, driver: Driver, stage: ForeignStage, block: ForeignBlock) -> None:
        self.driver = driver
        self.stage = stage
        self.index = block.seen.index
        self.batch_first = driver.host.sites.batch_first

    def __call__(self, module: nn.Module, inputs: Inputs, named: Named) -> tuple[Inputs, Named] | None:
        if not self.driver.enabled:
            return None
        given = first_tensor(inputs, named)
        tokens = flat(given) if self.batch_first else given.transpose(0, 1)
        opened = self.driver.open(self.stage, self.index, tokens)
        if self.driver.inserts:
            inputs, named = with_wide_masks(inputs, named, opened.shape[1])
        if opened is tokens:
            return (inputs, named) if self.driver.inserts else None
        return put(inputs, named, opened if self.batch_first else opened.transpose(0, 1))


class _Closes:
    """Behind a block."""

    def __init__(self, driver: Driver, stage: ForeignStage, block: ForeignBlock) -> None:
        self.driver = driver
        self.stage = stage
        self.index = block.seen.index
        self.batch_first = driver.host.sites.batch_first

    def __call__(self, module: nn.Module, inputs: Inputs, output: Any) -> Any:
        if not self.driver.enabled:
            return None
        given = output[0] if isinstance(output, tuple) else output
        tokens = flat(given) if self.batch_first else given.transpose(0, 1)
        closed = self.driver.close(self.stage, self.index, tokens)
        if closed is tokens:
            return None
        closed = closed if self.batch_first else closed.transpose(0, 1)
        if given.ndim != 3:
            closed = closed.view(given.shape)
        return (closed, *output[1:]) if isinstance(output, tuple) else closed


class _Ends:
    """At both ends of a branch of a block.

    A module at the end may also serve another branch, so it acts only where the branch has begun.
    """

    def __init__(self, driver: Driver, key: tuple[int, str], act: _Act) -> None:
        self.driver = driver
        self.key = key
        self.act = act
        self.batch_first = driver.host.sites.batch_first

    def whole(self, module: nn.Module, inputs: Inputs, named: Named, output: Any) -> Any:
        """Behind a branch that is one module."""
        if not self.driver.enabled:
            return None
        return self._changed(first_tensor(inputs, named), output)

    def begin(self, module: nn.Module, inputs: Inputs, named: Named) -> None:
        """Before the first module of a branch."""
        if self.driver.enabled:
            self.driver.passes.scratch[self.key] = first_tensor(inputs, named)

    def out(self, module: nn.Module, inputs: Inputs, output: Any) -> Any:
        """Behind the last module of a branch."""
        read = self.driver.passes.scratch.pop(self.key, None)
        return None if read is None else self._changed(read, output)

    def into(self, module: nn.Module, inputs: Inputs, named: Named) -> tuple[Inputs, Named] | None:
        """Before the module that takes what the branch adds."""
        read = self.driver.passes.scratch.pop(self.key, None)
        if read is None:
            return None
        changed = self._changed(read, first_tensor(inputs, named))
        return None if changed is None else put(inputs, named, changed)

    def forget(self, module: nn.Module, inputs: Inputs) -> None:
        """Before attention, which comes before the branch."""
        self.driver.passes.scratch.pop(self.key, None)

    def _changed(self, read: Tensor, output: Any) -> Any:
        made = output[0] if isinstance(output, tuple) else output
        if self.batch_first:
            changed = self.act(self.key, read, made)
        else:
            changed = self.act(self.key, read.transpose(0, 1), made.transpose(0, 1))
            changed = None if changed is None else changed.transpose(0, 1)
        if changed is None:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else changed
