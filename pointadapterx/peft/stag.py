"""STAG: a side state of the patches with graph convolutions, which moves the tokens of the later blocks only."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pointadapterx.errors import ConfigError
from pointadapterx.models.backbone import Backbone
from pointadapterx.models.features import Features
from pointadapterx.models.frozen import EarlyBlocks, Frozen
from pointadapterx.models.host import Host
from pointadapterx.peft.base import METHODS, Method
from pointadapterx.peft.parts.late import EarlyPass, early_blocks, frozen_before, late_class_token, run_late
from pointadapterx.peft.parts.neighbours import EdgeMaximum, Surroundings, require_places
from pointadapterx.schema import Width


class Convolution(nn.Module):
    """r <- F max_j (A r_i + B r_j), and what the new state adds to a token, ReLU(U r).

    Args:
        width: of the state.
        dim: token width C.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.edges = EdgeMaximum(width)
        self.joint = nn.Linear(width, width)
        self.up = nn.Linear(width, dim)

    def forward(self, state: Tensor, neighbours: Tensor) -> tuple[Tensor, Tensor]:
        """State (B, G, width), indices (B, G, k) -> new state, and what it adds to the patch tokens (B, G, C)."""
        state = self.joint(self.edges(state, neighbours))
        return state, F.relu(self.up(state))


class Shares(NamedTuple):
    """How many blocks in a row share their modules, and from which on tokens are moved, as parts of all blocks."""

    inject_from: float
    blocks: float


VARIANTS = {"std": Shares(1 / 2, 1.0), "sl": Shares(1 / 4, 1 / 4)}


@METHODS.register("stag")
class Stag(Method):
    """A state r of the patches, from 0: r += W x before each block; from block K on, behind each block, a convolution
    over the nearest centres, r <- F max_j (A r_i + B r_j), and x += ReLU(U r), of which the class token gets the mean.

    Nothing that is trained acts before block K, so no gradient enters the blocks before. It does **not** start as the
    plain backbone: behind the last layer is a ReLU, so a U of zero would never leave zero. On a ViT, the neighbours are
    the patches around on the grid. In a backbone of several stages it acts in the last.
    """

    class Options(Method.Options):
        """``method: {name: stag, ...}``.

        Attributes:
            variant: ``"std"``: K is the middle, and all blocks share their modules; ``"sl"`` (slightly larger): K is a
                quarter of the blocks, and each quarter has modules of its own.
            width: of the state.
            neighbours: k nearest centres, a patch's own included, at most all; on a grid those within one patch.
            inject_from: K, number of the first block, from 0, whose output is moved; None: as the variant says.
            class_token: whether a class token that is not pre-trained, and its position, are trained from block K on,
                see :class:`~pointadapterx.peft.parts.late.LateClassToken`. In the published code they are not.
            final_norm: whether the frozen final norm follows the last block; the published code leaves it out.
        """

        name: Literal["stag"] = "stag"
        variant: Literal["std", "sl"] = "std"
        width: Width = 192
        neighbours: Width = 8
        inject_from: Annotated[int, Field(ge=0)] | None = None
        class_token: bool = True
        final_norm: bool = True

        @property
        def needs_sites(self) -> tuple[str, ...]:
            """Whole blocks, whose input it reads and whose output it moves."""
            return ("block",)

        @property
        def counts_patches(self) -> bool:
            """The patches are the last so many tokens."""
            return True

        @property
        def needs_own_pass(self) -> str:
            """Where the final norm is left out."""
            return "" if self.final_norm else "final_norm: the model has its own way to its head; leave it out"

        def problems(self, backbone: Backbone.Options) -> Iterator[tuple[str, str]]:
            """A first block that the last stage does not have."""
            yield from super().problems(backbone)
            stages = backbone.stages()
            depth = sum(stage.depth for stage in stages)
            start = depth - stages[-1].depth
            if self.inject_from is not None and not start <= self.inject_from < depth:
                where = "of the backbone" if len(stages) == 1 else f"of the last stage of {backbone.name}"
                yield "inject_from", f"{self.inject_from} is not among the blocks {start} to {depth - 1} {where}"

    def __init__(self, options: Stag.Options) -> None:
        super().__init__(options)
        self.options: Stag.Options = options
        self._clear()

    def require(self, backbone: Host) -> None:
        """Also refuses a backbone whose patches have no places, or that applies its final norm by itself."""
        super().require(backbone)
        if not self.options.final_norm and getattr(backbone, "foreign", False):
            raise ConfigError(f"method.final_norm: {backbone.title} has its own way to its head; remove the key")
        require_places(backbone, f"method {self.options.name}")

    def attach(self, backbone: Host) -> None:
        """Creates the state's layers and convolutions."""
        options, stage = self.options, backbone.stages[-1]
        depth, shares = len(stage.blocks), VARIANTS[options.variant]
        self.stage, self.start, self.num_patches = stage.number, stage.first, stage.num_patches
        self.has_class_token = backbone.has_class_token
        wanted = options.inject_from
        self.inject_from = stage.first + int(shares.inject_from * depth) if wanted is None else wanted
        self.share = max(1, round(shares.blocks * depth))
        self.around = Surroundings(stage, options.neighbours)
        self.downs = nn.ModuleList(
            nn.Linear(stage.width, options.width) for _ in range(self._row(stage.first + depth - 1) + 1)
        )
        moved = stage.first + depth - self.inject_from
        self.convolutions = nn.ModuleList(
            Convolution(options.width, stage.width) for _ in range((moved - 1) // self.share + 1)
        )
        self.late_class = late_class_token(backbone, self.inject_from) if options.class_token else None
        self.last = stage.first + depth - 1

    def _row(self, index: int) -> int:
        """Place of the layer W that a block shares, by the block's number."""
        return (index - self.start) // self.share

    def trained_backbone_parameters(self, backbone: Host) -> Iterator[nn.Parameter]:
        """None: also the class token is left as it came, see :attr:`Options.class_token`."""
        yield from ()

    def undecayed_parameters(self) -> Iterator[nn.Parameter]:
        """What is added to the class token."""
        if self.late_class is not None:
            yield from self.late_class.parameters()

    def run(self, backbone: Backbone, inputs: Tensor | Frozen, keep: Collection[int] = ()) -> Features:
        """Runs the backbone, or what of it follows the kept part, with the state beside it."""
        try:
            if isinstance(inputs, EarlyBlocks):
                self._sums.update(enumerate(inputs.read.unbind(1)))
                features = run_late(backbone, self, inputs, self.inject_from, keep)
            else:
                features = super().run(backbone, inputs, keep)
            if not self.options.final_norm:
                assert self._behind is not None
                features = features._replace(sequence=backbone.sequence(backbone.stages[-1], self._behind))
            return features
        finally:
            self._clear()

    @property
    def remembers(self) -> bool:
        """Its state."""
        return True

    def begin(self) -> None:
        """Forgets a pass that was interrupted."""
        self._clear()

    def end(self) -> None:
        """Forgets the pass."""
        self._clear()

    def _clear(self) -> None:
        """Leaves nothing of a pass, which a copy of the model could not have."""
        self._centers: Tensor | None = None
        self._graph: Tensor | None = None
        self._sums: dict[int, Tensor] = {}  # of the tokens that are read before any is moved, by their layer
        self._state: Tensor | None = None
        self._behind: Tensor | None = None  # tokens behind the last block

    def enter_stage(self, number: int, centers: Tensor | None) -> None:
        """Keeps the centres of the stage that it acts in."""
        if number == self.stage:
            self._centers = centers

    def before_block(self, index: int, tokens: Tensor) -> Tensor:
        """Reads the patch tokens into the state; from block K on, the class token gets what is trained of it."""
        if index < self.start:
            return tokens
        row, patches = self._row(index), tokens[:, -self.num_patches :]
        if index <= self.inject_from:  # the sum of W x is W of the sum: one product, and one tensor for its gradient
            self._sums[row] = self._sums[row] + patches if row in self._sums else patches
        if index == self.inject_from:
            self._state = self._first_state()
        elif index > self.inject_from:
            self._state = self._state + self.downs[row](patches)
        return tokens if self.late_class is None else self.late_class(index, tokens)

    def _first_state(self) -> Tensor:
        """The state before any token is moved, (B, G, width)."""
        counts = Counter(self._row(index) for index in range(self.start, self.inject_from + 1))
        parts = []
        for row, total in self._sums.items():
            layer = self.downs[row]
            assert isinstance(layer, nn.Linear)
            parts.append(F.linear(total, layer.weight, counts[row] * layer.bias))
        return functools.reduce(torch.add, parts)

    def after_block(self, index: int, tokens: Tensor) -> Tensor:
        """From block K on: a convolution of the state, which moves the tokens."""
        if index < self.inject_from:
            return tokens
        assert self._state is not None
        if self._graph is None:
            self._graph = self.around(self._centers, len(tokens))
        convolution = self.convolutions[(index - self.inject_from) // self.share]
        self._state, moved = convolution(self._state, self._graph)
        between = tokens.shape[1] - moved.shape[1] - self.has_class_token  # tokens that no patch has, such as registers
        if self.has_class_token:
            mean = moved.mean(dim=1, keepdim=True)
            moved = torch.cat([mean, F.pad(moved, (0, 0, between, 0)) if between else moved], dim=1)
        tokens = tokens + moved
        if index == self.last:
            self._behind = tokens
        return tokens

    def precompute(self, backbone: Backbone, inputs: Tensor, keep: Collection[int] = ()) -> Frozen:
        """What is read before block K, summed; the patches where there are several stages, or tokens to ``keep``."""
        if keep or len(backbone.stages) > 1 or backbone.foreign:
            return super().precompute(backbone, inputs, keep)

        def sums(early: EarlyPass) -> list[Tensor]:
            patches = [tokens[:, -self.num_patches :] for tokens in early.entering]
            rows = [patches[first : first + self.share] for first in range(0, len(patches), self.share)]
            return [functools.reduce(torch.add, row) for row in rows]

        return early_blocks(backbone, inputs, self.inject_from, sums)

    def frozen_state(self, backbone: Backbone) -> Mapping[str, Tensor]:
        """All of the backbone, none of which is trained, and which blocks are summed."""
        return {**frozen_before(backbone, self.inject_from), "blocks of a sum": torch.tensor(self.share)}
