"""Samples that are unlike the training data, and files that say nothing usable of it."""

from __future__ import annotations

import math

import pytest
import torch

from pointadapterx.tasks.novelty import PASS, RANK, Novelty, energy

CLASSES, WIDTH = 3, 5


def samples(count: int, seed: int, width: int = WIDTH) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features of three classes, the last of which never varies; logits that are sure of the class; labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    centres = 6 * torch.eye(CLASSES, width)
    spread = torch.linspace(1.0, 0.1, width)
    spread[-1] = 0.0
    hidden = centres[labels] + spread * torch.randn(count, width, generator=generator)
    return hidden, 8 * torch.eye(CLASSES)[labels] + torch.randn(count, CLASSES, generator=generator), labels


def fitted(validation: int = 400, width: int = WIDTH) -> Novelty:
    hidden, _, labels = samples(900, 0, width)
    val_hidden, val_logits, _ = samples(validation, 1, width)
    found = Novelty.fit(hidden, labels, val_hidden, val_logits)
    assert found is not None
    return found


def test_known_samples_pass_and_strange_ones_do_not() -> None:
    found = fitted()
    hidden, logits, _ = samples(3000, 2)
    assert found.is_known(hidden, logits).float().mean().item() == pytest.approx(PASS, abs=0.02)
    assert found.share_below(hidden, logits).mean().item() == pytest.approx(0.5, abs=0.04)
    far = hidden[:1] + 8.0 * torch.eye(WIDTH)  # in every direction, that without variance among them
    assert found.is_known(far, logits[:1].expand(WIDTH, -1)).tolist() == [False] * WIDTH
    assert found.share_below(far, logits[:1].expand(WIDTH, -1)).tolist() == [1.0] * WIDTH
    unsure = torch.zeros(1, CLASSES)  # usual features, but no class is likely
    assert not bool(found.is_known(hidden[:1], unsure))


def test_the_distance_is_mahalanobis_and_the_energy_is_that_of_the_paper() -> None:
    found = fitted()
    hidden, logits, _ = samples(50, 3)
    spread, basis = found.spread.double(), found.basis.double()
    inverse = basis @ torch.diag(spread[:-1] ** -2) @ basis.T
    apart = hidden.double()[:, None] - found.means.double()
    wanted = torch.einsum("ncd,de,nce->nc", apart, inverse, apart).amin(dim=1).sqrt()
    torch.testing.assert_close(found.distance(hidden).double(), wanted, rtol=0.02, atol=0.02)
    torch.testing.assert_close(energy(logits), -logits.exp().sum(dim=1).log())


@pytest.mark.parametrize(("count", "passing"), [(2, 2), (10, 10), (19, 19), (39, 38), (400, 381)])
def test_the_limit_leaves_room_for_few_samples(count: int, passing: int) -> None:
    """A new sample of the same kind is to pass in 95 % of cases: with few, all that were seen have to."""
    found = fitted(count)
    hidden, logits, _ = samples(count, 1)
    assert int(found.is_known(hidden, logits).sum()) == passing
    assert passing == min(math.ceil(PASS * (count + 1)), count)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_neither_known_nor_measured(value: float) -> None:
    found = fitted()
    hidden, logits, labels = samples(4, 5)
    hidden[0, 0] = value
    assert not bool(found.is_known(hidden, logits)[0])
    assert Novelty.fit(hidden, labels, *samples(30, 1)[:2]) is None
    if math.isnan(value):
        assert math.isnan(found.share_below(hidden, logits)[0].item())


def test_a_prediction_in_bf16_judges_as_exactly_as_any() -> None:
    novelty, (hidden, logits, _) = fitted(), samples(50, seed=9)
    wanted = novelty.score(hidden, logits)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(novelty.score(hidden, logits), wanted)


def test_without_a_spread_of_validation_nothing_is_fitted() -> None:
    hidden, logits, labels = samples(30, 0)
    assert Novelty.fit(hidden, labels, hidden[:1], logits[:1]) is None


def test_one_sample_a_class_still_gives_distances() -> None:
    hidden, logits, labels = samples(CLASSES, 0)
    found = Novelty.fit(hidden, labels, *samples(30, 1)[:2])
    assert found is not None
    assert bool(found.score(hidden, logits).isfinite().all())


def test_wide_features_are_stored_in_little_room_and_survive_the_file() -> None:
    found = fitted(width=300)
    tensors = found.tensors()
    assert sum(tensor.nbytes for tensor in tensors.values()) < 100_000
    assert tensors["basis"].shape == (300, RANK)
    again = Novelty.from_tensors(tensors, CLASSES, 300)
    assert again is not None
    hidden, logits, _ = samples(100, 2, 300)
    assert torch.equal(again.score(hidden, logits), found.score(hidden, logits))
    assert found.is_known(hidden, logits).float().mean().item() > 0.85


def test_files_without_it_or_of_an_earlier_form_have_none() -> None:
    assert Novelty.from_tensors({}, CLASSES, WIDTH) is None
    earlier = {"means": torch.zeros(3, 9), "scales": torch.ones(9), "quantiles": torch.ones(5)}
    assert Novelty.from_tensors(earlier, CLASSES, WIDTH) is None


@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [
        ("means", torch.zeros(CLASSES, WIDTH + 1), "shapes"),
        ("means", torch.zeros(CLASSES + 1, WIDTH), "shapes"),
        ("means", torch.zeros(0, WIDTH), "shapes"),
        ("means", torch.full((CLASSES, WIDTH), math.nan), "means holds NaN"),
        ("basis", torch.zeros(WIDTH, 2), "shapes"),
        ("basis", torch.zeros(WIDTH, WIDTH, dtype=torch.int64), "shapes"),
        ("spread", torch.ones(()), "shapes"),
        ("spread", torch.zeros(WIDTH + 1), "deviation is not positive"),
        ("units", torch.tensor([0.0, -1.0, 0.0, 1.0]), "deviation is not positive"),
        ("units", torch.ones(3), "shapes"),
        ("quantiles", torch.ones(0), "shapes"),
        ("quantiles", torch.tensor([1.0, 0.0]), "do not ascend"),
        ("limit", torch.tensor([math.nan]), "limit holds NaN"),
        ("surplus", torch.ones(1), "novelty has basis"),
    ],
)
def test_a_damaged_file_is_refused(name: str, tensor: torch.Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Novelty.from_tensors({**fitted().tensors(), name: tensor}, CLASSES, WIDTH)
