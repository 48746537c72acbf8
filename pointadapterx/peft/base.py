"""The contract of an adaptation method: one class, in one file, with one registry line.

A method creates modules of its own, says what of the backbone it trains besides, and is asked at fixed
places of the forward pass. Whatever it creates is trainable; everything else is frozen. No parameter is ever
chosen by a substring of its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pointadapterx.errors import ConfigError, MergeError
from pointadapterx.models.backbone import Backbone, Features
from pointadapterx.models.block import Adaptation
from pointadapterx.models.frozen import Frozen
from pointadapterx.registry import Registry
from pointadapterx.schema import Section


class Method(nn.Module):
    """Base class; on its own it adds nothing.

    The order of events (see :func:`pointadapterx.build.build_model`): the backbone gets its pre-trained
    weights, then ``attach`` creates the method's modules for it, then everything that is neither created by
    the method nor named by :meth:`trained_backbone_parameters` is frozen.

    Attributes:
        trains_backbone: whether every backbone parameter is trained (full fine-tuning).
        hooks: what of the method acts at leaves of the backbone, see :meth:`tap` and :meth:`branch`.
    """

    class Options(Section):
        """``method:`` of a config. A subclass declares its fields here, ``name`` included."""

        name: str

        @property
        def makes_prompts(self) -> bool:
            """Whether these options insert prompt tokens."""
            return False

        @property
        def needs_prompt_pool(self) -> bool:
            """Whether nothing but a prompt pool of the head would read what these options make."""
            return False

        def problems(self, backbone: Backbone.Options) -> Iterator[tuple[str, str]]:
            """(key, message) for each impossible combination with a backbone of these options."""
            yield from ()

    trains_backbone: ClassVar[bool] = False

    def __init__(self, options: Section) -> None:
        super().__init__()
        self.options = options
        self.hooks: list[Hook] = []

    def tap(self, leaf: nn.Module, module: nn.Module) -> None:
        """Sends the output of a leaf of the backbone through ``module``, which is one of the method's."""
        self.hooks.append(Hook(leaf, module, beside=False))

    def branch(self, leaf: nn.Module, module: nn.Module) -> None:
        """Adds ``module`` of a leaf's input to its output; ``module`` is one of the method's."""
        self.hooks.append(Hook(leaf, module, beside=True))

    def attach(self, backbone: Backbone) -> None:
        """Creates the method's modules for ``backbone`` and hooks them into its leaves."""

    def trained_backbone_parameters(self, backbone: Backbone) -> Iterator[nn.Parameter]:
        """Backbone parameters that the method trains besides its own; by default what is not pre-trained.

        That is the class token and its position where the backbone's weights have none.
        """
        yield from backbone.class_parameters().values()

    def before_block(self, index: int, tokens: Tensor) -> Tensor:
        """Tokens (B, L, C) on their way into block ``index``; may insert tokens after CLS."""
        return tokens

    def adapt_ffn(self, index: int, ffn_input: Tensor, ffn_output: Tensor) -> Adaptation | None:
        """What to add to the FFN of block ``index``.

        Args:
            index: number of the block, from 0.
            ffn_input: u = norm2(h), (B, L, C).
            ffn_output: mlp(u), (B, L, C).
        """
        return None

    def run(self, backbone: Backbone, inputs: Tensor | Frozen) -> Features:
        """The whole pass; a side network overrides it.

        Args:
            backbone: the one that the method is attached to.
            inputs: of the task, or what :meth:`precompute` made of them.
        """
        return backbone(inputs, self)

    def precompute(self, backbone: Backbone, inputs: Tensor) -> Frozen:
        """What nothing trained has a part in: here the patch tokens. Computed in eval mode, without gradient.

        A method that leaves more of the backbone alone overrides it together with :meth:`run`.
        """
        hooks = [hook for hook in self.hooks if hook.leaf is backbone.patch_module]
        for hook in hooks:
            hook.enabled = False
        try:
            return backbone.patches(inputs)
        finally:
            for hook in hooks:
                hook.enabled = True

    def frozen_state(self, backbone: Backbone) -> Mapping[str, Tensor]:
        """Parameters and buffers that decide what :meth:`precompute` returns.

        Raises:
            ConfigError: if some of them are trained.
        """
        layers = backbone.patch_layers()
        inside = {module for layer in layers for module in layer.modules()}
        acts_inside = any(
            hook.leaf in inside and (hook.beside or hook.leaf is not backbone.patch_module) for hook in self.hooks
        )
        if acts_inside or any(parameter.requires_grad for layer in layers for parameter in layer.parameters()):
            name = getattr(self.options, "name", "this method")
            raise ConfigError(f"train.cached_views: {name} trains the patch embedding; remove the key")
        return {f"{i}.{name}": value for i, layer in enumerate(layers) for name, value in layer.state_dict().items()}

    def tapped(self, leaf: nn.Module, output: Tensor) -> Tensor:
        """What :meth:`tap` makes of the output of a leaf that was not run."""
        for hook in self.hooks:
            if hook.leaf is leaf:
                output = hook(leaf, (), output)
        return output

    def auxiliary_loss(self, losses: list[Tensor]) -> Tensor | None:
        """One scalar to add to the task loss, from the losses of the blocks, or None."""
        return None

    def statistics(self) -> dict[str, Tensor]:
        """What the last forward pass in training mode tells of the method's health; cleared when read.

        Returns:
            Detached sums over the B samples of that pass, of any shape: divided by the number of samples, sums
            over batches and processes give the mean.
        """
        return {}

    def merge(self, backbone: Backbone) -> None:
        """Folds what the method computes into the backbone's own weights, after which it is not needed any more.

        The hooks are removed by the caller.

        Raises:
            MergeError: if no plain backbone computes the same.
        """
        name = getattr(self.options, "name", "it")
        raise MergeError(
            f"{name} adds what no plain backbone computes, so it cannot be merged; methods that can: "
            f"{', '.join(sorted(n for n, kind in METHODS.items() if kind.merge is not Method.merge))}"
        )

    def merge_nothing(self, backbone: Backbone) -> None:
        """The :meth:`merge` of a method that only trains the backbone's own parameters, or none."""

    def undecayed_parameters(self) -> Iterator[nn.Parameter]:
        """The method's tokens (prompts), which take no weight decay though they are not 1-D."""
        yield from ()


class Hook:
    """Lets a module of a method act at a leaf of the backbone.

    A forward hook instead of a wrapper keeps the backbone's parameter names, so that its checkpoints and its hash do
    not depend on the method; an object instead of a closure, so that a deep copy of the model has hooks of its own.

    Args:
        leaf: layer of the backbone.
        module: what acts there; it stays owned by the method.
        beside: ``leaf(x) + module(x)`` instead of ``module(leaf(x))``.

    Attributes:
        leaf: the layer.
        enabled: whether it acts; False leaves the plain layer.
    """

    def __init__(self, leaf: nn.Module, module: nn.Module, *, beside: bool) -> None:
        self.leaf = leaf
        self.module = module
        self.beside = beside
        self.enabled = True
        self._handle = leaf.register_forward_hook(self)

    def __call__(self, leaf: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """The output that takes the place of the leaf's."""
        if not self.enabled:
            return output
        return output + self.module(inputs[0]) if self.beside else self.module(output)

    def remove(self) -> None:
        """Takes it away from the leaf for good."""
        self._handle.remove()


class ScaleShift(nn.Module):
    """y = x ⊙ γ + β with vectors γ, β: DAPT's TFTS, SSF's layer, and the X prompt generator's affine part.

    Args:
        dim: width C.
        std: standard deviation of the initial γ (around ``scale``) and β (around 0).
        scale: mean of the initial γ; 1 with ``std`` 0 is the identity.
    """

    def __init__(self, dim: int, std: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), scale))
        self.beta = nn.Parameter(torch.zeros(dim))
        if std > 0.0:
            nn.init.normal_(self.gamma, mean=scale, std=std)
            nn.init.normal_(self.beta, std=std)

    def forward(self, values: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        if torch.compiler.is_compiling() or values.device.type != "cpu" or not torch.is_grad_enabled():
            return torch.addcmul(self.beta, values, self.gamma)
        return _ScaleShift.apply(values, self.gamma, self.beta)


class _ScaleShift(torch.autograd.Function):
    """addcmul on a CPU, whose three gradients are taken of a few rows at a time, while these are in the cache."""

    CHUNK = 2**17  # values

    @staticmethod
    def forward(values: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        """(..., C), (C,), (C,) -> (..., C)."""
        return torch.addcmul(beta, values, gamma)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        """Keeps what the gradients are made of."""
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """γ ⊙ g, and sums over the rows of g ⊙ x and g."""
        values, gamma = ctx.saved_tensors
        of_gamma, of_beta = torch.zeros_like(gamma), torch.zeros_like(gamma)
        needed = ctx.needs_input_grad[0]
        of_values = torch.empty_like(values, memory_format=torch.contiguous_format) if needed else None
        rows = max(_ScaleShift.CHUNK // len(gamma), 1)
        parts = [tensor.reshape(-1, len(gamma)).split(rows) for tensor in (grad, values)]
        targets = of_values.view(-1, len(gamma)).split(rows) if of_values is not None else [None] * len(parts[0])
        for of_output, part, target in zip(*parts, targets, strict=True):
            of_gamma += (of_output * part).sum(dim=0)
            of_beta += of_output.sum(dim=0)
            if target is not None:
                torch.mul(of_output, gamma, out=target)
        return of_values, of_gamma, of_beta


METHODS: Registry[type[Method]] = Registry("method")
"""Methods by the name used in ``method.name``."""
