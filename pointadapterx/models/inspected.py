"""Whether someone looks into a computation that has a faster form, which shows nothing of its inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as global_hooks

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks")


def is_plain_call(inputs: Tensor) -> bool:
    """Whether a CPU really computes on a tensor now.

    It does not for torch.compile, torch.jit, torch.func and forward-mode derivatives, nor for subclasses of tensors,
    such as those of a model that is only counted; and sparse or nested ones have shapes of their own.
    """
    transforms = getattr(torch._C, "_are_functorch_transforms_active", None)  # torch says it nowhere else
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and type(inputs) in (Tensor, nn.Parameter)
        and inputs.device.type == "cpu"
        and inputs.layout == torch.strided
        and not inputs.is_nested
        and getattr(forward_ad, "_current_level", -1) < 0
        and transforms is not None
        and not transforms()
    )


def is_dispatched() -> bool:
    """Whether a mode, such as one in which nothing is computed, takes torch's operators."""
    return bool(torch._C._len_torch_dispatch_stack())


def acts_alone(*modules: nn.Module) -> bool:
    """Whether modules do what their classes say, and nobody looks.

    No hook on one of them acts, one for all modules included; a hook whose ``enabled`` is False does not. And none has
    a ``forward`` of its own, unless that computes the same, which its attribute ``same`` says.
    """
    if any(getattr(global_hooks, name, None) for name in _GLOBAL):
        return False
    if any(not getattr(vars(one)["forward"], "same", False) for one in modules if "forward" in vars(one)):
        return False
    return not any(_acts(hook) for one in modules for name in _HOOKS for hook in getattr(one, name).values())


def _acts(hook: Any) -> bool:
    return bool(getattr(getattr(hook, "hook", hook), "enabled", True))
