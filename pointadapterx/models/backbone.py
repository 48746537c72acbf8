"""What every backbone has in common: blocks, positions, a class token, and the seam for methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from pointadapterx.models.block import Block
from pointadapterx.models.checkpoint_keys import Translated
from pointadapterx.models.frozen import Patches
from pointadapterx.models.tokens import TokenSequence, pad_position
from pointadapterx.registry import Registry
from pointadapterx.schema import Blocks, Many, Rate, Section, Width

if TYPE_CHECKING:
    from pointadapterx.peft.base import Method


class Embedded(NamedTuple):
    """Input of the first block.

    Attributes:
        tokens: (B, 1 + G, C), CLS first.
        position: (B, 1 + G, C), position embeddings of the same tokens.
    """

    tokens: Tensor
    position: Tensor


class FrozenStep(NamedTuple):
    """What a method beside the frozen backbone sees of one block; no gradient enters any of it.

    Attributes:
        attention: output of the attention branch, (B, 1 + G, C).
        ffn: output of the FFN branch, (B, 1 + G, C).
        tokens: output of the block, (B, 1 + G, C).
    """

    attention: Tensor
    ffn: Tensor
    tokens: Tensor


class Features(NamedTuple):
    """Output of a backbone.

    Attributes:
        sequence: normalised tokens, see :class:`~pointadapterx.models.tokens.TokenSequence`.
        losses: auxiliary losses of the method, one scalar a block that has one.
    """

    sequence: TokenSequence
    losses: list[Tensor]


class Backbone(nn.Module):
    """Base of Point-MAE and ViT (and any transformer built of :class:`~pointadapterx.models.block.Block`).

    A subclass builds ``blocks`` and ``norm``, has a class token, and implements :meth:`patches`, :meth:`assemble` and
    :meth:`translate`.

    Attributes:
        dim: token width C.
        num_patches: G.
        patch_values: numbers that one patch is made of, 3 k coordinates or P² pixels times channels.
        grid: patches along a side, where they lie on a square grid in rows, else None.
        position: ``"every_block"`` adds position embeddings before every block (Point-MAE),
            ``"input"`` once, before the first (DAPT, ViT).
        modality: ``"points"`` or ``"images"``, what it takes.
        sizes: what the shapes of its tensors tell of its options: key to a tensor's name and the axis.
    """

    class Options(Section):
        """``backbone:`` of a config, the keys that every backbone has."""

        name: str
        dim: Width
        depth: Blocks
        num_heads: Many
        drop_path: Rate = 0.1
        weights: str | None = None
        init_seed: int | None = Field(0, ge=0, lt=2**63)

        has_grid: ClassVar[bool] = False
        """Whether its patches lie on a square grid."""

        def input_shape(self, num_points: int | None) -> tuple[int, ...]:
            """Shape of one input: a cloud (``num_points``, 3), or an image (channels, S, S)."""
            assert num_points is not None
            return num_points, 3

        def problems(self) -> Iterator[tuple[str, str]]:
            """(key, message) for each impossible combination of sizes."""
            if self.dim % self.num_heads != 0:
                yield "num_heads", f"{self.num_heads} heads do not divide dim={self.dim}; choose a divisor"

    modality: ClassVar[str]
    sizes: ClassVar[dict[str, tuple[str, int]]]
    blocks: nn.ModuleList
    norm: nn.LayerNorm
    dim: int
    num_patches: int
    patch_values: int
    grid: int | None = None
    position: str

    @property
    def patch_module(self) -> nn.Module:
        """The module whose output is the patch tokens (B, G, C), before positions are added."""
        raise NotImplementedError(f"{type(self).__name__} must name its patch module")

    @property
    def patch_projection(self) -> nn.Linear | nn.Conv2d:
        """The last layer of :attr:`patch_module`, whose output features are those of the patch tokens."""
        raise NotImplementedError(f"{type(self).__name__} must name its patch projection")

    @property
    def patch_scale_merges(self) -> bool:
        """Whether patch tokens may be scaled by any number by scaling :attr:`patch_projection`."""
        return True

    def patches(self, inputs: Tensor) -> Patches:
        """Inputs of the task, for example points (B, N, 3), to the tokens of their patches."""
        raise NotImplementedError(f"{type(self).__name__} must make patches of its inputs")

    def assemble(self, patches: Patches) -> Embedded:
        """Patches to the input of the first block: with class token and positions."""
        raise NotImplementedError(f"{type(self).__name__} must assemble its tokens")

    def embed(self, inputs: Tensor) -> Embedded:
        """Inputs of the task, for example points (B, N, 3), to tokens and positions."""
        return self.assemble(self.patches(inputs))

    def patch_layers(self) -> list[nn.Module]:
        """The modules that make the tokens of :meth:`patches`."""
        return [self.patch_module]

    def class_parameters(self) -> dict[str, nn.Parameter]:
        """Class token and its position: learned per task, absent from self-supervised checkpoints.

        Empty where it is pre-trained.
        """
        raise NotImplementedError(f"{type(self).__name__} must name its class token")

    @staticmethod
    def translate(state: Mapping[str, Tensor]) -> Translated:
        """Names of published checkpoints to ours, see :mod:`pointadapterx.models.checkpoint_keys`."""
        raise NotImplementedError("a backbone must translate its published checkpoints")

    def fit_tensor(self, name: str, tensor: Tensor) -> Tensor:
        """A checkpoint's tensor in the shape that this backbone needs, where that can be done at all.

        Args:
            name: of the backbone's tensor.
            tensor: as the checkpoint has it.
        """
        return tensor

    def undecayed_parameters(self) -> Iterator[nn.Parameter]:
        """Its tokens: parameters that take no weight decay though they are not 1-D."""
        yield from self.class_parameters().values()

    def forward(self, inputs: Tensor | Patches, method: Method) -> Features:
        """Embeds the inputs, runs the blocks with the method's additions, and normalises.

        Args:
            inputs: of the task, or what :meth:`patches` made of them, without what the method does to it.
            method: as in :meth:`run_blocks`.
        """
        if isinstance(inputs, Patches):
            tapped = inputs._replace(tokens=method.tapped(self.patch_module, inputs.tokens))
            return self.run_blocks(self.assemble(tapped), method)
        return self.run_blocks(self.embed(inputs), method)

    def run_blocks(self, embedded: Embedded, method: Method) -> Features:
        """Runs all blocks and the final norm.

        Args:
            embedded: tokens and positions, (B, 1 + G, C) each.
            method: asked before each block (:meth:`Method.before_block`) and in each FFN
                (:meth:`Method.adapt_ffn`).
        """
        tokens, position = embedded
        losses: list[Tensor] = []
        if self.position == "input":
            tokens = tokens + position
        for index, block in enumerate(self.blocks):
            tokens = method.before_block(index, tokens)
            if self.position == "every_block":
                tokens = tokens + pad_position(position, tokens.shape[1])
            tokens, loss = block(tokens, partial(method.adapt_ffn, index))
            if loss is not None:
                losses.append(loss)
        return Features(TokenSequence(self.norm(tokens), self.num_patches), losses)

    def frozen_steps(self, inputs: Tensor) -> Iterator[FrozenStep]:
        """Runs the plain backbone block by block without autograd.

        A hierarchical backbone overrides it, and yields the steps of its stages with its frozen down-sampling between.
        """
        with torch.no_grad():
            tokens, position = self.embed(inputs)
            if self.position == "input":
                tokens = tokens + position
        for block in self.blocks:
            assert isinstance(block, Block)
            with torch.no_grad():
                before = tokens + position if self.position == "every_block" else tokens
                attention, ffn, tokens = block.branches(before)
            yield FrozenStep(attention, ffn, tokens)


def make_blocks(count: int, drop_path: list[float], **options: Any) -> nn.ModuleList:
    """``count`` blocks with the given drop-path rates; ``options`` go to :class:`Block`."""
    return nn.ModuleList(Block(drop_path=drop_path[index], **options) for index in range(count))


BACKBONES: Registry[type[Backbone]] = Registry("backbone")
"""Backbones by the name used in ``backbone.name``."""
