"""The ops as torch custom ops: schemas, shape kernels, torch.compile, dispatch."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode

from pointadapterx import extensions, ops
from pointadapterx.ops import library
from pointadapterx.ops.library import SCHEMAS

raw = torch.ops.pointadapterx


def inputs(device, grad=False):
    """Arguments of every op; floating ones may require gradients."""
    generator = torch.Generator().manual_seed(0)

    def floats(*shape):
        return torch.randn(*shape, generator=generator).to(device).requires_grad_(grad)

    def indices(*shape):
        return torch.randint(0, 12, shape, generator=generator).to(device)

    def lengths(*values):
        return torch.tensor(values, device=device)

    return {
        "farthest_point_sample": (floats(2, 12, 3), 5, 0, False),
        "knn": (floats(2, 4, 3), floats(2, 12, 3), 3),
        "nearest": (floats(2, 4, 3), floats(2, 12, 3)),
        "ball_query": (floats(2, 4, 3), floats(2, 12, 3), 0.7, 3),
        "gather_points": (floats(2, 12, 5), indices(2, 4)),
        "interpolate": (floats(2, 12, 5), indices(2, 4, 3), floats(2, 4, 3)),
        "spread": (floats(2, 4, 5), indices(2, 4, 3), floats(2, 4, 3), 12),
        "ragged_farthest_point_sample": (floats(2, 12, 3), lengths(9, 3), 5, 0, False),
        "ragged_knn": (floats(2, 4, 3), floats(2, 12, 3), lengths(4, 1), lengths(2, 12), 3),
        "ragged_ball_query": (floats(2, 4, 3), floats(2, 12, 3), lengths(4, 1), lengths(2, 12), 0.7, 3),
    }


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", list(SCHEMAS))
def test_opcheck(device, name, grad):
    arguments = inputs(device, grad)[name]
    if grad and name.removeprefix("ragged_") in ("farthest_point_sample", "ball_query"):
        pytest.skip("returns indices only: nothing to differentiate")
    torch.library.opcheck(getattr(raw, name).default, arguments)


@pytest.mark.parametrize("name", list(SCHEMAS))
def test_shape_kernels_match(device, name):
    arguments = inputs(device)[name]
    real = getattr(raw, name)(*arguments)
    with FakeTensorMode() as mode:
        fake = getattr(raw, name)(*(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments))
    for r, f in zip(*([x] if isinstance(x, torch.Tensor) else x for x in (real, fake)), strict=True):
        assert (r.shape, r.dtype, r.device, r.stride()) == (f.shape, f.dtype, f.device, f.stride())


def everything(points, query, features):
    """All public ops in one graph."""
    lengths = torch.full_like(points[:, 0, 0], 5, dtype=torch.int64)
    chosen = ops.farthest_point_sample(points, 6)
    distances, neighbours = ops.knn(query, points, 4)
    found, counts = ops.ball_query(query, points, 0.8, 5)
    three, places = ops.three_nn(query, points)
    return (
        ops.gather_points(points, chosen),
        distances,
        ops.group_points(features, neighbours),
        ops.group_points(features, found) * counts[..., None, None],
        ops.three_interpolate(features, places, three),
        ops.chamfer_distance(points, query),
        ops.chamfer_distance(points, query, norm="l1"),
        ops.gather_points(points, ops.farthest_point_sample(points, 6, lengths=lengths)),
        ops.knn(query, points, 4, query_lengths=lengths, lengths=lengths)[0],
        ops.ball_query(query, points, 0.8, 5, lengths=lengths)[1] * query[..., 0],
    )


def test_compile_equals_eager(device):
    # One graph, no break; aot_eager runs the traced forward and backward without a code generator.
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    for batch, count in ((2, 20), (3, 31)):  # a second shape, so that sizes are symbolic
        leaves = [
            torch.randn(batch, n, c, device=device, requires_grad=True) for n, c in ((count, 3), (9, 3), (count, 7))
        ]
        results = []
        for function in (everything, compiled):
            outputs = function(*leaves)
            results.append((*outputs, *torch.autograd.grad(sum(o.sum() for o in outputs), leaves)))
        for eager, traced in zip(*results, strict=True):
            torch.testing.assert_close(traced, eager)


def test_compile_with_inductor(device):
    points = torch.randn(2, 40, 3, device=device)

    def patches(points):
        centers = ops.gather_points(points, ops.farthest_point_sample(points, 4))
        return ops.group_points(points, ops.knn(centers, points, 5)[1]) - centers.unsqueeze(2)

    assert torch.equal(torch.compile(patches, fullgraph=True)(points), patches(points))


def test_half_precision_is_upcast(device):
    points = torch.randn(2, 30, 3, device=device)
    for kind in (torch.float16, torch.bfloat16):
        half = points.to(kind)
        distances, indices = ops.knn(half, half, 3)
        assert distances.dtype == torch.float32
        assert torch.equal(indices, ops.knn(half.float(), half.float(), 3)[1])
        assert torch.equal(ops.farthest_point_sample(half, 9), ops.farthest_point_sample(half.float(), 9))
        indices = indices[:, :4]
        assert ops.group_points(half, indices).dtype == kind
        assert ops.three_interpolate(half, indices, distances[:, :4]).dtype == kind


def test_meta_tensors_need_no_data():
    points = torch.empty(2, 30, 3, device="meta")
    assert ops.knn(points[:, :4], points, 5)[1].shape == (2, 4, 5)
    assert ops.chamfer_distance(points, points).shape == ()


def test_the_loader_and_the_dispatcher_agree():
    built = extensions.build_info()
    if os.environ.get("POINTADAPTERX_OPS"):
        pytest.skip("the environment chose the reference")
    if built and built["reason"] is None and extensions.load() is None:
        assert re.fullmatch(r"compiled C\+\+ \((AVX-512|AVX2|SSE2|NEON|baseline)\)", ops.implementation("cpu"))
    else:
        assert ops.implementation("cpu").startswith("reference (reason: ")
        assert extensions.rebuild_command() in ops.implementation("cpu")


def test_a_library_of_an_older_version_is_named(monkeypatch, compiled):
    monkeypatch.setattr(library, "_is_compiled", lambda name, key: name != "ragged_knn")
    assert re.fullmatch(r"compiled \S+ \(of an older version; rebuild with: .*\)", ops.implementation(compiled))


def test_other_devices_are_served_by_the_reference():
    assert ops.implementation("mps") == "reference (reason: there are no compiled kernels for 'mps' devices)"


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


EVERY_OP = """
import hashlib, torch
from pointadapterx import ops
digest = hashlib.sha256()
for count, dtype in ((700, torch.float32), (9001, torch.float32), (9001, torch.float64)):
    points = torch.randn(2, count, 3, generator=torch.Generator().manual_seed(0), dtype=dtype).mul(64).round() / 64
    query = points[:, :600] + 0.01
    results = [ops.farthest_point_sample(points, 300), *ops.knn(query, points, 20)]
    for tensor in [*results, *ops.ball_query(query, points, 0.2, 9), *torch.ops.pointadapterx.nearest(query, points)]:
        digest.update(tensor.numpy().tobytes())
print(ops.implementation("cpu"), digest.hexdigest())
"""


@pytest.mark.compiler
def test_every_instruction_set_gives_the_same_bits():
    if not ops.implementation("cpu").startswith("compiled"):
        pytest.skip(ops.implementation("cpu"))
    printed = {
        level: python(EVERY_OP, POINTADAPTERX_SIMD=level).stdout.rsplit(maxsplit=1)
        for level in ("avx512", "avx2", "baseline")
    }
    served = {name for name, _ in printed.values()}
    assert len({digest for _, digest in printed.values()}) == 1
    assert printed["avx512"][0] == ops.implementation("cpu")
    assert printed["baseline"][0] in ("compiled C++ (SSE2)", "compiled C++ (NEON)", "compiled C++ (baseline)")
    assert len(served) == (
        3 if "AVX-512" in ops.implementation("cpu") else 2 if "AVX2" in ops.implementation("cpu") else 1
    )


def test_environment_selects_the_reference():
    code = """
import torch
from pointadapterx import ops
print(ops.implementation("cpu"))
points = torch.arange(30.0).reshape(1, 10, 3).requires_grad_()
print(ops.farthest_point_sample(points, 3).tolist())
ops.chamfer_distance(points, points.detach() + 1).backward()
print(bool(points.grad.abs().sum() > 0))
"""
    result = python(code, POINTADAPTERX_OPS="reference")
    assert result.stdout.splitlines() == [
        "reference (reason: POINTADAPTERX_OPS=reference is set; unset it to use the compiled ops)",
        "[[0, 9, 4]]",
        "True",
    ], result.stderr


def test_environment_typo_is_an_error():
    result = python("import pointadapterx.ops", POINTADAPTERX_OPS="refrence")
    assert result.returncode != 0
    assert "POINTADAPTERX_OPS=refrence is unknown; set it to 'reference'" in result.stderr
