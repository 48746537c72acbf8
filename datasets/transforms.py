"""Augmentation of whole batches: ``(B, N, 3) -> (B, N, 3)`` on the tensor's own device, without a Python loop.

Every transform draws from the generator that it is given (on the device of the points), so equal seeds give equal
clouds. Which augmentation a model was trained with moves the accuracy on ScanObjectNN by about two points, so
:func:`augment_label` names the regime and belongs into every result.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pointadapterx.datasets.image_transforms import IMAGE_TRANSFORMS, ImageTransform, Pictures
from pointadapterx.errors import ConfigError
from pointadapterx.registry import Registry, did_you_mean


@dataclass(frozen=True)
class Transform(ABC):
    """Base of the transforms; the fields are the parameters that a configuration may set."""

    def __call__(self, points: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Transform a batch.

        Args:
            points: ``(B, N, 3)``, floating point; not changed.
            generator: source of the random draws, on the device of ``points``.

        Returns:
            ``(B, N, 3)``, same type and device.

        Raises:
            ValueError: if ``points`` has another shape.
        """
        if points.ndim != 3 or points.shape[2] != 3:
            raise ValueError(f"points has shape {tuple(points.shape)}, expected (batch, points, 3)")
        return self.apply(points, generator)

    def carry(
        self, points: torch.Tensor, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As the call, and which point each one is now, so that the targets of points can follow.

        Returns:
            The points, and ``(B, N)`` indices into those that were given; None where each stays in its place.
        """
        return self(points, generator), None

    @abstractmethod
    def apply(self, points: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """The transform itself, on points of a checked shape ``(B, N, 3)``."""

    def require(self, ok: bool, expected: str) -> None:
        """Refuse parameters.

        Raises:
            ConfigError: naming the transform, what it expects and what it was given.
        """
        if not ok:
            raise ConfigError(f"{self!r}: expected {expected}")


TRANSFORMS: Registry[type[Transform]] = Registry("transform")
"""Augmentations of clouds by the name used in ``data.augment``."""


def _uniform(
    like: torch.Tensor, shape: tuple[int, ...], low: float, high: float, generator: torch.Generator | None
) -> torch.Tensor:
    draw = torch.rand(shape, generator=generator, device=like.device, dtype=like.dtype)
    return low + (high - low) * draw


def _check_scale(transform: Scale | ScaleTranslate) -> None:
    transform.require(0 < transform.low <= transform.high, "0 < low <= high")


@TRANSFORMS.register("rotation")
@dataclass(frozen=True)
class RotateUp(Transform):
    """Rotate each cloud by a uniform angle about the up axis, y (the regime of DAPT and Adapter-X)."""

    def apply(self, points: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Rotate; heights (y) and norms stay."""
        angle = _uniform(points, (len(points), 1), 0.0, 2 * math.pi, generator)
        cos, sin = angle.cos(), angle.sin()  # (B, 1)
        x, y, z = points.unbind(2)
        return torch.stack([x * cos - z * sin, y, x * sin + z * cos], dim=2)


@TRANSFORMS.register("so3")
@dataclass(frozen=True)
class RotateSO3(Transform):
    """Rotate each cloud by a rotation drawn uniformly from SO(3): a normal 4-vector, normalised, as quaternion."""

    def apply(self, points: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Multiplies each cloud (B, N, 3) by its own random rotation."""
        quaternion = torch.randn((len(points), 4), generator=generator, device=points.device, dtype=points.dtype)
        w, x, y, z = torch.nn.functional.normalize(quaternion, dim=1).unbind(1)
        rotation = torch.stack(
            [
                *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
                *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
                *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
            ],
            dim=1,
        ).view(-1, 3, 3)
        # Sums of products, not a matrix product: autocast and TF32 would round the coordinates.
        columns = (points[..., i, None] * rotation[:, None, :, i] for i in range(3))
        return sum(columns, torch.zeros_like(points))


@TRANSFORMS.register("scale")
@dataclass(frozen=True)
class Scale(Transform):
    """Scale each axis of each cloud by a factor of its own, uniform in ``[low, high)``."""

    low: float = 2 / 3
    high: float = 3 / 2

    def __post_init__(self) -> None:
        _check_scale(self)

    def apply(self, points: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Multiplies each axis of each cloud (B, N, 3) by its own random factor."""
        return points * _uniform(points, (len(points), 1, 3), self.low, self.high, generator)


@TRANSFORMS.register("scale_translate")
@dataclass(frozen=True)
class ScaleTranslate(Transform):
    """Scale as :class:`Scale` does, then shift each axis by a uniform draw from ``±shift`` (Point-MAE's regime)."""

    low: float = 2 / 3
    high: float = 3 / 2
    shift: float = 0.2

    def __post_init__(self) -> None:
        _check_scale(self)
        self.require(self.shift >= 0, "shift >= 0")

    def apply(self, points: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Scale about the origin, then shift."""
        size = (len(points), 1, 3)
        factor = _uniform(points, size, self.low, self.high, generator)
        return points * factor + _uniform(points, size, -self.shift, self.shift, generator)


@TRANSFORMS.register("jitter")
@dataclass(frozen=True)
class Jitter(Transform):
    """Add normal noise of deviation ``std`` to every coordinate, clipped to ``±clip`` (PointNet)."""

    std: float = 0.01
    clip: float = 0.05

    def __post_init__(self) -> None:
        self.require(self.std >= 0 and self.clip >= 0, "std >= 0 and clip >= 0")

    def apply(self, points: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Adds clipped normal noise to every coordinate."""
        noise = torch.randn(points.shape, generator=generator, device=points.device, dtype=points.dtype)
        return points + (self.std * noise).clamp(-self.clip, self.clip)


@TRANSFORMS.register("point_dropout")
@dataclass(frozen=True)
class PointDropout(Transform):
    """Drop each point with a probability that is drawn for each cloud, uniform in ``[0, max_ratio)`` (PointNet++).

    A dropped point becomes a copy of the cloud's first point, so the number of points stays.
    """

    max_ratio: float = 0.875

    def __post_init__(self) -> None:
        self.require(0 <= self.max_ratio < 1, "0 <= max_ratio < 1")

    def carry(
        self, points: torch.Tensor, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Replace the dropped points, whose indices become 0."""
        ratio = _uniform(points, (len(points), 1), 0.0, self.max_ratio, generator)
        dropped = _uniform(points, (len(points), points.shape[1]), 0.0, 1.0, generator) < ratio
        index = torch.arange(points.shape[1], device=points.device).masked_fill(dropped, 0)
        return torch.where(dropped[..., None], points[:, :1], points), index

    def apply(self, points: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Replaces the dropped points of each cloud by its first point."""
        return self.carry(points, generator)[0]


@TRANSFORMS.register("unit_sphere")
@dataclass(frozen=True)
class NormalizeUnitSphere(Transform):
    """Move each cloud's mean to the origin and scale its farthest point to norm 1; a single spot becomes zeros.

    Finite coordinates of any size are fine.
    """

    def apply(self, points: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Moves each cloud's mean to the origin and scales it into the unit sphere."""
        # First by a power of two, which is exact: the squares of 1e30 or 1e-30 are beyond float32.
        exponent = points.abs().amax(dim=(1, 2), keepdim=True).frexp().exponent.clamp(-126, 126)
        points = points.ldexp(-exponent)
        centred = points - points.mean(dim=1, keepdim=True)
        radius = centred.norm(dim=2, keepdim=True).amax(dim=1, keepdim=True)  # (B, 1, 1)
        return centred / radius.clamp_min(torch.finfo(points.dtype).tiny)


def follow(first: torch.Tensor | None, then: torch.Tensor | None) -> torch.Tensor | None:
    """Two choices of points one after the other as one, ``(B, M)`` indices; None is all points in their order."""
    if first is None or then is None:
        return first if then is None else then
    return first.gather(1, then)


@dataclass(frozen=True)
class Augment:
    """Transforms in order; falsy when empty. ``label`` names the regime."""

    transforms: tuple[Transform | ImageTransform, ...] = ()

    def __call__(self, inputs: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Apply every transform to ``(B, N, 3)`` points or ``(B, channels, S, S)`` images."""
        for transform in self.transforms:
            inputs = transform(inputs, generator)
        return inputs

    def carry(
        self, inputs: torch.Tensor, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As the call, and which point each one is now, see :meth:`Transform.carry`; None for images."""
        index: torch.Tensor | None = None
        for transform in self.transforms:
            if not isinstance(transform, Transform):
                inputs = transform(inputs, generator)
                continue
            inputs, moved = transform.carry(inputs, generator)
            index = follow(index, moved)
        return inputs, index

    def carry_pictures(self, pictures: Pictures, generator: torch.Generator | None = None) -> Pictures:
        """Apply every transform to images, with the labels of their pixels and their frame."""
        for transform in self.transforms:
            assert isinstance(transform, ImageTransform)
            pictures = transform.carry(pictures, generator)
        return pictures

    def __bool__(self) -> bool:
        return bool(self.transforms)

    @property
    def label(self) -> str:
        """``"rotation"``, ``"scale_translate"``, ``"rotation+jitter(std=0.02)"``, ``"none"``."""
        return "+".join(_label(transform) for transform in self.transforms) or "none"


def _label(transform: Transform | ImageTransform) -> str:
    known = [*TRANSFORMS.items(), *IMAGE_TRANSFORMS.items()]
    name = next(name for name, cls in known if cls is type(transform))
    changed = [
        f"{field.name}={getattr(transform, field.name):g}"
        for field in dataclasses.fields(transform)
        if getattr(transform, field.name) != field.default
    ]
    return f"{name}({','.join(changed)})" if changed else name


AugmentSpec = str | Sequence[str | Mapping[str, Mapping[str, float] | None]]


def build_augment(spec: AugmentSpec, modality: str = "points") -> Augment:
    """Build the augmentation that a configuration names.

    Args:
        spec: ``"none"``, one name of :data:`TRANSFORMS` (of images:
            :data:`~pointadapterx.datasets.image_transforms.IMAGE_TRANSFORMS`), or a list of names and
            ``{name: {parameter: value}}``.
        modality: ``"points"`` or ``"images"``.

    Raises:
        ConfigError: for an unknown name or parameter, or a value that the transform refuses.
    """
    if isinstance(spec, str):
        return Augment(() if spec == "none" else (_build_one(spec, {}, modality),))
    if not isinstance(spec, Sequence):
        raise ConfigError(f"augment is {spec!r}, expected a name or a list, such as rotation or [rotation, jitter]")
    transforms = []
    for entry in spec:
        if isinstance(entry, str):
            transforms.append(_build_one(entry, {}, modality))
        elif isinstance(entry, Mapping) and len(entry) == 1:
            name, parameters = next(iter(entry.items()))
            transforms.append(_build_one(name, parameters or {}, modality))
        else:
            raise ConfigError(f"augment holds {entry!r}, expected a name or one {{name: {{parameter: value}}}}")
    return Augment(tuple(transforms))


def augment_label(spec: AugmentSpec, modality: str = "points") -> str:
    """The regime that ``spec`` means, one label for one meaning, for results: ``"rotation"``, ``"none"``, ...

    Raises:
        ConfigError: as :func:`build_augment` does.
    """
    return build_augment(spec, modality).label


def _build_one(name: Any, parameters: Any, modality: str) -> Transform | ImageTransform:
    registry: Mapping[str, type[Transform] | type[ImageTransform]]
    registry = TRANSFORMS if modality == "points" else IMAGE_TRANSFORMS
    cls = registry[name] if name != "none" else None
    if cls is None:
        raise ConfigError("augment 'none' cannot be combined with others; remove it from the list")
    if not isinstance(parameters, Mapping):
        raise ConfigError(f"augment {name}: {parameters!r} is not a mapping of parameters")
    known = [field.name for field in dataclasses.fields(cls)]
    for key, value in parameters.items():
        if key not in known:
            near = did_you_mean(str(key), known)
            raise ConfigError(f"augment {name} has no parameter '{key}'{near} Known: {', '.join(known) or 'none'}.")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(f"augment {name}: {key} is {value!r}, expected a finite number")
    return cls(**parameters)
