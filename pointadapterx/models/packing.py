"""Frozen linear layers whose weights are brought into oneDNN's layout once, not in every product.

Under autocast each product of a frozen layer converts the weights to bf16, and oneDNN brings them into the order that
its kernels read; both are the same every time. Here both are done once, and once more, transposed, for the gradient of
a layer's input.

In fp32, torch multiplies with MKL, whose kernels take more than twice the time of oneDNN's on AMD's processors with
AVX-512. There packed weights serve in fp32, too.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from math import gcd
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pointadapterx.models.inspected import acts_alone, is_dispatched, is_plain_call

log = logging.getLogger(__name__)

LEAST_WEIGHTS = 2**14
"""Smaller layers gain nothing."""

PROBED = 64
"""Values of a layer that are looked at in every product, to notice changes that torch does not tell."""

CPUINFO = Path("/proc/cpuinfo")
"""Linux' description of the processor."""


class _Packed(NamedTuple):
    """Of one state of a layer's weights.

    Attributes:
        source: the weights.
        version: how often they have been changed in place, where they lie, and how.
        probe: the bits of some of them, a view, which keeps their memory, so that no others can get it meanwhile.
        values: of the probe.
        weight: (out, in) in one precision, in oneDNN's layout.
        across: the same of the transposed weights, or None until a gradient is wanted.
    """

    source: Tensor
    version: tuple[object, ...]
    probe: Tensor
    values: Tensor
    weight: Tensor
    across: Tensor | None


class PackedForward:
    """The forward of a linear layer: from packed weights where it can be, else as ever.

    Args:
        layer: the layer, whose attribute ``forward`` this becomes.

    Attributes:
        expected: precisions that :attr:`nbytes` counts before they are used.
    """

    same = True  # for acts_alone

    def __init__(self, layer: nn.Linear) -> None:
        self._layer = weakref.ref(layer)  # else a model would be freed at the next collection of garbage alone
        self.expected = set[torch.dtype]()
        self._packed: dict[torch.dtype, _Packed] = {}

    @property
    def layer(self) -> nn.Linear:
        """Whose forward this is."""
        layer = self._layer()
        if layer is None:
            raise ReferenceError("the layer of this forward is gone")
        return layer

    def __call__(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out), bf16 under autocast."""
        dtype = self._precision(input)
        if dtype is None:
            return type(self.layer).forward(self.layer, input)
        wanted = torch.is_grad_enabled() and input.requires_grad
        trained = self.layer.bias if self._trains_bias() else None
        packed, bias = self._current(dtype, with_across=wanted), None if trained is not None else self._bias(dtype)
        if wanted:
            output: Tensor = _PackedLinear.apply(input.to(dtype), packed.weight, packed.across, bias)
        else:
            output = product(input.to(dtype), packed.weight, bias)
        return output if trained is None else output + trained.to(dtype)

    def gelu(self, inputs: Tensor) -> Tensor | None:
        """GELU of the output, rounded once instead of twice; None where a gradient is wanted, or nothing is packed."""
        dtype = self._precision(inputs)
        if dtype is None or self._trains_bias() or (torch.is_grad_enabled() and inputs.requires_grad):
            return None
        packed = self._current(dtype, with_across=False)
        return product(inputs.to(dtype), packed.weight, self._bias(dtype), "gelu")

    @property
    def nbytes(self) -> int:
        """Of what is packed, and of what is expected to be."""
        packed = dict(self._packed)  # another thread may compute
        both_ways = {dtype for dtype, one in packed.items() if one.across is not None}
        held = self.expected | packed.keys()
        return self.layer.weight.numel() * sum(dtype.itemsize * (1 + (dtype in both_ways)) for dtype in held)

    def expect(self, precisions: Collection[torch.dtype]) -> None:
        """Counts these from now on, and frees what is packed in others."""
        self.expected = set(precisions)
        self._packed = {dtype: packed for dtype, packed in self._packed.items() if dtype in precisions}

    def __getstate__(self) -> dict[str, Any]:
        """Without what can be packed again: copies and pickles of a model do not know oneDNN's layouts."""
        return {"layer": self.layer, "expected": set(self.expected)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of the copy's layer."""
        self._layer, self.expected, self._packed = weakref.ref(state["layer"]), state["expected"], {}

    def _precision(self, inputs: Tensor) -> torch.dtype | None:
        """In which a product is packed, or None where it cannot be."""
        if torch.compiler.is_compiling():
            return None
        if not self._keeps_weights():
            self._packed = {}  # an optimizer may change them before they are frozen again, and need not tell
            return None
        if not (
            is_plain_call(inputs)
            and inputs.numel() > 0
            and inputs.shape[-1] == self.layer.weight.shape[1]  # else torch says what is wrong
            and torch.backends.mkldnn.enabled
        ):
            return None
        half = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if half else torch.float32
        accepted = (torch.float32, torch.bfloat16) if half else (torch.float32,)
        return dtype if inputs.dtype in accepted and dtype in packed_precisions() else None

    def _keeps_weights(self) -> bool:
        """Whether the layer is what it was, and nobody trains its weights."""
        layer = self.layer
        weight, bias = layer.weight, layer.bias
        if type(layer) is not nn.Linear or weight.requires_grad:
            return False
        return _is_plain(weight) and (bias is None or _is_plain(bias))

    def _trains_bias(self) -> bool:
        return self.layer.bias is not None and self.layer.bias.requires_grad and torch.is_grad_enabled()

    def _bias(self, dtype: torch.dtype) -> Tensor | None:
        return None if self.layer.bias is None else self.layer.bias.detach().to(dtype)

    def _current(self, dtype: torch.dtype, *, with_across: bool) -> _Packed:
        """Packs what is not yet, or not as it is now."""
        weight, packed = self.layer.weight, self._packed.get(dtype)
        version = weight._version, weight.data_ptr(), weight.shape, weight.stride()
        if (
            packed is None
            or packed.source is not weight
            or packed.version != version
            or not torch.equal(packed.probe, packed.values)
        ):
            self._packed = {
                kept: one for kept, one in self._packed.items() if one.source is weight and one.version == version
            }
            probe = _probe(weight)
            packed = _Packed(weight, version, probe, probe.clone(), pack_weight(weight, dtype), None)
        if with_across and packed.across is None:
            packed = packed._replace(across=pack_weight(weight.mT, dtype))
        self._packed[dtype] = packed
        return packed


def _is_plain(parameter: Tensor) -> bool:
    return (
        type(parameter) in (nn.Parameter, Tensor)
        and parameter.device.type == "cpu"
        and parameter.dtype == torch.float32
        and not parameter.is_inference()  # of which nobody knows whether it has been changed
    )


@torch.no_grad()
def _probe(weight: Tensor) -> Tensor:
    """A view of values all over (out, in), in other rows and columns; as bits, of which NaN equals NaN."""
    values = weight.detach()
    flat = next((one.view(-1) for one in (values, values.mT) if one.is_contiguous()), None)
    if flat is None:
        return values.diagonal()[:PROBED].view(torch.int32)
    step = len(flat) // PROBED + 1
    while gcd(step, len(flat)) > 1:  # else it may meet one column alone
        step += 1
    return flat[::step].view(torch.int32)


@torch.no_grad()
def pack_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """(out, in) -> the same in a precision, in oneDNN's layout."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype).contiguous(), None)
    return packed


def product(inputs: Tensor, weight: Tensor, bias: Tensor | None, then: Literal["none", "gelu"] = "none") -> Tensor:
    """(..., in) and packed (out, in) -> (..., out), all in one precision; ``then`` is applied before it is rounded."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, then, [], "none")
    return result


def linear_gelu(linear: nn.Module, activation: nn.Module, inputs: Tensor) -> Tensor:
    """(..., in) -> GELU of a layer's (..., out), in one pass where the layer is packed and nobody looks in between."""
    forward = vars(linear).get("forward")
    if (
        isinstance(forward, PackedForward)
        and type(activation) is nn.GELU
        and activation.approximate == "none"
        and acts_alone(linear, activation)
        and (both := forward.gelu(inputs)) is not None
    ):
        return both
    output: Tensor = activation(linear(inputs))
    return output


class _PackedLinear(torch.autograd.Function):
    """Inputs (..., in), weights packed both ways, bias -> (..., out); the inputs alone get a gradient."""

    @staticmethod
    def forward(inputs: Tensor, weight: Tensor, across: Tensor, bias: Tensor | None) -> Tensor:
        return product(inputs, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keeps the weights, which need no version of their own."""
        ctx.weight, ctx.across = inputs[1], inputs[2]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """g W, which has a gradient in turn."""
        return _PackedLinear.apply(gradient, ctx.across, ctx.weight, None), None, None, None


def packed_precisions() -> tuple[torch.dtype, ...]:
    """Those whose products are faster from packed weights with this torch, on this processor; none without oneDNN."""
    return () if is_dispatched() else _tried_precisions()


@cache
def _tried_precisions() -> tuple[torch.dtype, ...]:
    wanted = (torch.bfloat16, torch.float32) if _mkl_is_slow() else (torch.bfloat16,)
    return tuple(dtype for dtype in wanted if _multiplies(dtype))


def _mkl_is_slow() -> bool:
    """Whether torch multiplies fp32 with MKL on an AMD processor with AVX-512."""
    if not torch.backends.mkl.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        return "AuthenticAMD" in CPUINFO.read_text(errors="replace")
    except OSError:  # not Linux
        return False


def _multiplies(dtype: torch.dtype) -> bool:
    """Whether this torch has oneDNN's products with packed weights, and this processor computes them."""
    operators = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not all(
        hasattr(operators, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
    ):
        return False
    try:
        weight, inputs = torch.eye(16, dtype=dtype, device="cpu"), torch.ones(2, 16, dtype=dtype, device="cpu")
        return torch.equal(product(inputs, pack_weight(weight, dtype), None), inputs)
    except (
        RuntimeError,
        TypeError,
        AttributeError,
    ) as error:  # operators of torch's own use, which another may not have
        log.debug("no packed weights in %s: %s", dtype, error)
        return False


def pack_frozen(model: nn.Module) -> list[nn.Linear]:
    """Gives the frozen linear layers of a model, of any library, a forward that packs their weights at its first use.

    It acts on a CPU under autocast to bf16, and in fp32 on AMD's processors with AVX-512; everywhere else nothing
    changes, nor for a layer that is trained later, nor in a model that torch.compile compiles as a whole. It costs
    2 bytes a weight (4 in fp32), and as many again in training. Weights that are changed in place, or replaced, are
    packed again. A change through ``.data``, which torch does not tell of, is noticed by some values of each layer;
    call :func:`unpack` before one that may leave those as they were, and before ``copy.copy`` of a layer, whose copy
    would compute with the layer's weights.

    Args:
        model: in place.

    Returns:
        The layers that did not have it before.
    """
    if not packed_precisions():
        return []
    layers = [
        module
        for module in model.modules()
        if type(module) is nn.Linear
        and "forward" not in vars(module)
        and module.weight.numel() >= LEAST_WEIGHTS
        and module.weight.device.type == "cpu"
        and not module.weight.requires_grad
    ]
    layers = [] if any(map(_is_compiled, model.modules())) else layers
    for layer in layers:
        vars(layer)["forward"] = PackedForward(layer)
    return layers


def _is_compiled(module: nn.Module) -> bool:
    """By ``module.compile()``, or what ``torch.compile(module)`` returned."""
    return vars(module).get("_compiled_call_impl") is not None or "_orig_mod" in module._modules


def expect(model: nn.Module, precisions: Collection[torch.dtype]) -> None:
    """Counts the packs of a model as if all were there, and frees those in other precisions.

    Args:
        model: after :func:`pack_frozen`.
        precisions: that it will compute in.
    """
    for forward in _forwards(model):
        forward.expect(set(precisions).intersection(packed_precisions()))


def packed_bytes(model: nn.Module, precision: torch.dtype) -> int:
    """Memory of packs of all layers after :func:`pack_frozen`, without those for gradients."""
    if precision not in packed_precisions():
        return 0
    return sum(forward.layer.weight.numel() * precision.itemsize for forward in _forwards(model))


def _forwards(model: nn.Module) -> Iterator[PackedForward]:
    for module in model.modules():
        if isinstance(forward := vars(module).get("forward"), PackedForward):
            yield forward


def unpack(layers: Iterable[nn.Module]) -> None:
    """Takes back :func:`pack_frozen`; of a whole model with ``model.modules()``."""
    for layer in layers:
        if isinstance(vars(layer).get("forward"), PackedForward):
            del layer.forward


@contextmanager
def packed(model: nn.Module) -> Iterator[None]:
    """:func:`pack_frozen` for a while."""
    layers = pack_frozen(model)
    try:
        yield
    finally:
        unpack(layers)


def tensor_bytes(module: nn.Module, *, packed: bool = True) -> int:
    """Memory of a module's parameters and buffers, and of what :func:`pack_frozen` adds to it."""
    packs = sum(forward.nbytes for forward in _forwards(module)) if packed else 0
    return packs + sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
