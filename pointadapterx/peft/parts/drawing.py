"""How a supernet draws an architecture in training; in a module of its own, as it imports torch's compiler."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from pointadapterx.peft.noah import Noah


@torch.compiler.disable
def use_another(supernet: Noah) -> None:
    """The draw is not compiled; the compiler compiles once per architecture, up to its limit."""
    supernet.use(supernet.space.draw(random.Random(int(torch.randint(2**31, ())))))
