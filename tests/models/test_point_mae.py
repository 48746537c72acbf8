"""The Point-MAE backbone: grouping, positions, masks, head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pointadapterx.build import build_backbone
from pointadapterx.models.backbone import Embedded
from pointadapterx.models.features import Features
from pointadapterx.models.grouping import Grouping, Groups
from pointadapterx.models.patch_encoder import PatchEncoder
from pointadapterx.models.point_mae import MaskedAutoencoder, PointMAE
from pointadapterx.models.tokens import POOLS, TokenSequence, insert_after_cls, pad_position
from pointadapterx.peft.base import Method
from pointadapterx.tasks.heads import ClassificationHead, HeadConfig
from tests.conftest import feature_info, small_config


def backbone(**changes: Any) -> PointMAE:
    built = build_backbone(small_config("linear", backbone=changes).backbone)
    assert isinstance(built, PointMAE)
    return built.eval()


class Prompting(Method):
    """Inserts one fixed prompt token before every block and counts what it sees."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__(Method.Options(name="prompting"))
        self.value = value

    def before_block(self, index: int, tokens: Tensor) -> Tensor:
        return insert_after_cls(tokens, torch.full_like(tokens[:, :1], self.value))


@pytest.fixture
def groups(points: Tensor) -> Groups:
    return Grouping(16, 8)(points)


def mask(hidden: int, batch: int = 6, groups: int = 16) -> Tensor:
    """(B, G) bool with ``hidden`` groups per cloud, other ones in every cloud."""
    order = torch.rand(batch, groups, generator=torch.Generator().manual_seed(5)).argsort(dim=1)
    return order < hidden


def test_groups_are_the_nearest_points_about_their_centres(points: Tensor, groups: Groups) -> None:
    assert groups.neighborhood.shape == (6, 16, 8, 3)
    assert groups.centers.shape == (6, 16, 3)
    distances = (groups.centers[:, :, None] - points[:, None]).norm(dim=-1).sort(dim=-1).values[..., :8]
    torch.testing.assert_close(groups.neighborhood.norm(dim=-1).sort(dim=-1).values, distances, atol=1e-5, rtol=0)
    assert (groups.neighborhood.norm(dim=-1).amin(dim=-1) == 0).all()  # a centre is its own nearest point
    assert torch.equal(groups.centers[:, 0], points[:, 0])  # FPS starts at the first point
    for centers in groups.centers:
        assert len(centers.unique(dim=0)) == 16


def test_grouping_moves_with_the_cloud(points: Tensor, groups: Groups) -> None:
    moved = Grouping(16, 8)(points + 2.0)
    torch.testing.assert_close(moved.centers, groups.centers + 2.0)
    torch.testing.assert_close(moved.neighborhood, groups.neighborhood, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "sizes"), [("num_groups", (200, 8)), ("group_size", (16, 200))])
def test_too_few_points_name_the_option(name: str, sizes: tuple[int, int], points: Tensor) -> None:
    with pytest.raises(ValueError, match=f"{name}=200 exceeds the 128 input points; lower backbone.{name}"):
        Grouping(*sizes)(points)


def test_tokens_ignore_the_order_of_a_groups_points(groups: Groups) -> None:
    encoder = PatchEncoder(24).eval()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    tokens = encoder(groups.neighborhood)
    assert tokens.shape == (6, 16, 24)
    torch.testing.assert_close(encoder(groups.neighborhood[:, :, order]), tokens)
    assert not torch.allclose(encoder(groups.neighborhood.flip(1)), tokens)


def test_the_folded_patch_encoder_is_the_published_one(groups: Groups) -> None:
    encoder = PatchEncoder(24)
    for norm in (encoder.first[1], encoder.second[1]):
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            torch.nn.init.normal_(tensor)
        torch.nn.init.uniform_(norm.running_var, 0.5, 2.0)
    encoder.eval()
    local = encoder.first(groups.neighborhood.reshape(-1, 3)).view(96, 8, -1)
    joint = torch.cat([local.amax(dim=1, keepdim=True).expand_as(local), local], dim=-1)
    expected = encoder.second(joint.flatten(0, 1)).view(6, 16, 8, 24).amax(dim=2)
    tokens = encoder(groups.neighborhood)
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=0)
    many = groups.neighborhood.repeat(8, 1, 1, 1).view(-1, 8, 3)  # more than are encoded at once
    torch.testing.assert_close(encoder(many), expected.repeat(8, 1, 1).flatten(0, 1), atol=1e-5, rtol=0)
    encoder.training = True  # as in a model in training whose BatchNorm is frozen
    assert torch.equal(encoder(groups.neighborhood), tokens)
    encoder.second[0].register_forward_hook(lambda layer, inputs, output: 0 * output)
    assert not torch.allclose(encoder(groups.neighborhood), expected)  # a method may act inside


def test_patch_tokens_follow_the_order_of_their_groups(groups: Groups) -> None:
    model = backbone()
    tokens, position = model.patch_tokens(groups)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    shuffled = model.patch_tokens(Groups(groups.neighborhood[:, order], groups.centers[:, order]))
    torch.testing.assert_close(shuffled[0], tokens[:, order])
    torch.testing.assert_close(shuffled[1], position[:, order])


@pytest.mark.parametrize("encoder_dim", [48, 32])
def test_embedding_puts_the_class_token_first(points: Tensor, encoder_dim: int) -> None:
    model = backbone(encoder_dim=encoder_dim)
    tokens, position, centers = model.embed(points)
    assert tokens.shape == position.shape == (6, 17, 48)
    assert torch.equal(centers, model.grouping(points).centers)
    assert torch.equal(tokens[:, :1], model.cls_token.expand(6, -1, -1))
    assert torch.equal(position[:, :1], model.cls_position.expand(6, -1, -1))
    assert isinstance(model.patch_module, PatchEncoder if encoder_dim == 48 else nn.Linear)


def test_samples_do_not_see_each_other(points: Tensor) -> None:
    model, method = backbone(), Method(Method.Options(name="plain"))
    whole = model(points, method).sequence.tokens
    for index in range(len(points)):
        alone = model(points[index : index + 1], method).sequence.tokens
        torch.testing.assert_close(alone[0], whole[index], atol=1e-5, rtol=1e-5)


def test_prompts_get_position_zero() -> None:
    position = torch.randn(2, 5, 3)
    padded = pad_position(position, 8)
    assert torch.equal(padded[:, 0], position[:, 0])
    assert torch.equal(padded[:, 1:4], torch.zeros(2, 3, 3))
    assert torch.equal(padded[:, 4:], position[:, 1:])
    assert pad_position(position, 5) is position


@pytest.mark.parametrize("where", ["every_block", "input"])
def test_positions_are_added_where_the_option_says(points: Tensor, where: str) -> None:
    """Against the sum written out: blocks are replaced by a recorder that leaves tokens as they are."""
    model = backbone(position=where, depth=3)
    seen: list[Tensor] = []

    class Recorder(nn.Module):
        def forward(self, tokens: Tensor, adapt: Any) -> tuple[Tensor, None]:
            seen.append(tokens)
            return tokens, None

    model.blocks = nn.ModuleList(Recorder() for _ in range(3))
    embedded = Embedded(torch.randn(2, 17, 48), torch.randn(2, 17, 48))
    model.run_blocks(embedded, Prompting(7.0))
    expected = embedded.tokens + embedded.position if where == "input" else embedded.tokens
    for index in range(3):
        expected = insert_after_cls(expected, torch.full_like(expected[:, :1], 7.0))
        if where == "every_block":
            expected = expected + pad_position(embedded.position, expected.shape[1])
        torch.testing.assert_close(seen[index], expected)
        newest = seen[index][:, 1]
        assert (newest == 7.0).all()  # a prompt never gets a position of its own


@pytest.mark.parametrize("where", ["every_block", "input"])
def test_the_output_names_class_prompts_and_patches(points: Tensor, where: str) -> None:
    sequence = backbone(position=where)(points, Prompting()).sequence
    assert sequence.cls.shape == (6, 48)
    assert sequence.prompts.shape == (6, 2, 48)
    assert sequence.patches.shape == (6, 16, 48)
    joined = torch.cat([sequence.cls[:, None], sequence.prompts, sequence.patches], dim=1)
    assert torch.equal(joined, sequence.tokens)


def test_pools_are_what_they_are_called() -> None:
    sequence = TokenSequence(torch.arange(24.0).view(1, 6, 4), num_patches=3)  # CLS, 2 prompts, 3 patches
    values = {name: pool(sequence)[0, 0].item() for name, pool in POOLS.items()}
    assert values == {"cls": 0, "prompt_mean": 6, "prompt_max": 8, "patch_mean": 16, "patch_max": 20, "token_mean": 10}


def test_head_concatenates_its_pools_in_order() -> None:
    sequence = TokenSequence(torch.randn(5, 9, 6), num_patches=6)
    names = ["patch_max", "cls", "prompt_mean"]
    head = ClassificationHead(feature_info(6), HeadConfig(num_classes=4, pools=names, hidden=[]))
    (layer,) = head.mlp
    assert isinstance(layer, nn.Linear)
    assert torch.equal(
        head(Features(sequence, [])), layer(torch.cat([POOLS[name](sequence) for name in names], dim=-1))
    )
    assert head.num_classes == 4
    assert head.prompt_pool_parameters() == 4 * 6


def test_published_head_is_the_published_size() -> None:
    head = ClassificationHead(feature_info(384), HeadConfig(num_classes=15, pools=["cls", "prompt_mean", "patch_max"]))
    assert sum(p.numel() for p in head.parameters()) == 365_839
    assert [type(layer).__name__ for layer in head.mlp] == [*["Linear", "BatchNorm1d", "ReLU", "Dropout"] * 2, "Linear"]


def test_initial_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = backbone().state_dict()
    torch.manual_seed(2)
    other = backbone().state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    third = backbone(init_seed=1).state_dict()
    assert not torch.equal(one["blocks.0.attn.qkv.weight"], third["blocks.0.attn.qkv.weight"])


def test_the_encoder_sees_visible_groups_only(groups: Groups) -> None:
    model = MaskedAutoencoder(backbone(), decoder_depth=1, decoder_heads=3).eval()
    hidden = mask(10)
    tokens = model.encode(groups, hidden)
    assert tokens.shape == (6, 6, 48)
    spoiled = Groups(
        groups.neighborhood.masked_fill(hidden[..., None, None], 9.0),
        groups.centers.masked_fill(hidden[..., None], 9.0),
    )
    assert torch.equal(model.encode(spoiled, hidden), tokens)


def test_the_reconstruction_has_one_group_per_hidden_group(groups: Groups) -> None:
    model = MaskedAutoencoder(backbone(), decoder_depth=1, decoder_heads=3).eval()
    found = model(groups, mask(10))
    assert found.predicted.shape == (60, 8, 3)
    assert found.loss.ndim == 0
    assert found.loss > 0
    truth = groups.neighborhood[mask(10)]
    pairs = torch.cdist(found.predicted, truth).square()
    by_hand = pairs.amin(dim=2).mean() + pairs.amin(dim=1).mean()
    torch.testing.assert_close(found.loss, by_hand, atol=1e-4, rtol=1e-4)


def test_hidden_points_do_not_reach_the_prediction(groups: Groups) -> None:
    model = MaskedAutoencoder(backbone(), decoder_depth=1, decoder_heads=3).eval()
    hidden = mask(10)
    spoiled = Groups(groups.neighborhood.masked_fill(hidden[..., None, None], 9.0), groups.centers)
    assert torch.equal(model(spoiled, hidden).predicted, model(groups, hidden).predicted)


def test_pretraining_reaches_every_parameter_but_the_class_token(groups: Groups) -> None:
    model = MaskedAutoencoder(backbone(), decoder_depth=2, decoder_heads=3).train()
    model(groups, mask(10)).loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {"encoder.cls_token", "encoder.cls_position"}


def test_masks_must_hide_the_same_number_and_at_least_one(groups: Groups) -> None:
    model = MaskedAutoencoder(backbone(), decoder_depth=1, decoder_heads=3)
    uneven = mask(10)
    uneven[0] = False
    with pytest.raises(ValueError, match=r"mask hides 0 to 10 groups per cloud; hide the same number, at least 1"):
        model(groups, uneven)
    with pytest.raises(ValueError, match=r"mask hides 0 to 0 groups"):
        model(groups, torch.zeros_like(uneven))
