"""The contract of an adaptation method: one class, in one file, with one registry line.

A method creates modules of its own, says what of the backbone it trains besides, and is asked at fixed
places of the forward pass. Whatever it creates is trainable; everything else is frozen. No parameter is ever
chosen by a substring of its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from pointadapterx.models.backbone import Backbone, Features
from pointadapterx.models.block import Adaptation
from pointadapterx.registry import Registry
from pointadapterx.schema import Section


class Method(nn.Module):
    """Base class; on its own it adds nothing.

    The order of events (see :func:`pointadapterx.build.build_model`): the backbone gets its pre-trained
    weights, then ``attach`` creates the method's modules for it, then everything that is neither created by
    the method nor named by :meth:`trained_backbone_parameters` is frozen.

    Attributes:
        trains_backbone: whether every backbone parameter is trained (full fine-tuning).
    """

    class Options(Section):
        """``method:`` of a config. A subclass declares its fields here, ``name`` included."""

        name: str

        @property
        def makes_prompts(self) -> bool:
            """Whether these options insert prompt tokens."""
            return False

        def problems(self, dim: int) -> Iterator[tuple[str, str]]:
            """(key, message) for each impossible combination with a backbone of width ``dim``."""
            yield from ()

    trains_backbone: ClassVar[bool] = False

    def __init__(self, options: Section) -> None:
        super().__init__()
        self.options = options

    def attach(self, backbone: Backbone) -> None:
        """Creates the method's modules for ``backbone`` and hooks them into its leaves."""

    def trained_backbone_parameters(self, backbone: Backbone) -> Iterator[nn.Parameter]:
        """Backbone parameters that the method trains besides its own."""
        yield from ()

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

    def run(self, backbone: Backbone, inputs: Tensor) -> Features:
        """The whole pass; a side network overrides it."""
        return backbone(inputs, self)

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

    def undecayed_parameters(self) -> Iterator[nn.Parameter]:
        """The method's tokens (prompts), which take no weight decay though they are not 1-D."""
        yield from ()


def tap(leaf: nn.Module, module: nn.Module) -> None:
    """Sends the output of ``leaf`` through ``module``, which stays owned by the method.

    A forward hook instead of a wrapper keeps the backbone's parameter names, so that its checkpoints and
    its hash do not depend on the method.
    """
    leaf.register_forward_hook(_Through(module))


def branch(leaf: nn.Module, module: nn.Module) -> None:
    """Adds ``module`` of the input of ``leaf`` to its output, by a hook as :func:`tap` does."""
    leaf.register_forward_hook(_Beside(module))


class _Hook:
    """A forward hook that a deep copy of the model copies correctly (a closure would keep the old module)."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module


class _Through(_Hook):
    def __call__(self, leaf: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return self.module(output)


class _Beside(_Hook):
    def __call__(self, leaf: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + self.module(inputs[0])


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
        return values * self.gamma + self.beta


METHODS: Registry[type[Method]] = Registry("method")
"""Methods by the name used in ``method.name``."""
