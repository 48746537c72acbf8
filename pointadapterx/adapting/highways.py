"""Highways in foreign models: their way from stage to stage, and what they leave without a gradient."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pointadapterx.adapting.arguments import Inputs, Named, flat, put
from pointadapterx.adapting.passes import Run
from pointadapterx.errors import ConfigError
from pointadapterx.models.foreign.host import ForeignHost
from pointadapterx.peft.base import Method
from pointadapterx.peft.e3va import Highway
from pointadapterx.peft.hooks import first_tensor

if TYPE_CHECKING:
    from pointadapterx.adapting.driving import Driver


def check_trained(host: ForeignHost, method: Method, named: Mapping[str, nn.Parameter]) -> None:
    """Checks that nothing that the user trains is known to lie before the end of a highway.

    Args:
        host: the model.
        method: that adapts it, of any kind.
        named: what the user trains.

    Raises:
        ConfigError: naming the parameter.
    """
    if isinstance(method, Highway):
        frozen = {id(one) for part in host.before_the_norm(method.first) for one in part.parameters()}
        for name in sorted(named):
            if id(named[name]) in frozen:
                raise _no_gradient(name, method)


def check_input(host: ForeignHost, method: Method, tokens: Tensor) -> None:
    """Checks that nothing trained has made the tokens on their way into the first block.

    Args:
        host: the model.
        method: a highway.
        tokens: with their graph.

    Raises:
        ConfigError: naming the parameter.
    """
    names = {id(parameter): name for name, parameter in host.model.named_parameters()}
    seen, waiting = set(), [tokens.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = names.get(id(getattr(node, "variable", None)))
        if name is not None:
            raise _no_gradient(f"{host.path}.{name}" if host.path else name, method)
        waiting += [before for before, _ in node.next_functions]


def check_recorded(host: ForeignHost, number: int, found: Mapping[str, Tensor], run: Run) -> None:
    """Checks that both branches of a block have been seen, where they may get a gradient.

    Args:
        host: the model.
        number: of the block.
        found: outputs of its branches by the names of their sites.
        run: the pass.

    Raises:
        ConfigError: naming the site.
    """
    missing = [name for name in ("attention", "ffn") if name not in found]
    if missing:
        raise ConfigError(
            f"{host.title} did not run {' and '.join(missing)} of block {number} as a module; name the module "
            f"that is run in sites.{missing[0]}"
        )
    if run.gradients and not torch.is_grad_enabled():
        raise ConfigError(
            f"{host.title} runs its blocks in a reentrant checkpoint, through which this method gets no "
            "gradient; switch checkpointing off, or use use_reentrant=False"
        )


def _no_gradient(parameter: str, method: Method) -> ConfigError:
    name = getattr(method.options, "name", "the method")
    first = method.options.inject_from if isinstance(method, Highway) else None
    where = "the final norm" if first is None else f"block {first}"
    return ConfigError(
        f"train: '{parameter}' lies before {where}, and {name} sends no gradient there; leave it out or choose "
        "another method"
    )


class Way:
    """Tokens of one stage to those of the next, (B, L, C) each, as a module of the model leads there.

    Attributes:
        plain: where it has led the model's own tokens; None until it has.
        go: the way alone, which holds neither.
    """

    def __init__(self, module: nn.Module, inputs: Inputs, named: dict[str, Any], tokens: Tensor) -> None:
        self.plain: Tensor | None = None
        inputs, named = put(inputs, named, tokens.new_empty(0))  # a backward pass that goes here again keeps no tokens
        self.go = partial(_led, module, inputs, named, tokens.shape)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Those of the next stage."""
        return self.go(tokens)


def _led(module: nn.Module, inputs: Inputs, named: dict[str, Any], shape: torch.Size, tokens: Tensor) -> Tensor:
    inputs, named = put(inputs, named, tokens.view(shape))
    output = module.forward(*inputs, **named)
    return flat(output[0] if isinstance(output, tuple) else output)


class Leads:
    """At both ends of the frozen way to the next stage, which what waits goes too.

    Where the model leads its own tokens need not be computed again.
    """

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    def before(self, module: nn.Module, inputs: Inputs, named: Named) -> None:
        """Before the module that leads there."""
        run = self.driver.passes.run
        if self.driver.enabled and run is not None:
            tokens = first_tensor(inputs, named)
            run.lead = Way(module, inputs, named, tokens)
            if self.driver.leads:
                self.driver.method.leave_stage(flat(tokens), run.lead)

    def behind(self, module: nn.Module, inputs: Inputs, output: Any) -> None:
        """Behind it."""
        run = self.driver.passes.run
        if self.driver.enabled and run is not None and isinstance(run.lead, Way):
            run.lead.plain = flat(output[0] if isinstance(output, tuple) else output).detach()
