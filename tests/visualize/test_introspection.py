"""What is seen inside a model, against computing it the long way."""

from __future__ import annotations

import pytest
import torch

from pointadapterx.build import build_model
from pointadapterx.errors import ConfigError
from pointadapterx.models.block import Attention
from pointadapterx.peft import METHODS
from pointadapterx.visualize import introspection
from pointadapterx.visualize.loaded_run import Subject
from tests.conftest import randomise, small_config


def test_attention_is_that_of_the_class_token(demo: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against an attention that is computed as it is written down."""
    inputs = demo.choose([0, 1]).inputs
    found = introspection.class_attention(demo.model, inputs)
    count = demo.model.backbone.num_patches
    seen = []

    def spy(self: Attention, tokens: torch.Tensor) -> torch.Tensor:
        batch, length, dim = tokens.shape
        query, key, value = self.qkv(tokens).reshape(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(dim=-1)
        seen.append(weights.mean(dim=1)[:, 0, -count:])
        return self.proj((weights @ value).transpose(1, 2).reshape(batch, length, dim))

    monkeypatch.setattr(Attention, "forward", spy)
    with torch.inference_mode():
        demo.model(inputs)
    torch.testing.assert_close(found, torch.stack(seen), atol=1e-5, rtol=1e-4)
    assert found.shape == (len(demo.model.backbone.blocks), 2, count)


@pytest.mark.parametrize("kind", ["point_mae", "vit"])
@pytest.mark.parametrize("name", list(METHODS))
def test_attention_can_be_seen_with_every_method(name: str, kind: str) -> None:
    model = randomise(build_model(small_config(name, kind))).eval()
    inputs = torch.randn(2, 128, 3) if kind == "point_mae" else torch.randn(2, *model.backbone.image_shape)
    found = introspection.class_attention(model, inputs)
    assert found.shape == (len(model.backbone.blocks), 2, model.backbone.num_patches)
    total = found.sum(dim=2)
    assert bool(((total > 0) & (total < 1)).all())


@pytest.mark.parametrize("name", [name for name in METHODS if name.endswith("_x")])
def test_routing_is_what_the_mixture_chose_and_nothing_stays(name: str) -> None:
    model = randomise(build_model(small_config(name))).eval()
    points = torch.randn(2, 128, 3)
    uses = introspection.routing(model, points)
    expected = [f"block {i} {branch}" for i in (1, 2) for branch in ("attention", "FFN")]
    assert list(uses) == (expected if name == "e3va_x" else ["block 1", "block 2"])
    for found in uses.values():
        assert torch.equal(found.gates.argmax(dim=-1), found.chosen[..., 0])
        torch.testing.assert_close(found.gates.sum(dim=-1), torch.ones(found.gates.shape[:-1]))
    with torch.inference_mode():
        model(points)
    assert model.method.statistics() == {}


def test_a_method_without_router_says_so() -> None:
    model = build_model(small_config("dapt"))
    assert not introspection.routes(model)
    with pytest.raises(ConfigError, match="method dapt routes nothing"):
        introspection.routing(model, torch.randn(2, 128, 3))
    assert not introspection.routes(build_model(small_config("dapt_x", method={"mixture": False})))
    assert introspection.routes(build_model(small_config("dapt_x", method={"shared": False})))


def test_saliency_is_what_is_lost_without_the_patch(demo: Subject) -> None:
    cloud = demo.choose([0]).inputs
    (found,) = introspection.saliency(demo.model, cloud)
    _, nearest = introspection.nearest_patch(demo.model, cloud)
    probability = lambda points: demo.model(points).logits.softmax(dim=-1)[0]  # noqa: E731
    with torch.inference_mode():
        before = probability(cloud)
        patch, answer = int(found.argmax()), int(before.argmax())
        left = cloud[:, nearest[0] != patch]
        count = cloud.shape[1] - left.shape[1]
        without = cloud.clone()
        without[0, nearest[0] == patch] = left[0, :count]
        assert float(found[patch]) == pytest.approx(float((before - probability(without))[answer]), abs=1e-5)
    assert count > 0
    assert len(found) == demo.model.backbone.num_patches


def test_saliency_of_images_finds_the_patch_that_decides() -> None:
    """A model that only reads the brightness of one corner."""
    model = build_model(small_config("linear", kind="vit")).eval()
    side = model.backbone.image_shape[-1] // model.backbone.grid

    class Corner(torch.nn.Module):
        backbone = model.backbone

        def forward(self, images: torch.Tensor) -> object:
            bright = images[:, 0, :side, -side:].mean(dim=(1, 2))
            return type("Output", (), {"logits": torch.stack([bright, -bright], dim=1)})()

    images = torch.zeros(1, *model.backbone.image_shape)
    images[0, :, :side, -side:] = 3.0
    (found,) = introspection.saliency(Corner(), images)  # type: ignore[arg-type]
    assert int(found.argmax()) == model.backbone.grid - 1
    assert int((found.abs() > 1e-6).sum()) == 1


def test_a_cloud_of_one_spot_has_nothing_to_take_away(demo: Subject) -> None:
    found = introspection.saliency(demo.model, torch.zeros(1, 1024, 3))
    torch.testing.assert_close(found, torch.zeros_like(found), atol=1e-5, rtol=0)
