from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pointadapterx import ops

DEVICES = ["cpu", *([pytest.param("cuda", marks=pytest.mark.cuda)] if torch.cuda.is_available() else [])]
"""Tests for a device that is not there are not collected: hundreds of skips would hide the others."""


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def compiled(device: str) -> str:
    """A device whose ops are compiled; comparing the reference with itself would show nothing."""
    served = ops.implementation(device)
    if not served.startswith("compiled"):
        pytest.skip(f"{device}: {served}")
    return device


IN_FLOAT64 = ("random", "lattice")
"""Clouds that are compared in float64 too where they are large: without and with ties."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that compare compiled ops need a compiler; in double precision large clouds of some kinds stand for all."""
    for item in items:
        if "compiled" in getattr(item, "fixturenames", ()) and "cuda" not in item.nodeid:
            item.add_marker("compiler")
        values = item.callspec.params if hasattr(item, "callspec") else {}
        large = "large_cloud" in item.name and values.get("dtype") is torch.float64
        if large and values.get("clouds", IN_FLOAT64[0]) not in IN_FLOAT64:
            item.add_marker("exhaustive")


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def _random(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _lattice(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.randint(-2, 3, shape, generator=generator).double()


def _duplicates(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    distinct = _random(generator, (shape[0], 5, shape[2]))
    return distinct[:, torch.randint(0, 5, (shape[1],), generator=generator)]


def _collinear(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return _random(generator, (*shape[:2], 1)) * torch.tensor([1.0, -2.0, 0.5]).repeat(shape[2])[: shape[2]]


def _far(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return _random(generator, shape) + 1e6


def _coincident(_: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.full(shape, 0.25, dtype=torch.float64)


def _overflowing(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return _random(generator, shape) * 1e25


_CLOUDS: dict[str, Callable[[torch.Generator, tuple[int, ...]], Tensor]] = {
    "random": _random,
    "lattice": _lattice,
    "duplicates": _duplicates,
    "collinear": _collinear,
    "far": _far,
    "coincident": _coincident,
    "overflowing": _overflowing,
}


@pytest.fixture(params=list(_CLOUDS))
def clouds(request: pytest.FixtureRequest, dtype: torch.dtype) -> Callable[..., Tensor]:
    """Builds clouds of one kind: ``clouds(batch, count, dims=3, seed=0)``."""
    build = _CLOUDS[request.param]

    def make(batch: int, count: int, dims: int = 3, seed: int = 0) -> Tensor:
        return build(torch.Generator().manual_seed(seed), (batch, count, dims)).to(dtype)

    return make
