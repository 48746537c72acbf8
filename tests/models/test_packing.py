"""Frozen layers from packed weights, beside torch's own products."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from pointadapterx import build_model
from pointadapterx.models import packing
from pointadapterx.models.packing import (
    PackedForward,
    expect,
    linear_gelu,
    pack_frozen,
    pack_weight,
    packed,
    packed_bytes,
    packed_precisions,
    product,
    tensor_bytes,
    unpack,
)
from tests.conftest import randomise, small_config

needs_packing = pytest.mark.skipif(
    torch.bfloat16 not in packed_precisions(), reason="this processor or torch has no packed bf16 products"
)


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(192, 256).requires_grad_(False)


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=[torch.bfloat16, torch.float32])
def precision(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """Both that are packed, wherever the tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_mkl_is_slow", lambda: True)
        packing._tried_precisions.cache_clear()
        try:
            if request.param not in packed_precisions():
                pytest.skip("this processor or torch has no such packed products")
            yield request.param
        finally:
            packing._tried_precisions.cache_clear()


def half(precision: torch.dtype = torch.bfloat16) -> torch.autocast:
    """Autocast to a precision, none to fp32."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16)


def packs(layer: nn.Module) -> PackedForward:
    forward = vars(layer)["forward"]
    assert isinstance(forward, PackedForward)
    return forward


@pytest.mark.parametrize("shape", [(1, 192), (3, 7, 192), (192,), (2, 0, 192)])
@pytest.mark.parametrize("bias", [True, False])
def test_same_product(layer: nn.Linear, shape: tuple[int, ...], bias: bool, precision: torch.dtype) -> None:
    if not bias:
        layer.bias = None
    some = inputs(*shape)
    with half(precision), torch.no_grad():
        expected = layer(some)
        with packed(layer):
            found = layer(some)
            assert packs(layer)._packed or not some.numel()
    assert found.dtype == expected.dtype == precision
    assert found.shape == expected.shape
    exact = nn.functional.linear(
        some.to(precision).double(),
        layer.weight.to(precision).double(),
        None if layer.bias is None else layer.bias.to(precision).double(),
    )
    size, rounding = (1e-2, 2**-8) if precision == torch.bfloat16 else (1e-5, 1e-5)
    torch.testing.assert_close(found.double(), exact, atol=size, rtol=rounding)


def test_gradient_of_inputs_and_its_gradient(layer: nn.Linear, precision: torch.dtype) -> None:
    def gradients() -> list[Tensor]:
        some = inputs(5, 192).requires_grad_()
        with half(precision):
            first = torch.autograd.grad(layer(some).float().pow(3).sum(), some, create_graph=True)[0]
            return [first, torch.autograd.grad(first.square().sum(), some)[0]]

    expected = gradients()
    with packed(layer):
        found = gradients()
        size = 2 if precision == torch.bfloat16 else 4
        assert packs(layer).nbytes == 2 * size * layer.weight.numel()
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        error = (ours - theirs).norm() / theirs.norm()
        assert error < (0.02 if precision == torch.bfloat16 else 1e-5)


def test_weights_that_change_are_packed_again(layer: nn.Linear, precision: torch.dtype) -> None:
    some, other = inputs(4, 192), inputs(256, 192)
    pack_frozen(layer)
    with half(precision), torch.no_grad():
        before = layer(some)
        layer.weight.mul_(2)
        assert not torch.equal(layer(some), before)
        twice = layer(some)
        layer.load_state_dict({"weight": other, "bias": torch.zeros(256)})
        expected = (some.bfloat16().double() @ other.bfloat16().double().T).float()
        torch.testing.assert_close(layer(some).float(), expected, atol=0.1, rtol=0.02)
        layer.weight = nn.Parameter(other * 3, requires_grad=False)
        torch.testing.assert_close(layer(some).float(), 3 * expected, atol=0.3, rtol=0.02)
        layer.bias.fill_(100.0)
        assert (layer(some).float() - 3 * expected).mean() == pytest.approx(100, abs=1)
    assert not torch.equal(twice, before)


@needs_packing
def test_a_layer_that_is_trained_is_left_alone(layer: nn.Linear) -> None:
    some = inputs(4, 192)
    pack_frozen(layer)
    layer.weight.requires_grad_(True)
    with half():
        layer(some).float().sum().backward()
    assert layer.weight.grad is not None
    assert not packs(layer)._packed
    assert not pack_frozen(nn.Linear(192, 256))


@pytest.mark.parametrize("reached", [True, False])
def test_a_bias_that_is_trained(layer: nn.Linear, precision: torch.dtype, reached: bool) -> None:
    """As BitFit does, with a gradient of the inputs and without."""
    layer.bias.requires_grad_(True)
    activation, some = nn.GELU(), inputs(4, 192).requires_grad_(reached)

    def gradients() -> list[Tensor]:
        with half(precision):
            output = linear_gelu(layer, activation, some)
        assert output.dtype == precision
        return list(torch.autograd.grad(output.float().square().sum(), [layer.bias, *([some] if reached else [])]))

    expected = gradients()
    with packed(layer):
        found = gradients()
        assert packs(layer)._packed
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() < (0.02 if precision == torch.bfloat16 else 1e-5) * theirs.norm()


@needs_packing
@pytest.mark.parametrize("precision", [torch.float32, torch.float16, torch.float64])
def test_only_what_gains_is_packed(layer: nn.Linear, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "packed_precisions", lambda: (torch.bfloat16,))
    some = inputs(4, 192)
    if precision == torch.float64:
        layer, some = layer.double(), some.double()
    with torch.autocast("cpu", dtype=torch.float16, enabled=precision == torch.float16), torch.no_grad():
        expected = layer(some)
        pack_frozen(layer)
        assert torch.equal(layer(some), expected)
    assert not packs(layer)._packed


def test_both_precisions_in_turn(layer: nn.Linear, precision: torch.dtype) -> None:
    """Training in one and validation in the other; each is packed once."""
    some = inputs(4, 192)
    pack_frozen(layer)
    with torch.no_grad():
        for dtype in (precision, torch.float32, torch.bfloat16, torch.float32):
            with half(dtype):
                assert layer(some).dtype == dtype
    assert set(packs(layer)._packed) == set(packed_precisions())
    assert packs(layer).nbytes == sum(dtype.itemsize for dtype in packed_precisions()) * layer.weight.numel()
    layer.weight = nn.Parameter(layer.weight * 2, requires_grad=False)
    with half(precision), torch.no_grad():
        layer(some)
    assert set(packs(layer)._packed) == {precision}  # what was replaced is not kept
    with pytest.raises(RuntimeError, match="same dtype"):
        layer(some.bfloat16())


@pytest.mark.parametrize(
    ("processor", "capability", "expected"),
    [("AuthenticAMD", "AVX512", True), ("AuthenticAMD", "AVX2", False), ("GenuineIntel", "AVX512", False)],
)
def test_where_fp32_gains(
    processor: str, capability: str, expected: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {processor}\n")
    monkeypatch.setattr(packing, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert packing._mkl_is_slow() == expected
    monkeypatch.setattr(packing, "CPUINFO", tmp_path / "missing")
    assert not packing._mkl_is_slow()


def test_packed_in_inference_mode_and_trained_through_later(layer: nn.Linear, precision: torch.dtype) -> None:
    some = inputs(4, 192)
    pack_frozen(layer)
    with half(precision), torch.inference_mode():
        layer(some)
    with half(precision):
        leaf = some.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(layer(leaf).float().square().sum(), leaf, create_graph=True)
        gradient.square().sum().backward()
    assert leaf.grad is not None
    layer.weight[200].add_(1.0)
    with half(precision), torch.inference_mode():
        changed = layer(some)
    torch.testing.assert_close(changed.float(), nn.functional.linear(some, layer.weight, layer.bias), rtol=0, atol=0.1)


def test_weights_made_in_inference_mode() -> None:
    """Of them nobody knows whether they have been changed."""
    with torch.inference_mode():
        layer = nn.Linear(192, 256).requires_grad_(False)
        pack_frozen(layer)
        with half():
            before = layer(inputs(4, 192))
            layer.weight.zero_()
            layer.bias.zero_()
            assert not torch.equal(layer(inputs(4, 192)), before)


@needs_packing
def test_copies_and_pickles_have_weights_of_their_own(layer: nn.Linear) -> None:
    some = inputs(4, 192)
    pack_frozen(layer)
    with half(), torch.no_grad():
        expected = layer(some)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(other(some), expected)
            other.weight.zero_()
            other.bias.zero_()
            assert not other(some).any()
            assert torch.equal(layer(some), expected)
    assert set(layer.state_dict()) == {"weight", "bias"}


@needs_packing
def test_scopes_within_each_other(layer: nn.Linear) -> None:
    model = nn.Sequential(layer, nn.Linear(4, 4).requires_grad_(False))
    with packed(model):
        assert "forward" not in vars(model[1])  # too small
        with packed(model):
            pass
        packs(layer)
    assert "forward" not in vars(layer)
    pack_frozen(model)
    with half(), torch.no_grad():
        layer(inputs(4, 192))
    bytes_packed = tensor_bytes(model)
    unpack(model.modules())
    assert bytes_packed - tensor_bytes(model) == 2 * layer.weight.numel()


def test_a_torch_without_these_operators(layer: nn.Linear, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_form(*_: object) -> None:
        raise RuntimeError("mkldnn::_linear_pointwise() is missing value for argument")

    monkeypatch.setattr(packing, "product", other_form)
    packing._tried_precisions.cache_clear()
    try:
        assert not packed_precisions()
        with packed(layer), half():
            assert layer(inputs(4, 192)).shape == (4, 256)
        assert "forward" not in vars(layer)
    finally:
        packing._tried_precisions.cache_clear()


def test_what_is_expected_is_counted_before_its_use(layer: nn.Linear, precision: torch.dtype) -> None:
    bare, size = tensor_bytes(layer), layer.weight.numel()
    assert pack_frozen(layer) == [layer]
    assert tensor_bytes(layer) == bare  # nothing is expected, and nothing packed
    expect(layer, [precision, torch.float16])  # in the latter nothing is gained
    packs = precision.itemsize * size
    assert packed_bytes(layer, precision) == packs
    assert packed_bytes(layer, torch.float16) == 0
    assert tensor_bytes(copy.deepcopy(layer)) == tensor_bytes(layer) == bare + packs
    assert tensor_bytes(layer, packed=False) == bare
    with half(precision):
        layer(inputs(4, 192).requires_grad_())
    assert tensor_bytes(layer) == bare + 2 * packs
    for other in set(packed_precisions()) - {precision}:
        expect(layer, {precision, other})
        assert tensor_bytes(layer) == bare + 2 * packs + other.itemsize * size
        expect(layer, {other})  # what is packed in the first is freed
        assert tensor_bytes(layer) == bare + other.itemsize * size
        assert not vars(layer)["forward"]._packed


def test_gelu_in_the_same_pass_unless_someone_looks(layer: nn.Linear, precision: torch.dtype) -> None:
    activation, some = nn.GELU(), inputs(4, 192)
    pack_frozen(layer)
    calls: list[str] = []
    with half(precision), torch.no_grad():
        apart = activation(layer(some))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(packing, "product", lambda *a: calls.append(a[3] if len(a) > 3 else "none") or product(*a))
            together = linear_gelu(layer, activation, some)
            assert calls == ["gelu"]
            for module in (layer, activation):
                handle = module.register_forward_hook(lambda *_: None)
                assert torch.equal(linear_gelu(layer, activation, some), apart)
                handle.remove()
            assert torch.equal(linear_gelu(layer, nn.ReLU(), some), layer(some).relu())
            assert calls[1:] == ["none"] * 4
    exact = nn.functional.gelu(
        some.to(precision).double() @ layer.weight.to(precision).double().T + layer.bias.double()
    )
    assert (together.double() - exact).abs().mean() <= (apart.double() - exact).abs().mean()
    leaf = some.clone().requires_grad_()
    with half(precision):
        linear_gelu(layer, activation, leaf).float().sum().backward()
    assert leaf.grad is not None


@needs_packing
def test_called_as_a_linear_layer_is(layer: nn.Linear) -> None:
    some = inputs(4, 192)
    pack_frozen(layer)
    with half(), torch.no_grad():
        assert torch.equal(layer(input=some), layer(some))
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            layer(inputs(4, 191))


@needs_packing
def test_weights_that_are_exchanged(layer: nn.Linear) -> None:
    pack_frozen(layer)
    with half(), torch.no_grad():
        before = layer(inputs(4, 192))
        layer.weight.data = layer.weight * 2
        assert not torch.equal(layer(inputs(4, 192)), before)


def test_a_change_that_no_looked_at_value_shows(layer: nn.Linear, precision: torch.dtype) -> None:
    """Of those that torch tells of."""
    pack_frozen(layer)
    with half(precision), torch.no_grad():
        before = layer(inputs(4, 192))
        layer.weight[200].add_(1.0)
        after = layer(inputs(4, 192))
    assert torch.equal(after[:, :200], before[:, :200])
    torch.testing.assert_close((after - before)[:, 200].float(), inputs(4, 192).sum(dim=1), rtol=0, atol=0.3)


def test_weights_that_an_optimizer_changes_in_silence(layer: nn.Linear, precision: torch.dtype) -> None:
    """A fused one does not raise the version of a tensor, and may leave the values that are looked at."""
    some = inputs(16, 192)
    pack_frozen(layer)
    with half(precision), torch.no_grad():
        before, version = layer(some), layer.weight._version
    layer.requires_grad_()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.0, fused=True)
    with half(precision):
        layer(some).float().square().sum().backward()
    assert not vars(layer)["forward"]._packed
    optimizer.step()
    layer.requires_grad_(False)
    assert layer.weight._version == version
    with half(precision), torch.no_grad():
        after, plain = layer(some), nn.functional.linear(some, layer.weight, layer.bias)
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, plain)


def test_weights_of_another_shape_in_the_same_place(precision: torch.dtype) -> None:
    layer = nn.Linear(192, 192, bias=False).requires_grad_(False)
    pack_frozen(layer)
    with half(precision), torch.no_grad():
        layer(inputs(4, 192))
        for changed in (layer.weight.T, layer.weight.T[:128]):
            layer.weight.data = changed
            torch.testing.assert_close(layer(inputs(4, 192)), nn.functional.linear(inputs(4, 192), layer.weight))


def test_weights_that_are_not_numbers_are_packed_once(
    layer: nn.Linear, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    packs: list[torch.dtype] = []
    monkeypatch.setattr(packing, "pack_weight", lambda weight, dtype: packs.append(dtype) or pack_weight(weight, dtype))
    with torch.no_grad():
        layer.weight[0, 0] = torch.nan
    pack_frozen(layer)
    with half(precision), torch.no_grad():
        assert layer(inputs(4, 192)).isnan().any()
        layer(inputs(4, 192))
    assert packs == [precision]


def test_packs_and_layers_are_freed_at_once(layer: nn.Linear, precision: torch.dtype) -> None:
    """Not at the next collection of garbage."""
    model = nn.Sequential(nn.Linear(192, 192), nn.GELU()).requires_grad_(False)
    pack_frozen(model)
    with half(precision), torch.no_grad():
        model(inputs(4, 192))
    kept, packs = weakref.ref(model[0]), weakref.ref(vars(model[0])["forward"])
    gc.disable()
    try:
        del model
        assert kept() is packs() is None
    finally:
        gc.enable()
    pack_frozen(layer)
    with half(precision), torch.no_grad():
        layer(inputs(4, 192))
        assert vars(layer)["forward"]._packed
        layer.bfloat16()(inputs(4, 192).bfloat16())
        assert not vars(layer)["forward"]._packed
    with pytest.raises(ReferenceError, match="the layer of this forward is gone"):
        PackedForward(nn.Linear(1, 1))(inputs(1, 1))


@needs_packing
def test_inputs_that_are_no_plain_tensors(layer: nn.Linear) -> None:
    some = inputs(4, 192)
    several = [some[:1], some[1:]]
    with torch.no_grad():
        wanted, nested = layer(some), layer(torch.nested.nested_tensor(several))
        pack_frozen(layer)
        assert torch.equal(layer(some.to_sparse()), nn.functional.linear(some.to_sparse(), layer.weight, layer.bias))
        found = layer(torch.nested.nested_tensor(several))
    assert all(map(torch.equal, found.unbind(), nested.unbind()))
    torch.testing.assert_close(torch.cat(found.unbind()), wanted)


def test_products_are_counted(layer: nn.Linear, precision: torch.dtype) -> None:
    pack_frozen(layer)
    with FlopCounterMode(display=False) as counted, half(precision), torch.no_grad():
        layer(inputs(2, 5, 192))
    assert counted.get_total_flops() == 2 * 10 * 192 * 256


def test_what_is_asked_where_nothing_is_computed_is_asked_again() -> None:
    packing._tried_precisions.cache_clear()
    known = packed_precisions()
    packing._tried_precisions.cache_clear()
    with FakeTensorMode():
        assert packed_precisions() == ()
    with torch.device("meta"):
        assert packed_precisions() == known
    assert packed_precisions() == known


@needs_packing
def test_a_compiled_model_stays_as_it_is(layer: nn.Linear) -> None:
    assert not pack_frozen(torch.compile(nn.Sequential(layer)))
    model = nn.Sequential(layer)
    model.compile()
    assert not pack_frozen(model)


@needs_packing
def test_code_around_a_packed_model_is_compiled_as_a_whole(layer: nn.Linear) -> None:
    some, wanted = inputs(4, 192), layer(inputs(4, 192)) + 1
    pack_frozen(layer)
    compiled = torch.compile(lambda x: layer(x) + 1, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(some), wanted)


@pytest.mark.parametrize("shape", [(64, 319), (192, 256), (384, 384), (384, 1536), (1, 16384)])
def test_looked_at_values_lie_all_over(shape: tuple[int, int]) -> None:
    places = torch.arange(shape[0] * shape[1], dtype=torch.int32).view(torch.float32).view(shape[1], shape[0])
    for weight in (places, places.mT):
        found = packing._probe(weight)
        assert 32 <= len(found) <= packing.PROBED
        for size in shape:
            assert len((found % size).unique()) > min(size, len(found)) // 2


@needs_packing
def test_half_precision_inputs_are_packed_too(layer: nn.Linear) -> None:
    pack_frozen(layer)
    with half(), torch.no_grad():
        wanted = layer(inputs(4, 192))
        vars(layer)["forward"]._packed.clear()
        assert torch.equal(layer(inputs(4, 192).bfloat16()), wanted)
    assert vars(layer)["forward"]._packed


@needs_packing
def test_changes_that_torch_does_not_tell_of(layer: nn.Linear) -> None:
    """As huggingface/peft merges; and an address that is used again."""
    some = inputs(4, 192)
    pack_frozen(layer)
    with half(), torch.no_grad():
        before = layer(some)
        layer.weight.data += torch.randn(256, 4) @ torch.randn(4, 192)
        merged = layer(some)
        assert not torch.equal(merged, before)
        unpack([layer])
        torch.testing.assert_close(merged.float(), layer(some).float(), atol=0.5, rtol=0.02)
    large = nn.Linear(1024, 1024).requires_grad_(False)
    pack_frozen(large)
    some = inputs(2, 1024)
    with half(), torch.no_grad():
        for _ in range(5):
            large(some)
            large.weight.data = torch.randn(1024, 1024)
            large.weight.data = torch.full((1024, 1024), 2.0)
            expected = (2 * some.bfloat16().double().sum(1, keepdim=True) + large.bias.double()).float()
            torch.testing.assert_close(large(some).float(), expected, atol=2, rtol=0.02)


@needs_packing
def test_a_layer_that_changes_its_class(layer: nn.Linear) -> None:
    class Negative(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return -super().forward(input)

    some = inputs(4, 192)
    pack_frozen(layer)
    with half(), torch.no_grad():
        before = layer(some)
        layer.__class__ = Negative
        assert torch.equal(layer(some), -before)


@needs_packing
def test_whoever_looks_inside_sees_torchs_products(layer: nn.Linear) -> None:
    some = inputs(4, 192)
    pack_frozen(layer)
    with half(), torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
        layer(some)
    with half(), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(some, torch.ones_like(some))
        assert torch.autograd.forward_ad.unpack_dual(layer(dual)).tangent is not None
    assert not packs(layer)._packed
    whole = nn.Sequential(nn.Linear(192, 256).requires_grad_(False))
    whole.compile(backend="eager")
    assert not pack_frozen(whole)


class Switched:
    """A hook as the methods' are."""

    enabled = False

    def __call__(self, module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        assert self.enabled


@needs_packing
def test_a_hook_that_does_not_act_changes_no_digit(layer: nn.Linear) -> None:
    activation, some, hook = nn.GELU(), inputs(4, 192), Switched()
    pack_frozen(layer)
    with half(), torch.no_grad():
        expected = linear_gelu(layer, activation, some)
        layer.register_forward_hook(hook)
        assert torch.equal(linear_gelu(layer, activation, some), expected)
        hook.enabled = True
        assert torch.equal(linear_gelu(layer, activation, some), activation(layer(some)))


@needs_packing
def test_a_derived_layer_is_not_touched() -> None:
    class Own(nn.Linear):
        def forward(self, some: Tensor) -> Tensor:
            return super().forward(some) + 1

    assert not pack_frozen(Own(192, 256).requires_grad_(False))


def step(model: nn.Module, points: Tensor, precision: torch.dtype) -> list[Tensor | None]:
    """Loss and gradients in a precision."""
    with half(precision):
        loss = model(points).logits.float().square().sum()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, trained, allow_unused=True)]


@pytest.mark.parametrize("method", ["lora", "dapt_x", "e3va_x", "ssf", "bitfit"])
def test_steps_of_a_whole_model(method: str, points: Tensor, precision: torch.dtype) -> None:
    """Gradients of all that is trained, with and without; LoRA changes what packed layers return."""
    model = randomise(build_model(small_config(method, backbone={"dim": 192}))).eval()
    expected = step(model, points, precision)
    with packed(model):
        found = step(model, points, precision)
        held = [module for module in model.modules() if "forward" in vars(module)]
        assert held
        assert any(packs(module)._packed for module in held)
    largest = max(float(gradient.norm()) for gradient in expected[1:] if gradient is not None)
    for ours, theirs in zip(found, expected, strict=True):
        if ours is None or theirs is None or theirs.norm() < 1e-3 * largest:
            assert (ours is None) == (theirs is None)
            continue
        assert (ours - theirs).norm() < (0.1 if precision == torch.bfloat16 else 1e-3) * theirs.norm()
