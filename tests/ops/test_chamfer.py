"""Values of the Chamfer distance."""

from __future__ import annotations

import pytest
import torch

from pointadapterx import ops


def brute(x, y):
    squared = ((x[:, :, None].double() - y[:, None].double()) ** 2).sum(-1)
    return squared.amin(2), squared.amin(1)


def test_values(device, dtype):
    x, y = torch.randn(3, 40, 3, dtype=dtype), torch.randn(3, 25, 3, dtype=dtype)
    forward, backward = brute(x, y)
    x, y = x.to(device), y.to(device)
    squared = (forward.mean(1) + backward.mean(1)).to(dtype)
    plain = ((forward.sqrt().mean(1) + backward.sqrt().mean(1)) / 2).to(dtype)
    for norm, expected in (("l2", squared), ("l1", plain)):
        torch.testing.assert_close(ops.chamfer_distance(x, y, norm, "none").cpu(), expected)
        torch.testing.assert_close(ops.chamfer_distance(x, y, norm).cpu(), expected.mean())


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_symmetric_and_invariant_to_order(device, norm):
    x, y = torch.randn(2, 30, 3, device=device), torch.randn(2, 30, 3, device=device)
    distance = ops.chamfer_distance(x, y, norm)
    torch.testing.assert_close(ops.chamfer_distance(y, x, norm), distance)
    torch.testing.assert_close(ops.chamfer_distance(x.flip(1), y, norm), distance)
    assert ops.chamfer_distance(x, x.flip(1), norm).item() == 0


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_a_shift_of_distant_points_is_the_distance(device, norm):
    x = torch.arange(5.0, device=device)[None, :, None] * torch.tensor([10.0, 0, 0], device=device)
    assert ops.chamfer_distance(x, x + torch.tensor([0, 0.5, 0], device=device), norm).item() == 0.5
