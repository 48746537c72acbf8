"""Clouds of different sizes, one behind the other, as padded batches and back."""

from __future__ import annotations

from torch import Tensor

from pointadapterx.ops import checks
from pointadapterx.ops.reference import within


def pad_clouds(values: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Flat points, or any values of points, as a batch with lengths, which the other operations take.

    Memory is that of as many clouds of the largest size: batches of clouds of about one size suit it.

    Args:
        values: (T, ...), the points of all clouds, cloud after cloud; differentiable if floating-point.
        offsets: (B + 1,), int64 or int32: cloud b is ``values[offsets[b] : offsets[b + 1]]``. For those of
            ``pointops``, which leaves out the 0 in front, pass ``torch.nn.functional.pad(offset, (1, 0))``.

    Returns:
        (B, N, ...) with N of the largest cloud, filled up with zeros, and int64 lengths (B,). An index into cloud b
        plus ``offsets[b]`` is one into ``values``.

    Raises:
        TypeError: if ``offsets`` is not an int64 or int32 tensor.
        ValueError: if ``offsets`` does not rise from 0 to T, a cloud is empty, or devices differ.
    """
    offsets = checks.offsets_of(offsets, "offsets", values, "values")
    lengths = offsets.diff()
    real = within(lengths, int(lengths.max()))
    padded = values.new_zeros(*real.shape, *values.shape[1:])
    padded[real] = values
    return padded, lengths


def flatten_clouds(values: Tensor, lengths: Tensor) -> Tensor:
    """The real points of a padded batch, cloud after cloud: undoes :func:`pad_clouds`.

    Args:
        values: (B, N, ...).
        lengths: (B,), int64 or int32, how many of N are real.

    Returns:
        (T, ...), with T the sum of the lengths.

    Raises:
        TypeError, ValueError: if ``lengths`` does not fit ``values``.
    """
    return values[within(checks.lengths_of(lengths, "lengths", values, "values"), values.shape[1])]
