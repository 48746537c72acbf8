"""From the ``data`` section of a configuration to a data set."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pointadapterx.datasets.base import DATASETS, Samples
from pointadapterx.errors import ConfigError
from pointadapterx.registry import did_you_mean


def build_dataset(
    name: str, split: str, *, root: str | Path | None = None, variant: str | None = None, **options: Any
) -> Samples:
    """Read one split of a registered data set.

    Args:
        name: one of :data:`~pointadapterx.datasets.base.DATASETS`, for example ``"scanobjectnn"``.
        split: ``"train"`` or ``"test"``.
        root: folder of the data; each set but ``"folder"`` has a default.
        variant: of the set, where it has several.
        options: the set's own keys, for example ``normalize``.

    Raises:
        ConfigError: for an unknown name, split, variant or option.
        DataError: if files are missing or damaged.
    """
    data_set: Callable[..., Samples] = DATASETS[name]
    known = [key for key, p in inspect.signature(data_set).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for key in options:
        if key not in known:
            near = did_you_mean(key, known)
            raise ConfigError(f"data.{key} is not an option of {name}{near} Options: {', '.join(known)}.")
    return data_set(split, root=root, variant=variant, **options)
