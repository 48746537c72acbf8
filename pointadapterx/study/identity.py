"""Identity of runs: a hash of everything that determines a result, independent of file locations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from pointadapterx.build import cut_splits
from pointadapterx.checkpoints.shipped import find_weights
from pointadapterx.config import LOCATIONS, Config
from pointadapterx.datasets import Samples, build_dataset
from pointadapterx.datasets.options import DataConfig
from pointadapterx.errors import CheckpointError
from pointadapterx.hashing import hash_file, hash_json


class Outline(NamedTuple):
    """A published split: ``samples`` keep labels, groups and names, but have no inputs."""

    checksum: str
    samples: Samples


def run_name(config: Config) -> str:
    """Folder name of a run: its method and a hash of its config and of the files that the config points to.

    Keys that are null do not enter, so runs keep their names when a version adds an optional key.

    Args:
        config: complete config of an adaptation.

    Raises:
        CheckpointError: if the weights cannot be read.
        DataError: if the data cannot be read.
    """
    assert config.method is not None
    content = config.dump()
    for key in LOCATIONS:
        section, name = key.split(".")
        content[section].pop(name, None)
    content["backbone"].pop("label", None)
    data = [split.checksum for split in outlines(config.data)]
    content["checksums"] = {"data": data, "weights": _weights_checksum(config.backbone.weights)}
    digest = hash_json(_without_null(content))
    return f"{config.method.name}-{digest[:12]}"


def outlines(data: DataConfig) -> tuple[Outline, Outline]:
    """The whole training and test split of a ``data`` section, read once a process.

    Raises:
        DataError: if files are missing or damaged.
    """
    options = json.dumps(data.reading_options())
    return _outline(data.name, "train", options), _outline(data.name, "test", options)


def publishes_validation(data: DataConfig) -> bool:
    """Whether the validation part of a ``data`` section is the data set's own instead of a draw.

    Raises:
        DataError: if files are missing or damaged.
    """
    whole = data.few_shot is None and data.train_size is None
    return whole and outlines(data)[0].samples.validation is not None


def check_splits(config: Config) -> None:
    """Cuts the parts of a run, so that impossible ones are found before anything is trained.

    Raises:
        ConfigError: if points, classes, few-shot task or validation part do not fit the data.
        DataError: if files are missing or damaged, or no validation part can be cut.
    """
    sections = config.dump()
    key = json.dumps([sections[name] for name in ("task", "data", "eval", "head") if name in sections])
    if key not in _cut:
        train, test = outlines(config.data)
        cut_splits(config, train.samples, test.samples)
        _cut.add(key)


_cut: set[str] = set()  # a second for each cut of a large data set, and a study has many runs


@cache
def _outline(name: str, split: str, options: str) -> Outline:
    samples = build_dataset(name, split, **json.loads(options))
    return Outline(samples.checksum, samples.outline())


def _weights_checksum(weights: str | None) -> str | None:
    return None if weights is None else _file_checksum(weights)


@cache
def _file_checksum(path: str) -> str:
    try:
        return hash_file(find_weights(path))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); set backbone.weights to the file") from None


def _without_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_null(inner) for key, inner in value.items() if inner is not None}
    return value
