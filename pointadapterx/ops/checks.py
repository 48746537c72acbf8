"""All checks of the arguments of point operations, with their messages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

_UNCHECKED: ContextVar[bool] = ContextVar("pointadapterx_unchecked", default=False)
_HALF = (torch.float16, torch.bfloat16)
_NATIVE = (torch.float32, torch.float64)
_INDEX = (torch.int64, torch.int32)


@contextmanager
def unchecked() -> Iterator[None]:
    """Skips the checks that read the data: non-finite coordinates and indices out of range.

    For loops over a data set that was validated once. On a CUDA device each of these checks waits for the
    device. Shapes and types are always checked, and no kernel reads outside its inputs either way.
    """
    token = _UNCHECKED.set(True)
    try:
        yield
    finally:
        _UNCHECKED.reset(token)


def cloud(points: Tensor, name: str, dims: int | None = 3) -> Tensor:
    """A batch of clouds (B, N, D) in float32 or float64; half precision is upcast to float32.

    Args:
        points: what the caller passed.
        name: its name, for messages.
        dims: D, or ``None`` for any D >= 1.

    Raises:
        TypeError: if ``points`` is not a floating-point tensor.
        ValueError: if its shape is wrong, a cloud is empty, or a coordinate is not finite.
    """
    points = _coordinates(points, name, dims)
    _require_finite(points, name)
    return points


def ragged_cloud(
    points: Tensor, lengths: Tensor | None, names: tuple[str, str], dims: int | None = 3
) -> tuple[Tensor, Tensor]:
    """A batch of clouds (B, N, D) of which lengths (B,) are real, as int64; without lengths, all points are.

    Args:
        points: what the caller passed.
        lengths: what the caller passed.
        names: of points and lengths, for messages.
        dims: D, or ``None`` for any D >= 1.

    Raises:
        TypeError: as :func:`cloud`, or if ``lengths`` is not an int64 or int32 tensor.
        ValueError: as :func:`cloud` for the real points, or if ``lengths`` does not fit the clouds.
    """
    points = _coordinates(points, names[0], dims)
    if lengths is None:
        lengths = torch.full(points.shape[:1], points.shape[1], dtype=torch.int64, device=points.device)
        _require_finite(points, names[0])
    else:
        lengths = lengths_of(lengths, names[1], points, names[0])
        _require_finite(points, names[0], lengths)
    return points, lengths


def _coordinates(points: Tensor, name: str, dims: int | None) -> Tensor:
    """A batch of clouds in float32 or float64, of any values."""
    _require_tensor(points, name)
    if points.dtype not in _NATIVE + _HALF:
        raise TypeError(f"{name} has dtype {points.dtype}; coordinates must be floating-point: pass {name}.float()")
    wanted = f"(B, N, {dims or 'D'})"
    if points.dim() != 3:
        hint = f"; add a batch axis: {name}.unsqueeze(0)" if points.dim() == 2 else ""
        raise ValueError(f"{name} has shape {tuple(points.shape)}, expected {wanted}{hint}")
    if dims is not None and points.shape[-1] != dims:
        raise ValueError(
            f"{name} has shape {tuple(points.shape)}, expected {wanted}: {points.shape[-1]} values per point; "
            f"pass {name}[..., :{dims}] if further channels follow, or transpose a channels-first layout"
        )
    if points.shape[1] == 0 or points.shape[2] == 0:
        raise ValueError(f"{name} has shape {tuple(points.shape)}: its clouds are empty; drop them beforehand")
    return points.float() if points.dtype in _HALF else points


def pair(first: Tensor, second: Tensor, names: tuple[str, str], dims: int | None) -> tuple[Tensor, Tensor]:
    """Two batches of clouds, (B, M, D) and (B, N, D), that agree in B, D and device; in one dtype.

    Raises:
        TypeError, ValueError: as :func:`cloud`, or if the two do not fit together.
    """
    return _fitting(cloud(first, names[0], dims), cloud(second, names[1], dims), names)


def ragged_pair(
    query: Tensor, points: Tensor, query_lengths: Tensor | None, lengths: Tensor | None, dims: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The arguments of a search as :func:`pair`, with the lengths of both.

    Raises:
        TypeError, ValueError: as :func:`ragged_cloud`, or if the clouds do not fit together.
    """
    query, query_lengths = ragged_cloud(query, query_lengths, ("query", "query_lengths"), dims)
    points, lengths = ragged_cloud(points, lengths, ("points", "lengths"), dims)
    return *_fitting(query, points, ("query", "points")), query_lengths, lengths


def _fitting(first: Tensor, second: Tensor, names: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """Two batches of clouds in one dtype."""
    _require_same_batch(first, names[0], second, names[1])
    if first.shape[-1] != second.shape[-1]:
        raise ValueError(
            f"{names[0]} has {first.shape[-1]} values per point and {names[1]} {second.shape[-1]}; "
            "pass the same coordinates of both"
        )
    dtype = torch.promote_types(first.dtype, second.dtype)
    return first.to(dtype), second.to(dtype)


def features(points: Tensor, name: str, batch_of: Tensor, batch_name: str) -> Tensor:
    """Per-point values (B, N, C) of any dtype, on the device of, and with as many clouds as, ``batch_of``."""
    _require_tensor(points, name)
    _require_tensor(batch_of, batch_name)
    if points.dim() != 3:
        raise ValueError(f"{name} has shape {tuple(points.shape)}, expected (B, N, C)")
    if points.shape[1] == 0:
        raise ValueError(f"{name} has shape {tuple(points.shape)}: its clouds are empty; drop them beforehand")
    _require_same_batch(points, name, batch_of, batch_name)
    return points


def indices(indices: Tensor, name: str, dims: int, count: int) -> Tensor:
    """Point indices with ``dims`` axes, each in [0, count); int32 is widened to int64.

    Raises:
        TypeError: if ``indices`` is not an int64 or int32 tensor.
        ValueError: if its number of axes is wrong.
        IndexError: if an index is out of range.
    """
    _require_tensor(indices, name)
    if indices.dtype not in _INDEX:
        raise TypeError(f"{name} has dtype {indices.dtype}; indices must be int64 or int32: pass {name}.long()")
    if indices.dim() != dims:
        raise ValueError(f"{name} has shape {tuple(indices.shape)}, expected {dims} axes, the first one B")
    indices = indices.long()
    if _reads_data(indices) and indices.numel() > 0:
        wrong = (indices < 0) | (indices >= count)
        if bool(wrong.any()):
            place = wrong.nonzero()[0].tolist()
            raise IndexError(
                f"{name}{place} is {indices[tuple(place)].item()}, outside the {count} points of each cloud; "
                f"valid indices are 0 to {count - 1}"
            )
    return indices


def lengths_of(lengths: Tensor, name: str, points: Tensor, points_name: str) -> Tensor:
    """How many points of each cloud are real: (B,) in [1, N], as int64.

    Raises:
        TypeError: if ``lengths`` is not an int64 or int32 tensor.
        ValueError: if its shape, device or a value does not fit.
    """
    _require_tensor(points, points_name)
    _require_tensor(lengths, name)
    if lengths.dtype not in _INDEX:
        raise TypeError(f"{name} has dtype {lengths.dtype}; lengths must be int64 or int32: pass {name}.long()")
    if lengths.shape != points.shape[:1]:
        raise ValueError(
            f"{name} has shape {tuple(lengths.shape)}, expected ({points.shape[0]},), one for each cloud of "
            f"{points_name}"
        )
    _require_same_device(points, points_name, lengths, name)
    lengths = lengths.long()
    if _reads_data(lengths) and bool((wrong := (lengths < 1) | (lengths > points.shape[1])).any()):
        place = int(wrong.nonzero()[0])
        raise ValueError(
            f"{name}[{place}] is {lengths[place].item()}; a cloud of {points_name} has 1 to {points.shape[1]} points: "
            "drop empty clouds beforehand"
        )
    return lengths


def offsets_of(offsets: Tensor, name: str, values: Tensor, values_name: str) -> Tensor:
    """Where the clouds of flat values (T, ...) begin and end: (B + 1,), rising from 0 to T, as int64.

    Raises:
        TypeError: if ``offsets`` is not an int64 or int32 tensor.
        ValueError: if its shape, device or a value does not fit.
    """
    _require_tensor(offsets, name)
    _require_tensor(values, values_name)
    if offsets.dtype not in _INDEX:
        raise TypeError(f"{name} has dtype {offsets.dtype}; offsets must be int64 or int32: pass {name}.long()")
    if offsets.dim() != 1 or len(offsets) < 2:
        raise ValueError(f"{name} has shape {tuple(offsets.shape)}, expected (B + 1,) for B clouds")
    _require_same_device(values, values_name, offsets, name)
    offsets = offsets.long()
    if int(offsets[0]) != 0 or int(offsets[-1]) != len(values):
        raise ValueError(
            f"{name} goes from {int(offsets[0])} to {int(offsets[-1])}; it must go from 0 to the {len(values)} points "
            f"of {values_name}"
        )
    if bool((wrong := offsets.diff() < 1).any()):
        place = int(wrong.nonzero()[0])
        raise ValueError(
            f"cloud {place} of {name} has {int(offsets.diff()[place])} points; drop empty clouds beforehand"
        )
    return offsets


def count(value: int, name: str, available: int | None = None) -> int:
    """An integer of at least 1 and at most ``available``.

    Raises:
        TypeError: if ``value`` is not an int.
        ValueError: if it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} must be an int, got {value!r} ({type(value).__name__})")
    if value < 1:
        raise ValueError(f"{name}={value} must be at least 1")
    if available is not None and value > available:
        raise ValueError(
            f"{name}={value} exceeds the {available} points per cloud; "
            f"lower {name} or pass clouds of at least {value} points"
        )
    return value


def start(value: int, available: int, lengths: Tensor | None = None) -> int:
    """The index of the first sample, in [0, available) and below each length."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"start must be an int, got {value!r} ({type(value).__name__})")
    if not 0 <= value < available:
        raise ValueError(f"start={value} is not a point: each cloud has points 0 to {available - 1}")
    if lengths is not None and value > 0 and _reads_data(lengths) and bool((short := lengths <= value).any()):
        place = int(short.nonzero()[0])
        raise ValueError(f"start={value} is not a point of cloud {place}, which has points 0 to {lengths[place] - 1}")
    return value


def radius(value: float) -> float:
    """A finite radius above zero."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"radius must be a number, got {value!r} ({type(value).__name__})")
    if not 0 < value < float("inf"):
        raise ValueError(f"radius={value} must be positive and finite")
    return float(value)


def choice(value: str, name: str, known: tuple[str, ...]) -> str:
    """One of a few words."""
    if value not in known:
        raise ValueError(f"{name}={value!r} is unknown; choose one of: {', '.join(known)}")
    return value


def same_shape(first: Tensor, first_name: str, second: Tensor, second_name: str) -> None:
    """Two tensors of one shape on one device."""
    _require_tensor(first, first_name)
    if first.shape != second.shape:
        raise ValueError(
            f"{first_name} has shape {tuple(first.shape)} and {second_name} {tuple(second.shape)}; they must be equal"
        )
    _require_same_device(first, first_name, second, second_name)


def floating(values: Tensor, name: str) -> None:
    """Checks that a tensor is floating-point, of any shape."""
    _require_tensor(values, name)
    if not values.is_floating_point():
        raise TypeError(f"{name} has dtype {values.dtype}; it must be floating-point: pass {name}.float()")


def _require_tensor(value: Tensor, name: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}; convert it with torch.as_tensor")


def _require_same_batch(first: Tensor, first_name: str, second: Tensor, second_name: str) -> None:
    if first.shape[0] != second.shape[0]:
        raise ValueError(
            f"{first_name} has {first.shape[0]} clouds and {second_name} {second.shape[0]}; "
            "pass as many of one as of the other"
        )
    _require_same_device(first, first_name, second, second_name)


def _require_same_device(first: Tensor, first_name: str, second: Tensor, second_name: str) -> None:
    if first.device != second.device:
        raise ValueError(
            f"{first_name} is on {first.device} and {second_name} on {second.device}; "
            f"move one: {second_name}.to({first_name}.device)"
        )


def _require_finite(points: Tensor, name: str, lengths: Tensor | None = None) -> None:
    if not _reads_data(points):
        return
    points = points.detach()
    if lengths is not None:  # what fills the other places does not matter
        real = torch.arange(points.shape[1], device=points.device) < lengths[:, None]
        points = torch.where(real.unsqueeze(-1), points, 0)
    # A NaN or infinity makes the sum non-finite, and a sum is much cheaper than testing every value; an
    # overflow of finite values does too, so only the second test decides.
    if bool(points.sum().isfinite()) or bool((finite := points.isfinite()).all()):
        return
    cloud, point, axis = finite.logical_not().nonzero()[0].tolist()
    raise ValueError(
        f"{name} holds {points[cloud, point, axis].item()} in cloud {cloud}, point {point}, coordinate {axis}; "
        "remove or repair points with non-finite coordinates"
    )


def _reads_data(values: Tensor) -> bool:
    """Whether a check may look at the values: not while they are being traced, captured, or trusted."""
    if torch.compiler.is_compiling():
        return False
    if _UNCHECKED.get() or values.is_meta or isinstance(values, FakeTensor):
        return False
    return not (values.is_cuda and torch.cuda.is_current_stream_capturing())
