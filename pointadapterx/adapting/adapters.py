"""The adapters of a foreign model: one submodule of it, which owns whatever is trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from pointadapterx.adapting.driving import Driver
from pointadapterx.adapting.highways import check_trained
from pointadapterx.errors import ConfigError, MergeError
from pointadapterx.hashing import hash_tensors
from pointadapterx.models.foreign.host import ADAPTERS, ForeignHost
from pointadapterx.models.foreign.sites import Sites
from pointadapterx.peft.base import Method
from pointadapterx.peft.hooks import first_tensor
from pointadapterx.registry import did_you_mean


class Adapter:
    """What belongs to one adapter apart from its modules.

    Attributes:
        driver: runs its method.
        train: names given by the user, of what else it trains.
        owned: names of the model's own tensors that are trained with it, and of the buffers that change with them.
        trained: those of them that are parameters.
        base_hash: of the model's weights as they came, without what ``train`` names.
        kept: values of :attr:`owned` while another adapter is active.
    """

    def __init__(self, driver: Driver, train: list[str], owned: list[str], trained: list[str], base_hash: str) -> None:
        self.driver = driver
        self.train = train
        self.owned = owned
        self.trained = trained
        self.base_hash = base_hash
        self.kept: dict[str, Tensor] | None = None


class Adapters(nn.Module):
    """Named adapters of a model, of which one is active, or none.

    Args:
        host: the model as methods see it.
        given: what the user said of its sites.

    Attributes:
        host: the model as methods see it.
        given: likewise.
        methods: the methods by the names of their adapters; their parameters are what an optimiser finds.
        entries: what else belongs to them.
        active: name of the adapter that acts, or None.
        initial: the model's own trained tensors as they came, by name.
        requires: which of the model's own parameters were trained before.
        guards: hooks that serve all adapters.
    """

    def __init__(self, host: ForeignHost, given: Sites | str | None = None) -> None:
        super().__init__()
        self.host = host
        self.given = given
        self.methods = nn.ModuleDict()
        self.entries: dict[str, Adapter] = {}
        self.active: str | None = None
        self.initial: dict[str, Tensor] = {}
        self.requires: dict[str, bool] = {}
        self.guards: list[RemovableHandle] = []

    def add(self, model: nn.Module, name: str, method: Method, train: Iterable[str]) -> None:
        """Attaches a method under a name, and makes it the active one.

        Args:
            model: that all of this belongs to.
            name: a new one.
            method: not yet attached.
            train: parameters and modules of the model that are trained too.

        Raises:
            ConfigError: if the method cannot adapt the model, or a name is unknown.
        """
        named = _named(model, train)
        parameters = dict(own_parameters(model))
        check_trained(self.host, method, {key: parameters[key] for key in named})
        before = self.active
        if before is not None:
            self.set(model, None)  # a method may start from the weights, which are those that came
        try:
            trained = self._attach(method, parameters, named)
        except BaseException:
            for hook in method.hooks:
                hook.remove()
            if before is not None:
                self.set(model, before)
            raise
        owned = [*trained, *_buffers_beside(model, trained)]
        self.set(model, None)
        state = base_state(model)
        self.initial.update({key: state[key].detach().clone() for key in owned if key not in self.initial})
        came_with = base_hash(model, train)
        if not self.entries:
            self.host.switch()
        device, dtype = _placed(parameters.values())
        method.to(device=device, dtype=dtype)
        method.train(model.training)
        self.methods[name] = method
        self.entries[name] = Adapter(Driver(self.host, method), list(train), owned, trained, came_with)
        self.set(model, name)

    def _attach(self, method: Method, parameters: dict[str, nn.Parameter], named: set[str]) -> list[str]:
        """Attaches a method; names of the model's parameters that are trained with it."""
        method.attach(self.host)
        by_method = {id(parameter) for parameter in method.trained_backbone_parameters(self.host)}
        trained = [key for key, value in parameters.items() if key in named or id(value) in by_method]
        if not trained and not any(True for _ in method.parameters()):
            name = getattr(method.options, "name", "the method")
            raise ConfigError(
                f"{name} trains nothing of {self.host.title} by itself; name what to train, for example "
                "train=['classifier']"
            )
        return trained

    def set(self, model: nn.Module, name: str | None) -> None:
        """Lets an adapter act, with its own values of what it trains of the model; None: the model as it came."""
        if name is not None:
            self.entry(name)
        if name != self.active:
            state = base_state(model)
            if self.active is not None:
                before = self.entries[self.active]
                before.kept = {key: state[key].detach().clone() for key in before.owned}
                _write(state, {key: self.initial[key] for key in before.owned})
            if name is not None and (kept := self.entries[name].kept) is not None:
                _write(state, kept)
                self.entries[name].kept = None
        self.active = name
        trained = set() if name is None else set(self.entries[name].trained)
        for key, parameter in own_parameters(model):
            parameter.requires_grad_(key in trained)
        _wake(unwrapped(model))
        for key, method in self.methods.items():
            method.requires_grad_(key == name)
            self.entries[key].driver.enable(key == name)

    @contextmanager
    def disabled(self, model: nn.Module) -> Iterator[None]:
        """The model as it came, for as long as this lasts."""
        active = self.active
        self.set(model, None)
        try:
            yield
        finally:
            self.set(model, active)

    def entry(self, name: str | None = None) -> Adapter:
        """An adapter, by default the active one.

        Raises:
            ConfigError: if there is no such.
        """
        name = self.active if name is None else name
        if name is None:
            raise ConfigError("no adapter is active; choose one with set_adapter(model, name)")
        if name not in self.entries:
            raise ConfigError(
                f"no adapter '{name}'{did_you_mean(name, self.entries)} Adapters: {', '.join(self.entries)}"
            )
        return self.entries[name]

    def discard(self, model: nn.Module, name: str) -> None:
        """Removes one adapter; with the last one, everything."""
        if self.active == name:
            self.set(model, None)
        self.entries.pop(name).driver.remove()
        del self.methods[name]
        if not self.entries:
            self.remove(model)

    def remove(self, model: nn.Module) -> None:
        """Takes everything out of the model again, which keeps the values that it has."""
        for entry in self.entries.values():
            entry.driver.remove()
        for handle in self.guards:
            handle.remove()
        self.host.switch_back()
        inner = unwrapped(model)
        delattr(inner, ADAPTERS)
        for key, parameter in inner.named_parameters():
            parameter.requires_grad_(self.requires.get(key, True))

    def merge(self, model: nn.Module) -> None:
        """Folds the active adapter into the weights and removes everything.

        Raises:
            MergeError: if no model of this class computes the same.
        """
        entry = self.entry()
        entry.driver.method.merge(self.host)
        self.remove(model)

    def unload(self, model: nn.Module) -> None:
        """Removes everything; the weights are those that came.

        Raises:
            MergeError: after full fine-tuning.
        """
        if any(entry.driver.method.trains_backbone for entry in self.entries.values()):
            raise MergeError("full fine-tuning has changed the whole model; load it again")
        self.set(model, None)
        self.remove(model)

    def forget(self) -> None:
        """Discards what the last passes left."""
        for entry in self.entries.values():
            entry.driver.passes.forget()


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside what data-parallel training or ``torch.compile`` puts around it."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return unwrapped(model.module)
    inner = getattr(model, "_orig_mod", None)
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


def adapters_of(model: nn.Module) -> Adapters:
    """Those of an adapted model, which may be wrapped, see :func:`unwrapped`.

    Raises:
        ConfigError: if it is not adapted.
    """
    found = getattr(unwrapped(model), ADAPTERS, None)
    if not isinstance(found, Adapters):
        raise ConfigError(f"{type(model).__name__} has no adapters; adapt it first: pointadapterx.adapt(model, ...)")
    return found


def parts_of(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Each parameter of a model with what it is a part of: ``backbone``, ``head`` (named by ``train``) or ``method``.

    Raises:
        ConfigError: if the model is not adapted, or no adapter is active.
    """
    entry = adapters_of(model).entry()
    for name, parameter in own_parameters(model):
        yield "head" if _is_named(name, entry.train) else "backbone", parameter
    for parameter in entry.driver.method.parameters():
        yield "method", parameter


def own_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The model's parameters except those of its adapters."""
    for name, parameter in unwrapped(model).named_parameters():
        if not name.startswith(f"{ADAPTERS}."):
            yield name, parameter


def base_hash(model: nn.Module, train: Iterable[str]) -> str:
    """SHA-256 of the model's own weights as they came, without those that ``train`` names."""
    state = base_state(model)
    if isinstance(adapters := getattr(unwrapped(model), ADAPTERS, None), Adapters):
        state |= adapters.initial
    names = list(train)
    return hash_tensors({key: value for key, value in state.items() if not _is_named(key, names)})


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's own tensors by name, which share their memory with it."""
    state = unwrapped(model).state_dict()
    return {
        name: value
        for name, value in state.items()
        if isinstance(value, Tensor) and not name.startswith(f"{ADAPTERS}.")
    }


def guards_of(model: nn.Module, host: ForeignHost) -> Iterator[RemovableHandle]:
    """Places what keeps frozen BatchNorm layers in eval mode, and lets gradients into reentrant checkpoints.

    Such a checkpoint computes gradients only where its input has one, and that of a frozen model has none.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            yield module.register_forward_pre_hook(_KeepEval())
    checkpointed = host.checkpointed()
    if checkpointed is not None:
        yield checkpointed.register_forward_pre_hook(_NeedsGradient(), with_kwargs=True)


class _KeepEval:
    """Before a BatchNorm layer: its statistics stay those of pre-training while it is frozen."""

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if module.training and not any(parameter.requires_grad for parameter in module.parameters()):
            module.eval()


class _NeedsGradient:
    """Before the first module that a reentrant checkpoint runs."""

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if not (getattr(module, "gradient_checkpointing", False) and module.training and torch.is_grad_enabled()):
            return None
        keywords = getattr(getattr(module, "_gradient_checkpointing_func", None), "keywords", {})
        tokens = first_tensor(inputs, named)
        if not keywords.get("use_reentrant", True) or tokens.requires_grad or tokens is not inputs[0]:
            return None
        return (tokens.detach().requires_grad_(), *inputs[1:]), named


def _wake(model: nn.Module) -> None:
    """BatchNorm layers that are trained from now on leave the eval mode that they were kept in."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and any(one.requires_grad for one in module.parameters()):
            module.train(model.training)


def _named(model: nn.Module, train: Iterable[str]) -> set[str]:
    """The parameters that a user names, one by one or by the module that they are in.

    Raises:
        ConfigError: for a name that is neither.
    """
    parameters = dict(own_parameters(model))
    modules = {name for name, _ in model.named_modules() if name and not name.startswith(ADAPTERS)}
    found: set[str] = set()
    for name in train:
        inside = {key for key in parameters if _is_named(key, [name])}
        if not inside:
            what = "has no parameters" if name in modules else "is neither a module nor a parameter"
            near = "" if name in modules else did_you_mean(name, [*modules, *parameters]).rstrip(".")
            raise ConfigError(f"train: '{name}' {what} of {type(model).__name__}{near}")
        found |= inside
    return found


def _is_named(key: str, train: Iterable[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in train)


def _buffers_beside(model: nn.Module, trained: list[str]) -> list[str]:
    """Buffers, such as those of BatchNorm, of the modules that have trained parameters."""
    holders = {name.rpartition(".")[0] for name in trained}
    state = base_state(model)
    buffers = (name for name, _ in model.named_buffers())
    return [name for name in buffers if name in state and name.rpartition(".")[0] in holders]


def _write(state: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for key, value in values.items():
            state[key].copy_(value)


def _placed(parameters: Iterable[nn.Parameter]) -> tuple[torch.device, torch.dtype]:
    """Device and type of the first floating-point parameter."""
    found = next((one for one in parameters if one.is_floating_point()), None)
    return (torch.device("cpu"), torch.float32) if found is None else (found.device, found.dtype)
