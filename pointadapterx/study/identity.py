"""Which runs are the same run: a hash of all that decides a result, whatever the files' locations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from pointadapterx.datasets import build_dataset
from pointadapterx.errors import CheckpointError
from pointadapterx.models.weights import find_weights

LOCATIONS = ("data.root", "data.cache_dir", "backbone.weights")
"""Config keys that say where files lie: what lies there counts, not where."""


def run_name(config: Mapping[str, Any]) -> str:
    """Folder name of a run: its method and a hash of its config and of the files that the config points to.

    Keys that are null do not enter, so runs keep their names when a version adds an optional key.

    Args:
        config: complete config of an adaptation.

    Raises:
        CheckpointError: if the weights cannot be read.
        DataError: if the data cannot be read.
    """
    content: dict[str, Any] = {section: dict(values) for section, values in config.items()}
    for key in LOCATIONS:
        section, name = key.split(".")
        content[section].pop(name, None)
    content["checksums"] = {"data": data_checksums(config["data"]), "weights": _weights_checksum(config["backbone"])}
    digest = hashlib.sha256(json.dumps(_without_null(content), sort_keys=True).encode()).hexdigest()
    return f"{config['method']['name']}-{digest[:12]}"


def data_checksums(data: Mapping[str, Any]) -> tuple[str, str]:
    """Checksums of the whole training and test set of a ``data`` section, read once a process.

    Raises:
        DataError: if files are missing or damaged.
    """
    keys = ("root", "variant", "normalize", "cache_dir")
    options = tuple((key, data[key]) for key in keys if data.get(key) is not None)
    return _data_checksums(data["name"], options)


@cache
def _data_checksums(name: str, options: tuple[tuple[str, Any], ...]) -> tuple[str, str]:
    return build_dataset(name, "train", **dict(options)).checksum, build_dataset(name, "test", **dict(options)).checksum


def _weights_checksum(backbone: Mapping[str, Any]) -> str | None:
    return None if backbone["weights"] is None else _file_checksum(backbone["weights"])


@cache
def _file_checksum(path: str) -> str:
    try:
        return hashlib.sha256(find_weights(path).read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); set backbone.weights to the file") from None


def _without_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_null(inner) for key, inner in value.items() if inner is not None}
    return value
