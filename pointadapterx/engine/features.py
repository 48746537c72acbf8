"""Features of the frozen part of a model, computed once for several views of every sample, and trained from.

A view is a sample as training prepares it: resampled and augmented by draws of its own. The features of V views lie in
files that are mapped into memory; their folder is named by a hash of all that decides them, the code included, so a
folder that fits is never out of date.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, get_args

import PIL
import torch
from accelerate import Accelerator
from torch import Tensor

from pointadapterx import adapting, datasets, models, ops, peft
from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.config import Config
from pointadapterx.datasets import EvalBatches, Samples, build_inputs, derive_seed
from pointadapterx.datasets.base import Targets
from pointadapterx.datasets.inputs import Batch, Batches
from pointadapterx.engine.console import progress_bar
from pointadapterx.errors import ConfigError
from pointadapterx.files import sync_folder, write_json
from pointadapterx.hashing import hash_file, hash_json, hash_tensors
from pointadapterx.locks import in_turn
from pointadapterx.models.frozen import EXACT, Frozen, restore

log = logging.getLogger(__name__)

FOLDER = "runs/features"
BATCH = 32  # part of what a view is: its draws are those of a batch in file order
DESCRIPTION = "features.json"


class Field(NamedTuple):
    """One tensor of the features: of (samples, views, *shape)."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def numel(self, samples: int, views: int) -> int:
        """Number of values that this field has for so many samples and views."""
        return samples * views * math.prod(self.shape)

    def nbytes(self, samples: int, views: int) -> int:
        """Size in bytes of this field for so many samples and views."""
        return self.numel(samples, views) * self.dtype.itemsize


class FeatureCache:
    """Features of a data set's views.

    Args:
        folder: of the files.
        kind: what the fields make up.
        fields: of the files.
        samples: n.
        views: V.
        write: whether to create the files.
    """

    def __init__(
        self, folder: Path, kind: type[Frozen], fields: list[Field], samples: int, views: int, *, write: bool = False
    ) -> None:
        self.kind = kind
        self.views = views
        self._tensors = [
            torch.from_file(
                str(folder / field.name), shared=write, size=field.numel(samples, views), dtype=field.dtype
            ).view(samples, views, *field.shape)
            if field.numel(samples, views)
            else torch.empty(samples, views, *field.shape, dtype=field.dtype)
            for field in fields
        ]

    def fetch(self, indices: Tensor, views: Tensor, device: torch.device | str = "cpu") -> Frozen:
        """Features of samples (b,), for each the view given in ``views`` (b,): (b, ...), on a device."""
        return restore(self.kind, (tensor[indices, views].to(device) for tensor in self._tensors))

    def put(self, indices: Tensor, view: int, features: Frozen) -> None:
        """Stores a view of some samples.

        Raises:
            ConfigError: if a value is beyond the precision of the files.
        """
        for tensor, values in zip(self._tensors, features, strict=True):
            kept = values.to("cpu", tensor.dtype)
            if not bool(kept.isfinite().all()):
                raise ConfigError(
                    f"train.cached_views: features are not finite, or beyond {tensor.dtype}; use train.precision=bf16, "
                    "or remove the key"
                )
            tensor[indices, view] = kept


class Views(Protocol):
    """Stored features of some samples, one or several views of each."""

    @property
    def views(self) -> int:
        """Number of views of every sample."""

    def fetch(self, indices: Tensor, views: Tensor, device: torch.device | str = "cpu") -> Frozen:
        """See :meth:`FeatureCache.fetch`."""


class StoredBatches:
    """Batches of stored features, which take the place of :class:`~pointadapterx.datasets.inputs.Batches`.

    Args:
        features: of n samples.
        targets: of these samples.
        device: of the batches.

    Raises:
        ConfigError: for targets of points, since the points are not stored with the features.
    """

    def __init__(self, features: Views, targets: Targets, device: torch.device) -> None:
        if targets.points is not None:
            raise ConfigError(
                "train.cached_views: this task predicts something of every point, and the points are not stored with "
                "the features; remove the key"
            )
        self._features, self._targets, self._device = features, targets, device

    def begin_epoch(self, seed: int, epoch: int) -> None:
        """Does nothing: all epochs draw from the same views."""

    def training(self, indices: Tensor, generator: torch.Generator, repeats: Tensor | None = None) -> Batch:
        """A random view of each of the samples at ``indices`` (b,), however often they had one; see ``Batches``."""
        shape, device = indices.shape, self._device
        return self._batch(
            indices, torch.randint(self._features.views, shape, generator=generator, device=device).cpu()
        )

    def test(self, indices: Tensor, number: int = 0) -> Batch:
        """The first view of each of the samples at ``indices`` (b,); ``number`` of the batch."""
        return self._batch(indices, torch.zeros_like(indices))._replace(number=number)

    def _batch(self, indices: Tensor, views: Tensor) -> Batch:
        return Batch(self._features.fetch(indices, views, self._device), self._targets.of(indices).to(self._device))


def open_features(
    model: AdaptedModel,
    dataset: Samples,
    config: Config,
    accelerator: Accelerator,
    *,
    views: int | None,
) -> FeatureCache:
    """The features of a data set, computed unless they are there already.

    Args:
        model: on the accelerator's device; its mode is restored afterwards.
        dataset: n samples.
        config: complete config.
        accelerator: gives device, precision and the other processes; the main one computes.
        views: V augmented views as training has them; None: the one of a test.

    Raises:
        ConfigError: if the method trains what would be kept, or the disk is too small.
    """
    description = _describe(model, dataset, config, accelerator, views)
    key = hash_json(description)[:16]
    folder = Path(config.train.cache_folder or FOLDER) / key
    with accelerator.main_process_first():
        stored = _read(folder, len(dataset), views or 1)  # first, as a cache may lie where nothing can be written
        if stored is None:
            try:
                folder.parent.mkdir(parents=True, exist_ok=True)
                with in_turn(folder.with_name(f".{key}.lock"), folder):
                    if _read(folder, len(dataset), views or 1) is None:  # which another process may have written
                        with _in_eval_mode(model):
                            _compute(model, dataset, config, accelerator, views, folder, description)
            except OSError as error:
                raise ConfigError(
                    f"{folder.parent}: cannot be written ({error.strerror}); set train.cache_folder"
                ) from None
            stored = _read(folder, len(dataset), views or 1)
            assert stored is not None
    return FeatureCache(folder, *stored, len(dataset), views or 1)


def _read(folder: Path, samples: int, views: int) -> tuple[type[Frozen], list[Field]] | None:
    """The features stored in a folder, if they are complete."""
    try:
        stored = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        kind = next(kind for kind in get_args(Frozen) if kind.__name__ == stored["kind"])
        fields = [Field(name, tuple(shape), getattr(torch, dtype)) for name, shape, dtype in stored["fields"]]
        whole = all((folder / field.name).stat().st_size == field.nbytes(samples, views) for field in fields)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError):
        return None  # such as {} or null
    return (kind, fields) if whole else None


@contextmanager
def _in_eval_mode(model: AdaptedModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@cache
def _code() -> str:
    """Hash of the sources that decide features."""
    folders = (Path(next(iter(package.__path__))) for package in (adapting, datasets, models, ops, peft))
    return hash_file(Path(__file__), *(path for folder in folders for path in sorted(folder.rglob("*.py"))))


def _describe(
    model: AdaptedModel, dataset: Samples, config: Config, accelerator: Accelerator, views: int | None
) -> dict[str, Any]:
    """Everything that determines the features, for the hash."""
    irrelevant, data = ("weights", "init_seed", "drop_path", "label"), config.data
    seed = None if views is None else config.train.seed
    return {
        "weights": hash_tensors(model.method.frozen_state(model.backbone)),
        "features": model.method.precomputed_by,
        "blocks": sorted(model.head.blocks),  # whose tokens the head reads: less can be kept then
        "backbone": {key: value for key, value in config.backbone.model_dump().items() if key not in irrelevant},
        "data": dataset.checksum,
        "inputs": {"num_points": data.num_points, "mean": data.mean, "std": data.std},
        "views": None if views is None else {"number": views, "seed": seed, "augment": config.data.augment},
        "precision": config.train.precision,
        "device": accelerator.device.type,
        "code": _code(),
        "versions": {"torch": torch.__version__, "pillow": PIL.__version__, "backbone": model.backbone.made_by},
    }


def _compute(
    model: AdaptedModel,
    dataset: Samples,
    config: Config,
    accelerator: Accelerator,
    views: int | None,
    folder: Path,
    description: Mapping[str, Any],
) -> None:
    inputs, device = build_inputs(config), accelerator.device
    batches = Batches(inputs, dataset, Targets(), device, staged=views is not None)

    @torch.no_grad()
    def features(batch: Tensor, view: int) -> Frozen:
        if views is None:
            prepared = batches.test(batch).inputs
        else:
            seed = derive_seed(config.train.seed, "view", view, int(batch[0]))
            prepared = batches.training(batch, torch.Generator(device).manual_seed(seed)).inputs
        with accelerator.autocast():
            return model.method.precompute(model.backbone, prepared, model.head.blocks)

    half = torch.bfloat16 if config.train.precision == "bf16" else torch.float16
    parts = EvalBatches(len(dataset), BATCH)
    first = features(next(iter(parts)), 0)
    fields = [
        Field(name, tuple(values.shape[1:]), torch.float32 if name in EXACT else half)
        for name, values in zip(first._fields, first, strict=True)
    ]
    building = folder.with_name(f".{folder.name}.tmp")
    for leftover in (building, folder):  # of a process that was killed, or incomplete
        shutil.rmtree(leftover, ignore_errors=True)
    building.mkdir()
    try:
        _make_room(building, folder, fields, len(dataset), views)
        store = FeatureCache(building, type(first), fields, len(dataset), views or 1, write=True)
        total = (views or 1) * len(parts)
        with progress_bar("features", total, 0, accelerator.is_main_process) as advance:
            for view in range(views or 1):
                for batch in parts:
                    store.put(batch, view, features(batch, view))
                    advance()
        del store
        for field in fields:
            with (building / field.name).open("rb+") as file:
                os.fsync(file.fileno())
        listed = [[field.name, field.shape, str(field.dtype).removeprefix("torch.")] for field in fields]
        write_json(building / DESCRIPTION, {**description, "kind": type(first).__name__, "fields": listed})
        building.replace(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _make_room(building: Path, folder: Path, fields: list[Field], samples: int, views: int | None) -> None:
    """Logs the size and reserves the disk space, so that the disk cannot fill up while files are memory-mapped."""
    size = sum(field.nbytes(samples, views or 1) for field in fields)
    what = f"{samples:,} samples × {views} views" if views is not None else f"{samples:,} samples"
    free = shutil.disk_usage(building).free
    log.info("features: %s, %.2f GB in %s (%.1f GB are free)", what, size / 1e9, folder, free / 1e9)
    too_small = ConfigError(
        f"train.cached_views={views}: the features of {what} take {size / 1e9:.1f} GB, but {folder.parent} has "
        f"{free / 1e9:.1f} GB left; lower train.cached_views, or set train.cache_folder to another disk"
    )
    if size > free:
        raise too_small
    for field in fields:
        with (building / field.name).open("wb") as file:
            try:
                if hasattr(os, "posix_fallocate") and field.nbytes(samples, views or 1):
                    os.posix_fallocate(file.fileno(), 0, field.nbytes(samples, views or 1))
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise too_small from None  # other errors are those of file systems that cannot do it
