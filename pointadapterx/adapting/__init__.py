"""Adapts any transformer in place: the object keeps its class, its forward and the names of its parameters."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pointadapterx.adapting.adapters import Adapters, adapters_of, guards_of, own_parameters, unwrapped
from pointadapterx.errors import ConfigError, shown
from pointadapterx.models.backbone import Backbone
from pointadapterx.models.foreign import ForeignHost, Sites
from pointadapterx.models.foreign.host import ADAPTERS
from pointadapterx.models.foreign.sites import first_problem
from pointadapterx.models.packing import unpack
from pointadapterx.peft import METHODS, Method
from pointadapterx.peft.e3va import Highway

__all__ = [
    "Adapters",
    "adapt",
    "adapters_of",
    "attach",
    "auxiliary_loss",
    "disable_adapter",
    "is_adapted",
    "merge",
    "set_adapter",
    "unload",
]

DEFAULT = "default"


def adapt(
    model: nn.Module,
    method: str,
    *,
    train: Sequence[str] = (),
    sites: Sites | Mapping[str, Any] | str | None = None,
    name: str = DEFAULT,
    **options: Any,
) -> nn.Module:
    """Adapts a model in place: freezes it, except for what the method adds and what ``train`` names.

    What the method adds is one submodule, ``model.pointadapterx``, so that optimisers, trainers and ``state_dict`` find
    it. Call it again with another ``name`` for a second adapter.

    Args:
        model: any module with transformer blocks, with its pre-trained weights.
        method: of :data:`~pointadapterx.peft.base.METHODS`.
        train: paths of modules and parameters of the model that are trained too, such as ``["classifier"]``.
        sites: where methods may act, also as a mapping; None where the model, or a module inside it, is of a known
            class; the path of that module where several are.
        name: of the adapter.
        options: keys of the method, as in the ``method`` section of a config.

    Returns:
        The same object.

    Raises:
        ConfigError: in one line, naming the module and what cannot be adapted.
    """
    attach(model, method, train=train, sites=sites, name=name, options=options)
    head = None if train else _frozen_head(model)
    if head is not None:
        warnings.warn(
            f"'{head}' of {type(model).__name__} stays frozen, with the values that it has; if it is new, pass "
            f"train=['{head}']",
            stacklevel=2,
        )
    return model


def attach(
    model: nn.Module,
    method: str,
    *,
    train: Sequence[str],
    sites: Sites | Mapping[str, Any] | str | None,
    name: str,
    options: dict[str, Any],
) -> None:
    """:func:`adapt` without a word on a head that stays frozen, as for an adapter that is loaded."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"adapt needs a torch.nn.Module, not {shown(model)}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ConfigError(f"adapt cannot change a scripted module ({type(model).__name__}); adapt it before scripting")
    if unwrapped(model) is not model or getattr(model, "_compiled_call_impl", None) is not None:
        what = f"{type(unwrapped(model)).__name__} is compiled, or wrapped for data-parallel training"
        raise ConfigError(f"{what}, which would not see the adapter; adapt it before")
    if isinstance(sites, Mapping):
        sites = Sites(**sites)
    if not (isinstance(sites, Sites | str) or sites is None):
        raise ConfigError(f"sites: {shown(sites)} is neither Sites(...) nor the path of a module")
    names = [train] if isinstance(train, str) else train
    if not isinstance(names, Sequence) or not all(isinstance(one, str) for one in names):
        what = f"a {type(train).__name__}" if isinstance(train, nn.Module) else shown(train)
        raise ConfigError(f"train: {what} is no list of paths of modules or parameters, such as ['classifier']")
    if not isinstance(method, str) or not isinstance(name, str):
        raise ConfigError(f"method and name are text, not {shown(method)} and {shown(name)}")
    chosen = _options(method, options)
    first = not is_adapted(model)
    if not first and sites is not None:
        raise ConfigError("sites: are those of the first adapter; leave them out")
    adapters = Adapters(_host(model, sites), sites) if first else adapters_of(model)
    if not name.isidentifier() or hasattr(nn.ModuleDict, name):
        raise ConfigError(f"name: {shown(name)} cannot name an adapter; use letters, digits and underscores")
    if name in adapters.entries:
        raise ConfigError(f"name: the model already has an adapter '{name}'; choose another name")
    built = METHODS[method](chosen)
    _require(adapters.host, built, chosen)
    if first:
        adapters.requires = {key: parameter.requires_grad for key, parameter in own_parameters(model)}
    adapters.add(model, name, built, list(names))
    if first:
        setattr(model, ADAPTERS, adapters)
        adapters.guards = list(guards_of(model, adapters.host))


def _frozen_head(model: nn.Module) -> str | None:
    """Name of a child of the model that looks like a head and is frozen as a whole."""
    blocks = {id(block.module) for block in adapters_of(model).host.members()}
    for name, module in model.named_children():
        parameters = list(module.parameters())
        is_head = re.search("head|classifier|^fc$|^score$", name) and not any(id(m) in blocks for m in module.modules())
        if is_head and parameters and not any(one.requires_grad for one in parameters):
            return name
    return None


def is_adapted(model: nn.Module) -> bool:
    """Whether a model has been adapted in place."""
    return isinstance(getattr(unwrapped(model), ADAPTERS, None), Adapters)


def auxiliary_loss(model: nn.Module) -> Tensor:
    """A scalar to add to the task's loss, of the model's last forward pass in this thread; 0 where there is nothing.

    Raises:
        ConfigError: if the model is not adapted.
    """
    adapters = adapters_of(model)
    if adapters.active is not None:
        driver = adapters.entry().driver
        losses = driver.passes.losses
        found = driver.method.auxiliary_loss(losses) if losses else None
        if found is not None:
            return found
    return torch.zeros((), device=next(model.parameters()).device)


def set_adapter(model: nn.Module, name: str) -> None:
    """Lets another adapter act, with its own values of what it trains of the model.

    Raises:
        ConfigError: if there is no such adapter.
    """
    adapters_of(model).set(model, name)


def disable_adapter(model: nn.Module) -> AbstractContextManager[None]:
    """``with disable_adapter(model):`` the model is as it came, also where its own parameters are trained.

    Raises:
        ConfigError: if the model is not adapted.
    """
    return adapters_of(model).disabled(model)


def merge(model: nn.Module) -> nn.Module:
    """A plain copy of the model, with the active adapter folded into its weights; the model is not changed.

    Raises:
        ConfigError: if the model is not adapted.
        MergeError: if no model of this class computes the same.
    """
    copied = _copy(model)
    adapters_of(copied).merge(copied)
    return copied.eval()


def unload(model: nn.Module) -> nn.Module:
    """A copy of the model as it came, without any adapter; the model is not changed.

    Raises:
        ConfigError: if the model is not adapted.
        MergeError: after full fine-tuning, which leaves nothing of it.
    """
    copied = _copy(model)
    adapters_of(copied).unload(copied)
    return copied


def _copy(model: nn.Module) -> nn.Module:
    adapters_of(model).forget()
    copied = copy.deepcopy(unwrapped(model))
    unpack(copied.modules())
    return copied


def _host(model: nn.Module, sites: Sites | str | None) -> ForeignHost:
    if isinstance(model, Backbone) or any(isinstance(inner, Backbone) for inner in model.children()):
        raise ConfigError(
            f"{type(model).__name__} is a model of this package; adapt it with build_model or create_model"
        )
    if hasattr(model, ADAPTERS):
        raise ConfigError(f"{type(model).__name__} already has an attribute '{ADAPTERS}'; rename it")
    inside = [path for path, module in model.named_modules() if isinstance(module, Adapters)]
    if inside:
        raise ConfigError(
            f"'{inside[0].rpartition('.')[0]}' inside {type(model).__name__} is already adapted; unload it first"
        )
    return ForeignHost.of(model, sites)


def _options(method: str, options: dict[str, Any]) -> Method.Options:
    kind = METHODS[method].Options
    try:
        return kind.model_validate({"name": method, **options})
    except ValidationError as error:
        raise first_problem(error, kind, method, "option") from None


def _require(host: ForeignHost, method: Method, options: Method.Options) -> None:
    """Checks that a model has what a method needs.

    Raises:
        ConfigError: in one line.
    """
    for problem in _problems(host, method, options):
        raise ConfigError(f"{options.name} cannot adapt {host.title}: {problem}")
    try:
        method.require(host)
    except ConfigError as error:
        raise ConfigError(f"{error}{_ways(host, options)}") from None


def _ways(host: ForeignHost, options: Method.Options) -> str:
    """What else helps where a method lacks sites: naming them, or other targets."""
    sites = host.every_block()[0].sites
    lacking = [name for name in options.needs_sites if name not in sites]
    ways = []
    if lacking and host.family is None:
        ways = [f"name {' and '.join(f'sites.{name}' for name in lacking)}"]
        if "qkv" in lacking:
            ways += ["sites.q, sites.k and sites.v where they are separate (nn.MultiheadAttention has no such layers)"]
    if lacking and "targets" in type(options).model_fields and "fc1" not in lacking:
        known = "fc1" in sites and "fc2" in sites
        ways += [f"{'' if known else 'name sites.fc1 and sites.fc2, and '}pass targets=['fc1', 'fc2']"]
    return "".join(f", or {way}" for way in ways)


def _problems(host: ForeignHost, method: Method, options: Method.Options) -> Iterator[str]:
    switch = "pass prompts=False" if "prompts" in type(options).model_fields else "choose another method"
    if options.name == "noah" and getattr(options, "architecture", None) is None:
        yield "without architecture it is a supernet, which only the search of this package trains; pass architecture"
    if options.needs_prompt_pool:
        yield "its prompts need a prompt pool of this package's head; pass prompts=False"
    prompts = options.makes_prompts or (
        options.needs_class_token and type(method).before_block is not Method.before_block
    )
    if prompts and host.no_prompts:
        yield f"it inserts prompt tokens, but {host.no_prompts}; {switch}"
    if prompts and not host.has_class_token:
        yield f"it inserts prompts behind a class token, which the model does not have; {switch}"
    if options.counts_patches and host.has_class_token and not host.stages[-1].num_patches:
        yield "it needs to know the number of patch tokens; give it in sites.num_patches"
    if len(host.stages) > 1 and isinstance(method, Highway) and None in _transitions(host):
        yield "what leads from stage to stage is not known; name it in sites.transition"
    if options.needs_own_pass:
        yield options.needs_own_pass
    for key, message in options.problems(host.shape()):
        yield f"{key}: {message}"


def _transitions(host: ForeignHost) -> list[nn.Module | None]:
    return [stage.transition for stage in host.stages[:-1]]
