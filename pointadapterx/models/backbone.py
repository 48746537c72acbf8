"""What every backbone has in common: stages of blocks, positions, and what it asks of a method."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from pointadapterx.models.additions import PLAIN, Additions, Lead, Recorded, Rider
from pointadapterx.models.block import Block
from pointadapterx.models.checkpoint_keys import Translated
from pointadapterx.models.features import BlockTokens, FeatureInfo, Features, StageInfo
from pointadapterx.models.frozen import Patches
from pointadapterx.models.sites import BlockSites, Site, Stage, StageSize
from pointadapterx.models.tokens import TokenSequence, pad_position
from pointadapterx.registry import Registry
from pointadapterx.schema import Blocks, Many, Rate, Section, Width, null_if

_BLOCK = re.compile(r"blocks\.(\d+)\.")


class Embedded(NamedTuple):
    """Input of the first block of a stage.

    Attributes:
        tokens: (B, [1 +] G, C), CLS first where there is one.
        position: the same shape, position embeddings of the same tokens.
        centers: (B, G, 3) of the patches, where they have centres, else None.
    """

    tokens: Tensor
    position: Tensor
    centers: Tensor | None = None


class Completed(NamedTuple):
    """Options with what they leave to the model that they name, or None; (key, message) of each problem; and mean and
    std of the images in [0, 1] that the model was pre-trained on, a number a channel each, where it says so.
    """

    options: Backbone.Options | None
    problems: Sequence[tuple[str, str]] = ()
    statistics: tuple[list[float], list[float]] | None = None


class Backbone(nn.Module, ABC):
    """Base of Point-MAE and ViT, and of any transformer whose blocks are :class:`~pointadapterx.models.block.Block`.

    A subclass builds ``norm``, and ``blocks`` of width ``dim`` for its only stage, or else overrides :attr:`stages`;
    it implements :meth:`patches`, :meth:`assemble` and :meth:`translate`.

    Attributes:
        blocks: of the only stage.
        dim: token width C of the only stage.
        norm: final norm, behind the last stage.
        num_patches: patch tokens G of the last stage.
        patch_values: numbers in one patch, 3 k coordinates or P² pixels times channels.
        grid: patches along a side, where those of the input lie on a square grid in rows, else None.
        has_class_token: whether the first token is CLS.
        position: ``"every_block"`` adds position embeddings before every block (Point-MAE),
            ``"input"`` once, before the first (DAPT, ViT).
        modality: ``"points"`` or ``"images"``, what it takes.
        sizes: what the shapes of its tensors tell of its options: key to a tensor's name and the axis.
        foreign: whether it is a model of another library, which keeps its own forward.
    """

    class Options(Section):
        """``backbone:`` of a config, the keys that every backbone has; lists have one number a stage.

        Attributes:
            averaged_weights: whether, of a file that has both, the running average of the trained weights is loaded
                (a teacher, a momentum encoder) instead of these; null: no.
        """

        name: str
        dim: Width | list[Width]
        depth: Blocks | list[Blocks]
        num_heads: Many | list[Many]
        drop_path: Rate = 0.1
        weights: str | None = None
        averaged_weights: Annotated[bool | None, null_if(False)] = None
        init_seed: int | None = Field(0, ge=0, lt=2**63)

        has_grid: ClassVar[bool] = False
        """Whether its patches lie on a square grid."""

        def completed(self) -> Completed:
            """With what they leave to a file that they name."""
            return Completed(self)

        @property
        def has_class_token(self) -> bool:
            """Whether its first token is a class token."""
            return True

        @property
        def no_prompts(self) -> str:
            """Why its blocks take no further tokens; empty where they do."""
            return ""

        def stages(self) -> list[StageSize]:
            """Width and depth of each stage."""
            return [StageSize(*sizes) for sizes in zip(_listed(self.dim), _listed(self.depth), strict=False)]

        def input_shape(self, num_points: int | None) -> tuple[int, ...]:
            """Shape of one input: a cloud (``num_points``, 3), or an image (channels, S, S)."""
            assert num_points is not None
            return num_points, 3

        @property
        def least_points(self) -> int:
            """Different points that a cloud must have."""
            return 1

        @property
        def leaves_out_origin(self) -> bool:
            """Whether clouds are resampled without the points that lie at the origin."""
            return False

        def problems(self) -> Iterator[tuple[str, str]]:
            """(key, message) for each impossible combination of sizes."""
            dims, heads = _listed(self.dim), _listed(self.num_heads)
            for key, values in (("depth", _listed(self.depth)), ("num_heads", heads)):
                if len(values) != len(dims):
                    yield key, f"{len(values)} numbers for the {len(dims)} stages of backbone.dim; give one a stage"
            for dim, number in zip(dims, heads, strict=False):
                if dim % number != 0:
                    yield "num_heads", f"{number} heads do not divide dim={dim}; choose a divisor"

    foreign: ClassVar[bool] = False
    modality: ClassVar[str]
    sizes: ClassVar[dict[str, tuple[str, int]]]
    blocks: nn.ModuleList
    norm: nn.LayerNorm
    dim: int
    num_patches: int
    patch_values: int
    grid: int | None = None
    position: str
    has_class_token: bool = True

    @property
    def title(self) -> str:
        """What messages call it."""
        return type(self).__name__

    def adapted_by(self, method: Additions, *, alone: bool = False) -> None:
        """Called once a method is attached that :meth:`forward` will be given, ``alone`` instead of all others."""

    def left_by(self, method: Additions) -> None:
        """The inverse of :meth:`adapted_by`; nothing by default."""

    @property
    def made_by(self) -> str:
        """Another library that its code is of, with its version, else empty."""
        return ""

    def follow(self, options: Backbone.Options) -> None:
        """Takes over what another config of the same weights may set differently; nothing by default."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Its stages in order; a backbone with several overrides this."""
        return (Stage(0, 0, self.dim, self.num_patches, self.blocks, self.grid),)

    def every_block(self) -> list[BlockSites]:
        """The blocks of all stages, as methods see them."""
        return [block for stage in self.stages for block in stage.blocks]

    def site(self, name: str) -> Site:
        """A site outside the blocks: ``patch``, the patch tokens, or ``final norm``."""
        stages = self.stages
        return {
            "patch": Site("patch", self.patch_module, stages[0].width),
            "final norm": Site("final norm", self.norm, stages[-1].width),
        }[name]

    @property
    def feature_info(self) -> FeatureInfo:
        """What heads may rely on."""
        stages = tuple(
            StageInfo(stage.width, stage.num_patches, range(stage.first, stage.first + len(stage.modules)), stage.grid)
            for stage in self.stages
        )
        return FeatureInfo(stages, self.has_class_token, 3 if self.modality == "points" else 0)

    @property
    def has_places(self) -> bool:
        """Whether the patches of every stage have centres or lie on a grid."""
        info = self.feature_info
        return info.coordinates > 0 or all(stage.grid is not None for stage in info.stages)

    @property
    @abstractmethod
    def patch_module(self) -> nn.Module:
        """The module whose output is the patch tokens (B, G, C), before positions are added."""

    @property
    @abstractmethod
    def patch_projection(self) -> nn.Linear | nn.Conv2d:
        """The last layer of :attr:`patch_module`, whose output features are those of the patch tokens."""

    @property
    def patch_scale_merges(self) -> bool:
        """Whether patch tokens may be scaled by any number by scaling :attr:`patch_projection`."""
        return True

    @abstractmethod
    def patches(self, inputs: Tensor) -> Patches:
        """Inputs of the task, for example points (B, N, 3), to the tokens of their patches."""

    @abstractmethod
    def assemble(self, patches: Patches) -> Embedded:
        """Patches to the input of the first block: with class token and positions."""

    def embed(self, inputs: Tensor) -> Embedded:
        """Inputs of the task, for example points (B, N, 3), to tokens and positions."""
        return self.assemble(self.patches(inputs))

    def patch_layers(self) -> list[nn.Module]:
        """The modules that compute the tokens of :meth:`patches`."""
        return [self.patch_module]

    def position_layers(self) -> list[nn.Module]:
        """The modules that compute position embeddings, where positions are not parameters."""
        return []

    @abstractmethod
    def class_parameters(self) -> dict[str, nn.Parameter]:
        """Class token and its position: learned per task, absent from self-supervised checkpoints.

        Empty where it is pre-trained, and where there is no class token.
        """

    @staticmethod
    @abstractmethod
    def translate(state: Mapping[str, Tensor]) -> Translated:
        """Names of published checkpoints to ours, see :mod:`pointadapterx.models.checkpoint_keys`."""

    def fit_tensor(self, name: str, tensor: Tensor) -> Tensor:
        """A checkpoint's tensor converted to the shape that this backbone needs, if possible.

        Args:
            name: of the backbone's tensor.
            tensor: as the checkpoint has it.
        """
        return tensor

    @classmethod
    def options_in(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """What names and shapes of a backbone's tensors tell of its options; what no option changes, in words.

        Args:
            tensors: of this backbone or of a file, by our names.
        """
        depth = 1 + max((int(match[1]) for name in tensors if (match := _BLOCK.match(name))), default=-1)
        found: dict[str, Any] = {"depth": depth} if depth else {}
        for key, (name, axis) in cls.sizes.items():
            tensor = tensors.get(name)
            if tensor is not None and axis < tensor.ndim:
                found[key] = tensor.shape[axis]
        return found

    def undecayed_parameters(self) -> Iterator[nn.Parameter]:
        """Token parameters, which take no weight decay though they are not 1-D."""
        yield from self.class_parameters().values()

    def forward(self, inputs: Tensor | Patches, method: Additions = PLAIN, keep: Collection[int] = ()) -> Features:
        """Embeds the inputs, runs the blocks with the method's additions, and normalises.

        Args:
            inputs: of the task, or the result of :meth:`patches` for them, without the method's changes.
            method: as in :meth:`run_blocks`; by default the plain backbone runs.
            keep: numbers of the blocks whose tokens are kept in ``Features.intermediates``.
        """
        if isinstance(inputs, Patches):
            tapped = inputs._replace(tokens=method.tapped(self.patch_module, inputs.tokens))
            return self.run_blocks(self.assemble(tapped), method, keep)
        return self.run_blocks(self.embed(inputs), method, keep)

    def run_blocks(
        self, embedded: Embedded, method: Additions = PLAIN, keep: Collection[int] = (), blocks: range | None = None
    ) -> Features:
        """Runs all blocks, stage by stage, and the final norm.

        Prompts end with their stage: the module that leads to the next one reads class token and patch tokens.

        Args:
            embedded: input of the first stage.
            method: asked before each block (:meth:`Additions.before_block`) and in each FFN
                (:meth:`Additions.adapt_ffn`).
            keep: as in :meth:`forward`.
            blocks: numbers of the blocks to run, in a backbone of one stage; None is all. Where the first one is
                missing, ``embedded`` has the tokens on their way into the first that is run.
        """
        losses: list[Tensor] = []
        kept: dict[int, BlockTokens] = {}
        for stage in self.stages:
            tokens, position, centers = embedded
            method.enter_stage(stage.number, centers)
            if self.position == "input" and (blocks is None or stage.first in blocks):
                tokens = tokens + position
            for index, block in enumerate(stage.modules, stage.first):
                if blocks is not None and index not in blocks:
                    continue
                tokens = method.before_block(index, tokens)
                if self.position == "every_block":
                    tokens = tokens + pad_position(position, tokens.shape[1])
                tokens, loss = block(tokens, partial(method.adapt_ffn, index))
                tokens = method.after_block(index, tokens)
                if loss is not None:
                    losses.append(loss)
                if index in keep:
                    kept[index] = self.tokens_behind(stage, tokens, centers)
            if stage.transition is not None:
                tokens = self.sequence(stage, tokens).without_prompts()
                method.leave_stage(tokens, Lead(stage.transition, centers))
                embedded = stage.transition(tokens, centers)
        return Features(self.sequence(stage, self.norm(tokens)), losses, centers, kept)

    def sequence(self, stage: Stage, tokens: Tensor) -> TokenSequence:
        """Tokens (B, L, C) of a stage by name."""
        return TokenSequence(tokens, stage.num_patches, has_class_token=self.has_class_token)

    def tokens_behind(self, stage: Stage, tokens: Tensor, centers: Tensor | None) -> BlockTokens:
        """Tokens (B, L, C) behind a block of a stage as ``Features.intermediates`` has them."""
        return BlockTokens(self.sequence(stage, tokens if stage.transition else self.norm(tokens)), centers)

    def record(self, inputs: Tensor | Patches, rider: Rider | None = None) -> Iterator[Recorded]:
        """Runs the backbone block by block, stage by stage, without drop path, and without autograd.

        Args:
            inputs: of the task, or what :meth:`patches` made of them.
            rider: asked for the tokens on their way into its first block and each that follows; from there on, with
                autograd.
        """
        with torch.no_grad():
            embedded = self.assemble(inputs if isinstance(inputs, Patches) else self.patches(inputs))
        yield from self.record_blocks(embedded, rider)

    def record_blocks(self, embedded: Embedded, rider: Rider | None = None, start: int = 0) -> Iterator[Recorded]:
        """:meth:`record` from block ``start`` on, in a backbone of one stage unless that is 0.

        Args:
            embedded: input of the first stage, or with the tokens on their way into block ``start``.
            rider: see :meth:`record`.
            start: number of the first block that is run.
        """
        first = None if rider is None else rider.first
        for stage in self.stages:
            tokens, position, centers = embedded
            if self.position == "input" and stage.first >= start:
                with _autograd(stage.first, first):
                    tokens = tokens + position
            last = stage.first + len(stage.modules) - 1
            for index, block in enumerate(stage.modules, stage.first):
                if index < start:
                    continue
                assert isinstance(block, Block)
                with _autograd(index, first):
                    before = tokens + position if self.position == "every_block" else tokens
                    attention, ffn, tokens = block.branches(before)
                joins = first is not None and index + 1 >= first
                leads = index == last and not joins
                lead = Lead(stage.transition, centers) if stage.transition is not None and leads else None
                yield Recorded(attention, ffn, tokens, centers, lead)
                if rider is not None and joins:
                    tokens = rider.hand_over()
            if stage.transition is not None:
                with _autograd(last + 1, first):
                    embedded = stage.transition(tokens, centers)


def _autograd(index: int, first: int | None) -> AbstractContextManager[object]:
    """With autograd, where it is on, from block ``first`` on."""
    return torch.set_grad_enabled(torch.is_grad_enabled() and first is not None and index >= first)


def _listed(sizes: int | list[int]) -> list[int]:
    """One number a stage."""
    return [sizes] if isinstance(sizes, int) else sizes


def make_blocks(count: int, drop_path: list[float], **options: Any) -> nn.ModuleList:
    """``count`` blocks with the given drop-path rates; ``options`` go to :class:`Block`."""
    return nn.ModuleList(Block(drop_path=drop_path[index], **options) for index in range(count))


BACKBONES: Registry[type[Backbone]] = Registry("backbone")
"""Backbones by the name used in ``backbone.name``."""
