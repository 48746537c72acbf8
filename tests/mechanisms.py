"""Which forms of methods stand for the others where a test is costly: one for each mechanism.

Cheap tests take every method on every backbone. Costly ones (compilers, whole runs, several processes) take every
method too, but what repeats the proof of another is marked ``exhaustive``: ``make test`` leaves it out and
``make test-all`` runs it. A method that is in none of these tables, a new one, is never left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from pointadapterx.peft import METHODS

LIKE = {
    "adapter": "adaptformer: a bottleneck in every block, here behind a part and not beside it",
    "adapter_x": "dapt_x: the same mixture for all blocks",
    "adaptformer_x": "dapt_x: the same mixture for all blocks",
    "bitfit": "full: trains tensors that the backbone has, fewer of them",
    "e3va_x": "e3va and dapt_x: the same highway, with the mixture of the other",
}
"""Methods without a mechanism of their own, and those that stand for them.

What remains: only a head (linear), all of the backbone (full), branches that can be merged (lora), scale and shift
behind layers (ssf), bottlenecks (adaptformer), tokens of its own (vpt), scales and prompts made of tokens (dapt), a
graph of tokens (idpt), a state that moves later tokens (stag), experts (dapt_x), a highway beside the
backbone (e3va), a drawn architecture (noah).
"""

ON_BOTH = {
    "dapt_x": "has every kind of part: experts, prompts, norms, a loss",
    "vpt": "its tokens lie among those of the backbone",
}
"""Methods that are tried on the second backbone too; the others see the same blocks there."""

STARTS_ELSEWHERE = {"stag": "a ReLU is its last layer, which would never leave zero"}
"""Methods that do not start as the plain backbone, and why."""

exhaustive = pytest.mark.exhaustive


def marks(name: str, kind: str = "point_mae") -> tuple[pytest.MarkDecorator, ...]:
    """Of a method on a backbone: ``exhaustive`` where others stand for it."""
    return (exhaustive,) if name in LIKE or (kind != "point_mae" and name not in ON_BOTH) else ()


def methods(names: Iterable[str] = METHODS) -> list[Any]:
    """A parameter for each of them."""
    return [pytest.param(name, marks=marks(name)) for name in names]


def methods_on(kinds: Iterable[str]) -> list[Any]:
    """Parameters for each method on each of the backbones: its name and the backbone's."""
    return [
        pytest.param(name, kind, marks=marks(name, kind), id=f"{name}-{kind}") for kind in kinds for name in METHODS
    ]
