"""Layers that compute again what their backward pass needs: the values of plain ones, from less memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapterx.models.recomputing import recomputed
from pointadapterx.peft.parts.late import moved
from pointadapterx.tasks.convolutions import ConvModule, Part, enlarging, side_by_side
from pointadapterx.tasks.regions import Again, BoxHead, Later


def kept(compute: Callable[[], Tensor], but: nn.Module) -> tuple[Tensor, int]:
    """A result, and the numbers that its backward pass keeps apart from parameters and buffers."""
    known = {one.untyped_storage().data_ptr() for one in (*but.parameters(), *but.buffers())}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = compute()
    return result, sum(one.untyped_storage().nbytes() // 4 for place, one in found.items() if place not in known)


def test_what_a_way_between_stages_drops_is_dropped_again() -> None:
    torch.manual_seed(0)
    joined = torch.randn(2, 30, 4, requires_grad=True)
    found = moved(torch.zeros(2, 30, 4), joined, nn.Dropout(0.5))
    found.sum().backward()
    assert joined.grad is not None
    assert (joined.grad == 0).any()
    torch.testing.assert_close(joined.grad * joined, found)


def test_a_norm_and_dropout_run_again_unseen() -> None:
    norm, last, dropout = nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1), nn.Dropout2d(0.5)
    module, given = nn.ModuleList([norm, last]), torch.randn(4, 6, 5, 5)
    found = []
    for again in (False, True):
        norm.reset_running_stats()
        module.zero_grad()
        maps = given.clone().requires_grad_()
        torch.manual_seed(1)

        def layers(maps: Tensor) -> Tensor:
            return last(dropout(F.relu(norm(maps))))

        def compute(maps: Tensor = maps, again: bool = again) -> Tensor:
            return recomputed(layers, maps, norms=[norm], draws=True) if again else layers(maps)

        output, count = kept(compute, module)
        output.square().sum().backward()
        grads = [maps.grad, *(p.grad for p in module.parameters())]
        found.append((count, [output, torch.rand(3), *grads, *(one.clone() for one in norm.buffers())]))
    (plain, expected), (less, values) = found
    assert all(torch.equal(one, other) for one, other in zip(values, expected, strict=True))
    assert int(norm.num_batches_tracked) == 1
    assert less == given.numel() < plain / 3


def test_maps_are_convolved_before_they_are_enlarged() -> None:
    torch.manual_seed(0)
    layers = [ConvModule(3, 4, 1, "batch").double() for _ in range(2)]
    last = nn.Conv2d(10, 5, 3, padding=1, bias=False).double()
    module = nn.ModuleList([*layers, last])
    sides = (8, 5, 1)
    given = [
        torch.randn(2, width, side, side, dtype=torch.float64) for width, side in zip((4, 4, 2), sides, strict=True)
    ]

    def plain(maps: list[Tensor]) -> Tensor:
        read = [layers[0].activated(maps[0]), layers[1].activated(maps[1]), maps[2]]
        large = [F.interpolate(one, (8, 8), mode="bilinear", align_corners=False) for one in read]
        return last(torch.cat(large, dim=1))

    def ours(maps: list[Tensor]) -> Tensor:
        small = [None, *(enlarging(side, 8).double() for side in sides[1:])]
        parts = [Part(*part) for part in zip((*layers, None), maps, small, strict=True)]
        return side_by_side(last.weight, parts)

    found = []
    for compute in (plain, ours):
        module.zero_grad()
        maps = [one.clone().requires_grad_() for one in given]
        output, count = kept(lambda compute=compute, maps=maps: compute(maps), module)
        output.square().sum().backward()
        grads = [one.grad for one in maps] + [p.grad for p in module.parameters() if p.grad is not None]
        found.append((count, [output, *grads]))
    (most, expected), (less, values) = found
    assert len(values) == len(expected) == 9
    for one, other in zip(values, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)  # matrices of bilinear weights are float32
    assert less < most / 2


def test_regions_are_pooled_again() -> None:
    class Pool(nn.Module):
        def forward(self, maps: dict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
            return F.interpolate(maps["0"], (7, 7)).repeat(len(boxes[0]), 1, 1, 1)

    head, later, boxes = BoxHead(3 * 49, 8), Later(Pool()), [torch.zeros(50, 4)]
    found = []
    for again in (False, True):
        head.zero_grad()
        maps = torch.arange(48.0).view(1, 3, 4, 4).requires_grad_()
        regions = later({"0": maps}, boxes, [(4, 4)])
        output, count = kept(lambda again=again, r=regions: head(r if again else r.pool(*r[1:])), head)
        output.sum().backward()
        found.append((count, [output, maps.grad, *(p.grad for p in head.parameters())]))
    (plain, expected), (less, values) = found
    assert all(torch.equal(one, other) for one, other in zip(values, expected, strict=True))
    assert less == plain - 50 * 3 * 49 + maps.numel()


def test_layers_that_run_again_keep_their_names() -> None:
    layers = {"first": nn.Linear(2, 3), "relu": nn.ReLU(inplace=True), "last": nn.Linear(3, 1)}
    plain, again = nn.Sequential(), Again()
    for name, layer in layers.items():
        plain.add_module(name, layer)
        again.add_module(name, layer)
    assert list(plain.state_dict()) == list(again.state_dict())
    values = torch.randn(4, 2)
    assert torch.equal(*(torch.autograd.grad(one(values).sum(), one.first.weight)[0] for one in (plain, again)))
