"""Point-MAE: the encoder that is adapted, and the masked autoencoder that pre-trains it (arXiv 2203.06604)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pointadapterx.models.backbone import BACKBONES, Backbone, Embedded, make_blocks
from pointadapterx.models.block import drop_path_schedule
from pointadapterx.models.checkpoint_keys import translate_autoencoder, translate_published
from pointadapterx.models.frozen import Patches
from pointadapterx.models.grouping import Grouping, Groups
from pointadapterx.models.patch_encoder import PatchEncoder
from pointadapterx.models.trainable import TrainableModel
from pointadapterx.ops import chamfer_distance
from pointadapterx.schema import Blocks, Many, Width, null_if

AXES = 3  # of space


def position_mlp(dim: int) -> nn.Sequential:
    """Position embedding of a centre: 3 -> 128 -> GELU -> C."""
    return nn.Sequential(nn.Linear(AXES, 128), nn.GELU(), nn.Linear(128, dim))


def sine_code(centers: Tensor, dim: int) -> Tensor:
    """Sines and cosines of coordinates, as PCP-MAE has them: sin and cos of x ω, then those of y ω and z ω.

    Args:
        centers: (..., 3), in the units of the cloud.
        dim: C, divisible by 6; ω_j = 10000^(-6j / C) for j < C / 6.

    Returns:
        (..., C) float32.
    """
    count = dim // (2 * AXES)
    steps = torch.arange(count, dtype=torch.float64, device=centers.device)
    omega = (10_000.0 ** (-steps / count)).to(centers.dtype)
    angles = centers.unsqueeze(-1) * omega  # (..., 3, C / 6)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


@BACKBONES.register("point_mae")
class PointMAE(Backbone):
    """The Point-MAE encoder with class token, 22.1 M parameters at its published size.

    Args:
        options: sizes, see :class:`PointMAE.Options`.
    """

    class Options(Backbone.Options):
        """``backbone:`` of a config; defaults are the published sizes for ScanObjectNN.

        Attributes:
            reduce_dim: whether a linear layer follows the patch encoder; null: where ``encoder_dim`` is not ``dim``.
            qkv_bias: whether queries, keys and values have a bias (Point-JEPA); null: no.
            conv_bias: whether the patch encoder's layers before BatchNorm have one (all but Point-JEPA); null: yes.
            position_code: what the position MLP reads of a centre: its coordinates, or their sines and cosines
                (PCP-MAE), and is then as wide as the tokens; null: ``xyz``.
            class_token: whether there is one; null: yes.
        """

        name: Literal["point_mae"] = "point_mae"
        dim: Width = 384
        depth: Blocks = 12
        num_heads: Many = 6
        encoder_dim: Width = 384
        encoder_width: Width = 128
        num_groups: Width = 128
        group_size: Width = 32
        position: Literal["every_block", "input"] = "every_block"
        skip_origin: bool = False
        reduce_dim: bool | None = None
        qkv_bias: Annotated[bool | None, null_if(False)] = None
        conv_bias: Annotated[bool | None, null_if(True)] = None
        position_code: Annotated[Literal["xyz", "sine"] | None, null_if("xyz")] = None
        class_token: Annotated[bool | None, null_if(True)] = None

        @property
        def has_class_token(self) -> bool:
            """As ``class_token`` says."""
            return self.class_token is not False

        @property
        def projects(self) -> bool:
            """Whether a linear layer follows the patch encoder."""
            return self.encoder_dim != self.dim if self.reduce_dim is None else self.reduce_dim

        def problems(self) -> Iterator[tuple[str, str]]:
            """Also reports widths that do not fit together."""
            yield from super().problems()
            if not self.projects and self.encoder_dim != self.dim:
                yield "reduce_dim", f"false, but encoder_dim={self.encoder_dim} is not dim={self.dim}; remove the key"
            if self.position_code == "sine" and self.dim % (2 * AXES) != 0:
                yield "position_code", f"sine needs a dim that 6 divides, not {self.dim}; choose another dim"

        @property
        def least_points(self) -> int:
            """Centres, or the points of a group if these are more."""
            return max(self.num_groups, self.group_size)

        @property
        def leaves_out_origin(self) -> bool:
            """As ``skip_origin`` says."""
            return self.skip_origin

    modality = "points"
    translate = staticmethod(translate_published)
    sizes: ClassVar = {
        "dim": ("norm.weight", 0),
        "encoder_dim": ("patch_encoder.second.3.weight", 0),
        "encoder_width": ("patch_encoder.first.0.weight", 0),
        "numbers of a point": ("patch_encoder.first.0.weight", 1),
    }

    def __init__(self, options: PointMAE.Options) -> None:
        super().__init__()
        self.dim = options.dim
        self.num_patches = options.num_groups
        self.patch_values = 3 * options.group_size
        self.position = options.position
        self.grouping = Grouping(options.num_groups, options.group_size, options.skip_origin)
        self.patch_encoder = PatchEncoder(
            options.encoder_dim, options.encoder_width, bias=options.conv_bias is not False
        )
        # Point-BERT and its descendants project wider or narrower patch features to the token width.
        self.reduce_dim: nn.Module = nn.Linear(options.encoder_dim, options.dim) if options.projects else nn.Identity()
        self.sine = options.position_code == "sine"
        self.position_embed = _square_mlp(options.dim) if self.sine else position_mlp(options.dim)
        self.has_class_token = options.has_class_token
        self.cls_token = nn.Parameter(torch.zeros(1, 1, options.dim)) if self.has_class_token else None
        self.cls_position = nn.Parameter(torch.randn(1, 1, options.dim)) if self.has_class_token else None
        self.blocks = make_blocks(
            options.depth,
            drop_path_schedule(options.drop_path, options.depth),
            dim=options.dim,
            num_heads=options.num_heads,
            qkv_bias=options.qkv_bias is True,
        )
        self.norm = nn.LayerNorm(options.dim)
        self.apply(init_published)
        for token in self.class_parameters().values():
            nn.init.trunc_normal_(token, std=0.02)

    def follow(self, options: Backbone.Options) -> None:
        """Adds positions where ``options`` say."""
        assert isinstance(options, PointMAE.Options)
        self.position = options.position

    @property
    def patch_module(self) -> nn.Module:
        """The mini-PointNet (or the projection behind it)."""
        return self.patch_encoder if isinstance(self.reduce_dim, nn.Identity) else self.reduce_dim

    @property
    def patch_scale_merges(self) -> bool:
        """False if a maximum over the points of a group comes last, which a negative factor would turn into a
        minimum."""
        return not isinstance(self.reduce_dim, nn.Identity)

    @property
    def patch_projection(self) -> nn.Linear:
        """The mini-PointNet's last layer (or the projection behind it)."""
        return self.reduce_dim if isinstance(self.reduce_dim, nn.Linear) else self.patch_encoder.projection

    def class_parameters(self) -> dict[str, nn.Parameter]:
        """Class token and its position, (1, 1, C) each; none in a backbone without a class token."""
        if self.cls_token is None or self.cls_position is None:
            return {}
        return {"cls_token": self.cls_token, "cls_position": self.cls_position}

    def positions(self, centers: Tensor) -> Tensor:
        """Position embeddings (..., C) of centres (..., 3)."""
        return self.position_embed(sine_code(centers, self.dim) if self.sine else centers)

    def position_layers(self) -> list[nn.Module]:
        """The MLP of the centres."""
        return [self.position_embed]

    def patch_tokens(self, groups: Groups) -> tuple[Tensor, Tensor]:
        """Groups -> patch tokens and their positions, (B, G, C) each."""
        tokens = self.reduce_dim(self.patch_encoder(groups.neighborhood))
        return tokens, self.positions(groups.centers)

    def patch_layers(self) -> list[nn.Module]:
        """The mini-PointNet, and the projection behind it."""
        return [self.patch_encoder, self.reduce_dim]

    def patches(self, inputs: Tensor) -> Patches:
        """Points (B, N, 3) float32 -> patch tokens (B, G, C) and the centres of their groups (B, G, 3)."""
        groups = self.grouping(inputs)
        return Patches(self.reduce_dim(self.patch_encoder(groups.neighborhood)), groups.centers)

    def assemble(self, patches: Patches) -> Embedded:
        """Patches -> tokens and positions (B, 1 + G, C), or (B, G, C) without a class token."""
        tokens, position = patches.tokens, self.positions(patches.centers)
        if self.cls_token is None or self.cls_position is None:
            return Embedded(tokens, position, patches.centers)
        batch = tokens.shape[0]
        return Embedded(
            torch.cat([self.cls_token.expand(batch, -1, -1), tokens], dim=1),
            torch.cat([self.cls_position.expand(batch, -1, -1), position], dim=1),
            patches.centers,
        )

    @classmethod
    def options_in(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Also what is there or not: a projection, biases; and what positions are computed from."""
        found = super().options_in(tensors)
        for key, name, beside in (
            ("reduce_dim", "reduce_dim.weight", "position_embed.0.weight"),
            ("qkv_bias", "blocks.0.attn.qkv.bias", "blocks.0.attn.qkv.weight"),
            ("conv_bias", "patch_encoder.first.0.bias", "patch_encoder.first.0.weight"),
        ):
            if beside in tensors:
                found[key] = name in tensors
        layer = tensors.get("position_embed.0.weight")
        if layer is not None and layer.ndim == 2:
            outputs, inputs = layer.shape
            if inputs != AXES and outputs != inputs:
                found["inputs of the position embedding"] = inputs
            else:
                found["position_code"] = "xyz" if inputs == AXES else "sine"
        return found


class Reconstruction(NamedTuple):
    """Output of :class:`MaskedAutoencoder`.

    Attributes:
        loss: scalar Chamfer distance between predicted and true masked groups.
        predicted: (number of masked groups in the batch, k, 3), relative to their centres.
    """

    loss: Tensor
    predicted: Tensor


class MaskedAutoencoder(TrainableModel):
    """Point-MAE pre-training: encode the visible groups, predict the points of the masked ones.

    Args:
        encoder: the backbone; its class token is not used.
        decoder_depth: blocks of the decoder (published: 4).
        decoder_heads: attention heads of the decoder.
        drop_path: stochastic depth of the decoder.
        chamfer: ``"l2"`` (published) or ``"l1"``.
    """

    translate = staticmethod(translate_autoencoder)

    def __init__(
        self,
        encoder: PointMAE,
        decoder_depth: int = 4,
        decoder_heads: int = 6,
        drop_path: float = 0.1,
        chamfer: Literal["l1", "l2"] = "l2",
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.chamfer = chamfer
        self.group_size = encoder.grouping.group_size
        dim = encoder.dim
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.decoder_position = position_mlp(dim)
        self.decoder_blocks = make_blocks(
            decoder_depth, drop_path_schedule(drop_path, decoder_depth), dim=dim, num_heads=decoder_heads
        )
        self.decoder_norm = nn.LayerNorm(dim)
        self.predict_points = nn.Linear(dim, 3 * self.group_size)
        for module in (self.decoder_position, self.decoder_blocks, self.decoder_norm, self.predict_points):
            module.apply(init_published)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def undecayed_parameters(self) -> list[nn.Parameter]:
        """Tokens: parameters that take no weight decay though they are not 1-D."""
        return [self.mask_token, *self.encoder.class_parameters().values()]

    def encode(self, groups: Groups, mask: Tensor) -> Tensor:
        """Visible groups only -> normalised tokens (B, number visible, C).

        Args:
            groups: all groups of the batch.
            mask: (B, G) bool, True where a group is hidden; the same number in every cloud.
        """
        # Hidden groups are not embedded at all: 60 % of the mini-PointNet's work, and nothing of their shape leaks
        # through the batch statistics.
        visible = Groups(*(part[~mask].unflatten(0, (len(mask), -1)) for part in groups))
        tokens, position = self.encoder.patch_tokens(visible)
        for block in self.encoder.blocks:
            tokens, _ = block(tokens + position)
        return self.encoder.norm(tokens)

    def forward(self, groups: Groups, mask: Tensor) -> Reconstruction:
        """Reconstructs the masked groups.

        Args:
            groups: see :class:`~pointadapterx.models.grouping.Groups`.
            mask: (B, G) bool, True where a group is hidden; the same number, at least 1, in every cloud.

        Raises:
            ValueError: if clouds hide different numbers of groups, or none.
        """
        hidden = mask.sum(dim=1)
        if int(hidden.min()) != int(hidden.max()) or int(hidden.min()) == 0:
            raise ValueError(
                f"mask hides {int(hidden.min())} to {int(hidden.max())} groups per cloud; "
                "hide the same number, at least 1, in every cloud"
            )
        visible = self.encode(groups, mask)
        position = self.decoder_position(groups.centers)
        position = torch.cat([_select(position, ~mask), _select(position, mask)], dim=1)
        mask_tokens = self.mask_token.expand(len(mask), int(hidden[0]), -1)
        tokens = torch.cat([visible, mask_tokens], dim=1)
        for block in self.decoder_blocks:
            tokens, _ = block(tokens + position)
        decoded = self.decoder_norm(tokens[:, -mask_tokens.shape[1] :])
        predicted = self.predict_points(decoded).view(-1, self.group_size, 3)
        loss = chamfer_distance(predicted, groups.neighborhood[mask], norm=self.chamfer)
        return Reconstruction(loss, predicted)


def _square_mlp(dim: int) -> nn.Sequential:
    """Position embedding of a code as wide as the tokens: C -> C -> GELU -> C."""
    return nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))


def _select(tokens: Tensor, keep: Tensor) -> Tensor:
    """Tokens (B, G, C) where ``keep`` (B, G), the same number in every cloud: (B, kept, C)."""
    return tokens[keep].view(tokens.shape[0], -1, tokens.shape[-1])


def init_published(module: nn.Module) -> None:
    """The published initialisation: truncated normal of 0.02 for linear layers, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
