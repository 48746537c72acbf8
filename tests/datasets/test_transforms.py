"""Augmentation: geometry, distributions, reproducibility, and the names in a configuration."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from pointadapterx.datasets import TRANSFORMS, augment_label, build_augment
from pointadapterx.datasets.transforms import (
    Jitter,
    NormalizeUnitSphere,
    PointDropout,
    RotateSO3,
    RotateUp,
    Scale,
    ScaleTranslate,
)
from pointadapterx.errors import ConfigError

RANDOM = sorted(set(TRANSFORMS) - {"unit_sphere"})


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cloud(batch: int = 8, num_points: int = 100) -> torch.Tensor:
    return torch.randn(batch, num_points, 3, generator=seeded(99))


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_type_and_input_stay(name: str, dtype: torch.dtype) -> None:
    points = cloud().to(dtype)
    before = points.clone()
    out = TRANSFORMS[name]()(points, seeded())
    assert (out.shape, out.dtype) == (points.shape, dtype)
    assert torch.equal(points, before)
    assert out.isfinite().all()


@pytest.mark.parametrize("name", RANDOM)
def test_a_seed_fixes_the_outcome_and_clouds_differ(name: str) -> None:
    points = cloud(1).expand(4, -1, -1)
    transform = TRANSFORMS[name]()
    assert torch.equal(transform(points, seeded(1)), transform(points, seeded(1)))
    assert not torch.equal(transform(points, seeded(1)), transform(points, seeded(2)))
    out = transform(points, seeded(1))
    assert not torch.equal(out[0], out[1])


@pytest.mark.parametrize("name", RANDOM)
def test_the_global_generator_is_left_alone(name: str) -> None:
    state = torch.get_rng_state()
    TRANSFORMS[name]()(cloud(), seeded())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("shape", [(100, 3), (2, 3, 100), (2, 100, 6)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(batch, points, 3\)"):
        RotateUp()(torch.zeros(shape))


def test_rotation_about_up_keeps_heights_exactly_and_norms() -> None:
    points = cloud()
    out = RotateUp()(points, seeded())
    assert torch.equal(out[..., 1], points[..., 1])
    assert torch.allclose(out.norm(dim=2), points.norm(dim=2), atol=1e-5)
    assert not torch.allclose(out, points, atol=0.1)


def test_rotation_about_up_is_uniform() -> None:
    points = torch.tensor([1.0, 0.0, 0.0]).expand(20_000, 1, 3)
    out = RotateUp()(points, seeded())[:, 0]
    angles = torch.atan2(out[:, 2], out[:, 0])
    counts = angles.histc(8, -torch.pi, torch.pi)
    assert (counts / 20_000 - 1 / 8).abs().max() < 0.01  # over 4 standard errors


def rotations(number: int) -> torch.Tensor:
    """The matrices (number, 3, 3) that RotateSO3 draws, read from what it does to the unit vectors."""
    return RotateSO3()(torch.eye(3, dtype=torch.float64).expand(number, 3, 3), seeded()).transpose(1, 2)


def test_so3_rotations_are_proper() -> None:
    matrices = rotations(200)
    identity = torch.eye(3, dtype=torch.float64)
    assert torch.allclose(matrices @ matrices.transpose(1, 2), identity.expand(200, 3, 3), atol=1e-12)
    assert torch.allclose(torch.linalg.det(matrices), torch.ones(200, dtype=torch.float64), atol=1e-12)


def test_so3_rotations_are_uniform() -> None:
    matrices = rotations(40_000)
    assert matrices.mean(0).abs().max() < 0.015  # uniform on the sphere: deviation 1/sqrt(3 n) = 0.003
    assert (matrices.square().mean(0) - 1 / 3).abs().max() < 0.01
    trace = matrices.diagonal(dim1=1, dim2=2).sum(1)  # 1 + 2 cos(angle), whose mean is 0 and variance 1
    assert abs(float(trace.mean())) < 0.03
    assert abs(float(trace.var()) - 1) < 0.03


def test_scale_stays_in_its_range_and_fills_it() -> None:
    factors = Scale()(torch.ones(2000, 1, 3), seeded())[:, 0]
    assert factors.min() >= 2 / 3 - 1e-6
    assert factors.max() <= 3 / 2 + 1e-6
    assert torch.allclose(factors.mean(0), torch.full((3,), (2 / 3 + 3 / 2) / 2), atol=0.03)
    assert not torch.equal(factors[:, 0], factors[:, 1])  # each axis has a factor of its own


def test_scale_translate_is_affine_per_axis() -> None:
    ends = torch.stack([torch.zeros(3), torch.ones(3)]).expand(2000, 2, 3)
    out = ScaleTranslate()(ends, seeded())
    shift, factors = out[:, 0], out[:, 1] - out[:, 0]
    assert shift.abs().max() <= 0.2
    assert shift.abs().max() > 0.19
    assert 2 / 3 - 1e-6 <= factors.min() <= factors.max() <= 3 / 2 + 1e-6


@pytest.mark.parametrize("transform", [Scale(factors=1), ScaleTranslate(factors=1)])
def test_one_factor_keeps_the_shape(transform: Scale | ScaleTranslate) -> None:
    out = transform(torch.stack([torch.zeros(3), torch.ones(3)]).expand(50, 2, 3), seeded())
    factors = out[:, 1] - out[:, 0]
    torch.testing.assert_close(factors, factors[:, :1].expand(-1, 3))
    assert len(factors[:, 0].unique()) == 50


def test_jitter_is_clipped_noise() -> None:
    points = torch.zeros(10, 1000, 3)
    noise = Jitter(std=0.02, clip=0.03)(points, seeded())
    assert noise.abs().max() == pytest.approx(0.03)
    assert abs(float(noise.mean())) < 1e-3
    assert 0.015 < float(noise.std()) < 0.02
    assert torch.equal(Jitter(std=0)(cloud(), seeded()), cloud())


def test_dropped_points_become_the_first() -> None:
    points = cloud(400, 200)
    out = PointDropout()(points, seeded())
    kept = (out == points).all(2)
    assert (kept | (out == points[:, :1]).all(2)).all()
    dropped = 1 - kept[:, 1:].float().mean(1)
    assert dropped.max() < 0.875 + 0.1
    assert abs(float(dropped.mean()) - 0.875 / 2) < 0.05
    assert torch.equal(PointDropout(max_ratio=0)(points, seeded()), points)


def test_unit_sphere() -> None:
    out = NormalizeUnitSphere()(cloud() * 7 + 5)
    assert torch.allclose(out.mean(1), torch.zeros(8, 3), atol=1e-5)
    assert torch.allclose(out.norm(dim=2).amax(1), torch.ones(8), atol=1e-5)
    assert torch.equal(NormalizeUnitSphere()(torch.full((1, 5, 3), 2.0)), torch.zeros(1, 5, 3))


@pytest.mark.parametrize("exponent", [-100, -60, 1, 60, 120])
def test_unit_sphere_of_any_size_is_the_same_bit_for_bit(exponent: int) -> None:
    assert torch.equal(NormalizeUnitSphere()(cloud() * 2.0**exponent), NormalizeUnitSphere()(cloud()))


@pytest.mark.parametrize(
    ("spec", "label"),
    [
        ("none", "none"),
        ([], "none"),
        ("rotation", "rotation"),
        (["rotation"], "rotation"),
        ("scale_translate", "scale_translate"),
        ("so3", "so3"),
        (["rotation", "jitter"], "rotation+jitter"),
        ([{"jitter": {"std": 0.01, "clip": 0.05}}], "jitter"),
        ([{"jitter": None}], "jitter"),
        (["rotation", {"jitter": {"std": 0.02}}], "rotation+jitter(std=0.02)"),
    ],
)
def test_one_meaning_has_one_label(spec: Any, label: str) -> None:
    assert augment_label(spec) == label
    assert build_augment(spec).label == label


def test_augment_applies_in_order_and_none_is_the_identity() -> None:
    points = cloud()
    assert build_augment("none")(points) is points
    assert not build_augment("none")
    expected = Jitter()(RotateUp()(points, generator := seeded()), generator)
    assert torch.equal(build_augment(["rotation", "jitter"])(points, seeded()), expected)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rotatoin", "unknown transform 'rotatoin'; did you mean 'rotation'?"),
        (["rotation", "jiter"], "unknown transform 'jiter'; did you mean 'jitter'?"),
        (["none", "jitter"], "augment 'none' cannot be combined with others"),
        ([{"jitter": {"sdt": 0.1}}], "augment jitter has no parameter 'sdt'; did you mean 'std'? Known: std, clip."),
        ([{"rotation": {"axis": "y"}}], "augment rotation has no parameter 'axis'. Known: none."),
        ([{"jitter": {"std": "big"}}], "augment jitter: std is 'big', expected a finite number"),
        ([{"jitter": {"std": True}}], "std is True, expected a finite number"),
        ([{"jitter": 0.1}], "augment jitter: 0.1 is not a mapping"),
        ([{"jitter": {}, "scale": {}}], "expected a name or one {name: {parameter: value}}"),
        ([3], "augment holds 3"),
        (3, "augment is 3, expected a name or a list"),
        ({"jitter": {}}, "expected a name or a list"),
        ([{"jitter": {"std": -1}}], "Jitter(std=-1, clip=0.05): expected std >= 0 and clip >= 0"),
        ([{"scale": {"low": 2.0, "high": 1.0}}], "Scale(low=2.0, high=1.0, factors=3.0): expected 0 < low <= high"),
        ([{"scale_translate": {"shift": -0.1}}], "expected shift >= 0"),
        ([{"scale_translate": {"factors": 2}}], "expected factors 1 or 3"),
        ([{"point_dropout": {"max_ratio": 1.0}}], "expected 0 <= max_ratio < 1"),
    ],
)
def test_wrong_specs(spec: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_augment(spec)
    assert message in str(error.value)


def test_transforms_hold_numbers_only() -> None:
    """Labels print them with :g, configurations set them."""
    for cls in TRANSFORMS.values():
        assert all(isinstance(field.default, float) for field in dataclasses.fields(cls))
